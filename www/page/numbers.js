// The numbers that a teacher or an engineer wants: what the model is, and how long each stage took. Closed by default.

import { bytesText, speedText, timeText } from "./words.js";

function facts(list, rows) {
  list.replaceChildren(...rows.filter(([, value]) => value !== undefined && value !== null && value !== "").flatMap(([name, value]) => {
    const term = document.createElement("dt");
    term.textContent = name;
    const description = document.createElement("dd");
    description.textContent = String(value);
    return [term, description];
  }));
  return list;
}

function section(title, rows) {
  const element = document.createElement("section");
  const heading = document.createElement("h2");
  heading.textContent = title;
  element.append(heading, facts(document.createElement("dl"), rows));
  return element;
}

const BUILDS = { relaxed: "relaxed SIMD", simd128: "SIMD 128" };

/** Fills the panel under the model's name. */
export function showModel(panel, info) {
  panel.querySelector("#model-description").textContent = info.description ?? "";
  panel.querySelector("#model-notices").replaceChildren(...(info.notices ?? []).map((notice) => {
    const item = document.createElement("li");
    item.textContent = notice;
    return item;
  }));
  facts(panel.querySelector("#model-facts"), [
    ["Name", info.name],
    ["Licence", info.license],
    ["Size", info.files ? bytesText(info.files.reduce((sum, file) => sum + file.size, 0)) : null],
    ["Fidelity", info.fidelity ? fidelityText(info.fidelity) : null],
    ["Ranks", info.ranks],
    ["Build", BUILDS[info.build] ?? info.build],
    ["Kept here", info.cached === undefined ? null : info.cached ? "yes: it opens without a network" : info.note || "no: it is fetched each time"],
  ]);
}

/** Fills and shows the panel of numbers; `chat` is the client's conversation about this image, with its timings. */
export function showNumbers(details, info, { timings = {}, first = [] } = {}) {
  const scales = info.scales.map((scale) => `${scale}²`).join(", ");
  const ofImage = (text) => (info.seesPictures ? text : null);
  const body = details.querySelector("#numbers-body");
  body.replaceChildren(
    section(info.seesPictures ? "Image" : "Conversation", [
      ["Scales", ofImage(`${scales} pixels`)],
      ["Tiles", ofImage(`${info.nTiles} of ${info.tileSize}²`)],
      ["Image tokens", ofImage(info.nImageTokens)],
      ["Context", `${info.contextLength} tokens`],
    ]),
    section("Time", timeRows(timings, info)),
    ...(first.length > 0 ? [section("Most likely first words of the answer", first.map(({ text, probability }) => [`“${text.trim() || "…"}”`, `${(100 * probability).toFixed(1)} %`]))] : []),
    section("Memory", (info.memoryBytes ?? []).map((bytes, rank) => [`Rank ${rank}`, bytesText(bytes)])),
    section("Model files", (info.files ?? []).map((file) => [file.name, bytesText(file.size)])),
    section("Build", [["Kernels", BUILDS[info.build] ?? info.build], ["Ranks", info.ranks]]),
  );
  if (info.fidelity) body.append(section("Compared with the unquantized model", fidelityRows(info.fidelity)));
  details.hidden = false;
}

const percent = (part) => `${(100 * part).toFixed(1)} %`;

/** How close the model is to the unquantized one, in one line. */
function fidelityText({ top1_agreement: agreement, n_tokens: tokens }) {
  return `${percent(agreement)} of ${tokens} tokens the same as with the unquantized model`;
}

// The manifest's fidelity card, as written by `quantize compare`.
function fidelityRows(card) {
  const errors = card.layer_errors;
  return [
    ["Compared with", card.reference],
    ["On", `${card.n_prompts} prompts, ${card.n_images} pictures, ${card.n_tokens} tokens`],
    ["Same most likely token", percent(card.top1_agreement)],
    ["KL divergence", `${card.kl_divergence.toPrecision(2)} nats per token`],
    ["Image features", Number.isFinite(card.encoder_error) ? `${percent(card.encoder_error)} off` : null],
    ["Layers", errors.length > 0 ? `${percent(Math.min(...errors))} to ${percent(Math.max(...errors))} off` : null],
  ];
}

function timeRows(timings, info) {
  return [
    ["Loading", Number.isFinite(timings.loadMs) ? timeText(timings.loadMs) : null],
    ["Encoding", Number.isFinite(timings.encodeMs) ? `${timeText(timings.encodeMs)} (${timeText(timings.encodeMs / info.nTiles)} a tile)` : null],
    ["Reading", Number.isFinite(timings.prefillMs) ? timeText(timings.prefillMs) : null],
    ["Prompt", timings.nPrompt ? `${timings.nPrompt} tokens, ${timings.nReused ?? 0} of them kept from before` : null],
    ["Answering", speedText(timings.tokensPerSecond, timings.nTokens)],
  ];
}
