// The model: starts loading it, uses it, replaces it by another one, and reports failures.

import { load } from "../llama3med/index.js";
import { choiceText } from "./files.js";
import { showModel } from "./numbers.js";
import { announce, asked, byId, conversation, guarded, hooks, ownModel, requests, rest, samples, service, setModelLine, setStatus, showProgress, state, unexpected } from "./state.js";
import { explain, showError, showNote, WAITS } from "./words.js";

/** Starts loading a model: `model` is a promise of it; `giveUp` ends it, loaded or not. */
export function begin(source, onOpened) {
  const abort = new AbortController();
  const loading = { source, giveUp };
  const options = { ranks: asked.ranks, build: asked.build, template: asked.template, signal: abort.signal, onOpened, onManifest: (manifest) => hooks.manifest(loading, manifest), onProgress: (progress) => loadProgress(loading, progress) };
  async function inCharge() {
    await service.inCharge;
    if (service.isReplaced) throw Object.assign(new Error("its files are no longer kept here"), { kind: "replaced" });
    requests.withWorkers = Boolean(navigator.serviceWorker?.controller);
  }
  async function start() {
    if (state.isLocked) throw Object.assign(new Error("nothing can be fetched, not even from this site"), { kind: "locked" });
    if (typeof source !== "string") samples.arrived();
    if (service.isReplaced) await inCharge();
    options.workersAfter = inCharge();
    options.workersAfter.catch(() => {}); // loading handles it
    const model = await load(source, options).catch((error) => {
      if (!error.instead) throw error;
      noteInstead(error);
      return load(source, { ...options, ...error.instead });
    });
    await service.keepBuild(model.info.build);
    return model;
  }
  function giveUp() {
    abort.abort();
    loading.model.then((model) => model.close(), () => {});
  }
  loading.model = start();
  return loading;
}

// The address asks for something impossible; the nearest possible setting is used.
function noteInstead(error) {
  const words = Object.entries(error.instead).map(([name, value]) => (value === undefined ? "the page chooses" : `${name}=${value} is used`));
  showNote(byId("notes"), error.message, `${error.message}; ${words.join(", ")}.`);
}

function loadProgress(loading, progress) {
  if (loading !== (state.next ?? state.loading)) return;
  if (state.asking && state.info) return; // the current model is still answering
  showProgress(progress);
  const stop = { label: "Stop loading", run: () => stopLoading(loading) };
  if (Boolean(progress.waits) !== state.waits) showNote(byId("notes"), "waits", progress.waits ? WAITS : "", stop);
  state.waits = Boolean(progress.waits);
}

function stopLoading(loading) {
  loading.giveUp();
  endWaiting();
  const stopped = { kind: "stopped", message: "You stopped it." };
  if (loading === state.loading) modelFailed(stopped);
  else choiceFailed(stopped);
}

function endWaiting() {
  state.waits = false;
  showNote(byId("notes"), "waits", "");
}

/** From now on questions wait for the model of `loading`; the previous one is closed. */
export function use(loading) {
  if (state.loading !== loading) state.loading?.giveUp();
  if (state.next !== loading) state.next?.giveUp();
  byId("load-error").replaceChildren();
  endWaiting();
  Object.assign(state, { loading, next: null, source: loading.source, model: loading.model, info: null, lost: null, encoded: false });
  setModelLine("loading");
  setStatus("Loading the model", 0);
  const current = (act) => (value) => loading === state.loading && act(value);
  loading.model.then(current((model) => {
    modelReady(model);
    model.ended.then(current((error) => error.name === "AbortError" || modelLost(error))).catch(unexpected);
  }), current((error) => error.name === "AbortError" || modelFailed(error))).catch(unexpected);
}

function modelReady(model) {
  Object.assign(state, { info: model.info, working: state.source });
  const about = (model.info.notices ?? []).join(" ") || model.info.description;
  byId("about").textContent = about;
  byId("about").hidden = !about;
  showModel(byId("model-panel"), model.info);
  byId("forget").hidden = Array.isArray(state.source);
  byId("lock").disabled = false;
  announce("The model is ready.");
  hooks.ready(model);
}

