// Shared by the page tests: a server with a log and with faults on demand, a model folder in many small chunks, Chromium, and the page's controls. If a test
// needs a long answer, it uses random weights, which never stop; the demo model answers in a few words.

import { execFileSync } from "node:child_process";
import { createReadStream, existsSync, mkdirSync, readFileSync, statSync } from "node:fs";
import { createServer } from "node:http";
import { connect, createServer as createTcpServer } from "node:net";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { crc32, deflateSync } from "node:zlib";
import { chromium } from "playwright-core";
import { serveFile } from "../../scripts/serve.mjs";

const here = dirname(fileURLToPath(import.meta.url));
const root = resolve(here, "../..");
export const TARGET = resolve(root, process.env.CARGO_TARGET_DIR ?? "target");
export const QUANTIZE = resolve(root, process.env.QUANTIZE ?? join(TARGET, "debug/quantize"));
export const DIST = join(root, "dist");

// Models with random weights, by the name of their folder below models/. `test` comes in chunks of 100 kB, so that a download can break off between many parts;
// `exact` computes in f32, where only the order of sums differs between ranks.
const MODELS = { test: ["--type", "q4_0", "--chunk-size", "100K"], exact: ["--type", "f32"] };
const folderOf = (name) => (name === "demo" ? join(root, "demo/model") : join(TARGET, `${name}-model`));

/** Makes the model folder of this name if it is older than the program that makes it, and returns its manifest. */
export function makeModel(name = "test") {
  const path = join(folderOf(name), "manifest.json");
  const madeAt = existsSync(path) ? statSync(path).mtimeMs : 0;
  if (madeAt < statSync(QUANTIZE).mtimeMs) execFileSync(QUANTIZE, ["random", "--shape", "tiny", ...MODELS[name], "-o", folderOf(name)], { stdio: "pipe" });
  return JSON.parse(readFileSync(path, "utf8"));
}

/** The path of a sample picture of the demo model. */
export const samplePath = (name) => join(root, "demo/samples", name);
const sample = (name) => ({ name, mimeType: "image/png", buffer: readFileSync(samplePath(name)) });

/** Two pictures that need cropping, one portrait (256 x 300) and one landscape (348 x 256). */
export const IMAGE = sample("brain.png");
export const OTHER_IMAGE = sample("chest.png");

/** A wedge of 256 x 256 pixels from black on the left to white on the right, in 12-bit numbers. */
const WEDGE = { edge: 256, value: (x) => 16 * x };

/** The wedge as a 16-bit TIFF with this many pages. */
export function wedgeTiff(n_pages = 1) {
  const { edge, value } = WEDGE;
  const entries = [[256, 3, edge], [257, 3, edge], [258, 3, 16], [259, 3, 1], [262, 3, 1], [273, 4, 8], [277, 3, 1], [278, 3, edge], [279, 4, 2 * edge * edge]];
  const n_bytes = 2 + 12 * entries.length + 4;
  const first = 8 + 2 * edge * edge;
  const file = Buffer.alloc(first + n_pages * n_bytes);
  file.write("II*\0", "latin1");
  file.writeUInt32LE(first, 4);
  for (let i = 0; i < edge * edge; i++) file.writeUInt16LE(value(i % edge), 8 + 2 * i);
  for (let page = 0; page < n_pages; page++) {
    const at = first + page * n_bytes;
    file.writeUInt16LE(entries.length, at);
    entries.forEach(([tag, type, number], idx) => {
      [tag, type].forEach((word, i) => file.writeUInt16LE(word, at + 2 + 12 * idx + 2 * i));
      [1, number].forEach((word, i) => file.writeUInt32LE(word, at + 6 + 12 * idx + 4 * i));
    });
    file.writeUInt32LE(page + 1 < n_pages ? at + n_bytes : 0, at + n_bytes - 4);
  }
  return { name: "wedge.tif", mimeType: "image/tiff", buffer: file };
}

