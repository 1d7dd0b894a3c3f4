// The default number of ranks: from the memory that the model needs, the processor's cores, and a short measurement of this device.
//
// Each token of an answer costs every rank one pass over its share of the weights, and all ranks two sums per layer. With more ranks, each has a smaller share,
// but waits for more messages. What the browser calls cores may be two threads of one core, or slow ones beside fast ones, and then every rank waits for the
// slowest. So a few workers multiply at once for some milliseconds, and their combined speed decides.

import { ModelError } from "./errors.js";
import { MAX_RANKS, startWorker } from "./workers.js";

const MAX_DEFAULT_RANKS = 16;
const UNMEASURED_RANKS = 4; // at most, if nothing could be measured
// Up to here the sums cost more than a second rank saves, on every device measured.
const ONE_RANK_BYTES = 64e6;
const WEIGHT_BYTES = 4.5 / 8;
const N_SUMS = 65; // of a decoder of 32 layers
const LEAST_GAIN = 1.1; // more ranks take more memory and more power: the gain must be worth it

const PRODUCT = ["q4_0", 2048, 4096, 1]; // 4.7 MB per worker: together more than a processor's cache
const PRODUCT_MS = 40;
const SUM_BYTES = 4 * 4096;
const N_EXCHANGES = 50;

/**
 * @param {number} n_bytes  of the model's weights in memory
 * @param {{ n_least?: number, wanted?: number, n_cores?: number, measure: (counts: number[]) => Promise<{ gmacsPerSecond: number[], exchangeMs: number }> }} options
 *   Fewer than `n_least` ranks would not have enough memory. `measure` returns the combined speed of each number of workers if all wait for the slowest, and
 *   the cost of an exchange.
 * @returns {Promise<number>}
 */
export async function chooseRanks(n_bytes, { n_least = 1, wanted, n_cores, measure }) {
  if (wanted !== undefined) return checked(wanted, n_least);
  if (n_bytes < ONE_RANK_BYTES) return 1;
  const counts = candidates(n_least, Math.min(n_cores || 2, MAX_DEFAULT_RANKS));
  if (counts.length === 1) return counts[0];
  try {
    const { gmacsPerSecond, exchangeMs } = await measure(counts);
    const tokenMs = (count, idx) => n_bytes / WEIGHT_BYTES / gmacsPerSecond[idx] / 1e6 + N_SUMS * n_hops(count) * exchangeMs;
    const all = counts.map((count, idx) => ({ count, ms: tokenMs(count, idx) }));
    return all.reduce((best, next) => (best.ms > LEAST_GAIN * next.ms ? next : best)).count;
  } catch {
    return counts.findLast((count) => count <= UNMEASURED_RANKS) ?? n_least;
  }
}

function checked(wanted, n_least) {
  if (!Number.isInteger(wanted) || wanted < 1 || wanted > MAX_RANKS) {
    throw new ModelError({ kind: "invalid", message: `ranks must be a whole number from 1 to ${MAX_RANKS}, found ${wanted}` });
  }
  if (wanted >= n_least) return wanted;
  const message = `this model needs at least ${n_least} ranks: no rank can have more than 4 GB of memory`;
  throw new ModelError({ kind: "invalid", message, instead: { ranks: n_least } });
}

/** Ascending: the minimum that the model needs, powers of two above it, and one rank per core. */
function candidates(n_least, n_most) {
  const counts = [n_least];
  for (let count = 2; count < n_most; count *= 2) if (count > n_least) counts.push(count);
  if (n_most > n_least) counts.push(n_most);
  return counts;
}

/** The number of messages that a sum waits for, one after the other: see `sum` in ranks.rs. */
function n_hops(n_ranks) {
  const doublings = Math.floor(Math.log2(n_ranks));
  return doublings + (2 ** doublings === n_ranks ? 0 : 2);
}

/** The `measure` of `chooseRanks`, with the compiled `module` of a `build`. */
export async function measure(counts, { build, module }) {
  const probes = Array.from({ length: Math.max(...counts) }, () => new Probe());
  try {
    await Promise.all(probes.map((probe) => probe.ask({ type: "open", build, module })));
    const time = (probe, ms) => probe.ask({ type: "products", products: [PRODUCT], ms });
    await Promise.all(probes.map((probe) => time(probe, 0))); // creates the products
    const gmacsPerSecond = [];
    for (const count of counts) {
      const speeds = await Promise.all(probes.slice(0, count).map((probe) => time(probe, PRODUCT_MS)));
      gmacsPerSecond.push(count * Math.min(...speeds.map((speed) => speed.gmacsPerSecond[0])));
    }
    if (probes.length === 1) return { gmacsPerSecond, exchangeMs: 0 };
    const { port1, port2 } = new MessageChannel();
    const exchange = (probe, port) => probe.ask({ type: "exchange", port, n_bytes: SUM_BYTES, n_times: N_EXCHANGES }, [port]);
    const [{ ms: exchangeMs }] = await Promise.all([exchange(probes[0], port1), exchange(probes[1], port2)]);
    return { gmacsPerSecond, exchangeMs };
  } finally {
    probes.forEach((probe) => probe.end());
  }
}

/** A worker that measures: probe.js. One request at a time. */
export class Probe {
  #worker = startWorker((Worker) => new Worker(new URL("./probe.js", import.meta.url), { type: "module" }), "probe");

  /** Resolves with the answer to a message. */
  ask(message, transfer = []) {
    return new Promise((resolve, reject) => {
      this.#worker.onmessage = ({ data }) => (data.type === "failed" ? reject(new ModelError(data.error)) : resolve(data));
      this.#worker.onerror = (event) => reject(new ModelError({ kind: "internal", message: event.message || "probe.js could not be started" }));
      this.#worker.postMessage(message, transfer);
    });
  }

  end() {
    this.#worker.terminate();
  }
}
