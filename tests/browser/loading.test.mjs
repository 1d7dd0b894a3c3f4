// How the model loads: kept and resumed, damaged and missing parts, other folders and origins, and pages that close too early.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { IMAGE, TARGET, corrupt, makeModel, newPage, startChromium, startSite } from "./support.mjs";

let browser;
before(async () => (browser = await startChromium()));
after(() => browser.close());

const chunks = () => makeModel().files.flatMap((file) => file.chunks.map((chunk) => `models/test/${chunk.path}`));

async function withSite(t, options) {
  const site = await startSite(options);
  t.after(() => site.stop());
  return site;
}

test("without a network, page and model open from what this browser keeps", async (t) => {
  const site = await withSite(t);
  const { page, seen, ...on } = await newPage(browser, t);
  await on.open(site);
  await on.ready();
  await on.show();
  const text = await on.answerTo("What is this?");
  await site.stop();
  await page.reload();
  await on.ready();
  await on.show();
  assert.equal(await on.answerTo("What is this?"), text);
});

test("an interrupted download resumes at the first missing chunk", async (t) => {
  const all = chunks();
  const broken = all[Math.floor(all.length / 2)];
  const site = await withSite(t);
  const { page, ...on } = await newPage(browser, t);
  site.fault = (path, request, response) => path === broken && (response.writeHead(404).end(), true);
  await on.open(site);
  await page.locator("#load-error").locator("strong", { hasText: "not at its place" }).waitFor();
  const first = new Set(site.paths());
  assert.ok(first.has(all[0]) && !first.has(all.at(-1)));
  site.fault = null;
  site.log.length = 0;
  await page.reload();
  await on.ready();
  const second = site.paths().filter((path) => all.includes(path));
  assert.ok(second.includes(broken) && second.includes(all.at(-1)));
  const again = second.filter((path) => all.indexOf(path) < all.indexOf(broken));
  assert.deepEqual(again, []);
});

test("a damaged chunk is fetched once more, then named", async (t) => {
  const all = chunks();
  const site = await withSite(t);
  let n_left = 1;
  site.fault = (path, request, response) => path === all[2] && n_left-- > 0 && corrupt(path, response);
  const { page, ...on } = await newPage(browser, t);
  await on.open(site);
  await on.ready();
  assert.equal(site.paths().filter((path) => path === all[2]).length, 2);

  site.fault = (path, request, response) => path === all[2] && corrupt(path, response);
  site.log.length = 0;
  const other = await newPage(browser, t);
  await other.open(site);
  const alert = other.page.locator("#load-error");
  await alert.locator("strong", { hasText: "arrived damaged, twice" }).waitFor();
  assert.match(await alert.locator("pre").textContent(), new RegExp(all[2].split("/").at(-1)));
  assert.equal(site.paths().filter((path) => path === all[2]).length, 2);

  site.fault = null;
  await alert.getByRole("button", { name: "Load the model again" }).click();
  await other.ready();
});

test("kept chunks were checked before: the store reads them again only on request, and repairs damage", async (t) => {
  const site = await withSite(t);
  const { page } = await newPage(browser, t);
  await page.goto(site.url);
  // Loads on two ranks and returns the answer's first words, or the kind of error.
  const loaded = (options) => page.evaluate(async (options) => {
    const { load } = await import("./llama3med/index.js");
    try {
      const model = await load("models/test/manifest.json", { ranks: 2, ...options });
      let text = "";
      for await (const piece of model.chat().ask("What is this?", { maxTokens: 8 })) text += piece;
      model.close();
      return { text };
    } catch ({ kind, message }) {
      return { kind, message };
    }
  }, options);
  // Damages a kept chunk of the decoder.
  const chunk = makeModel().files.find(({ name }) => name === "decoder.gguf").chunks.at(-2);
  const damage = (act) => page.evaluate(async ([name, act]) => {
    const [models] = await Array.fromAsync((await navigator.storage.getDirectory()).values());
    for await (const folder of models.values()) {
      const handle = await folder.getFileHandle(name).catch(() => null);
      if (!handle) continue;
      const bytes = new Uint8Array(await (await handle.getFile()).arrayBuffer());
      if (act === "flip") bytes[bytes.length >> 1] ^= 1;
      const writable = await handle.createWritable();
      await writable.write(act === "cut" ? bytes.subarray(0, bytes.length - 9) : bytes);
      await writable.close();
    }
  }, [chunk.sha256, act]);
  const fetched = () => site.paths().filter((path) => chunks().includes(path));
  const first = await loaded();
  assert.ok(first.text.length > 0, JSON.stringify(first));

  site.log.length = 0;
  assert.deepEqual(await loaded(), first);
  assert.deepEqual(fetched(), []);

  await damage("flip");
  assert.deepEqual(await loaded({ verify: true }), first);
  assert.deepEqual(fetched(), [`models/test/${chunk.path}`]);

  await damage("cut");
  site.log.length = 0;
  assert.equal((await loaded()).kind, "kept");
  assert.deepEqual(await loaded(), first);
  assert.deepEqual(fetched(), [`models/test/${chunk.path}`]);
});

