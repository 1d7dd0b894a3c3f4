// A pair of GGUF files from llama.cpp's converters (tests/golden/pair_llama_cpp.py): from URLs and from the user's own files, whole and split, and files that
// are not a pair.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { after, before, test } from "node:test";
import { copyFileSync, existsSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { serveFile } from "../../scripts/serve.mjs";
import { IMAGE, QUANTIZE, newPage, samplePath, scratch, startChromium, startSite } from "./support.mjs";

const FOLDER = join(dirname(fileURLToPath(import.meta.url)), "../golden/pair");
const file = (name) => join(FOLDER, name);
const QUESTION = "What does the picture show?";
const N_TOKENS = 12;

let browser;
let site;
before(async () => {
  browser = await startChromium();
  const fault = (path, request, response) => {
    if (!path.startsWith("models/pair/")) return false;
    request.url = path.slice("models/pair".length);
    serveFile(existsSync(join(FOLDER, request.url)) ? FOLDER : scratch(), request, response);
    return true;
  };
  site = await startSite({ fault });
});
after(() => Promise.all([browser.close(), site.stop()]));

/** The native answer of the same two files. */
function nativeAnswer() {
  const args = ["ask", "--decoder", file("decoder.gguf"), "--encoder", file("mmproj.gguf"), "--image", samplePath("brain.png"), "--prompt", QUESTION,
    "--max-tokens", String(N_TOKENS), "--ranks", "1"];
  return execFileSync(QUANTIZE, args, { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] }).trim();
}

const query = (decoder, encoder = "mmproj.gguf") => `decoder=models/pair/${decoder}&encoder=models/pair/${encoder}&tokens=${N_TOKENS}&ranks=2`;

test("a pair at two URLs answers as it does natively, whole and split", async (t) => {
  const expected = nativeAnswer();
  assert.ok(expected.length > 0);
  for (const decoder of ["decoder.gguf", "split-00001-of-00003.gguf"]) {
    const { page, seen, info, ...on } = await newPage(browser, t);
    await on.open(site, query(decoder));
    await on.ready();
    assert.match(await info.textContent(), /small LLaVA/);
    await on.show(IMAGE);
    assert.equal((await on.answerTo(QUESTION)).trim(), expected, decoder);
    await page.waitForFunction(() => document.querySelector("#record").textContent.match(/, sha256 of its header [0-9a-f]{64}\n/g)?.length === 2);
    assert.deepEqual(seen.errors, []);
  }
});

/** Makes a decoder.gguf with 3 MB of additional metadata: a real vocabulary goes beyond the first MiB of its file. */
function withLongHeader() {
  const bytes = readFileSync(file("decoder.gguf"));
  const [key, n_fixed] = [Buffer.from("general.remarks"), 24];
  const added = Buffer.alloc(3 << 20, "x"); // a multiple of the alignment
  added.writeBigUInt64LE(BigInt(key.length), 0);
  key.copy(added, 8);
  added.writeUInt32LE(8, 8 + key.length); // a string
  added.writeBigUInt64LE(BigInt(added.length - key.length - 20), 12 + key.length);
  bytes.writeBigUInt64LE(bytes.readBigUInt64LE(16) + 1n, 16);
  writeFileSync(join(scratch(), "long-header.gguf"), Buffer.concat([bytes.subarray(0, n_fixed), added, bytes.subarray(n_fixed)]));
}

test("however long a header is, no byte of a file is fetched twice", async (t) => {
  withLongHeader();
  const expected = nativeAnswer();
  for (const decoder of ["long-header.gguf", "split-00001-of-00003.gguf"]) {
    const { seen, ...on } = await newPage(browser, t);
    site.log.length = 0;
    await on.open(site, query(decoder));
    await on.ready();
    await on.show(IMAGE);
    assert.equal((await on.answerTo(QUESTION)).trim(), expected);
    const ranges = new Map();
    for (const { path, range } of site.log.filter(({ path }) => path.startsWith("models/pair/"))) {
      ranges.set(path, [...(ranges.get(path) ?? []), range.match(/\d+/g).map(Number)]);
    }
    assert.equal(ranges.size, decoder.startsWith("split") ? 4 : 2);
    for (const [path, [first, ...rest]] of ranges) {
      assert.deepEqual(first, [0, 0], "the byte with which the server tells the size");
      const name = path.replace("models/pair/", "");
      const { size } = statSync(join(name.startsWith("long") ? scratch() : FOLDER, name));
      assert.equal(rest.reduce((sum, [start, end]) => sum + end + 1 - start, 0), size, `${name}: ${JSON.stringify(rest)}`);
    }
    assert.deepEqual(seen.errors, []);
  }
});

