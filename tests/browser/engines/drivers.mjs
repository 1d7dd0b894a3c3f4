// The other two engines, each with the minimal protocol for a smoke test: Firefox over WebDriver BiDi, WebKit over plain WebDriver.
// Both return { evaluate(function, ...arguments), open(url), close() }; functions run in the page and exchange JSON.

import { spawn } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import WebSocket from "ws";

/** Starts a program; resolves with the first match of `pattern` in a line that it prints. */
function start(command, args, pattern, options = {}) {
  const child = spawn(command, args, { stdio: ["ignore", "pipe", "pipe"], ...options });
  const found = new Promise((resolve, reject) => {
    for (const stream of [child.stdout, child.stderr]) {
      createInterface({ input: stream }).on("line", (line) => {
        const match = pattern.exec(line);
        if (match) resolve(match);
      });
    }
    child.on("error", reject);
    child.on("exit", (code) => reject(new Error(`${command} ended with ${code} before it was ready`)));
  });
  const end = () => new Promise((ended) => (child.exitCode === null && child.signalCode === null ? child.on("exit", ended).kill() : ended()));
  return { found, end };
}

const source = (script, values) => `(${script})(...${JSON.stringify(values)})`;

/** Firefox, headless. */
export async function startFirefox() {
  const profile = mkdtempSync(join(tmpdir(), "firefox-"));
  const quiet = { "browser.shell.checkDefaultBrowser": false, "datareporting.policy.dataSubmissionEnabled": false, "app.update.disabledForTesting": true };
  writeFileSync(join(profile, "user.js"), Object.entries(quiet).map(([name, value]) => `user_pref("${name}", ${value});\n`).join(""));
  const firefox = start(process.env.FIREFOX ?? "firefox-esr", ["--headless", "--remote-debugging-port=0", "--profile", profile, "--no-remote"], /WebDriver BiDi listening on (ws:\S+)/);
  const [, address] = await firefox.found;
  const socket = new WebSocket(`${address}/session`);
  await new Promise((resolve, reject) => socket.on("open", resolve).on("error", reject));
  const waiting = new Map();
  socket.on("message", (text) => {
    const { id, result, error, message } = JSON.parse(text);
    const { resolve, reject } = waiting.get(id) ?? {};
    waiting.delete(id);
    if (error) reject?.(new Error(`${error}: ${message}`));
    else resolve?.(result);
  });
  let n_sent = 0;
  const send = (method, params) => new Promise((resolve, reject) => {
    waiting.set(n_sent, { resolve, reject });
    socket.send(JSON.stringify({ id: n_sent++, method, params }));
  });
  await send("session.new", { capabilities: {} });
  const { contexts: [{ context }] } = await send("browsingContext.getTree", {});
  return {
    open: (url) => send("browsingContext.navigate", { context, url, wait: "complete" }),
    async evaluate(script, ...values) {
      const expression = `Promise.resolve(${source(script, values)}).then((value) => JSON.stringify(value ?? null))`;
      const { result, exceptionDetails } = await send("script.evaluate", { expression, target: { context }, awaitPromise: true });
      if (exceptionDetails) throw new Error(exceptionDetails.text);
      return JSON.parse(result.value);
    },
    async close() {
      await send("browser.close", {}).catch(() => {});
      socket.close();
      await firefox.end();
      rmSync(profile, { recursive: true, force: true, maxRetries: 5 });
    },
  };
}

/** WebKit, on its own display. */
export async function startWebKit() {
  const display = start("Xvfb", ["-displayfd", "1", "-screen", "0", "1280x800x24", "-nolisten", "tcp"], /^(\d+)$/);
  const [, number] = await display.found;
  const port = 20000 + (process.pid % 20000);
  const env = { ...process.env, DISPLAY: `:${number}`, WEBKIT_DISABLE_COMPOSITING_MODE: "1" };
  const driver = start("WebKitWebDriver", [`--port=${port}`], /never/, { env });
  driver.found.catch(() => {});
  const call = async (method, path, body) => {
    const response = await fetch(`http://127.0.0.1:${port}${path}`, { method, body: body && JSON.stringify(body) });
    const { value } = await response.json();
    if (value?.error) throw new Error(`${value.error}: ${value.message}`);
    return value;
  };
  for (let attempt = 0; ; attempt++) {
    try {
      await call("GET", "/status");
      break;
    } catch (error) {
      if (attempt === 50) throw error;
      await new Promise((resolve) => setTimeout(resolve, 200));
    }
  }
  const { sessionId } = await call("POST", "/session", { capabilities: { alwaysMatch: { "webkitgtk:browserOptions": { args: ["--automation"] } } } });
  const session = `/session/${sessionId}`;
  await call("POST", `${session}/timeouts`, { script: 60_000 });
  return {
    open: (url) => call("POST", `${session}/url`, { url }),
    async evaluate(script, ...values) {
      const wrapped = `const done = arguments[0]; Promise.resolve(${source(script, values)}).then((value) => done({ value: value ?? null }), (error) => done({ error: String(error) }));`;
      const { value, error } = await call("POST", `${session}/execute/async`, { script: wrapped, args: [] });
      if (error) throw new Error(error);
      return value;
    },
    async close() {
      await call("DELETE", session).catch(() => {});
      await driver.end();
      await display.end();
    },
  };
}
