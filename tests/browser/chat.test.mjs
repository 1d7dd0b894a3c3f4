// The page in use: image, question, answer, stop, further turns, other images.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { IMAGE, OTHER_IMAGE, newPage, startChromium, startSite } from "./support.mjs";

let browser;
let site;
before(async () => ([browser, site] = await Promise.all([startChromium(), startSite()])));
after(() => Promise.all([browser.close(), site.stop()]));

test("an image is dropped, a question is answered, and the page names its random model", async (t) => {
  const { page, seen, info, answer, ...on } = await newPage(browser, t);
  await on.open(site);
  await on.ready();
  assert.match(await info.textContent(), /Random weights/);
  await page.evaluate((bytes) => {
    const transfer = new DataTransfer();
    transfer.items.add(new File([new Uint8Array(bytes)], "film.png", { type: "image/png" }));
    document.querySelector("#drop").dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
  }, [...IMAGE.buffer]);
  await on.waitStatus(/^Ready: ask/);
  const text = await on.answerTo("What does this picture show?");
  assert.ok(text.length > 0);
  assert.match(await page.locator(".meta").last().textContent(), /tokens/);
  assert.ok(await page.locator("footer").getByText("Not a medical device").isVisible());
  assert.ok(await page.locator("#about", { hasText: "answers mean nothing" }).isVisible());
  assert.deepEqual(seen.errors, []);
});

test("crop, tiles and the small pictures of each scale are shown", async (t) => {
  const { page, ...on } = await newPage(browser, t);
  await on.open(site);
  await on.ready();
  await on.show();
  const crop = await page.locator("#overlay .crop").evaluate((rect) => ["x", "y", "width", "height"].map((name) => Number(rect.getAttribute(name))));
  assert.deepEqual(crop, [0, 22, 256, 256]);
  const thumbs = page.locator("#thumbs button");
  assert.ok((await thumbs.count()) >= 2);
  await thumbs.nth(1).click();
  assert.equal(await thumbs.nth(1).getAttribute("aria-pressed"), "true");
  assert.equal(await page.locator("#overlay g:visible rect").count(), 4);
});

test("a pasted image counts, a suggested question is one click", async (t) => {
  const { page, answer, ...on } = await newPage(browser, t);
  await on.open(site);
  await on.ready();
  await page.evaluate((bytes) => {
    const transfer = new DataTransfer();
    transfer.items.add(new File([new Uint8Array(bytes)], "pasted.png", { type: "image/png" }));
    document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true, cancelable: true }));
  }, [...IMAGE.buffer]);
  await on.waitStatus(/^Ready: ask/);
  const chip = page.locator("#chips button").first();
  const question = await chip.textContent();
  await chip.click();
  await on.answered();
  assert.equal(await page.locator(".asked").textContent(), question);
});

test("Stop replaces Ask, ends the answer, and the text so far stays", async (t) => {
  const { ask, stop, answer, question, page, ...on } = await newPage(browser, t);
  await on.open(site);
  await on.ready();
  await on.show();
  await question.fill("Describe everything.");
  await on.atFirstWord(() => {
    const at = (id) => document.querySelector(`[data-testid=${id}]`);
    window.stopStoodWhereAskWas = at("stop").getBoundingClientRect().width > 0 && at("ask").hidden;
    at("stop").click();
  });
  await ask.click();
  await on.answered();
  assert.ok(await page.evaluate(() => window.stopStoodWhereAskWas));
  const text = await answer.textContent();
  assert.match(await page.locator(".meta").textContent(), /^stopped/);
  assert.ok(await ask.isVisible());
  assert.ok(text.length > 0);
  assert.equal(await answer.textContent(), text);
  assert.ok((await on.answerTo("And now?")).length > 0);
  assert.equal(await page.locator(".answered").count(), 2);
});

test("an answer of a few tokens shows no speed", async (t) => {
  for (const [n_tokens, hasSpeed] of [[2, false], [16, true]]) {
    const { page, ...on } = await newPage(browser, t);
    await on.open(site, `model=models/test/manifest.json&tokens=${n_tokens}`);
    await on.ready();
    await on.show();
    await on.answerTo("What is this?");
    await page.locator("#numbers summary").click();
    for (const place of [".meta", "#numbers"]) assert.equal(/tokens\/s/.test(await page.locator(place).textContent()), hasSpeed, `${n_tokens} tokens, ${place}`);
  }
});

