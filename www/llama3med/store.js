// The store: a worker that fetches a model's chunks, checks them, keeps them (folder.js) and passes every rank the bytes that it needs.
//
// Messages from the page                                     answered by
//   { type: "open", manifestUrl, build, module, cache,       { type: "manifest", manifest, isCopy, memory: { bytes, leastRanks } }
//     context, template, early } or                            { type: "progress", ... } while waiting for the network
//     pair: [URL or File, ...] instead of manifestUrl;
//     `early` is the manifest, if already fetched
//   { type: "serve", ports: [MessagePort of each rank],      { type: "progress", done, total, waits }, ...
//     verify }                                               { type: "served", cached, note }
//   { type: "ping" }                                         { type: "pong" }
//   any of them                                              { type: "failed", error: { kind, message, detail, instead } }, where `instead` are
//                                                              options of `load` that would work
// Messages to a rank, over its port                          answered by
//   { type: "header", file, size, bytes }                    { type: "ranges", ranges: [start, end, start, end, ...] }
//   { type: "bytes", file, parts: [{ offset, bytes }] }      { type: "taken" }
//   { type: "kept", file, parts: [{ offset, at, size }],     { type: "taken", problem }: `problem` says why reading failed, if it did;
//     manifestUrl, chunk }                                     a part starts `at` an offset in the chunk
//   { type: "end" }                                          nothing
// A rank answers in order, one answer per message: this bounds how many bytes are in flight.
//
// The ranks read chunks that the folder already keeps themselves, each what it needs, straight into its memory: bytes that passed through this worker would be
// copied two more times. They were checked before they were stored (folder.js); with `verify` they are read and hashed here again.

import { importBuild } from "./builds.js";
import { checkStandIn, checkStatus, fetchBytes, isNetworkLost, networkBack, StoreError, whyForbidden } from "./fetching.js";
import { Folder, hex } from "./folder.js";
import { describePair, readChunk } from "./pair.js";

// How many chunks are fetched or read at once, as long as they are not too many bytes; they are passed on in order.
const N_AHEAD = 4;
const AHEAD_BYTES = 128 << 20;
const MAX_MANIFEST_BYTES = 4 << 20;
const MANIFEST_WAIT_MS = 15_000;

let wasm = null;
let model = null; // { url, manifest, bytes, folder, note, chunks, progress }

self.addEventListener("message", async ({ data }) => {
  try {
    await { open, serve, ping: () => postMessage({ type: "pong" }) }[data.type](data);
  } catch (error) {
    const { kind = "internal", message, detail = error.kind ? "" : String(error.stack ?? ""), instead } = error;
    postMessage({ type: "failed", error: { kind, message, detail, instead } });
  }
});

async function open({ manifestUrl, pair, build, module, cache, context, template, early }) {
  wasm = await importBuild(build);
  wasm.initSync({ module });
  checkTemplate(template);
  if (pair) {
    const note = pair.every((source) => typeof source === "string") ? "" : "no: it is read from the files that you chose";
    model = { manifest: await describePair(pair, wasm), folder: null, note };
    // Without hashes, a file is at least identified by its header.
    const files = await Promise.all(model.manifest.files.map(async (file) => ({ ...file, header_sha256: await sha256(file.chunks[0].source.subarray(0, file.header_size)) })));
    return postMessage({ type: "manifest", manifest: { ...model.manifest, files }, isCopy: false, memory: await memory(context) });
  }
  const folder = cache ? await Folder.open(manifestUrl) : null;
  const { bytes, isCopy } = early ? { bytes: early, isCopy: false } : await manifestBytes(manifestUrl, folder);
  const note = folder && !folder.isOurs ? "Another tab is keeping this model; this tab only reads it." : "";
  model = { url: manifestUrl, manifest: wasm.parseManifest(bytes), bytes, folder, note };
  postMessage({ type: "manifest", manifest: model.manifest, isCopy, memory: await memory(context) });
}

/** Checked before anything is fetched: the ranks would only report it after everything is loaded. */
function checkTemplate(template) {
  const known = wasm.templateNames();
  if (template === undefined || known.includes(template)) return;
  throw Object.assign(new StoreError("invalid", `template must be one of ${known.join(", ")}, found ${template}`), { instead: { template: undefined } });
}

