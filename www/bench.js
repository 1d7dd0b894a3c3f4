// One measurement of one model: bench.html?model=…&ranks=N&build=…&prompt=256&generate=32&image=0. The result is one JSON object, in the page and as
// `window.result`; a failure is `{ error }`. `image=0` leaves the encoder out, `repeat=N` asks N times and reports the best, `cache=0` keeps nothing in
// the browser. `kernels=1&ranks=N` times the products alone, on N workers at once, each for `ms` milliseconds.

import { load, timeKernels } from "./llama3med.js";

const query = new URLSearchParams(location.search);
const number = (name, otherwise) => (query.has(name) ? Number(query.get(name)) : otherwise);
const status = document.getElementById("status");

/** A picture without a file: stripes and noise, as BMP. */
function picture(width, height) {
  const rowBytes = (width * 3 + 3) & ~3;
  const bytes = new Uint8Array(54 + rowBytes * height);
  const view = new DataView(bytes.buffer);
  bytes.set([0x42, 0x4d]);
  [[2, bytes.length], [10, 54], [14, 40], [18, width], [22, height]].forEach(([at, value]) => view.setUint32(at, value, true));
  view.setUint16(26, 1, true);
  view.setUint16(28, 24, true);
  for (let i = 54; i < bytes.length; i++) bytes[i] = (i * 31 + (i >> 8) * 17) & 255;
  return bytes;
}

/** A question of words, such that its prompt has `n_prompt` tokens, `n_frame` of which are not the question. */
async function question(model, n_prompt, n_frame) {
  const word = " heart";
  const perWord = Math.max(1, (await model.countTokens(word.repeat(64))) / 64);
  let n_words = Math.max(1, Math.round((n_prompt - n_frame) / perWord));
  while (n_words > 1 && (await model.countTokens(word.repeat(n_words))) > n_prompt - n_frame) n_words--;
  return word.repeat(n_words).trim();
}

async function ask(model, text, maxTokens) {
  const chat = model.chat();
  for await (const _ of chat.ask(text, { maxTokens })) status.textContent = `Answering: ${chat.timings.nTokens ?? ""}`;
  chat.close();
  return chat.timings;
}

async function encode(model) {
  const chat = model.chat({
    image: picture(640, 480),
    onProgress: ({ stage, done, total }) => (status.textContent = `${stage} ${done} of ${total}`),
  });
  await chat.ready;
  chat.close();
  return chat.timings.encodeMs;
}

async function measure() {
  const { model: manifestUrl = "models/demo/manifest.json", build } = Object.fromEntries(query);
  const ranks = number("ranks", undefined);
  const [n_prompt, n_generate, n_repeats] = [number("prompt", 256), number("generate", 32), number("repeat", 1)];
  const onProgress = ({ done, total }) => (status.textContent = `Loading: ${(done / 1e6).toFixed(1)} of ${(total / 1e6).toFixed(1)} MB`);
  const model = await load(manifestUrl, { ranks, build, onProgress, cache: query.get("cache") !== "0" });
  const memoryAfterLoad = [...model.info.memoryBytes];
  const encodeMs = query.get("image") === "0" ? null : await encode(model);
  const { nPrompt } = await ask(model, "a", 1);
  const text = await question(model, n_prompt, nPrompt - 1);
  const runs = [];
  for (let run = 0; run < n_repeats; run++) {
    // Another first word each time: nothing of the question is in the cache.
    runs.push(await ask(model, `${String.fromCharCode(65 + (run % 26))}${text}`, n_generate));
  }
  const best = (name) => Math.max(...runs.map((timings) => timings[name] ?? 0));
  const { info } = model;
  const result = {
    model: info.name,
    build: info.build,
    ranks: info.ranks,
    loadS: model.loadMs / 1000,
    encodeS: encodeMs === null ? null : encodeMs / 1000,
    nTiles: info.nTiles,
    promptTokens: runs[0].nPrompt,
    readTokens: runs[0].nPrompt - runs[0].nReused,
    generatedTokens: runs[0].nTokens,
    prefillTokensPerSecond: best("prefillTokensPerSecond"),
    decodeTokensPerSecond: best("tokensPerSecond"),
    memoryBytes: await model.memory(),
    memoryAfterLoadBytes: memoryAfterLoad,
    fileBytes: info.files.reduce((sum, file) => sum + file.size, 0),
    cores: navigator.hardwareConcurrency,
    userAgent: navigator.userAgent,
  };
  model.close();
  return result;
}

/** Products of an 8B's shapes: one token, and the many of a prompt. */
async function measureKernels() {
  const shapes = [[8192, 4096, 1], [4096, 4096, 128]];
  const products = ["q4_0", "q4_k", "q6_k", "q8_0"].flatMap((dtype) => shapes.map((shape) => [dtype, ...shape]));
  status.textContent = "Timing the products";
  const options = { build: query.get("build") ?? undefined, workers: number("ranks", 1), ms: number("ms", 500), products };
  const { build, kernel, gmacsPerSecond } = await timeKernels(options);
  const named = products.map(([dtype, n_rows, n_cols, n_tokens], idx) => [`${dtype} ${n_rows}x${n_cols}x${n_tokens}`, gmacsPerSecond[idx]]);
  return { build, kernel, workers: number("ranks", 1), gmacsPerSecond: Object.fromEntries(named), userAgent: navigator.userAgent };
}

(query.get("kernels") === "1" ? measureKernels() : measure())
  .catch((error) => ({ error: `${error.name}: ${error.message}`, detail: error.detail }))
  .then((result) => {
    status.textContent = "error" in result ? "Failed" : "Done";
    document.getElementById("output").textContent = JSON.stringify(result, null, 2);
    window.result = result;
  });
