// Conversations through the client: pictures in any turn, tokens with their probabilities, stop texts, system texts, continued answers.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { IMAGE, OTHER_IMAGE, newPage, startChromium, startSite } from "./support.mjs";

let browser;
let site;
before(async () => ([browser, site] = await Promise.all([startChromium(), startSite()])));
after(() => Promise.all([browser.close(), site.stop()]));

const PICTURES = [IMAGE, OTHER_IMAGE].map(({ buffer }) => [...buffer]);

/** Runs a script in a page with the client, the two pictures as Blobs, a model with random weights, and `textOf`, which collects an answer. */
async function use(t, script) {
  const { page } = await newPage(browser, t);
  await page.goto(`${site.url}icon.svg`);
  return page.evaluate(async ({ url, pictures, script }) => {
    const client = await import(url);
    const textOf = async (answer) => {
      let text = "";
      for await (const piece of answer) text += piece;
      return text;
    };
    const model = await client.load("models/test/manifest.json", { ranks: 1 });
    const blobs = pictures.map((picture) => new Blob([new Uint8Array(picture)]));
    return new Function(`return ${script}`)()({ model, pictures: blobs, textOf }).finally(() => model.close());
  }, { url: `${site.url}llama3med/index.js`, pictures: PICTURES, script: String(script) });
}

test("pictures may occur in any turn, and a history with them continues like the conversation", async (t) => {
  const found = await use(t, async ({ model, pictures: [one, other], textOf }) => {
    const options = { maxTokens: 8 };
    const first = model.chat({ image: one });
    const alone = await textOf(first.ask("What is it?", options));
    const chat = model.chat();
    const inTurn = await textOf(chat.ask("What is it?", { ...options, images: [one] }));
    const sameReused = chat.timings.nPrompt - chat.timings.nReused;
    const second = await textOf(chat.ask("And this?", { ...options, images: [new Uint8Array(await other.arrayBuffer()), one] }));
    const n_prompt = chat.timings.nPrompt;
    const third = await textOf(chat.ask("Why?", options));
    const n_read = chat.timings.nPrompt - chat.timings.nReused;
    // After other pictures, these must be encoded again.
    for (let seed = 0; seed < 4; seed++) {
      const canvas = new OffscreenCanvas(40, 40);
      Object.assign(canvas.getContext("2d"), { fillStyle: `rgb(${50 * seed} 90 20)` }).fillRect(0, 0, 40, 30);
      await model.chat({ image: await canvas.convertToBlob() }).ready;
    }
    const text = (text) => ({ type: "text", text });
    const image = (image) => ({ type: "image", image });
    let n_tiles = 0;
    const goneOn = model.chat({
      history: [
        { role: "user", content: [image(one), text("What is it?")] },
        { role: "assistant", content: inTurn },
        { role: "user", content: [image(other), image(one), text("And this?")] },
        { role: "assistant", content: [text(second)] },
      ],
      onProgress: ({ stage }) => (n_tiles += stage === "encoding"),
    });
    const again = await textOf(goneOn.ask("Why?", options));
    const back = await textOf(chat.ask("Why?", options));
    return { alone, inTurn, sameReused, n_prompt, n_read, third, again, n_again: goneOn.timings.nPrompt, n_tiles, n_image: model.info.nImageTokens, back };
  });
  assert.equal(found.inTurn, found.alone);
  assert.equal(found.sameReused, 1);
  assert.ok(found.n_prompt > 3 * found.n_image, JSON.stringify(found));
  assert.ok(found.n_read < found.n_image, JSON.stringify(found));
  assert.ok(found.n_tiles > 0 && found.again.length > 0 && found.back.length > 0, JSON.stringify(found));
});

