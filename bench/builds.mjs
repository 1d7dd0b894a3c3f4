// Two builds of the site against each other: node bench/builds.mjs BEFORE AFTER [SHAPE] prints how fast AFTER is relative to BEFORE, for a model with random
// weights (1b) or the bundled one (demo). ROUNDS names another number of rounds than 8, RANKS another number of workers than 2.
//
// Both are open at once and measured in turn. The page that was opened second is a few percent slower, so every comparison is made twice, in both orders.

import { resolve } from "node:path";
import { page, startServer } from "./contestants.mjs";
import { model } from "./models.mjs";

const [before, after, shape = "1b"] = process.argv.slice(2);
if (!after) {
  console.error("usage: node bench/builds.mjs BEFORE AFTER [SHAPE], where the first two are folders of built sites");
  process.exit(2);
}
const n_rounds = Number(process.env.ROUNDS ?? 8);
const ranks = Number(process.env.RANKS ?? (shape === "demo" ? 1 : 2));
const manifestUrl = shape === "demo" ? "models/demo/manifest.json" : `bench-models/${model(shape).name}/manifest.json`;

/** Figures of a build, all the larger the faster. */
async function measure({ page }) {
  const { prefill, decode } = await page.ask({ prompt: 200, generate: 40 });
  const { secondsPerTile } = await page.encode();
  return { prefill, decode, encoder: 1 / secondsPerTile };
}

async function open(site) {
  const server = await startServer(resolve(site));
  const opened = await page(`${server.origin}/bench.html?wait=1`);
  await opened.open({ manifestUrl, ranks, cache: false });
  await measure({ page: opened });
  return { page: opened, close: () => opened.close().finally(server.stop) };
}

const ratios = { prefill: [], decode: [], encoder: [] };
for (const sites of [[before, after], [after, before]]) {
  const opened = [];
  for (const site of sites) opened.push(await open(site));
  for (let round = 0; round < n_rounds; round++) {
    const found = [];
    for (const build of opened) found.push(await measure(build));
    const [old, young] = sites[0] === before ? found : found.toReversed();
    for (const what of Object.keys(ratios)) ratios[what].push({ ratio: young[what] / old[what], order: sites[0] === before });
  }
  for (const { close } of opened) await close();
}

const median = (values) => values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)];
console.log(`${shape}, ${ranks} workers, ${2 * n_rounds} rounds; speed of ${after} relative to ${before}`);
for (const [what, found] of Object.entries(ratios)) {
  const [one, other] = [true, false].map((order) => median(found.filter((round) => round.order === order).map(({ ratio }) => ratio)));
  console.log(`${what.padEnd(8)} ${Math.sqrt(one * other).toFixed(3)}  (${one.toFixed(3)} and ${other.toFixed(3)} in the two orders)`);
}
