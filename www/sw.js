// Keeps the site's own files, so that the page opens with the network cut; model files are kept by the client (store.js), not here.
// scripts/site.mjs fills in the two constants when it assembles the site; the version is a hash over all files, so a changed
// site is a new worker with a new cache, and an open page never mixes two versions.

const VERSION = "development";
const FILES = [];

const CACHE = `llama3med-${VERSION}`;
const EXTRAS = "llama3med-extras";

// The wasm builds are large and only one is used: they are kept when they are first fetched, or asked for by the page that uses one.
self.addEventListener("install", (event) => {
  event.waitUntil(keep(FILES.filter((path) => !path.endsWith(".wasm"))));
});

async function keep(paths) {
  const cache = await caches.open(CACHE);
  await cache.addAll(paths.map((path) => new Request(path, { cache: "no-cache" })));
}

self.addEventListener("activate", (event) => {
  event.waitUntil((async () => {
    for (const name of await caches.keys()) {
      if (name.startsWith("llama3med-") && name !== CACHE && name !== EXTRAS) await caches.delete(name);
    }
    await self.clients.claim();
  })());
});

// { type: "take over" }: the person asked for the new version. { type: "keep", build, port }: this build is in use; the port hears when it is kept.
self.addEventListener("message", (event) => {
  const { type, build, port } = event.data ?? {};
  if (type === "take over") self.skipWaiting();
  if (type === "keep") event.waitUntil(keepBuild(build).finally(() => port?.postMessage("done")));
});

async function keepBuild(build) {
  const path = `pkg/llama3med_${build}_bg.wasm`;
  const cache = await caches.open(CACHE);
  if (FILES.includes(path) && !(await cache.match(path))) await keep([path]);
}

// Tells the pages of this site about a request that a worker made; pages see their own.
async function reportWorkerRequest(event) {
  const client = await self.clients.get(event.clientId);
  if (!client || client.type === "window") return;
  for (const page of await self.clients.matchAll({ type: "window" })) page.postMessage({ type: "request", url: event.request.url });
}

// The site's own files come from the cache of this version.
async function ownFile(request, path) {
  const cache = await caches.open(CACHE);
  const kept = await cache.match(path);
  if (kept) return kept;
  const response = await fetch(request);
  if (response.ok) await cache.put(path, response.clone());
  return response;
}

// Manifests and sample pictures come from the network, or as they were last seen.
async function extra(request) {
  const cache = await caches.open(EXTRAS);
  try {
    const response = await fetch(request);
    if (response.ok) await cache.put(request.url, response.clone());
    return response;
  } catch (error) {
    const kept = await cache.match(request.url);
    if (kept) return kept;
    throw error;
  }
}

self.addEventListener("fetch", (event) => {
  const { request } = event;
  event.waitUntil(reportWorkerRequest(event));
  const url = new URL(request.url);
  const scope = new URL(self.registration.scope);
  if (request.method !== "GET" || url.origin !== scope.origin || !url.pathname.startsWith(scope.pathname)) return;
  const path = url.pathname.slice(scope.pathname.length) || "index.html";
  if (FILES.includes(path)) event.respondWith(ownFile(request, path));
  else if (/\.(json|png|jpe?g)$/.test(path) && !request.headers.has("range")) event.respondWith(extra(request));
});
