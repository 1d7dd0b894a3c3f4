// BENCHMARKS.md from the measurements: a short text around tables. Every number is the median of the rounds; a ratio is the median of the ratios within the
// rounds, so that both sides ran under the same conditions.

// llama.cpp built with Emscripten and its SIMD kernels, 1B shape, tokens/s, as measured by others on two cores of this kind.
const CITED = { prefill: 11, decode: 7.5 };

const INTRODUCTION = `# Benchmarks

Written by \`make bench\` from what it measured (\`bench/results\`); \`make bench PARTS="decode encoder"\` measures some parts again, \`PARTS=report\` only
writes this page. Models have full shape and random 4-bit weights; speed does not depend on their values. Every number is a median over interleaved rounds;
"x" is the median of the ratios within the rounds. All of it runs on one machine without a GPU: our engine on two ranks, the others on two threads.`;

/** `measured` has the parts' results by name, or null; `notes` is the hand-written text about them. */
export function report(measured, notes) {
  const found = Object.fromEntries(Object.entries(measured).map(([name, part]) => [name, part?.found]));
  const sections = [
    INTRODUCTION, machines(measured), targets(found), notes.trim(), small(found), peers(found), large(found), encoder(found), scaling(found), roofline(found),
    products(found),
  ];
  return `${sections.filter(Boolean).join("\n\n")}\n`;
}

// ---- numbers

function median(values) {
  const sorted = values.filter(Number.isFinite).toSorted((a, b) => a - b);
  const middle = sorted.length / 2;
  return sorted.length === 0 ? NaN : (sorted[Math.ceil(middle) - 1] + sorted[Math.floor(middle)]) / 2;
}

/** The median of one measure over a contestant's rounds; NaN where there is none. */
function speed(contestant, what, key) {
  return median((contestant?.rounds ?? []).map((round) => round[what]?.[key]));
}

/** The median of a / b within the rounds. */
function ratio(a, b, what, key) {
  return median((a?.rounds ?? []).map((round, idx) => round[what]?.[key] / b?.rounds?.[idx]?.[what]?.[key]));
}

const number = (value, digits = 1) => (Number.isFinite(value) ? value.toFixed(digits) : "-");
const times = (value) => (Number.isFinite(value) ? `${value.toFixed(2)}x` : "not measured");
const percent = (value) => (Number.isFinite(value) ? `${(100 * value).toFixed(0)} %` : "-");
const gigabytes = (bytes) => number(bytes / 1e9, 2);

function table(head, rows) {
  const line = (cells) => `| ${cells.join(" | ")} |`;
  return [line(head), line(head.map((_, idx) => (idx === 0 ? "---" : "---:"))), ...rows.map(line)].join("\n");
}

/** Why a contestant is missing from a table. */
function missing(contestants) {
  const absent = Object.entries(contestants).filter(([, contestant]) => contestant?.missing);
  return absent.map(([name, contestant]) => `\n\n${name} was not measured: ${contestant.missing}.`).join("");
}

// ---- who measured what

