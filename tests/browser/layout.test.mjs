// Windows of many sizes: nothing overlaps, and the newest answer and Ask are visible.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { IMAGE, newPage, startChromium, startSite } from "./support.mjs";

let browser;
let site;
before(async () => ([browser, site] = await Promise.all([startChromium(), startSite({ fake: true })])));
after(() => Promise.all([browser.close(), site.stop()]));

/** What users see and press, each with the part of it that is not cut off by scrolling: [{ name, left, top, right, bottom, isSticky, inside }]. */
function visibleBoxes() {
  const wanted = "h1, summary, button, textarea, .asked, .answered, .meta, #status, #notice, #about, #film, #update, .lead";
  const clipped = (element) => {
    let { left, top, right, bottom } = element.getBoundingClientRect();
    for (let each = element.parentElement; each && each !== document.body; each = each.parentElement) {
      const { overflowX, overflowY } = getComputedStyle(each);
      const box = each.getBoundingClientRect();
      if (overflowX !== "visible") [left, right] = [Math.max(left, box.left), Math.min(right, box.right)];
      if (overflowY !== "visible") [top, bottom] = [Math.max(top, box.top), Math.min(bottom, box.bottom)];
    }
    return { left: Math.max(left, 0), top: Math.max(top, 0), right: Math.min(right, innerWidth), bottom: Math.min(bottom, innerHeight) };
  };
  const isSticky = (element) => [element, element.closest("form")].some((each) => each && getComputedStyle(each).position === "sticky");
  return [...document.querySelectorAll(wanted)]
    .filter((element) => element.checkVisibility({ visibilityProperty: true }))
    .map((element) => ({ element, name: element.id || element.className || element.textContent.slice(0, 30), isSticky: isSticky(element), ...clipped(element) }))
    .filter(({ left, top, right, bottom }) => right - left > 1 && bottom - top > 1)
    .map(({ element, ...box }, _, all) => ({ ...box, inside: all.filter((other) => other.element !== element && other.element.contains(element)).map(({ name }) => name) }));
}

/** Pairs that overlap. What sticks to an edge covers what scrolls there: that is its purpose. */
function overlaps(boxes) {
  const over = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1 && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1;
  const isMeant = (a, b) => a.inside.includes(b.name) || b.inside.includes(a.name) || a.isSticky !== b.isSticky;
  return boxes.flatMap((a, idx) => boxes.slice(idx + 1).filter((b) => over(a, b) && !isMeant(a, b)).map((b) => `${a.name} over ${b.name}`));
}

async function check(page, state) {
  const boxes = await page.evaluate(visibleBoxes);
  assert.ok(boxes.length > 5, state);
  assert.deepEqual(overlaps(boxes), [], state);
  assert.equal(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), true, `${state}: wider than the window`);
}

/** Whether a point inside the element is that element, for the middle of its lower edge: visible, and not covered. */
const isSeen = (element) => {
  const { left, right, bottom, height } = element.getBoundingClientRect();
  const found = document.elementFromPoint((left + right) / 2, bottom - Math.min(height / 2, 6));
  return Boolean(found) && (element === found || element.contains(found));
};

const WINDOWS = ["390x844", "844x390", "820x1180", "911x512", "1280x800", "1920x1080", "320x256"];

for (const size of WINDOWS) {
  const [width, height] = size.split("x").map(Number);
  for (const hasTouch of size === "911x512" || width > 1000 ? [false] : [true, false]) {
    test(`nothing overlaps, the newest answer and Ask are visible: ${size}${hasTouch ? " with touch" : ""}`, async (t) => {
      const { page, ask, answer, ...on } = await newPage(browser, t, { viewport: { width, height }, hasTouch, isMobile: hasTouch });
      await on.open(site, "fake=1");
      await on.ready();
      await check(page, "no picture");
      await on.show();
      await check(page, "no answer");
      if (height > 300) assert.ok(await ask.evaluate(isSeen), "Ask is not in sight before a question");
      for (const n_answers of [1, 2, 3, 4]) {
        await on.answerTo(`Question ${n_answers}?`);
        if (n_answers > 1 && n_answers < 4) continue;
        await check(page, `${n_answers} answers`);
        assert.ok(await ask.evaluate(isSeen), `Ask is not in sight after ${n_answers}`);
        assert.ok(await answer.evaluate(isSeen), `the newest answer's end is not in sight after ${n_answers}`);
        const film = await page.locator("#film").boundingBox();
        if (height > 300) assert.ok(film.height >= 64 && film.y >= 0 && film.y + film.height <= height, `of the film nothing is left after ${n_answers}: ${JSON.stringify(film)}`);
      }
    });
  }
}

test("on a phone a tap opens the film and closes it, and the touch targets are large enough", async (t) => {
  const { page, ...on } = await newPage(browser, t, { viewport: { width: 390, height: 844 }, hasTouch: true, isMobile: true });
  await on.open(site, "fake=1");
  await on.ready();
  assert.equal(await page.getByText("Drop a medical image here").isVisible(), false);
  assert.ok(await page.getByRole("button", { name: "Tap to choose a picture" }).isVisible());
  assert.equal(await page.locator("#photo-input").getAttribute("capture"), "environment");
  const chooser = page.waitForEvent("filechooser");
  await page.getByRole("button", { name: "Take a photo" }).tap();
  await (await chooser).setFiles(IMAGE);
  await on.waitStatus(/^Ready: ask/);
  await on.answerTo("What is this?");
  const height = async () => (await page.locator("#film").boundingBox()).height;
  const small = await height();
  assert.ok(small < 100, `${small}`);
  await page.locator("#film").tap();
  assert.ok((await height()) > 200);
  assert.ok(await page.locator("#thumbs").isVisible());
  await check(page, "film open");
  await page.getByRole("button", { name: "Make it small" }).tap();
  assert.equal(await height(), small);
  const targets = await page.evaluate(() => [...document.querySelectorAll("button, summary, textarea")].filter((element) => element.checkVisibility())
    .map((element) => ({ name: element.id || element.textContent, ...element.getBoundingClientRect().toJSON() })).filter(({ width, height }) => width < 44 || height < 44));
  assert.deepEqual(targets, []);
});

test("with a mouse the texts are those for a mouse", async (t) => {
  const { page, ...on } = await newPage(browser, t);
  await on.open(site, "fake=1");
  await on.ready();
  assert.ok(await page.getByText("Drop a medical image here").isVisible());
  assert.equal(await page.getByRole("button", { name: "Take a photo" }).isVisible(), false);
});
