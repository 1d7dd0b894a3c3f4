// The page: an image, questions, streamed answers. It wires the document to the client (llama3med.js) and computes nothing itself.
// What its address asks for is read in query.js.

import { deleteCached, load } from "./llama3med.js";
import { choiceText, sortFiles } from "./choice.js";
import { Conversation, copyText, NOTICE, saveText } from "./conversation.js";
import { showModel, showNumbers } from "./numbers.js";
import { Picture } from "./picture.js";
import { readQuery } from "./query.js";
import { Requests, requestsText } from "./requests.js";
import { Service } from "./service.js";
import { explain, progressText, refusal, showError, showNote, WAITS } from "./words.js";

const byId = (id) => document.getElementById(id);
const ownModel = new URL(document.querySelector("meta[name=model]").content, document.baseURI).href;
const asked = readQuery(location.search, document.baseURI, ownModel);
const manifestUrl = typeof asked.source === "string" ? asked.source : ownModel;

const picture = new Picture({
  film: byId("film"), image: byId("picture"), overlay: byId("overlay"), noPreview: byId("no-preview"), thumbs: byId("thumbs"),
});
const conversation = new Conversation(byId("turns"));
const requests = new Requests(new URL("./", Array.isArray(asked.source) ? asked.source[0] : manifestUrl).href, (count) => {
  const [line, how] = requestsText(count);
  byId("requests-line").textContent = line;
  byId("requests-how").textContent = how;
});

const service = new Service({ onNewer: () => (byId("update").hidden = false) });

// What is going on. `model` is a promise of the client's model, renewed by "Load the model again"; `loading` and `next` are what `begin` gave: of this model,
// and of one that the person chose to take its place. `source` is where it comes from, `working` where the one came from that worked last; `lost` is why it
// is over; `encoded` says whether the image is with it; `waits` whether a download waits for the network.
const state = {
  source: asked.source, working: null, loading: null, next: null, waits: false, model: null, info: null, lost: null,
  file: null, sample: null, encoded: false, chat: null, asking: null, opened: 0,
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
  setStatus(progressText(progress), progress.stage === "answering" || progress.stage === "reading" ? null : fraction);
}

// Says what the page waits for, when nothing is running.
function rest() {
  if (state.asking || !state.info || state.lost || (state.file && !state.encoded)) return;
  setStatus(state.file ? "Ready: ask about the image" : "Ready: open an image");
  setModelLine("ready");
}

// ---- the model

/** Begins to load a model: `model` is a promise of it; `giveUp` ends it, loaded or not. */
function begin(source, onOpened) {
  const abort = new AbortController();
  const loading = { source, giveUp };
  const options = { ranks: asked.ranks, build: asked.build, template: asked.template, signal: abort.signal, onOpened, onProgress: (progress) => loadProgress(loading, progress) };
  async function start() {
    await service.inCharge;
    if (service.isReplaced) throw Object.assign(new Error("its files are no longer kept here"), { kind: "replaced" });
    requests.withWorkers = Boolean(navigator.serviceWorker?.controller);
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
    model.ended.then(current((error) => error.name === "AbortError" || modelLost(error)));
  }), current((error) => error.name === "AbortError" || modelFailed(error)));
}

function modelReady(model) {
  Object.assign(state, { info: model.info, working: state.source });
  const about = (model.info.notices ?? []).join(" ") || model.info.description;
  byId("about").textContent = about;
  byId("about").hidden = !about;
  showModel(byId("model-panel"), model.info);
  byId("forget").hidden = Array.isArray(state.source);
  if (!state.file) showSamples(model.info.samples ?? []);
  announce("The model is ready.");
  if (state.file) startChat();
  showChips();
  rest();
}