test("the user's own files replace the model, and are not fetched", async (t) => {
  const expected = nativeAnswer();
  const { page, seen, info, ...on } = await newPage(browser, t);
  await on.open(site, `model=models/test/manifest.json&tokens=${N_TOKENS}`);
  await on.ready();
  await on.show(IMAGE);
  site.log.length = 0;
  const parts = [2, 3, 1].map((part) => file(`split-0000${part}-of-00003.gguf`));
  for (const files of [[file("mmproj.gguf"), file("decoder.gguf")], [...parts, file("mmproj.gguf")]]) {
    await page.getByTestId("model-input").setInputFiles(files);
    await on.waitStatus(/^Loading/);
    await on.waitStatus(/^Ready: ask/);
    assert.match(await info.textContent(), /small LLaVA/);
    assert.match(await info.textContent(), /files that you chose/);
    assert.equal((await on.answerTo(QUESTION)).trim(), expected);
  }
  assert.deepEqual(site.paths().filter((path) => path.startsWith("models/")), []);
  assert.deepEqual(seen.errors, []);
});

test("dropped model files are opened as a model, not as a picture", async (t) => {
  const { page, seen, info, ...on } = await newPage(browser, t);
  await on.open(site);
  await on.ready();
  await page.evaluate(async (names) => {
    const dataTransfer = new DataTransfer();
    for (const name of names) {
      const bytes = await (await fetch(`models/pair/${name}`)).arrayBuffer();
      dataTransfer.items.add(new File([bytes], name));
    }
    document.dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true }));
  }, ["decoder.gguf", "mmproj.gguf"]);
  await on.waitStatus(/^Loading/);
  await on.ready();
  assert.match(await info.textContent(), /small LLaVA/);
  assert.deepEqual(seen.errors, []);
});

test("a decoder alone answers in text, says that it sees no pictures, and refuses them", async (t) => {
  const args = ["ask", "--decoder", file("decoder.gguf"), "--prompt", QUESTION, "--max-tokens", String(N_TOKENS), "--ranks", "1"];
  const expected = execFileSync(QUANTIZE, args, { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] }).trim();
  const { page, seen, ...on } = await newPage(browser, t);
  const error = page.locator("#image-error");
  const drop = page.locator("#drop");
  // From a URL, with a picture that came too early; then from a file, replacing a model that sees pictures and has one open.
  await on.open(site, `decoder=models/pair/decoder.gguf&tokens=${N_TOKENS}&ranks=2`);
  await page.getByTestId("image-input").setInputFiles(IMAGE);
  await on.waitStatus(/^Ready: ask a question/);
  for (const round of ["address", "file"]) {
    assert.ok(await drop.getByText("This model sees no pictures").isVisible(), round);
    assert.ok(await drop.getByText("choose a file").isHidden());
    await on.question.fill("");
    await page.getByTestId("image-input").setInputFiles(IMAGE);
    await page.waitForFunction(() => /sees no pictures[^]*image encoder/.test(document.querySelector("#image-error").textContent));
    assert.ok(await page.locator("#film").isHidden());
    assert.equal((await on.answerTo(QUESTION)).trim(), expected);
    assert.equal(await error.textContent(), "");
    assert.match(await page.locator("#numbers-body").textContent(), /^Conversation.*Context/);
    if (round === "file") break;
    await on.open(site, `model=models/test/manifest.json&tokens=${N_TOKENS}`);
    await on.ready();
    await on.show(IMAGE);
    await page.getByTestId("model-input").setInputFiles(file("decoder.gguf"));
    await on.waitStatus(/sees no pictures|^Ready: ask a question/);
    await page.waitForFunction(() => /sees no pictures/.test(document.querySelector("#image-error").textContent));
  }
  // And back to a model that sees them.
  await page.getByTestId("model-input").setInputFiles([file("decoder.gguf"), file("mmproj.gguf")]);
  await on.ready();
  await on.show(IMAGE);
  assert.deepEqual(seen.errors, []);
});

