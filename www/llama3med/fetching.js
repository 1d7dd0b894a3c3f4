// Fetching with retries: after a temporary fault a request is retried from where it broke off, after a loss of the network it waits, and every other error is
// reported at once. Runs in the store worker; `whyForbidden` also on the page's main thread.

const RETRY_AFTER_MS = [500, 3000];
const STALLED_MS = 60_000;
const POLL_MS = 5_000; // while offline; the browser does not always notice when the network is back

/** An error with a kind for programs, a sentence for users and a detail for engineers. */
export class StoreError extends Error {
  constructor(kind, message, detail = "") {
    super(message);
    Object.assign(this, { kind, detail });
  }
}

let hasReached = false; // some host has answered, so the network worked
const forbidden = new Set(); // origins that the page's policy has blocked
globalThis.addEventListener?.("securitypolicyviolation", ({ effectiveDirective, blockedURI }) => {
  if (effectiveDirective === "connect-src" && URL.canParse(blockedURI)) forbidden.add(new URL(blockedURI).origin);
});

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** Whether a request without a response is worth waiting for: the network worked before, or the browser knows that it is offline. */
export function isNetworkLost() {
  return hasReached || navigator.onLine === false;
}

/** Resolves when the network may be back. */
export function networkBack() {
  return new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      removeEventListener("online", done);
      resolve();
    };
    const timer = setTimeout(done, POLL_MS);
    addEventListener("online", done);
  });
}

/**
 * Fetches `size` bytes of `url`.
 * @param {string} url
 * @param {{ name: string, size: number, range?: number, cache?: RequestCache, onBytes?: (n: number) => void, onWaiting?: (waits: boolean) => void }} options
 *   `name` is used in errors; `range` is the first byte, if only part of the file is wanted; `onBytes` is called with the number of bytes as they arrive, and
 *   with a negative number when they are discarded; `onWaiting` is called when waiting for the network starts and ends.
 * @returns {Promise<Uint8Array>}
 */
export async function fetchBytes(url, options) {
  const got = { bytes: allocate(options.size, options.name), n: 0, waits: false };
  const wait = (waits) => got.waits !== waits && ((got.waits = waits), options.onWaiting?.(waits));
  try {
    for (let attempt = 0; ; attempt++) {
      const n_before = got.n;
      try {
        await fetchRest(url, options, got, () => wait(false));
        return got.bytes;
      } catch (error) {
        if (!error.passing) throw error;
        if (got.n > n_before) attempt = 0; // there is progress, even if slow
        if (attempt < RETRY_AFTER_MS.length) await pause(RETRY_AFTER_MS[attempt]);
        else if (error.kind === "network" && isNetworkLost()) {
          wait(true);
          await networkBack();
          attempt = -1;
        } else throw error;
      }
    }
  } catch (error) {
    options.onBytes?.(-got.n);
    throw error;
  } finally {
    wait(false);
  }
}

/** Fetches what is missing in `got`, with one request. */
async function fetchRest(url, { name, size, range, cache = "default", onBytes }, got, onAnswer) {
  const broken = new AbortController();
  const breakOff = () => broken.abort();
  let timer = 0;
  const alive = () => {
    clearTimeout(timer);
    timer = setTimeout(breakOff, STALLED_MS);
  };
  alive();
  globalThis.addEventListener?.("offline", breakOff); // the running request would hang until it counts as stalled
  try {
    const first = (range ?? 0) + got.n;
    const isPart = range !== undefined || got.n > 0;
    const headers = isPart ? { Range: `bytes=${first}-${(range ?? 0) + size - 1}` } : {};
    const response = await fetch(url, { headers, cache, signal: broken.signal }).catch(async (error) => {
      throw (await whyForbidden(url)) ?? error;
    });
    onAnswer();
    checkStatus(response, name, range);
    if (got.n > 0 && response.status === 200) forget(got, onBytes); // the whole file again
    await readBody(response, { name, size, onBytes }, got, alive);
  } catch (error) {
    if (error instanceof StoreError) throw error;
    const why = broken.signal.aborted ? `the browser is offline, or nothing arrived for ${STALLED_MS / 1000} s` : String(error);
    throw passing(new StoreError("network",
      `The network connection was lost while ${name} was fetched. Check it and load the model again: what has arrived is kept if the browser allows it.`, why));
  } finally {
    clearTimeout(timer);
    globalThis.removeEventListener?.("offline", breakOff);
  }
}

