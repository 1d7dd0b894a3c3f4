// A stand-in for www/llama3med/index.js with the same interface and no model: for states that are hard to reach with the real one. `?fake=slow` loads and
// encodes slowly, `load-error`, `image-error`, `answer-error` fail there; `repetition` ends answers that way, `markdown` adds markup to them.

export { Folder } from "./folder.js";
export { giveUpNetwork } from "./lock.js";
export { KINDS } from "./errors.js";
export { MAX_RANKS } from "./workers.js";

const fake = new URLSearchParams(location.search).get("fake") ?? "";
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const speed = fake.includes("slow") ? 20 : 1;

const INFO = {
  name: "Llama3-Med demo (random weights)",
  description: "Random weights: its answers mean nothing. They show that everything works.",
  license: "Apache-2.0",
  notices: [],
  suggestedQuestions: ["Is the heart enlarged?", "Where is the nodule?", "Describe the image.", "Is there an effusion?"],
  samples: ["chest", "brain", "tissue", "fundus"].map((kind) => ({ path: `${kind}.png`, alt: `Drawn ${kind}`, questions: [] })),
  seesPictures: true,
  scales: [64, 128, 256],
  tileSize: 64,
  nTiles: 21,
  nImageTokens: 16,
  contextLength: 2048,
  ranks: 2,
  build: "relaxed",
  memoryBytes: [31_000_000, 30_500_000],
  files: [{ name: "decoder.gguf", size: 11_400_000 }, { name: "encoder.gguf", size: 3_800_000 }],
  fidelity: {
    reference: "checkpoint, f16", n_prompts: 20, n_images: 4, n_tokens: 195, kl_divergence: 0.0008123, top1_agreement: 0.9923,
    layer_errors: [0.055, 0.0474, 0.046, 0.0454, 0.0481], encoder_error: 0.0522,
  },
};

const WORDS = "The heart shadow is within normal limits. The left upper zone shows a small round opacity of about nine millimetres; the rest of both lungs is clear.";

const MARKED = "## Findings\n\nThe heart is **not enlarged**. Two signs:\n\n1. *Opacity*, left upper zone\n2. `CTR` 0.48\n\n| Side | Size |\n|---|--:|\n| left | 9 mm |\n\nNothing else.";

async function* answer({ signal }, chat, onProgress) {
  chat.timings.prefillMs = 240;
  chat.finish = fake.includes("repetition") ? "repetition" : "stop";
  onProgress({ stage: "reading", done: 0, total: 24 });
  await pause(40 * speed);
  let n = 0;
  for (const word of (fake.includes("markdown") ? MARKED : WORDS).split(/(?<= )/)) {
    if (signal?.aborted) return;
    if (fake.includes("answer-error") && n === 5) throw Object.assign(new Error("A worker of the model stopped: memory access out of bounds (rank 1)"), { kind: "rank-lost" });
    onProgress({ stage: "answering", done: ++n, total: 512, tokensPerSecond: 14.2 });
    Object.assign(chat.timings, { tokensPerSecond: 14.2, nTokens: n, nPrompt: 61, nReused: 40 });
    chat.first = [{ text: "The", probability: 0.61 }, { text: "No", probability: 0.22 }];
    yield word;
    await pause(10 * speed);
  }
}

const FRAME = { crop: { x: 0, y: 64, width: 512, height: 512 }, width: 512, height: 640, tiles: 21, notes: [] };

/** A grey wedge. */
function wedge() {
  const view = new ImageData(FRAME.width, FRAME.height);
  view.data.forEach((_, at) => (view.data[at] = at % 4 === 3 ? 255 : at >> 13));
  return view;
}

function startChat({ onPicture = () => {}, onProgress }) {
  const chat = { timings: { loadMs: 900 }, first: [], close() {} };
  chat.ready = (async () => {
    if (fake.includes("image-error")) throw Object.assign(new Error("This picture cannot be read: PNG: IDAT: corrupt deflate stream"), { kind: "image" });
    onPicture({ ...FRAME, view: wedge() });
    for (let done = 0; done < 21; done++) {
      onProgress({ stage: "encoding", done, total: 21, secondsLeft: (21 - done) * 0.01 * speed });
      await pause(10 * speed);
    }
    chat.timings.encodeMs = 210 * speed;
    return FRAME;
  })();
  chat.ask = (question, options = {}) => answer(options, chat, onProgress);
  return chat;
}

export async function load(manifestUrl, { onProgress = () => {} } = {}) {
  for (let done = 0; done < 10; done++) {
    onProgress({ stage: "loading", done: done * 1_520_000, total: 15_200_000, bytesPerSecond: 12_000_000, secondsLeft: (10 - done) * 0.1 * speed });
    await pause(10 * speed);
    if (fake.includes("load-error") && done === 4) throw Object.assign(new Error("The model could not be fetched: decoder.gguf.003"), { kind: "network", detail: "TypeError: Failed to fetch" });
  }
  return { info: INFO, chat: startChat, close() {}, ended: new Promise(() => {}) };
}

export async function deleteCached() {}