/** The manifest from the network or, if there is no connection, the kept one. */
async function manifestBytes(url, folder) {
  const copy = await folder?.manifest();
  for (let attempt = 0; ; attempt++) {
    try {
      return { bytes: await fetchManifest(url, copy ? MANIFEST_WAIT_MS : 4 * MANIFEST_WAIT_MS), isCopy: false };
    } catch (error) {
      // A network that requires a login sends a web page.
      const mayPass = !(error instanceof StoreError) || error.passing || error.kind === "web-page";
      if (mayPass && copy) return { bytes: copy, isCopy: true };
      const reason = error instanceof StoreError ? error : await whyForbidden(url);
      if (reason && !reason.passing) throw reason;
      if (attempt < 2) await new Promise((resolve) => setTimeout(resolve, 500 * (attempt + 1)));
      else if (reason) throw reason;
      else if (isNetworkLost()) {
        postMessage({ type: "progress", done: 0, total: 0, waits: true });
        await networkBack();
      } else throw new StoreError("network", "The model's manifest could not be fetched. Check the network connection and the address, then load the model again.", `${error} (${url})`);
    }
  }
}

async function fetchManifest(url, ms) {
  const response = await fetch(url, { cache: "no-cache", signal: AbortSignal.timeout(ms) });
  checkStatus(response, "manifest.json");
  const bytes = new Uint8Array(await response.arrayBuffer());
  checkStandIn(bytes, "manifest.json");
  if (bytes.length > MAX_MANIFEST_BYTES) throw new StoreError("corrupt", `manifest.json has ${bytes.length} bytes: too many.`);
  return bytes;
}

/** The memory that the model needs, from the headers of its files. The chunks that contain them are obtained now, and wait for the ranks. */
async function memory(context) {
  const { files } = model.manifest;
  const chunks = files.flatMap((file) => placed(file));
  const names = new Set(await model.folder?.names());
  for (const placed of chunks) placed.isKept = names.has(placed.chunk.sha256);
  await checkRoom(chunks);
  const progress = new Progress(chunks.reduce((sum, { chunk }) => sum + chunk.size, 0));
  Object.assign(model, { chunks, progress });
  const headers = files.map(async (file) => {
    const first = chunks.filter((placed) => placed.file === file && placed.offset < file.header_size);
    for (const placed of first) placed.obtained = obtain({ ...placed, isRead: true }, chunks, progress);
    const parts = await Promise.all(first.map(async ({ offset, obtained }) => ({ offset, ...(await obtained) })));
    return headerOf(file, parts);
  });
  return wasm.memoryOf(files.map(({ name }) => name), await Promise.all(headers), Float64Array.from(files, ({ size }) => size), context);
}

async function serve({ ports, verify }) {
  const { chunks, progress } = model;
  // Read here: chunks that are not kept yet or are to be verified, and the headers.
  for (const placed of chunks) placed.isRead = verify || !placed.isKept || placed.offset < placed.file.header_size;
  const feeds = ports.map((port) => new Feed(port));
  await deliver(chunks, feeds, progress);
  feeds.forEach((feed) => feed.port.postMessage({ type: "end" }));
  progress.tell();
  if (model.folder) {
    await model.folder.keepManifest(model.bytes).then(() => model.folder.sweep(chunks.map(({ chunk }) => chunk)), keepNothing);
  }
  postMessage({ type: "served", cached: Boolean(model.folder?.isOurs), note: model.note });
}

/** A file's chunks, each with its offset in the file. */
function placed(file) {
  let end = 0;
  return file.chunks.map((chunk) => {
    end += chunk.size;
    return { file, chunk, offset: end - chunk.size };
  });
}

/** If the disk has no room for the missing chunks, the model still runs, but nothing is kept. */
async function checkRoom(chunks) {
  if (!model.folder?.isOurs) return;
  const n_missing = chunks.reduce((sum, { chunk, isKept }) => sum + (isKept ? 0 : chunk.size), 0);
  const { quota = Infinity, usage = 0 } = (await navigator.storage.estimate?.()) ?? {};
  if (n_missing <= quota - usage) return;
  keepNothing(new DOMException(`${n_missing} bytes are needed, ${quota - usage} are free`, "QuotaExceededError"));
}

