// The largest models in headless Chromium, on demand (`make test-large`): an 8B with random weights on two ranks, with a picture. Each needs about 7 GB of
// memory, and of disk once for the model.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { startServer } from "../../../bench/contestants.mjs";
import { model } from "../../../bench/models.mjs";
import { DIST, IMAGE, newPage, startChromium } from "../support.mjs";

const RANKS = 2;
const N_TOKENS = 8;
const MEMORY_LIMIT = 2 ** 32; // of one wasm memory

let browser;
let server;
before(async () => ([browser, server] = await Promise.all([startChromium(), startServer(DIST)])));
after(() => Promise.all([browser.close(), server.stop()]));

// The paper's model, and the pathology model: 14 tiles through a ViT-L, 46 tiles through a ViT-g.
for (const [shape, n_tiles] of [["8b-clip-s2", 14], ["8b-optimus-s2", 46]]) {
  test(`${shape} answers about a picture on ${RANKS} ranks`, { timeout: 3_600_000 }, async (t) => {
    const { name } = model(shape);
    const { page, seen } = await newPage(browser, t);
    await page.goto(`${server.origin}/bench.html?wait=1`); // a page of this site that does nothing
    const script = async ({ url, picture, ranks, maxTokens }) => {
      const { load } = await import("/llama3med/index.js");
      const model = await load(url, { ranks, cache: false });
      const chat = model.chat({ image: new Uint8Array(picture) });
      const frame = await chat.ready;
      const pieces = [];
      for await (const text of chat.ask("What does this picture show?", { maxTokens })) pieces.push({ text, time: performance.now() });
      const memory = await model.memory();
      model.close();
      return { frame, pieces, memory, finish: chat.finish, timings: chat.timings };
    };
    const order = { url: `/bench-models/${name}/manifest.json`, picture: [...IMAGE.buffer], ranks: RANKS, maxTokens: N_TOKENS };
    const { frame, pieces, memory, finish, timings } = await page.evaluate(script, order);
    t.diagnostic(`memory of the ranks: ${memory.map((bytes) => `${(bytes / 1e9).toFixed(2)} GB`).join(", ")}`);
    t.diagnostic(`load ${(timings.loadMs / 1000).toFixed(0)} s, encoding ${(timings.encodeMs / 1000).toFixed(0)} s, ${timings.tokensPerSecond?.toFixed(2)} tokens/s`);
    assert.equal(frame.tiles, n_tiles);
    assert.ok(memory.length === RANKS && memory.every((bytes) => bytes > 1e9 && bytes < MEMORY_LIMIT), String(memory));
    assert.ok(timings.nTokens === N_TOKENS || finish === "stop", `${timings.nTokens} tokens, ${finish}`);
    // It streams: the pieces arrive one by one, with the work for a token in between.
    assert.ok(pieces.length >= 2 && pieces.at(-1).time - pieces[0].time > 100, JSON.stringify(pieces));
    assert.deepEqual(seen.errors, []);
  });
}