function modelFailed(error) {
  endWaiting();
  if (state.loading) state.loading.isOver = true;
  setModelLine("not loaded");
  setStatus("The model is not loaded");
  const again = { label: "Load the model again", run: guarded(() => reloadModel(state.source ?? ownModel)) };
  const before = { label: "Load the previous model", run: guarded(() => reloadModel(state.working)) };
  const renew = { label: "Reload the page", run: () => location.reload() };
  const isOther = state.working && state.working !== state.source;
  showError(byId("load-error"), explain(error), ["replaced", "locked"].includes(error.kind) ? renew : isOther ? before : again, withMoreRanks(error));
}

// If one rank had too little memory: load the model again, on more ranks.
export function withMoreRanks({ moreRanks }) {
  if (!moreRanks) return null;
  const run = guarded(() => {
    asked.ranks = moreRanks;
    const address = new URL(location.href);
    address.searchParams.set("ranks", moreRanks);
    history.replaceState(null, "", address);
    for (const { problem } of conversation.turns) problem.replaceChildren();
    return reloadModel();
  });
  return { label: `Open with ${moreRanks} ranks`, run };
}

// The model address in the page's address is invalid: another model is opened only if the user asks for it.
export function addressFailed() {
  setModelLine("not loaded");
  setStatus("The model is not loaded");
  state.model = Promise.reject(new Error(asked.problem));
  state.model.catch(() => {});
  const own = { label: "Open this page's own model", run: guarded(() => reloadModel(ownModel)) };
  showError(byId("load-error"), explain({ kind: "address", message: asked.problem }), own);
}

// A worker was lost. A question that waits for its answer reports it in its own place.
function modelLost(error) {
  state.lost = error;
  state.loading.isOver = true;
  if (state.chat && !state.encoded) state.suspect = state.file;
  setStatus("The model stopped");
  setModelLine("stopped");
  if (!state.asking) showLost();
}

export function showLost() {
  showError(byId("load-error"), explain(state.lost), { label: "Load the model again", run: guarded(() => reloadModel()) }, withMoreRanks(state.lost));
}

// Bytes of two models that may be in memory at the same time.
const BESIDE_BYTES = 2e9;

/** Files that the user chose or dropped. Their model replaces the current one when it has loaded, or as soon as it is known to be a model and both are too
 * large to be in memory together. */
export function openModel({ models, others }) {
  state.next?.giveUp();
  state.next = null;
  byId("load-error").replaceChildren();
  showNote(byId("notes"), "files", choiceText({ models, others }));
  if (models.length === 0) return choiceFailed({ kind: "pair", message: `None of these is a GGUF file: ${others.map(({ name }) => name).join(", ")}` });
  const next = begin(models, ({ bytes }) => {
    const isWorking = state.info && !state.lost;
    if (!isWorking || bytes + state.info.files.reduce((sum, { size }) => sum + size, 0) > BESIDE_BYTES) replaceBy(next);
  });
  state.next = next;
  next.model.then(() => replaceBy(next), (error) => next === state.next && choiceFailed(error));
}

function replaceBy(next) {
  if (next !== state.next) return;
  state.asking?.abort.abort();
  byId("samples").hidden = true;
  divide("Another model was opened; it does not know what is above.");
  use(next);
}

// The current model, or the one still loading, stays.
function choiceFailed(error) {
  state.next = null;
  if (!state.loading || state.loading.isOver) return modelFailed(error);
  endWaiting();
  showError(byId("load-error"), explain(error));
  rest();
}

// After a failure: the model is loaded from this browser's own copy, and the picture is encoded again.
export function reloadModel(source = state.source) {
  state.loading?.giveUp();
  divide("The model was loaded again; it does not remember what is above.");
  use(begin(source));
}

// A new model, or the same one reloaded: it has no conversation and no picture yet.
function divide(word) {
  state.chat = null;
  byId("image-error").replaceChildren();
  if (conversation.turns.length > 0) conversation.divide(word);
  hooks.afresh();
  state.suspect = null;
}