/** From now on nothing more is kept; what is already kept stays. */
function keepNothing(error) {
  model.folder = null;
  const isFull = error?.name === "QuotaExceededError";
  model.note = isFull
    ? `There is no room on the disk to keep the model: it will be fetched again next time (${error.message}).`
    : `The browser did not allow the model to be kept: it will be fetched again next time (${error}).`;
}

/** Fetches ahead, passes on in order; waits for the ranks, so that few bytes are in flight at any time. */
async function deliver(chunks, feeds, progress) {
  const obtained = [];
  let waiting = { file: null, parts: [], n_bytes: 0 }; // chunks of a file whose header is not complete
  let taken = Promise.resolve();
  for (const [idx, { file, chunk, offset }] of chunks.entries()) {
    while (obtained.length < chunks.length && mayObtain(chunks, idx, obtained.length)) {
      const placed = chunks[obtained.length];
      const next = placed.obtained ?? obtain(placed, chunks, progress);
      placed.obtained = null;
      next.catch(() => {}); // handled when its turn comes
      obtained.push(next);
    }
    const { bytes, kept } = await obtained[idx];
    obtained[idx] = null;
    if (!bytes) {
      // Only a few words are in flight: no need to wait for the ranks.
      taken = Promise.all([taken, letRead(feeds, { file, chunk, offset }, progress)]);
      taken.catch(() => {}); // handled when they are awaited
      continue;
    }
    if (offset === 0) waiting = { file, parts: [], n_bytes: 0 };
    waiting.parts.push({ offset, bytes });
    waiting.n_bytes += bytes.length;
    if (waiting.n_bytes >= file.header_size) {
      await taken;
      if (offset < file.header_size || offset === 0) await announce(file, waiting, feeds);
      const parts = waiting.parts.splice(0);
      taken = Promise.all(parts.flatMap((part) => feeds.map((feed) => feed.bytes(file.name, part))));
    }
    await kept;
  }
  await taken;
}

/** Whether fetching chunk `next` may start while chunk `idx` is still awaited. */
function mayObtain(chunks, idx, next) {
  const n_bytes = chunks.slice(idx, next + 1).reduce((sum, { chunk, isRead }) => sum + (isRead ? chunk.size : 0), 0);
  return next === idx || (next < idx + N_AHEAD && n_bytes <= AHEAD_BYTES);
}

/** Tells the ranks to read a kept chunk. One that cannot be read is removed, so that it will be fetched the next time. */
async function letRead(feeds, { file, chunk, offset }, progress) {
  const problems = await Promise.all(feeds.map((feed) => feed.kept(file.name, chunk, offset)));
  const problem = problems.find(Boolean);
  if (!problem) return progress.add(chunk.size);
  await model.folder?.discard(chunk);
  throw new StoreError("kept", "A part of the model that this browser keeps could not be read. Load the model again: that part will be fetched again.", problem);
}

/** Sends a file's header to the ranks; they answer with the bytes they need. */
async function announce(file, { parts }, feeds) {
  const header = headerOf(file, parts);
  await Promise.all(feeds.map((feed) => feed.header(file, header.slice())));
}

function headerOf(file, parts) {
  const header = new Uint8Array(file.header_size);
  for (const { offset, bytes } of parts) {
    if (offset < header.length) header.set(bytes.subarray(0, header.length - offset), offset);
  }
  return header;
}

/** A chunk's bytes, checked, from the folder or from the network; none if the ranks read it. `kept` resolves when they are on disk. */
async function obtain({ chunk, isRead }, chunks, progress) {
  if (!isRead) return {};
  if (chunk.source) return { bytes: await readChunk(chunk, progress), kept: null };
  const copy = await model.folder?.read(chunk).catch(() => null);
  if (copy && (await sha256(new Uint8Array(copy))) === chunk.sha256) {
    progress.add(chunk.size);
    return { bytes: new Uint8Array(copy), kept: null };
  }
  const bytes = await fetchChunk(chunk, chunks, progress);
  const kept = model.folder?.write(chunk, bytes).catch(keepNothing);
  return { bytes, kept };
}

