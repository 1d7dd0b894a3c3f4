// What the page's URL may ask for: messages for impossible values, the nearest possible ones, and pages that cannot start.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { pathToFileURL } from "node:url";
import { join } from "node:path";
import { readQuery } from "../../www/page/query.js";
import { DIST, newPage, startChromium, startSite } from "./support.mjs";

let browser;
let site;
before(async () => ([browser, site] = await Promise.all([startChromium(), startSite()])));
after(() => Promise.all([browser.close(), site.stop()]));

const read = (search) => readQuery(search, "http://host/page/", "http://host/page/models/demo/manifest.json");

test("valid values are used unchanged, without a message", () => {
  const plain = { source: "http://host/page/models/demo/manifest.json", problem: "", ranks: undefined, tokens: undefined, build: undefined, template: undefined, notes: [] };
  assert.deepEqual(read(""), plain);
  assert.deepEqual(read("?utm_source=x&fbclid=1&lang=en&ranks="), plain);
  assert.deepEqual(read("?model=../m/manifest.json&ranks=64&tokens=1&build=simd128&template=vicuna"),
    { ...plain, source: "http://host/m/manifest.json", ranks: 64, tokens: 1, build: "simd128", template: "vicuna" });
  assert.deepEqual(read("?decoder=a.gguf&encoder=https://h/b.gguf").source, ["http://host/page/a.gguf", "https://h/b.gguf"]);
});

test("impossible numbers give the nearest possible ones, and a note", () => {
  const cases = { "ranks=1000": 64, "ranks=-1": 1, "ranks=0": 1, "ranks=2.6": 3, "ranks=abc": undefined, "ranks=NaN": undefined, "ranks=1e9": 64,
    "tokens=-5": 1, "tokens=0": 1, "tokens=0.4": 1, "tokens=many": undefined, "tokens=Infinity": Number.MAX_SAFE_INTEGER };
  for (const [text, value] of Object.entries(cases)) {
    const [name, given] = text.split("=");
    const { notes, ...found } = read(`?${text}`);
    assert.equal(found[name], value, text);
    assert.equal(notes.length, 1, text);
    assert.ok(notes[0].includes(`${name}=${given}`), notes[0]);
  }
});

test("unknown builds, misspelt names and a model beside a pair are reported", () => {
  assert.match(read("?build=fast").notes[0], /build=fast.*relaxed and simd128/);
  assert.equal(read("?build=fast").build, undefined);
  for (const [name, meant] of [["rank", "ranks"], ["token", "tokens"], ["Model", "model"], ["encorder", "encoder"], ["templete", "template"], ["modle", "model"]]) {
    assert.match(read(`?${name}=1`).notes[0], new RegExp(`${name} .*Did you mean ${meant}\\?`));
  }
  assert.match(read("?model=a&decoder=b").notes[0], /model .*is ignored/);
});

test("invalid URLs, or those of another kind, are a problem", () => {
  for (const [search, words] of [["?model=http://[bad", /model=http:\/\/\[bad/], ["?decoder=http://a:b:c&encoder=x", /decoder=/], ["?model=file:///etc/passwd", /http/], ["?model=data:,x", /http/]]) {
    const { source, problem } = read(search);
    assert.equal(source, null);
    assert.match(problem, words);
  }
});

test("a page with wrong settings says so and works", async (t) => {
  const { page, seen, info, ...on } = await newPage(browser, t);
  await on.open(site, "model=models/test/manifest.json&ranks=-1&tokens=-5&template=foo&build=fast&rank=3");
  await on.ready();
  const notes = await page.locator("#notes").innerText();
  for (const words of [/ranks=-1 .*1 is used/, /tokens=-5 .*1 is used/, /template must be one of llama3.*found foo; the page chooses/, /build=fast/, /Did you mean ranks/]) assert.match(notes, words);
  assert.match(await info.textContent(), /1 rank/);
  await on.show();
  await on.answerTo("What is this?");
  assert.match(await page.locator(".meta").textContent(), /1 token/);
  assert.deepEqual(seen.errors, []);
});

test("an invalid URL never hangs, and the page's own model is a click away", async (t) => {
  const { page, seen, ...on } = await newPage(browser, t);
  await on.open(site, "model=http://[bad");
  const alert = page.locator("#load-error");
  assert.match(await alert.textContent(), /model=http:\/\/\[bad in this page's address is not an address/);
  await alert.getByRole("button", { name: "Open this page's own model" }).click();
  await on.ready();
  assert.deepEqual(seen.errors, []);
});

test("opened as a file, the page says how it is opened", async (t) => {
  const { page, status } = await newPage(browser, t);
  await page.goto(pathToFileURL(join(DIST, "index.html")).href);
  await page.locator("#load-error").getByText("This page was opened as a file").waitFor();
  assert.equal(await status.textContent(), "The page could not start");
});

test("a script that did not arrive is reported, and a reload after the host is repaired helps", async (t) => {
  t.after(() => (site.fault = null));
  for (const broken of ["<!doctype html><p>Sign in</p>", "import { nothing"]) {
    const { page, ...on } = await newPage(browser, t); // a fresh profile: nothing is kept of the site before
    site.fault = (path, request, response) => path === "page/words.js" &&
      (response.writeHead(200, { "Content-Type": broken.startsWith("<") ? "text/html" : "text/javascript", "Cache-Control": "max-age=3600" }).end(broken), true);
    await on.open(site);
    await page.locator("#load-error").getByText("A part of this page's program did not arrive").waitFor();
    await on.waitStatus(/could not start/);
    // The wrong response is fetched once more, bypassing the browser's cache.
    site.fault = null;
    await page.waitForFunction(() => performance.getEntriesByType("resource").length > 0);
    await page.evaluate(() => Promise.all(performance.getEntriesByType("resource").map(({ name }) => fetch(name, { cache: "reload" }))));
    await page.reload();
    await on.ready();
  }
});
