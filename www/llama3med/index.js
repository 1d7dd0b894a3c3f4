// The client: loads a model into workers of this tab and talks with it. No dependency, no request but for the model's own files.
//
//   import { load } from "./llama3med/index.js";
//   const model = await load("models/demo/manifest.json", { onProgress, signal });
//   const chat = model.chat({ image: file });                    // encoding begins now
//   for await (const piece of chat.ask("Is the heart enlarged?", { signal })) …
//   const talk = model.chat();                                   // without a picture, with any model
//   model.close();
//
// This folder is all that it needs; both wasm builds are in pkg/.

import { BUILD_BYTES, wasmUrl } from "./builds.js";
import { abortError, KINDS, ModelError } from "./errors.js";
import { Folder } from "./folder.js";
import { giveUpNetwork } from "./lock.js";
import { Meter } from "./meter.js";
import { chooseRanks, measure, Probe } from "./ranks.js";
import { REDRAWN, redraw } from "./redraw.js";
import { MAX_RANKS, Session, workersChecked } from "./workers.js";

export { Folder, giveUpNetwork, KINDS, MAX_RANKS, ModelError };

/**
 * @typedef {{ stage: "loading"|"encoding"|"reading"|"answering", done: number, total: number, bytesPerSecond?: number, secondsLeft?: number,
 *   tokensPerSecond?: number, waits?: boolean }} Progress  Bytes while loading, tiles while encoding, tokens while reading and answering. The
 *   bytes are those of the program and of the model, whose are not part of `total` before they are known. A download that has lost the network `waits` for it and goes on by itself.
 * @typedef {{ width: number, height: number, crop: { x: number, y: number, width: number, height: number }, padding?: number[], tiles: number,
 *   notes: string[] }} Frame  A picture's size; what of it the model's square shows, in its pixels, and the colour around it where that is more than the
 *   picture; sentences about how the file was read.
 * @typedef {Blob|ArrayBuffer|Uint8Array} Picture  A picture's file.
 * @typedef {{ role: "system"|"user"|"assistant", content: string | ({ type: "text", text: string } | { type: "image", image: Picture })[] }} Message
 * @typedef {{ id: number, text: string, logprob: number, alternatives: { id: number, text: string, logprob: number }[] }} Token  A token of an answer, the text
 *   that it completes, and the logarithm of its probability by the model, before temperature and penalties; the likeliest tokens in its place, the best
 *   first, itself among them if it is one. A control token has no text.
 * @typedef {{ maxTokens?: number, temperature?: number, topK?: number, topP?: number, minP?: number, repetitionPenalty?: number, seed?: number,
 *   stopRepetition?: boolean, stop?: string[], images?: Picture[], begin?: string|number[], alternatives?: number, onToken?: (token: Token) => void,
 *   signal?: AbortSignal }} AskOptions  Without any: the likeliest token always, 512 tokens at most, and an answer that only repeats itself is ended. The
 *   answer ends before the first of the texts in `stop`; `images` stand before the question; `begin` is how the answer begins, as text or ids of tokens, and is not
 *   given out again; `onToken` hears of every token, with as many `alternatives` as that says (0 to 100).
 */

// (module (func (result v128) (i8x16.popcnt (i8x16.splat (i32.const 0)))))
const SIMD128 = [0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11];
// (module (func (result v128) (i16x8.relaxed_dot_i8x16_i7x16_s (i8x16.splat (i32.const 1)) (i8x16.splat (i32.const 2)))))
const RELAXED = [0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 15, 1, 13, 0, 65, 1, 253, 15, 65, 2, 253, 15, 253, 146, 2, 11];

const ASK_TO_KEEP_BYTES = 100e6; // a model this large is worth the browser's question whether this site may keep it

/**
 * Loads a model.
 * @param {string|URL|(string|URL|File)[]} source  a model folder's manifest.json, relative to the page; or GGUF files of llama.cpp's converters, a decoder
 *   and its mmproj (without which the model sees no pictures), which are read in place and not kept
 * @param {{ ranks?: number, build?: "relaxed"|"simd128", context?: number, cache?: boolean, verify?: boolean, template?: string,
 *   onManifest?: (manifest: object) => void, onOpened?: (size: { bytes: number }) => void, workersAfter?: Promise<unknown>,
 *   onProgress?: (progress: Progress) => void, signal?: AbortSignal }} [options]  `ranks` are chosen by a short measurement if not given (ranks.js);
 *   `context` limits the tokens of a conversation; `cache: false` keeps nothing in this browser; `verify` hashes what it keeps once more; `template` is the
 *   form of conversations ("vicuna", "mistral", "mistral-v3", "mistral-v3-tekken", "llama3", "llama3-med", "chatml") where a GGUF file names none that is
 *   known; `onManifest` hears what the manifest says, unchecked, long before the model is there, or null where it could not be read; `onOpened` hears, before any weights are loaded, that the
 *   files are those of a model, and their bytes; `workersAfter` is what has to be over before a worker is started
 * @returns {Promise<Model>}
 */
