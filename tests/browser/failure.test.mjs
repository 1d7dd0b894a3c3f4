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

test("asking for the memory again and again, while an answer streams, harms nothing", async (t) => {
  const { page } = await newPage(browser, t);
  await page.goto(`${site.url}icon.svg`);
  const { n_tokens, all } = await page.evaluate(async (url) => {
    const { load } = await import(`${url}llama3med.js`);
    const model = await load("models/test/manifest.json", { ranks: 2 });
    const asked = [];
    let n_tokens = 0;
    for await (const piece of model.chat().ask("What is this?", { maxTokens: 40 })) {
      n_tokens += piece ? 1 : 0;
      for (let i = 0; i < 40; i++) asked.push(model.memory());
    }
    const all = await Promise.all(asked);
    model.close();
    return { n_tokens, all };
  }, site.url);
  assert.ok(n_tokens > 5 && all.length === 40 * n_tokens, String(all.length));
  assert.ok(all.every((memory) => memory.length === 2 && memory.every((bytes) => bytes > 1e6)));
});

test("a question that does not fit says so, not that the picture is to be opened again", async (t) => {
  const { page, question, ask, ...on } = await newPage(browser, t);
  await on.open(site, QUERY);
  await on.ready();
  await on.show();
  await question.fill("ā".repeat(4000));
  await ask.click();
  const alert = page.locator(".turn .error");
  await alert.waitFor();
  assert.match(await alert.textContent(), /The question is too long for the model\.Shorten it and ask again\./);
  assert.ok((await on.answerTo("What is this?")).length > 0);
});

test("a model that needs more memory than there is says so", async (t) => {
  const { page, ...on } = await newPage(browser, t, { serviceWorkers: "block" });
  await page.route("**/rank.js", async (route) => {
    const response = await route.fetch();
    const short = "WebAssembly.Instance = function () { throw new RangeError('WebAssembly.Instance(): Out of memory'); };\n";
    await route.fulfill({ response, body: short + (await response.text()) });
  });
  await on.open(site, QUERY);
  await page.locator("#load-error").getByText("The memory of this browser is not enough.").waitFor();
  await page.unroute("**/rank.js");
  await page.getByRole("button", { name: "Load the model again" }).click();
  await on.ready();
});
