// Keeps the site's own files, so that the page opens without a network; model files are kept by the client (llama3med/store.js), not here. scripts/site.mjs
// fills in the two constants when it builds the site: the files with their sizes and hashes, and a hash over all of them. A changed site is a new worker with a
// new cache, an open page never mixes two versions, and a wrong response in place of a file is neither kept nor passed on.
//
// Messages from a page (service.js)                          answered over its port by
//   { type: "claim", version, port }                         whether the page has this version: if so, this worker controls it from now on
//   { type: "keep", build, port }                            whether this wasm build is kept
//   { type: "lock", port }                                   true: from now on nothing goes to the network as long as that page exists
//   { type: "forget", port }                                 true: from now on nothing is kept
//   { type: "release" }                                      nothing: held requests (see `hold`) are answered
//   { type: "take over" }                                    nothing: the user asked for the new version
// Every page of this site receives { type: "request", url, time } for each request that goes to the network, with a time at which it was in progress.

const VERSION = "development";
const FILES = {}; // path: [bytes, sha256]

const CACHE = `llama3med-${VERSION}`;
const EXTRAS = "llama3med-checked-extras";
const LOCKS = "llama3med-locks";

// Browsers refuse to use these under any other type.
const TYPES = { html: /^text\/html/, js: /^(text|application)\/(x-)?javascript/, css: /^text\/css/ };

// The wasm builds are large and only one is used: a build is kept when it is first fetched, or when the page that uses it asks for it.
self.addEventListener("install", (event) => {
  event.waitUntil(keepPage().catch(async (error) => {
    await caches.delete(CACHE);
    throw error;
  }));
});

/** Keeps everything but the builds, if all of it is correct. */
async function keepPage() {
  const paths = Object.keys(FILES).filter((path) => !path.endsWith(".wasm"));
  const responses = await Promise.all(paths.map(fetchOwn));
  const cache = await caches.open(CACHE);
  await Promise.all(paths.map((path, idx) => cache.put(path, responses[idx])));
}

self.addEventListener("activate", (event) => {
  event.waitUntil((async () => {
    for (const name of await caches.keys()) {
      if (name.startsWith("llama3med-") && ![CACHE, EXTRAS, LOCKS].includes(name)) await caches.delete(name);
    }
  })());
});

self.addEventListener("message", (event) => {
  const { type, version, build, port } = event.data ?? {};
  const answer = (promise) => event.waitUntil(promise.then((value) => value, () => false).then((value) => port.postMessage(value)));
  if (type === "take over") self.skipWaiting();
  if (type === "claim") answer(version === VERSION ? self.clients.claim().then(() => true) : Promise.resolve(false));
  if (type === "keep") answer(keepBuild(`llama3med/pkg/llama3med_${build}_bg.wasm`));
  if (type === "lock") answer(lock(event.source.id));
  if (type === "forget") {
    isForgotten = true;
    release(); // a busy worker cannot be replaced
    answer(Promise.resolve(true));
  }
  if (type === "release") release();
});

// ---- the lock: pages that have locked the network, by client id; stored where they survive this worker, which the browser may end at any time

const idOf = (url) => new URL(url).searchParams.get("lock");
let isAnyLocked = null; // null: not known yet
const locksKnown = (async () => {
  const ids = (await caches.has(LOCKS)) ? (await (await caches.open(LOCKS)).keys()).map(({ url }) => idOf(url)) : [];
  isAnyLocked ??= ids.length > 0;
})().catch(() => (isAnyLocked ??= false));

async function lock(id) {
  isAnyLocked = true;
  await (await caches.open(LOCKS)).put(`?lock=${id}`, new Response());
  return true;
}

/** Whether a page that has locked the network still exists. */
async function isLocked() {
  await locksKnown;
  if (!isAnyLocked) return false;
  const locks = await caches.open(LOCKS);
  const pages = await Promise.all((await locks.keys()).map(async (request) => (await self.clients.get(idOf(request.url))) || (await locks.delete(request), null)));
  isAnyLocked = pages.some(Boolean);
  return isAnyLocked;
}

/** From the network, unless it is locked. */
async function fetchUnlocked(request) {
  if (await isLocked()) throw new TypeError("the network is locked");
  return fetch(request);
}

let isForgotten = false; // the user wants nothing kept; the next page to open gets another worker

async function keepBuild(path) {
  if (isForgotten) return false;
  const cache = await caches.open(CACHE);
  if (path in FILES && !(await cache.match(path))) await (await fetchAndKeep(path)).kept;
  return Boolean(await cache.match(path));
}

/** A file of this version from the network: fetched once more, bypassing every cache on the way, if it is wrong. */
async function fetchOwn(path) {
  let problem;
  for (const cache of ["no-cache", "reload"]) {
    const response = await fetchUnlocked(new Request(path, { cache }));
    const bytes = await response.arrayBuffer();
    problem = await problemOf(path, response, bytes);
    // A copy: a redirected response cannot answer a navigation request.
    if (!problem) return new Response(bytes, { headers: response.headers });
  }
  throw Object.assign(new Error(`${path} is not the file of this version of the site: ${problem}`), { isWrong: true });
}