export async function load(source, options = {}) {
  try {
    return await loadOnce(source, options);
  } catch (error) {
    // Not every engine tells a worker what the page's policy forbade: the page asks again.
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

// What the model's workers load beside the builds; pages have the rest already.
const WORKER_FILES = ["builds.js", "store.js", "fetching.js", "folder.js", "lock.js", "pair.js", "rank.js", "probe.js"];
const here = import.meta.url; // by another name: these addresses are none that a bundler is to find

/** A host, or a cache on the way, has given something else in the place of a part of the program: all of it is fetched past every cache. */
async function refetchProgram(build) {
  const paths = [...WORKER_FILES, `pkg/llama3med_${build}.js`];
  const urls = [...paths.map((path) => new URL(path, here)), wasmUrl(build)];
  await Promise.all(urls.map((url) => fetch(url, { cache: "reload" }).then((response) => response.arrayBuffer()).catch(() => {})));
}

async function loadOnce(source, { signal, ...options }) {
  const start = performance.now();
  const pair = Array.isArray(source) ? source.map((file) => (file instanceof Blob ? file : absolute(file))) : undefined;
  const url = pair ? undefined : absolute(source);
  const session = new Session();
  const abort = () => session.end(abortError("the model was not loaded: stopped"));
  if (signal?.aborted) abort();
  signal?.addEventListener("abort", abort, { once: true });
  const ended = session.ended.then((error) => Promise.reject(error));
  ended.catch(() => {});
  try {
    return await Promise.race([ended, loadInto(session, { url, pair, start }, options)]);
  } catch (error) {
    session.end(error);
    throw error;
  } finally {
    signal?.removeEventListener("abort", abort);
  }
}

async function loadInto(session, { url, pair, start }, { ranks, build, context, cache = true, verify = false, template, onManifest, onOpened, onProgress, workersAfter }) {
  const chosen = chooseBuild(build);
  const meter = new Meter((progress) => onProgress?.({ stage: "loading", ...progress }));
  // The small file first: the large one takes its time.
  const early = url ? fetchManifest(url) : null;
  early?.then((found) => {
    if (found) meter.set("model", { done: 0, total: found.manifest.files.reduce((sum, { size }) => sum + size, 0) });
    onManifest?.(found && shown(found.manifest));
  });
  const [module] = await Promise.all([compile(chosen, (progress) => meter.set("program", progress)), workersChecked(), workersAfter]);
  const found = await early;
  if (session.error) return null;
  const heard = {};
  const next = (type) => new Promise((resolve) => (heard[type] = resolve));
  const store = session.startStore(({ type, ...message }) => {
    if (type === "progress") meter.set("model", message);
    heard[type]?.(message);
  });
  const manifested = next("manifest");
  store.postMessage({ type: "open", manifestUrl: url, pair, build: chosen, module, cache, context, template, early: found?.bytes });
  const { manifest, memory } = await manifested;
  if (session.error) return null;
  const n_bytes = manifest.files.reduce((sum, file) => sum + file.size, 0);
  onOpened?.({ bytes: n_bytes });
  const n_cores = navigator.hardwareConcurrency;
  const choice = { n_least: memory.leastRanks, wanted: ranks, n_cores, measure: (counts) => measure(counts, { build: chosen, module }) };
  const n_ranks = await chooseRanks(memory.bytes, choice);
  if (session.error) return null;
  if (cache && url && n_bytes > ASK_TO_KEEP_BYTES) navigator.storage?.persist?.().catch(() => {});
  const { loaded, storePorts } = session.startRanks(n_ranks, { build: chosen, module, context, template });
  const served = next("served");
  store.postMessage({ type: "serve", ports: storePorts, verify }, storePorts);
  const [shape, { cached, note }] = await Promise.all([loaded, served]);
  session.endStore();
  const info = { ...shown(manifest), ...shape, ranks: n_ranks, build: chosen, cached, note, memoryBytes: session.memoryBytes };
  return new Model(session, info, url, performance.now() - start);
}

/** What the page shows of a manifest, in JavaScript's way of naming. */
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

/** The manifest and its bytes, so early that a page can show what it says; null where the store is to find out what stands in the way. */
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

/** Reads a copy of a response only to tell how far it is. Compressed on the way or not, its bytes are counted as they are in the end. */
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
    const response = await fetch(url, { priority: "low" }); // a page's pictures before it
    if (!response.ok) throw new ModelError({ kind: "program", message: `${url.pathname.split("/").at(-1)}: HTTP ${response.status}`, detail: (await response.text()).slice(0, 200) });
    count(response.clone(), BUILD_BYTES[build], onProgress).catch(() => {});
    // Not every static host knows the type that streaming asks for.
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

/** A loaded model. */
export class Model {
  #session;
  #url;
  #nChats = 0;
  #looking = null; // the chat whose picture is being encoded or read

  constructor(session, info, url, loadMs) {
    this.#session = session;
    this.#url = url;
    /** What the model is and how it runs. `seesPictures` is false of a language model alone; `memoryBytes` is kept up to date. */
    this.info = info;
    /** Milliseconds from `load` to here. */
    this.loadMs = loadMs;
    /** The ranks' workers, for tests. */
    this.ranks = session.ranks;
    /** Resolves when the model is over, with the reason: closed (an AbortError), or a worker lost. @type {Promise<Error>} */
    this.ended = session.ended;
  }

  /**
   * Begins a conversation, with a picture or without. A picture that is still being encoded for another chat is given up: the newest wins.
   * @param {{ image?: Picture, system?: string, history?: ({ question: string, answer: string } | Message)[],
   *   onPicture?: (picture: Frame & { view?: ImageData }) => void, onProgress?: (progress: Progress) => void }} [options]  `image` stands before the first
   *   question; `system` is what the model is told in the place of its own system text, "" for none; `history` is an earlier conversation, which this one
   *   continues; `onPicture` hears of `image` when it is decoded and before it is encoded, once; `view` is the picture as the model has it, upright, at most 1600
   *   pixels on an edge
   */
  chat({ image, system, history = [], onPicture, onProgress } = {}) {
    this.#looking?.giveUp();
    const chat = new Chat(this.#session, this.#nChats++, { image, system, history, onPicture, onProgress, loadMs: this.loadMs });
    this.#looking = chat;
    return chat;
  }

  /** How many tokens a text is. */
  async countTokens(text) {
    return (await this.#session.operate({ type: "count", text }).promise).result;
  }

  /** Asks every rank how large its memory is now: bytes of each, also in `info.memoryBytes`. */
  memory() {
    return this.#session.memory();
  }

  /** Takes from the model's workers, which need no network, the means of using it; resolves when that is done. */
  lock() {
    return this.#session.lock();
  }

  /** Deletes what this browser keeps of the model; it goes on running. */
  forget() {
    return this.#url ? deleteCached(this.#url) : Promise.resolve();
  }

  /** Ends the workers and gives their memory back. Whatever is under way fails with an AbortError. */
  close() {
    this.#session.end(abortError("the model was closed"));
  }
}

/** A conversation. Four pictures may stand in it; when old turns are left out, theirs go with them, except the first, which moves to the next question. */
export class Chat {
  #session;
  #id;
  #onPicture;
  #onProgress;
  #images = new Map(); // from the key of each picture to its file as a Blob: the browser keeps its bytes, or reads them again from the disk
  #preparing = []; // operations that a newer picture makes superfluous
  #answer = null;
  #isGivenUp = false;
  #isClosed = false;

  constructor(session, id, { image, system, history, onPicture = () => {}, onProgress = () => {}, loadMs }) {
    this.#session = session;
    this.#id = id;
    this.#onPicture = onPicture;
    this.#onProgress = onProgress;
    /** Milliseconds and speeds: loadMs, encodeMs, prefillMs, prefillTokensPerSecond, firstTokenMs, answerMs, nTokens, tokensPerSecond, nPrompt, nReused. */
    this.timings = { loadMs };
    /**
     * How the latest answer ended: "stop" (the model ended it), "length", "context" (no room left), "repetition" (it only repeated itself) or "cancelled".
     * @type {"stop"|"length"|"context"|"repetition"|"cancelled"|undefined}
     */
    this.finish = undefined;
    /** The likeliest first tokens of the latest answer: [{ text, probability }]. */
    this.first = [];
    /**
     * Resolves when the picture is encoded and the history known. Without a picture: { tiles: 0, notes: [] }. Of a model that sees no pictures a picture's
     * `ready` fails with the kind "no-vision".
     * @type {Promise<Frame>}
     */
    this.ready = this.#begin(image && blobOf(image), system, history.map(asMessages).flat());
    this.ready.catch(() => {}); // whoever waits for it hears of it
  }

  async #begin(image, system, history) {
    const messages = system === undefined ? [] : [{ role: "system", parts: [{ text: String(system) }] }];
    const look = (file, onPicture) => this.#look(file, (message, hear) => this.#prepare(message, hear), onPicture);
    const { key, frame } = image ? await look(image, this.#onPicture) : { frame: { tiles: 0, notes: [] } };
    const first = image ? [{ image: key }] : [];
    for (const { role, parts } of history) {
      const said = role === "user" ? first.splice(0) : [];
      for (const part of parts) said.push(part.image ? { image: (await look(part.image)).key } : part);
      messages.push({ role, parts: said });
    }
    if (first.length > 0) messages.push({ role: "user", parts: first });
    if (this.#isClosed) throw abortError("the conversation was closed");
    if (messages.length > 0) await this.#session.operate({ type: "begin", chat: this.#id, messages }).promise;
    // The beginning of the prompt is read while the question is being typed. Should that fail, the question itself will say so.
    this.#prepare({ type: "prepare", chat: this.#id }).catch(() => {});
    return frame;
  }

  // Has a picture encoded; `operate` has the engine do it. What the engine does not read, the browser may.
  async #look(image, operate, onPicture = () => {}) {
    let notes = [];
    const withNotes = (frame) => ({ ...frame, notes: [...notes, ...frame.notes] });
    const hear = (event) => {
      if (event.type !== "picture") return this.#tell(event);
      const { view } = event;
      onPicture({ ...withNotes(event.frame), view: view && new ImageData(new Uint8ClampedArray(view.rgba.buffer), view.width, view.height) });
    };
    const look = async () => {
      const { key, ...frame } = await operate({ type: "look", images: [await bytesOf(image)] }, hear);
      if (!this.#isClosed) this.#images.set(key, image);
      return { key, frame: withNotes(frame) };
    };
    try {
      return await look();
    } catch (error) {
      const png = error.kind === "format" ? await redraw(image, /SVG/.test(error.message)) : null;
      if (!png) throw error;
      image = new Blob([png]);
      notes = [REDRAWN];
      return look();
    }
  }

  async #prepare(message, hear = (event) => this.#tell(event)) {
    if (this.#isGivenUp) throw abortError("a newer picture was opened");
    const operation = this.#session.operate(message, hear);
    this.#preparing.push(operation);
    const { result, timings } = await operation.promise;
    Object.assign(this.timings, timings);
    return result;
  }

  #tell({ type, id, ...progress }) {
    if (type === "progress") this.#onProgress(progress);
  }

  /**
   * Asks. Iterate over the result for the pieces of the answer; leaving the loop, or the signal, stops it within one token, and the answer counts as
   * far as it came: a stopped iteration ends without an error. One question at a time.
   * @param {string} question
   * @param {AskOptions} [options]
   * @returns {AsyncIterableIterator<string>}
   */
  ask(question, { signal, ...options } = {}) {
    const answer = new Answer();
    if (this.#isClosed) {
      answer.end(abortError("the conversation was closed"));
      return answer;
    }
    if (this.#answer && !this.#answer.isStopped) {
      answer.end(new ModelError({ kind: "busy", message: "An answer is still being written: wait for its end, or stop it first." }));
      return answer;
    }
    this.#answer = answer;
    const stop = () => answer.stop();
    signal?.addEventListener("abort", stop, { once: true });
    if (signal?.aborted) stop();
    this.#run(answer, String(question), options).then(() => null, (error) => error).then((error) => {
      signal?.removeEventListener("abort", stop);
      if (this.#answer === answer) this.#answer = null;
      answer.end(error?.name === "AbortError" && answer.isStopped ? null : error);
    });
    return answer;
  }

  async #run(answer, question, { images = [], begin, onToken = () => {}, ...options }) {
    const blobs = images.map(blobOf); // what is given now, whatever becomes of it
    await Promise.race([this.ready, answer.stopped]);
    const operate = (message) => this.#operate(answer, message, onToken);
    const parts = [];
    for (const blob of blobs) {
      if (answer.isStopped) return;
      const { key } = await this.#look(blob, async (message) => (await operate(message)).result);
      parts.push({ image: key });
    }
    if (answer.isStopped) return;
    const messages = [{ role: "user", parts: [...parts, { text: question }] }];
    if (begin !== undefined) messages.push({ role: "assistant", parts: [typeof begin === "string" ? { text: begin } : { tokens: [...begin] }] });
    const message = { type: "ask", chat: this.#id, messages, options };
    const { result, timings } = await operate(message).catch(async (error) => {
      // So many pictures have come since that the model must look at these again.
      if (error.kind !== "not-encoded") throw error;
      const files = error.images.map((key) => this.#images.get(key)).filter(Boolean); // none if it was closed just now
      const images = await Promise.all(files.map(bytesOf));
      if (answer.isStopped) throw abortError("stopped");
      return operate({ ...message, images });
    });
    const { nPrompt, nReused, finish, first } = result;
    Object.assign(this.timings, timings, { nPrompt, nReused });
    Object.assign(this, { finish, first });
  }

  #operate(answer, message, onToken) {
    const total = message.options?.maxTokens ?? 512;
    const operation = this.#session.operate(message, (event) => {
      if (event.type === "dropped") this.timings.nDropped = event.turns;
      if (event.type !== "token") return this.#tell(event);
      answer.push(event.text);
      if (event.token) onToken({ text: event.text, ...event.token });
      const { done, tokensPerSecond } = event;
      this.#onProgress({ stage: "answering", done, total, tokensPerSecond });
    });
    answer.stopped.then(() => operation.stop());
    return operation.promise;
  }

  /** Ends what prepares this chat, if that is not over: another picture has come. */
  giveUp() {
    if (this.#answer && !this.#answer.isStopped) return; // its picture is wanted: a question waits for it
    this.#isGivenUp = true;
    this.#preparing.forEach((operation) => operation.stop());
  }

  /** Ends the conversation and forgets it. */
  close() {
    this.#answer?.stop();
    this.#isGivenUp = this.#isClosed = true;
    this.#images.clear();
    this.#preparing.forEach((operation) => operation.stop());
    if (!this.#session.error) this.#session.ranks[0].postMessage({ type: "forget", chat: this.#id });
  }
}

/** An answer as it is written: an async iterator over its pieces. */
class Answer {
  #pieces = [];
  #ended = null;
  #wake = () => {};

  constructor() {
    this.isStopped = false;
    this.stopped = new Promise((resolve) => (this.resolveStopped = resolve));
  }

  push(piece) {
    if (piece) this.#pieces.push(piece);
    this.#wake();
  }

  end(error) {
    this.#ended = { error };
    this.#wake();
  }

  stop() {
    this.isStopped = true;
    this.resolveStopped();
  }

  async next() {
    while (this.#pieces.length === 0 && !this.#ended) await new Promise((resolve) => (this.#wake = resolve));
    if (this.#pieces.length > 0) return { done: false, value: this.#pieces.shift() };
    const { error } = this.#ended;
    this.#ended = { error: null };
    if (error) throw error;
    return { done: true, value: undefined };
  }

  async return() {
    this.stop();
    return { done: true, value: undefined };
  }

  [Symbol.asyncIterator]() {
    return this;
  }
}

/** A picture's file as a Blob, which keeps what it is given. */
const blobOf = (image) => (image instanceof Blob ? image : new Blob([image]));

/** What an entry of a conversation's history stands for, pictures as Blobs. */
function asMessages({ question, answer, role, content }) {
  if (role === undefined) return [{ role: "user", parts: [{ text: String(question) }] }, { role: "assistant", parts: [{ text: String(answer) }] }];
  const partOf = ({ type, text, image }) => (type === "image" ? { image: blobOf(image) } : { text: String(text) });
  return [{ role, parts: Array.isArray(content) ? content.map(partOf) : [{ text: String(content) }] }];
}

/** The bytes of a Blob, as a buffer that may be given away. */
async function bytesOf(image) {
  try {
    return await image.arrayBuffer();
  } catch (error) {
    throw new ModelError({ kind: "file", message: `The picture's file could not be read (${error?.message ?? error}).` });
  }
}

/**
 * Times the products alone, on several workers at once.
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

/** What this browser keeps of a model: `{ bytes, complete }`; when complete it opens with the network cut. */
export async function cachedSize(manifestUrl) {
  const folder = await Folder.peek(absolute(manifestUrl));
  return { bytes: folder ? await folder.size() : 0, complete: Boolean(await folder?.manifest()) };
}

/** Deletes what this browser keeps of a model. */
export async function deleteCached(manifestUrl) {
  await Folder.forget(absolute(manifestUrl));
}
