// A rank that dies ends the session with a message and leaves the page usable; an operation that fails leaves the model usable too.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { IMAGE, newPage, startChromium, startSite } from "./support.mjs";

let browser;
let site;
before(async () => ([browser, site] = await Promise.all([startChromium(), startSite()])));
after(() => Promise.all([browser.close(), site.stop()]));

const QUERY = "model=models/test/manifest.json&ranks=2&tokens=64";
// The page's workers, accessible to the tests.
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
  await alert.getByText("A part of the model stopped.", { exact: true }).waitFor();
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
  // As the engine words it, from the first rank, at the first token.
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

test("requesting the memory use repeatedly while an answer streams does no harm", async (t) => {
  const { page } = await newPage(browser, t);
  await page.goto(`${site.url}icon.svg`);
  const { n_tokens, all } = await page.evaluate(async (url) => {
    const { load } = await import(`${url}llama3med/index.js`);
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

test("a question that is too long says so, not that the picture must be opened again", async (t) => {
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

test("a model that needs more memory than available says so", async (t) => {
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

/** Makes the next `operation` of rank 0 ("look", "ask") throw what `failure` describes. */
async function failNext(page, operation, failure) {
  const workers = page.workers();
  const names = await Promise.all(workers.map((worker) => worker.evaluate(() => self.name).catch(() => "ended")));
  const rank = workers[names.indexOf("rank 0")];
  const pkg = await page.evaluate(() => new URL("llama3med/pkg/", document.baseURI).href);
  await rank.evaluate(async ({ pkg, operation, failure }) => {
    for (const build of ["relaxed", "simd128"]) {
      const { Rank } = await import(`${pkg}llama3med_${build}.js`);
      const real = Rank.prototype[operation];
      Rank.prototype[operation] = async () => {
        Rank.prototype[operation] = real;
        throw Object.assign(failure.kind ? new Error(failure.message) : new RangeError(failure.message), failure);
      };
    }
  }, { pkg, operation, failure });
}

for (const isAsking of [false, true]) {
  test(`a picture that stopped the model is not reopened automatically${isAsking ? "; a question waited for it" : ""}`, async (t) => {
    const { page, image, question, ...on } = await newPage(browser, t);
    await on.open(site, QUERY);
    await on.ready();
    await failNext(page, "look", { message: "Maximum call stack size exceeded" });
    // The question is asked before the picture is encoded.
    await page.evaluate((isAsking) => {
      if (!isAsking) return;
      const observer = new MutationObserver(() => {
        if (!document.body.classList.contains("has-image")) return;
        observer.disconnect();
        document.querySelector("[data-testid=question]").value = "What is this?";
        document.querySelector("form").requestSubmit();
      });
      observer.observe(document.body, { attributes: true });
    }, isAsking);
    await image.setInputFiles(IMAGE);
    await page.getByRole("button", { name: "Load the model again" }).click();
    const alert = page.locator("#image-error");
    await alert.getByText("The picture may have been the cause").waitFor();
    await on.ready();
    assert.ok(await page.locator("#drop").isVisible());
    assert.ok(await page.locator("#film").isHidden());
    await alert.locator("summary").click();
    assert.match(await alert.locator("pre").textContent(), /brain\.png, .*\n.*Maximum call stack/);
    await alert.getByRole("button", { name: "Open it again" }).click();
    await on.waitStatus(/^Ready: ask/);
    assert.equal(await alert.textContent(), "");
    if (isAsking) assert.equal(await question.inputValue(), "What is this?");
    assert.ok((await on.answerTo("What is this?")).length > 0);
  });
}

test("if memory runs out for a question, only it fails: the model answers the next one", async (t) => {
  const { page, question, ask, ...on } = await newPage(browser, t);
  await on.open(site, QUERY);
  await on.ready();
  await on.show();
  await failNext(page, "ask", { kind: "out-of-memory", message: "no memory is left: 1048576 bytes for keys and values" });
  await question.fill("Describe everything.");
  await ask.click();
  const alert = page.locator(".turn .error");
  await alert.getByText("The memory of this browser is not enough.").waitFor();
  assert.match(await alert.textContent(), /The model itself goes on/);
  assert.match((await alert.getByRole("button").allTextContents()).join(), /^(Open with \d+ ranks)?$/);
  assert.equal(await question.inputValue(), "Describe everything.");
  assert.ok((await on.answerTo("And now?")).length > 0);
  assert.equal(await page.locator("#load-error").textContent(), "");
});

test("if memory runs out for a picture, only it fails: the next one is opened", async (t) => {
  const { page, image, ...on } = await newPage(browser, t);
  await on.open(site, QUERY);
  await on.ready();
  await failNext(page, "look", { kind: "out-of-memory", message: "no memory is left: 1048576 bytes for a picture" });
  await image.setInputFiles(IMAGE);
  await page.locator("#image-error").getByText("The memory of this browser is not enough.").waitFor();
  await on.show();
  assert.ok((await on.answerTo("What is this?")).length > 0);
});

test("an unexpected error is shown with its details", async (t) => {
  const { page, ...on } = await newPage(browser, t);
  await on.open(site, QUERY);
  await on.ready();
  const alert = page.locator("#page-error");
  for (const fail of [() => void Promise.reject(new Error("nobody waits for this")), () => setTimeout(() => { throw new Error("nobody waits for this"); })]) {
    await page.evaluate(fail);
    await alert.getByText("Something went wrong in this page.").waitFor();
    await alert.locator("summary").click();
    assert.match(await alert.locator("pre").textContent(), /nobody waits for this/);
    await alert.getByRole("button", { name: "Close" }).click();
    assert.equal(await alert.textContent(), "");
  }
});
