// Files and text that arrive by drop, paste or choice: what opens, what does not, and what the page says about the rest.

import assert from "node:assert/strict";
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { looksLikePicture } from "../../www/page/files.js";
import { IMAGE, OTHER_IMAGE, newPage, scratch, startChromium, startSite } from "./support.mjs";

let browser;
let site;
before(async () => ([browser, site] = await Promise.all([startChromium(), startSite()])));
after(() => Promise.all([browser.close(), site.stop()]));

async function openPage(t) {
  const opened = await newPage(browser, t);
  await opened.context.grantPermissions(["clipboard-read", "clipboard-write"]);
  await opened.open(site);
  await opened.ready();
  return opened;
}

/** A folder with these files, by their paths in it; null creates a folder. */
function makeFolder(name, files) {
  const folder = join(scratch(), name);
  rmSync(folder, { recursive: true, force: true });
  for (const [path, bytes] of Object.entries(files)) {
    mkdirSync(join(folder, path, bytes === null ? "." : ".."), { recursive: true });
    if (bytes !== null) writeFileSync(join(folder, path), bytes);
  }
  mkdirSync(folder, { recursive: true });
  return folder;
}

/** Drops files and folders from disk, as a file manager does. */
async function drop(page, paths) {
  const session = await page.context().newCDPSession(page);
  const data = { items: [], files: paths, dragOperationsMask: 1 };
  for (const type of ["dragEnter", "dragOver", "drop"]) await session.send("Input.dispatchDragEvent", { type, x: 300, y: 300, data });
}

/** Puts this into the clipboard, each kind as `{ type: text or bytes }`, and presses the keys that paste. */
async function paste(page, kinds) {
  await page.evaluate(async (kinds) => {
    const blobs = Object.entries(kinds).map(([type, content]) => [type, new Blob([Array.isArray(content) ? new Uint8Array(content) : content], { type })]);
    await navigator.clipboard.write([new ClipboardItem(Object.fromEntries(blobs))]);
  }, kinds);
  await page.keyboard.press("Control+V");
}

const PNG = [...IMAGE.buffer];
const CELLS = { "text/plain": "Age\tFinding\n61\tnodule", "text/html": "<table><tr><td>Age<td>Finding<tr><td>61<td>nodule</table>", "image/png": PNG };

// The page decides about dropped files before it has the engine, so it has its own list of first bytes.
test("every picture that the engine reads looks like one to the page", async () => {
  const folder = new URL("../golden/preprocess/", import.meta.url);
  const names = readdirSync(folder);
  assert.ok(names.length > 50);
  for (const name of names) assert.ok(await looksLikePicture(new File([readFileSync(new URL(name, folder))], "file")), name);
});

test("spreadsheet cells pasted into the question are text; film and conversation stay", async (t) => {
  const { page, question, seen, ...on } = await openPage(t);
  await on.show(OTHER_IMAGE);
  await on.answerTo("What is this?");
  await question.focus();
  await paste(page, CELLS);
  await page.waitForFunction(() => document.querySelector("[data-testid=question]").value !== "");
  assert.equal(await question.inputValue(), CELLS["text/plain"]);
  assert.equal(await page.locator(".turn").count(), 1);
  assert.equal(await page.locator("#overlay").getAttribute("viewBox"), "0 0 348 256");
  assert.deepEqual(seen.errors, []);
});

test("a picture alone opens wherever it is pasted; together with text it opens outside a text field", async (t) => {
  const { page, question, ...on } = await openPage(t);
  await question.focus();
  await paste(page, { "image/png": PNG });
  await on.waitStatus(/^Ready: ask/);
  await on.show(OTHER_IMAGE);
  await page.locator("#another").focus();
  await paste(page, CELLS);
  await page.waitForFunction(() => document.querySelector("#overlay").getAttribute("viewBox") === "0 0 256 300");
  assert.equal(await question.inputValue(), "");
});

test("text pasted outside a text field goes into the question", async (t) => {
  const { page, question } = await openPage(t);
  await question.fill("Is this a ");
  await page.locator("#choose").focus();
  await paste(page, { "text/plain": "pneumothorax?" });
  await page.waitForFunction(() => document.activeElement.id === "question");
  assert.equal(await question.inputValue(), "Is this a pneumothorax?");
});