test("a download that loses the network waits for it, resumes where it broke off, and can be stopped", async (t) => {
  const all = chunks();
  const site = await withSite(t);
  const { page, ...on } = await newPage(browser, t);
  let isDown = false;
  // The network fails in the middle of a part: half of it has arrived.
  site.fault = (path, request, response) => {
    if (!all.includes(path)) return false;
    if (isDown) return request.socket.destroy(), true;
    if (path !== all[3] || request.headers.range) return false;
    isDown = true;
    const bytes = readFileSync(join(TARGET, "test-model", path.replace("models/test/", "")));
    response.writeHead(200, { "Content-Type": "application/octet-stream", "Content-Length": bytes.length, "Accept-Ranges": "bytes" });
    response.write(bytes.subarray(0, bytes.length >> 1), () => setTimeout(() => request.socket.destroy(), 100));
    return true;
  };
  await on.open(site);
  await on.waitStatus(/^No network: loading waits for it and goes on by itself$/);
  const note = page.locator("#notes");
  await note.getByRole("button", { name: "Stop loading" }).click();
  const alert = page.locator("#load-error");
  await alert.locator("strong", { hasText: "Loading was stopped" }).waitFor();
  assert.equal(page.workers().length, 0);
  assert.equal(await note.textContent(), "");

  isDown = false;
  await alert.getByRole("button", { name: "Load the model again" }).click();
  await on.waitStatus(/^No network/);
  site.log.length = 0;
  isDown = false;
  await Promise.all(page.workers().map((worker) => worker.evaluate(() => dispatchEvent(new Event("online")))));
  await on.ready();
  assert.equal(await note.textContent(), "");
  const parts = site.log.filter(({ path, range }) => path === all[3] && range);
  assert.ok(parts.length > 0 && !/bytes=0-/.test(parts.at(-1).range), "what had arrived of the part is not fetched again");
  const again = site.paths().filter((path) => all.indexOf(path) >= 0 && all.indexOf(path) < 3);
  assert.deepEqual(again, []);
});

test("while the browser is offline, loading also waits for the manifest", async (t) => {
  const site = await withSite(t);
  const { page, ...on } = await newPage(browser, t);
  await on.open(site, "tokens=8");
  await on.ready();
  await page.addInitScript(() => {
    // Like an offline browser: the workers know.
    const Real = window.Blob;
    window.Blob = class extends Real {
      constructor(parts, options) {
        super(["Object.defineProperty(navigator, 'onLine', { value: false });", ...parts], options);
      }
    };
  });
  site.fault = (path, request) => path.startsWith("models/test/") && (request.socket.destroy(), true);
  await on.open(site);
  await on.waitStatus(/^No network/);
  site.fault = null;
  await on.ready();
});

const POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 100000\n";
const say = (status, type, body) => (request, response) => (response.writeHead(status, { "Content-Type": type }).end(body), true);

for (const [what, act, title, details] of [
  ["a Git LFS pointer", say(200, "application/octet-stream", POINTER), /is a Git LFS pointer, not the file itself/, /gguf\.002/],
  ["a web page", say(200, "text/html", "<!DOCTYPE html><html>Sign in</html>"), /A web page came instead/, /gguf\.002/],
  ["a long web page", say(200, "text/html", `<!DOCTYPE html><html>${" ".repeat(200_000)}</html>`), /A web page came instead/, /gguf\.002/],
  ["a part that is cut short", say(200, "application/octet-stream", Buffer.alloc(50_000)), /is cut short/, /50000 of 102400 bytes/],
  ["a server that is down", say(503, "text/plain", "later"), /cannot deliver the model at the moment/, /HTTP 503/],
  ["a login", say(403, "text/plain", "no"), /does not give the model to everybody/, /HTTP 403/],
]) {
  test(`${what} where a part should be is reported in the headline`, async (t) => {
    const [path] = chunks().filter((chunk) => chunk.endsWith(".gguf.002"));
    const site = await withSite(t, { fault: (found, request, response) => found === path && act(request, response) });
    const { page, ...on } = await newPage(browser, t);
    await on.open(site);
    const alert = page.locator("#load-error");
    await alert.locator("strong").waitFor();
    assert.match(await alert.locator("strong").textContent(), title);
    assert.match(await alert.locator("pre").textContent(), details);
    site.fault = null;
    await alert.getByRole("button", { name: "Load the model again" }).click();
    await on.ready();
  });
}

