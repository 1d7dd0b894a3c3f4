// What this browser keeps of this site, and how to delete it. The model and the conversations are in the browser's own file system (OPFS), the page is in
// caches that belong to its service worker.

import { Folder } from "../llama3med/index.js";

const CACHES = "llama3med-"; // the prefix of their names: see sw.js

const files = () => ({ n: 0, bytes: 0 });
const count = (found, bytes) => ((found.n += 1), (found.bytes += bytes));

/** Counts the files in a folder of OPFS. */
async function countFolder(directory, found) {
  for await (const entry of directory.values()) {
    if (entry.kind === "directory") await countFolder(entry, found);
    else count(found, (await entry.getFile()).size);
  }
}

const cacheNames = async () => (globalThis.caches ? (await caches.keys()).filter((name) => name.startsWith(CACHES)) : []);

/**
 * What is kept here: of all models, of the page itself, of conversations, each as `{ n, bytes }` files.
 * @returns {Promise<{ models: object, page: object, conversations: object }>}
 */
export async function whatIsKept() {
  const kept = { models: files(), page: files(), conversations: files() };
  const root = await navigator.storage?.getDirectory?.().catch(() => null);
  if (root) {
    for await (const directory of root.values()) {
      if (directory.kind === "directory") await countFolder(directory, kept[/conversations/.test(directory.name) ? "conversations" : "models"]);
    }
  }
  for (const name of await cacheNames()) {
    const cache = await caches.open(name);
    for (const request of await cache.keys()) count(kept.page, (await (await cache.match(request)).blob()).size);
  }
  return kept;
}

/** Deletes a model: its files, and what the service worker keeps of its folder. */
export async function deleteModel(manifestUrl) {
  await Folder.forget(manifestUrl);
  const folder = new URL("./", manifestUrl).href;
  for (const name of await cacheNames()) {
    const cache = await caches.open(name);
    for (const request of await cache.keys()) if (request.url.startsWith(folder)) await cache.delete(request);
  }
}

/** Deletes all models and the page itself with its service worker; conversations stay. */
export async function deletePage(service) {
  await service.forget();
  for (const name of await cacheNames()) await caches.delete(name);
  await Folder.forgetAll();
}