function machines(measured) {
  const parts = Object.entries(measured).filter(([, part]) => part);
  if (parts.length === 0) return "Nothing has been measured yet.";
  const { cpu, cores, memoryGiB, system, node, rustc } = parts.at(-1)[1];
  const found = (name) => measured[name]?.found;
  const versions = [found("limits")?.version, found("decode")?.q4_0["llama.cpp"].ready && `llama.cpp by llama_cpp ${found("decode").q4_0["llama.cpp"].ready.version}`,
    found("peers")?.q4_0.wllama.ready?.version, found("encoder")?.pytorch.ready?.version, node && `Node ${node}`, rustc];
  const features = found("decode")?.q4_0["llama.cpp"].ready?.features.replace(/ = 1 /g, " ").replace(/\s*\|\s*/g, " ").trim();
  const rows = parts.map(([name, { date, commit, load, seconds }]) => [name, date.replace("T", " "), commit, number(load), number(seconds, 0)]);
  return `${cpu}, ${cores} cores, ${memoryGiB} GiB, ${system}. ${versions.filter(Boolean).join(", ")}.${features ? ` llama.cpp's build: ${features}.` : ""}

${table(["part", "date (UTC)", "commit", "load before", "seconds"], rows)}

A load before well above 0 means that the machine was also busy with something else.`;
}

// ---- the targets

function targets(found) {
  const rows = [];
  const row = (what, asked, value, isMet, shown) => {
    const isMeasured = Number.isFinite(value);
    rows.push([what, asked, isMeasured ? shown : "not measured", isMeasured ? (isMet ? "met" : "**missed**") : "-"]);
  };
  const least = (what, value, bound, more = "") => row(what, `${bound}x`, value, value >= bound, times(value) + more);
  const types = [["Q4_0", "q4_0"], ["Q4_K", "q4_k"]];
  for (const [what, title] of [["decode", "decode after 256 tokens"], ["prefill", "prefill of 512 tokens"]]) {
    for (const [name, type] of types) {
      const { relaxed, "llama.cpp": native } = found.decode?.[type] ?? {};
      least(`${title}, 1B ${name}, against llama.cpp natively`, ratio(relaxed, native, what, what), 1);
    }
  }
  for (const what of ["decode", "prefill"]) {
    for (const [name, type] of types) {
      const { relaxed, wllama } = found.peers?.[type] ?? {};
      least(`${what}, 1B ${name}, against wllama`, ratio(relaxed, wllama, "both", what), type === "q4_0" ? 10 : 5);
    }
  }
  for (const what of ["decode", "prefill"]) {
    const value = speed(found.decode?.q4_0.relaxed, what, what) / CITED[what];
    least(`${what}, 1B Q4_0, against llama.cpp built with Emscripten and its SIMD kernels (${CITED[what]} tokens/s: cited, not measured here)`, value, 3);
  }
  const eight = speed(found.large?.ours, "both", "decode");
  const native = ratio(found.large?.ours, found.large?.["llama.cpp"], "both", "decode");
  row("decode, 8B Q4_0", "4 tokens/s, or 1.0x llama.cpp natively", eight, eight >= 4 || native >= 1, `${number(eight, 2)} tokens/s, ${times(native)}`);
  least("encoder, CLIP-L/14-336, a tile, against PyTorch f32", tileRatio(found.encoder, "relaxed"), 1);
  const builds = types.flatMap(([, type]) => ["decode", "prefill"].map((what) => ratio(found.decode?.[type].simd128, found.decode?.[type].relaxed, what, what)));
  least("simd128 build against relaxed build, the lowest of decode and prefill, Q4_0 and Q4_K", Math.min(...builds), 0.5);
  for (const [what, bound] of [["decode", 1.85], ["prefill", 1.9]]) {
    least(`second rank's gain, ${what}, 3B (the largest shape that fits into one rank)`, ratio(found.scaling?.[2], found.scaling?.[1], "both", what), bound);
  }
  for (const [cache, title] of [["cold", "from the disk"], ["warm", "from the system's cache"]]) {
    const value = loadRatio(found.large, cache);
    row(`load of the 8B from OPFS, ${title}, against just reading the same bytes`, "1.5x the time at most", value, value <= 1.5, times(value));
  }
  const excess = beyond(found.large);
  row("peak memory, 8B, all ranks, beyond weights, keys and values", "10 %", excess, excess <= 0.1, `${(100 * excess).toFixed(1)} %`);
  return `## Targets\n\n${table(["", "target", "measured", ""], rows)}`;
}

/** How many times faster than PyTorch a build encodes a tile. */
function tileRatio(encoder, build) {
  const torch = (round) => Math.min(round?.tile?.one ?? NaN, round?.tile?.batch ?? NaN);
  return median((encoder?.[build]?.rounds ?? []).map((round, idx) => torch(encoder.pytorch?.rounds?.[idx]) / round.tile?.secondsPerTile));
}

function loadRatio(large, cache) {
  return median((large?.loads ?? []).map(({ read, load }) => load[cache] / read[cache].seconds));
}

/** Memory of all ranks beyond weights, keys and values, as a share of these. */
function beyond(large) {
  if (!large) return NaN;
  const { weights, kv } = large.needed;
  return large.memory.bytes.reduce((sum, bytes) => sum + bytes, 0) / (weights + kv) - 1;
}

// ---- the tables