test("a second turn knows the first", async (t) => {
  const { page, ...on } = await newPage(browser, t);
  await on.open(site);
  await on.ready();
  await on.show();
  await on.answerTo("First question");
  await on.answerTo("Second question");
  await page.locator("#numbers summary").click();
  const prompt = await page.locator("#numbers dd", { hasText: "kept from before" }).textContent();
  const [, n_prompt, n_reused] = /(\d+) tokens, (\d+) of them/.exec(prompt).map(Number);
  assert.ok(n_reused > 16 && n_reused < n_prompt, prompt);
});

test("an image and a question given before the model is loaded are kept", async (t) => {
  let release;
  const held = new Promise((resolve) => (release = resolve));
  const slow = await startSite({ fault: (path) => path.endsWith("decoder.gguf.003") && held.then(() => false) });
  t.after(() => slow.stop());
  const { image, question, ask, answer, stop, ...on } = await newPage(browser, t);
  await on.open(slow);
  await on.waitStatus(/^Loading the model: .* of /);
  await image.setInputFiles(IMAGE);
  await question.fill("Is it kept?");
  await ask.click();
  assert.ok(await stop.isVisible());
  release();
  await on.answered();
  assert.ok((await answer.textContent()).length > 0);
});

test("a second image starts over, even while the first is being encoded or answered about", async (t) => {
  const { page, image, question, ask, answer, seen, ...on } = await newPage(browser, t);
  await on.open(site);
  await on.ready();
  await image.setInputFiles(IMAGE);
  await image.setInputFiles(OTHER_IMAGE);
  await on.waitStatus(/^Ready: ask/);
  assert.equal(await page.locator("#overlay").getAttribute("viewBox"), "0 0 348 256");
  const alone = await on.answerTo("What is this?");
  await on.show(IMAGE);
  assert.equal(await page.locator(".turn").count(), 0);
  await question.fill("What is this?");
  await ask.click();
  await on.show(OTHER_IMAGE);
  assert.equal(await page.locator(".turn").count(), 0);
  assert.equal(await on.answerTo("What is this?"), alone);
  assert.deepEqual(seen.errors, []);
});

test("asking while an answer streams keeps the question and changes nothing else", async (t) => {
  const { page, question, ask, stop, ...on } = await newPage(browser, t);
  await on.open(site);
  await on.ready();
  await on.show();
  await question.fill("First");
  await on.atFirstWord(() => {
    document.querySelector("[data-testid=question]").value = "Second";
    document.querySelector("form").requestSubmit();
    window.n_turns = document.querySelectorAll(".turn").length;
  });
  await ask.click();
  await on.answered();
  assert.equal(await page.evaluate(() => window.n_turns), 1);
  assert.equal(await question.inputValue(), "Second");
  await on.answered();
  await question.press("Enter");
  await on.answered();
  assert.equal(await page.locator(".turn").count(), 2);
});

test("DICOM and files that are not images are refused in plain words; the page keeps working", async (t) => {
  const { page, image, ...on } = await newPage(browser, t);
  await on.open(site);
  await on.ready();
  const alert = page.locator("#image-error");
  const named = async (name, buffer, title) => {
    await image.setInputFiles({ name, mimeType: "", buffer });
    await alert.getByText(title, { exact: true }).waitFor();
    assert.doesNotMatch(await page.locator("#film").textContent(), /reads it all the same/);
  };
  const dicom = Buffer.alloc(200);
  dicom.write("DICM", 128);
  await named("slice.dcm", dicom, "This is a DICOM file.");
  await named("report.pdf", Buffer.from("%PDF-1.7\n"), "This is a PDF document.");
  await named("empty.png", Buffer.alloc(0), "This is an empty file.");
  await image.setInputFiles({ name: "broken.png", mimeType: "image/png", buffer: IMAGE.buffer.subarray(0, 300) });
  await alert.getByText("This picture could not be read.").waitFor();
  await alert.locator("summary").click();
  assert.match(await alert.locator("pre").textContent(), /PNG/i);
  await on.show();
  assert.equal(await alert.textContent(), "");
  assert.ok((await on.answerTo("Does it work now?")).length > 0);
});

