// The page: an image, questions, streamed answers. It connects the document to the client (llama3med/index.js) and computes nothing itself. query.js reads what
// its URL asks for. The parts are loading.js (the model), opening.js (the picture) and asking.js (questions and answers); what they share is in state.js.

import { ask, enlarge, stop } from "./asking.js";
import { copyText, saveText } from "./conversation.js";
import { filesOf, looksLikePicture, sortFiles, textOf } from "./files.js";
import { canKeep } from "./talk_store.js";
import { deleteModel, deletePage, whatIsKept } from "./storage.js";
import { lockPage } from "./lock.js";
import { loadMarkdown } from "./markdown.js";
import { addressFailed, begin, openModel, use } from "./loading.js";
import { head, openFiles, openImage, showTalks, talks } from "./opening.js";
import { heldUrl } from "./service.js";
import { announce, asked, byId, conversation, guarded, manifestUrl, on, samples, service, state, unexpected } from "./state.js";
import { NOTICE, recordText } from "./record.js";
import { askTwice } from "./talks.js";
import { bytesText, showNote } from "./words.js";

function wireImage() {
  const buttons = { "image-input": [...document.querySelectorAll(".choose"), byId("another")], "photo-input": [byId("photo")] };
  for (const [id, clicked] of Object.entries(buttons)) {
    const input = byId(id);
    for (const button of clicked) on(button, "click", () => input.click());
    on(input, "change", () => {
      const files = [...input.files];
      input.value = "";
      if (files.length > 0) return files.length === 1 ? openImage(files[0]) : openFiles({ files, n_folders: 0, unreadable: [] });
    });
  }
  const isSmall = () => !byId("image").classList.contains("open");
  on(byId("enlarge"), "click", () => enlarge(isSmall()));
  on(byId("film"), "click", () => byId("enlarge").checkVisibility() && isSmall() && enlarge(true));
  // Text dragged into a text field is handled by the browser.
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

// In a text field, text takes precedence: spreadsheet cells arrive as text and as a picture. Elsewhere a picture is opened, and text alone becomes a question.
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

// The key belongs to an input method. Safari ends the composition before it reports the key that did so; only its old code, 229, is left then.
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
  on(document, "keydown", (event) => event.key === "Escape" && !isComposing(event) && (closePanels() || stop()));
}

// Panels over the page close with Escape, which returns the focus, and with a click elsewhere.
const openPanels = () => [...document.querySelectorAll("details:has(> .panel)[open]")];

function closePanels() {
  const open = openPanels();
  for (const details of open) {
    const hadFocus = details.contains(document.activeElement);
    details.open = false;
    if (hadFocus) details.querySelector("summary").focus();
  }
  return open.length > 0;
}

function wirePanels() {
  on(document, "pointerdown", ({ target }) => openPanels().forEach((details) => details.contains(target) || (details.open = false)));
}

function wireKeeping() {
  const text = async () => {
    await state.recording;
    return recordText(head(), conversation.entries);
  };
  byId("notice").textContent = NOTICE;
  on(byId("copy"), "click", async () => {
    byId("keep-result").textContent = (await copyText(await text())) ? "Copied" : "The browser refused to copy";
  });
  on(byId("save"), "click", async () => saveText(await text(), "conversation.txt"));
  on(byId("print"), "click", async () => {
    await state.recording;
    window.print();
  });
}

function wireTalks() {
  const [kept, pictures] = [byId("keep-talks"), byId("keep-pictures")];
  on(byId("talks"), "toggle", () => byId("talks").open && talks.show());
  if (!canKeep()) kept.disabled = true;
  byId("cannot-keep").hidden = canKeep();
  const keep = async () => {
    await talks.keep(kept.checked, pictures.checked);
    pictures.disabled = !kept.checked;
  };
  for (const box of [kept, pictures]) on(box, "change", keep);
  askTwice(byId("delete-talks"), guarded(async () => {
    for (const talk of talks.all()) await talks.remove(talk);
    showTalks();
  }));
  on(window, "beforeunload", (event) => talks.wouldLose() && event.preventDefault());
  return talks.restore().then(() => {
    Object.assign(kept, { checked: Boolean(talks.kept) });
    Object.assign(pictures, { checked: Boolean(talks.kept?.withPictures), disabled: !talks.kept });
    showTalks();
  });
}