function modelFailed(error) {
  endWaiting();
  if (state.loading) state.loading.isOver = true;
  setModelLine("not loaded");
  setStatus("The model is not loaded");
  const again = { label: "Load the model again", run: () => reloadModel(state.source ?? ownModel) };
  const before = { label: "Load the model before it", run: () => reloadModel(state.working) };
  const renew = { label: "Reload the page", run: () => location.reload() };
  const isOther = state.working && state.working !== state.source;
  showError(byId("load-error"), explain(error), error.kind === "replaced" ? renew : isOther ? before : again);
}

// The address of the model in the page's address is none: another model than the one that was meant opens only if the person wants it.
function addressFailed() {
  setModelLine("not loaded");
  setStatus("The model is not loaded");
  state.model = Promise.reject(new Error(asked.problem));
  state.model.catch(() => {});
  const own = { label: "Open this page's own model", run: () => reloadModel(ownModel) };
  showError(byId("load-error"), explain({ kind: "address", message: asked.problem }), own);
}

// A worker was lost. A question that waits for its answer says so at its own place.
function modelLost(error) {
  state.lost = error;
  state.loading.isOver = true;
  setStatus("The model stopped");
  setModelLine("stopped");
  if (!state.asking) showLost();
}

function showLost() {
  showError(byId("load-error"), explain(state.lost), { label: "Load the model again", run: () => reloadModel() });
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
    button.addEventListener("click", () => openSample(url, sample));
    item.append(button);
    return item;
  }));
}

async function openSample(url, sample) {
  try {
    const response = await fetch(url);
    if (!response.ok) throw new Error(`status ${response.status} for ${sample.path}`);
    await openImage(await response.blob(), sample);
  } catch (error) {
    showError(byId("image-error"), { title: "The sample picture could not be fetched.", next: "Open a file of your own.", details: String(error) });
  }
}

// ---- the image

async function openImage(file, sample = null) {
  const opened = ++state.opened;
  if (state.info) setStatus("Opening the image", 0);
  const problem = await refusal(file);
  if (opened !== state.opened) return;
  if (problem) {
    showError(byId("image-error"), problem);
    setStatus(problem.title);
    return;
  }
  state.asking?.abort.abort();
  closeChat();
  conversation.clear();
  Object.assign(state, { file, sample, encoded: false, asking: null });
  showAsking(false);
  byId("image-error").replaceChildren();
  for (const id of ["keep", "numbers", "drop"]) byId(id).hidden = true;
  byId("strip").hidden = false;
  document.body.classList.add("has-image");
  const hadFocus = document.activeElement === document.body || byId("image").contains(document.activeElement);
  await picture.show(file);
  if (opened !== state.opened) return;
  requests.restart();
  if (hadFocus && matchMedia("(pointer: fine)").matches) byId("question").focus();
  if (state.info) startChat();
  showChips();
}

function closeChat() {
  state.chat?.close?.();
  state.chat = null;
}

