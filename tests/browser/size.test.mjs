// The cost of a first visit: the size of each build, and the bytes sent by the server until the page and the demo model are loaded and kept.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { gzipSync } from "node:zlib";
import { DIST, newPage, startChromium, startSite } from "./support.mjs";

let browser;
let site;
before(async () => ([browser, site] = await Promise.all([startChromium(), startSite()])));
after(() => Promise.all([browser.close(), site.stop()]));

for (const build of ["relaxed", "simd128"]) {
  test(`the ${build} build takes at most 3 MB, and 1.0 MB compressed`, (t) => {
    const bytes = readFileSync(join(DIST, `llama3med/pkg/llama3med_${build}_bg.wasm`));
    const compressed = gzipSync(bytes, { level: 9 });
    t.diagnostic(`${bytes.length} bytes, ${compressed.length} after gzip -9`);
    assert.ok(bytes.length <= 3_000_000, `${bytes.length} bytes`);
    assert.ok(compressed.length <= 1_000_000, `${compressed.length} bytes after gzip -9`);
  });
}

test("a first visit transfers at most 5 MB", async (t) => {
  const { page, ...on } = await newPage(browser, t);
  await on.open(site, "");
  await on.ready();
  // The service worker keeps the page, and then the build in use.
  await page.evaluate(() => navigator.serviceWorker.ready);
  await page.waitForFunction(async () => {
    const kept = await Promise.all((await caches.keys()).map(async (name) => (await caches.open(name)).keys()));
    return kept.flat().some(({ url }) => url.endsWith(".wasm"));
  });
  await page.waitForLoadState("networkidle");
  const visited = site.paths();
  t.diagnostic(`${site.bytesSent()} bytes in ${visited.length} requests`);
  assert.ok(visited.includes("models/demo/decoder.gguf.000") && visited.some((path) => path.endsWith(".wasm")), String(visited));
  assert.ok(site.bytesSent() <= 5_000_000, `${site.bytesSent()} bytes in ${visited.length} requests: ${visited.join(" ")}`);
});
