// The parts of the benchmark: each makes its models, opens the contestants, measures them in interleaved rounds and returns plain numbers, which report.mjs
// interprets.

import { execFileSync } from "node:child_process";
import { readdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { llamaCpp, openAll, ours, page, program, theirs } from "./contestants.mjs";
import { model, needed, work, WORK } from "./models.mjs";

const RANKS = 2;

/** Measures all contestants in turn, `n_rounds` times; `orders` has, by name, what to measure of each. A contestant that fails is missing from then on. */
async function rounds(n_rounds, contestants, orders) {
  const found = Object.fromEntries(Object.keys(contestants).map((name) => [name, { ready: contestants[name].ready, rounds: [] }]));
  for (let round = 0; round < n_rounds; round++) {
    for (const name of Object.keys(contestants)) found[name].rounds.push({});
    for (const [what, order] of Object.entries(orders)) {
      for (const [name, contestant] of Object.entries(contestants)) {
        if (contestant.missing) continue;
        const measured = await contestant.measure(order).catch((error) => ({ missing: String(error.message).split("\n")[0] }));
        if (measured.missing) contestant.missing = measured.missing;
        else found[name].rounds.at(-1)[what] = measured;
        console.log(`  round ${round + 1}, ${what}, ${name}: ${JSON.stringify(measured)}`);
      }
    }
  }
  for (const [name, { missing }] of Object.entries(contestants)) if (missing) found[name] = { missing };
  return found;
}

async function closeAll(contestants) {
  for (const { close } of Object.values(contestants)) await close?.();
}

async function race(makers, n_rounds, orders) {
  const contestants = await openAll(makers);
  try {
    return await rounds(n_rounds, contestants, orders);
  } finally {
    await closeAll(contestants);
  }
}

/** The limits of the machine, and how close the products come to them, in both builds, on one worker and on two. */
async function limits({ origin }) {
  const opened = await page(`${origin}/bench.html?wait=1`);
  const types = ["q4_0", "q4_k", "q6_k", "q8_0"];
  // One token and many tokens with an 8B's matrices, and many with a matrix that stays in the processor's cache.
  const shapes = types.flatMap((type) => [[type, 8192, 4096, 1], [type, 4096, 4096, 128], [type, 256, 2048, 128]]);
  const found = [];
  try {
    for (const build of ["relaxed", "simd128"]) {
      for (const workers of [1, 2]) {
        const limit = await opened.limits({ build, workers });
        const { kernel, gmacsPerSecond } = await opened.products({ build, workers, shapes });
        found.push({ build, workers, kernel, ...limit, products: shapes.map((shape, idx) => ({ shape, gmacsPerSecond: gmacsPerSecond[idx] })) });
        console.log(`  ${build}, ${workers} workers: ${JSON.stringify(limit)}`);
      }
    }
  } finally {
    await opened.close();
  }
  return { version: `Chromium ${opened.version}`, found };
}

/** Prefill of 512 tokens and decode after 256, 1B shape, compared with llama.cpp. */
async function decode({ origin, n_rounds }) {
  const results = {};
  for (const type of ["q4_0", "q4_k"]) {
    const small = model("1b-clip-s2", type);
    const makers = {
      relaxed: () => ours(origin, small, { ranks: RANKS }),
      "llama.cpp": () => llamaCpp(small, { threads: RANKS }),
      simd128: () => ours(origin, small, { ranks: RANKS, build: "simd128" }),
    };
    const found = await race(makers, n_rounds, { prefill: { prompt: 512, generate: 1 }, decode: { prompt: 256, generate: 32 } });
    results[type] = { work: work(small), ...found };
  }
  return results;
}

/** The same compared with wllama, with a shorter prompt: its prefill of 512 tokens takes minutes. */
async function peers({ origin, n_rounds }) {
  const results = {};
  for (const type of ["q4_0", "q4_k"]) {
    const small = model("1b-clip-s2", type);
    const makers = { relaxed: () => ours(origin, small, { ranks: RANKS }), wllama: () => theirs(origin, small, { threads: RANKS }) };
    results[type] = await race(makers, Math.min(n_rounds, 2), { both: { prompt: 256, generate: 16 } });
  }
  return results;
}

/** One, two and four ranks, with the largest shape that fits into one. */
async function scaling({ origin, n_rounds }) {
  const middle = model("3b-clip-s2");
  const makers = Object.fromEntries([1, 2, 4].map((ranks) => [ranks, () => ours(origin, middle, { ranks })]));
  return race(makers, n_rounds, { both: { prompt: 128, generate: 16 } });
}

/** One CLIP-L/14-336 tile, compared with PyTorch. */
async function encoder({ origin, n_rounds }) {
  const small = model("1b-clip-s2");
  const n_tiles = 4;
  const encodes = async (build) => {
    const opened = await ours(origin, small, { ranks: RANKS, build });
    return { ...opened, measure: () => opened.page.encode({ tiles: n_tiles }) };
  };
  const makers = { relaxed: () => encodes("relaxed"), pytorch: () => program("encoder.py", [RANKS]), simd128: () => encodes("simd128") };
  return race(makers, n_rounds, { tile: { tiles: n_tiles } });
}

/** Everything about the 8B: load, decode and prefill compared with llama.cpp, first token, memory. */
async function large({ origin, n_rounds }) {
  const whole = model("8b-clip-s2");
  const profile = join(WORK, "profile");
  rmSync(profile, { recursive: true, force: true });
  const opened = {};
  try {
    const open = () => ours(origin, whole, { ranks: RANKS, profile, cache: true });
    const first = await open();
    await first.close();
    const { note, loadS } = first.ready;
    console.log(`  first load: ${loadS} s ${note ?? ""}`);
    const loads = [];
    for (let round = 0; round < Math.min(n_rounds, 2); round++) {
      await opened.ours?.close();
      const read = {};
      for (const cache of ["cold", "warm"]) {
        if (cache === "cold") dropFromCache(profile);
        const reader = await page(`${origin}/bench.html?wait=1`, { profile });
        read[cache] = await reader.readKept({ manifestUrl: `bench-models/${whole.name}/manifest.json` }).finally(reader.close);
      }
      dropFromCache(profile);
      const cold = await open();
      await cold.close();
      opened.ours = await open();
      loads.push({ read, load: { cold: cold.ready.loadS, warm: opened.ours.ready.loadS } });
      console.log(`  loads: ${JSON.stringify(loads.at(-1))}`);
    }
    const { memory, ...firstToken } = await opened.ours.page.firstToken();
    console.log(`  first token: ${JSON.stringify(firstToken)}`);
    opened["llama.cpp"] = await llamaCpp(whole, { threads: RANKS }).catch((error) => ({ missing: error.message }));
    const found = await rounds(n_rounds, opened, { both: { prompt: 256, generate: 16 } });
    return { note, firstLoadS: loadS, loads, firstToken, memory, needed: needed(whole, RANKS, memory.tokens), work: work(whole), nTiles: whole.facts.encoder.n_tiles, ...found };
  } finally {
    await closeAll(opened);
    rmSync(profile, { recursive: true, force: true });
  }
}

/** Evicts a folder's files from the system's cache, so that the next read comes from disk, as far as the system allows a user to ask for it. */
function dropFromCache(folder) {
  execFileSync("sync");
  for (const entry of readdirSync(folder, { withFileTypes: true, recursive: true })) {
    if (entry.isFile()) execFileSync("dd", [`if=${join(entry.parentPath ?? entry.path, entry.name)}`, "iflag=nocache", "count=0", "status=none"]);
  }
}

export const parts = { limits, decode, peers, encoder, scaling, large };
