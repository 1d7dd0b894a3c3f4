// The page: an image, questions, streamed answers. It wires the document to the client (llama3med.js) and computes nothing itself.
// What its address asks for is read in query.js.

import { deleteCached, load } from "./llama3med.js";
import { Conversation, copyText, NOTICE, saveText } from "./conversation.js";
import { choiceText, choosePicture, filesOf, sortFiles, startOf, textOf } from "./files.js";
import { showModel, showNumbers } from "./numbers.js";
import { Picture } from "./picture.js";
import { readQuery } from "./query.js";
import { Requests, requestsText } from "./requests.js";
import { Service } from "./service.js";
import { bytesText, explain, progressText, showError, showNote, WAITS } from "./words.js";

const byId = (id) => document.getElementById(id);
const ownModel = new URL(document.querySelector("meta[name=model]").content, document.baseURI).href;
const asked = readQuery(location.search, document.baseURI, ownModel);
const manifestUrl = typeof asked.source === "string" ? asked.source : ownModel;

const picture = new Picture({
  film: byId("film"), image: byId("picture"), overlay: byId("overlay"), noPreview: byId("no-preview"), notes: byId("film-notes"), thumbs: byId("thumbs"),
});
const conversation = new Conversation(byId("turns"));
const requests = new Requests(new URL("./", Array.isArray(asked.source) ? asked.source[0] : manifestUrl).href, (count) => {
  const [line, how] = requestsText(count);
  byId("requests-line").textContent = line;
  byId("requests-how").textContent = how;
});

// What a person sees first is fetched first: the samples, as soon as the manifest names them.
let samplesAreIn;
const samplesIn = new Promise((resolve) => (samplesAreIn = resolve));
const service = new Service({ onNewer: () => (byId("update").hidden = false), after: samplesIn });

// What is going on. `model` is a promise of the client's model, renewed by "Load the model again"; `loading` and `next` are what `begin` gave: of this model,
// and of one that the person chose to take its place. `source` is where it comes from, `working` where the one came from that worked last; `lost` is why it
// is over; `encoded` says whether the image is with it; `suspect` is the image that it was looking at when it stopped; `waits` whether a download waits for
// the network.
const state = {
  source: asked.source, working: null, loading: null, next: null, waits: false, model: null, info: null, lost: null,
  file: null, sample: null, encoded: false, suspect: null, chat: null, asking: null, opened: 0,
};

// ---- status: one line, one bar, and announcements at the turns of events

function setStatus(text, fraction = null) {
  byId("status").textContent = text;
  const bar = byId("bar");
  bar.classList.toggle("still", fraction === null);
  bar.value = fraction ?? 0;
}

function announce(text) {
  byId("announce").textContent = text;
}

function setModelLine(word) {
  const info = state.info;
  byId("model-name").textContent = info?.name ?? "model";
  byId("model-ranks").textContent = info ? ` · ${info.ranks} rank${info.ranks === 1 ? "" : "s"}` : "";
  byId("model-word").textContent = word;
}

function showProgress(progress) {
  const fraction = progress.total > 0 ? progress.done / progress.total : 0;
  setStatus(progressText(progress, Boolean(state.file)), progress.stage === "answering" || progress.stage === "reading" ? null : fraction);
}

// Whether the model sees pictures, as far as it is known: a language model alone does not.
const sees = () => state.info?.seesPictures !== false;

// Says what the page waits for, when nothing is running.
function rest() {
  if (state.asking || !state.info || state.lost || (state.file && !state.encoded)) return;
  setStatus(state.file ? "Ready: ask about the image" : sees() ? "Ready: open an image" : "Ready: ask a question");
  setModelLine("ready");
}

// ---- what nobody has foreseen: said on the page, with its details

function unexpected(error) {
  if (error?.name === "AbortError") return;
  const details = [error?.message ?? error, error?.stack].filter(Boolean).map(String).join("\n");
  const next = "If it does not go on as it should, open the page again.";
  showError(byId("page-error"), { title: "Something went wrong in this page.", next, details }, { label: "Close", run: () => byId("page-error").replaceChildren() });
}