test("a file copied in a file manager comes with its name as text: it is a picture", async (t) => {
  const { page, question, ...on } = await openPage(t);
  for (const text of ["chest film.png", "/home/me/chest film.png", "file:///home/me/chest%20film.png"]) {
    await page.evaluate(([bytes, text]) => {
      const clipboardData = new DataTransfer();
      clipboardData.items.add(new File([new Uint8Array(bytes)], "chest film.png", { type: "image/png" }));
      clipboardData.setData("text/plain", text);
      document.querySelector("[data-testid=question]").dispatchEvent(new ClipboardEvent("paste", { clipboardData, bubbles: true, cancelable: true }));
      document.querySelector("#status").textContent = "";
    }, [PNG, text]);
    await on.waitStatus(/^Ready: ask/);
    assert.equal(await question.inputValue(), "");
  }
});

test("a dropped folder opens its first picture, and the page says where the others are", async (t) => {
  const { page, seen, ...on } = await openPage(t);
  const folder = makeFolder("study", {
    ".hidden.png": IMAGE.buffer, "README.txt": "BMI and age", "b/film10.png": IMAGE.buffer, "b/film9": OTHER_IMAGE.buffer, "empty": null,
  });
  await drop(page, [folder]);
  await on.waitStatus(/^Ready: ask/);
  assert.equal(await page.locator("#overlay").getAttribute("viewBox"), "0 0 348 256");
  assert.equal(await page.locator("#opened").textContent(), "Opened film9, the first of 2 pictures; the others wait under Conversations.");
  assert.ok((await on.answerTo("What is this?")).length > 0);
  await on.show();
  assert.equal(await page.locator("#opened").textContent(), "");
  assert.deepEqual(seen.errors, []);
});

test("folders and files without a picture are reported, and the open picture stays", async (t) => {
  const { page, seen, ...on } = await openPage(t);
  await on.show(OTHER_IMAGE);
  const alert = page.locator("#image-error");
  await drop(page, [makeFolder("nothing", {})]);
  await alert.getByText("There is no picture in this folder.").waitFor();
  const folder = makeFolder("texts", { "a.txt": "a", "b.csv": "b,c" });
  await drop(page, [join(folder, "a.txt"), join(folder, "b.csv")]);
  await alert.getByText("There is no picture among these files.").waitFor();
  await drop(page, [join(folder, "a.txt")]);
  await alert.getByText("This is a text file.").waitFor();
  await on.show(IMAGE);
  assert.equal(await alert.textContent(), "");
  assert.ok((await on.answerTo("What is this?")).length > 0);
  assert.deepEqual(seen.errors, []);
});

// Files that no longer exist when the page reads them.
const dropGone = (page) => page.evaluate(() => {
  const dataTransfer = new DataTransfer();
  for (const file of document.querySelector("#kept").files) dataTransfer.items.add(file);
  document.querySelector("main").dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true }));
});

test("an unreadable file is reported, alone and among others", async (t) => {
  const { page, seen, ...on } = await openPage(t);
  const folder = makeFolder("gone", { "first.png": IMAGE.buffer, "second.png": OTHER_IMAGE.buffer });
  await page.evaluate(() => document.body.append(Object.assign(document.createElement("input"), { type: "file", id: "kept", multiple: true })));
  await page.locator("#kept").setInputFiles(join(folder, "first.png"));
  rmSync(join(folder, "first.png"));
  await dropGone(page);
  const alert = page.locator("#image-error");
  await alert.getByText("This file could not be read.").waitFor();
  await alert.locator("summary").click();
  assert.match(await alert.locator("pre").textContent(), /^first\.png: /);
  assert.match(await page.getByTestId("status").textContent(), /could not be read/);

  writeFileSync(join(folder, "first.txt"), "text");
  await page.locator("#kept").setInputFiles([join(folder, "first.txt"), join(folder, "second.png")]);
  rmSync(join(folder, "first.txt"));
  await dropGone(page);
  await on.waitStatus(/^Ready: ask/);
  assert.equal(await page.locator("#opened").textContent(), "first.txt could not be read.");
  assert.deepEqual(seen.errors, []);
});

test("a picture whose file disappears while it is open is reported as unreadable", async (t) => {
  const { page, image, seen, ...on } = await newPage(browser, t);
  let release;
  const held = new Promise((resolve) => (release = resolve));
  const slow = await startSite({ fault: (path) => path.endsWith("decoder.gguf.003") && held.then(() => false) });
  t.after(() => slow.stop());
  const folder = makeFolder("gone", { "film.png": IMAGE.buffer });
  await on.open(slow);
  await on.waitStatus(/^Loading the model: .* of /);
  await image.setInputFiles(join(folder, "film.png"));
  await page.waitForFunction(() => document.querySelector("#picture").width === 256);
  rmSync(folder, { recursive: true });
  release();
  await page.locator("#image-error").getByText("This file could not be read.").waitFor();
  assert.deepEqual(seen.errors, []);
});
