// The two wasm builds and their JavaScript. Every URL is a literal: bundlers find files only that way.

/** Size in bytes of each compiled build; scripts/site.mjs fills them in. */
export const BUILD_BYTES = { relaxed: 0, simd128: 0 };

/** The URL of a build's wasm file. */
export function wasmUrl(build) {
  return build === "relaxed" ? new URL("./pkg/llama3med_relaxed_bg.wasm", import.meta.url) : new URL("./pkg/llama3med_simd128_bg.wasm", import.meta.url);
}

/** A build's bindings. */
export function importBuild(build) {
  const bindings = build === "relaxed" ? import("./pkg/llama3med_relaxed.js") : import("./pkg/llama3med_simd128.js");
  return bindings.catch((error) => {
    throw Object.assign(error, { kind: "program" });
  });
}
