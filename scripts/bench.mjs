// The speed of the page beside llama.cpp's own, on the same weights, in turn: node scripts/bench.mjs SITE MODEL [ROUNDS] [RANKS].
//
// SITE is an assembled site, MODEL a model folder that is served beside it. Each round runs bench.html in headless Chromium (a 256-token prompt, then 32
// tokens) and then llama.cpp natively on as many threads as there are ranks; the table gives medians and the ratios within the rounds, because these two
// see the same machine. Without the Python package llama_cpp the page is measured alone. The products are timed first, in both builds.

import { spawnSync } from "node:child_process";
import { createReadStream, createWriteStream, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createServer } from "node:http";
import { cpus, tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { pipeline } from "node:stream/promises";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";
import { serveFile } from "./serve.mjs";

const [site, folder, rounds = "3", ranks = "2"] = process.argv.slice(2);
const scripts = dirname(fileURLToPath(import.meta.url));
const python = process.env.PYTHON ?? "python3";
const [n_prompt, n_generate] = [256, 32];

const server = createServer((request, response) => {
  const inModel = request.url.startsWith("/bench-model/");
  if (inModel) request.url = request.url.slice("/bench-model".length);
  return serveFile(inModel ? resolve(folder) : resolve(site), request, response);
});
await new Promise((listening) => server.listen(0, "localhost", listening));
const origin = `http://localhost:${server.address().port}`;
const scratch = mkdtempSync(join(tmpdir(), "llama3med-bench-"));

/** Runs bench.html with a query in a fresh browser. */
async function inChromium(query) {
  const browser = await chromium.launch({
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    args: ["--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
  });
  try {
    const page = await browser.newPage();
    await page.goto(`${origin}/bench.html?${new URLSearchParams(query)}`);
    await page.waitForFunction(() => window.result, null, { timeout: 1_200_000 });
    const result = await page.evaluate(() => window.result);
    if (result.error) throw new Error(result.error);
    return result;
  } finally {
    await browser.close();
  }
}

function inLlamaCpp(path) {
  const args = [join(scripts, "bench_llama_cpp.py"), path, ranks, String(n_prompt), String(n_generate)];
  const { status, stdout } = spawnSync(python, args, { encoding: "utf8", stdio: ["ignore", "pipe", "inherit"] });
  return status === 0 ? JSON.parse(stdout.trim().split("\n").at(-1)) : null;
}

/** The chunks of a model file, joined: a GGUF file that llama.cpp opens. */
async function join_chunks(name) {
  const manifest = JSON.parse(readFileSync(join(folder, "manifest.json"), "utf8"));
  const path = join(scratch, name);
  for (const { path: chunk } of manifest.files.find((file) => file.name === name).chunks) {
    await pipeline(createReadStream(join(folder, chunk)), createWriteStream(path, { flags: "a" }));
  }
  return path;
}

const median = (values) => values.toSorted((a, b) => a - b)[Math.floor((values.length - 1) / 2)];
const text = (value, digits = 1) => value.toFixed(digits).padStart(8);

try {
  console.log(`${cpus()[0].model.trim()}, ${cpus().length} cores, ${new Date().toISOString().slice(0, 10)}\n`);
  for (const build of ["relaxed", "simd128"]) {
    const { kernel, gmacsPerSecond } = await inChromium({ kernels: 1, build, ranks: 1 });
    console.log(`products in Chromium, build ${build} (${kernel}), one worker, GMAC/s:`);
    for (const [product, speed] of Object.entries(gmacsPerSecond)) console.log(`${text(speed)}  ${product}`);
  }
  const decoder = await join_chunks("decoder.gguf");
  const found = { page: [], plain: [], native: [] };
  const query = { model: "bench-model/manifest.json", ranks, prompt: n_prompt, generate: n_generate, image: 0, cache: 0 };
  for (let round = 0; round < Number(rounds); round++) {
    found.page.push(await inChromium(query));
    const native = inLlamaCpp(decoder);
    if (native) found.native.push(native);
    found.plain.push(await inChromium({ ...query, build: "simd128" }));
  }
  const { model, memoryBytes, loadS } = found.page[0];
  console.log(`\n${model}, ${ranks} ranks, load ${loadS.toFixed(1)} s, memory of the ranks ${memoryBytes.map((n) => (n / 1e6).toFixed(0)).join(" + ")} MB`);
  console.log("medians, tokens/s       prefill   decode");
  const row = (name, speeds) => console.log(`${name.padEnd(23)}${text(median(speeds.map(([a]) => a)))} ${text(median(speeds.map(([, b]) => b)))}`);
  const page = (result) => [result.prefillTokensPerSecond, result.decodeTokensPerSecond];
  const native = found.native.map(({ prefill, decode }) => [prefill, decode]);
  row("page, relaxed", found.page.map(page));
  row("page, simd128", found.plain.map(page));
  if (native.length === 0) {
    console.log("llama.cpp was not measured: the Python package llama_cpp is not there (PYTHON names another interpreter)");
  } else {
    row(`llama.cpp (${found.native[0].version})`, native);
    const ratios = found.page.map(page).map(([a, b], i) => [a / native[i][0], b / native[i][1]]);
    console.log(`relaxed / llama.cpp    ${text(median(ratios.map(([a]) => a)), 2)} ${text(median(ratios.map(([, b]) => b)), 2)}`);
  }
} finally {
  server.close();
  rmSync(scratch, { recursive: true, force: true });
}
