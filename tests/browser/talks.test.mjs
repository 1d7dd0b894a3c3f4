// Nothing is lost without asking: conversations are set aside and returned to, kept on the device on request, and printed in full.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { IMAGE, OTHER_IMAGE, newPage, startChromium, startSite } from "./support.mjs";

let browser;
let site;
before(async () => ([browser, site] = await Promise.all([startChromium(), startSite()])));
after(() => Promise.all([browser.close(), site.stop()]));

const texts = (page) => page.locator(".asked").allTextContents();
const openTalks = async (page) => {
  await page.locator("#talks > summary").click();
  await page.locator("#talk-list li").first().waitFor();
};
/** Waits until the film shows the picture with this view box: the status line of the previous one reads the same. */
const framed = (page, box) => page.locator(`#overlay[viewBox="${box}"]`).waitFor({ state: "attached" });
const talk = (page, name) => page.locator("#talk-list .talk", { hasText: name });

/** Drops files anywhere on the page. */
const drop = (page, files) => page.evaluate((files) => {
  const transfer = new DataTransfer();
  for (const { name, bytes } of files) transfer.items.add(new File([new Uint8Array(bytes)], name));
  document.querySelector("#turns").dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
}, files.map(({ name, buffer }) => ({ name, bytes: [...buffer] })));

async function openPage(t, options) {
  const opened = await newPage(browser, t, options);
  await opened.open(site);
  await opened.ready();
  return opened;
}

test("another picture sets the conversation aside; on return the model remembers it", async (t) => {
  const { page, seen, answer, ...on } = await openPage(t);
  await on.show(IMAGE);
  await on.answerTo("First about the brain");
  const second = await on.answerTo("Second about the brain");
  await on.show(OTHER_IMAGE);
  assert.deepEqual(await texts(page), []);
  await on.answerTo("About the chest");
  await openTalks(page);
  assert.equal(await page.locator("#talk-list .talk").count(), 2);
  assert.match(await talk(page, "First about the brain").textContent(), /2 questions/);
  assert.equal(await page.locator("#talk-list canvas").count(), 2);
  await talk(page, "First about the brain").click();
  await on.waitStatus(/^Ready: ask/);
  assert.deepEqual(await texts(page), ["First about the brain", "Second about the brain"]);
  assert.equal(await answer.textContent(), second);
  await framed(page, "0 0 256 300");
  await on.answerTo("Third about the brain");
  await page.locator("#numbers summary").click();
  const [, n_prompt, n_reused] = /(\d+) tokens, (\d+) of them/.exec(await page.locator("#numbers dd", { hasText: "kept from before" }).textContent()).map(Number);
  assert.ok(n_reused > 64 && n_reused < n_prompt, `${n_reused} of ${n_prompt}`);
  assert.deepEqual(seen.errors, []);
});

test("with several pictures none is lost, and the open one is set aside", async (t) => {
  const { page, ...on } = await openPage(t);
  await on.show(IMAGE);
  await on.answerTo("Before the drop");
  await drop(page, [{ ...IMAGE, name: "a.png" }, { ...OTHER_IMAGE, name: "b.png" }, { ...IMAGE, name: "c.png" }]);
  await page.getByText("Opened a.png, the first of 3 pictures; the others wait under Conversations.").waitFor();
  await openTalks(page);
  assert.deepEqual(await page.locator("#talk-list .talk-name").allTextContents(), ["No question yet", "No question yet", "No question yet", "Before the drop"]);
  await page.locator("#talk-list .talk").nth(1).click();
  await on.waitStatus(/^Ready: ask/);
  await framed(page, "0 0 348 256");
});

test("too many pictures are reported", async (t) => {
  const { page, ...on } = await openPage(t);
  await drop(page, Array.from({ length: 23 }, (_, idx) => ({ ...IMAGE, name: `${idx}.png` })));
  await page.getByText(/the first of 23 pictures; the first 20 are under Conversations, the others were not taken/).waitFor();
  await openTalks(page);
  assert.equal(await page.locator("#talk-list .talk").count(), 20);
  // And there is a limit on conversations: none is deleted for another.
  for (let n_talks = 40; n_talks <= 100; n_talks += 20) {
    await drop(page, Array.from({ length: 20 }, (_, idx) => ({ ...IMAGE, name: `${n_talks} ${idx}.png` })));
    await page.waitForFunction((n_talks) => document.querySelector("#talk-count").textContent === String(n_talks), n_talks);
  }
  await drop(page, [IMAGE]);
  await page.locator("#image-error").getByText("There are 100 conversations already, and 100 at most.").waitFor();
  assert.equal(await page.locator("#talk-count").textContent(), "100");
});

