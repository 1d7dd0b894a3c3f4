// What the parts of the page share: its elements, its state, the status line, and the handling of unexpected errors.

import { Conversation } from "./conversation.js";
import { Picture } from "./picture.js";
import { readQuery } from "./query.js";
import { Requests, requestsText } from "./requests.js";
import { Service } from "./service.js";
import { progressText, showError } from "./words.js";

export const byId = (id) => document.getElementById(id);
export const ownModel = new URL(document.querySelector("meta[name=model]").content, document.baseURI).href;
export const asked = readQuery(location.search, document.baseURI, ownModel);
export const manifestUrl = typeof asked.source === "string" ? asked.source : ownModel;

export const picture = new Picture({
  film: byId("film"), image: byId("picture"), overlay: byId("overlay"), noPreview: byId("no-preview"), notes: byId("film-notes"), thumbs: byId("thumbs"),
});
export const conversation = new Conversation(byId("turns"), byId("spoken"));
export const requests = new Requests(new URL("./", Array.isArray(asked.source) ? asked.source[0] : manifestUrl).href, (count) => {
  const [line, how] = requestsText(count);
  byId("requests-line").textContent = line;
  byId("requests-how").textContent = how;
});

// What the user sees first is fetched first: the samples, as soon as the manifest names them.
export const samples = {};
samples.areIn = new Promise((resolve) => (samples.arrived = resolve));

export const service = new Service({ onNewer: () => (byId("update").hidden = false), after: samples.areIn, onAsked: () => requests.add(new URL("sw.js", document.baseURI).href, Date.now()) });

// The page's state. `model` is a promise of the client's model, renewed by "Load the model again"; `loading` and `next` are what `begin` returned: for this
// model, and for one that the user chose to replace it. `source` is where it comes from, `working` the source of the last model that worked; `lost` is why it
// is closed; `encoded` is whether it has the image; `suspect` is the image that it was encoding when it stopped; `waits` is whether a download waits for the
// network, `isLocked` whether nothing may be fetched any more. `talk` is the identity of the current conversation, `frame` the engine's description of its
// picture, `modelName` whose answers it contains; `record` is what its copies say about both, as soon as `recording` is over; `before` is the previous
// conversation, which comes back if the picture is `refused`.
export const state = {
  source: asked.source, working: null, loading: null, next: null, waits: false, model: null, info: null, lost: null,
  isLocked: false, file: null, sample: null, encoded: false, suspect: null, chat: null, asking: null, opened: 0,
  talk: newIdentity(), frame: null, modelName: null, record: noRecord(), recording: null, before: null, refused: false,
};

/** Nothing to say yet about models and picture: see record.js. */
export function noRecord() {
  return { models: [], picture: "" };
}

/** The identity of a conversation, and when it began. */
export function newIdentity() {
  return { id: `${Date.now()}-${Math.random().toString(36).slice(2)}`, at: Date.now() };
}

/**
 * What to do when a manifest has arrived, when a model is ready, before another one starts, when the model cannot read a picture, and after an answer.
 * opening.js sets them all: imports go the other way.
 */
export const hooks = { manifest: () => {}, ready: () => {}, afresh: () => {}, refused: () => {}, answered: () => {} };

// ---- status: one line, one bar, and announcements of events

export function setStatus(text, fraction = null) {
  byId("status").textContent = text;
  const bar = byId("bar");
  bar.classList.toggle("still", fraction === null);
  bar.value = fraction ?? 0;
}

export function announce(text) {
  byId("announce").textContent = text;
}

export function setModelLine(word) {
  const info = state.info;
  byId("model-name").textContent = info?.name ?? "model";
  byId("model-ranks").textContent = info ? ` · ${info.ranks} rank${info.ranks === 1 ? "" : "s"}` : "";
  byId("model-word").textContent = word;
}

export function showProgress(progress) {
  const fraction = progress.total > 0 ? progress.done / progress.total : 0;
  setStatus(progressText(progress, Boolean(state.file)), progress.stage === "answering" || progress.stage === "reading" ? null : fraction);
}

// Whether the model sees pictures, as far as is known: a language model alone does not.
export const sees = () => state.info?.seesPictures !== false;

// Shows what the page waits for, when nothing is running.
export function rest() {
  if (state.asking || !state.info || state.lost || (state.file && !state.encoded)) return;
  setStatus(state.file ? "Ready: ask about the image" : sees() ? "Ready: open an image" : "Ready: ask a question");
  setModelLine("ready");
}

// What was open stays open.
export function imageRefused(problem, action) {
  showError(byId("image-error"), problem, action);
  setStatus(problem.title);
}

// ---- unexpected errors: shown on the page, with details

export function unexpected(error) {
  if (error?.name === "AbortError") return;
  const details = [error?.message ?? error, error?.stack].filter(Boolean).map(String).join("\n");
  const next = "If the page no longer works properly, reload it.";
  showError(byId("page-error"), { title: "Something went wrong in this page.", next, details }, { label: "Close", run: () => byId("page-error").replaceChildren() });
}

/** `run` as a handler of events or buttons: its errors are shown, including asynchronous ones. */
export function guarded(run) {
  return async (event) => {
    try {
      await run(event);
    } catch (error) {
      unexpected(error);
    }
  };
}

export const on = (target, type, run) => target.addEventListener(type, guarded(run));

// Errors without an object come from other origins' scripts or from the browser itself.
window.addEventListener("error", ({ error }) => error && unexpected(error));
window.addEventListener("unhandledrejection", ({ reason }) => unexpected(reason));
