// A loaded model, its conversations and their answers: the result of `load` in index.js.

import { abortError, ModelError } from "./errors.js";
import { Folder } from "./folder.js";
import { REDRAWN, redraw } from "./redraw.js";

/**
 * @typedef {{ stage: "loading"|"encoding"|"reading"|"answering", done: number, total: number, bytesPerSecond?: number, secondsLeft?: number,
 *   tokensPerSecond?: number, waits?: boolean }} Progress  Bytes while loading, tiles while encoding, tokens while reading and answering. The bytes are those of
 *   the program and of the model; the model's count towards `total` once they are known. A download that has lost the network `waits` for it and then resumes.
 * @typedef {{ width: number, height: number, crop: { x: number, y: number, width: number, height: number }, padding?: number[], tiles: number,
 *   notes: string[] }} Frame  A picture's size; the crop that the model sees, in the picture's pixels; the padding colour, if the crop extends beyond the
 *   picture; sentences about how the file was read.
 * @typedef {Blob|ArrayBuffer|Uint8Array} Picture  A picture's file.
 * @typedef {{ role: "system"|"user"|"assistant", content: string | ({ type: "text", text: string } | { type: "image", image: Picture })[] }} Message
 * @typedef {{ id: number, text: string, logprob: number, alternatives: { id: number, text: string, logprob: number }[] }} Token  A token of an answer; the text
 *   that it completes, which is empty for a control token; the log-probability that the model gives it, before temperature and penalties; and the most likely
 *   tokens at its place, the best first, itself included if it is one of them.
 * @typedef {{ maxTokens?: number, temperature?: number, topK?: number, topP?: number, minP?: number, repetitionPenalty?: number, seed?: number,
 *   stopRepetition?: boolean, stop?: string[], images?: Picture[], begin?: string|number[], alternatives?: number, onToken?: (token: Token) => void,
 *   signal?: AbortSignal }} AskOptions  The defaults: greedy decoding, at most 512 tokens, and an answer that only repeats itself is stopped. The answer ends
 *   before the first of the `stop` texts. `images` are placed before the question. `begin` is the start of the answer, as text or token ids; it is not returned
 *   again. `onToken` is called with every token and, if `alternatives` (0 to 100) asks for them, the most likely tokens at its place.
 */

/** A loaded model. */
export class Model {
  #workers;
  #url;
  #nChats = 0;
  #looking = null; // the chat whose picture is being encoded or read

  constructor(workers, info, url, loadMs) {
    this.#workers = workers;
    this.#url = url;
    /** What the model is and how it runs. `seesPictures` is false for a language model alone; `memoryBytes` is kept up to date. */
    this.info = info;
    /** Milliseconds that `load` took. */
    this.loadMs = loadMs;
    /** The ranks' workers, for tests. */
    this.ranks = workers.ranks;
    /** Resolves when the model ends, with the reason: it was closed (an AbortError), or a worker was lost. @type {Promise<Error>} */
    this.ended = workers.ended;
  }

