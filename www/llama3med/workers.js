// The workers of one loaded model: starts, connects and watches them, and terminates all of them when one is lost. Runs on the page's main thread.
// index.js is the interface; the messages are listed in store.js and rank.js.

import { abortError, ModelError } from "./errors.js";

// Each names its file in the only form in which bundlers recognise a worker; `startWorker` passes the `Worker` constructor.
const makeStore = (Worker) => new Worker(new URL("./store.js", import.meta.url), { type: "module" });
const makeRank = (Worker) => new Worker(new URL("./rank.js", import.meta.url), { type: "module" });

/**
 * Starts a worker, once `workersChecked` has resolved: `make` creates it with the constructor that it is given, like `makeStore`. A worker inherits the page's
 * policy only if it starts from a blob: started from its own URL, it would only have the policy that its host sends. If a host's own policy forbids blobs, the
 * file itself is started.
 */
export function startWorker(make, name) {
  return make(function (url, options) {
    const href = typeof url === "string" ? new URL(url, location.href).href : url.href; // as the bundler wrote it
    return new Worker(startsFromBlobs ? blobUrl(`import ${JSON.stringify(href)};`) : href, { ...options, name });
  });
}

const blobUrl = (script) => URL.createObjectURL(new Blob([script], { type: "text/javascript" }));

let startsFromBlobs = true;
let checked = null;

/** Resolves when it is known how workers can be started. */
export function workersChecked() {
  return (checked ??= new Promise((resolve) => {
    let worker = null;
    const found = (isStarted) => {
      startsFromBlobs = isStarted;
      worker?.terminate();
      resolve();
    };
    try {
      worker = new Worker(blobUrl("postMessage(0);"), { type: "module", name: "check" });
      worker.onmessage = () => found(true);
      worker.onerror = (event) => (event.preventDefault?.(), found(false));
    } catch {
      found(false);
    }
  }));
}

/** Maximum number of ranks. */
export const MAX_RANKS = 64;

const PING_MS = 5000;
// A single rank receives nothing while it computes a tile or a part of the prompt, which takes minutes on a slow phone. Where Web Locks exist, they show which
// ranks are alive, however long they are silent.
const MAX_SILENCE_MS = 600_000;