function small({ decode }) {
  if (!decode) return "";
  const names = [["page, relaxed SIMD", "relaxed"], ["page, simd128", "simd128"], ["llama.cpp, native", "llama.cpp"]];
  const rows = ["q4_0", "q4_k"].flatMap((type) => names.map(([title, name]) => {
    const contestant = decode[type][name];
    const cells = ["prefill", "decode"].flatMap((what) => [number(speed(contestant, what, what)), times(ratio(contestant, decode[type]["llama.cpp"], what, what))]);
    return [`${type.toUpperCase()}, ${title}`, ...cells];
  }));
  return `## 1B shape, two ranks, compared with llama.cpp on two threads

Llama-3.2-1B. Tokens/s for prefill of a 512-token prompt, and for decoding 32 tokens after a prompt of 256.

${table(["", "prefill", "x native", "decode", "x native"], rows)}${missing(decode.q4_0)}`;
}

function peers({ peers }) {
  if (!peers) return "";
  const rows = ["q4_0", "q4_k"].flatMap((type) => [["page", "relaxed"], ["wllama", "wllama"]].map(([title, name]) => {
    const cells = ["prefill", "decode"].flatMap((what) => [number(speed(peers[type][name], "both", what)), times(ratio(peers[type][name], peers[type].wllama, "both", what))]);
    return [`${type.toUpperCase()}, ${title}`, ...cells];
  }));
  return `## 1B shape, compared with wllama

The same GGUF file, two threads (its pages are served with COOP and COEP), flash attention, batches of 512, no GPU: the fastest of the settings we
tried. A prompt of 256 tokens, then 16 decoded: wllama's prefill is no faster at 512.

${table(["", "prefill", "x wllama", "decode", "x wllama"], rows)}${missing(peers.q4_0)}`;
}

function large({ large }) {
  if (!large) return "";
  const { ours, "llama.cpp": native, firstToken, loads, memory, needed } = large;
  const speeds = [["page", ours], ["llama.cpp, native", native]].map(([title, contestant]) => [title,
    ...["prefill", "decode"].flatMap((what) => [number(speed(contestant, "both", what), 2), times(ratio(contestant, native, "both", what))])]);
  const load = ["cold", "warm"].map((cache) => [cache === "cold" ? "from the disk" : "from the system's cache", number(median(loads.map(({ read }) => read[cache].seconds))),
    number(median(loads.map((round) => round.load[cache]))), times(loadRatio(large, cache))]);
  const sum = memory.bytes.reduce((total, bytes) => total + bytes, 0);
  return `## 8B shape, two ranks

Llama-3-8B with CLIP-L/14-336 in three scales (${large.nTiles} tiles), Q4_0. Tokens/s for prefill of a 256-token prompt, and for decoding 16 tokens after it.

${table(["", "prefill", "x native", "decode", "x native"], speeds)}${missing({ "llama.cpp": native })}

Load, in seconds: the first time, from a server on the same machine, ${number(large.firstLoadS)} s with everything saved; later, from the browser's own files:
reading and discarding them, compared with loading them into the ranks.

${table(["", "just read", "loaded", "x"], load)}

Memory of the ranks after a picture and a question: ${memory.bytes.map(gigabytes).join(" + ")} = ${gigabytes(sum)} GB. The files are ${gigabytes(needed.weights)} GB, and the keys and values of
the conversation's ${memory.tokens} tokens ${gigabytes(needed.kv)} GB: ${(100 * beyond(large)).toFixed(1)} % more than both together.

First token, in seconds after the question:

${table(["asked when", "seconds"], [
    ["the picture has just been dropped", number(firstToken.dropped)],
    [`the picture has been encoded (${number(firstToken.encodeS)} s) and read (${number(firstToken.prepareS)} s) while the question was typed`, number(firstToken.typed, 2)],
    ["the picture was seen before", number(firstToken.again, 2)],
  ])}`;
}

function encoder({ encoder }) {
  if (!encoder) return "";
  const row = (title, seconds, value) => [title, number(seconds, 2), times(value)];
  const rows = [["page, relaxed SIMD", "relaxed"], ["page, simd128", "simd128"]].map(([title, build]) => row(title, speed(encoder[build], "tile", "secondsPerTile"), tileRatio(encoder, build)));
  const torch = median((encoder.pytorch?.rounds ?? []).map(({ tile }) => Math.min(tile.one, tile.batch)));
  return `## Encoder

CLIP-L/14-336, 23 blocks, 577 tokens, seconds per tile; PyTorch in f32, one tile at a time or four in a batch, whichever is faster. ${encoder.pytorch?.ready?.mtmd ?? ""}

${table(["", "seconds", "x PyTorch"], [...rows, row("PyTorch f32, native", torch, torch / torch)])}${missing(encoder)}`;
}

