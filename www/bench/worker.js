// The limits of a machine, measured in a separate worker: see bench.js.
//
// Messages from the page                                     answered by
//   { type: "read", build, bytes, ms }                       { bytesPerSecond }     memory that is only read
//   { type: "multiply", build, ms }                          { gmacsPerSecond }     products in registers
//   { type: "kept", manifestUrl }                            { bytes, seconds }     what this browser keeps of a model, read and discarded
//   any of them                                              { type: "failed", error: { kind, message, detail } }

import { importBuild, wasmUrl } from "../llama3med/builds.js";
import { Folder } from "../llama3med/folder.js";

const PIECE_BYTES = 4 << 20;

self.addEventListener("message", async ({ data }) => {
  try {
    postMessage(await { read, multiply, kept }[data.type](data));
  } catch (error) {
    postMessage({ type: "failed", error: { kind: error.kind ?? "internal", message: error.message, detail: String(error.stack ?? "") } });
  }
});

async function start(build) {
  const wasm = await importBuild(build);
  await wasm.default({ module_or_path: wasmUrl(build) });
  return wasm;
}

/** How often `run` runs per second, measured over about `ms` milliseconds; the first run is not counted. */
function perSecond(ms, run) {
  run();
  const start = performance.now();
  let n_runs = 0;
  while (performance.now() - start < ms) n_runs += (run(), 1);
  return (n_runs * 1000) / (performance.now() - start);
}

async function read({ build, bytes, ms }) {
  const { Stretch } = await start(build);
  const stretch = new Stretch(bytes);
  return { bytesPerSecond: perSecond(ms, () => stretch.read()) * bytes };
}

async function multiply({ build, ms }) {
  const wasm = await start(build);
  const n_runs = 100_000;
  const speeds = [true, false].map((wide) => perSecond(ms, () => wasm.multiply(n_runs, wide)) * wasm.multiply(n_runs, wide));
  return { gmacsPerSecond: Math.max(...speeds) / 1e9 };
}

async function kept({ manifestUrl }) {
  const { directory } = await Folder.peek(manifestUrl);
  const piece = new Uint8Array(PIECE_BYTES);
  const start = performance.now();
  let bytes = 0;
  for await (const file of directory.values()) {
    const access = await file.createSyncAccessHandle();
    for (let n = 0, at = 0; (n = access.read(piece, { at })) > 0; at += n) bytes += n;
    access.close();
  }
  return { bytes, seconds: (performance.now() - start) / 1000 };
}
