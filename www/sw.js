// Keeps the site's own files, so that the page opens with the network cut; model files are kept by the client (store.js), not here.
// scripts/site.mjs fills in the two constants when it assembles the site: the files with their sizes and hashes, and a hash over all of them. A changed
// site is a new worker with a new cache, an open page never mixes two versions, and what a host sends in a file's place is neither kept nor handed on.
//
// Messages from a page (service.js)                          answered over its port by
//   { type: "claim", version, port }                         whether the page is of this version: if so, it is in this worker's charge from now on
//   { type: "keep", build, port }                            whether this wasm build is kept
//   { type: "take over" }                                    nothing: the person asked for the new version

const VERSION = "development";
const FILES = {}; // path: [bytes, sha256]

const CACHE = `llama3med-${VERSION}`;
const EXTRAS = "llama3med-checked-extras";

// What a browser refuses to use under any other type.
const TYPES = { html: /^text\/html/, js: /^(text|application)\/(x-)?javascript/, css: /^text\/css/ };

// The wasm builds are large and only one is used: they are kept when they are first fetched, or asked for by the page that uses one.
self.addEventListener("install", (event) => {
  event.waitUntil(keepPage().catch(async (error) => {
    await caches.delete(CACHE);
    throw error;
  }));
});

/** Keeps everything but the builds, if all of it is right. */
async function keepPage() {
  const paths = Object.keys(FILES).filter((path) => !path.endsWith(".wasm"));
  const responses = await Promise.all(paths.map(fetchOwn));
  const cache = await caches.open(CACHE);
  await Promise.all(paths.map((path, idx) => cache.put(path, responses[idx])));
}

self.addEventListener("activate", (event) => {
  event.waitUntil((async () => {
    for (const name of await caches.keys()) {
      if (name.startsWith("llama3med-") && name !== CACHE && name !== EXTRAS) await caches.delete(name);
    }
  })());
});

self.addEventListener("message", (event) => {
  const { type, version, build, port } = event.data ?? {};
  const answer = (promise) => event.waitUntil(promise.then((value) => value, () => false).then((value) => port.postMessage(value)));
  if (type === "take over") self.skipWaiting();
  if (type === "claim") answer(version === VERSION ? self.clients.claim().then(() => true) : Promise.resolve(false));
  if (type === "keep") answer(keepBuild(`pkg/llama3med_${build}_bg.wasm`));
});

async function keepBuild(path) {
  const cache = await caches.open(CACHE);
  if (path in FILES && !(await cache.match(path))) await (await fetchAndKeep(path)).kept;
  return Boolean(await cache.match(path));
}

/** A file of this version from the network: fetched once more, past every cache on the way, if it is not what it should be. */
async function fetchOwn(path) {
  let problem;
  for (const cache of ["no-cache", "reload"]) {
    const response = await fetch(new Request(path, { cache }));
    const bytes = await response.arrayBuffer();
    problem = await problemOf(path, response, bytes);
    // A copy: what was redirected on the way could not answer the request for a page.
    if (!problem) return new Response(bytes, { headers: response.headers });
  }
  throw Object.assign(new Error(`${path} is not the file of this version of the site: ${problem}`), { isWrong: true });
}

/** What is wrong with a file that a host has sent or that was kept; nothing if it is as it was built. */
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

const coming = new Map(); // what is being fetched, by path

/** Fetches a file, once for all who ask meanwhile; `kept` resolves when it is kept, or when there is no room for it. */
async function fetchAndKeep(path) {
  if (!coming.has(path)) coming.set(path, fetchOwn(path).finally(() => coming.delete(path)));
  const response = await coming.get(path);
  const copy = response.clone();
  const kept = caches.open(CACHE).then((cache) => cache.put(path, copy)).catch(() => {});
  return { response: response.clone(), kept };
}

/** One of the site's own files: as it is kept, or from the network. With `cache: "reload"` what is kept is checked, and fetched again if it is wrong. */
async function ownFile(event, path) {
  const { request } = event;
  const cache = await caches.open(CACHE).catch(() => null);
  const kept = await cache?.match(path);
  if (kept && (request.cache !== "reload" || !(await problemOf(path, kept, await kept.clone().arrayBuffer())))) return kept;
  if (kept) await cache.delete(path);
  // The browser has lost what was kept: the page comes from the host, whatever its version is by now; it is kept again if it is still this one.
  if (!(await cache?.match("index.html"))) {
    if (request.mode === "navigate") event.waitUntil(keepPage().catch(() => {}));
    return fetch(request);
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
    const response = await fetch(request);
    if (response.ok) event.waitUntil(keepExtra(request.url, response.clone()).catch(() => {}));
    return response;
  } catch (error) {
    const kept = await caches.open(EXTRAS).then((cache) => cache.match(request.url)).catch(() => null);
    if (kept) return kept;
    throw error;
  }
}

/** Keeps what is a manifest or a picture: hosts answer with web pages in their place, too. */
async function keepExtra(url, response) {
  if (/\.json$/.test(new URL(url).pathname)) JSON.parse(await response.clone().text());
  else if (!/^image\//.test(response.headers.get("Content-Type") ?? "")) return;
  await (await caches.open(EXTRAS)).put(url, response);
}

// Tells the pages of this site about a request that a worker made; pages see their own.
async function reportWorkerRequest(event) {
  const client = await self.clients.get(event.clientId);
  if (!client || client.type === "window") return;
  for (const page of await self.clients.matchAll({ type: "window" })) page.postMessage({ type: "request", url: event.request.url });
}

self.addEventListener("fetch", (event) => {
  const { request } = event;
  event.waitUntil(reportWorkerRequest(event));
  const url = new URL(request.url);
  const scope = new URL(self.registration.scope);
  if (request.method !== "GET" || url.origin !== scope.origin || !url.pathname.startsWith(scope.pathname)) return;
  const path = url.pathname.slice(scope.pathname.length) || "index.html";
  if (Object.hasOwn(FILES, path)) event.respondWith(ownFile(event, path));
  else if (/\.(json|png|jpe?g)$/.test(path) && !request.headers.has("range")) event.respondWith(extra(event));
});
