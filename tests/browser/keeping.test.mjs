// What the service worker keeps of the site: only what the build made. Hosts that send half a file or a web page, full storage, and versions that must not mix.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { after, before, test } from "node:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { DIST, newPage, scratch, startChromium, startSite } from "./support.mjs";

let browser;
before(async () => (browser = await startChromium()));
after(() => browser.close());

async function withSite(t, options) {
  const site = await startSite(options);
  t.after(() => site.stop());
  return site;
}

const PAGE = "<!doctype html><html><body>Sign in</body></html>";
const answer = (response, type, body) => (response.writeHead(200, { "Content-Type": type, "Cache-Control": "max-age=3600" }).end(body), true);
const half = (path) => {
  const bytes = readFileSync(join(DIST, path));
  return bytes.subarray(0, bytes.length >> 1);
};
const isProgram = (path) => path.endsWith(".wasm");

for (const [what, fault] of [
  ["half a file", (path, request, response) => isProgram(path) && answer(response, "application/wasm", half(path))],
  ["a web page", (path, request, response) => isProgram(path) && answer(response, "text/html", PAGE)],
  ["an error", (path, request, response) => isProgram(path) && (response.writeHead(503).end(), true)],
]) {
  test(`${what} in the program's place is reported and not kept; the repaired host is asked again`, async (t) => {
    const site = await withSite(t);
    const { page, ...on } = await newPage(browser, t);
    site.fault = fault;
    await on.open(site);
    const alert = page.locator("#load-error");
    await alert.locator("strong", { hasText: "program arrived damaged" }).waitFor();
    assert.match(await alert.locator("pre").textContent(), /llama3med_\w+_bg\.wasm/);
    site.fault = null;
    await alert.getByRole("button", { name: "Load the model again" }).click();
    await on.ready();
    await site.stop();
    await page.reload();
    await on.ready();
  });

  test(`without a service worker, ${what} in the browser's cache is fetched again automatically`, async (t) => {
    const site = await withSite(t);
    site.url = `http://hospital.test:${site.port}/`;
    let n_left = 1;
    site.fault = (path, ...rest) => isProgram(path) && n_left-- > 0 && fault(path, ...rest);
    const { page, ...on } = await newPage(browser, t);
    await on.open(site);
    await on.ready();
    assert.equal(await page.evaluate(() => isSecureContext), false);
    assert.ok(site.paths().filter(isProgram).length > 1);
  });
}

test("a damaged copy of the program in the browser is fetched again", async (t) => {
  const site = await withSite(t);
  const { page, ...on } = await newPage(browser, t);
  await on.open(site);
  await on.ready();
  await page.evaluate(async () => {
    for (const name of await caches.keys()) {
      const cache = await caches.open(name);
      for (const request of await cache.keys()) {
        if (!request.url.endsWith(".wasm")) continue;
        const bytes = await (await cache.match(request)).arrayBuffer();
        await cache.put(request, new Response(bytes.slice(0, bytes.byteLength >> 1), { headers: { "Content-Type": "application/wasm" } }));
      }
    }
  });
  site.log.length = 0;
  await page.reload();
  await on.ready();
  assert.equal(site.paths().filter(isProgram).length, 1);
  await site.stop();
  await page.reload();
  await on.ready();
});

const kept = (page) => page.evaluate(async () => {
  const all = [];
  for (const name of await caches.keys()) for (const { url } of await (await caches.open(name)).keys()) all.push(new URL(url).pathname);
  return all;
});

for (const [path, type] of [["page/numbers.js", "text/javascript"], ["style.css", "text/css"], ["index.html", "text/html"], ["llama3med/pkg/llama3med_relaxed.js", "text/javascript"]]) {
  test(`a wrong ${path} is not installed; later the right one is`, async (t) => {
    const site = await withSite(t);
    const { page, ...on } = await newPage(browser, t);
    // The page itself gets the right one; the service worker, which requests the file by its own name, gets another one.
    const isInstalling = (request) => request.headers.referer?.endsWith("/sw.js");
    for (const [type_, body] of [["text/html", PAGE], [type, "x"]]) {
      site.fault = (found, request, response) => found === path && isInstalling(request) && answer(response, type_, body);
      await on.open(site);
      await on.ready();
      assert.deepEqual(await kept(page).then((all) => all.filter((each) => !each.includes("/models/"))), []);
      assert.equal(await page.evaluate(() => navigator.serviceWorker.controller), null);
      assert.ok(site.log.filter((entry) => entry.path === path).length >= 2, "the worker asked twice");
    }
    site.fault = null;
    await page.reload();
    await on.ready();
    assert.ok((await kept(page)).includes(`/${path}`));
    await site.stop();
    await page.reload();
    await on.ready();
  });
}

