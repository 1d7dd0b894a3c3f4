// Keyboard, names, contrast: axe in both themes and both widths over every state, and a whole conversation without a mouse.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { after, before, test } from "node:test";
import { IMAGE, newPage, startChromium, startSite } from "./support.mjs";

const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
let browser;
let site;
before(async () => ([browser, site] = await Promise.all([startChromium(), startSite({ fake: true })])));
after(() => Promise.all([browser.close(), site.stop()]));

async function check(page, state) {
  await page.evaluate(AXE);
  const { violations } = await page.evaluate(() => globalThis.axe.run({ runOnly: ["wcag2a", "wcag2aa", "wcag21aa", "wcag22aa", "best-practice"] }));
  const found = violations.map(({ id, nodes }) => `${state}: ${id}: ${nodes.map((node) => node.html.slice(0, 120)).join(" | ")}`);
  assert.deepEqual(found, []);
  const wide = await page.evaluate(() => document.documentElement.scrollWidth > innerWidth);
  assert.equal(wide, false, `${state}: the page is wider than the window`);
}

for (const [colorScheme, name, viewport] of [["light", "desktop", { width: 1280, height: 800 }], ["dark", "phone", { width: 390, height: 844 }]]) {
  test(`every state passes axe: ${colorScheme}, ${name}`, async (t) => {
    const { page, image, question, ask, ...on } = await newPage(browser, t, { colorScheme, viewport, bypassCSP: true });
    await on.open(site, "fake=slow");
    await check(page, "loading");
    await image.setInputFiles(IMAGE);
    await on.waitStatus(/^Encoding the image: tile/);
    await check(page, "encoding");
    await question.fill("What is this?");
    await ask.click();
    await on.begun();
    await check(page, "answering");
    await on.open(site, "fake=answer-error");
    await on.ready();
    await on.show();
    await question.fill("What is this?");
    await ask.click();
    await page.locator(".turn .error summary").click();
    for (const id of ["#numbers", "#requests"]) await page.locator(`${id} > summary`).click();
    await check(page, "error, details open");
    await page.locator("#model > summary").click();
    await check(page, "model panel");
  });
}

test("a whole conversation by keyboard", async (t) => {
  const { page, answer, ...on } = await newPage(browser, t);
  await on.open(site, "fake=slow");
  await on.waitStatus(/^Ready: open/);
  // Long before it is needed: only then is the browser sure to have heard that its dialog is to be intercepted.
  const chooser = page.waitForEvent("filechooser");
  const focused = () => page.evaluate(() => document.activeElement.id || document.activeElement.textContent);
  const order = [];
  // Not farther than to the last control: behind it the focus leaves the page.
  while (order.length < 20 && order.at(-1) !== "ask") {
    await page.keyboard.press("Tab");
    order.push(await focused());
  }
  assert.ok(order.includes("choose") && order.includes("question") && order.includes("ask"), order.join(", "));
  await page.locator("#choose").focus();
  await page.keyboard.press("Enter");
  await (await chooser).setFiles(IMAGE);
  await on.waitStatus(/^Ready: ask/);
  assert.equal(await focused(), "question");
  await page.keyboard.type("What is this?");
  await page.keyboard.press("Enter");
  await on.begun();
  await page.keyboard.press("Escape");
  await on.answered();
  assert.match(await page.locator(".meta").textContent(), /stopped/);
  await page.keyboard.type("And this?");
  await page.keyboard.press("Enter");
  await on.answered();
  assert.match(await answer.textContent(), /heart shadow/);
});

test("answers are announced, controls have names, the document has its landmarks", async (t) => {
  const { page, ...on } = await newPage(browser, t);
  await on.open(site, "fake=1");
  await on.ready();
  await on.show();
  await on.answerTo("What is this?");
  assert.ok(await page.getByRole("log", { name: "Questions and answers" }).locator("[data-testid=answer]").count());
  for (const [role, name] of [["textbox", "Question about the image"], ["button", "Ask"], ["button", "New image"], ["banner"], ["main"], ["contentinfo"]]) {
    assert.equal(await page.getByRole(role, { name, exact: true }).count(), 1, `${role} ${name ?? ""}`);
  }
  assert.equal(await page.locator("#announce").textContent(), "The image is encoded. You can ask.");
});
