// A trained language model in the page, on demand (make test-real): its original GGUF file, which sees no pictures, and the LLaVA that tests/golden/real.py
// made from its weights. REAL names the folder with both.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { serveFile } from "../../../scripts/serve.mjs";
import { QUANTIZE, newPage, startChromium, startSite } from "../support.mjs";

const REAL = process.env.REAL ?? "target/real";
const N_TOKENS = 40;
const LONG_MS = 300_000; // about 300 MB of weights and a prompt, on any machine
const PICTURE = join(REAL, "picture.png");
const { pytorch, llama_cpp: llamaCpp } = JSON.parse(readFileSync(join(REAL, "questions.json"), "utf8"));

let browser;
let site;
before(async () => {
  browser = await startChromium();
  const fault = (path, request, response) => {
    if (!path.startsWith("models/real/")) return false;
    request.url = path.slice("models/real".length);
    serveFile(REAL, request, response);
    return true;
  };
  site = await startSite({ fault });
});
after(() => Promise.all([browser.close(), site.stop()]));

function nativeAnswer(...args) {
  return execFileSync(QUANTIZE, ["ask", ...args, "--max-tokens", String(N_TOKENS), "--ranks", "2"], { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] }).trim();
}

/** Asks in the page, however long that takes. */
async function answerTo(page, on, question) {
  await on.question.fill(question);
  await on.ask.click();
  await page.waitForFunction(() => document.querySelector("[data-testid=stop]").hidden && document.querySelector("[data-testid=answer]")?.textContent, null, { timeout: LONG_MS });
  return (await on.answer.textContent()).trim();
}

test("the GGUF file answers in the tool and in the page, which says that it sees no pictures", async (t) => {
  const file = join(REAL, "smollm2.gguf");
  const { page, seen, ...on } = await newPage(browser, t);
  await on.open(site, `decoder=models/real/smollm2.gguf&tokens=${N_TOKENS}&ranks=2`);
  await on.waitStatus(/^Ready: ask a question/, LONG_MS);
  assert.ok(await page.getByText("This model sees no pictures").isVisible());
  const { question, answer } = llamaCpp.find(({ question }) => question.includes("stethoscope"));
  const native = nativeAnswer("--decoder", file, "--prompt", question);
  const found = await answerTo(page, on, question);
  t.diagnostic(`llama.cpp: ${answer}\ntool: ${native}\npage: ${found}`);
  // Activations of 8 bits: a last bit may change a later word; the beginning is clear.
  for (const text of [answer, native, found]) assert.match(text, /^A stethoscope is a/);
  assert.deepEqual(seen.errors, []);
});

test("the same weights in f16 answer as PyTorch's do, in the tool and in the page, with a picture and without", async (t) => {
  const folder = join(REAL, "f16");
  const { page, seen, ...on } = await newPage(browser, t);
  const answers = await (async () => {
    await page.goto(site.url);
    return page.evaluate(async ([cases, picture, maxTokens]) => {
      const { load } = await import("./llama3med/index.js");
      const model = await load("models/real/f16/manifest.json", { ranks: 2, cache: false });
      const texts = [];
      for (const { question, image } of cases) {
        let text = "";
        const chat = model.chat(image ? { image: new Uint8Array(picture) } : {});
        for await (const piece of chat.ask(question, { maxTokens })) text += piece;
        texts.push(text.trim());
      }
      model.close();
      return texts;
    }, [pytorch, [...readFileSync(PICTURE)], N_TOKENS]);
  })();
  assert.deepEqual(answers, pytorch.map(({ answer }) => answer.trim()));
  for (const { question, image, answer } of pytorch) {
    assert.equal(nativeAnswer(folder, "--prompt", question, ...(image ? ["--image", PICTURE] : [])), answer.trim());
  }
  // And as a user does it.
  await on.open(site, `model=models/real/f16/manifest.json&tokens=${N_TOKENS}&ranks=2`);
  await on.waitStatus(/^Ready: open/, LONG_MS);
  await page.getByTestId("image-input").setInputFiles(PICTURE);
  await on.waitStatus(/^Ready: ask/, LONG_MS);
  const shown = pytorch.find(({ image }) => image);
  assert.equal(await answerTo(page, on, shown.question), shown.answer.trim());
  assert.deepEqual(seen.errors, []);
});