function forget(got, onBytes) {
  onBytes?.(-got.n);
  got.n = 0;
}

/** Why a request had no response, if not because of the network: the page's policy, or a host that other sites may not read from. */
export async function whyForbidden(url) {
  const { origin } = new URL(url);
  if (origin === globalThis.origin) return null;
  // Without CORS the response arrives, but may not be read.
  const answers = await fetch(url, { method: "HEAD", mode: "no-cors", cache: "no-store" }).then(() => true, () => false);
  await pause(50); // a violation's event comes after the error
  if (forbidden.has(origin)) {
    return new StoreError("policy",
      `The site was built for models on its own host. \`make site MODEL_HOST=${origin}\` builds it for models on that host too; or copy the model's files beside the page.`,
      `the page's Content-Security-Policy (connect-src) forbids ${url}, or a URL to which it redirects`);
  }
  return answers ? new StoreError("cors", `${origin} must send Access-Control-Allow-Origin with the model's files. Tell its owner, or copy the files beside the page.`, url) : null;
}

/** Marks an error as temporary: a retry may succeed. */
function passing(error) {
  return Object.assign(error, { passing: true });
}

/** Throws if the server's response is not the file; `range` is the first requested byte, if a part was requested. */
export function checkStatus(response, name, range) {
  const { status } = response;
  hasReached = true;
  if (range !== undefined && status === 200) {
    if (response.headers.get("Content-Type")?.startsWith("text/html")) throw webPage(name);
    throw new StoreError("ranges", `The server sent the whole file instead of the part that contains ${name}.`,
      "HTTP 200 for a request with a Range header: this manifest needs a host that serves byte ranges");
  }
  if (response.ok) return;
  const detail = `HTTP ${status} ${response.statusText} for ${response.url}`;
  if (status >= 500 || status === 429 || status === 408) {
    throw passing(new StoreError("unavailable", `The server could not deliver ${name} (HTTP ${status}).`, detail));
  }
  if (status === 401 || status === 403) throw new StoreError("forbidden", `The server refuses access to ${name} (HTTP ${status}).`, detail);
  throw new StoreError("http", `${name} was not found on the server (HTTP ${status}).`, detail);
}

const webPage = (name, detail = "") => new StoreError("web-page", `A web page came instead of ${name}.`, detail);

/** Throws if the first bytes show that a placeholder arrived instead of a model file. */
export function checkStandIn(first, name) {
  const text = new TextDecoder().decode(first.subarray(0, 200)).trimStart();
  if (text.startsWith("version https://git-lfs")) throw new StoreError("pointer", `${name} is a Git LFS pointer: a placeholder for the file.`, text);
  if (/^<(!doctype html|html|head|body)/i.test(text)) throw webPage(name, text);
}

async function readBody(response, { name, size, onBytes }, got, alive) {
  const reader = response.body.getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    alive();
    if (got.n + value.length > size) {
      reader.cancel().catch(() => {});
      checkStandIn(got.n > 0 ? got.bytes : value, name);
      throw new StoreError("hash", `${name} is longer on the server than the manifest says.`, `expected ${size} bytes`);
    }
    got.bytes.set(value, got.n);
    got.n += value.length;
    onBytes?.(value.length);
  }
  if (got.n === size) return;
  const found = got.n;
  forget(got, onBytes);
  checkStandIn(got.bytes.subarray(0, found), name);
  throw passing(new StoreError("cut", `${name} is cut short on the server: ${found} of ${size} bytes arrived.`, response.url));
}

function allocate(size, name) {
  try {
    return new Uint8Array(size);
  } catch {
    throw new StoreError("out-of-memory", "The memory of this browser is not enough to load the model.", `${size} bytes for ${name}`);
  }
}