function wireModel() {
  const input = byId("model-input");
  on(byId("choose-model"), "click", () => input.click());
  on(input, "change", async () => {
    const files = [...input.files];
    input.value = "";
    if (files.length === 0) return null;
    const sorted = await sortFiles(files);
    const arePictures = sorted.models.length === 0 && (await Promise.allSettled(files.map(looksLikePicture))).every(({ value }) => value);
    return arePictures ? openFiles({ files, n_folders: 0, unreadable: [] }) : openModel(sorted);
  });
  on(byId("reload"), "click", () => service.renew());
}

const LOCKED = "The network is locked: the browser blocks every connection of this page, and the model's workers can no longer make one";
const WITH_SERVICE = "; the service worker forwards nothing, not even for other tabs of this site";
const WITHOUT_SERVICE = ". Without a service worker nothing prevents those workers from importing more scripts of this site, which they have no reason to do";
const NOT_HELD = ". The browser itself, its extensions and you are not blocked: leaving or reloading the page unlocks it.";

// Only on: a reload unlocks.
function wireLock() {
  const lock = byId("lock");
  on(lock, "click", async () => {
    if (state.isLocked) return location.reload();
    const model = await state.model;
    lock.disabled = true;
    await loadMarkdown().catch(() => {}); // it could not be fetched later
    await model.lock();
    const withService = await service.lock();
    lockPage(withService ? heldUrl() : undefined);
    state.isLocked = true;
    lock.disabled = false;
    lock.textContent = "Network locked";
    lock.title = "Reload the page to unlock it";
    lock.setAttribute("aria-checked", "true");
    byId("lock-how").textContent = LOCKED + (withService ? WITH_SERVICE : WITHOUT_SERVICE) + NOT_HELD;
    announce("The network is locked.");
  });
}

async function showKept() {
  const { models, page, conversations } = await whatIsKept();
  const text = (what, { n, bytes }) => (n > 0 ? `${what}, ${n} file${n === 1 ? "" : "s"} of ${bytesText(bytes)}` : "");
  const parts = [text("models", models), text("the page itself", page), text("conversations", conversations)].filter(Boolean);
  byId("kept-here").textContent = `Kept on this device: ${parts.join("; ") || "nothing"}.`;
}

// What a browser caches by itself cannot be deleted by a page.
const REST = "The browser's own cache can be cleared in its settings.";

function wireCache() {
  const wire = (id, act, done) => on(byId(id), "click", async () => {
    const result = byId("forget-result");
    await act().then(() => (result.textContent = done), (error) => (result.textContent = `Not deleted: ${error?.message ?? error}`));
    await showKept();
  });
  wire("forget", () => deleteModel(manifestUrl), "Deleted. It will be fetched again when the page is next opened; the page itself and other models stay.");
  wire("forget-page", () => deletePage(service), `Deleted, with all models. Kept conversations are deleted under “Conversations”. ${REST} The page stores itself again when it is next opened.`);
  on(byId("model"), "toggle", () => byId("model").open && showKept());
}

wireImage();
wireQuestions();
wirePanels();
wireKeeping();
wireTalks().catch(unexpected);
wireModel();
wireLock();
wireCache();
samples.areIn.then(loadMarkdown).catch(() => {});
asked.notes.forEach((note) => showNote(byId("notes"), note, note));
if (location.protocol === "file:") {
  // start.js has already said why nothing works here.
} else if (asked.problem) {
  samples.arrived();
  addressFailed();
} else use(begin(state.source));
