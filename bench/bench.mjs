// The benchmark: node bench/bench.mjs [PART …] measures the named parts, or all of them, and writes BENCHMARKS.md from everything measured so far. `report`
// alone measures nothing. SITE names another built site than dist, ROUNDS another number of rounds than 3, PYTHON an interpreter with the packages llama_cpp,
// torch and transformers.
//
// Measurements are saved in bench/results, one file per part: with the machine, the versions, the date, and how busy the machine was before.

import { execFileSync } from "node:child_process";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { cpus, loadavg, release, totalmem } from "node:os";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { startServer } from "./contestants.mjs";
import { parts } from "./parts.mjs";
import { report } from "./report.mjs";

const here = dirname(fileURLToPath(import.meta.url));
const results = join(here, "results");
const site = process.env.SITE ?? resolve(here, "../dist");
const n_rounds = Number(process.env.ROUNDS ?? 3);
const names = process.argv.slice(2);
const unknown = names.filter((name) => name !== "report" && !(name in parts));
if (unknown.length > 0 || !(n_rounds >= 1)) {
  console.error(unknown.length > 0 ? `there is no part ${unknown.join(", ")}: choose from ${Object.keys(parts).join(", ")}, report` : "ROUNDS must be 1 or more");
  process.exit(2);
}

function machine() {
  return { cpu: cpus()[0].model.trim(), cores: cpus().length, memoryGiB: Math.round(totalmem() / 2 ** 30), system: `Linux ${release()}`, node: process.version };
}

function command(program, ...args) {
  try {
    return execFileSync(program, args, { encoding: "utf8", cwd: here }).trim();
  } catch {
    return "unknown";
  }
}

const path = (name) => join(results, `${name}.json`);
mkdirSync(results, { recursive: true });
let n_failed = 0;
const server = await startServer(site);
try {
  for (const name of names.length > 0 ? names.filter((name) => name in parts) : Object.keys(parts)) {
    const about = { part: name, date: new Date().toISOString().slice(0, 16), commit: command("git", "describe", "--always", "--dirty"), rustc: command("rustc", "--version"), ...machine() };
    const load = loadavg()[0];
    console.log(`${name}${load > 0.5 ? ` (the machine is not quiet: its load is ${load.toFixed(1)})` : ""}`);
    const start = performance.now();
    try {
      const found = await parts[name]({ origin: server.origin, n_rounds });
      writeFileSync(path(name), `${JSON.stringify({ ...about, load, seconds: (performance.now() - start) / 1000, found }, null, 1)}\n`);
    } catch (error) {
      console.error(`  ${name} was not measured: ${error.stack}`);
      n_failed++;
    }
    console.log(`  ${name}: ${((performance.now() - start) / 1000).toFixed(0)} s`);
  }
} finally {
  server.stop();
}
const measured = {};
for (const name of Object.keys(parts)) {
  try {
    measured[name] = JSON.parse(readFileSync(path(name), "utf8"));
  } catch {
    measured[name] = null;
  }
}
let notes = "";
try {
  notes = readFileSync(join(here, "notes.md"), "utf8");
} catch {
  // There are no notes on the numbers yet.
}
writeFileSync(resolve(here, "../BENCHMARKS.md"), report(measured, notes));
console.log("BENCHMARKS.md is written");
process.exit(n_failed > 0 ? 1 : 0);
