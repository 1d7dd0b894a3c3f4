// The default number of ranks, with made-up measurements: the choice itself is the same on every machine.

import assert from "node:assert/strict";
import { test } from "node:test";
import { chooseRanks } from "../../www/llama3med/ranks.js";

const TINY = 2.6e6;
const ONE_B = 0.7e9;
const EIGHT_B = 4.7e9;

/** A device on which `n` workers reach `together(n)` billion products per second; an exchange takes `exchangeMs`. */
const device = (together, exchangeMs = 0.1) => async (counts) => ({ gmacsPerSecond: counts.map(together), exchangeMs });
const even = device((n) => 15 * n);

test("a tiny model runs on one rank, and nothing is measured for it", async () => {
  const measure = () => assert.fail("measured");
  for (const n_cores of [undefined, 1, 2, 8, 64]) assert.equal(await chooseRanks(TINY, { n_cores, measure }), 1);
});

test("a large model runs on as many ranks as there are useful cores", async () => {
  const ranks = (n_bytes, n_cores, measure = even) => chooseRanks(n_bytes, { n_least: n_bytes === EIGHT_B ? 2 : 1, n_cores, measure });
  assert.deepEqual(await Promise.all([undefined, 1, 2, 6, 8, 64].map((n_cores) => ranks(ONE_B, n_cores))), [2, 1, 2, 4, 8, 8]); // six wait two more times per sum
  assert.deepEqual(await Promise.all([undefined, 1, 2, 6, 8, 64].map((n_cores) => ranks(EIGHT_B, n_cores))), [2, 2, 2, 6, 8, 16]);
  // Eight threads of four cores; four fast cores beside four slow ones, for which everybody would wait; memory bandwidth that two cores exhaust.
  assert.equal(await ranks(EIGHT_B, 8, device((n) => 15 * Math.min(n, 4))), 4);
  assert.equal(await ranks(EIGHT_B, 8, device((n) => n * (n <= 4 ? 15 : 6))), 4);
  assert.equal(await ranks(EIGHT_B, 8, device((n) => Math.min(15 * n, 32))), 2);
});

test("if messages are slow, fewer ranks share a small model", async () => {
  const ranks = (n_bytes, exchangeMs) => chooseRanks(n_bytes, { n_cores: 8, measure: device((n) => 15 * n, exchangeMs) });
  assert.equal(await ranks(0.1e9, 0.1), 1);
  assert.ok((await ranks(ONE_B, 1)) < (await ranks(EIGHT_B, 1)));
});

test("without measurements the choice is cautious", async () => {
  const measure = () => Promise.reject(new Error("no workers"));
  const ranks = (n_bytes, n_cores, n_least) => chooseRanks(n_bytes, { n_cores, n_least, measure });
  assert.deepEqual(await Promise.all([1, 2, 8, 64].map((n_cores) => ranks(ONE_B, n_cores))), [1, 2, 4, 4]);
  assert.equal(await ranks(20e9, 2, 7), 7);
});

test("a requested number is used if possible", async () => {
  const measure = () => assert.fail("measured");
  assert.equal(await chooseRanks(TINY, { wanted: 16, n_cores: 2, measure }), 16);
  await assert.rejects(chooseRanks(TINY, { wanted: 65, measure }), /from 1 to 64, found 65/);
  await assert.rejects(chooseRanks(EIGHT_B, { n_least: 2, wanted: 1, measure }), (error) => /at least 2 ranks/.test(error.message) && error.instead.ranks === 2);
});
