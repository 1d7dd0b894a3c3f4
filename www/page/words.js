// Numbers and errors in plain words. Every error says what happened and the one thing to do next; the engine's own sentence is in the details.

import { KINDS } from "../llama3med/index.js";

/** `bytes` in readable form: "3.2 MB". */
export function bytesText(bytes) {
  const units = ["bytes", "kB", "MB", "GB"];
  const unitIdx = bytes < 1000 ? 0 : Math.min(3, Math.floor(Math.log10(bytes) / 3));
  const value = bytes / 1000 ** unitIdx;
  return `${value < 10 && unitIdx > 0 ? value.toFixed(1) : Math.round(value)} ${units[unitIdx]}`;
}

/** `seconds` as remaining time: "40 s left", "3 min left"; empty if unknown. */
export function leftText(seconds) {
  if (!Number.isFinite(seconds)) return "";
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s left`;
  return `${Math.round(seconds / 60)} min left`;
}

/** Milliseconds with a sensible number of digits: "85 ms", "3.2 s". */
export function timeText(ms) {
  if (!Number.isFinite(ms)) return "–";
  return ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(ms < 10000 ? 1 : 0)} s`;
}

// Fewer tokens have no meaningful speed.
const MEASURED_TOKENS = 8;

/** The speed of an answer of `n_tokens`, if it is meaningful. */
export function speedText(tokensPerSecond, n_tokens) {
  return tokensPerSecond && n_tokens >= MEASURED_TOKENS ? `${tokensPerSecond.toFixed(1)} tokens/s` : "";
}

/** The status of a download that has lost the network. */
export const WAITS = "No network: loading waits for it and goes on by itself";

/** One line for the client's progress object: what is being done and how long it will take; `hasImage` is whether a picture is involved. */
export function progressText(progress, hasImage = true) {
  const left = leftText(progress.secondsLeft);
  if (progress.waits) return WAITS;
  const parts = {
    loading: () => [
      `Loading the model: ${bytesText(progress.done)} of ${bytesText(progress.total)}`,
      progress.bytesPerSecond ? `${bytesText(progress.bytesPerSecond)}/s` : "",
      left,
    ],
    encoding: () => [`Encoding the image: tile ${Math.min(progress.done + 1, progress.total)} of ${progress.total}`, left],
    reading: () => [hasImage ? "Reading the image and the question" : "Reading the question", left],
    answering: () => ["Answering", speedText(progress.tokensPerSecond, progress.done)],
  }[progress.stage];
  return parts ? parts().filter(Boolean).join(" · ") : "";
}

/** An error of the client as `{ title, next, details }`. */
export function explain(error) {
  const { kind, message = String(error), detail = "", moreRanks } = error ?? {};
  const details = [message, detail].filter(Boolean).join("\n");
  // The engine has named the kind of file: "this is a PDF document; …".
  if (kind === "format") {
    const [what] = message.split(";");
    return { title: `${what[0].toUpperCase()}${what.slice(1)}.`, next: "Save or export the picture as PNG or JPEG and open that.", details };
  }
  if (kind === "browser") return { title: message, next: "Open this page in another browser.", details };
  const [title, next = message] = KINDS[kind] ?? ["This did not work.", "Load the model again."];
  if (moreRanks) return { title, next: `Open it with ${moreRanks} ranks: each has memory of its own. If that is not enough either: ${next[0].toLowerCase()}${next.slice(1)}`, details };
  return { title, next, details };
}

/** Shows a calm sentence inside `place`, with an optional button `{ label, run }`. It replaces one with the same `key`; an empty text removes it. */
export function showNote(place, key, text, action) {
  [...place.children].find((note) => note.dataset.key === key)?.remove();
  if (!text) return;
  const note = document.createElement("p");
  note.className = "note";
  note.dataset.key = key;
  note.textContent = text;
  if (action) note.append(buttonFor(action));
  place.append(note);
  note.scrollIntoView({ block: "nearest" });
}

function buttonFor({ label, run }) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = label;
  button.addEventListener("click", run);
  return button;
}

/** Shows an explained error inside `place`, with buttons `{ label, run }`; returns the element. */
export function showError(place, { title, next, details }, ...actions) {
  const box = document.createElement("div");
  box.className = "error";
  box.setAttribute("role", "alert");
  const heading = document.createElement("strong");
  heading.textContent = title;
  const advice = document.createElement("span");
  advice.textContent = next;
  const fold = document.createElement("details");
  const summary = document.createElement("summary");
  summary.textContent = "Details";
  const text = document.createElement("pre");
  text.textContent = details;
  fold.append(summary, text);
  box.append(heading, advice, fold);
  box.append(...actions.filter(Boolean).map(buttonFor));
  place.replaceChildren(box);
  box.scrollIntoView({ block: "nearest" });
  return box;
}
