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
  const { violations } = await page.evaluate(() => globalThis.axe.run({ runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22a", "wcag22aa", "best-practice"], rules: { "label-content-name-mismatch": { enabled: true }, "target-size": { enabled: true } } }));
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
    if (name === "phone") await page.locator("#enlarge").click();
    for (const id of ["#numbers", "#requests"]) await page.locator(`${id} > summary`).click();
    await check(page, "error, details open");
    await page.locator("#model > summary").click();
    await check(page, "model panel");
    await page.keyboard.press("Escape");
    await page.locator("#talks > summary").click();
    await page.locator("#talk-list li").first().waitFor();
    await check(page, "conversations");
  });
}

test("a whole conversation by keyboard", async (t) => {
  const { page, answer, ...on } = await newPage(browser, t);
  await on.open(site, "fake=slow");
  await on.waitStatus(/^Ready: open/);
  // Long before it is needed: only then is it certain that the browser knows that its dialog must be intercepted.
  const chooser = page.waitForEvent("filechooser");
  const focused = () => page.evaluate(() => document.activeElement.id || document.activeElement.textContent);
  const order = [];
  // Not beyond the last control: after it, the focus leaves the page.
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

test("a chip passes the focus on, and a question without a picture says what is missing", async (t) => {
  const { page, question, ...on } = await newPage(browser, t);
  await on.open(site, "fake=1");
  await on.ready();
  const focused = () => page.evaluate(() => document.activeElement.id);
  await page.locator("#chips button").first().focus();
  await page.keyboard.press("Enter");
  assert.equal(await focused(), "choose");
  assert.equal(await page.locator("#announce").textContent(), "Open an image first; your question is kept.");
  assert.equal(await question.inputValue(), "Is the heart enlarged?");
  await on.show();
  await page.locator("#chips button").nth(1).focus();
  await page.keyboard.press("Enter");
  await on.answered();
  assert.equal(await focused(), "scroll");
});

test("an answer is spoken sentence by sentence, by a named speaker, without its numbers", async (t) => {
  const { page, ...on } = await newPage(browser, t);
  await on.open(site, "fake=1");
  await on.ready();
  await on.show();
  await page.evaluate(() => {
    window.said = [];
    const regions = [...document.querySelectorAll("[aria-live=polite], [aria-live=assertive], [role=status], [role=alert], [role=log]:not([aria-live=off])")];
    new MutationObserver((records) => records.forEach(({ target, addedNodes }) =>
      regions.some((region) => region.contains(target)) && addedNodes.forEach((node) => window.said.push(node.textContent)))).observe(document.body, { childList: true, subtree: true });
  });
  const text = await on.answerTo("What is this?");
  assert.deepEqual(await page.evaluate(() => window.said), text.split(/(?<=\.) /));
  assert.deepEqual(await page.locator(".turn").evaluate((turn) => [...turn.children].map((child) => child.textContent).slice(0, 4)), ["You", "What is this?", "Model", text]);
});

test("Escape and a click elsewhere close the model's panel; Escape gives the focus back", async (t) => {
  const { page, info, ...on } = await newPage(browser, t);
  await on.open(site, "fake=1");
  await on.ready();
  const isOpen = () => info.evaluate((details) => details.open);
  await info.locator("summary").focus();
  await page.keyboard.press("Enter");
  await page.keyboard.press("Tab");
  assert.ok(await isOpen());
  await page.keyboard.press("Escape");
  assert.equal(await isOpen(), false);
  assert.equal(await page.evaluate(() => document.activeElement.parentElement.id), "model");
  await page.keyboard.press("Enter");
  await page.locator("#model-facts").click();
  assert.ok(await isOpen());
  await page.mouse.click(300, 400);
  assert.equal(await isOpen(), false);
});

test("with forced colours the film stays on black", async (t) => {
  const { page, ...on } = await newPage(browser, t, { forcedColors: "active" });
  await on.open(site, "fake=1");
  await on.ready();
  await on.show();
  for (const film of await page.locator("#film, #thumbs .square").all()) {
    assert.equal(await film.evaluate((element) => getComputedStyle(element).backgroundColor), "rgb(0, 0, 0)");
  }
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
