// Pictures in the page: transparency, formats that only the browser decodes, pictures too large for memory, and the notes about a file.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { after, before, test } from "node:test";
import { IMAGE, newPage, startChromium, startSite, wedgePng, wedgeTiff } from "./support.mjs";

let browser;
let site;
before(async () => ([browser, site] = await Promise.all([startChromium(), startSite()])));
after(() => Promise.all([browser.close(), site.stop()]));

const picture = (name, mimeType) => ({ name, mimeType, buffer: readFileSync(new URL(`../pictures/${name}`, import.meta.url)) });
const svg = (inside) => ({ name: "drawing.svg", mimeType: "image/svg+xml", buffer: Buffer.from(`<svg xmlns="http://www.w3.org/2000/svg" width="90" height="60">${inside}</svg>`) });

/** Fractions of a screenshot that are nearly black, nearly the red of alpha.png, and neither. */
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
  for (const place of ["#film", "#thumbs .square >> nth=0"]) {
    const { black, red, other } = await colors(page, page.locator(place));
    assert.ok(red > 0.05 && black > 0.5, `${place}: ${red} red, ${black} black`);
    assert.ok(other < 0.06, `${place}: ${other} is neither: the noise, but for the frame of the crop`);
  }
});

/** Levels of one row of the film, and of the first thumbnail. */
const shown = (page) => page.evaluate(() => ["#picture", "#thumbs canvas"].map((place) => {
  const canvas = document.querySelector(place);
  const { data } = canvas.getContext("2d").getImageData(0, canvas.height >> 1, canvas.width, 1);
  return [...data].filter((_, at) => at % 4 === 1);
}));

for (const [what, file, notes] of [
  ["a PNG of 16 bits", wedgePng(), ""],
  ["a TIFF of 16 bits", wedgeTiff(), ""],
  ["the first page of a TIFF", wedgeTiff(12), "Page 1 of 12 is used. "],
]) {
  test(`${what} is shown as the engine has decoded it`, async (t) => {
    const { page, ...on } = await newPage(browser, t);
    await on.open(site);
    await on.ready();
    await on.show(file);
    const [film, thumb] = await shown(page);
    assert.equal(film.length, 256);
    film.forEach((level, x) => assert.ok(Math.abs(level - x) <= 1, `${level} at ${x}`));
    thumb.forEach((level, x) => assert.ok(Math.abs(level - 2 * x) <= 3, `small picture: ${level} at ${x}`));
    assert.equal(await page.locator("#film-notes").textContent(), `${notes}The model sees values from 0 to 4080 from black to white.`);
    assert.equal(await page.locator("#no-preview").isVisible(), false);
  });
}

test("before the model is loaded, files that the browser would show differently are not shown", async (t) => {
  let release;
  const held = new Promise((resolve) => (release = resolve));
  const slow = await startSite({ fault: (path) => path.endsWith("decoder.gguf.003") && held.then(() => false) });
  t.after(() => slow.stop());
  const { page, image, ...on } = await newPage(browser, t);
  await on.open(slow);
  await on.waitStatus(/^Loading the model: .* of /);
  await image.setInputFiles(wedgePng());
  await page.getByText("This kind of file is shown when the model has read it.").waitFor();
  assert.equal(await page.locator("#picture").isVisible(), false);
  await image.setInputFiles(IMAGE);
  await page.waitForFunction(() => document.querySelector("#picture").width === 256);
  assert.equal(await page.locator("#no-preview").isVisible(), false);
  assert.equal(await page.locator("#thumbs button").count(), 0);
  await image.setInputFiles(wedgeTiff());
  await page.locator("#no-preview").waitFor();
  release();
  await on.waitStatus(/^Ready: ask/);
  const [film] = await shown(page);
  assert.deepEqual([film[0], film[255]], [0, 255]);
});

test("an unreadable picture is not shown, and causes exactly one message", async (t) => {
  const { page, image, ...on } = await newPage(browser, t);
  await on.open(site);
  await on.ready();
  const whole = wedgeTiff().buffer;
  const broken = Buffer.from(IMAGE.buffer);
  broken.fill(0, 200, 400); // the browser shows the part before it
  for (const [kind, buffer] of [["TIFF", whole.subarray(0, 30_000)], ["PNG", broken]]) {
    await image.setInputFiles({ name: "broken", mimeType: "", buffer });
    const alert = page.locator("#image-error");
    await alert.locator("pre", { hasText: kind }).waitFor({ state: "attached" });
    assert.equal(await alert.locator("strong").textContent(), "This picture could not be read.");
    assert.equal(await page.locator("#film").isVisible(), false);
    assert.doesNotMatch(await page.locator("#image").innerText(), /all the same|is shown/);
  }
  await on.show(IMAGE);
  assert.equal(await page.locator("#picture").isVisible(), true);
});

test("the browser decodes what the engine cannot", async (t) => {
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

test("a truncated JPEG opens with a note; unsupported kinds are named once", async (t) => {
  const { page, image, ...on } = await newPage(browser, t);
  await on.open(site);
  await on.ready();
  await on.show(picture("noeoi.jpg", "image/jpeg"));
  assert.equal(await page.locator("#film-notes").textContent(), "The JPEG file lacks its end marker; all rows are there.");
  const heic = Buffer.from("\0\0\0\x18ftypheic\0\0\0\0mif1heic", "latin1");
  await image.setInputFiles({ name: "photo.heic", mimeType: "image/heic", buffer: heic });
  await page.locator("#image-error").getByText("This is a HEIC picture.", { exact: true }).waitFor();
  assert.equal(await page.getByText("reads it all the same").isVisible(), false);
  // The previously open picture comes back.
  await page.locator("#film-notes", { hasText: "The JPEG file lacks its end marker" }).waitFor();
});