test("pictures that are no longer kept are sent again; more than four are refused", async (t) => {
  const found = await use(t, async ({ model, pictures: [one, other], textOf }) => {
    const options = { maxTokens: 8 };
    const draw = (seed) => {
      const canvas = new OffscreenCanvas(40, 40);
      Object.assign(canvas.getContext("2d"), { fillStyle: `rgb(${50 * seed} 90 20)` }).fillRect(0, 0, 40, 30);
      return canvas.convertToBlob();
    };
    const fresh = await textOf(model.chat().ask("Which?", { ...options, images: [one, other] }));
    let n_tiles = 0;
    const chat = model.chat({ image: one, onProgress: ({ stage }) => (n_tiles += stage === "encoding") });
    await chat.ready;
    for (let seed = 0; seed < 4; seed++) {
      await model.chat({ image: await draw(seed) }).ready;
      await model.countTokens("a"); // runs after the chat's preparation
    }
    n_tiles = 0;
    const later = await textOf(chat.ask("Which?", { ...options, images: [other] }));
    const five = model.chat().ask("Which?", { ...options, images: await Promise.all([0, 1, 2, 3, 4].map(draw)) });
    const refused = await textOf(five).catch(({ kind, message }) => ({ kind, message }));
    return { fresh, later, n_tiles, refused };
  });
  assert.equal(found.later, found.fresh);
  assert.ok(found.n_tiles > 0);
  assert.equal(found.refused.kind, "invalid");
  assert.match(found.refused.message, /5 pictures would have to be read at once, at most 4 can be/);
});

test("every token comes with its probability and the most likely others", async (t) => {
  const { text, tokens } = await use(t, async ({ model, textOf }) => {
    const tokens = [];
    const text = await textOf(model.chat().ask("What is it?", { maxTokens: 12, alternatives: 3, onToken: (token) => tokens.push(token) }));
    return { text, tokens };
  });
  assert.equal(tokens.length, 12);
  // The end of the text may be part of a character that no token completes.
  assert.ok(text.startsWith(tokens.map((token) => token.text).join("")), JSON.stringify({ text, tokens }));
  for (const { id, logprob, alternatives } of tokens) {
    assert.ok(Number.isInteger(id) && logprob <= 0);
    assert.deepEqual([alternatives.length, alternatives[0].id, alternatives[0].logprob], [3, id, logprob]);
    assert.ok(alternatives.every((other, idx) => typeof other.text === "string" && other.logprob <= alternatives[Math.max(0, idx - 1)].logprob));
  }
});

test("an answer can be continued, ends before a stop text, and follows a system text", async (t) => {
  const found = await use(t, async ({ model, pictures: [one], textOf }) => {
    const ask = async (chat, options) => {
      const ids = [];
      const text = await textOf(chat.ask("What is it?", { maxTokens: 24, onToken: ({ id }) => ids.push(id), ...options }));
      return { text, ids, finish: chat.finish, nPrompt: chat.timings.nPrompt };
    };
    const caught = (promise) => promise.then(() => null, ({ kind, message }) => ({ kind, message }));
    const whole = await ask(model.chat());
    const goneOn = await ask(model.chat(), { begin: whole.ids.slice(0, 5), maxTokens: 19 });
    const fromText = await ask(model.chat(), { begin: "Yes, ", maxTokens: 3 });
    const at = [...whole.text].findIndex((char, idx) => idx > 3 && char !== "\ufffd");
    const stop = [...whole.text][at];
    const stopped = await ask(model.chat(), { stop: ["no such text", stop] });
    const told = await ask(model.chat({ image: one, system: "Be brief." }));
    const toldNothing = await ask(model.chat({ image: one, system: "" }));
    const errors = [
      await caught(textOf(model.chat().ask("x", { begin: [1e9] }))),
      await caught(textOf(model.chat().ask("x", { stop: [""] }))),
      await caught(textOf(model.chat().ask("x", { alternatives: 101 }))),
      await caught(textOf(model.chat({ history: [{ role: "assistant", content: "x" }] }).ask("x"))),
      await caught(textOf(model.chat({ history: [{ role: "robot", content: "x" }] }).ask("x"))),
    ];
    return { whole, goneOn, fromText, stop, stopped, told, toldNothing, errors };
  });
  const { whole, goneOn, stop, stopped, errors } = found;
  assert.deepEqual(goneOn.ids, whole.ids.slice(5));
  assert.equal(goneOn.nPrompt, whole.nPrompt + 5);
  assert.ok(found.fromText.ids.length === 3 && found.fromText.nPrompt > whole.nPrompt);
  assert.equal(stopped.text, whole.text.slice(0, whole.text.indexOf(stop)));
  assert.equal(stopped.finish, "stop");
  assert.ok(found.told.nPrompt > found.toldNothing.nPrompt);
  const expected = [/id 1000000000 has no token/, /a stop text must not be empty/, /alternatives must be at most 100, found 101/, /Assistant out of turn/, /robot/];
  expected.forEach((expected, idx) => assert.match(errors[idx]?.message ?? "", expected));
  assert.ok(errors.every(({ kind }) => kind === "invalid"), JSON.stringify(errors));
});
