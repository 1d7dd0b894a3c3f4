// Measures one model in this browser: bench.html?model=…&ranks=N&build=…&prompt=256&generate=32&image=0. The result is one JSON object, shown in the page and
// stored in `window.result`; a failure is `{ error }`. `image=0` skips the encoder, `cache=0` keeps nothing in the browser, `kernels=1` times only the
// products. With `wait=1` nothing is measured: the script that drives the page (bench/contestants.mjs) calls `window.bench`, whose functions are all below.

import { load, timeKernels } from "../llama3med/index.js";
import { startWorker } from "../llama3med/workers.js";

const query = new URLSearchParams(location.search);
const number = (name, otherwise) => (query.has(name) ? Number(query.get(name)) : otherwise);
const status = document.getElementById("status");

let model = null; // the loaded model
let n_pictures = 0;

/** Loads a model, replacing the previous one. */
async function open({ manifestUrl = "models/demo/manifest.json", ...options }) {
  model?.close();
  const onProgress = ({ done, total }) => (status.textContent = `Loading: ${(done / 1e6).toFixed(1)} of ${(total / 1e6).toFixed(1)} MB`);
  model = await load(manifestUrl, { ...options, onProgress });
  const { name, build, ranks, files, nTiles, note } = model.info;
  return { name, build, ranks, note, nTiles, fileBytes: files.reduce((sum, { size }) => sum + size, 0), loadS: model.loadMs / 1000, memoryBytes: await model.memory() };
}

/** A generated picture that differs from those of all other calls: stripes and noise, 640 x 480, as BMP. */
function picture(seed = ++n_pictures) {
  const [width, height] = [640, 480];
  const bytes = new Uint8Array(54 + 3 * width * height);
  const view = new DataView(bytes.buffer);
  bytes.set([0x42, 0x4d]);
  [[2, bytes.length], [10, 54], [14, 40], [18, width], [22, height]].forEach(([at, value]) => view.setUint32(at, value, true));
  view.setUint16(26, 1, true);
  view.setUint16(28, 24, true);
  for (let i = 54; i < bytes.length; i++) bytes[i] = (i * 31 + (i >> 8) * (17 + seed)) & 255;
  return bytes;
}

/** Asks a question of about this many tokens, none of them read before, and generates `generate` tokens. */
async function ask({ prompt, generate }) {
  // A common prefix with an earlier conversation would be reused, so each question starts differently.
  const begin = () => Math.random().toString(36).slice(2, 8);
  const word = " heart";
  const { read } = await answered(model.chat(), begin(), 1);
  const perWord = (await model.countTokens(word.repeat(64))) / 64;
  const { timings, read: n_read } = await answered(model.chat(), begin() + word.repeat(Math.max(1, Math.round((prompt - read) / perWord))), generate);
  const { prefillTokensPerSecond: prefill, tokensPerSecond: decode = null, nTokens: written, nPrompt: depth } = timings;
  return { prefill, decode, read: n_read, depth, written };
}

/** A complete answer: `seconds` to its first token, and how many tokens of the prompt had to be `read`. */
async function answered(chat, question, maxTokens) {
  const start = performance.now();
  let seconds = null;
  for await (const _ of chat.ask(question, { maxTokens })) seconds ??= (performance.now() - start) / 1000;
  chat.close();
  const { nPrompt, nReused } = chat.timings;
  return { timings: chat.timings, seconds, read: nPrompt - nReused };
}

/** Encodes a new picture, or only its first tiles, and returns the seconds per tile. */
async function encode({ tiles = Infinity } = {}) {
  const marks = [];
  let chat;
  await new Promise((resolve, reject) => {
    const onProgress = ({ stage, done }) => {
      if (stage !== "encoding") return;
      marks.push({ done, time: performance.now() });
      status.textContent = `Encoding: tile ${done}`;
      if (done >= tiles) resolve();
    };
    chat = model.chat({ image: picture(), onProgress });
    chat.ready.then(resolve, reject);
  });
  chat.close();
  const [from, to] = [marks[0], marks.at(-1)];
  return { tiles: to.done - from.done, secondsPerTile: (to.time - from.time) / 1000 / (to.done - from.done) };
}

/**
 * Seconds from the question to the first token: asked right after the picture was dropped ("dropped"), asked after everything that could be read in advance has
 * been read ("typed"), and asked at once about a picture seen before ("again"). For a newly loaded model also its `memory` after the first of these, while it
 * holds one conversation: bytes of every rank, which never shrink, and the number of tokens whose keys and values are stored.
 */