/** The wedge as a 16-bit PNG. */
export function wedgePng() {
  const { edge, value } = WEDGE;
  const rows = Buffer.alloc(edge * (1 + 2 * edge));
  for (let y = 0; y < edge; y++) for (let x = 0; x < edge; x++) rows.writeUInt16BE(value(x), y * (1 + 2 * edge) + 1 + 2 * x);
  const chunk = (type, data) => {
    const bytes = Buffer.concat([Buffer.alloc(4), Buffer.from(type, "latin1"), data, Buffer.alloc(4)]);
    bytes.writeUInt32BE(data.length, 0);
    bytes.writeUInt32BE(crc32(bytes.subarray(4, -4)), bytes.length - 4);
    return bytes;
  };
  const header = Buffer.alloc(13);
  header.writeUInt32BE(edge, 0);
  header.writeUInt32BE(edge, 4);
  header.set([16, 0, 0, 0, 0], 8);
  const buffer = Buffer.concat([Buffer.from("\x89PNG\r\n\x1a\n", "latin1"), chunk("IHDR", header), chunk("IDAT", deflateSync(rows)), chunk("IEND", Buffer.alloc(0))]);
  return { name: "wedge.png", mimeType: "image/png", buffer };
}

/**
 * Serves dist/ below `/${folder}`, the models of the tests at models/test/ and models/exact/, and keeps a log. `fault(path, request, response)` may answer a
 * request itself, returning true, or delay it; `fake` serves the stand-in client; `dist` is another built site.
 */
export async function startSite({ folder = "", fault = null, fake = false, dist = DIST } = {}) {
  makeModel();
  const prefix = `/${folder}`;
  const site = { log: [], fault, paths: () => site.log.map(({ path }) => path) };
  const server = createServer(async (request, response) => {
    const { pathname } = new URL(request.url, "http://host");
    const path = pathname.startsWith(prefix) ? pathname.slice(prefix.length) : `outside ${pathname}`;
    site.log.push({ path, method: request.method, range: request.headers.range, time: performance.now() });
    if (await site.fault?.(path, request, response)) return;
    if (path.startsWith("outside ")) return response.writeHead(404).end();
    if (fake && path === "llama3med/index.js") return createReadStream(join(here, "fake/llama3med.js")).pipe(response.setHeader("Content-Type", "text/javascript"));
    if (fake && path === "sw.js") return response.writeHead(404).end();
    const [, name, file] = /^models\/(test|exact)\/(.*)$/.exec(path) ?? [];
    request.url = `/${file ?? path}`;
    serveFile(name ? folderOf(name) : dist, request, response);
  });
  // The bytes sent by the server since it started, heads and bodies.
  const sockets = [];
  server.on("connection", (socket) => sockets.push(socket));
  site.bytesSent = () => sockets.reduce((sum, socket) => sum + socket.bytesWritten, 0);
  await new Promise((listening) => server.listen(0, "127.0.0.1", listening));
  site.port = server.address().port;
  site.url = `http://127.0.0.1:${site.port}${prefix}`;
  site.stop = () => new Promise((stopped) => {
    server.closeAllConnections();
    server.close(stopped);
  });
  return site;
}

/** Answers with a damaged file: one byte differs. */
export function corrupt(path, response) {
  const bytes = readFileSync(join(folderOf("test"), path.replace("models/test/", "")));
  bytes[bytes.length >> 1] ^= 1;
  response.writeHead(200, { "Content-Type": "application/octet-stream", "Content-Length": bytes.length }).end(bytes);
  return true;
}

const ARGS = ["--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"];

/** One Chromium per test file; `hospital.test` is this machine, but not a secure context. */
export function startChromium() {
  const args = [...ARGS, "--host-resolver-rules=MAP hospital.test 127.0.0.1"];
  return chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args });
}

/** A page in a fresh profile. Collects what must not happen: errors, violations of the policy, requests to other origins. */
export async function newPage(browser, t, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 800 }, reducedMotion: "reduce", ...options });
  const page = await context.newPage();
  const seen = { errors: [], requests: [] };
  context.on("request", (request) => seen.requests.push(request.url()));
  page.on("pageerror", (error) => seen.errors.push(String(error)));
  page.on("console", (message) => message.type() === "error" && seen.errors.push(message.text()));
  t.after(() => context.close());
  return { page, context, seen, ...controls(page) };
}

