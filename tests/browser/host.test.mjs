// A model on another host: only if the site was built for it.

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
  execFileSync("node", ["scripts/site.mjs", join(DIST, "llama3med/pkg"), join(DIST, "models/demo"), out], { cwd: join(DIST, ".."), env, stdio: "pipe" });
  return out;
}

test("the policy of the plain site keeps the page from another host", async (t) => {
  const site = await startSite();
  t.after(() => site.stop());
  const { page, ...on } = await newPage(browser, t);
  host.log.length = 0;
  await on.open(site, `model=${host.url}models/test/manifest.json`);
  const alert = page.locator("#load-error");
  await alert.locator("strong", { hasText: "The policy of this page forbids it to fetch from that host." }).waitFor();
  assert.match(await alert.textContent(), new RegExp(`make site MODEL_HOST=${new URL(host.url).origin}`));
  const folder = `${host.url}models/pair`;
  await on.open(site, `decoder=${folder}/a.gguf&encoder=${folder}/b.gguf`);
  await alert.locator("strong", { hasText: "The policy of this page forbids" }).waitFor();
  assert.deepEqual(host.paths(), []);
});

test("a host that does not let other sites read its files is reported", async (t) => {
  const closed = await startSite();
  const site = await startSite({ dist: assemble(closed.url) });
  t.after(() => Promise.all([site.stop(), closed.stop()]));
  const { page, ...on } = await newPage(browser, t);
  await on.open(site, `model=${closed.url}models/test/manifest.json`);
  await page.locator("#load-error strong", { hasText: "does not let other sites read its files" }).waitFor();
});

test("a host without ranges is reported in the headline", async (t) => {
  const fault = (path, request, response) => path.endsWith(".gguf") && (response.writeHead(200).end(Buffer.alloc(1000)), true);
  const site = await startSite({ fault });
  t.after(() => site.stop());
  const { page, ...on } = await newPage(browser, t);
  await on.open(site, "decoder=a.gguf&encoder=b.gguf");
  await page.locator("#load-error strong", { hasText: "does not serve parts of files" }).waitFor();
});

test("if a host's own policy forbids workers from blobs, they start from their files", async (t) => {
  const fault = (path, request, response) => (response.setHeader("Content-Security-Policy", "worker-src 'self'"), false);
  const site = await startSite({ fault });
  t.after(() => site.stop());
  const { page, ...on } = await newPage(browser, t);
  await on.open(site, "model=models/test/manifest.json&ranks=2&tokens=8");
  await on.ready();
  await on.show();
  assert.ok((await on.answerTo("What is this?")).length > 0);
  assert.ok(page.workers().length === 2 && page.workers().every((worker) => worker.url() === `${site.url}llama3med/rank.js`));
});

test("a site built with MODEL_HOST loads from it", async (t) => {
  const site = await startSite({ dist: assemble(host.url) });
  t.after(() => site.stop());
  const { seen, ...on } = await newPage(browser, t);
  await on.open(site, `model=${host.url}models/test/manifest.json`);
  await on.ready();
  await on.show();
  assert.ok((await on.answerTo("What is this?")).length > 0);
  assert.deepEqual(seen.errors, []);
});

test("an invalid MODEL_HOST is refused", () => {
  assert.throws(() => assemble("https://models.example.org/folder/"), /expected a host such as/);
});