function scaling({ scaling }) {
  if (!scaling) return "";
  const rows = [1, 2, 4].map((ranks) => [ranks, ...["prefill", "decode"].flatMap((what) => [number(speed(scaling[ranks], "both", what)), times(ratio(scaling[ranks], scaling[1], "both", what))])]);
  return `## Ranks

Llama-3.2-3B shape, Q4_0, the largest that fits into one rank (an 8B needs two): a prompt of 128 tokens, then 16 decoded. Four ranks share this machine's cores.

${table(["ranks", "prefill", "x one", "decode", "x one"], rows)}${missing(scaling)}`;
}

function roofline({ limits, decode, large }) {
  const limit = limits?.found.find(({ build, workers }) => build === "relaxed" && workers === 2);
  if (!limit) return "";
  const inCache = (type) => limit.products.find(({ shape: [dtype, n_rows, , n_tokens] }) => dtype === type && n_rows === 256 && n_tokens > 1).gmacsPerSecond;
  const models = [["1B Q4_0", "q4_0", decode?.q4_0.relaxed, decode?.q4_0.work, "decode", "prefill"], ["1B Q4_K", "q4_k", decode?.q4_k.relaxed, decode?.q4_k.work, "decode", "prefill"],
    ["8B Q4_0", "q4_0", large?.ours, large?.work, "both", "both"]].filter(([, , contestant, work]) => contestant && work);
  const rows = models.map(([title, type, contestant, work, one, many]) => {
    const bytes = speed(contestant, one, "decode") * work.bytesPerToken;
    const gmacs = (speed(contestant, many, "prefill") * work.macsPerPromptToken) / 1e9;
    return [title, number(bytes / 1e9), percent(bytes / limit.bytesPerSecond), number(gmacs), percent(gmacs / inCache(type)), percent(gmacs / limit.gmacsPerSecond)];
  });
  return `## Roofline

Two workers together read ${number(limit.bytesPerSecond / 1e9)} GB/s of wasm memory (1 GB each, reads only) and multiply ${number(limit.gmacsPerSecond)} GMAC/s of 8-bit numbers in registers, with the fastest available
instruction. Decode is compared with the first; prefill with the second, and with the product whose matrix stays in the cache. The speeds include attention,
norms, sums between ranks and everything else that is not a matrix product; the work counts matrix products only.

${table(["", "decode, GB/s of weights", "of the read limit", "prefill, GMAC/s of weights", "of the product in cache", "of the register limit"], rows)}`;
}

function products({ limits }) {
  if (!limits) return "";
  const rows = limits.found.flatMap(({ build, workers, products }) => products.map(({ shape: [type, n_rows, n_cols, n_tokens], gmacsPerSecond }) =>
    ({ key: `${type.toUpperCase()} ${n_rows} x ${n_cols} x ${n_tokens}`, column: `${build} ${workers}`, gmacsPerSecond })));
  const columns = ["relaxed 1", "relaxed 2", "simd128 1", "simd128 2"];
  const value = (key, column) => rows.find((row) => row.key === key && row.column === column)?.gmacsPerSecond;
  const limitsOf = (column, key) => limits.found.find(({ build, workers }) => `${build} ${workers}` === column)?.[key];
  const lines = [...new Set(rows.map(({ key }) => key))].map((key) => [key, ...columns.map((column) => number(value(key, column))), times(value(key, "relaxed 2") / value(key, "relaxed 1"))]);
  const limit = (title, key, scale) => [title, ...columns.map((column) => number(limitsOf(column, key) / scale)), times(limitsOf("relaxed 2", key) / limitsOf("relaxed 1", key))];
  return `## Products

GMAC/s of one product (rows x columns x tokens) in Chromium, on one worker and on two together; the last column is the gain from a second worker.

${table(["", "relaxed, 1", "relaxed, 2", "simd128, 1", "simd128, 2", "second"], [...lines, limit("multiplying in registers", "gmacsPerSecond", 1), limit("reading memory, GB/s", "bytesPerSecond", 1e9)])}`;
}
