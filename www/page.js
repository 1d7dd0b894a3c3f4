// The page: an image, questions, streamed answers. It wires the document to the client (llama3med.js) and computes nothing itself.
// `?model=URL` chooses a manifest, `?decoder=URL&encoder=URL` a pair of GGUF files instead and `&template=NAME` the form of its conversations, `?ranks=N` the
// number of ranks, `?build=simd128` the plain build, `?tokens=N` the length of the longest answer.

import { deleteCached, load } from "./llama3med.js";
import { Conversation, copyText, NOTICE, saveText } from "./conversation.js";
import { choosePicture, filesOf, startOf, textOf } from "./files.js";
import { showModel, showNumbers } from "./numbers.js";
import { Picture } from "./picture.js";
import { Requests, requestsText } from "./requests.js";
import { bytesText, explain, progressText, refusal, showError } from "./words.js";

const byId = (id) => document.getElementById(id);
const query = new URLSearchParams(location.search);
const manifestUrl = new URL(query.get("model") ?? document.querySelector("meta[name=model]").content, document.baseURI);

const pairUrls = ["decoder", "encoder"].filter((name) => query.has(name)).map((name) => new URL(query.get(name), document.baseURI).href);

const picture = new Picture({
  film: byId("film"), image: byId("picture"), overlay: byId("overlay"), noPreview: byId("no-preview"), thumbs: byId("thumbs"),
});
const conversation = new Conversation(byId("turns"));
const requests = new Requests(new URL("./", pairUrls[0] ?? manifestUrl).href, (count) => {
  const [line, how] = requestsText(count);
  byId("requests-line").textContent = line;
  byId("requests-how").textContent = how;
});

// What is going on. `model` is a promise of the client's model, renewed by "Load the model again".
// `source` is where it comes from, `loading` gives up its loading; `lost` is why it is over; `encoded` says whether the image is with it; `suspect` is the
// image that it was looking at when it stopped.
const state = { source: pairUrls.length > 0 ? pairUrls : manifestUrl.href, loading: null, model: null, info: null, lost: null, file: null, sample: null, encoded: false, suspect: null, chat: null, asking: null, opened: 0 };

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

function loadModel() {
  byId("load-error").replaceChildren();
  Object.assign(state, { info: null, lost: null, encoded: false });
  setModelLine("loading");
  setStatus("Loading the model", 0);
  const ranks = Number(query.get("ranks")) || undefined;
  const build = query.get("build") ?? undefined;
  const template = query.get("template") ?? undefined;
  const loading = new AbortController();
  state.loading = loading;
  const options = { ranks, build, template, onProgress: showProgress, signal: loading.signal };
  state.model = inCharge.then(() => {
    requests.withWorkers = Boolean(navigator.serviceWorker?.controller);
    return load(state.source, options);
  }).then((model) => keepBuild(model.info.build).then(() => model));
  state.model.then(modelReady, (error) => loading.signal.aborted || modelFailed(error)).catch(unexpected);
}

function modelReady(model) {
  state.info = model.info;
  const about = (model.info.notices ?? []).join(" ") || model.info.description;
  byId("about").textContent = about;
  byId("about").hidden = !about;
  showModel(byId("model-panel"), model.info);
  byId("forget").hidden = Array.isArray(state.source);
  if (!state.file) showSamples(model.info.samples ?? []);
  announce("The model is ready.");
  showChips();
  rest();
  if (state.file) startChat(model).catch(unexpected);
  model.ended.then((error) => error.name === "AbortError" || modelLost(error)).catch(unexpected);
}

function modelFailed(error) {
  setModelLine("not loaded");
  setStatus("The model is not loaded");
  showError(byId("load-error"), explain(error), { label: "Load the model again", run: guarded(() => reloadModel()) });
}

// A worker was lost. A question that waits for its answer says so at its own place.
function modelLost(error) {
  state.lost = error;
  if (state.chat && !state.encoded) state.suspect = state.file;
  setStatus("The model stopped");
  setModelLine("stopped");
  if (!state.asking) showLost();
}

function showLost() {
  showError(byId("load-error"), explain(state.lost), { label: "Load the model again", run: guarded(() => reloadModel()) });
}