// The model looks at the image at once; the question may still be in the typing.
async function startChat() {
  const { file, loading } = state;
  const model = await state.model;
  if (file !== state.file || loading !== state.loading || state.chat) return;
  const { scales, tileSize } = model.info;
  showNumbers(byId("numbers"), model.info);
  const guess = picture.guess();
  if (guess) picture.frame(guess, scales, tileSize);
  let chat = null; // progress may be reported before `chat` is returned
  chat = model.chat({ image: file, onProgress: (progress) => file === state.file && (chat ?? state.chat) === state.chat && chatProgress(progress) });
  state.chat = chat;
  try {
    const frame = await chat.ready;
    if (chat !== state.chat) return;
    state.encoded = true;
    picture.frame(frame, scales, tileSize);
    announce("The image is encoded. You can ask.");
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
  picture.unframe();
  closeChat();
  if (state.lost) return state.asking ? undefined : showLost();
  const explained = explain(error);
  showError(byId("image-error"), explained);
  setStatus(explained.title);
  setModelLine("ready");
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
    chip.addEventListener("click", () => ask(question));
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
  await Promise.race([state.model, stopped]);
  if (!state.chat) await Promise.race([startChat(), stopped]);
  const { chat } = state;
  if (!chat) throw new DOMException("the image was closed", "AbortError");
  await Promise.race([chat.ready, stopped]);
  return chat;
}

async function ask(question) {
  question = question.trim();
  if (!question) return byId("question").focus();
  if (state.asking) return setStatus("Still answering: wait, or press Stop first");
  if (!state.file) {
    byId("question").value = question;
    setStatus("Open an image first; your question is kept");
    return byId("choose").focus();
  }
  byId("question").value = "";
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
  turn.end(ending(chat, signal));
  if (chat === state.chat) showNumbers(byId("numbers"), state.info, chat);
}

const ENDS = { length: "cut off at its longest", context: "cut off: the conversation is full", cancelled: "stopped" };

// The small print of an answer.
function ending(chat, signal) {
  const { nTokens, tokensPerSecond, nDropped } = chat.timings;
  return [
    signal.aborted ? "stopped" : ENDS[chat.finish],
    nTokens ? `${nTokens} token${nTokens === 1 ? "" : "s"}` : "",
    tokensPerSecond ? `${tokensPerSecond.toFixed(1)} tokens/s` : "",
    nDropped ? `the oldest ${nDropped} turns no longer fit and were left out` : "",
  ].filter(Boolean).join(" · ");
}

function answerFailed(turn, asking, error) {
  if (asking.abort.signal.aborted || error.name === "AbortError") return turn.end("stopped");
  turn.end("");
  turn.failed = true;
  if (!byId("question").value) byId("question").value = turn.question;
  // What went wrong with the image or the model stands there already.
  if (byId("image-error").hasChildNodes() || byId("load-error").hasChildNodes()) return;
  const explained = explain(error);
  setStatus(state.lost ? "The model stopped" : explained.title);
  setModelLine(state.lost ? "stopped" : "ready");
  const reload = () => {
    turn.problem.replaceChildren();
    reloadModel();
  };
  showError(turn.problem, explained, state.lost ? { label: "Load the model again", run: reload } : undefined);
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

// What was dropped: a model, or a picture.
async function openFiles(files) {
  const sorted = await sortFiles(files);
  if (sorted.models.length > 0) openModel(sorted);
  else if (files.length > 0) openImage(files[0]);
}

function wireImage() {
  const input = byId("image-input");
  for (const id of ["choose", "another"]) byId(id).addEventListener("click", () => input.click());
  input.addEventListener("change", () => {
    const [file] = input.files;
    input.value = "";
    if (file) openImage(file);
  });
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("dragging");
  });
  document.addEventListener("dragleave", (event) => event.relatedTarget === null && document.body.classList.remove("dragging"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dragging");
    openFiles([...event.dataTransfer.files]);
  });
  document.addEventListener("paste", (event) => {
    const [file] = event.clipboardData?.files ?? [];
    if (!file) return;
    event.preventDefault();
    openImage(file);
  });
}

function wireQuestions() {
  const question = byId("question");
  byId("form").addEventListener("submit", (event) => {
    event.preventDefault();
    ask(question.value);
  });
  question.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    ask(question.value);
  });
  byId("stop").addEventListener("click", stop);
  document.addEventListener("keydown", (event) => event.key === "Escape" && stop());
}

function wireKeeping() {
  const text = () => conversation.text(state.info?.name ?? "unknown");
  byId("notice").textContent = NOTICE;
  byId("copy").addEventListener("click", async () => {
    byId("keep-result").textContent = (await copyText(text())) ? "Copied" : "The browser refused to copy";
  });
  byId("save").addEventListener("click", () => saveText(text(), "conversation.txt"));
}

function wireModel() {
  const input = byId("model-input");
  byId("choose-model").addEventListener("click", () => input.click());
  input.addEventListener("change", async () => {
    const files = [...input.files];
    input.value = "";
    if (files.length > 0) openModel(await sortFiles(files));
  });
  byId("reload").addEventListener("click", () => service.renew());
}

function wireCache() {
  byId("forget").addEventListener("click", async () => {
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
} else if (asked.problem) addressFailed();
else use(begin(state.source));