/** A damaged chunk is fetched once more, bypassing every browser cache. */
async function fetchChunk(chunk, chunks, progress) {
  const url = new URL(chunk.path, model.url).href;
  const isPart = chunk.offset > 0 || chunks.some(({ chunk: other }) => other !== chunk && other.path === chunk.path);
  const name = isPart ? `${chunk.path} (bytes ${chunk.offset ?? 0} to ${(chunk.offset ?? 0) + chunk.size - 1})` : chunk.path;
  let problem = null;
  for (const fresh of [false, true]) {
    try {
      const range = isPart ? (chunk.offset ?? 0) : undefined;
      const cache = fresh ? "reload" : model.folder ? "no-store" : "default"; // what the folder keeps need not be cached twice
      const bytes = await fetchBytes(url, { name, size: chunk.size, range, cache, ...progress.listener });
      const found = await sha256(bytes);
      if (found === chunk.sha256) return bytes;
      progress.add(-chunk.size);
      checkStandIn(bytes, name);
      problem = new StoreError("hash", `${name} arrived damaged, twice: it is not the file that the manifest names.`,
        `${url}: sha256 expected ${chunk.sha256}, found ${found}`);
    } catch (error) {
      if (error.kind !== "hash") throw error;
      problem = error;
    }
  }
  throw problem;
}

async function sha256(bytes) {
  if (globalThis.crypto?.subtle) return hex(await crypto.subtle.digest("SHA-256", bytes));
  const hash = new wasm.Sha256();
  hash.update(bytes);
  const digest = hash.finish();
  hash.free();
  return digest;
}

/** The connection to one rank: what it needs of each file, and the messages that it has not answered yet. */
class Feed {
  constructor(port) {
    this.port = port;
    this.ranges = new Map();
    this.waiting = [];
    port.onmessage = ({ data }) => this.waiting.shift()(data);
  }

  async header(file, bytes) {
    const { ranges } = await this.#send({ type: "header", file: file.name, size: file.size, bytes }, [bytes.buffer]);
    this.ranges.set(file.name, ranges);
  }

  async bytes(file, { offset, bytes }) {
    const parts = this.#needed(file, offset, bytes.length).map(({ at, size, ...part }) => ({ ...part, bytes: bytes.slice(at, at + size) }));
    if (parts.length > 0) await this.#send({ type: "bytes", file, parts }, parts.map((part) => part.bytes.buffer));
  }

  /** Resolves with the reason why reading failed, if it did. */
  async kept(file, chunk, offset) {
    const parts = this.#needed(file, offset, chunk.size);
    if (parts.length > 0) return (await this.#send({ type: "kept", file, parts, manifestUrl: model.url, chunk })).problem;
  }

  /** What the rank needs of the `size` bytes of a file starting at `offset`: each part is `at` bytes from there. */
  #needed(file, offset, size) {
    const ranges = this.ranges.get(file);
    const parts = [];
    for (let i = 0; i < ranges.length; i += 2) {
      const from = Math.max(ranges[i], offset);
      const to = Math.min(ranges[i + 1], offset + size);
      if (from < to) parts.push({ offset: from, at: from - offset, size: to - from });
    }
    return parts;
  }

  #send(message, transfer = []) {
    return new Promise((resolve) => {
      this.waiting.push(resolve);
      this.port.postMessage(message, transfer);
    });
  }
}

/** All bytes of the model, as they become available. */
class Progress {
  constructor(total) {
    Object.assign(this, { total, done: 0, told: 0, n_waiting: 0 });
    /** For `fetchBytes`. */
    this.listener = { onBytes: (n) => this.add(n), onWaiting: (waits) => this.#wait(waits) };
    this.tell();
  }

  #wait(waits) {
    this.n_waiting += waits ? 1 : -1;
    this.tell();
  }

  add(n_bytes) {
    this.done += n_bytes;
    if (performance.now() - this.told > 100) this.tell();
  }

  tell() {
    this.told = performance.now();
    postMessage({ type: "progress", done: this.done, total: this.total, waits: this.n_waiting > 0 });
  }
}
