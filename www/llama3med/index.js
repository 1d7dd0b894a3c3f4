// The client: loads a model into workers of this tab and chats with it. No dependencies, and no requests except for the model's own files.
//
//   import { load } from "./llama3med/index.js";
//   const model = await load("models/demo/manifest.json", { onProgress, signal });
//   const chat = model.chat({ image: file });                    // starts encoding
//   for await (const piece of chat.ask("Is the heart enlarged?", { signal })) …
//   const talk = model.chat();                                   // without a picture, with any model
//   model.close();
//
// The client needs only this folder; both wasm builds are in pkg/.

import { BUILD_BYTES, wasmUrl } from "./builds.js";
import { abortError, KINDS, ModelError } from "./errors.js";
import { Folder } from "./folder.js";
import { giveUpNetwork } from "./lock.js";
import { Meter } from "./meter.js";
import { Chat, Model } from "./model.js";
import { chooseRanks, measure, Probe } from "./ranks.js";
import { MAX_RANKS, Workers, workersChecked } from "./workers.js";

export { Chat, Folder, giveUpNetwork, KINDS, MAX_RANKS, Model, ModelError };

/**
 * @typedef {import("./model.js").Progress} Progress
 * @typedef {import("./model.js").Model} Model
 */

// (module (func (result v128) (i8x16.popcnt (i8x16.splat (i32.const 0)))))
const SIMD128 = [0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11];
// (module (func (result v128) (i16x8.relaxed_dot_i8x16_i7x16_s (i8x16.splat (i32.const 1)) (i8x16.splat (i32.const 2)))))
const RELAXED = [0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 15, 1, 13, 0, 65, 1, 253, 15, 65, 2, 253, 15, 253, 146, 2, 11];

const ASK_TO_KEEP_BYTES = 100e6; // for a model this large, ask the browser's permission to keep it

/**
 * Loads a model.
 * @param {string|URL|(string|URL|File)[]} source  a model folder's manifest.json, relative to the page; or GGUF files of llama.cpp's converters, a decoder
 *   and its mmproj (without which the model sees no pictures), which are read in place and not kept
 * @param {{ ranks?: number, build?: "relaxed"|"simd128", context?: number, cache?: boolean, verify?: boolean, template?: string,
 *   onManifest?: (manifest: object) => void, onOpened?: (size: { bytes: number }) => void, workersAfter?: Promise<unknown>,
 *   onProgress?: (progress: Progress) => void, signal?: AbortSignal }} [options]  The default for `ranks` comes from a short measurement (ranks.js);
 *   `context` limits the tokens of a conversation; `cache: false` keeps nothing in this browser; `verify` checks the hashes of kept files again; `template` is the
 *   chat template ("vicuna", "mistral", "mistral-v3", "mistral-v3-tekken", "llama3", "llama3-med", "chatml") to use, for GGUF files that name no known one;
 *   `onManifest` gets the manifest's content, unchecked, long before the model is loaded, or null if it could not be read; `onOpened` is called before any
 *   weights are loaded, when the files are known to be a model's, with their size; no worker is started until `workersAfter` has resolved
 * @returns {Promise<Model>}
 */
export async function load(source, options = {}) {
  try {
    return await loadOnce(source, options);
  } catch (error) {
    // Not every engine tells a worker what the page's policy forbade, so the page checks it.
    if (error.kind === "network") throw (await forbidden([source].flat()).catch(() => null)) ?? error;
    if (error.kind !== "program") throw error;
    await refetchProgram(chooseBuild(options.build));
    return loadOnce(source, options);
  }
}

async function forbidden(sources) {
  const { whyForbidden } = await import("./fetching.js");
  for (const source of sources.filter((source) => !(source instanceof Blob))) {
    const why = await whyForbidden(absolute(source));
    if (why) return new ModelError(why);
  }
  return null;
}

// What the model's workers load besides the builds; the page has already loaded the rest.
const WORKER_FILES = ["builds.js", "store.js", "fetching.js", "folder.js", "lock.js", "pair.js", "rank.js", "probe.js"];
const here = import.meta.url; // an alias, so that bundlers do not follow these URLs

/** Fetches the whole program past every cache, after a host or a cache has served something else in place of a part of it. */
async function refetchProgram(build) {
  const paths = [...WORKER_FILES, `pkg/llama3med_${build}.js`];
  const urls = [...paths.map((path) => new URL(path, here)), wasmUrl(build)];
  await Promise.all(urls.map((url) => fetch(url, { cache: "reload" }).then((response) => response.arrayBuffer()).catch(() => {})));
}

