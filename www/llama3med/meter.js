// The progress of a load, over everything that is fetched, and its speed.

const WINDOW_MS = 5000; // the speed is measured over the last few seconds

/** Adds up the parts of a load. `tell` is called with `{ done, total, bytesPerSecond, secondsLeft, waits }` on every change. */
export class Meter {
  #parts = new Map();
  #samples = [{ time: performance.now(), done: 0 }];
  #tell;

  constructor(tell) {
    this.#tell = tell;
  }

  /** Reports how far a part is; `waits` is whether it waits for the network. */
  set(part, { done, total, waits = false }) {
    this.#parts.set(part, { done, total, waits });
    const parts = [...this.#parts.values()];
    const sum = (name) => parts.reduce((sum, part) => sum + part[name], 0);
    this.#tell({ done: sum("done"), total: sum("total"), ...this.#speed(sum("done"), sum("total")), waits: parts.some((part) => part.waits) });
  }

  #speed(done, total) {
    const now = performance.now();
    const samples = this.#samples;
    samples.push({ time: now, done });
    while (samples.length > 2 && now - samples[0].time > WINDOW_MS) samples.shift();
    const [first] = samples;
    const bytesPerSecond = now > first.time ? Math.max(0, ((done - first.done) / (now - first.time)) * 1000) : 0;
    return { bytesPerSecond, secondsLeft: bytesPerSecond > 0 ? (total - done) / bytesPerSecond : undefined };
  }
}