/** All workers of one model. */
export class Workers {
  constructor() {
    this.ranks = [];
    this.store = null;
    this.memoryBytes = [];
    this.operations = [];
    this.n_operations = 0;
    this.error = null;
    this.watched = [];
    this.asked = null; // { promise, waiting, resolve } the pending request for the ranks' memory
    this.lastLook = performance.now();
    this.timer = setInterval(() => this.#look(), PING_MS);
    /** Resolves with the error that ended the session, also if that is only `close`. */
    this.ended = new Promise((resolve) => (this.resolveEnded = resolve));
    this.locks = `llama3med ${Date.now()} ${Math.random()}`;
  }

  /** Starts the store. `onMessage` gets all its messages. */
  startStore(onMessage) {
    this.store = this.#worker(makeStore, "the store", onMessage);
    return this.store;
  }

  /** Starts `n_ranks` ranks, each connected to all others; resolves with rank 0's description of the model, when all are loaded. */
  startRanks(n_ranks, start) {
    const ports = Array.from({ length: n_ranks }, () => Array(n_ranks).fill(null));
    for (let a = 0; a < n_ranks; a++) {
      for (let b = a + 1; b < n_ranks; b++) {
        const { port1, port2 } = new MessageChannel();
        ports[a][b] = port1;
        ports[b][a] = port2;
      }
    }
    const stores = ports.map(() => new MessageChannel());
    const loaded = ports.map((mine, rank) => this.#startRank(rank, mine, stores[rank].port1, start));
    return { loaded: Promise.all(loaded).then(([info]) => info), storePorts: stores.map(({ port2 }) => port2) };
  }

  #startRank(rank, ports, store, start) {
    return new Promise((resolve) => {
      const worker = this.#worker(makeRank, `rank ${rank}`, (message) => {
        if (message.type === "started" && lock) this.#watchLock(lock, `rank ${rank}`);
        if (message.type === "loaded") resolve(message.info);
        if (message.memory) this.memoryBytes[rank] = message.memory;
        if (message.type === "pong") this.#ponged(rank);
        if (message.type === "locked") worker.locked();
        if (message.id !== undefined) this.#heard(message);
      });
      const lock = globalThis.navigator?.locks ? `${this.locks} ${rank}` : null;
      worker.postMessage({ type: "start", rank, ports, store, lock, ...start }, [...ports.filter(Boolean), store]);
      this.ranks[rank] = worker;
    });
  }

  #worker(make, name, onMessage) {
    const worker = startWorker(make, name);
    const watch = { worker, name, silentMs: 0, isPinged: false, isLocked: false, hasSpoken: false };
    worker.onmessage = ({ data }) => {
      Object.assign(watch, { silentMs: 0, isPinged: false, hasSpoken: true });
      if (this.error) return;
      if (data.type === "failed") this.end(this.#error(data.error, name));
      else onMessage(data);
    };
    worker.onerror = (event) => {
      event.preventDefault?.();
      const message = event.message || "it could not be started: is the whole site there, and does its policy allow workers?";
      // If a worker has not sent any message yet, the program is the cause.
      const kind = watch.hasSpoken ? "internal" : "program";
      this.end(new ModelError({ kind, message, detail: `${event.filename ?? name}:${event.lineno ?? 0}` }, name));
    };
    worker.onmessageerror = () => this.end(new ModelError({ kind: "internal", message: "a message could not be read" }, name));
    this.watched.push(watch);
    return worker;
  }

  /** A worker's error. If memory ran out, it includes how many ranks would have twice as much. */
  #error(error, name) {
    const isShort = error.kind === "out-of-memory" && this.ranks.length > 0 && this.ranks.length < MAX_RANKS;
    return Object.assign(new ModelError(error, name), isShort ? { moreRanks: Math.min(2 * this.ranks.length, MAX_RANKS) } : {});
  }

  // The rank holds this lock as long as it lives: when this page gets it, the rank is dead.
  #watchLock(lock, name) {
    this.watched.find((watch) => watch.name === name).isLocked = true;
    const lost = () => this.end(new ModelError({ kind: "rank-lost", message: "it ended without a message, perhaps because memory ran out. Load the model again" }, name));
    navigator.locks.request(lock, lost).catch(() => {});
  }

  // For workers without such a lock: the store, and all workers where there are no locks (plain http). Time during which this page was suspended does not
  // count.
  #look() {
    const now = performance.now();
    const passedMs = Math.min(now - this.lastLook, 2 * PING_MS);
    this.lastLook = now;
    for (const watch of this.watched) {
      if (watch.isPinged) watch.silentMs += passedMs;
      if (watch.silentMs > MAX_SILENCE_MS && !watch.isLocked) {
        const message = `it has not answered for ${MAX_SILENCE_MS / 60_000} minutes. Load the model again`;
        return this.end(new ModelError({ kind: "rank-lost", message }, watch.name));
      }
      this.#ping(watch);
    }
  }

  // One at a time: otherwise pings would pile up at a busy worker.
  #ping(watch) {
    if (!watch.isPinged) watch.worker.postMessage({ type: "ping" });
    watch.isPinged = true;
  }

  /** Bytes of every rank's wasm memory, measured now. */
  async memory() {
    if (!this.asked && !this.error) {
      this.asked = { waiting: new Set(this.ranks.keys()) };
      this.asked.promise = new Promise((resolve) => (this.asked.resolve = resolve));
      this.watched.forEach((watch) => this.#ping(watch));
    }
    await Promise.race([this.asked?.promise, this.ended]);
    return [...this.memoryBytes];
  }

  #ponged(rank) {
    if (!this.asked?.waiting.delete(rank) || this.asked.waiting.size > 0) return;
    this.asked.resolve();
    this.asked = null;
  }

  /** Makes every rank give up network access; resolves when all have. */
  async lock() {
    const locked = this.ranks.map((worker) => new Promise((resolve) => {
      worker.locked = resolve;
      worker.postMessage({ type: "lock" });
    }));
    await Promise.race([Promise.all(locked), this.ended]);
  }

  /** The store has finished its work. */
  endStore() {
    this.store.terminate();
    this.watched = this.watched.filter(({ worker }) => worker !== this.store);
    this.store = null;
  }

  /** Terminates every worker; all pending operations fail with `error`. */
  end(error) {
    if (this.error) return;
    this.error = error;
    clearInterval(this.timer);
    this.watched.forEach(({ worker }) => worker.terminate());
    this.operations.splice(0).forEach((operation) => operation.reject(error));
    this.resolveEnded(error);
  }

  /**
   * Queues an operation of rank 0.
   * @returns {{ promise: Promise<object>, stop: () => void }} `promise` resolves with `{ result, timings }`; `stop` makes it fail with an AbortError,
   *   or, if it is an answer that has begun, end early.
   */
  operate(message, onEvent = () => {}) {
    const operation = { id: this.n_operations++, message, onEvent, isRunning: false };
    const promise = new Promise((resolve, reject) => Object.assign(operation, { resolve, reject }));
    promise.catch(() => {}); // interested callers attach their own handlers
    if (this.error) operation.reject(this.error);
    else this.operations.push(operation);
    this.#next();
    return { promise, stop: () => this.#stop(operation) };
  }

  #next() {
    const [operation] = this.operations;
    if (!operation || operation.isRunning) return;
    operation.isRunning = true;
    const { images = [] } = operation.message;
    this.ranks[0].postMessage({ ...operation.message, id: operation.id }, images);
    delete operation.message;
  }

  #heard(message) {
    const [operation] = this.operations;
    if (operation?.id !== message.id) return;
    if (message.type !== "done") return operation.onEvent(message);
    this.operations.shift();
    const { error, result, timings } = message;
    if (!error) operation.resolve({ result, timings });
    else operation.reject(error.kind === "cancelled" ? abortError("stopped") : this.#error(error));
    this.#next();
  }

  #stop(operation) {
    const idx = this.operations.indexOf(operation);
    if (idx < 0) return;
    if (operation.isRunning) return this.ranks[0].postMessage({ type: "stop", id: operation.id });
    this.operations.splice(idx, 1);
    operation.reject(abortError("stopped"));
  }
}
