// Nothing leaves the tab: no other origin, no request between image and answer, a policy that is never tried, and a counter that says so.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { newPage, startChromium, startSite } from "./support.mjs";

let browser;
let site;
before(async () => ([browser, site] = await Promise.all([startChromium(), startSite()])));
after(() => Promise.all([browser.close(), site.stop()]));

test("no request leaves the origin, and none is made between image and answer", async (t) => {
  const { page, context, seen, ...on } = await newPage(browser, t);
  await page.addInitScript(() => {
    window.violations = [];
    document.addEventListener("securitypolicyviolation", (event) => window.violations.push(event.violatedDirective));
  });
  await on.open(site, "model=models/test/manifest.json&ranks=2&tokens=64");
  await on.ready();
  const n_served = site.log.length;
  const n_seen = seen.requests.filter((url) => !url.startsWith("blob:")).length;
  await on.show();
  await on.answerTo("What is this?");
  await on.answerTo("And what is that?");
  assert.deepEqual(site.paths().slice(n_served), []);
  assert.deepEqual(seen.requests.filter((url) => !url.startsWith("blob:")).slice(n_seen), []);
  assert.deepEqual(seen.requests.filter((url) => !url.startsWith(site.url) && !url.startsWith("blob:")), []);
  assert.ok(site.log.every(({ method }) => method === "GET"));
  assert.deepEqual(await page.evaluate(() => window.violations), []);
  assert.deepEqual(seen.errors, []);
  assert.match(await page.locator("#requests-line").textContent(), /0 requests since the image was opened/);
});

test("the counter counts what the page and its workers fetch", async (t) => {
  const { page, ...on } = await newPage(browser, t);
  await on.open(site);
  await on.ready();
  await on.show();
  await page.evaluate(() => fetch("style.css?counted"));
  await page.getByText("1 request since the image was opened").waitFor();
  await page.workers()[0].evaluate((url) => fetch(url), `${site.url}style.css?counted-too`);
  await page.getByText("2 requests since the image was opened").waitFor();
});

test("the policy keeps the page and its workers from other hosts", async (t) => {
  const other = await startSite({ fault: (path, request, response) => (response.setHeader("Access-Control-Allow-Origin", "*"), false) });
  t.after(() => other.stop());
  const { page, ...on } = await newPage(browser, t);
  await on.open(site);
  await on.ready();
  const reach = (url) => fetch(url).then(() => "reached", (error) => error.name);
  for (const place of [page, ...page.workers()]) assert.equal(await place.evaluate(reach, `${other.url}style.css`), "TypeError");
  assert.deepEqual(other.paths(), []);
});