test("copied and saved text includes the notice and no file name", async (t) => {
  const { page, context, ...on } = await newPage(browser, t);
  await context.grantPermissions(["clipboard-read", "clipboard-write"]);
  await on.open(site);
  await on.ready();
  await on.show({ ...IMAGE, name: "Jane Doe.png" });
  await on.answerTo("What is this?");
  await page.locator("#copy").click();
  await page.getByText("Copied").waitFor();
  const copied = await page.evaluate(() => navigator.clipboard.readText());
  assert.match(copied, /^Research software\. Not a medical device\./);
  assert.match(copied, /\n\nYou:\nWhat is this\?\n\nModel:\n\S/);
  const download = page.waitForEvent("download");
  await page.locator("#save").click();
  const stream = await (await download).createReadStream();
  const saved = (await stream.toArray()).join("");
  assert.equal(saved, copied);
  assert.doesNotMatch(copied, /Jane/);
});

test("questions and answers are read in the direction of their own script", async (t) => {
  const { page, question, answer, ask, ...on } = await newPage(browser, t);
  await on.open(site);
  await on.ready();
  await on.show();
  const direction = (locator) => locator.evaluate((element) => getComputedStyle(element).direction);
  await question.fill("هل القلب متضخم؟");
  assert.equal(await direction(question), "rtl");
  await ask.click();
  await on.answered();
  assert.equal(await direction(page.locator(".asked")), "rtl");
  await answer.evaluate((element) => (element.textContent = "نعم.\nNo."));
  assert.equal(await direction(answer), "rtl");
  // Line by line: the second one is aligned left.
  const [first, second] = await answer.evaluate((element) => {
    const range = document.createRange();
    return [0, 5].map((start) => {
      range.setStart(element.firstChild, start);
      range.setEnd(element.firstChild, start + 3);
      const { left, right } = range.getBoundingClientRect();
      const box = element.getBoundingClientRect();
      return { fromLeft: left - box.left, fromRight: box.right - right };
    });
  });
  assert.ok(first.fromRight < 2 && second.fromLeft < 2, JSON.stringify({ first, second }));
});

test("keys that belong to an input method neither send a question nor stop an answer", async (t) => {
  const { page, question, ask, stop, ...on } = await newPage(browser, t);
  await on.open(site);
  await on.ready();
  await on.show();
  await question.fill("心臓は大きいですか");
  const press = (init) => question.evaluate((element, init) => element.dispatchEvent(new KeyboardEvent("keydown", { bubbles: true, cancelable: true, ...init })), init);
  // As Chromium and Firefox report it, and as Safari does.
  assert.ok(await press({ key: "Enter", keyCode: 13, isComposing: true }));
  assert.ok(await press({ key: "Enter", keyCode: 229, isComposing: false }));
  assert.equal(await page.locator(".turn").count(), 0);
  await on.atFirstWord(() => {
    document.querySelector("[data-testid=question]").dispatchEvent(new KeyboardEvent("keydown", { key: "Escape", keyCode: 229, bubbles: true }));
  });
  await ask.click();
  await on.answered();
  assert.doesNotMatch(await page.locator(".meta").textContent(), /^stopped/);
});

test("an answer that repeated itself says so, on the page and in the saved text", async (t) => {
  const standIn = await startSite({ fake: true });
  t.after(() => standIn.stop());
  const { page, context, ...on } = await newPage(browser, t);
  await context.grantPermissions(["clipboard-read", "clipboard-write"]);
  await on.open(standIn, "fake=repetition");
  await on.ready();
  await on.show();
  await on.answerTo("What is this?");
  assert.match(await page.locator(".meta").textContent(), /^stopped: it repeated itself · \d+ tokens/);
  await page.locator("#copy").click();
  await page.getByText("Copied").waitFor();
  assert.match(await page.evaluate(() => navigator.clipboard.readText()), /\n\[stopped: it repeated itself\]\n/);
});
