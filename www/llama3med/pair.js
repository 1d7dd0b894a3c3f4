// A model as GGUF files from llama.cpp's converters: a decoder and, if it sees pictures, its image encoder (mmproj), from URLs or from files chosen in the
// page. They are described as a manifest would describe them, with chunks that are ranges of the files, so that all later stages are the same: nothing is
// converted or kept, and no file is ever in memory as a whole. Runs in the store worker.

import { checkStandIn, checkStatus, fetchBytes, StoreError, whyForbidden } from "./fetching.js";

const CHUNK_BYTES = 24 << 20;
const FIRST_BYTES = 1 << 20;
const PART = /^(.*)-(\d{5})-of-(\d{5})(?: ?\(\d+\))?\.gguf$/; // browsers add " (1)" to a repeated download
const KINDS = { llama: "decoder.gguf", qwen2: "decoder.gguf", clip: "encoder.gguf" };
const TITLES = { "decoder.gguf": "a language model (architecture llama)", "encoder.gguf": "an image encoder (mmproj, architecture clip)" };

/** An error about the choice of files. */
const wrong = (message, detail = "") => new StoreError("pair", message, detail);

/**
 * The manifest that the files would have. A chunk's `source` is a File, a URL or its bytes: `readChunk` reads it.
 * @param {(string|File)[]} sources  in any order; for a split file one URL, or all of its files
 * @param {object} wasm  the bindings
 */
export async function describePair(sources, wasm) {
  const parts = sources.flatMap((source) => (typeof source === "string" ? addressesOfParts(source) : [source]));
  const described = await Promise.all(parts.map((source) => describe(source, wasm)));
  const files = new Map();
  for (const group of grouped(described)) {
    group.sort((a, b) => a.part - b.part);
    const [first] = group;
    const name = KINDS[first.kind];
    if (first.part > 0 || group.length !== first.nParts) {
      throw wrong(`${first.name} is one of ${first.nParts} parts, and ${group.length === 1 ? "the others are" : "some are"} missing.`, group.map((part) => part.name).join(", "));
    }
    if (!name) throw wrong(`${first.name} is neither a language model of the Llama kind nor an image encoder.`, `general.architecture is ${JSON.stringify(first.kind)}`);
    if (files.has(name)) throw wrong(`Both files are ${TITLES[name]}.`, `${files.get(name).title} and ${first.name}`);
    files.set(name, { title: first.title || first.name, file: group.length === 1 ? whole(name, first) : joined(name, group, wasm) });
  }
  // Without an encoder it is a language model, which sees no pictures.
  if (!files.has(KINDS.llama)) {
    throw wrong(`With ${[...files.values()].map(({ title }) => title).join(", ") || "nothing"} alone the model is incomplete: ${TITLES[KINDS.llama]} is missing.`);
  }
  const ordered = Object.keys(TITLES).flatMap((name) => files.get(name) ?? []);
  return { name: ordered[0].title, description: "", license: "", notices: [], suggested_questions: [], samples: [], fidelity: null, files: ordered.map(({ file }) => file) };
}

/** A chunk's bytes. */
export async function readChunk({ source, path, offset, size }, progress) {
  if (source instanceof Uint8Array) {
    progress.add(size);
    return source;
  }
  if (typeof source === "string") {
    const name = `${path} (bytes ${offset} to ${offset + size - 1})`;
    return fetchBytes(source, { name, size, range: offset, cache: "no-store", ...progress.listener });
  }
  const bytes = await sliceOf(source, offset, offset + size);
  progress.add(size);
  return bytes;
}