  /**
   * Begins a conversation, with or without a picture. If a picture is still being encoded for another chat, that encoding is cancelled: the newest wins.
   * @param {{ image?: Picture, system?: string, history?: ({ question: string, answer: string } | Message)[],
   *   onPicture?: (picture: Frame & { view?: ImageData }) => void, onProgress?: (progress: Progress) => void }} [options]  `image` precedes the first
   *   question; `system` replaces the model's own system text, "" removes it; `history` is an earlier conversation, which this one continues; `onPicture` is
   *   called once, when `image` has been decoded and before it is encoded; `view` is the decoded picture, upright, at most 1600 pixels on its longest edge
   */
  chat({ image, system, history = [], onPicture, onProgress } = {}) {
    this.#looking?.giveUp();
    const chat = new Chat(this.#workers, this.#nChats++, { image, system, history, onPicture, onProgress, loadMs: this.loadMs });
    this.#looking = chat;
    return chat;
  }

  /** The number of tokens in a text. */
  async countTokens(text) {
    return (await this.#workers.operate({ type: "count", text }).promise).result;
  }

  /** The current memory of every rank in bytes, also stored in `info.memoryBytes`. */
  memory() {
    return this.#workers.memory();
  }

  /** Removes network access from the model's workers, which need none; resolves when that is done. */
  lock() {
    return this.#workers.lock();
  }

  /** Deletes what this browser keeps of the model, which continues to run. */
  forget() {
    return this.#url ? Folder.forget(this.#url) : Promise.resolve();
  }

  /** Ends the workers and frees their memory. Pending operations fail with an AbortError. */
  close() {
    this.#workers.end(abortError("the model was closed"));
  }
}

/** A conversation, with up to four pictures. When old turns are left out, so are their pictures, except the first, which moves to the next question. */
export class Chat {
  #workers;
  #id;
  #onPicture;
  #onProgress;
  #images = new Map(); // from the key of each picture to its file as a Blob: the browser keeps its bytes, or reads them from disk again
  #preparing = []; // operations to cancel when a newer picture arrives
  #answer = null;
  #isGivenUp = false;
  #isClosed = false;

  constructor(workers, id, { image, system, history, onPicture = () => {}, onProgress = () => {}, loadMs }) {
    this.#workers = workers;
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
    /** The most likely first tokens of the latest answer: [{ text, probability }]. */
    this.first = [];
    /**
     * Resolves when the picture is encoded and the history is set. Without a picture: { tiles: 0, notes: [] }. With a picture, it fails with the kind
     * "no-vision" if the model sees no pictures.
     * @type {Promise<Frame>}
     */
    this.ready = this.#begin(image && blobOf(image), system, history.map(asMessages).flat());
    this.ready.catch(() => {}); // callers that await it get the error
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
    if (messages.length > 0) await this.#workers.operate({ type: "begin", chat: this.#id, messages }).promise;
    // The beginning of the prompt is read while the question is being typed. If that fails, the question itself will report it.
    this.#prepare({ type: "prepare", chat: this.#id }).catch(() => {});
    return frame;
  }

  // Encodes a picture, using `operate`. If the engine cannot read the format, the browser may be able to.
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
    const operation = this.#workers.operate(message, hear);
    this.#preparing.push(operation);
    const { result, timings } = await operation.promise;
    Object.assign(this.timings, timings);
    return result;
  }

  #tell({ type, id, ...progress }) {
    if (type === "progress") this.#onProgress(progress);
  }

  /**
   * Asks a question. Iterate over the result for the pieces of the answer. Leaving the loop, or the signal, stops it within one token; the answer so far is
   * kept, and the iteration ends without an error. One question at a time.
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
    const blobs = images.map(blobOf); // a snapshot, in case the caller changes the bytes
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
      // So many pictures have been encoded since that these must be encoded again.
      if (error.kind !== "not-encoded") throw error;
      const files = error.images.map((key) => this.#images.get(key)).filter(Boolean); // none if the chat was closed just now
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
    const operation = this.#workers.operate(message, (event) => {
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

  /** Cancels the preparation of this chat, if it is not finished: a newer picture has been opened. */
  giveUp() {
    if (this.#answer && !this.#answer.isStopped) return; // a question is waiting for its picture
    this.#isGivenUp = true;
    this.#preparing.forEach((operation) => operation.stop());
  }

  /** Ends the conversation and forgets it. */
  close() {
    this.#answer?.stop();
    this.#isGivenUp = this.#isClosed = true;
    this.#images.clear();
    this.#preparing.forEach((operation) => operation.stop());
    if (!this.#workers.error) this.#workers.ranks[0].postMessage({ type: "forget", chat: this.#id });
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

/** A picture's file as a Blob, which copies the bytes it is given. */
const blobOf = (image) => (image instanceof Blob ? image : new Blob([image]));

/** The messages of an entry of a conversation's history, with pictures as Blobs. */
function asMessages({ question, answer, role, content }) {
  if (role === undefined) return [{ role: "user", parts: [{ text: String(question) }] }, { role: "assistant", parts: [{ text: String(answer) }] }];
  const partOf = ({ type, text, image }) => (type === "image" ? { image: blobOf(image) } : { text: String(text) });
  return [{ role, parts: Array.isArray(content) ? content.map(partOf) : [{ text: String(content) }] }];
}

/** The bytes of a Blob, as a buffer that may be transferred. */
async function bytesOf(image) {
  try {
    return await image.arrayBuffer();
  } catch (error) {
    throw new ModelError({ kind: "file", message: `The picture's file could not be read (${error?.message ?? error}).` });
  }
}