test("a manifest that is a web page is reported and not kept", async (t) => {
  const site = await withSite(t);
  const { page, ...on } = await newPage(browser, t);
  await on.open(site, "tokens=8"); // the service worker is in control from here on
  await on.ready();
  site.fault = (path, request, response) => path === "models/test/manifest.json" && answer(response, "text/html", PAGE);
  await on.open(site);
  const alert = page.locator("#load-error");
  await alert.locator("strong", { hasText: "A web page came instead" }).waitFor();
  assert.match(await alert.locator("pre").textContent(), /manifest\.json/);
  site.fault = (path, request, response) => path === "models/test/manifest.json" && answer(response, "application/json", PAGE);
  await page.reload();
  await alert.locator("strong", { hasText: "A web page came instead" }).waitFor();
  assert.deepEqual((await kept(page)).filter((path) => path.includes("models/test")), []);
  site.fault = null;
  await alert.getByRole("button", { name: "Load the model again" }).click();
  await on.ready();
  // A kept model opens from what is kept, and is unchanged.
  site.fault = (path, request, response) => path === "models/test/manifest.json" && answer(response, "text/html", PAGE);
  await page.reload();
  await on.ready();
  await site.stop();
  await page.reload();
  await on.ready();
});

for (const quota of [200_000, 2_000_000, 4_000_000, 6_000_000, 9_000_000]) {
  test(`with storage for ${quota} bytes the page works`, async (t) => {
    const site = await withSite(t);
    const { page, context, seen, ...on } = await newPage(browser, t);
    const devtools = await context.newCDPSession(page);
    await devtools.send("Storage.overrideQuotaForOrigin", { origin: new URL(site.url).origin, quotaSize: quota });
    // The page's timers stand still: it must not wait for anything that never comes.
    await page.clock.install({ time: 0 });
    await page.clock.pauseAt(1000);
    await on.open(site);
    await on.ready();
    await on.show();
    assert.ok((await on.answerTo("What is this?")).length > 0);
    await page.reload();
    await on.ready();
    assert.deepEqual(seen.errors.filter((text) => !/quota/i.test(text)), []);
  });
}

test("an open page never mixes two versions", async (t) => {
  const out = join(scratch(), "other-version");
  execFileSync("node", ["scripts/site.mjs", join(DIST, "llama3med/pkg"), join(DIST, "models/demo"), out], { cwd: join(DIST, ".."), env: { ...process.env, MODEL_HOST: "https://other.example" }, stdio: "pipe" });
  let isNew = false;
  const site = await withSite(t);
  site.fault = (path, request, response) => {
    if (!isNew || path.startsWith("models/")) return false;
    response.writeHead(200, { "Content-Type": path.endsWith(".html") || path === "" ? "text/html" : path.endsWith(".css") ? "text/css" : path.endsWith(".wasm") ? "application/wasm" : "text/javascript" });
    response.end(readFileSync(join(out, path || "index.html")));
    return true;
  };
  const { page, context, ...on } = await newPage(browser, t);
  const version = (page) => page.locator("meta[name=version]").getAttribute("content");
  await on.open(site);
  await on.ready();
  const second = await context.newPage();
  await second.goto(`${site.url}?model=models/test/manifest.json`);
  await second.waitForFunction(() => document.querySelector("[data-testid=status]").textContent.startsWith("Ready"));
  const before = await version(page);
  isNew = true;
  await page.reload();
  await on.ready();
  assert.equal(await version(page), before);
  await page.getByText("A newer version of this page is here.").waitFor();
  await page.locator("#reload").click();
  await page.waitForFunction((before) => document.querySelector("meta[name=version]").content !== before, before);
  await on.ready();
  // The other page still has the old version, and says so before it would load anything.
  assert.equal(await version(second), before);
  await second.getByText("A newer version of this page is here.").waitFor();
  await second.getByTestId("model-input").setInputFiles([join(DIST, "../tests/golden/pair/decoder.gguf"), join(DIST, "../tests/golden/pair/mmproj.gguf")]);
  await second.locator("#load-error").getByText("A newer version of this page has taken over").waitFor();
});
