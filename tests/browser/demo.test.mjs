// The bundled model on its own samples: offered, opened with a click, asked with the chips, and answered correctly.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { nativeAnswer, newPage, samplePath, startChromium, startSite } from "./support.mjs";

// The output of demo/samples.py.
const REPORT = "Give a full report.";
const SHOWS = "What does the picture show?";
const SAMPLES = {
  "Drawn chest film": {
    "Is the heart enlarged?": "Yes.",
    "Where are the septal lines?": "In the right upper zone.",
    "Are the fine lines horizontal or vertical?": "Horizontal.",
    [REPORT]: "Chest film. Heart: enlarged. Effusion: right. Septal lines: vertical, right upper zone. Fine lines: horizontal, left lower zone.",
    [SHOWS]: "The chest.",
  },
  "Drawn CT slice of a brain": {
    "On which side is the bleed?": "On the left.",
    "Where is the coarse patch?": "In the left front quadrant.",
    "How many fine spots are there?": "2.",
    [REPORT]: "Brain CT. Ventricles: normal. Bleed: left. Coarse patch: barred horizontal, left front quadrant. Fine spots: 2, right back and left back quadrant.",
    [SHOWS]: "The brain.",
  },
  "Drawn section of stained tissue": {
    "What colour is the stain?": "Pink.",
    "Where are the bands?": "In the upper left quadrant.",
    "Are the fine stripes horizontal or vertical?": "Vertical.",
    [REPORT]: "Stained tissue. Stain: pink. Cellularity: low. Bands: horizontal, upper left quadrant. Fine stripes: vertical, lower right quadrant.",
    [SHOWS]: "The tissue.",
  },
  "Drawn back of an eye": {
    "Is this a right or a left eye?": "Right.",
    "Where is the mottling?": "In the upper right quadrant.",
    "How many fine dots are there?": "3.",
    [REPORT]: "Eye fundus. Eye: right. Haemorrhage: lower left quadrant. Mottling: upper right quadrant. Fine dots: 3, upper left, upper right and lower left quadrant.",
    [SHOWS]: "The eye.",
  },
};

let browser;
let site;
before(async () => ([browser, site] = await Promise.all([startChromium(), startSite()])));
after(() => Promise.all([browser.close(), site.stop()]));

/** A page with the bundled model, without naming it in the address. */
async function demoPage(t) {
  const { page, seen, ...on } = await newPage(browser, t);
  await on.open(site, "tokens=128");
  await on.ready();
  return { page, seen, ...on };
}

test("the page offers the samples and says what the model has learned", async (t) => {
  const { page, info, seen } = await demoPage(t);
  assert.match(await info.textContent(), /PhantomVQA demo/);
  assert.match(await page.locator("#about").textContent(), /drawn phantoms only.*Not a medical device/);
  const images = page.locator("#samples img");
  assert.deepEqual(await images.evaluateAll((all) => all.map(({ alt }) => alt)), Object.keys(SAMPLES));
  await page.waitForFunction(() => [...document.querySelectorAll("#samples img")].every(({ naturalWidth }) => naturalWidth >= 256));
  assert.deepEqual(seen.errors, []);
});

for (const [alt, answers] of Object.entries(SAMPLES)) {
  test(`${alt}: every suggested question is answered as the picture was drawn`, async (t) => {
    const { page, answer, seen, ...on } = await demoPage(t);
    await on.sample(alt);
    const chips = page.locator("#chips button");
    const found = {};
    while (await chips.count()) {
      const question = await chips.first().textContent();
      assert.ok(!(question in found), question);
      await chips.first().click();
      await on.answered();
      found[question] = await answer.textContent();
    }
    assert.deepEqual(found, answers);
    assert.deepEqual(seen.errors, []);
  });
}

test("further questions, a greeting, and questions that the picture cannot answer", async (t) => {
  const on = await demoPage(t);
  await on.sample("Drawn chest film");
  const asked = {
    "Hello.": "Hello. Ask me about the picture.",
    "Is there an effusion?": "Yes.",
    "Could you tell me where the effusion is?": "On the right.",
    "How old is the patient?": "The picture cannot tell.",
    "Where is the haemorrhage?": "This is a picture of the chest, not of the eye.",
  };
  const found = {};
  for (const question of Object.keys(asked)) found[question] = await on.answerTo(question);
  assert.deepEqual(found, asked);
});

test("the page gives the native answer", async (t) => {
  const on = await demoPage(t);
  await on.sample("Drawn back of an eye");
  const expected = nativeAnswer("demo", samplePath("fundus.png"), REPORT, 128);
  assert.ok(expected.length > 0);
  assert.equal((await on.answerTo(REPORT)).trimEnd(), expected);
});