// A pair of GGUF files that the person chose or dropped takes the place of the model.
function openModel(files) {
  state.asking?.abort.abort();
  state.source = [...files];
  state.loading.abort();
  byId("samples").hidden = true;
  return reloadModel("Another model was opened; it does not know what is above.");
}

// After a failure: the model comes back from this browser's own copy, the picture is encoded again.
async function reloadModel(word = "The model was loaded again; it does not remember what is above.") {
  const model = await state.model.catch(() => null);
  model?.close();
  state.chat = null;
  byId("image-error").replaceChildren();
  if (conversation.turns.length > 0) conversation.divide(word);
  if (state.file && state.suspect === state.file) leaveSuspect();
  state.suspect = null;
  loadModel();
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
  const response = await fetch(url);
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
  if (found.files.some(({ name }) => /\.gguf$/i.test(name))) return openModel(found.files);
  const { file, remark, problem } = await choosePicture(found);
  if (opened !== state.opened) return;
  if (problem) return imageRefused(problem);
  await openImage(file, { remark });
}

// What was open stays open.
function imageRefused(problem) {
  showError(byId("image-error"), problem);
  setStatus(problem.title);
}

/** Opens a picture; `sample` is what the manifest says of it, `remark` is said beside it. */
async function openImage(file, { sample = null, remark = "" } = {}) {
  const opened = ++state.opened;
  if (state.info) setStatus("Opening the image", 0);
  const unreadable = (error) => explain({ kind: "file", message: `${file.name}: ${error?.message ?? error}` });
  const problem = await startOf(file).then(() => refusal(file)).catch(unreadable);
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
  Object.assign(state, { file: null, sample: null, encoded: false });
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

// The model looks at the image at once; the question may still be in the typing.
async function startChat(model) {
  const { file } = state;
  if (state.chat) return;
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
  imageRefused(explainFailure(error));
  setModelLine("ready");
}

/** An error after which the model goes on. */
function explainFailure(error) {
  const explained = explain(error);
  if (error.kind !== "out-of-memory") return explained;
  return { ...explained, next: "Close other tabs and programs and try again. The model itself goes on; a short conversation takes less memory than a long one." };
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
  for await (const piece of chat.ask(turn.question, { maxTokens: Number(query.get("tokens")) || 512, signal })) {
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
  on(input, "change", () => {
    const files = [...input.files];
    input.value = "";
    return files.length > 0 && openModel(files);
  });
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

// ---- the service worker: the page opens with the network cut. None on plain http, where the page works uncached.

const atMost = (ms, promise) => Promise.race([promise, new Promise((resolve) => setTimeout(resolve, ms))]);
const registered = navigator.serviceWorker ? registerServiceWorker().catch(() => null) : Promise.resolve(null);
// The model's workers are started when the service worker is in charge: it sees the requests of those alone that start after it.
const inCharge = atMost(5_000, registered);

// Asks the service worker to keep the wasm build in use, and waits for it, so that no request is left for later.
async function keepBuild(build) {
  const kept = registered.then((registration) => registration && new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = resolve;
    registration.active.postMessage({ type: "keep", build, port: port2 }, [port2]);
  }));
  await atMost(10_000, kept);
}

async function registerServiceWorker() {
  const registration = await navigator.serviceWorker.register("sw.js", { updateViaCache: "none" });
  const offer = () => {
    if (!registration.waiting || !navigator.serviceWorker.controller) return;
    byId("update").hidden = false;
    byId("reload").addEventListener("click", () => {
      navigator.serviceWorker.addEventListener("controllerchange", () => location.reload());
      registration.waiting.postMessage({ type: "take over" });
    }, { once: true });
  };
  registration.addEventListener("updatefound", () => registration.installing?.addEventListener("statechange", offer));
  offer();
  const isFirst = !registration.active;
  await navigator.serviceWorker.ready;
  if (isFirst && !navigator.serviceWorker.controller) {
    await new Promise((resolve) => navigator.serviceWorker.addEventListener("controllerchange", resolve, { once: true }));
  }
  return registration;
}

wireImage();
wireQuestions();
wireKeeping();
wireModel();
wireCache();
loadModel();