/** The page's controls by their test ids, and the actions on them. */
export function controls(page) {
  const by = (id) => page.getByTestId(id);
  const status = by("status");
  const waitStatus = (pattern, timeout = 30_000) =>
    page.waitForFunction(([source, flags]) => new RegExp(source, flags).test(document.querySelector("[data-testid=status]").textContent), [pattern.source, pattern.flags], { timeout });
  return {
    image: by("image-input"), question: by("question"), ask: by("ask"), stop: by("stop"), answer: by("answer"), status, info: by("model-info"),
    waitStatus,
    open: (site, query = "model=models/test/manifest.json&tokens=64") => page.goto(`${site.url}?${query}`),
    ready: () => waitStatus(/^Ready: open/),
    /** Chooses an image and waits until it is encoded. */
    async show(image = IMAGE) {
      await by("image-input").setInputFiles(image);
      await waitStatus(/^Ready: ask/);
    },
    /** Clicks a sample picture and waits until it is encoded. */
    async sample(alt) {
      await page.getByRole("button", { name: alt, exact: true }).click();
      await waitStatus(/^Ready: ask/);
    },
    /** Asks and waits for the whole answer. */
    async answerTo(text) {
      await by("question").fill(text);
      await by("ask").click();
      await waitAnswered(page);
      return by("answer").textContent();
    },
    answered: () => waitAnswered(page),
    /** Waits until some of the newest answer has arrived. */
    begun: () => page.waitForFunction(() => document.querySelector("[data-testid=answer]")?.textContent.length > 0),
    /** Runs `act` in the page at the first word of the next answer: a small model would finish before the test could react. */
    atFirstWord: async (act, value) => {
      await page.evaluate(`window.act = ${act}`);
      await page.evaluate((value) => {
        const observer = new MutationObserver(() => {
          if (!document.querySelector("[data-testid=answer]")?.textContent) return;
          observer.disconnect();
          window.act(value);
        });
        observer.observe(document.querySelector("#turns"), { childList: true, subtree: true, characterData: true });
      }, value);
    },
  };
}

function waitAnswered(page) {
  return page.waitForFunction(() => document.querySelector("[data-testid=answer]")?.getAttribute("aria-busy") === "false" && document.querySelector("[data-testid=stop]").hidden);
}

/** The native answer of the same engine: greedy, as in the page. */
export function nativeAnswer(model, imagePath, question, n_tokens) {
  const args = ["ask", folderOf(model), "--image", imagePath, "--prompt", question, "--max-tokens", String(n_tokens), "--ranks", "1"];
  return execFileSync(QUANTIZE, args, { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] }).trimEnd();
}

/** A folder for files written by a test. */
export function scratch() {
  const folder = join(TARGET, "test-files");
  mkdirSync(folder, { recursive: true });
  return folder;
}

/**
 * The site at this many bytes per second over all connections, like a slow line: returns its URL. Connections take turns.
 */
export async function startSlowLine(t, site, bytesPerSecond) {
  const TICK_MS = 20;
  const waiting = new Map(); // what each connection is still waiting for
  const proxy = createTcpServer((client) => {
    const upstream = connect(site.port, "127.0.0.1");
    waiting.set(client, []);
    client.pipe(upstream);
    upstream.on("data", (bytes) => waiting.get(client)?.push(bytes));
    upstream.on("end", () => waiting.get(client)?.push(null));
    const end = () => (waiting.delete(client), client.destroy(), upstream.destroy());
    for (const socket of [client, upstream]) socket.on("error", end);
    client.on("close", end);
  });
  const give = (client, n_bytes) => {
    const queue = waiting.get(client);
    if (queue[0] === null) return client.end(), waiting.set(client, []), 0;
    const part = queue[0].subarray(0, n_bytes);
    client.write(part);
    if (part.length === queue[0].length) queue.shift();
    else queue[0] = queue[0].subarray(part.length);
    return part.length;
  };
  const timer = setInterval(() => {
    let left = (bytesPerSecond * TICK_MS) / 1000;
    for (let ready; left > 0 && (ready = [...waiting.keys()].filter((client) => waiting.get(client).length > 0)).length > 0; ) {
      const share = Math.ceil(left / ready.length);
      for (const client of ready) left -= give(client, share);
    }
  }, TICK_MS);
  t.after(() => (clearInterval(timer), waiting.forEach((_, client) => client.destroy()), proxy.close()));
  await new Promise((listening) => proxy.listen(0, "127.0.0.1", listening));
  return `http://127.0.0.1:${proxy.address().port}/`;
}