async function firstToken({ question = "Is there anything unusual in this picture, and where is it?" } = {}) {
  const { seconds: dropped, timings } = await answered(model.chat({ image: picture() }), question, 1);
  const memory = { bytes: await model.memory(), tokens: timings.nPrompt + timings.nTokens };
  const chat = model.chat({ image: picture() });
  await chat.ready;
  while (chat.timings.prepareMs === undefined) await new Promise((resolve) => setTimeout(resolve, 20));
  const { encodeMs, prepareMs } = chat.timings;
  const { seconds: typed } = await answered(chat, question, 1);
  const { seconds: again } = await answered(model.chat({ image: picture(n_pictures) }), `${question} Say why.`, 1);
  return { memory, dropped, typed, again, encodeS: encodeMs / 1000, prepareS: prepareMs / 1000 };
}

/** Products of several shapes, [type, rows, columns, tokens], on this many workers at once. */
async function products({ build, workers = 1, ms = 500, shapes }) {
  status.textContent = "Timing the products";
  const { kernel, gmacsPerSecond } = await timeKernels({ build, workers, ms, products: shapes });
  return { kernel, gmacsPerSecond };
}

function askWorker(message) {
  const worker = startWorker((Worker) => new Worker(new URL("./worker.js", import.meta.url), { type: "module" }), "limits");
  return new Promise((resolve, reject) => {
    worker.onmessage = ({ data }) => (data.type === "failed" ? reject(new Error(data.error.message)) : resolve(data));
    worker.onerror = (event) => reject(new Error(event.message || "bench/worker.js could not be started"));
    worker.postMessage(message);
  }).finally(() => worker.terminate());
}

/** The most that this many workers together can read from memory, and multiply in registers. */
async function limits({ build = "relaxed", workers = 1, bytes = 1 << 30, ms = 1000 }) {
  const together = (message) => Promise.all(Array.from({ length: workers }, () => askWorker(message)));
  const sum = (answers, name) => answers.reduce((total, answer) => total + answer[name], 0);
  const bytesPerSecond = sum(await together({ type: "read", build, bytes, ms }), "bytesPerSecond");
  const gmacsPerSecond = sum(await together({ type: "multiply", build, ms }), "gmacsPerSecond");
  return { bytesPerSecond, gmacsPerSecond };
}

/** Reads what this browser keeps of a model and discards it: no load can be faster. */
function readKept({ manifestUrl }) {
  return askWorker({ type: "kept", manifestUrl: new URL(manifestUrl, location.href).href });
}

async function measure() {
  const options = { manifestUrl: query.get("model") ?? undefined, ranks: number("ranks", undefined), build: query.get("build") ?? undefined };
  const opened = await open({ ...options, cache: query.get("cache") !== "0" });
  const encoded = query.get("image") === "0" ? null : await encode();
  const answer = await ask({ prompt: number("prompt", 256), generate: number("generate", 32) });
  const result = { ...opened, ...answer, encoded, memoryBytes: await model.memory(), cores: navigator.hardwareConcurrency, userAgent: navigator.userAgent };
  model.close();
  return result;
}

/** Products of an 8B's shapes: for one token, and for the many tokens of a prompt. */
async function measureProducts() {
  const shapes = ["q4_0", "q4_k", "q6_k", "q8_0"].flatMap((dtype) => [[dtype, 8192, 4096, 1], [dtype, 4096, 4096, 128]]);
  const { kernel, gmacsPerSecond } = await products({ build: query.get("build") ?? undefined, workers: number("ranks", 1), ms: number("ms", 500), shapes });
  const named = shapes.map(([dtype, n_rows, n_cols, n_tokens], idx) => [`${dtype} ${n_rows}x${n_cols}x${n_tokens}`, gmacsPerSecond[idx]]);
  return { kernel, workers: number("ranks", 1), gmacsPerSecond: Object.fromEntries(named), userAgent: navigator.userAgent };
}

if (query.get("wait") === "1") {
  status.textContent = "Waiting for commands";
  window.bench = { open, ask, encode, firstToken, products, limits, readKept };
} else {
  (query.get("kernels") === "1" ? measureProducts() : measure())
    .catch((error) => ({ error: `${error.name}: ${error.message}`, detail: error.detail }))
    .then((result) => {
      status.textContent = "error" in result ? "Failed" : "Done";
      document.getElementById("output").textContent = JSON.stringify(result, null, 2);
      window.result = result;
    });
}