async function loadOnce(source, { signal, ...options }) {
  const start = performance.now();
  const pair = Array.isArray(source) ? source.map((file) => (file instanceof Blob ? file : absolute(file))) : undefined;
  const url = pair ? undefined : absolute(source);
  const workers = new Workers();
  const abort = () => workers.end(abortError("the model was not loaded: stopped"));
  if (signal?.aborted) abort();
  signal?.addEventListener("abort", abort, { once: true });
  const ended = workers.ended.then((error) => Promise.reject(error));
  ended.catch(() => {});
  try {
    return await Promise.race([ended, loadInto(workers, { url, pair, start }, options)]);
  } catch (error) {
    workers.end(error);
    throw error;
  } finally {
    signal?.removeEventListener("abort", abort);
  }
}

async function loadInto(workers, { url, pair, start }, { ranks, build, context, cache = true, verify = false, template, onManifest, onOpened, onProgress, workersAfter }) {
  const chosen = chooseBuild(build);
  const meter = new Meter((progress) => onProgress?.({ stage: "loading", ...progress }));
  // The small file first: the large one takes longer.
  const early = url ? fetchManifest(url) : null;
  early?.then((found) => {
    if (found) meter.set("model", { done: 0, total: found.manifest.files.reduce((sum, { size }) => sum + size, 0) });
    onManifest?.(found && shown(found.manifest));
  });
  const [module] = await Promise.all([compile(chosen, (progress) => meter.set("program", progress)), workersChecked(), workersAfter]);
  const found = await early;
  if (workers.error) return null;
  const heard = {};
  const next = (type) => new Promise((resolve) => (heard[type] = resolve));
  const store = workers.startStore(({ type, ...message }) => {
    if (type === "progress") meter.set("model", message);
    heard[type]?.(message);
  });
  const manifested = next("manifest");
  store.postMessage({ type: "open", manifestUrl: url, pair, build: chosen, module, cache, context, template, early: found?.bytes });
  const { manifest, memory } = await manifested;
  if (workers.error) return null;
  const n_bytes = manifest.files.reduce((sum, file) => sum + file.size, 0);
  onOpened?.({ bytes: n_bytes });
  const n_cores = navigator.hardwareConcurrency;
  const choice = { n_least: memory.leastRanks, wanted: ranks, n_cores, measure: (counts) => measure(counts, { build: chosen, module }) };
  const n_ranks = await chooseRanks(memory.bytes, choice);
  if (workers.error) return null;
  if (cache && url && n_bytes > ASK_TO_KEEP_BYTES) navigator.storage?.persist?.().catch(() => {});
  const { loaded, storePorts } = workers.startRanks(n_ranks, { build: chosen, module, context, template });
  const served = next("served");
  store.postMessage({ type: "serve", ports: storePorts, verify }, storePorts);
  const [shape, { cached, note }] = await Promise.all([loaded, served]);
  workers.endStore();
  const info = { ...shown(manifest), ...shape, ranks: n_ranks, build: chosen, cached, note, memoryBytes: workers.memoryBytes };
  return new Model(workers, info, url, performance.now() - start);
}

/** The parts of a manifest that the page shows, with JavaScript's naming. */
function shown({ name, description, license, notices, suggested_questions, samples, fidelity, files }) {
  const hashes = (chunks) => chunks.map((chunk) => chunk.sha256).filter(Boolean);
  const filesShown = files.map(({ name, size, chunks, header_sha256 }) => ({ name, size, nChunks: chunks.length, sha256: hashes(chunks), headerSha256: header_sha256 }));
  return { name, description, license, notices, suggestedQuestions: suggested_questions, samples, fidelity, files: filesShown };
}

function chooseBuild(wanted) {
  const can = (bytes) => typeof WebAssembly === "object" && WebAssembly.validate(new Uint8Array(bytes));
  const fail = (message, instead) => {
    throw new ModelError({ kind: instead ? "invalid" : "browser", message, instead });
  };
  if (wanted !== undefined && wanted !== "relaxed" && wanted !== "simd128") fail(`There is no build ${JSON.stringify(wanted)}: choose relaxed or simd128.`, { build: undefined });
  if (!can(SIMD128)) fail("This browser is too old for the model: it lacks WebAssembly SIMD. Use a current Chrome, Edge, Firefox or Safari.");
  if (wanted === "relaxed" && !can(RELAXED)) fail("This browser lacks relaxed SIMD: leave the choice of the build to the page.", { build: undefined });
  return wanted ?? (can(RELAXED) ? "relaxed" : "simd128");
}

