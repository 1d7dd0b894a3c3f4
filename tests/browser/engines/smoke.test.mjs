// Firefox and WebKit: load, drop, ask, stop, second turn. The page works without features that an engine lacks (relaxed SIMD, OPFS, service workers).

import assert from "node:assert/strict";
import { test } from "node:test";
import { IMAGE, startSite, wedgeTiff } from "../support.mjs";
import { startFirefox, startWebKit } from "./drivers.mjs";

// These functions run in the page.
const film = () => {
  const canvas = document.querySelector("#picture");
  return canvas.width > 0 ? [...canvas.getContext("2d").getImageData(0, 9, canvas.width, 1).data].filter((_, at) => at % 4 === 1) : [];
};
const text = (id) => document.querySelector(`[data-testid=${id}]`)?.textContent ?? "";
const drop = (bytes) => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([new Uint8Array(bytes)], "film.png", { type: "image/png" }));
  document.querySelector("#image").dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
};
const ask = (question) => {
  document.querySelector("[data-testid=question]").value = question;
  document.querySelector("[data-testid=ask]").click();
};
const stop = () => document.querySelector("[data-testid=stop]").click();
const state = () => ({
  status: document.querySelector("[data-testid=status]").textContent,
  error: document.querySelector(".error")?.textContent ?? "",
  answer: document.querySelector("[data-testid=answer]")?.textContent ?? "",
  isBusy: document.querySelector("[data-testid=answer]")?.getAttribute("aria-busy") === "true",
  n_turns: document.querySelectorAll(".turn").length,
  rows: document.querySelector("#picture").height,
});

async function until(browser, what, holds) {
  const end = Date.now() + 60_000;
  for (;;) {
    const now = await browser.evaluate(state);
    if (holds(now)) return now;
    assert.equal(now.error, "", what);
    assert.ok(Date.now() < end, `${what}: still ${JSON.stringify(now)}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

for (const [name, startBrowser] of [["Firefox", startFirefox], ["WebKit", startWebKit]]) {
  test(`${name}: load, drop, ask, stop, second turn`, { timeout: 180_000 }, async (t) => {
    const site = await startSite();
    t.after(() => site.stop());
    const browser = await startBrowser();
    t.after(() => browser.close());
    await browser.open(`${site.url}?model=models/test/manifest.json&ranks=2&tokens=200`);
    await until(browser, "loading", ({ status }) => status.startsWith("Ready: open"));
    t.diagnostic(`${name}: ${(await browser.evaluate(text, "model-info")).replace(/\s+/g, " ")}`);
    await browser.evaluate(drop, [...IMAGE.buffer]);
    await until(browser, "encoding", ({ status }) => status.startsWith("Ready: ask"));
    await browser.evaluate(drop, [...wedgeTiff().buffer]);
    await until(browser, "another picture", ({ status, rows }) => rows === 256 && status.startsWith("Ready: ask"));
    const levels = await browser.evaluate(film);
    assert.ok(levels.length === 256 && levels.every((level, x) => Math.abs(level - x) <= 1), `the film shows ${levels}`);
    const n_served = site.log.length;
    await browser.evaluate(ask, "What does this picture show?");
    await until(browser, "answering", ({ answer }) => answer.length > 0);
    await browser.evaluate(stop);
    await until(browser, "stopping", ({ isBusy }) => !isBusy);
    await browser.evaluate(ask, "And now?");
    const { answer } = await until(browser, "second turn", ({ isBusy, answer, n_turns }) => n_turns === 2 && !isBusy && answer.length > 0);
    assert.ok(answer.length > 0);
    assert.deepEqual(site.paths().slice(n_served), []);
    // Not every engine tells a worker what the page's policy blocked.
    await browser.open(`${site.url}?model=http://127.0.0.1:9/manifest.json`);
    for (;;) {
      const { error } = await browser.evaluate(state);
      if (error) return assert.match(error, /The policy of this page forbids[^]*make site MODEL_HOST=http:\/\/127\.0\.0\.1:9/);
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  });
}
