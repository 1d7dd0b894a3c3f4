// A rank: a worker around one wasm instance that holds 1/N of the model. Rank 0 leads and does what the page asks; the others follow it. Their messages
// pass between the wasm instances directly, over ports that this file does not read.
//
// Messages from the page                                     answered by
//   { type: "start", rank, ports, store, build, module,      { type: "started" } at once,
//     lock, context, template }                              { type: "loaded", memory, info } when the store has sent everything
//   { type: "look", id, images: [image] }                    the picture, progress, then done with the same frame and its key   (rank 0 only, as all below)
//   { type: "begin", id, chat, messages }                    done; what a chat begins with: [{ role, parts: [{ text } | { image: key } | { tokens: ids }] }, …]
//   { type: "prepare", id, chat }                            progress, then done
//   { type: "ask", id, chat, messages, options, images }     progress and tokens, then done with { text, finish, nPrompt, nReused, first };
//                                                            `images` only after an error of the kind "not-encoded", which names their keys
//   { type: "count", id, text }                              done with the number of tokens
//   { type: "stop", id }                                     the operation `id` ends at its next tile, part of the prompt or token
//   { type: "forget", chat }                                 nothing
//   { type: "lock" }                                         { type: "locked" }: from now on this worker cannot fetch anything
//   { type: "ping" }                                         { type: "pong", memory }
// where the answers are
//   { type: "progress", id, stage: "encoding"|"reading", done, total, secondsLeft }
//   { type: "picture", id, frame, view }                     decoded, not yet encoded: `frame` is { width, height, crop, padding, tiles, notes }, `view`
//                                                            its pixels for display, { width, height, rgba }, or undefined if there is no memory for them
//   { type: "token", id, text, token, done, tokensPerSecond } `token` is { id, logprob, alternatives: [{ id, text, logprob }] }; undefined after the last
//   { type: "dropped", id, turns }                           the oldest turns were left out of the prompt
//   { type: "done", id, result, timings, memory }            or { type: "done", id, error: { kind, message, images } }
//   { type: "failed", error: { kind, message, detail } }     this rank is lost
// The store's messages are listed in store.js.

import { importBuild } from "./builds.js";
import { Folder } from "./folder.js";
import { giveUpNetwork } from "./lock.js";

// Bytes of a file that are read and repacked at a time: few enough to stay in the processor's cache in between.
const PIECE_BYTES = 1 << 20;

let wasm = null; // the module of the bindings
let memory = null; // the memory of the instance
let rank = null; // the instance's Rank
let folder = null; // what this browser keeps of the model
let current = null; // id of the current operation

const handlers = { start, look, begin, prepare, ask, count, stop, forget, lock, ping };

self.addEventListener("message", async ({ data }) => {
  try {
    await handlers[data.type](data);
  } catch (error) {
    fail(error);
  }
});
// A trap inside a future of the wasm instance surfaces only here.
self.addEventListener("error", (event) => fail(event.error ?? event.message));
self.addEventListener("unhandledrejection", (event) => fail(event.reason));

/** Reports that this rank cannot continue. */
function fail(error) {
  const isTrap = error instanceof WebAssembly.RuntimeError;
  const panic = isTrap ? wasm?.takePanic() : undefined;
  // A trap without a panic means that Rust could not allocate memory.
  const isFull = (isTrap && !panic) || /memory|allocation/i.test(String(error?.message));
  const kind = error?.kind ?? (isFull ? "out-of-memory" : "internal");
  const message = panic ?? (isTrap ? `${memory?.buffer.byteLength ?? 0} bytes were in use` : String(error?.message ?? error));
  postMessage({ type: "failed", error: { kind, message, detail: panic ?? String(error?.stack ?? error) } });
}

async function start({ rank: idx, ports, store, build, module, lock, context, template }) {
  // Held until this worker ends, for whatever reason: this is how the page notices.
  if (lock) await new Promise((held) => navigator.locks.request(lock, () => (held(), new Promise(() => {}))).catch(held));
  wasm = await importBuild(build);
  ({ memory } = wasm.initSync({ module }));
  rank = new wasm.Rank(idx, ports);
  const messages = [];
  store.onmessage = ({ data }) => messages.push(data) === 1 && takeAll(store, messages, idx, { context, template }).catch(fail);
  postMessage({ type: "started" });
}

/** Processes the store's messages in order; a chunk is opened while the previous one is read. Stops after one that cannot be read. */
async function takeAll(store, messages, idx, settings) {
  while (messages.length > 0) {
    for (const message of messages.slice(0, 2)) if (message.type === "kept") message.reader ??= openKept(message);
    const problem = await take(store, messages[0], idx, settings);
    if (problem) return;
    messages.shift();
  }
}

/** Processes one message; resolves with the problem, if there is one. */
async function take(store, message, idx, { context, template }) {
  const { type, file, size, bytes, parts } = message;
  if (type === "header") store.postMessage({ type: "ranges", ranges: rank.header(file, bytes, size) });
  if (type === "bytes") {
    for (const { offset, bytes } of parts) feed(file, offset, bytes.length, (into, at) => into.set(bytes.subarray(at, at + into.length)));
    store.postMessage({ type: "taken" });
  }
  if (type === "kept") {
    const problem = await takeKept(message);
    store.postMessage({ type: "taken", problem });
    return problem;
  }
  if (type !== "end") return null;
  rank.finish(context, template);
  store.close();
  if (idx > 0) rank.follow().catch(fail);
  postMessage({ type: "loaded", memory: memory.buffer.byteLength, info: idx === 0 ? rank.info() : null });
  return null;
}

