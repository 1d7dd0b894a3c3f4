// What leaves the page says what it is: copied, saved and printed alike.

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { DIST, IMAGE, OTHER_IMAGE, makeModel, newPage, startChromium, startSite } from "./support.mjs";

let browser;
let site;
before(async () => ([browser, site] = await Promise.all([startChromium(), startSite()])));
after(() => Promise.all([browser.close(), site.stop()]));

const sha256 = (bytes) => createHash("sha256").update(bytes).digest("hex");

async function copied(page) {
  await page.locator("#copy").click();
  await page.getByText("Copied").waitFor();
  return page.evaluate(() => navigator.clipboard.readText());
}

test("copy, file and print include notice, warnings, date, model and hash, settings, picture and version", async (t) => {
  const { page, context, ...on } = await newPage(browser, t);
  await context.grantPermissions(["clipboard-read", "clipboard-write"]);
  await on.open(site, "model=models/demo/manifest.json&tokens=40&ranks=1");
  await on.ready();
  await on.show({ ...IMAGE, name: "Jane Doe.png" });
  await on.answerTo("On which side is the bleed?");
  await on.answerTo("What does the picture show?");
  const text = await copied(page);
  const manifest = JSON.parse(readFileSync(join(DIST, "models/demo/manifest.json"), "utf8"));
  const [, version] = /name="version" content="(\w+)"/.exec(readFileSync(join(DIST, "index.html"), "utf8"));
  for (const part of [
    /^Research software\. Not a medical device\. Not for diagnosis or treatment\.\n/, /\nDate: \d{4}-\d\d-\d\d \d\d:\d\d.* \(.+\)\n/, "\nModel: PhantomVQA demo\n",
    ...manifest.notices.map((notice) => `\nThe model's own warning: ${notice}\n`), ...manifest.files.map(({ name, chunks: [{ sha256 }] }) => new RegExp(`\\nFile: ${name}, .* sha256 ${sha256}\\n`)),
    /\nSettings: at most 40 tokens an answer, always the likeliest token, context of \d+ tokens, template as the model's file says, 1 rank, build (relaxed|simd128)\n/,
    new RegExp(`\\nPicture: 256 x 300 pixels, .* sha256 ${sha256(IMAGE.buffer)}\\n`), `\nPage: version ${version}\n`,
    "\n\nYou:\nOn which side is the bleed?\n\nModel:\n", "\n\nYou:\nWhat does the picture show?\n\nModel:\n", /\nResearch software\. Not a medical device\. Not for diagnosis or treatment\.\n$/,
  ]) assert.ok(typeof part === "string" ? text.includes(part) : part.test(text), `${part} is not in:\n${text}`);
  assert.doesNotMatch(text, /Jane/);
  const download = page.waitForEvent("download");
  await page.locator("#save").click();
  assert.equal((await (await (await download).createReadStream()).toArray()).join(""), text);
  assert.ok(text.startsWith(`${await page.locator("#record").textContent()}\n\n`), "what is printed above the turns is what is copied above them");
});

test("print shows the picture and every turn, and nothing scrolls", async (t) => {
  const { page, ...on } = await newPage(browser, t, { colorScheme: "dark", viewport: { width: 700, height: 600 } });
  await on.open(site);
  await on.ready();
  await on.show();
  for (let turn = 0; turn < 14; turn++) await on.answerTo(`Question ${turn}`);
  await page.evaluate(() => (window.print = () => (window.printed = true)));
  await page.locator("#print").click();
  await page.waitForFunction(() => window.printed);
  await page.emulateMedia({ media: "print" });
  const found = await page.evaluate(() => {
    const cut = [...document.querySelectorAll("body, body *")].filter((element) => element.checkVisibility() && /auto|scroll|hidden/.test(getComputedStyle(element).overflowY) && element.scrollHeight > element.clientHeight + 1);
    const box = (selector) => document.querySelector(selector).getBoundingClientRect().height;
    const shown = [...document.querySelectorAll(".asked, .answered")].filter((element) => element.getBoundingClientRect().height > 0);
    const buttons = [...document.querySelectorAll("button, textarea")].filter((element) => element.checkVisibility());
    return { cut: cut.map((element) => element.id || element.className), n_shown: shown.length, film: box("#film"), record: box("#record"), n_buttons: buttons.length,
      ground: getComputedStyle(document.body).backgroundColor, last: shown.at(-1).getBoundingClientRect().bottom <= document.documentElement.scrollHeight };
  });
  assert.deepEqual([found.cut, found.n_shown, found.n_buttons, found.ground, found.last], [[], 28, 0, "rgb(255, 255, 255)", true]);
  assert.ok(found.film > 200 && found.record > 100, JSON.stringify(found));
});

test("a conversation that is returned to says what answered it then", async (t) => {
  const { page, context, ...on } = await newPage(browser, t);
  await context.grantPermissions(["clipboard-read", "clipboard-write"]);
  await on.open(site);
  await on.ready();
  await on.show();
  await on.answerTo("First");
  const text = await copied(page);
  assert.match(text, new RegExp(`File: decoder.gguf, .* ${makeModel().files[0].chunks.length} parts, sha256 of the lines of their sha256 `
    + sha256(makeModel().files[0].chunks.map((chunk) => chunk.sha256).join("\n"))));
  await on.show(OTHER_IMAGE);
  await page.locator("#talks > summary").click();
  await page.locator("#talk-list .talk", { hasText: "First" }).click();
  await on.waitStatus(/^Ready: ask/);
  await page.evaluate(() => document.querySelector("#keep-result").replaceChildren());
  assert.equal(await copied(page), text);
});

test("an answer cut off by another picture is kept, with its source", async (t) => {
  const { page, context, question, ask, ...on } = await newPage(browser, t);
  await context.grantPermissions(["clipboard-read", "clipboard-write"]);
  await on.open(site, "model=models/test/manifest.json&tokens=2000");
  await on.ready();
  await on.show();
  await question.fill("Cut off");
  await ask.click();
  await on.begun();
  await on.show(OTHER_IMAGE);
  await page.locator("#talks > summary").click();
  await page.locator("#talk-list .talk", { hasText: "Cut off" }).click();
  await on.waitStatus(/^Ready: ask/);
  const text = await copied(page);
  assert.match(text, /\nFile: decoder\.gguf, .*\n[^]*\nPicture: 256 x 300 pixels, [^]*\n\[stopped\]\n/);
});
