// A rank that dies or runs out of memory ends the session with a message and leaves the page usable.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { newPage, startChromium, startSite } from "./support.mjs";

let browser;
let site;
before(async () => ([browser, site] = await Promise.all([startChromium(), startSite()])));
after(() => Promise.all([browser.close(), site.stop()]));

const QUERY = "model=models/test/manifest.json&ranks=2&tokens=64";
// The page's workers within reach of the tests.
const keepWorkers = (page) => page.addInitScript(() => {
  const Real = window.Worker;
  window.ranks = [];
  window.Worker = class extends Real {
    constructor(url, options) {
      super(url, options);
      if (options.name?.startsWith("rank ")) window.ranks.push(this);
    }
  };
});

for (const idx of [0, 1]) {
  test(`rank ${idx} is killed while an answer streams`, async (t) => {
    const { page, question, ask, ...on } = await newPage(browser, t);
    await keepWorkers(page);
    await on.open(site, QUERY);
    await on.ready();
    await on.show();
    await question.fill("Describe everything.");
    await on.atFirstWord((idx) => window.ranks[idx].terminate(), idx);
    await ask.click();
    const alert = page.locator(".turn .error");
    await alert.waitFor();
    assert.match(await alert.textContent(), /A part of the model stopped/);
    assert.equal(await question.inputValue(), "Describe everything.");
    await alert.getByRole("button", { name: "Load the model again" }).click();
    await on.waitStatus(/^Ready: ask/);
    await ask.click();
    await on.answered();
    assert.equal(await page.locator(".divider").count(), 1);
    assert.equal(await page.locator(".turn").count(), 2);
  });
}

test("a rank is killed while nobody asks", async (t) => {
  const { page, ...on } = await newPage(browser, t);
  await keepWorkers(page);
  await on.open(site, QUERY);
  await on.ready();
  await page.evaluate(() => window.ranks[1].terminate());
  const alert = page.locator("#load-error");
  await alert.getByText("A part of the model stopped").waitFor();
  await alert.getByRole("button", { name: "Load the model again" }).click();
  await on.ready();
  await on.show();
  assert.ok((await on.answerTo("Again?")).length > 0);
});

test("a rank runs out of memory", async (t) => {
  const { page, question, ask, ...on } = await newPage(browser, t);
  await on.open(site, QUERY);
  await on.ready();
  await on.show();
  await question.fill("Describe everything.");
  // As the engine words it, out of the first rank, at the first token.
  const [worker] = page.workers();
  await worker.evaluate(() => {
    const real = self.postMessage.bind(self);
    self.postMessage = (message, ...rest) => {
      real(message, ...rest);
      if (message.type === "token") setTimeout(() => { throw new RangeError("WebAssembly.Memory.grow(): Unable to grow instance memory"); });
    };
  });
  await ask.click();
  const alert = page.locator(".turn .error");
  await alert.getByText("The memory of this browser is not enough.").waitFor();
  await alert.getByRole("button", { name: "Load the model again" }).click();
  await on.waitStatus(/^Ready: ask/);
});

test("a model that needs more memory than there is says so", async (t) => {
  const { page, ...on } = await newPage(browser, t, { serviceWorkers: "block" });
  await page.route("**/rank.js", async (route) => {
    const response = await route.fetch();
    const short = "WebAssembly.Instance = function () { throw new RangeError('WebAssembly.Instance(): Out of memory'); };\n";
    await route.fulfill({ response, body: short + (await response.text()) });
  });
  await on.open(site, QUERY);
  const alert = page.locator("#load-error");
  await alert.getByText("The memory of this browser is not enough.").waitFor();
  await alert.getByText("Open it with 4 ranks: each has memory of its own.").waitFor();
  await page.unroute("**/rank.js");
  await page.getByRole("button", { name: "Open with 4 ranks" }).click();
  await on.ready();
  assert.equal(await page.locator("#model-ranks").textContent(), " · 4 ranks");
  assert.equal(new URL(page.url()).searchParams.get("ranks"), "4");
});