/** Opens a chunk in this browser's folder, or says why it cannot be opened. */
async function openKept({ manifestUrl, chunk }) {
  try {
    folder ??= Folder.peek(manifestUrl);
    return await (await folder).reader(chunk);
  } catch (error) {
    return { read: () => { throw error; }, close: () => {} };
  }
}

/** Takes parts of a chunk from this browser's folder; resolves with the problem in reading it, if there is one. */
async function takeKept({ file, parts, chunk, reader }) {
  const { read, close } = await reader;
  try {
    for (const part of parts) {
      feed(file, part.offset, part.size, (into, at) => {
        const n_bytes = read(into, part.at + at);
        if (n_bytes !== into.length) throw new Error(`${n_bytes} bytes came instead of ${into.length}`);
      });
    }
    return null;
  } catch (error) {
    if (error?.kind || error instanceof WebAssembly.RuntimeError) throw error; // from the model, not from reading
    return `${chunk.path}: ${error}`;
  } finally {
    close();
  }
}

/** Copies `size` bytes of a file, starting at `offset`, into the rank: `read(into, at)` fills `into` with the bytes from `offset + at`. */
function feed(file, offset, size, read) {
  for (let at = 0; at < size; at += PIECE_BYTES) {
    const n_bytes = Math.min(PIECE_BYTES, size - at);
    const place = rank.room(n_bytes); // may grow the memory
    read(new Uint8Array(memory.buffer, place, n_bytes), at);
    rank.feed(file, offset + at);
  }
}

/** Runs one operation of rank 0: `run` does the work, `timings` returns its durations. */
async function operate(id, run, timings = () => ({})) {
  current = id;
  let answer;
  try {
    answer = { result: await run(), timings: timings() };
  } catch (error) {
    // Ranks that are out of step, and traps, end the session; everything else only this operation. An out-of-memory error with a kind was found
    // before the ranks changed anything.
    if (!error?.kind || error.kind === "rank-lost") throw error;
    answer = { error: { kind: error.kind, message: error.message, images: error.images } };
  }
  current = null;
  postMessage({ type: "done", id, ...answer, memory: memory.buffer.byteLength });
}

function look({ id, images: [image] }) {
  const clock = new Clock(id);
  return operate(id, () => rank.look(new Uint8Array(image), clock.listener), () => ({ encodeMs: clock.sinceStart() }));
}

function begin({ id, chat, messages }) {
  return operate(id, () => rank.begin(chat, messages));
}

function prepare({ id, chat }) {
  const clock = new Clock(id);
  return operate(id, () => rank.prepare(chat, clock.listener), () => ({ prepareMs: clock.sinceStart() }));
}

function ask({ id, chat, messages, options, images = [] }) {
  const clock = new Clock(id);
  const run = async () => {
    const result = await rank.ask(chat, messages, images.map((image) => new Uint8Array(image)), options, clock.listener);
    clock.n_read = result.nPrompt - result.nReused;
    return result;
  };
  return operate(id, run, () => clock.timings());
}

function count({ id, text }) {
  return operate(id, () => rank.countTokens(text));
}

function stop({ id }) {
  if (id === current) rank.stop();
}

function forget({ chat }) {
  rank.forget(chat);
}

function lock() {
  giveUpNetwork();
  postMessage({ type: "locked" });
}

function ping() {
  postMessage({ type: "pong", memory: memory?.buffer.byteLength ?? 0 });
}

/** Times one operation and passes on its events. */
class Clock {
  constructor(id) {
    Object.assign(this, { id, start: performance.now(), stageStart: 0, read: 0, firstToken: 0, lastToken: 0, n_tokens: 0, n_read: 0 });
    this.listener = (event, a, b) => this[event](a, b);
  }

  sinceStart() {
    return performance.now() - this.start;
  }

  picture(frame, view) {
    postMessage({ type: "picture", id: this.id, frame, view }, view ? [view.rgba.buffer] : []);
  }

  encoding(done, total) {
    this.#progress("encoding", done, total);
  }

  reading(done, total) {
    this.#progress("reading", done, total);
    if (done === total) this.read = performance.now();
  }

  token(text, token) {
    this.lastToken = performance.now();
    if (this.n_tokens++ === 0) this.firstToken = this.lastToken;
    this.rest(text, token);
  }

  rest(text, token) {
    postMessage({ type: "token", id: this.id, text, token, done: this.n_tokens, tokensPerSecond: this.#tokensPerSecond() });
  }

  dropped(turns) {
    postMessage({ type: "dropped", id: this.id, turns });
  }

  timings() {
    const prefillMs = (this.read || performance.now()) - this.start;
    return {
      prefillMs,
      prefillTokensPerSecond: (this.n_read / prefillMs) * 1000,
      firstTokenMs: this.n_tokens > 0 ? this.firstToken - this.start : undefined,
      answerMs: this.n_tokens > 0 ? this.lastToken - this.read : 0,
      nTokens: this.n_tokens,
      tokensPerSecond: this.#tokensPerSecond(),
    };
  }

  // The first token costs only its choice: its logits are the last ones of the prompt.
  #tokensPerSecond() {
    return this.n_tokens > 1 ? ((this.n_tokens - 1) / (this.lastToken - this.firstToken)) * 1000 : undefined;
  }

  #progress(stage, done, total) {
    const now = performance.now();
    if (done === 0) this.stageStart = now;
    const secondsLeft = done > 0 ? ((now - this.stageStart) / done / 1000) * (total - done) : undefined;
    postMessage({ type: "progress", id: this.id, stage, done, total, secondsLeft });
  }
}
