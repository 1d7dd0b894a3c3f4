// Pictures in the page: what is transparent, what only the browser decodes, what memory does not hold, and what is said of a file.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { after, before, test } from "node:test";
import { newPage, startChromium, startSite } from "./support.mjs";

let browser;
let site;
before(async () => ([browser, site] = await Promise.all([startChromium(), startSite()])));
after(() => Promise.all([browser.close(), site.stop()]));

const picture = (name, mimeType) => ({ name, mimeType, buffer: readFileSync(new URL(`../pictures/${name}`, import.meta.url)) });
const svg = (inside) => ({ name: "drawing.svg", mimeType: "image/svg+xml", buffer: Buffer.from(`<svg xmlns="http://www.w3.org/2000/svg" width="90" height="60">${inside}</svg>`) });

/** Parts of a screenshot that are near black, near the red of alpha.png, and neither. */
async function colors(page, locator) {
  const shot = await locator.screenshot();
  return page.evaluate(async (png) => {
    const bitmap = await createImageBitmap(new Blob([new Uint8Array(png)]));
    const context = new OffscreenCanvas(bitmap.width, bitmap.height).getContext("2d");
    context.drawImage(bitmap, 0, 0);
    const { data } = context.getImageData(0, 0, bitmap.width, bitmap.height);
    const near = (at, color) => color.every((level, channel) => Math.abs(data[at + channel] - level) < 24);
    const parts = { black: 0, red: 0, other: 0 };
    for (let at = 0; at < data.length; at += 4) parts[near(at, [0, 0, 0]) ? "black" : near(at, [200, 30, 30]) ? "red" : "other"] += 4 / data.length;
    return parts;
  }, [...shot]);
}

test("preview and thumbnails have black behind transparent parts, as the model has", async (t) => {
  const { page, ...on } = await newPage(browser, t);
  await on.open(site);
  await on.ready();
  await on.show(picture("alpha.png", "image/png"));
  assert.equal(await page.locator("#film-notes").textContent(), "Transparent parts are shown on black.");
  for (const place of ["#film", "#thumbs svg >> nth=0"]) {
    const { black, red, other } = await colors(page, page.locator(place));
    assert.ok(red > 0.05 && black > 0.5, `${place}: ${red} red, ${black} black`);
    assert.ok(other < 0.06, `${place}: ${other} is neither: the noise, but for the frame of the crop`);
  }
});

test("what the engine does not read the browser decodes", async (t) => {
  const { page, seen, ...on } = await newPage(browser, t);
  await on.open(site);
  await on.ready();
  const notes = page.locator("#film-notes");
  await on.show(picture("slopes.avif", "image/avif"));
  assert.equal(await notes.textContent(), "This browser decoded the file.");
  assert.ok((await on.answerTo("What is this?")).length > 0);
  await on.show(svg(`<rect width="90" height="60" fill="white"/>`));
  assert.equal(await notes.textContent(), "This browser decoded the file.");
  await on.show(svg(`<circle cx="40" cy="30" r="20" fill="red"/>`));
  assert.equal(await notes.textContent(), "This browser decoded the file. Transparent parts are shown on black.");
  assert.deepEqual(seen.errors, []);
});

test("a JPEG without its end opens and says so; kinds that nobody reads are named once", async (t) => {
  const { page, image, ...on } = await newPage(browser, t);
  await on.open(site);
  await on.ready();
  await on.show(picture("noeoi.jpg", "image/jpeg"));
  assert.equal(await page.locator("#film-notes").textContent(), "The JPEG file lacks its end marker; all rows are there.");
  const heic = Buffer.from("\0\0\0\x18ftypheic\0\0\0\0mif1heic", "latin1");
  await image.setInputFiles({ name: "photo.heic", mimeType: "image/heic", buffer: heic });
  await page.locator("#image-error").getByText("This is a HEIC picture.", { exact: true }).waitFor();
  assert.equal(await page.getByText("reads it all the same").isVisible(), false);
  // What was open before comes back.
  await page.locator("#film-notes", { hasText: "The JPEG file lacks its end marker" }).waitFor();
});
