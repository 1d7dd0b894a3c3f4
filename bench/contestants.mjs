// The contestants: this project's page and wllama in Chromium, llama.cpp and PyTorch in Python. Each is opened once and then measured repeatedly, in turn with
// the others, so that all run under the same conditions. One that cannot be opened is missing, with a reason; the others are still measured.

import { spawn } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { createServer } from "node:http";
import { dirname, join, resolve } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";
import { serveFile } from "../scripts/serve.mjs";
import { WORK } from "./models.mjs";

const here = dirname(fileURLToPath(import.meta.url));
const root = resolve(here, "..");
const wllama = join(root, "node_modules/@wllama/wllama");
const ANSWER_MS = 900_000; // the time limit of one measurement
const ARGS = ["--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"];

/** Python with the packages llama_cpp, torch and transformers. */
const python = process.env.PYTHON ?? (existsSync(join(root, ".venv/bin/python")) ? join(root, ".venv/bin/python") : "python3");

/** Serves the site at /, the models at /bench-models/ and wllama at /wllama/; only the latter gets the headers that its threads need. */
export async function startServer(site) {
  const folders = { "bench-models": join(WORK, "models"), wllama: here, "wllama/esm": join(wllama, "esm") };
  const server = createServer((request, response) => {
    const prefix = Object.keys(folders).toSorted((a, b) => b.length - a.length).find((name) => request.url.startsWith(`/${name}/`));
    if (prefix?.startsWith("wllama")) {
      response.setHeader("Cross-Origin-Opener-Policy", "same-origin");
      response.setHeader("Cross-Origin-Embedder-Policy", "require-corp");
    }
    if (prefix) request.url = request.url.slice(prefix.length + 1);
    return serveFile(prefix ? folders[prefix] : resolve(site), request, response);
  });
  await new Promise((listening) => server.listen(0, "localhost", listening));
  return { origin: `http://localhost:${server.address().port}`, stop: () => (server.closeAllConnections(), server.close()) };
}

/** A page in its own Chromium, whose functions in `window.bench` can be called: `page.open({ … })`. With `profile` its files are kept on disk there. */
export async function page(url, { profile } = {}) {
  const options = { executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ARGS };
  const owner = profile ? await chromium.launchPersistentContext(profile, options) : await chromium.launch(options);
  const version = (profile ? owner.browser()?.version() : owner.version()) ?? "";
  const opened = await owner.newPage();
  const crashed = new Promise((_, reject) => opened.on("crash", () => reject(new Error("the page crashed"))));
  crashed.catch(() => {});
  const call = async (name, order = {}) => {
    const answer = opened.evaluate(([name, order]) => window.bench[name](order), [name, order]);
    return limited(Promise.race([answer, crashed]), `${name} in the page`);
  };
  try {
    await opened.goto(url);
    await opened.waitForFunction(() => window.bench, null, { timeout: 30_000 });
  } catch (error) {
    await owner.close();
    throw error;
  }
  return new Proxy({ version, close: () => owner.close() }, { get: (own, name) => own[name] ?? (name === "then" ? undefined : (order) => call(name, order)) });
}

/** A Python program that answers lines of JSON: `ready` is its first line. */
export async function program(name, args) {
  const child = spawn(python, [join(here, name), ...args.map(String)], { stdio: ["pipe", "pipe", "pipe"], env: { ...process.env, PYTHONDONTWRITEBYTECODE: "1" } });
  const errors = [];
  child.stderr.on("data", (bytes) => errors.push(bytes));
  child.stdin.on("error", () => {}); // a dead program is detected by its exit
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  const ended = new Promise((resolve) => child.on("error", resolve).on("exit", (status, signal) => resolve(new Error(`ended with ${signal ?? `status ${status}`}`))));
  const answer = async () => {
    const { value, done } = await limited(lines.next(), name);
    if (!done) return JSON.parse(value);
    const error = await ended;
    throw new Error(`${name}: ${Buffer.concat(errors).toString().trim().split("\n").at(-1) || error.message}`);
  };
  const close = () => child.kill();
  try {
    const ready = await answer();
    return { ready, close, measure: (order) => (child.stdin.write(`${JSON.stringify(order)}\n`), answer()) };
  } catch (error) {
    close();
    throw error;
  }
}

function limited(promise, what) {
  let timer;
  const late = new Promise((_, reject) => (timer = setTimeout(() => reject(new Error(`${what} did not answer for ${ANSWER_MS / 1000} s`)), ANSWER_MS)));
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/** This project's page with a model loaded. */
export async function ours(origin, { name }, { ranks, build = "relaxed", profile, cache = false }) {
  const opened = await page(`${origin}/bench.html?wait=1`, { profile });
  try {
    const ready = await opened.open({ manifestUrl: `bench-models/${name}/manifest.json`, ranks, build, cache });
    return { ready: { ...ready, version: `Chromium ${opened.version}` }, page: opened, close: opened.close, measure: opened.ask };
  } catch (error) {
    await opened.close();
    throw error;
  }
}

/** llama.cpp on the decoder file. */
export function llamaCpp({ gguf }, { threads, context = 1024 }) {
  return program("decoder.py", [gguf, threads, context]);
}

/** wllama on the decoder file. */
export async function theirs(origin, { name }, { threads, settings }) {
  const { version } = JSON.parse(readFileSync(join(wllama, "package.json"), "utf8"));
  const opened = await page(`${origin}/wllama/wllama.html`);
  try {
    const ready = await opened.open({ url: `/bench-models/${name}/decoder.gguf`, threads, settings });
    if (!ready.isolated || ready.threads !== threads) throw new Error(`wllama runs on ${ready.threads} threads`);
    await opened.prepare();
    return { ready: { ...ready, version: `wllama ${version} (llama.cpp ${ready.library})` }, close: opened.close, measure: opened.ask };
  } catch (error) {
    await opened.close();
    throw error;
  }
}

/** Opens several; those that cannot be opened are `{ missing: reason }`. */
export async function openAll(makers) {
  const opened = {};
  for (const [name, make] of Object.entries(makers)) {
    opened[name] = await make().catch((error) => ({ missing: String(error.message).split("\n")[0] }));
    if (opened[name].missing) console.log(`  ${name}: not measured: ${opened[name].missing}`);
  }
  return opened;
}