/** What is wrong with a file that a host has sent or that was kept; empty if it is as it was built. */
async function problemOf(path, response, bytes) {
  const [size, sha256] = FILES[path];
  const type = response.headers.get("Content-Type") ?? "";
  const expected = TYPES[path.split(".").at(-1)];
  if (!response.ok) return `HTTP ${response.status}`;
  if (expected && !expected.test(type)) return `its type is ${type || "not given"}`;
  if (bytes.byteLength !== size) return `it has ${bytes.byteLength} bytes instead of ${size}${type.startsWith("text/html") ? " and is a web page" : ""}`;
  const digest = Array.from(new Uint8Array(await crypto.subtle.digest("SHA-256", bytes)), (byte) => byte.toString(16).padStart(2, "0")).join("");
  return digest === sha256 ? null : `its sha256 is ${digest}`;
}

const coming = new Map(); // running fetches, by path

/** Fetches a file, once for all concurrent requests; `kept` resolves when it is kept, or when there is no room for it. */
async function fetchAndKeep(path) {
  if (!coming.has(path)) coming.set(path, fetchOwn(path).finally(() => coming.delete(path)));
  const response = await coming.get(path);
  const copy = response.clone();
  const kept = isForgotten ? null : caches.open(CACHE).then((cache) => cache.put(path, copy)).catch(() => {});
  return { response: response.clone(), kept };
}

/** One of the site's own files: the kept copy, or from the network. With `cache: "reload"` the kept copy is checked, and fetched again if it is wrong. */
async function ownFile(event, path) {
  const { request } = event;
  const cache = await caches.open(CACHE).catch(() => null);
  const kept = await cache?.match(path);
  if (kept && (request.cache !== "reload" || !(await problemOf(path, kept, await kept.clone().arrayBuffer())))) return kept;
  if (kept) await cache.delete(path);
  // The browser has lost what was kept: the page comes from the host, whatever its version is by now; it is kept again if it still has this version.
  if (!(await cache?.match("index.html"))) {
    if (request.mode !== "navigate") return fetchUnlocked(request);
    if (!isForgotten) event.waitUntil(keepPage().catch(() => {}));
    return fetch(request); // navigating to a page unlocks it
  }
  try {
    const { response, kept } = await fetchAndKeep(path);
    event.waitUntil(kept);
    return response;
  } catch (error) {
    if (!error.isWrong) throw error;
    return new Response(error.message, { status: 502, statusText: "Not the file of this version", headers: { "Content-Type": "text/plain" } });
  }
}

/** Manifests and sample pictures come from the network, or as they were last seen. */
async function extra(event) {
  const { request } = event;
  try {
    const response = await fetchUnlocked(request);
    if (response.ok) event.waitUntil(keepExtra(request.url, response.clone()).catch(() => {}));
    return response;
  } catch (error) {
    const kept = await caches.open(EXTRAS).then((cache) => cache.match(request.url)).catch(() => null);
    if (kept) return kept;
    throw error;
  }
}

/** Keeps a response that is a manifest or a picture: hosts may send web pages instead. */
async function keepExtra(url, response) {
  if (isForgotten) return;
  if (/\.json$/.test(new URL(url).pathname)) JSON.parse(await response.clone().text());
  else if (!/^image\//.test(response.headers.get("Content-Type") ?? "")) return;
  await (await caches.open(EXTRAS)).put(url, response);
}

// ---- messages to the pages

async function tell(url, time) {
  const { scope } = self.registration;
  const pages = await self.clients.matchAll({ type: "window", includeUncontrolled: true });
  pages.filter((page) => page.url.startsWith(scope)).forEach((page) => page.postMessage({ type: "request", url, time }));
}

const isFromNetwork = ({ transferSize, decodedBodySize }) => transferSize > 0 || decodedBodySize === 0; // as in requests.js

// What this worker fetches, for itself or for others.
new PerformanceObserver((list) => list.getEntries().filter(isFromNetwork).forEach(({ name, responseEnd }) => tell(name, performance.timeOrigin + responseEnd)))
  .observe({ type: "resource" });

// ---- held requests: a page has some pending for as long as it lives (service.js explains why)

const HOLD_MS = 240_000; // Chromium ends a worker whose request takes five minutes
const RELEASED = 204; // the request is not repeated; after any other answer it is
const held = [];

function hold() {
  return new Promise((resolve) => {
    held.push(resolve);
    setTimeout(resolve, HOLD_MS, new Response(null, { status: 205 }));
  });
}

const release = () => held.splice(0).forEach((answer) => answer(new Response(null, { status: RELEASED })));

self.addEventListener("fetch", (event) => {
  const { request } = event;
  const url = new URL(request.url);
  const scope = new URL(self.registration.scope);
  const path = request.method === "GET" && url.origin === scope.origin && url.pathname.startsWith(scope.pathname) ? url.pathname.slice(scope.pathname.length) || "index.html" : null;
  if (request.headers.has("X-Hold")) event.respondWith(hold());
  else if (path !== null && Object.hasOwn(FILES, path)) event.respondWith(ownFile(event, path));
  else if (path !== null && /\.(json|png|jpe?g)$/.test(path) && !request.headers.has("range")) event.respondWith(extra(event));
  else if (isAnyLocked !== false && request.mode !== "navigate") event.respondWith(fetchUnlocked(request));
  else event.waitUntil(tell(request.url, Date.now())); // the browser handles it itself
});
