// The page answers as the same engine does natively: greedy, both builds, 1, 2 and 4 ranks.

import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { IMAGE, nativeAnswer, newPage, scratch, startChromium, startSite } from "./support.mjs";

const QUESTION = "What does this picture show?";
let browser;
let site;
let expected;
before(async () => {
  [browser, site] = await Promise.all([startChromium(), startSite()]);
  const path = join(scratch(), "film.png");
  writeFileSync(path, IMAGE.buffer);
  expected = nativeAnswer(path, QUESTION);
});
after(() => Promise.all([browser.close(), site.stop()]));

for (const [build, ranks] of [["relaxed", 1], ["relaxed", 2], ["relaxed", 4], ["simd128", 1], ["simd128", 2]]) {
  test(`${build} on ${ranks} ranks gives the native answer`, async (t) => {
    const { info, ...on } = await newPage(browser, t);
    await on.open(site, `model=models/test/manifest.json&ranks=${ranks}&build=${build}`);
    await on.ready();
    assert.match(await info.textContent(), new RegExp(`${ranks} rank`));
    await on.show();
    assert.equal((await on.answerTo(QUESTION)).trimEnd(), expected);
  });
}