test("a missing model and a wrong manifest are named", async (t) => {
  const site = await withSite(t);
  const { page, ...on } = await newPage(browser, t);
  await on.open(site, "model=models/none/manifest.json");
  await page.locator("#load-error").locator("strong", { hasText: "not at its place" }).waitFor();
  site.fault = (path, request, response) => path === "models/test/manifest.json" && (response.writeHead(200).end('{"format":"other"}'), true);
  await on.open(site);
  const alert = page.locator("#load-error");
  await alert.locator("strong", { hasText: "do not fit together" }).waitFor();
  assert.match(await alert.locator("pre").textContent(), /manifest\.json/);
});

test("closing during a load leaves nothing broken", async (t) => {
  const site = await withSite(t);
  const { page, context, ...on } = await newPage(browser, t);
  site.fault = (path) => path.endsWith("decoder.gguf.006");
  await on.open(site);
  await on.waitStatus(/^Loading the model: .* of /);
  await page.close();
  site.fault = null;
  const next = await context.newPage();
  await next.goto(`${site.url}?model=models/test/manifest.json`);
  await next.waitForFunction(() => document.querySelector("[data-testid=status]").textContent.startsWith("Ready: open"));
});

test("the site works from any folder of a host, without requests outside it", async (t) => {
  const site = await withSite(t, { folder: "some/where/" });
  const { seen, ...on } = await newPage(browser, t);
  await on.open(site, "tokens=64");
  await on.ready();
  await on.show();
  assert.ok((await on.answerTo("What is this?")).length > 0);
  assert.deepEqual(site.paths().filter((path) => path.startsWith("outside")), []);
  assert.deepEqual(seen.errors, []);
});

test("on plain http the page works and keeps nothing", async (t) => {
  const site = await withSite(t);
  site.url = `http://hospital.test:${site.port}/`;
  const { page, info, ...on } = await newPage(browser, t);
  await on.open(site);
  await on.ready();
  assert.equal(await page.evaluate(() => isSecureContext), false);
  await on.show();
  assert.ok((await on.answerTo("What is this?")).length > 0);
  await page.locator("#copy").click();
  await page.getByText("Copied").waitFor();
  const all = chunks();
  site.log.length = 0;
  await page.reload();
  await on.ready();
  assert.match(await info.textContent(), /fetched/);
});

test("the cached model is deleted on request", async (t) => {
  const site = await withSite(t);
  const { page, info, ...on } = await newPage(browser, t);
  await on.open(site);
  await on.ready();
  await page.reload(); // the service worker has seen the manifest too
  await on.ready();
  // Everything that this browser keeps, wherever a page can keep something.
  const kept = () => page.evaluate(async () => {
    const found = { files: [], cached: [], registrations: (await navigator.serviceWorker.getRegistrations()).length, stored: localStorage.length + sessionStorage.length, databases: (await indexedDB.databases()).length };
    const look = async (folder, path) => {
      for await (const entry of folder.values()) entry.kind === "directory" ? await look(entry, `${path}${entry.name}/`) : found.files.push(path + entry.name);
    };
    await look(await navigator.storage.getDirectory(), "");
    for (const name of await caches.keys()) for (const { url } of await (await caches.open(name)).keys()) found.cached.push(new URL(url).pathname);
    return found;
  });
  const before = await kept();
  const n_chunks = chunks().length;
  assert.equal(before.files.length, n_chunks + 1);
  assert.ok(before.cached.includes("/models/test/manifest.json") && before.cached.includes("/page/page.js") && before.registrations === 1);
  await info.locator("summary").click();
  await page.locator("#kept-here", { hasText: `models, ${n_chunks + 1} files of` }).waitFor();
  assert.match(await page.locator("#kept-here").textContent(), new RegExp(`the page itself, ${before.cached.length} files of [\\d.]+ MB`));
  await page.getByRole("button", { name: "Delete the cached model" }).click();
  await page.getByText("Deleted.").waitFor();
  await page.locator("#kept-here", { hasText: /^Kept on this device: the page itself/ }).waitFor();
  const rest = await kept();
  assert.deepEqual([rest.files, rest.cached.filter((path) => path.startsWith("/models/test/"))], [[], []]);
  // The page keeps working, and loads what it needs once more without keeping any of it.
  await page.getByRole("button", { name: "Delete the page's own files too" }).click();
  await page.getByText("Deleted, with all models.").waitFor();
  await page.locator("#kept-here", { hasText: "Kept on this device: nothing." }).waitFor();
  await on.show();
  assert.ok((await on.answerTo("What is this?")).length > 0);
  await page.evaluate(() => Promise.all(["models/test/manifest.json", "page/words.js"].map((path) => fetch(path).then((response) => response.text()))));
  assert.deepEqual(await kept(), { files: [], cached: [], registrations: 0, stored: 0, databases: 0 });
});