/** The kind of a file, with its first bytes, including its whole header. */
async function describe(source, wasm) {
  const isAddress = typeof source === "string";
  const name = isAddress ? decodeURIComponent(new URL(source).pathname.split("/").at(-1)) : source.name;
  const size = isAddress ? await sizeAt(source, name) : source.size;
  const read = (start, end) => (isAddress ? fetchBytes(source, { name, size: end - start, range: start, cache: "no-store" }) : sliceOf(source, start, end));
  for (let first = await read(0, Math.min(FIRST_BYTES, size)); ; ) {
    checkStandIn(first, name);
    const found = headerOf(name, first, size, wasm);
    if (found) return { ...found, source, name, size, first };
    const more = new Uint8Array(Math.min(2 * first.length, size));
    more.set(first);
    more.set(await read(first.length, more.length), first.length);
    first = more;
  }
}

/** The content of the header, if all of it is in the first bytes. */
function headerOf(name, first, size, wasm) {
  try {
    return wasm.describeGguf(name, first, size);
  } catch (error) {
    throw /cut short/.test(error.message) ? new StoreError("cut", error.message) : error;
  }
}

/** The size of the file at a URL: a server that supports ranges reports it with the first byte. */
async function sizeAt(url, name) {
  const response = await fetch(url, { headers: { Range: "bytes=0-0" }, cache: "no-store" }).catch(async (error) => {
    throw (await whyForbidden(url)) ?? new StoreError("network", `${name} could not be fetched. Check the network connection and the address.`, `${error} (${url})`);
  });
  response.body?.cancel().catch(() => {});
  checkStatus(response, name, 0);
  const [, size] = /\/(\d+)$/.exec(response.headers.get("Content-Range") ?? "") ?? [];
  if (size === undefined) {
    throw new StoreError("ranges", `The server does not say how large ${name} is.`,
      `no Content-Range in the response for ${url}; a host other than the page's must name it in Access-Control-Expose-Headers`);
  }
  return Number(size);
}

async function sliceOf(file, start, end) {
  try {
    return new Uint8Array(await file.slice(start, end).arrayBuffer());
  } catch (error) {
    throw wrong(`${file.name} can no longer be read: it was moved or changed. Choose it again.`, String(error));
  }
}

/** All parts of a split file, given the URL of one. */
function addressesOfParts(address) {
  const url = new URL(address);
  const [, stem, , count] = PART.exec(url.pathname) ?? [];
  if (!stem) return [url.href];
  return Array.from({ length: Number(count) }, (_, idx) => {
    url.pathname = `${stem}-${String(idx + 1).padStart(5, "0")}-of-${count}.gguf`;
    return url.href;
  });
}

/** The key that parts of one file share: the number of parts if their names do not tell; other files have their index in the list. */
function stemOf({ name, nParts }, idx) {
  return nParts > 1 ? (PART.exec(name)?.[1] ?? `one of ${nParts} parts`) : idx;
}

function grouped(described) {
  const groups = new Map();
  described.forEach((part, idx) => groups.set(stemOf(part, idx), [...(groups.get(stemOf(part, idx)) ?? []), part]));
  return groups.values();
}

/** Chunks for the bytes of a file from `start` on; the first bytes are already present. */
function chunksOf({ source, name, size, first }, start) {
  const chunks = [];
  if (start < first.length) chunks.push({ path: name, offset: start, size: first.length - start, source: first.subarray(start) });
  for (let offset = Math.max(start, first.length); offset < size; offset += CHUNK_BYTES) {
    chunks.push({ path: name, offset, size: Math.min(CHUNK_BYTES, size - offset), source });
  }
  return chunks;
}

function whole(name, part) {
  return { name, size: part.size, header_size: part.headerSize, chunks: chunksOf(part, 0) };
}

/** A split file as the whole that its parts form: a new header, then the tensors of every part. */
function joined(name, parts, wasm) {
  const header = wasm.joinGguf(parts.map((part) => part.name), parts.map((part) => part.first), Float64Array.from(parts, (part) => part.size));
  const chunks = [{ path: name, offset: 0, size: header.length, source: header }, ...parts.flatMap((part) => chunksOf(part, part.headerSize))];
  return { name, size: chunks.reduce((sum, chunk) => sum + chunk.size, 0), header_size: header.length, chunks };
}