test("through the client: a decoder alone takes no picture, a pair needs none", async (t) => {
  const { page } = await newPage(browser, t);
  await page.goto(site.url);
  const found = await page.evaluate(async ([question, maxTokens, picture]) => {
    const { load } = await import("./llama3med/index.js");
    const results = {};
    for (const [name, files] of Object.entries({ alone: ["decoder.gguf"], pair: ["decoder.gguf", "mmproj.gguf"] })) {
      const model = await load(files.map((file) => `models/pair/${file}`), { ranks: 2 });
      let text = "";
      for await (const piece of model.chat().ask(question, { maxTokens })) text += piece;
      const looked = await model.chat({ image: new Uint8Array(picture) }).ready.then(({ tiles }) => tiles, ({ kind }) => kind);
      let after = "";
      for await (const piece of model.chat({}).ask(question, { maxTokens })) after += piece;
      results[name] = { text, after, looked, seesPictures: model.info.seesPictures };
      model.close();
    }
    return results;
  }, [QUESTION, N_TOKENS, [...IMAGE.buffer]]);
  const { text } = found.alone;
  assert.ok(text.length > 0);
  assert.deepEqual(found.alone, { text, after: text, looked: "no-vision", seesPictures: false });
  assert.deepEqual(found.pair, { text, after: text, looked: 1, seesPictures: true });
});

test("files are recognised by content, and unused ones are reported", async (t) => {
  const expected = nativeAnswer();
  const { page, seen, info, ...on } = await newPage(browser, t);
  await on.open(site, `model=models/test/manifest.json&tokens=${N_TOKENS}`);
  await on.ready();
  const copy = (from, name) => (copyFileSync(file(from), join(scratch(), name)), join(scratch(), name));
  const encoder = copy("mmproj.gguf", "sha256-8c5fe2f5");
  const readme = join(scratch(), "README.md");
  writeFileSync(readme, "# A model\n");
  const notes = page.locator("#notes");
  for (const [names, isRest] of [[[copy("decoder.gguf", "sha256-74a1c4d1"), encoder]], [[copy("decoder.gguf", "decoder (1).gguf"), encoder, readme, samplePath("brain.png")], true],
    [[3, 1, 2].map((part) => copy(`split-0000${part}-of-00003.gguf`, `sha256-part-${part}`)).concat(encoder)],
    [[2, 3, 1].map((part) => copy(`split-0000${part}-of-00003.gguf`, `x-0000${part}-of-00003 (${part}).gguf`)).concat(encoder)]]) {
    const { model } = await page.evaluate(() => ({ model: document.querySelector("#model-name").textContent }));
    assert.ok(model);
    await page.getByTestId("model-input").setInputFiles(names);
    await on.waitStatus(/^Loading/);
    await on.ready();
    assert.match(await info.textContent(), /small LLaVA/);
    if (isRest) assert.match(await notes.textContent(), /Used: decoder \(1\)\.gguf, sha256-8c5fe2f5\. Not used, for they are not GGUF files: README\.md, brain\.png/);
    else assert.equal(await notes.textContent(), "");
  }
  await on.show(IMAGE);
  assert.equal((await on.answerTo(QUESTION)).trim(), expected);
  assert.deepEqual(seen.errors, []);
});

test("a picture and a README dropped with a model are reported; without a model the picture opens", async (t) => {
  const { page, info, ...on } = await newPage(browser, t);
  await on.open(site);
  await on.ready();
  const drop = (files) => page.evaluate((files) => {
    const dataTransfer = new DataTransfer();
    for (const [name, bytes] of files) dataTransfer.items.add(new File([new Uint8Array(bytes)], name));
    document.dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true }));
  }, files.map(([name, path]) => [name, [...readFileSync(path)]]));
  await drop([["brain.png", samplePath("brain.png")], ["sha256-1", file("mmproj.gguf")], ["sha256-2", file("decoder.gguf")]]);
  await page.waitForFunction(() => document.querySelector("#model-name").textContent.includes("small LLaVA"));
  await on.ready();
  assert.match(await page.locator("#notes").textContent(), /Not used, for it is not a GGUF file: brain\.png/);
  await drop([["brain.png", samplePath("brain.png")]]);
  await on.waitStatus(/^Ready: ask/);
});

