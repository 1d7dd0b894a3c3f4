// The workers of one loaded model: starts them, connects them, watches them, and ends all of them when one is lost. Runs on the page's main thread.
// llama3med.js is the interface; the messages are listed in store.js and rank.js.

/** What a kind of error means to the person; the engine's own sentence follows. */
const SENTENCES = {
  corrupt: "The model's files are damaged or do not fit together",
  unsupported: "This model needs something that this version cannot do",
  image: "This picture cannot be read",
  tokenizer: "The model's tokenizer cannot be used",
  invalid: "This cannot be done",
  "context-full": "The question does not fit into the model's context",
  "out-of-memory": "The memory of this browser is not enough for the model",
  "rank-lost": "A worker of the model stopped",
  internal: "Something went wrong inside the model's workers",
};

/** An error with a `kind` for programs, a `message` for people and a `detail` for engineers; `instead` are options of `load` that would do, if any would. */
export class ModelError extends Error {
  constructor({ kind, message, detail = "", instead, images }, where = "") {
    const sentence = instead ? undefined : SENTENCES[kind];
    super(`${sentence ? `${sentence}: ${message}` : message}${where.startsWith("rank") ? ` (${where})` : ""}`);
    Object.assign(this, { name: "ModelError", kind, detail, instead, ...(images && { images }) });
  }
}

/** @param {string} message */
export function abortError(message) {
  return new DOMException(message, "AbortError");
}

// Each names its file in the one way in which bundlers find a worker's; `Worker` is what `startWorker` gives them.
const makeStore = (Worker) => new Worker(new URL("./store.js", import.meta.url), { type: "module" });
const makeRank = (Worker) => new Worker(new URL("./rank.js", import.meta.url), { type: "module" });

/**
 * Starts a worker, once `workersChecked` has resolved: `make` makes it with the constructor that it is given, as `makeStore` does. A worker
 * takes on the policy of the page only if it starts from a blob: from its own address it would have none but what its host sends. Where a host's own policy
 * forbids blobs, the file itself is started.
 */
export function startWorker(make, name) {
  return make(function (url, options) {
    const href = typeof url === "string" ? new URL(url, location.href).href : url.href; // as a bundler has written it
    return new Worker(startsFromBlobs ? blobUrl(`import ${JSON.stringify(href)};`) : href, { ...options, name });
  });
}

const blobUrl = (script) => URL.createObjectURL(new Blob([script], { type: "text/javascript" }));

let startsFromBlobs = true;
let checked = null;

/** Resolves when it is known how workers may be started. */
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

/** More are never started. */
export const MAX_RANKS = 64;

const PING_MS = 5000;
// A rank alone in its session hears nothing while it computes a tile or a piece of the prompt: on a slow phone that takes minutes. Where there are locks
// they tell which ranks live, however long they are silent.
const MAX_SILENCE_MS = 600_000;

/** All workers of one model. */
export class Session {
  constructor() {
    this.ranks = [];
    this.store = null;
    this.memoryBytes = [];
    this.operations = [];
    this.n_operations = 0;
    this.error = null;
    this.watched = [];
    this.asked = null; // { promise, waiting, resolve } of the ranks' memory, while it is asked for
    this.lastLook = performance.now();
    this.timer = setInterval(() => this.#look(), PING_MS);
    /** Resolves with the error that ended the session, also when that is only `close`. */
    this.ended = new Promise((resolve) => (this.resolveEnded = resolve));
    this.locks = `llama3med ${Date.now()} ${Math.random()}`;
  }

  /** Starts the store. `onMessage` hears of everything that it says. */
  startStore(onMessage) {
    this.store = this.#worker(makeStore, "the store", onMessage);
    return this.store;
  }

  /** Starts `n_ranks` ranks, each connected to all others; resolves with what rank 0 says of the model, when all have been loaded. */
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
      // Of a worker that has not said anything yet the program is to blame.
      const kind = watch.hasSpoken ? "internal" : "program";
      this.end(new ModelError({ kind, message, detail: `${event.filename ?? name}:${event.lineno ?? 0}` }, name));
    };
    worker.onmessageerror = () => this.end(new ModelError({ kind: "internal", message: "a message could not be read" }, name));
    this.watched.push(watch);
    return worker;
  }

  /** A worker's error. One for want of memory says how many ranks would have twice as much. */
  #error(error, name) {
    const isShort = error.kind === "out-of-memory" && this.ranks.length > 0 && this.ranks.length < MAX_RANKS;
    return Object.assign(new ModelError(error, name), isShort ? { moreRanks: Math.min(2 * this.ranks.length, MAX_RANKS) } : {});
  }

  // The rank holds this lock as long as it lives: whoever gets it next knows that it does not.
  #watchLock(lock, name) {
    this.watched.find((watch) => watch.name === name).isLocked = true;
    const lost = () => this.end(new ModelError({ kind: "rank-lost", message: "it ended without a word, perhaps for want of memory. Load the model again" }, name));
    navigator.locks.request(lock, lost).catch(() => {});
  }

  // For workers that no lock shows: the store, and all of them where there are no locks (plain http). Time in which this page slept does not count.
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

  // One at a time: a worker that computes would find a heap of them.
  #ping(watch) {
    if (!watch.isPinged) watch.worker.postMessage({ type: "ping" });
    watch.isPinged = true;
  }

  /** Bytes of every rank's wasm memory, asked for now. */
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

  /** Has every rank give up the network; resolves when all have. */
  async lock() {
    const locked = this.ranks.map((worker) => new Promise((resolve) => {
      worker.locked = resolve;
      worker.postMessage({ type: "lock" });
    }));
    await Promise.race([Promise.all(locked), this.ended]);
  }

  /** The store has done its work. */
  endStore() {
    this.store.terminate();
    this.watched = this.watched.filter(({ worker }) => worker !== this.store);
    this.store = null;
  }

  /** Ends every worker; everything that is under way fails with `error`. */
  end(error) {
    if (this.error) return;
    this.error = error;
    clearInterval(this.timer);
    this.watched.forEach(({ worker }) => worker.terminate());
    this.operations.splice(0).forEach((operation) => operation.reject(error));
    this.resolveEnded(error);
  }

  /**
   * Puts an operation of rank 0 into the queue.
   * @returns {{ promise: Promise<object>, stop: () => void }} `promise` resolves with `{ result, timings }`; `stop` makes it fail with an AbortError,
   *   or, if it is an answer that has begun, end early.
   */
  operate(message, onEvent = () => {}) {
    const operation = { id: this.n_operations++, message, onEvent, isRunning: false };
    const promise = new Promise((resolve, reject) => Object.assign(operation, { resolve, reject }));
    promise.catch(() => {}); // whoever cares listens as well
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
