// A first visit over a slow connection: what comes first, and what the progress bar shows.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { newPage, startChromium, startSite, startSlowLine } from "./support.mjs";

let browser;
let site;
before(async () => ([browser, site] = await Promise.all([startChromium(), startSite()])));
after(() => Promise.all([browser.close(), site.stop()]));

/** A first visit to the demo model, recording everything that the bar shows. */
async function visit(t, bytesPerSecond) {
  const { page, ...on } = await newPage(browser, t);
  await page.addInitScript(() => {
    window.seen = [];
    addEventListener("DOMContentLoaded", () => {
      const look = () => {
        const bar = document.querySelector("#bar");
        window.seen.push({ time: performance.now(), value: bar.value, text: document.querySelector("#status").textContent });
      };
      new MutationObserver(look).observe(document.querySelector("#status"), { childList: true, characterData: true, subtree: true });
    });
  });
  const url = await startSlowLine(t, site, bytesPerSecond);
  site.log.length = 0;
  await page.goto(url, { waitUntil: "commit" });
  return { ...on, page, shown: () => page.evaluate(() => window.seen) };
}

test("small things come first, and one bar shows all bytes from the program's first", async (t) => {
  const { page, shown, ...on } = await visit(t, 1_000_000);
  // The samples are loaded, and the program is not.
  await page.waitForFunction(() => [...document.querySelectorAll("#samples img")].filter((image) => image.complete && image.naturalWidth > 0).length === 4);
  assert.match(await on.status.textContent(), /^Loading the model: /);
  assert.equal(page.workers().length, 0);
  await on.ready();
  const all = await shown();
  const loading = all.filter(({ text }) => text.startsWith("Loading the model: "));
  const bytes = loading.map(({ text }) => Number(/: ([\d.]+) (kB|MB|bytes) of/.exec(text).slice(1).join(" ").replace(/ kB/, "e3").replace(/ MB/, "e6").replace(" bytes", "")));
  assert.ok(bytes.filter((n) => n > 0 && n < 2.5e6).length > 5, `the bar moves while the program comes: ${bytes}`);
  assert.ok(bytes.every((n, i) => i === 0 || n >= bytes[i - 1]), `it never goes back: ${bytes}`);
  const totals = new Set(loading.slice(2).map(({ text }) => /of ([\d.]+ MB)/.exec(text)[1]));
  assert.ok(totals.size <= 2, `the total stands as soon as the manifest is there: ${[...totals]}`);
  const order = site.paths();
  const at = (name) => order.findIndex((path) => path.endsWith(name));
  assert.equal(order.filter((path) => path.endsWith("manifest.json")).length, 1, String(order));
  for (const [early, late] of [["manifest.json", ".gguf.000"], ["chest.png", "sw.js"], ["fundus.png", "rank.js"], ["_bg.wasm", "sw.js"]]) {
    assert.ok(at(early) >= 0 && at(early) < at(late), `${early} before ${late}: ${order}`);
  }
});

test("a sample that is clicked before the model is loaded is opened and answered", async (t) => {
  const { page, ...on } = await visit(t, 1_500_000);
  await page.getByRole("button", { name: "Drawn chest film" }).click();
  await page.waitForFunction(() => document.querySelector("#picture").width > 0);
  assert.match(await on.status.textContent(), /^Loading the model: /);
  assert.equal(site.paths().filter((path) => path.endsWith("chest.png")).length, 1);
  await page.getByRole("button", { name: "Is the heart enlarged?" }).click();
  await on.answered();
  assert.ok((await on.answer.textContent()).length > 0);
});