/** Opens a model whose last bytes do not arrive before the returned function is called. */
async function beginLoading(t, on) {
  let release;
  const held = new Promise((resolve) => (release = resolve));
  const other = await startSite({ fault: (path) => path === "models/test/decoder.gguf.004" && held.then(() => false) });
  t.after(() => other.stop());
  await on.open(other, "model=models/test/manifest.json&ranks=1");
  await on.waitStatus(/^Loading the model: .* of /);
  return release;
}

test("of two choices before the first model is loaded, the last one counts, and no other keeps running", async (t) => {
  const { page, info, ...on } = await newPage(browser, t);
  const release = await beginLoading(t, on);
  const choose = (names) => page.getByTestId("model-input").setInputFiles(names.map(file));
  await choose(["decoder.gguf", "mmproj.gguf"]);
  await choose(["decoder.gguf"]);
  await choose(["mmproj.gguf", "decoder.gguf"]);
  await on.ready();
  release();
  assert.match(await info.textContent(), /small LLaVA/);
  assert.equal(page.workers().length, 1);
  await on.show();
  assert.equal(page.workers().length, 1);
});

test("a model that is still loading stays when the choice was wrong", async (t) => {
  const { page, info, ...on } = await newPage(browser, t);
  const release = await beginLoading(t, on);
  await page.getByTestId("model-input").setInputFiles([file("mmproj.gguf")]);
  await page.locator("#load-error").getByText("These files are not a model").waitFor();
  release();
  await on.ready();
  assert.match(await info.textContent(), /[Rr]andom/);
});

test("files that are not a pair are named, and the working model stays", async (t) => {
  const { page, info, ...on } = await newPage(browser, t);
  await on.open(site);
  await on.ready();
  await on.show(IMAGE);
  const name = await info.locator("#model-name").textContent();
  const renamed = join(scratch(), "text.gguf");
  copyFileSync(file("text.safetensors"), renamed);
  const alert = page.locator("#load-error");
  const [pointer, half] = ["pointer.gguf", "half.gguf"].map((name) => join(scratch(), name));
  writeFileSync(pointer, "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4661216384\n");
  writeFileSync(half, readFileSync(file("decoder.gguf")).subarray(0, statSync(file("decoder.gguf")).size - 1000));
  const cases = [
    [[file("mmproj.gguf")], /These files are not a model[^]*The language model is missing/],
    [[file("decoder.gguf"), file("split-00001-of-00003.gguf"), file("mmproj.gguf")], /one of 3 parts/],
    [[renamed, file("mmproj.gguf")], /text\.gguf: magic: expected "GGUF"/],
    [[pointer, file("mmproj.gguf")], /is a Git LFS pointer[^]*pointer\.gguf/],
    [[half, file("mmproj.gguf")], /is cut short[^]*half\.gguf/],
    [[file("text.safetensors"), samplePath("brain.png")], /These files are not a model[^]*None of these is a GGUF file: text\.safetensors, brain\.png/],
  ];
  for (const [files, words] of cases) {
    await page.getByTestId("model-input").setInputFiles(files);
    await page.waitForFunction(([source]) => new RegExp(source).test(document.querySelector("#load-error").textContent), [words.source]);
    assert.equal(await info.locator("#model-name").textContent(), name);
    assert.equal(await info.locator("#model-word").textContent(), "ready");
    assert.equal(await alert.getByRole("button").count(), 0);
    assert.ok((await on.answerTo("What is this?")).length > 0);
  }
  assert.equal(await page.locator(".divider").count(), 0);
  // A picture chosen as a model by mistake is opened as a picture.
  await page.getByTestId("model-input").setInputFiles([samplePath("brain.png")]);
  await page.waitForFunction(() => !document.querySelector(".turn"));
  await on.waitStatus(/^Ready: ask/);
  // An encoder alone, a URL without a file, and an unknown template, in place of which the file's own is used.
  const addresses = [["encoder=models/pair/mmproj.gguf", "#load-error", /The language model is missing/],
    [query("none.gguf"), "#load-error", /not at its place/], [`${query("decoder.gguf")}&template=alpaca`, "#notes", /template must be one of llama3/]];
  for (const [address, place, words] of addresses) {
    await on.open(site, address);
    await page.waitForFunction(([place, source]) => new RegExp(source).test(document.querySelector(place).textContent), [place, words.source]);
  }
});