const MANIFEST_WAIT_MS = 15_000;

/** The manifest and its bytes, early enough for a page to show its content; null if there is a problem, which the store then finds and reports. */
async function fetchManifest(url) {
  try {
    const response = await fetch(url, { cache: "no-cache", signal: AbortSignal.timeout(MANIFEST_WAIT_MS) });
    if (!response.ok) return null;
    const bytes = new Uint8Array(await response.arrayBuffer());
    const manifest = JSON.parse(new TextDecoder().decode(bytes));
    const { files, samples } = manifest;
    const isFile = ({ size, chunks }) => Number.isFinite(size) && Array.isArray(chunks);
    const isSample = ({ path, alt }) => [path, alt].every((text) => typeof text === "string");
    return files.every(isFile) && (samples ?? []).every(isSample) ? { bytes, manifest } : null;
  } catch {
    return null;
  }
}

/** Reads a copy of a response only to report progress. Bytes are counted after decompression. */
async function count(response, total, onProgress) {
  let done = 0;
  for (const reader = response.body.getReader(); ; ) {
    const { value } = await reader.read();
    if (!value) return;
    done += value.length;
    onProgress({ done, total: Math.max(total, done) });
  }
}

async function compile(build, onProgress = () => {}) {
  const url = wasmUrl(build);
  try {
    onProgress({ done: 0, total: BUILD_BYTES[build] });
    const response = await fetch(url, { priority: "low" }); // the page's pictures come first
    if (!response.ok) throw new ModelError({ kind: "program", message: `${url.pathname.split("/").at(-1)}: HTTP ${response.status}`, detail: (await response.text()).slice(0, 200) });
    count(response.clone(), BUILD_BYTES[build], onProgress).catch(() => {});
    // Not every static host sends the content type that streaming requires.
    const streams = WebAssembly.compileStreaming && response.headers.get("Content-Type")?.startsWith("application/wasm");
    return await (streams ? WebAssembly.compileStreaming(response) : WebAssembly.compile(await response.arrayBuffer()));
  } catch (error) {
    if (error instanceof WebAssembly.CompileError) {
      throw new ModelError({ kind: "program", message: `${url.pathname.split("/").at(-1)} is cut short, or something else came in its place`, detail: String(error) });
    }
    if (error.kind || error instanceof RangeError) throw error;
    throw new ModelError({ kind: "network", message: "The program itself could not be fetched. Check the network connection and open the page again.", detail: `${error} (${url})` });
  }
}

/**
 * Times only the matrix products, on several workers at once.
 * @param {{ build?: "relaxed"|"simd128", workers?: number, ms?: number, products: [string, number, number, number][] }} options  Each product is
 *   [type, rows, columns, tokens].
 * @returns {Promise<{ build: string, kernel: string, gmacsPerSecond: number[] }>} the sum over the workers, for each product
 */
export async function timeKernels({ build, workers = 1, ms = 500, products }) {
  const chosen = chooseBuild(build);
  const [module] = await Promise.all([compile(chosen), workersChecked()]);
  const probes = Array.from({ length: workers }, () => new Probe());
  try {
    const [{ kernel }] = await Promise.all(probes.map((probe) => probe.ask({ type: "open", build: chosen, module })));
    const answers = await Promise.all(probes.map((probe) => probe.ask({ type: "products", products, ms })));
    const gmacsPerSecond = products.map((_, idx) => answers.reduce((sum, answer) => sum + answer.gmacsPerSecond[idx], 0));
    return { build: chosen, kernel, gmacsPerSecond };
  } finally {
    probes.forEach((probe) => probe.end());
  }
}

function absolute(manifestUrl) {
  return new URL(manifestUrl, globalThis.document?.baseURI ?? location.href).href;
}

/** What this browser keeps of a model: `{ bytes, complete }`; a complete model opens without a network. */
export async function cachedSize(manifestUrl) {
  const folder = await Folder.peek(absolute(manifestUrl));
  return { bytes: folder ? await folder.size() : 0, complete: Boolean(await folder?.manifest()) };
}

/** Deletes what this browser keeps of a model. */
export async function deleteCached(manifestUrl) {
  await Folder.forget(absolute(manifestUrl));
}
