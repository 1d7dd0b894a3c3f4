// How the workers of a model are watched, with made-up workers and a made-up clock: which of them count as lost, and what many simultaneous requests do.

import assert from "node:assert/strict";
import { afterEach, beforeEach, mock, test } from "node:test";
import { Workers } from "../../www/llama3med/workers.js";

const MINUTE = 60_000;
let workers;
let locks;
let now;

class FakeWorker {
  constructor(url, { name }) {
    Object.assign(this, { name, sent: [], isEnded: false });
    workers.push(this);
  }
  postMessage(message) {
    this.sent.push(message);
  }
  terminate() {
    this.isEnded = true;
  }
  say(data) {
    this.onmessage({ data });
  }
  pings() {
    return this.sent.filter(({ type }) => type === "ping").length;
  }
}

beforeEach(() => {
  workers = [];
  locks = new Map();
  now = 0;
  mock.timers.enable({ apis: ["setInterval"] });
  mock.method(performance, "now", () => now);
  globalThis.Worker = FakeWorker;
  URL.createObjectURL = () => "blob:fake";
});

afterEach(() => mock.reset());

/** The workers of `n` ranks; with locks, `locks` has the functions that release them. */
function start(n, withLocks) {
  const request = (name, lost) => new Promise(() => locks.set(name, lost));
  Object.defineProperty(globalThis, "navigator", { value: withLocks ? { locks: { request } } : {}, configurable: true });
  const all = new Workers();
  all.startRanks(n, {});
  workers.forEach((worker) => worker.say({ type: "started" }));
  return all;
}

/** Lets time pass as for a page that is awake. */
function pass(ms, during = () => {}) {
  for (const end = now + ms; now < end; ) {
    now += 5000;
    mock.timers.tick(5000);
    during();
  }
}

test("a rank that computes for hours is alive as long as its lock is held", () => {
  const all = start(2, true);
  pass(180 * MINUTE);
  assert.equal(all.error, null);
  assert.equal(workers[0].pings(), 1, "one ping is under way at a time");
  locks.get([...locks.keys()][1])();
  assert.equal(all.error.kind, "rank-lost");
  assert.ok(workers.every(({ isEnded }) => isEnded));
});

test("without locks, ten minutes of silence are too long, and sleep does not count", () => {
  const all = start(1, false);
  const [worker] = workers;
  pass(9 * MINUTE);
  assert.equal(all.error, null);
  worker.say({ type: "progress" });
  pass(9 * MINUTE);
  now += 600 * MINUTE;
  mock.timers.tick(5000);
  assert.equal(all.error, null);
  pass(2 * MINUTE);
  assert.equal(all.error.kind, "rank-lost");
  assert.match(all.error.message, /not answered for 10 minutes/);
});

test("memory may be requested any number of times at once", async () => {
  const all = start(2, false);
  const asked = Array.from({ length: 400 }, () => all.memory());
  assert.equal(all.error, null);
  assert.deepEqual(workers.map((worker) => worker.pings()), [1, 1]);
  workers.forEach((worker, rank) => worker.say({ type: "pong", memory: 100 + rank }));
  for (const memory of await Promise.all(asked)) assert.deepEqual(memory, [100, 101]);
  const again = all.memory();
  workers.forEach((worker) => worker.say({ type: "pong", memory: 200 }));
  assert.deepEqual(await again, [200, 200]);
  const last = all.memory();
  all.end(new Error("over"));
  assert.deepEqual(await last, [200, 200]);
  assert.deepEqual(await all.memory(), [200, 200]);
});
