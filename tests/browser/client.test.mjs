// The client itself, without the page: what applications that use it rely on.

import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { DIST, IMAGE, OTHER_IMAGE, makeModel, newPage, startChromium, startSite, TARGET } from "./support.mjs";

let browser;
let site;
before(async () => ([browser, site] = await Promise.all([startChromium(), startSite()])));
after(() => Promise.all([browser.close(), site.stop()]));

/** An empty page of this origin, with `use(function, value)` to run a function with the client. */
async function clientPage(t, context) {
  const { page, ...rest } = context ? { page: await context.newPage(), context } : await newPage(browser, t);
  await page.goto(`${site.url}icon.svg`);
  await page.evaluate(async (url) => {
    window.client = await import(url);
    window.caught = (promise) => promise.then(() => null, ({ name, kind, message }) => ({ name, kind, message }));
    window.textOf = async (answer) => {
      let text = "";
      for await (const piece of answer) text += piece;
      return text;
    };
  }, `${site.url}llama3med/index.js`);
  return { page, use: (script, value) => page.evaluate(script, value), ...rest };
}

const scriptsIn = (folder) => readdirSync(folder).filter((name) => name.endsWith(".js")).map((name) => [name, readFileSync(new URL(name, folder), "utf8").replace(/^\s*(\/\/|\*|\/\*).*$/gm, "")]);

