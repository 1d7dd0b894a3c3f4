// A worker that measures this device: how fast it multiplies while other workers do the same, and what an exchange between two workers costs.
//
// Messages from ranks.js and index.js                        answered by
//   { type: "open", build, module }                          { type: "opened", kernel }
//   { type: "products", products, ms }                       { type: "products", gmacsPerSecond: [of each product] }
//   { type: "exchange", port, n_bytes, n_times }             { type: "exchange", ms: of one }   (sent to both ends of a channel)
//   any of them                                              { type: "failed", error: { kind, message } }

import { importBuild } from "./builds.js";

let wasm = null; // the bindings' module
const made = new Map(); // products, by their shape

self.addEventListener("message", async ({ data }) => {
  try {
    postMessage({ type: data.type, ...(await { open, products, exchange }[data.type](data)) });
  } catch (error) {
    postMessage({ type: "failed", error: { kind: error?.kind ?? "internal", message: String(error?.message ?? error) } });
  }
});

async function open({ build, module }) {
  wasm = await importBuild(build);
  wasm.initSync({ module });
  return { type: "opened", kernel: wasm.Product.kernel() };
}

/** Times products of [type, rows, columns, tokens], each for `ms` milliseconds. */
function products({ products, ms }) {
  const gmacsPerSecond = products.map((shape) => {
    const [, n_rows, n_cols, n_tokens] = shape;
    const product = madeProduct(shape);
    const start = performance.now();
    let n_runs = 0;
    while (n_runs === 0 || performance.now() - start < ms) n_runs += (product.run(), 1);
    const seconds = (performance.now() - start) / 1000;
    return (n_runs * n_rows * n_cols * n_tokens) / seconds / 1e9;
  });
  return { gmacsPerSecond };
}

/** A product is created once, and run once before it is timed. */
function madeProduct(shape) {
  const key = shape.join();
  if (!made.has(key)) {
    made.forEach((other) => other.free());
    made.clear();
    made.set(key, new wasm.Product(...shape));
    made.get(key).run();
  }
  return made.get(key);
}

/** Sends and awaits messages like two ranks that sum their partial results. */
async function exchange({ port, n_bytes, n_times }) {
  let n_waiting = 0;
  let wake = () => {};
  port.onmessage = () => (n_waiting++, wake());
  const received = async () => {
    while (n_waiting === 0) await new Promise((resolve) => (wake = resolve));
    n_waiting--;
  };
  let start = 0;
  for (let i = 0; i <= n_times; i++) {
    const buffer = new ArrayBuffer(n_bytes);
    port.postMessage(buffer, [buffer]);
    await received();
    if (i === 0) start = performance.now(); // both are ready now
  }
  const ms = (performance.now() - start) / n_times;
  return { ms };
}