/** `run` as a handler of events or buttons: its errors are shown, also those of what it waits for. */
function guarded(run) {
  return async (event) => {
    try {
      await run(event);
    } catch (error) {
      unexpected(error);
    }
  };
}

const on = (target, type, run) => target.addEventListener(type, guarded(run));

// Errors without an object are those of other origins' scripts and of the browser itself.
window.addEventListener("error", ({ error }) => error && unexpected(error));
window.addEventListener("unhandledrejection", ({ reason }) => unexpected(reason));

// ---- the model

/** Begins to load a model: `model` is a promise of it; `giveUp` ends it, loaded or not. */
function begin(source, onOpened) {
  const abort = new AbortController();
  const loading = { source, giveUp };
  const options = { ranks: asked.ranks, build: asked.build, template: asked.template, signal: abort.signal, onOpened, onManifest: (manifest) => showEarly(loading, manifest), onProgress: (progress) => loadProgress(loading, progress) };
  async function inCharge() {
    await service.inCharge;
    if (service.isReplaced) throw Object.assign(new Error("its files are no longer kept here"), { kind: "replaced" });
    requests.withWorkers = Boolean(navigator.serviceWorker?.controller);
  }
  async function start() {
    if (typeof source !== "string") samplesAreIn();
    if (service.isReplaced) await inCharge();
    options.workersAfter = inCharge();
    options.workersAfter.catch(() => {}); // loading hears of it
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

// What the address asks for cannot be had; what can is used.
function noteInstead(error) {
  const words = Object.entries(error.instead).map(([name, value]) => (value === undefined ? "the page chooses" : `${name}=${value} is used`));
  showNote(byId("notes"), error.message, `${error.message}; ${words.join(", ")}.`);
}

function loadProgress(loading, progress) {
  if (loading !== (state.next ?? state.loading)) return;
  if (state.asking && state.info) return; // the model that is there still answers
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

/** From now on questions wait for the model of `loading`; the one before is over. */
function use(loading) {
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
  showSight();
  byId("forget").hidden = Array.isArray(state.source);
  if (byId("samples").hidden) showSamples(model.info.samples ?? []);
  announce("The model is ready.");
  showChips();
  rest();
  if (state.file || !sees()) startChat(model).catch(unexpected);
}

const noVision = () => explain({ kind: "no-vision", message: `${state.info.name} has no image encoder` });

// What is asked for is what the model can do. A picture that was opened before it was known stays no longer.
function showSight() {
  byId("drop").classList.toggle("text-only", !sees());
  const [label, placeholder] = sees() ? ["Question about the image", "Ask about the image"] : ["Question", "Ask a question"];
  byId("question-label").textContent = label;
  byId("question").placeholder = placeholder;
  if (sees() || !state.file) return;
  closeImage();
  showError(byId("image-error"), noVision());
}

function modelFailed(error) {
  endWaiting();
  if (state.loading) state.loading.isOver = true;
  setModelLine("not loaded");
  setStatus("The model is not loaded");
  const again = { label: "Load the model again", run: guarded(() => reloadModel(state.source ?? ownModel)) };
  const before = { label: "Load the model before it", run: guarded(() => reloadModel(state.working)) };
  const renew = { label: "Reload the page", run: () => location.reload() };
  const isOther = state.working && state.working !== state.source;
  showError(byId("load-error"), explain(error), error.kind === "replaced" ? renew : isOther ? before : again, withMoreRanks(error));
}

// Where one rank's memory was not enough: the model again, on more of them.
function withMoreRanks({ moreRanks }) {
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

// The address of the model in the page's address is none: another model than the one that was meant opens only if the person wants it.
function addressFailed() {
  setModelLine("not loaded");
  setStatus("The model is not loaded");
  state.model = Promise.reject(new Error(asked.problem));
  state.model.catch(() => {});
  const own = { label: "Open this page's own model", run: guarded(() => reloadModel(ownModel)) };
  showError(byId("load-error"), explain({ kind: "address", message: asked.problem }), own);
}

// A worker was lost. A question that waits for its answer says so at its own place.
function modelLost(error) {
  state.lost = error;
  state.loading.isOver = true;
  if (state.chat && !state.encoded) state.suspect = state.file;
  setStatus("The model stopped");
  setModelLine("stopped");
  if (!state.asking) showLost();
}

function showLost() {
  showError(byId("load-error"), explain(state.lost), { label: "Load the model again", run: guarded(() => reloadModel()) }, withMoreRanks(state.lost));
}

// The bytes of two models that may be in memory at once.
const BESIDE_BYTES = 2e9;

/** Files that the person chose or dropped: their model takes the place of the present one when it has loaded, or when it is clear that it is one and both are too large together. */
function openModel({ models, others }) {
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

// The model that is there, or still loading, stays.
function choiceFailed(error) {
  state.next = null;
  if (!state.loading || state.loading.isOver) return modelFailed(error);
  endWaiting();
  showError(byId("load-error"), explain(error));
  rest();
}

// After a failure: the model comes back from this browser's own copy, the picture is encoded again.
function reloadModel(source = state.source) {
  state.loading?.giveUp();
  divide("The model was loaded again; it does not remember what is above.");
  use(begin(source));
}

// Another model, or the same from its start: it has no conversation and no picture yet.
function divide(word) {
  state.chat = null;
  byId("image-error").replaceChildren();
  if (conversation.turns.length > 0) conversation.divide(word);
  if (state.file && state.suspect === state.file) leaveSuspect();
  state.suspect = null;
}

// What the model was looking at when it stopped may have been the cause: it is opened again only if the person wants it.
function leaveSuspect() {
  const { file, sample, lost } = state;
  closeImage();
  showError(byId("image-error"), {
    title: "The model stopped while it looked at this picture.",
    next: "The picture may have been the cause, so it was closed. Open another one, or try this one once more.",
    details: [`${file.name ?? "a sample picture"}, ${bytesText(file.size)}`, explain(lost).details].join("\n"),
  }, { label: "Open it again", run: guarded(() => openImage(file, { sample })) });
}

// What the manifest says is shown before the model is there; whether it is true the model will tell.
async function showEarly(loading, manifest) {
  if (manifest && loading === state.loading) showSamples(manifest.samples ?? []);
  await Promise.allSettled([...byId("samples").querySelectorAll("img")].map((image) => image.decode()));
  samplesAreIn();
}

function showSamples(samples) {
  const list = byId("samples");
  list.hidden = samples.length === 0;
  list.replaceChildren(...samples.map((sample) => {
    const item = document.createElement("li");
    const button = document.createElement("button");
    button.type = "button";
    const image = document.createElement("img");
    const url = new URL(sample.path, manifestUrl);
    image.src = url.href;
    image.alt = sample.alt;
    button.append(image);
    on(button, "click", () => openSample(url, sample));
    item.append(button);
    return item;
  }));
}

async function openSample(url, sample) {
  const opened = ++state.opened;
  const file = await fetchSample(url).catch((error) => {
    imageRefused({ title: "The sample picture could not be fetched.", next: "Open a file of your own.", details: `${error} (${sample.path})` });
  });
  if (file && opened === state.opened) await openImage(file, { sample });
}

async function fetchSample(url) {
  const response = await fetch(url, { cache: "force-cache" }); // the page shows it already
  if (!response.ok) throw new Error(`status ${response.status}`);
  return response.blob();
}

// ---- the image

// What was dropped or pasted: files of a model take the model's place, and of pictures the first is opened.
async function openFiles(gathering) {
  const opened = ++state.opened;
  if (state.info) setStatus("Looking at the files");
  const found = await gathering;
  if (opened !== state.opened) return;
  const sorted = await sortFiles(found.files);
  if (opened !== state.opened) return;
  if (sorted.models.length > 0) return openModel(sorted);
  const { file, remark, problem } = await choosePicture(found);
  if (opened !== state.opened) return;
  if (problem) return imageRefused(problem);
  await openImage(file, { remark });
}

// What was open stays open.
function imageRefused(problem, action) {
  showError(byId("image-error"), problem, action);
  setStatus(problem.title);
}

/** Why a file cannot be opened, before the engine gets it: null where its first bytes can be read. */
async function unreadable(file) {
  try {
    await startOf(file);
    return null;
  } catch (error) {
    return explain({ kind: "file", message: `${file.name}: ${error?.message ?? error}` });
  }
}

/** Opens a picture; `sample` is what the manifest says of it, `remark` is said beside it. */
async function openImage(file, { sample = null, remark = "" } = {}) {
  const opened = ++state.opened;
  if (state.info) setStatus("Opening the image", 0);
  const problem = (await unreadable(file)) ?? (sees() ? null : noVision());
  if (opened !== state.opened) return;
  if (problem) return imageRefused(problem);
  state.asking?.abort.abort();
  closeChat();
  conversation.clear();
  if (state.lost) showLost(); // it may have been said in the conversation alone
  Object.assign(state, { file, sample, encoded: false, asking: null });
  showAsking(false);
  byId("image-error").replaceChildren();
  byId("opened").textContent = remark;
  for (const id of ["keep", "numbers", "drop"]) byId(id).hidden = true;
  byId("strip").hidden = false;
  document.body.classList.add("has-image");
  const hadFocus = document.activeElement === document.body || byId("image").contains(document.activeElement);
  await picture.show(file);
  if (opened !== state.opened) return;
  requests.restart();
  if (hadFocus && matchMedia("(pointer: fine)").matches) byId("question").focus();
  showChips();
  if (state.info && !state.lost) await startChat(await state.model);
}

// Back to the beginning; the conversation stays to be read.
function closeImage() {
  closeChat();
  picture.hide();
  Object.assign(state, { file: null, sample: null, encoded: false, opened: state.opened + 1 });
  byId("opened").textContent = "";
  for (const id of ["numbers", "strip"]) byId(id).hidden = true;
  byId("drop").hidden = false;
  document.body.classList.remove("has-image");
  showChips();
}

function closeChat() {
  state.chat?.close?.();
  state.chat = null;
}

// The model looks at the image at once, if it sees any; the question may still be in the typing.
async function startChat(model) {
  const { file } = state;
  if (state.chat) return;
  const { scales, tileSize } = model.info;
  showNumbers(byId("numbers"), model.info);
  let chat = null; // progress may be reported before `chat` is returned
  const current = (act) => (value) => file === state.file && (chat ?? state.chat) === state.chat && act(value);
  chat = model.chat({ image: file ?? undefined, onPicture: current((frame) => picture.frame(frame, scales, tileSize)), onProgress: current(chatProgress) });
  state.chat = chat;
  try {
    await chat.ready;
    if (chat !== state.chat) return;
    state.encoded = true;
    if (file) announce("The image is encoded. You can ask.");
    showNumbers(byId("numbers"), model.info, chat);
    rest();
  } catch (error) {
    if (chat !== state.chat || error.name === "AbortError") return;
    imageFailed(error);
  }
}

function chatProgress(progress) {
  // The beginning of the prompt is read in the background: nobody waits for it.
  if (progress.stage === "reading" && !state.asking) return;
  if (progress.stage === "encoding") picture.light(progress.done, progress.total);
  showProgress(progress);
  setModelLine({ encoding: "encoding", reading: "reading", answering: "answering" }[progress.stage] ?? "");
}

function imageFailed(error) {
  // Nothing is shown that the model does not have.
  if (state.lost) picture.unframe();
  else picture.hide();
  closeChat();
  if (state.lost) return state.asking ? undefined : showLost();
  imageRefused(explainFailure(error), withMoreRanks(error));
  setModelLine("ready");
}

/** An error after which the model goes on. */
function explainFailure(error) {
  const explained = explain(error);
  if (error.kind !== "out-of-memory") return explained;
  const more = error.moreRanks ? `, or open it with ${error.moreRanks} ranks: each has memory of its own` : "";
  return { ...explained, next: `Close other tabs and programs and try again${more}. The model itself goes on; a short conversation takes less memory than a long one.` };
}

// ---- questions

function showChips() {
  const questions = [...(state.sample?.questions ?? []), ...(state.info?.suggestedQuestions ?? [])];
  const asked = new Set(conversation.turns.map((turn) => turn.question));
  const fresh = [...new Set(questions)].filter((question) => !asked.has(question)).slice(0, 4);
  byId("chips").replaceChildren(...fresh.map((question) => {
    const chip = document.createElement("button");
    chip.type = "button";
    chip.textContent = question;
    chip.dir = "auto";
    on(chip, "click", () => ask(question));
    return chip;
  }));
}

// Resolves when the current image is with the model, whatever is still missing: the image, the model, the encoding.
async function chatForQuestion(signal) {
  const stopped = new Promise((_, reject) => {
    const stop = () => reject(new DOMException("stopped", "AbortError"));
    if (signal.aborted) stop();
    signal.addEventListener("abort", stop, { once: true });
  });
  const model = await Promise.race([state.model, stopped]);
  if (!state.chat) startChat(model).catch(unexpected);
  const { chat } = state;
  await Promise.race([chat.ready, stopped]);
  return chat;
}

async function ask(question) {
  question = question.trim();
  if (!question) return byId("question").focus();
  if (state.asking) return setStatus("Still answering: wait, or press Stop first");
  if (!state.file && sees()) {
    byId("question").value = question;
    setStatus("Open an image first; your question is kept");
    return byId("choose").focus();
  }
  byId("question").value = "";
  if (!state.file) byId("image-error").replaceChildren(); // a picture that was refused is no part of this
  const turn = conversation.add(question);
  const asking = { abort: new AbortController() };
  const { file } = state;
  state.asking = asking;
  showAsking(true);
  showChips();
  try {
    await answer(turn, asking);
  } catch (error) {
    answerFailed(turn, asking, error);
  } finally {
    if (state.asking === asking) state.asking = null;
    showAsking(Boolean(state.asking));
    byId("keep").hidden = !conversation.turns.some((each) => each.text);
    if (!turn.failed && file === state.file) rest();
  }
}

async function answer(turn, asking) {
  const { signal } = asking.abort;
  const chat = await chatForQuestion(signal);
  for await (const piece of chat.ask(turn.question, { maxTokens: asked.tokens ?? 512, signal })) {
    turn.push(piece);
    conversation.follow();
  }
  turn.end(...ending(chat, signal));
  if (chat === state.chat) showNumbers(byId("numbers"), state.info, chat);
}

// Why an answer ended, if the model did not end it.
const ENDS = {
  length: "cut off at its longest",
  context: "cut off: the conversation is full",
  repetition: "stopped: it repeated itself",
  cancelled: "stopped",
  failed: "broken off by an error",
};

// The small print of an answer, its reason to end first.
function ending(chat, signal) {
  const { nTokens, tokensPerSecond, nDropped } = chat.timings;
  return [
    signal.aborted ? ENDS.cancelled : ENDS[chat.finish],
    nTokens ? `${nTokens} token${nTokens === 1 ? "" : "s"}` : "",
    tokensPerSecond ? `${tokensPerSecond.toFixed(1)} tokens/s` : "",
    nDropped ? `the oldest ${nDropped} turns no longer fit and were left out` : "",
  ];
}

function answerFailed(turn, asking, error) {
  if (asking.abort.signal.aborted || error.name === "AbortError") return turn.end(ENDS.cancelled);
  turn.end(ENDS.failed);
  turn.failed = true;
  if (!byId("question").value) byId("question").value = turn.question;
  // What went wrong with the model or the image stands there already.
  if (state.lost ? byId("load-error").hasChildNodes() : !state.chat) return;
  const explained = state.lost ? explain(error) : explainFailure(error);
  setStatus(state.lost ? "The model stopped" : explained.title);
  setModelLine(state.lost ? "stopped" : "ready");
  const reload = guarded(() => {
    turn.problem.replaceChildren();
    return reloadModel();
  });
  showError(turn.problem, explained, state.lost ? { label: "Load the model again", run: reload } : null, withMoreRanks(state.lost ?? error));
}

function showAsking(isAsking) {
  const stopHadFocus = document.activeElement === byId("stop");
  byId("ask").hidden = isAsking;
  byId("stop").hidden = !isAsking;
  if (!isAsking && stopHadFocus) byId("question").focus();
}

function stop() {
  state.asking?.abort.abort();
}

// ---- wiring

function wireImage() {
  const input = byId("image-input");
  for (const id of ["choose", "another"]) on(byId(id), "click", () => input.click());
  on(input, "change", () => {
    const [file] = input.files;
    input.value = "";
    return file && openImage(file);
  });
  // Text that is dragged into a text field is the browser's affair.
  const isOurs = ({ dataTransfer, target }) => dataTransfer.types.includes("Files") || !isTextField(target);
  on(document, "dragover", (event) => {
    if (!isOurs(event)) return;
    event.preventDefault();
    document.body.classList.add("dragging");
  });
  on(document, "dragleave", (event) => event.relatedTarget === null && document.body.classList.remove("dragging"));
  on(document, "drop", (event) => {
    document.body.classList.remove("dragging");
    if (!isOurs(event)) return;
    event.preventDefault();
    if (event.dataTransfer.types.includes("Files")) return openFiles(filesOf(event.dataTransfer));
  });
  on(document, "paste", paste);
}

const isTextField = (target) => Boolean(target.closest?.("textarea, input"));

// In a text field text wins: cells of a spreadsheet come as text and as a picture of it. Elsewhere a picture is opened, and text alone is a question.
function paste(event) {
  const { clipboardData, target } = event;
  const text = clipboardData ? textOf(clipboardData) : "";
  if (isTextField(target) && text) return;
  const hasFiles = clipboardData?.files.length > 0;
  if (!hasFiles && !text) return;
  event.preventDefault();
  if (hasFiles) return openFiles(filesOf(clipboardData));
  const question = byId("question");
  const n_free = question.maxLength - question.value.length + (question.selectionEnd - question.selectionStart);
  question.setRangeText(text.slice(0, n_free), question.selectionStart, question.selectionEnd, "end");
  question.focus();
}

// The key belongs to an input method. Safari ends the composition before it tells of the key that did; only its old code, 229, is left then.
const isComposing = (event) => event.isComposing || event.keyCode === 229;

function wireQuestions() {
  const question = byId("question");
  on(byId("form"), "submit", (event) => {
    event.preventDefault();
    return ask(question.value);
  });
  on(question, "keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || isComposing(event)) return;
    event.preventDefault();
    return ask(question.value);
  });
  on(byId("stop"), "click", stop);
  on(document, "keydown", (event) => event.key === "Escape" && !isComposing(event) && stop());
}

function wireKeeping() {
  const text = () => conversation.text(state.info?.name ?? "unknown");
  byId("notice").textContent = NOTICE;
  on(byId("copy"), "click", async () => {
    byId("keep-result").textContent = (await copyText(text())) ? "Copied" : "The browser refused to copy";
  });
  on(byId("save"), "click", () => saveText(text(), "conversation.txt"));
}

function wireModel() {
  const input = byId("model-input");
  on(byId("choose-model"), "click", () => input.click());
  on(input, "change", async () => {
    const files = [...input.files];
    input.value = "";
    if (files.length > 0) openModel(await sortFiles(files));
  });
  on(byId("reload"), "click", () => service.renew());
}

function wireCache() {
  on(byId("forget"), "click", async () => {
    try {
      await deleteCached(manifestUrl);
      byId("forget-result").textContent = "Deleted. It will be fetched again when the page is opened next.";
    } catch (error) {
      byId("forget-result").textContent = `Not deleted: ${error?.message ?? error}`;
    }
  });
}

wireImage();
wireQuestions();
wireKeeping();
wireModel();
wireCache();
asked.notes.forEach((note) => showNote(byId("notes"), note, note));
if (location.protocol === "file:") {
  // start.js has said why nothing works here.
} else if (asked.problem) {
  samplesAreIn();
  addressFailed();
} else use(begin(state.source));