test("every file that the client loads has a literal URL, as bundlers need it, and is in its folder", () => {
  for (const [name, text] of scriptsIn(new URL("../../www/llama3med/", import.meta.url))) {
    for (const [all, address] of text.matchAll(/(?:\bimport\(|\bfrom (?=")|new URL\((?=[^()]*import\.meta\.url))\s*([^,);]*)/g)) {
      assert.match(address, /^"\.\/[\w./]+"$/, `${name}: ${all}`);
      assert.doesNotMatch(address, /\.\.\//, `${name}: ${all}`);
    }
  }
});

test("the page uses the client only through its entry point", () => {
  const imports = scriptsIn(new URL("../../www/page/", import.meta.url)).flatMap(([, text]) => [...text.matchAll(/(?:\bimport\(|\bfrom )"(\.\.[^"]*)"/g)]);
  assert.ok(imports.length > 3);
  for (const [all, address] of imports) assert.equal(address, "../llama3med/index.js", all);
});

/** The module with its memory limited to `n_pages` of 64 KiB, as on a machine without more memory. */
function limitMemory(wasm, n_pages) {
  const number = (at) => {
    let value = 0;
    for (let shift = 0; ; shift += 7) {
      const byte = wasm[at++];
      value += (byte & 127) * 2 ** shift;
      if (byte < 128) return [value, at];
    }
  };
  const bytesOf = (value) => (value < 128 ? [value] : [(value & 127) | 128, ...bytesOf(value >> 7)]);
  for (let at = 8; at < wasm.length; ) {
    const [size, body] = number(at + 1);
    // Section 5, one memory without a maximum: 5, size, 1, 0, minimum.
    if (wasm[at] === 5) {
      const [minimum] = number(body + 2);
      const content = [1, 1, ...bytesOf(minimum), ...bytesOf(Math.max(minimum, n_pages))];
      return Buffer.concat([wasm.subarray(0, at), Buffer.from([5, ...bytesOf(content.length), ...content]), wasm.subarray(body + size)]);
    }
    at = body + size;
  }
  throw new Error("no memory section");
}

// From "not enough to start" to "enough for the model but not for a long conversation": each allocation fails in some of these cases.
for (const n_pages of [30, 45, 55, 65, 80, 100]) {
  test(`memory ends at ${n_pages} pages`, async (t) => {
    const { use } = await clientPage(t);
    t.after(() => (site.fault = null));
    site.fault = (path, _, response) => {
      if (!path.endsWith(".wasm")) return false;
      response.writeHead(200, { "Content-Type": "application/wasm", "Cache-Control": "no-store" });
      response.end(limitMemory(readFileSync(join(DIST, path)), n_pages));
      return true;
    };
    const error = await use(async (picture) => {
      try {
        const model = await client.load("models/test/manifest.json", { ranks: 2 });
        const chat = model.chat({ image: new Uint8Array(picture) });
        await chat.ready;
        for (let turn = 0; turn < 20; turn++) await textOf(chat.ask("long ".repeat(60), { maxTokens: 2 }));
        return "the memory was enough";
      } catch ({ name, kind, message }) {
        return { name, kind, message };
      }
    }, [...IMAGE.buffer]);
    // If a picture finds no memory, only the picture fails.
    const expected = error.kind === "image" ? /no memory is left/ : /^The memory of this browser is not enough: /;
    assert.ok(["out-of-memory", "image"].includes(error.kind), JSON.stringify(error));
    assert.match(error.message, expected);
    site.fault = null;
    const text = await use(async () => {
      const model = await client.load("models/test/manifest.json", { ranks: 2, build: "simd128" });
      return textOf(model.chat().ask("x", { maxTokens: 4 })).finally(() => model.close());
    });
    assert.equal(typeof text, "string");
  });
}

test("a picture too large for memory neither traps nor ends the model", async (t) => {
  const { use } = await clientPage(t);
  t.after(() => (site.fault = null));
  site.fault = (path, _, response) => {
    if (!path.endsWith(".wasm")) return false;
    response.writeHead(200, { "Content-Type": "application/wasm", "Cache-Control": "no-store" });
    response.end(limitMemory(readFileSync(join(DIST, path)), 600)); // 38 MiB
    return true;
  };
  const results = await use(async (good) => {
    const model = await client.load("models/test/manifest.json", { ranks: 1 });
    const results = [];
    for (const [width, height, type] of [[2000, 16000, "png"], [2000, 16000, "jpeg"], [4000, 4000, "webp"], [3000, 3000, "jpeg"], [1800, 1800, "webp"]]) {
      const canvas = new OffscreenCanvas(width, height);
      const context = canvas.getContext("2d");
      context.fillRect(0, 0, width, height);
      for (let i = 0; i < 2000; i++) context.clearRect((i * 37) % width, (i * 91) % height, 20, 20); // so that the file is not suspiciously small for its size
      const file = await canvas.convertToBlob({ type: `image/${type}` });
      results.push((await caught(model.chat({ image: file }).ready)) ?? "opened");
    }
    const chat = model.chat({ image: new Uint8Array(good) });
    results.push((await textOf(chat.ask("What is this?", { maxTokens: 4 }))).length);
    model.close();
    return results;
  }, [...IMAGE.buffer]);
  const text = JSON.stringify(results);
  assert.ok(results.slice(0, 2).every(({ kind, message }) => kind === "image" && /no memory is left/.test(message)), text);
  assert.ok(results.slice(2, -1).every((result) => result === "opened" || (result.kind === "image" && /no memory is left/.test(result.message))), text);
  assert.ok(results.at(-1) > 0, text);
});

test("if a question finds no memory, only the question fails", async (t) => {
  const { use } = await clientPage(t);
  t.after(() => (site.fault = null));
  // Without a picture: encoding one frees more memory than all keys and values of this model need.
  const session = async ({ limited }) => {
    const model = await client.load("models/test/manifest.json", { ranks: 2 });
    const chat = model.chat();
    await textOf(chat.ask("What is this?", { maxTokens: 2 }));
    const n_pages = Math.max(...(await model.memory())) / 65536;
    const errors = [];
    for (let turn = 0; limited && turn < 60 && errors.length === 0; turn++) {
      await textOf(chat.ask("long ".repeat(60), { maxTokens: 2 })).catch(({ kind, message, moreRanks }) => errors.push({ kind, message, moreRanks }));
    }
    // The model still works: another conversation replaces the long one.
    const text = await textOf(model.chat().ask("What is this?", { maxTokens: 16 }));
    model.close();
    return { n_pages, errors, text };
  };
  // Both runs bypass the browser's cache, since the same file has a different limit.
  const run = (n_pages, limited) => {
    site.fault = (path, _, response) => {
      if (!path.endsWith(".wasm")) return false;
      response.writeHead(200, { "Content-Type": "application/wasm", "Cache-Control": "no-store" });
      response.end(limitMemory(readFileSync(join(DIST, path)), n_pages));
      return true;
    };
    return use(session, { limited });
  };
  const free = await run(8192, false);
  const { errors, text } = await run(free.n_pages + 2, true);
  const [error] = errors;
  assert.equal(error?.kind, "out-of-memory");
  assert.match(error.message, /a longer conversation on [12] of 2 ranks/);
  assert.equal(error.moreRanks, 4);
  assert.equal(text, free.text);
});

test("an earlier picture is not read again", async (t) => {
  const { use } = await clientPage(t);
  const pictures = [IMAGE, OTHER_IMAGE].map(({ buffer }) => [...buffer]);
  const results = await use(async (pictures) => {
    const model = await client.load("models/test/manifest.json", { ranks: 2 });
    const results = [];
    for (const which of [0, 1, 0]) {
      let n_before = 0;
      const onProgress = ({ stage, total }) => stage === "reading" && (n_before = total);
      const chat = model.chat({ image: new Uint8Array(pictures[which]), onProgress });
      await chat.ready;
      await model.countTokens("a"); // runs after the chat's preparation
      const n_prepared = n_before;
      const text = await textOf(chat.ask("What is this?", { maxTokens: 8 }));
      results.push({ n_prepared, n_read: chat.timings.nPrompt - chat.timings.nReused, text });
      chat.close();
    }
    model.close();
    return results;
  }, pictures);
  const prepared = results.map(({ n_prepared }) => n_prepared);
  assert.ok(prepared[0] > 64 && prepared[1] >= 64 && prepared[2] === 0, JSON.stringify(prepared));
  assert.equal(results[2].text, results[0].text);
  assert.ok(results[2].n_read < 64);
});

test("a chat that begins with earlier turns continues like the original one", async (t) => {
  const { use } = await clientPage(t);
  const results = await use(async (picture) => {
    const model = await client.load("models/demo/manifest.json");
    const [first, second] = ["On which side is the bleed?", "Give a full report."];
    const run = async (history, questions) => {
      const chat = model.chat({ image: new Uint8Array(picture), history });
      const answers = [];
      for (const question of questions) answers.push(await textOf(chat.ask(question)));
      return { answers, nPrompt: chat.timings.nPrompt };
    };
    const whole = await run([], [first, second]);
    const goneOn = await run([{ question: first, answer: whole.answers[0] }], [second]);
    const alone = await run(undefined, [second]);
    model.close();
    return { whole, goneOn, alone };
  }, [...IMAGE.buffer]);
  assert.equal(results.goneOn.answers[0], results.whole.answers[1]);
  assert.equal(results.goneOn.nPrompt, results.whole.nPrompt);
  assert.ok(results.alone.nPrompt < results.whole.nPrompt);
});

/** Bytes of a BMP file of noise, different for every `seed`. Runs in the page. */
const makePicture = `(side, seed) => {
  const bytes = new Uint8Array(54 + 3 * side * side);
  const view = new DataView(bytes.buffer);
  bytes.set([0x42, 0x4d]);
  [[2, bytes.length], [10, 54], [14, 40], [18, side], [22, side]].forEach(([at, value]) => view.setUint32(at, value, true));
  view.setUint16(26, 1, true);
  view.setUint16(28, 24, true);
  for (let i = 54; i < bytes.length; i++) bytes[i] = (i * 31 + (i >> 8) * (17 + seed)) & 255;
  return bytes;
}`;

test("pictures that are replaced while their answers stream leave nothing behind", async (t) => {
  const { page, use } = await clientPage(t);
  await page.evaluate(`window.makePicture = ${makePicture}`);
  const side = 1400; // 5.9 MB
  const { first, last } = await use(async (side) => {
    const model = await client.load("models/test/manifest.json", { ranks: 1 });
    const replace = async (from, to) => {
      for (let seed = from; seed < to; seed++) {
        const chat = model.chat({ image: makePicture(side, seed) });
        await chat.ask("Describe everything.").next();
        chat.close();
      }
      await model.countTokens("a"); // runs after the pending operations
      return (await model.memory())[0];
    };
    const first = await replace(0, 6);
    const last = await replace(6, 30);
    model.close();
    return { first, last };
  }, side);
  // 24 pictures later, memory has grown by less than two of their files.
  assert.ok(last - first < 2 * 3 * side * side, `${first} bytes, then ${last}`);
});

test("a picture opened long ago is encoded again when it is asked about", async (t) => {
  const { page, use } = await clientPage(t);
  await page.evaluate(`window.makePicture = ${makePicture}`);
  const { alone, later, n_tiles, closed } = await use(async (picture) => {
    const model = await client.load("models/demo/manifest.json");
    const question = ["What kind of picture is this?", { maxTokens: 24 }];
    const alone = await textOf(model.chat({ image: new Uint8Array(picture) }).ask(...question));
    let n_tiles = 0;
    const bytes = new Uint8Array(picture);
    const chat = model.chat({ image: bytes, onProgress: ({ stage }) => (n_tiles += stage === "encoding") });
    await chat.ready;
    bytes.fill(0); // the chat has its own copy
    for (let seed = 0; seed < 4; seed++) {
      await model.chat({ image: makePicture(64, seed) }).ready;
      await model.countTokens("a"); // runs after the chat's preparation; the cache of the first picture must be dropped, too
    }
    n_tiles = 0;
    const later = await textOf(chat.ask(...question));
    chat.close();
    const closed = await caught(textOf(chat.ask(...question)));
    model.close();
    return { alone, later, n_tiles, closed };
  }, [...IMAGE.buffer]);
  assert.ok(alone.length > 0);
  assert.equal(later, alone);
  assert.ok(n_tiles > 0);
  assert.equal(closed.name, "AbortError");
});

test("chunks may be ranges of one file, if the host serves ranges", async (t) => {
  const manifest = makeModel();
  const whole = new Map();
  for (const file of manifest.files) {
    whole.set(file.name, Buffer.concat(file.chunks.map(({ path }) => readFileSync(join(TARGET, "test-model", path)))));
    let end = 0;
    file.chunks = file.chunks.map((chunk) => ({ ...chunk, path: file.name, offset: (end += chunk.size) - chunk.size }));
  }
  let servesRanges = true;
  t.after(() => (site.fault = null));
  site.fault = (path, request, response) => {
    const [, name] = /^models\/ranges\/(.*)$/.exec(path) ?? [];
    if (!name) return false;
    if (name === "manifest.json") return response.end(JSON.stringify(manifest));
    const [, start, end] = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range).map(Number);
    if (servesRanges) response.writeHead(206).end(whole.get(name).subarray(start, end + 1));
    else response.writeHead(200).end(whole.get(name));
    return true;
  };
  const { use } = await clientPage(t);
  const load = () => use(() => caught(client.load("models/ranges/manifest.json", { cache: false }).then((model) => model.close())));
  assert.equal(await load(), null);
  servesRanges = false;
  assert.match((await load()).message, /sent the whole file instead of the part/);
});

test("two tabs load the same model at once; afterwards the browser has all of it", async (t) => {
  const first = await clientPage(t);
  const second = await clientPage(t, first.context);
  const load = ({ use }) => use(async () => {
    const model = await client.load("models/test/manifest.json", { ranks: 1 });
    model.close();
  });
  await Promise.all([load(first), load(second)]);
  t.after(() => (site.fault = null));
  site.fault = (path, request) => path.startsWith("models/") && (request.socket.destroy(), true);
  await load(second);
  const size = await first.use(() => client.cachedSize("models/test/manifest.json"));
  assert.ok(size.complete && size.bytes > 1e6, JSON.stringify(size));
  const rest = await first.use(() => client.deleteCached("models/test/manifest.json").then(() => client.cachedSize("models/test/manifest.json")));
  assert.deepEqual(rest, { bytes: 0, complete: false });
});

test("impossible options are refused with a message", async (t) => {
  const { use } = await clientPage(t);
  const refusals = await use(async () => {
    const model = await client.load("models/test/manifest.json");
    const chat = model.chat();
    const answer = chat.ask("x", { maxTokens: 30 });
    const busy = await caught(textOf(chat.ask("y")));
    await textOf(answer);
    const all = {
      ranks: await caught(client.load("models/test/manifest.json", { ranks: 0 })),
      build: await caught(client.load("models/test/manifest.json", { build: "fast" })),
      temperature: await caught(textOf(chat.ask("y", { temperature: -1 }))),
      tokens: await caught(textOf(chat.ask("y", { maxTokens: 0.5 }))),
      busy,
    };
    model.close();
    return { ...all, closed: await caught(textOf(chat.ask("z"))) };
  });
  assert.match(refusals.ranks.message, /ranks must be a whole number from 1 to 64, found 0/);
  assert.match(refusals.build.message, /There is no build "fast"/);
  assert.match(refusals.temperature.message, /temperature must be 0 or more, found -1/);
  assert.match(refusals.tokens.message, /maxTokens must be a whole number/);
  assert.match(refusals.busy.message, /still being written/);
  assert.equal(refusals.closed.name, "AbortError");
});

test("the number of ranks follows from this device's measured speed; the demo model uses one", async (t) => {
  const { use } = await clientPage(t);
  const { gmacsPerSecond, exchangeMs, ranks } = await use(async (url) => {
    const { measure } = await import(`${url}llama3med/ranks.js`);
    const module = await WebAssembly.compileStreaming(fetch(`${url}llama3med/pkg/llama3med_simd128_bg.wasm`));
    const measured = await measure([1, 2], { build: "simd128", module });
    const model = await client.load("models/demo/manifest.json");
    model.close();
    return { ...measured, ranks: model.info.ranks };
  }, site.url);
  assert.ok(gmacsPerSecond.length === 2 && gmacsPerSecond.every((speed) => speed > 0.1), String(gmacsPerSecond));
  assert.ok(exchangeMs > 0 && exchangeMs < 100, String(exchangeMs));
  assert.equal(ranks, 1);
});

// Sixteen ranks add in a different order than one, and 8-bit activations sometimes turn the last bit into a whole step: a trained model's choices are clearer.
test("sixteen ranks give the same answer as one", async (t) => {
  const { use } = await clientPage(t);
  const answers = await use((picture) => Promise.all([1, 16].map(async (ranks) => {
    const model = await client.load("models/demo/manifest.json", { ranks });
    const text = await textOf(model.chat({ image: new Uint8Array(picture) }).ask("Describe this picture.", { maxTokens: 48 }));
    model.close();
    return { ranks: model.info.ranks, text };
  })), [...IMAGE.buffer]);
  assert.deepEqual(answers.map(({ ranks }) => ranks), [1, 16]);
  assert.ok(answers[0].text.length > 0);
  assert.equal(answers[1].text, answers[0].text);
});

test("the benchmark page returns one JSON object", async (t) => {
  const { page, seen } = await newPage(browser, t);
  for (const [query, key] of [["model=models/test/manifest.json&ranks=2&prompt=160&generate=8", "decode"], ["kernels=1&ms=20", "gmacsPerSecond"]]) {
    await page.goto(`${site.url}bench.html?${query}`);
    await page.waitForFunction(() => window.result, null, { timeout: 120_000 });
    const result = await page.evaluate(() => window.result);
    assert.ok(key in result, JSON.stringify(result));
    assert.deepEqual(JSON.parse(await page.locator("#output").textContent()), result);
  }
  assert.deepEqual(seen.errors, []);
});
