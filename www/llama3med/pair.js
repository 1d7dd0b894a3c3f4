// A model as GGUF files from llama.cpp's converters: a decoder and, if it sees pictures, its image encoder (mmproj), from URLs or from files chosen in the
// page. They are described as a manifest would describe them, with chunks that are ranges of the files, so that all later stages are the same: nothing is
// converted or kept, and no file is ever in memory as a whole. Runs in the store worker.

import { checkStandIn, checkStatus, fetchBytes, StoreError, whyForbidden } from "./fetching.js";

const CHUNK_BYTES = 24 << 20;
const FIRST_BYTES = 1 << 20;

/**
 * The manifest that the files would have. A chunk's `source` is a File, a URL or its bytes: `readChunk` reads it.
 * @param {(string|File)[]} sources  in any order; for a split file one URL, or all of its files
 * @param {object} wasm  the bindings
 */
export async function describePair(sources, wasm) {
  const parts = sources.flatMap((source) => (typeof source === "string" ? addressesOfParts(source, wasm) : [source]));
  const opened = await Promise.all(parts.map((source) => open(source, wasm)));
  const all = (field) => opened.map((part) => part[field]);
  const { name, files } = wasm.describePair(all("name"), all("first"), Float64Array.from(all("size")));
  const described = files.map(({ name, size, header_size, header, ranges }) => {
    const chunks = ranges.flatMap(([idx, start, end]) => chunksOf(opened[idx], start, end));
    if (header.length > 0) chunks.unshift({ path: name, offset: 0, size: header.length, source: header });
    return { name, size, header_size, chunks };
  });
  return { name, description: "", license: "", notices: [], suggested_questions: [], samples: [], fidelity: null, files: described };
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

/** A file with its first bytes, which include its whole header. */
async function open(source, wasm) {
  const isAddress = typeof source === "string";
  const name = isAddress ? decodeURIComponent(new URL(source).pathname.split("/").at(-1)) : source.name;
  const size = isAddress ? await sizeAt(source, name) : source.size;
  const read = (start, end) => (isAddress ? fetchBytes(source, { name, size: end - start, range: start, cache: "no-store" }) : sliceOf(source, start, end));
  for (let first = await read(0, Math.min(FIRST_BYTES, size)); ; ) {
    checkStandIn(first, name);
    if (hasHeader(name, first, size, wasm)) return { source, name, size, first };
    const more = new Uint8Array(Math.min(2 * first.length, size));
    more.set(first);
    more.set(await read(first.length, more.length), first.length);
    first = more;
  }
}

function hasHeader(name, first, size, wasm) {
  try {
    return wasm.hasHeader(name, first, size);
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
    throw new StoreError("pair", `${file.name} can no longer be read: it was moved or changed. Choose it again.`, String(error));
  }
}

/** All parts of a split file, given the URL of one. */
function addressesOfParts(address, wasm) {
  const url = new URL(address);
  const [, folder, name] = /^(.*\/)(.*)$/.exec(url.pathname);
  return (wasm.partNames(name) ?? [name]).map((part) => {
    url.pathname = folder + part;
    return url.href;
  });
}

/** Chunks for a range of a file; the first bytes are already present. */
function chunksOf({ source, name, first }, start, end) {
  const chunks = [];
  if (start < first.length) chunks.push({ path: name, offset: start, size: first.length - start, source: first.subarray(start) });
  for (let offset = Math.max(start, first.length); offset < end; offset += CHUNK_BYTES) {
    chunks.push({ path: name, offset, size: Math.min(CHUNK_BYTES, end - offset), source });
  }
  return chunks;
}
