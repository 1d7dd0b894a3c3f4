// A model on another host: only where the site was assembled for it.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { after, before, test } from "node:test";
import { join } from "node:path";
import { DIST, newPage, scratch, startChromium, startSite } from "./support.mjs";

const shared = (path, request, response) => {
  response.setHeader("Access-Control-Allow-Origin", "*");
  return false;
};
let browser;
let host;
before(async () => ([browser, host] = await Promise.all([startChromium(), startSite({ fault: shared })])));
after(() => Promise.all([browser.close(), host.stop()]));

function assemble(modelHost) {
  const out = join(scratch(), "site-with-host");
  const env = { ...process.env, MODEL_HOST: modelHost };
  execFileSync("node", ["scripts/site.mjs", join(DIST, "pkg"), join(DIST, "models/demo"), out], { cwd: join(DIST, ".."), env, stdio: "pipe" });
  return out;
}

test("the policy of the plain site keeps the page from another host", async (t) => {
  const site = await startSite();
  t.after(() => site.stop());
  const { page, ...on } = await newPage(browser, t);
  host.log.length = 0;
  await on.open(site, `model=${host.url}models/test/manifest.json`);
  await page.locator("#load-error strong").waitFor();
  assert.deepEqual(host.paths(), []);
});

test("a site that was assembled with MODEL_HOST loads from it", async (t) => {
  const site = await startSite({ dist: assemble(host.url) });
  t.after(() => site.stop());
  const { seen, ...on } = await newPage(browser, t);
  await on.open(site, `model=${host.url}models/test/manifest.json`);
  await on.ready();
  await on.show();
  assert.ok((await on.answerTo("What is this?")).length > 0);
  assert.deepEqual(seen.errors, []);
});

test("a MODEL_HOST that is no host is refused", () => {
  assert.throws(() => assemble("https://models.example.org/folder/"), /expected a host such as/);
});
