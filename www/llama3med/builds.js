// The two wasm builds and their JavaScript. Every address is written out: bundlers find a file by nothing else.

/** Bytes of each build as it is compiled; scripts/site.mjs fills them in. */
export const BUILD_BYTES = { relaxed: 0, simd128: 0 };

/** Where the wasm file of a build is. */
export function wasmUrl(build) {
  return build === "relaxed" ? new URL("./pkg/llama3med_relaxed_bg.wasm", import.meta.url) : new URL("./pkg/llama3med_simd128_bg.wasm", import.meta.url);
}

/** The bindings of a build. */
export function importBuild(build) {
  const bindings = build === "relaxed" ? import("./pkg/llama3med_relaxed.js") : import("./pkg/llama3med_simd128.js");
  return bindings.catch((error) => {
    throw Object.assign(error, { kind: "program" });
  });
}
