// Models with random weights at full shapes, made once and kept in target/bench.
//
// A decoder's chunks are joined into decoder.gguf, and the manifest then names byte ranges of it: the page, llama.cpp and wllama read the very same file, and
// the disk holds it only once.

import { execFileSync } from "node:child_process";
import { closeSync, existsSync, mkdirSync, openSync, readFileSync, rmSync, writeFileSync, writeSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const root = resolve(dirname(fileURLToPath(import.meta.url)), "..");
const target = resolve(root, process.env.CARGO_TARGET_DIR ?? "target");
const quantize = join(target, "debug/quantize");

/** The folder of the models, and of everything else that the benchmark writes for itself. */
export const WORK = join(target, "bench");

/** Makes a model unless it exists: `{ name, folder, gguf, facts }`; `facts` is the output of `quantize inspect`. */
export function model(shape, type = "q4_0") {
  const name = `${shape}-${type}`;
  const folder = join(WORK, "models", name);
  if (!existsSync(join(folder, "manifest.json"))) {
    console.log(`making ${name}`);
    mkdirSync(dirname(folder), { recursive: true });
    const making = `${folder}.making`;
    rmSync(making, { recursive: true, force: true });
    execFileSync(quantize, ["random", "--shape", shape, "--type", type, "-o", making], { stdio: "pipe" });
    joinDecoder(making);
    rmSync(folder, { recursive: true, force: true });
    execFileSync("mv", [making, folder]);
  }
  const facts = JSON.parse(execFileSync(quantize, ["inspect", "--json", folder], { encoding: "utf8" }));
  return { name, folder, type, gguf: join(folder, "decoder.gguf"), facts };
}

function joinDecoder(folder) {
  const path = join(folder, "manifest.json");
  const manifest = JSON.parse(readFileSync(path, "utf8"));
  const file = manifest.files.find(({ name }) => name === "decoder.gguf");
  const joined = openSync(join(folder, file.name), "w");
  let offset = 0;
  for (const chunk of file.chunks) {
    const bytes = readFileSync(join(folder, chunk.path));
    for (let n_written = 0; n_written < bytes.length;) n_written += writeSync(joined, bytes, n_written);
    rmSync(join(folder, chunk.path));
    Object.assign(chunk, { path: file.name, offset });
    offset += chunk.size;
  }
  closeSync(joined);
  writeFileSync(path, JSON.stringify(manifest));
}

const BYTES_PER_WEIGHT = { q4_0: 18 / 32, q4_k: 144 / 256, q8_0: 34 / 32 };

/**
 * The work of a decoder per token: bytes of weights read for one token, and multiplications for one token of a prompt. Only one row of the embedding table is
 * read, unless it is also the output matrix; a prompt needs the output matrix for its last token only.
 */
export function work({ type, facts: { decoder, files } }) {
  const table = decoder.vocab_size * decoder.dim;
  const { n_bytes } = files.find(({ name }) => name === "decoder.gguf");
  return {
    bytesPerToken: n_bytes - (decoder.tied ? 0 : table * BYTES_PER_WEIGHT[type]),
    macsPerPromptToken: decoder.n_parameters - (decoder.tied ? 1 : 2) * table,
  };
}

/** Bytes of all weights, and of keys and values for this many tokens, on `n_ranks` ranks together. */
export function needed({ facts: { files, memory } }, n_ranks, n_tokens) {
  const { kv_per_1000_tokens } = memory.find((line) => line.n_ranks === n_ranks);
  return { weights: files.reduce((sum, file) => sum + file.n_bytes, 0), kv: (kv_per_1000_tokens * n_ranks * n_tokens) / 1000 };
}
