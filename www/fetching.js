// Fetching with second thoughts: what a passing fault of the network may have spoilt is tried again, everything else is named at once.
// Runs in the store worker.

const RETRY_AFTER_MS = [500, 3000];
const STALLED_MS = 60_000;

/** An error with a kind for programs, a sentence for people and a detail for engineers. */
export class StoreError extends Error {
  constructor(kind, message, detail = "") {
    super(message);
    Object.assign(this, { kind, detail });
  }
}

/**
 * Fetches `size` bytes of `url`.
 * @param {string} url
 * @param {{ name: string, size: number, range?: number, cache?: RequestCache, onBytes?: (n: number) => void }} options
 *   `name` stands in errors; `range` is the first byte where only a part of the file is wanted; `onBytes` hears of bytes as they arrive, and of a
 *   negative number when they are thrown away again.
 * @returns {Promise<Uint8Array>}
 */
export async function fetchBytes(url, options) {
  for (let attempt = 0; ; attempt++) {
    const counted = { n: 0 };
    try {
      return await fetchOnce(url, options, counted);
    } catch (error) {
      options.onBytes?.(-counted.n);
      if (!error.passing || attempt === RETRY_AFTER_MS.length) throw error;
      await new Promise((resolve) => setTimeout(resolve, RETRY_AFTER_MS[attempt]));
    }
  }
}

async function fetchOnce(url, { name, size, range, cache = "default", onBytes }, counted) {
  const stalled = new AbortController();
  let timer = 0;
  const alive = () => {
    clearTimeout(timer);
    timer = setTimeout(() => stalled.abort(), STALLED_MS);
  };
  alive();
  try {
    const headers = range === undefined ? {} : { Range: `bytes=${range}-${range + size - 1}` };
    const response = await fetch(url, { headers, cache, signal: stalled.signal });
    checkStatus(response, name, range);
    return await readBody(response, name, size, (n) => {
      alive();
      counted.n += n;
      onBytes?.(n);
    });
  } catch (error) {
    if (error instanceof StoreError) throw error;
    const why = stalled.signal.aborted ? `nothing arrived for ${STALLED_MS / 1000} s` : String(error);
    throw passing(new StoreError("network",
      `The network connection was lost while ${name} was fetched. Check it and load the model again: what has arrived is kept where the browser allows it.`, why));
  } finally {
    clearTimeout(timer);
  }
}

/** Marks an error as one that may have gone when the same is tried again. */
function passing(error) {
  return Object.assign(error, { passing: true });
}

/** Names an answer of the server that is not the file. */
export function checkStatus(response, name, range) {
  const { status } = response;
  if (range !== undefined && status === 200) {
    throw new StoreError("http", `The server sent the whole file instead of the part that holds ${name}.`,
      "HTTP 200 for a request with a Range header: this manifest needs a host that serves byte ranges");
  }
  if (response.ok) return;
  const detail = `HTTP ${status} ${response.statusText} for ${response.url}`;
  if (status >= 500 || status === 429 || status === 408) {
    throw passing(new StoreError("http", `The server could not deliver ${name} (HTTP ${status}). Try again later.`, detail));
  }
  throw new StoreError("http", `${name} is not at its place on the server (HTTP ${status}).`, detail);
}

async function readBody(response, name, size, onBytes) {
  const bytes = allocate(size, name);
  const reader = response.body.getReader();
  let n_read = 0;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    if (n_read + value.length > size) {
      reader.cancel().catch(() => {});
      throw new StoreError("hash", `${name} is longer on the server than the manifest says.`, `expected ${size} bytes`);
    }
    bytes.set(value, n_read);
    n_read += value.length;
    onBytes(value.length);
  }
  if (n_read === size) return bytes;
  throw passing(new StoreError("hash", `${name} is shorter on the server than the manifest says.`, `expected ${size} bytes, found ${n_read}`));
}

function allocate(size, name) {
  try {
    return new Uint8Array(size);
  } catch {
    throw new StoreError("out-of-memory", "The memory of this browser is not enough to load the model.", `${size} bytes for ${name}`);
  }
}
