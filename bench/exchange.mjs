// The cost of a sum over ranks, by doubling and by halving (crate/src/device/ranks.rs): node bench/exchange.mjs. Chromium workers do the same with their messages and
// their memory as ranks do, and nothing else. Two cores cannot show the time that eight would take, so the CPU time of all Chromium processes is counted, which
// other work on the machine hardly changes. It is read from Linux's /proc.

import { readdirSync, readFileSync } from "node:fs";
import { chromium } from "playwright-core";

const TICK_MS = 10; // of /proc/PID/stat
const N_ROUNDS = 3;
const SIZES = [1, 32, 128].map((n_tokens) => 4096 * n_tokens);

/** CPU milliseconds that all processes below this one have used. */
function processorMs() {
  const children = new Map();
  for (const pid of readdirSync("/proc").filter((name) => /^\d+$/.test(name))) {
    try {
      const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
      const [, parent, ...rest] = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
      const ms = (Number(rest[9]) + Number(rest[10])) * TICK_MS;
      children.set(Number(parent), [...(children.get(Number(parent)) ?? []), { pid: Number(pid), ms }]);
    } catch {
      // The process has ended.
    }
  }
  const below = (parent) => (children.get(parent) ?? []).reduce((sum, { pid, ms }) => sum + ms + below(pid), 0);
  return below(process.pid);
}

/** A worker: `{ rank, ports }` makes it a rank, `{ n, times, way }` makes it add up `n` values that many times. */
function worker() {
  let rank;
  let ports;
  const inboxes = [];
  const receive = async (from) => {
    const inbox = inboxes[from];
    while (inbox.messages.length === 0) await new Promise((resolve) => (inbox.wake = resolve));
    return new Float32Array(inbox.messages.shift());
  };
  const ways = {
    async doubling({ send, add, n }) {
      for (let distance = 1; distance < ports.length; distance *= 2) {
        send(rank ^ distance, 0, n);
        add(0, await receive(rank ^ distance));
      }
    },
    async halving({ send, add, put, n }) {
      let [start, end] = [0, n];
      const halves = [];
      for (let distance = 1; distance < ports.length; distance *= 2) {
        const middle = (start + end) >> 1;
        const isLow = (rank & distance) === 0;
        const given = isLow ? [middle, end] : [start, middle];
        [start, end] = isLow ? [start, middle] : [middle, end];
        send(rank ^ distance, ...given);
        add(start, await receive(rank ^ distance));
        halves.push([rank ^ distance, given]);
      }
      for (const [partner, given] of halves.reverse()) {
        send(partner, start, end);
        put(given[0], await receive(partner));
        [start, end] = [Math.min(start, given[0]), Math.max(end, given[1])];
      }
    },
  };
  self.onmessage = async ({ data }) => {
    if (data.ports) {
      ({ rank, ports } = data);
      for (const [from, port] of ports.entries()) {
        const inbox = (inboxes[from] = { messages: [], wake: () => {} });
        if (port) port.onmessage = ({ data }) => (inbox.messages.push(data), inbox.wake());
      }
      return postMessage("ready");
    }
    const { n, times, way } = data;
    const { buffer } = new WebAssembly.Memory({ initial: Math.ceil((8 * n) / 65536) });
    const [x, received] = [new Float32Array(buffer, 0, n), new Float32Array(buffer, 4 * n, n)];
    const send = (to, from, end) => {
      const message = x.slice(from, end).buffer;
      ports[to].postMessage(message, [message]);
    };
    const put = (at, values) => x.set(values, at);
    const add = (at, values) => {
      received.set(values);
      for (let i = 0; i < values.length; i++) x[at + i] += received[i];
    };
    for (let i = 0; i < times; i++) await ways[way]({ send, add, put, n });
    return postMessage("done");
  };
}

const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox"] });
const page = await browser.newPage();
const start = ([source, n_ranks]) => {
  window.workers?.forEach((worker) => worker.terminate());
  const url = URL.createObjectURL(new Blob([`(${source})()`], { type: "text/javascript" }));
  const ports = Array.from({ length: n_ranks }, () => Array(n_ranks).fill(null));
  for (let a = 0; a < n_ranks; a++) for (let b = a + 1; b < n_ranks; b++) ({ port1: ports[a][b], port2: ports[b][a] } = new MessageChannel());
  window.workers = ports.map(() => new Worker(url));
  const ready = (worker, rank) => new Promise((resolve) => {
    worker.onmessage = resolve;
    worker.postMessage({ rank, ports: ports[rank] }, ports[rank].filter(Boolean));
  });
  return Promise.all(window.workers.map(ready)).then(() => {});
};
const run = (order) => page.evaluate((order) => Promise.all(window.workers.map((worker) => new Promise((resolve) => {
  worker.onmessage = resolve;
  worker.postMessage(order);
}))).then(() => {}), order);

console.log("| ranks | values | doubling, ms | halving, ms | halving / doubling |\n|---|---|---|---|---|");
for (const n_ranks of [2, 4, 8, 16]) {
  await page.evaluate(start, [worker.toString(), n_ranks]);
  for (const n of SIZES) {
    const times = Math.ceil((n > 4096 ? 320 : 3200) / n_ranks);
    const found = { doubling: [], halving: [] };
    for (let round = 0; round <= N_ROUNDS; round++) {
      for (const way of ["doubling", "halving"]) {
        const before = processorMs();
        await run({ n, times: round === 0 ? 3 : times, way });
        if (round > 0) found[way].push((processorMs() - before) / times / n_ranks);
      }
    }
    const median = (values) => values.toSorted((a, b) => a - b)[values.length >> 1];
    const [doubling, halving] = [median(found.doubling), median(found.halving)];
    console.log(`| ${n_ranks} | ${n} | ${doubling.toFixed(3)} | ${halving.toFixed(3)} | ${(halving / doubling).toFixed(2)} |`);
  }
}
await browser.close();