test("a file that is not a picture closes nothing: it is refused, even while an answer is being written", async (t) => {
  const { page, question, ask, ...on } = await openPage(t);
  const dicom = Buffer.alloc(200);
  dicom.write("DICM", 128);
  await on.show(IMAGE);
  await on.answerTo("Is it still here?");
  for (const [name, buffer, title] of [["a.pdf", Buffer.from("%PDF-1.7\n"), "This is a PDF document."], ["b.dcm", dicom, "This is a DICOM file."],
    ["c.png", IMAGE.buffer.subarray(0, 300), "This picture could not be read."]]) {
    await drop(page, [{ name, buffer }]);
    await page.locator("#image-error").getByText(title, { exact: true }).waitFor();
    await page.waitForFunction(() => document.querySelector(".asked")?.textContent === "Is it still here?");
    await on.answerTo(`After ${name}`);
    await page.evaluate(() => document.querySelector("#image-error").replaceChildren());
  }
  assert.deepEqual(await texts(page), ["Is it still here?", "After a.pdf", "After b.dcm", "After c.png"]);
  await question.fill("A long one");
  await ask.click();
  await on.begun();
  await drop(page, [{ name: "d.pdf", buffer: Buffer.from("%PDF-1.7\n") }]);
  await page.locator("#image-error").getByText("This is a PDF document.").waitFor();
  await on.answered();
  assert.doesNotMatch(await page.locator(".meta").last().textContent(), /stopped/);
});

test("a reload asks if text would be lost, and not if it is kept or there is none", async (t) => {
  const { page, ...on } = await openPage(t);
  const dialogs = [];
  page.on("dialog", (dialog) => (dialogs.push(dialog.type()), dialog.accept()));
  await on.show(IMAGE);
  await page.reload();
  await on.ready();
  assert.deepEqual(dialogs, []);
  await on.show(IMAGE);
  await on.answerTo("Would this be lost?");
  await page.reload();
  await on.ready();
  assert.deepEqual(dialogs, ["beforeunload"]);
});

test("kept on the device only on request, pictures separately; the model remembers; turning it off deletes everything", async (t) => {
  const { page, answer, ...on } = await openPage(t);
  const folder = () => page.evaluate(async () => {
    try {
      const names = [];
      for await (const name of (await (await navigator.storage.getDirectory()).getDirectoryHandle("llama3med conversations")).keys()) names.push(name.replace(/^[\d]+-\w+/, "ID"));
      return names.sort();
    } catch {
      return null;
    }
  });
  const until = async (names) => {
    for (let attempt = 0; attempt < 100 && JSON.stringify(await folder()) !== JSON.stringify(names); attempt++) await page.waitForTimeout(50);
    assert.deepEqual(await folder(), names);
  };
  await on.show({ ...IMAGE, name: "Jane Doe.png" });
  const first = await on.answerTo("Is this kept?");
  assert.equal(await folder(), null);
  await openTalks(page);
  await page.locator("#keep-talks").check();
  await until(["ID.json", "settings.json"]);
  await page.locator("#keep-pictures").check();
  await until(["ID.json", "ID.picture", "settings.json"]);
  await page.reload();
  await on.ready();
  await openTalks(page);
  await talk(page, "Is this kept?").click();
  await on.waitStatus(/^Ready: ask/);
  assert.equal(await answer.textContent(), first);
  await on.answerTo("And does the model know of it?");
  await page.locator("#numbers summary").click();
  const prompt = await page.locator("#numbers dd", { hasText: "kept from before" }).textContent();
  assert.ok(Number(/(\d+) tokens/.exec(prompt)[1]) > 64 + 16, prompt); // the first answer alone has 64
  await openTalks(page);
  await page.locator("#keep-pictures").uncheck();
  await until(["ID.json", "settings.json"]);
  await page.reload();
  await on.ready();
  await openTalks(page);
  await talk(page, "Is this kept?").click();
  await page.getByText("The picture of this conversation is not here").waitFor();
  assert.equal(await page.locator(".turn").count(), 2);
  await openTalks(page);
  await page.locator("#keep-talks").uncheck();
  await until(null);
});

test("a conversation is deleted by a second press; the others stay", async (t) => {
  const { page, ...on } = await openPage(t);
  await on.show(IMAGE);
  await on.answerTo("One");
  await on.show(OTHER_IMAGE);
  await on.answerTo("Two");
  await openTalks(page);
  const button = page.getByRole("button", { name: "Delete: One" });
  await button.click();
  assert.equal(await page.locator("#talk-list li").count(), 2);
  await page.getByRole("button", { name: "Delete for good?" }).click();
  assert.equal(await page.locator("#talk-list li").count(), 1);
  await page.locator("#delete-talks").click();
  await page.getByRole("button", { name: "Delete for good?" }).click();
  await on.waitStatus(/^Ready: open/);
  assert.equal(await page.locator(".turn").count(), 0);
  assert.ok(await page.locator("#drop").isVisible());
});
