// Nothing leaves the tab: no other origin, no request between image and answer, a policy that is never tried, and a counter that says so.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { IMAGE, newPage, OTHER_IMAGE, startChromium, startSite } from "./support.mjs";

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
  await page.evaluate(() => fetch("models/demo/manifest.json"));
  await page.getByText("1 request since the image was opened").waitFor();
  await page.workers()[0].evaluate((url) => fetch(url), `${site.url}counted`);
  await page.getByText("2 requests since the image was opened").waitFor();
  // What the service worker keeps is not a request.
  await page.evaluate(() => fetch("style.css"));
  await page.evaluate(() => fetch("counted-too"));
  await page.getByText("3 requests since the image was opened").waitFor();
});

const count = async (page) => Number(/: (\d+) request/.exec(await page.locator("#requests-line").textContent())[1]);

test("the page counts what the server's log has, on a first visit and on two more, with a picture opened at once", async (t) => {
  const { page, context, image, ...on } = await newPage(browser, t);
  for (const visit of ["first", "second", "third"]) {
    if (visit === "first") await page.goto(site.url);
    else await page.reload();
    await image.setInputFiles(IMAGE);
    await page.waitForFunction(() => /since the image was opened/.test(document.querySelector("#requests-line").textContent));
    const opened = performance.now();
    await on.waitStatus(/^Ready: ask/);
    await page.waitForTimeout(4000); // the browser's own check came two seconds after the page
    const logged = site.log.filter(({ time }) => time > opened).map(({ path }) => path);
    const counted = await count(page);
    t.diagnostic(`${visit} visit: ${counted} counted, ${logged.length} in the server's log: ${logged.join(" ")}`);
    if (visit === "first") assert.ok(logged.length > 0 && counted >= logged.length, `${counted} counted, ${logged}`);
    else assert.deepEqual([counted, logged], [0, []]);
  }
  // Loaded again while a picture is open: every request is in both.
  const before = [await count(page), site.log.length];
  await page.evaluate(() => Promise.all(["models/none/manifest.json", "nowhere.png", "nowhere"].map((path) => fetch(path))));
  await page.waitForFunction((n) => document.querySelector("#requests-line").textContent.includes(`: ${n} request`), before[0] + 3);
  assert.equal(site.log.length - before[1], 3);
  // Evidence that the check happened: each later visit began with it.
  assert.equal(site.paths().filter((path) => path === "sw.js").length >= 3, true);
});

test("on plain http the headline says what is not counted", async (t) => {
  const { page, ...on } = await newPage(browser, t);
  await page.goto(`http://hospital.test:${site.port}/?model=models/test/manifest.json`);
  await on.ready();
  await on.show();
  assert.equal(await page.locator("#requests-line").textContent(), "Nothing is uploaded: 0 requests of this page since the image was opened; its workers are not counted here.");
});

for (const [what, address] of [["with a service worker", null], ["without one", "http://hospital.test"]]) {
  test(`locked ${what}, nothing is fetched, and model and picture keep working`, async (t) => {
    const { page, ...on } = await newPage(browser, t);
    await page.goto(`${address ? `${address}:${site.port}/` : site.url}?model=models/test/manifest.json&ranks=2&tokens=8`);
    await on.ready();
    await on.show();
    const lock = page.getByRole("switch");
    await lock.click();
    await page.waitForFunction(() => document.querySelector("#lock").getAttribute("aria-checked") === "true");
    const n_served = site.log.length;
    const reach = async (url) => {
      const tries = [
        () => fetch(url),
        () => fetch(url, { method: "POST", body: "x" }),
        () => fetch(url.replace("?", "sw.js?")),
        () => new Promise((resolve, reject) => {
          const request = new XMLHttpRequest();
          Object.assign(request, { onload: resolve, onerror: reject });
          request.open("GET", url);
          request.send();
        }),
        () => import(`${url.replace("?", "page/words.js?")}`),
        () => navigator.sendBeacon(url, "x") || Promise.reject(),
        () => new Promise((resolve, reject) => Object.assign(new Image(), { onload: resolve, onerror: reject, src: url.replace("?", "models/demo/chest.png?") })),
        () => new Promise((resolve, reject) => {
          const frame = document.createElement("iframe");
          Object.assign(frame, { src: url });
          document.body.append(frame);
          setTimeout(reject, 500);
        }),
        () => Object.assign(document.head.appendChild(document.createElement("link")), { rel: "prefetch", href: url }) && new Promise((resolve, reject) => setTimeout(reject, 300)),
      ];
      const found = [];
      for (const [idx, act] of tries.entries()) await Promise.resolve().then(act).then(() => found.push(idx), () => {});
      return found;
    };
    assert.deepEqual(await page.evaluate(reach, `${page.url().split("?")[0]}?try`), []);
    // `import` cannot be removed from a worker; the service worker refuses it, and without one the page says so.
    const acts = address ? "no import" : "all";
    assert.equal(/importing more scripts of this site/.test(await page.locator("#lock-how").textContent()), Boolean(address));
    for (const worker of page.workers()) {
      assert.deepEqual(await worker.evaluate(async ([url, which]) => {
        const acts = [() => fetch(url), () => new XMLHttpRequest(), () => new Worker(url), () => new WebSocket(url.replace("http", "ws"))];
        if (which === "all") acts.push(() => import(url));
        const found = [];
        for (const [idx, act] of acts.entries()) await Promise.resolve().then(act).then(() => found.push(idx), () => {});
        return found;
      }, [`${page.url().split("?")[0]}nowhere.js?worker`, acts]), []);
    }
    assert.deepEqual(site.paths().slice(n_served), []);
    assert.ok((await on.answerTo("What is this?")).length > 0);
    await on.show(OTHER_IMAGE);
    assert.ok((await on.answerTo("And this?")).length > 0);
    assert.match(await page.locator("#requests-line").textContent(), /: 0 requests/);
    assert.deepEqual(site.paths().slice(n_served), []);
    // A reload unlocks.
    await lock.click();
    await on.ready();
    assert.equal(await lock.getAttribute("aria-checked"), "false");
    assert.equal(await page.evaluate(() => fetch("nowhere").then(({ status }) => status)), 404);
  });
}

test("while a page is locked, other tabs of the site open from what is kept, and fetch nothing", async (t) => {
  const { page, context, ...on } = await newPage(browser, t);
  await on.open(site);
  await on.ready();
  await page.reload();
  await on.ready();
  await page.getByRole("switch").click();
  await page.waitForFunction(() => document.querySelector("#lock").getAttribute("aria-checked") === "true");
  const n_served = site.log.length;
  const other = await context.newPage();
  await other.goto(page.url());
  await other.waitForFunction(() => document.querySelector("[data-testid=status]").textContent.startsWith("Ready"));
  assert.equal(await other.evaluate(() => fetch("nowhere").then(() => "reached", () => "refused")), "refused");
  assert.deepEqual(site.paths().slice(n_served).filter((path) => path !== "sw.js"), []);
  await page.close();
  assert.equal(await other.evaluate(() => fetch("nowhere").then(({ status }) => status, String)), 404);
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
