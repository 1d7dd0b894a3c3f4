// The picture and its conversation: opens a file, a sample, a drop or an earlier conversation, and sets the open one aside.

import { closeChat, enlarge, explainFailure, showAsking, showChips, showEncoded, startChat } from "./asking.js";
import { choosePictures, looksLikePicture, sortFiles, startOf } from "./files.js";
import { openModel, showLost } from "./loading.js";
import { asked, byId, conversation, guarded, hooks, imageRefused, manifestUrl, newIdentity, noRecord, on, picture, requests, rest, samples, sees, service, setStatus, state, unexpected } from "./state.js";
import { headText, modelText, pictureText } from "./record.js";
import { MAX_TALKS, Talks } from "./talks.js";
import { bytesText, explain, showError, showNote } from "./words.js";

// The manifest's data is shown before the model is loaded; the model will tell whether it is right.
hooks.manifest = async (loading, manifest) => {
  if (manifest && loading === state.loading) showSamples(manifest.samples ?? []);
  await Promise.allSettled([...byId("samples").querySelectorAll("img")].map((image) => image.decode()));
  samples.arrived();
};

hooks.ready = (model) => {
  showSight();
  if (byId("samples").hidden) showSamples(model.info.samples ?? []);
  showChips();
  rest();
  if (state.file || !sees()) startChat(model).catch(unexpected);
};

export const talks = new Talks(byId("talk-list"), presentTalk, { open: guarded(returnTo), remove: removePresent });

hooks.answered = (record, info) => {
  state.recording = keepRecord(record, info).catch(unexpected);
  showTalks();
};

// Copies describe the model and picture of the answer, whatever is open by now.
async function keepRecord(record, info) {
  const talk = talks.all().find((each) => each.record === record);
  if (!talk) return; // deleted in the meantime
  const model = info && (await modelText(info, asked));
  if (model && !record.models.includes(model)) record.models.push(model);
  record.picture ||= await pictureText(talk.file, talk.frame);
  if (record === state.record) showRecord();
  await talks.save(talk);
}

/** Everything in a copy but the turns: what is printed above them. */
export const head = () => headText(state.record, conversation.entries, document.querySelector("meta[name=version]").content);

function showRecord() {
  byId("record").textContent = head();
}

// The previous conversation comes back if nothing was said about the unreadable picture.
hooks.refused = () => {
  const { before } = state;
  if (before && conversation.turns.length === 0) returnTo(before).catch(unexpected);
};

hooks.afresh = () => state.file && state.suspect === state.file && leaveSuspect();

const noVision = () => explain({ kind: "no-vision", message: `${state.info.name} has no image encoder` });

// The page asks for what the model can do. A picture that was opened before this was known is closed.
function showSight() {
  byId("drop").classList.toggle("text-only", !sees());
  const [label, placeholder] = sees() ? ["Question about the image", "Ask about the image"] : ["Question", "Ask a question"];
  byId("question-label").textContent = label;
  byId("question").placeholder = placeholder;
  if (sees() || !state.file) return;
  closeImage();
  showError(byId("image-error"), noVision());
}

// The picture that the model was encoding when it stopped may have been the cause: it is opened again only if the user asks for it.
function leaveSuspect() {
  const { file, sample, lost } = state;
  closeImage();
  showError(byId("image-error"), {
    title: "The model stopped while it was encoding this picture.",
    next: "The picture may have been the cause, so it was closed. Open another one, or try this one once more.",
    details: [`${file.name ?? "a sample picture"}, ${bytesText(file.size)}`, explain(lost).details].join("\n"),
  }, { label: "Open it again", run: guarded(() => openImage(file, { sample })) });
}

function showSamples(offered) {
  const list = byId("samples");
  list.hidden = offered.length === 0;
  list.replaceChildren(...offered.map((sample) => {
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
  const response = await fetch(url, { cache: "force-cache" }); // the page already shows it
  if (!response.ok) throw new Error(`status ${response.status}`);
  return response.blob();
}

// Dropped or pasted files: model files replace the model; the first of several pictures is opened.
export async function openFiles(gathering) {
  const opened = ++state.opened;
  if (state.info) setStatus("Looking at the files");
  const found = await gathering;
  if (opened !== state.opened) return;
  const sorted = await sortFiles(found.files);
  if (opened !== state.opened) return;
  if (sorted.models.length > 0) return openModel(sorted);
  const { pictures, remark, problem } = await choosePictures(found);
  if (opened !== state.opened) return;
  if (problem) return imageRefused(problem);
  const [file, ...others] = pictures;
  await openImage(file, { remark, others });
}

/** Why a file cannot be opened, before the engine gets it: null if its first bytes can be read. */
async function unreadable(file) {
  try {
    await startOf(file);
    return null;
  } catch (error) {
    return explain({ kind: "file", message: `${file.name}: ${error?.message ?? error}` });
  }
}

/** Opens a picture: `sample` is the manifest's entry for it, `remark` is shown with it, `others` came with it and wait in the list. */
export async function openImage(file, { sample = null, remark = "", others = [] } = {}) {
  const opened = ++state.opened;
  if (state.info) setStatus("Opening the image", 0);
  const problem = (await unreadable(file)) ?? (sees() ? null : noVision()) ?? tooMany(1 + others.length) ?? (await refusal(file));
  if (opened !== state.opened) return;
  if (problem) return imageRefused(problem);
  const before = putAway();
  others.toReversed().forEach((other) => talks.add({ ...newIdentity(), file: other, sample: null, entries: [], thumbnail: imageOf(other) }));
  await show({ ...newIdentity(), file, sample, entries: [] }, { remark, before });
}

function tooMany(n_more) {
  const n_talks = talks.all().length;
  if (n_talks + n_more <= MAX_TALKS) return null;
  return { title: `There are ${n_talks} conversations already, and ${MAX_TALKS} at most.`, next: "Delete some under Conversations: none is deleted automatically.", details: "" };
}

// A file that does not look like a picture is first passed to the engine in a separate chat, which identifies it; meanwhile the open picture stays.
async function refusal(file) {
  if (!presentTalk() || !state.info || state.lost || (await looksLikePicture(file))) return null;
  await state.chat?.ready.catch(() => {});
  const chat = (await state.model).chat({ image: file });
  try {
    await chat.ready;
    return null;
  } catch (error) {
    return error.name === "AbortError" ? null : explainFailure(error);
  } finally {
    chat.close();
  }
}

// ---- conversations of this visit

/** What is open, in the form of talks.js; null before there is anything. */
function presentTalk() {
  const { file, sample, talk, modelName, record, model, chat, frame, refused } = state;
  if (conversation.entries.length === 0 && (!file || refused)) return null;
  return { ...talk, file, sample, modelName, record, model, chat, frame, entries: conversation.entries, thumbnail: file && picture.thumbnail() };
}

// A running answer ends where it is.
function putAway() {
  state.asking?.abort.abort();
  const talk = presentTalk();
  const shown = state.encoded && state.file ? picture.copy() : null;
  if (!state.encoded || !talk) closeChat();
  if (talk) talks.add({ ...talk, chat: state.chat, shown });
  conversation.take();
  state.chat = null;
  return talk && talks.away[0];
}

/** Opens a conversation that was set aside. */
async function returnTo(talk) {
  closePanelOfTalks();
  if (talk.id === state.talk.id) return;
  if (talk.file && !sees()) return imageRefused(noVision());
  state.opened++;
  putAway();
  await show(talk);
}

// Shows a conversation, new or old. Its chat continues if its model is still loaded; otherwise the model gets the picture and the turns again.
async function show(talk, { remark = "", before = null } = {}) {
  const { opened } = state;
  const { id, at, file, sample = null, entries, modelName = null, record = noRecord() } = talk;
  const hadFocus = document.activeElement === document.body || byId("image").contains(document.activeElement);
  talks.take(talk);
  if (state.lost) showLost(); // it may have been shown only in the conversation
  Object.assign(state, { file, sample, encoded: false, asking: null, talk: { id, at }, modelName, record, frame: null, before, refused: false });
  conversation.put(entries);
  showRecord();
  showAsking(false);
  enlarge(false);
  byId("image-error").replaceChildren();
  byId("opened").textContent = remark;
  byId("numbers").hidden = true;
  byId("keep").hidden = !entries.some(({ text }) => text);
  for (const name of ["drop", "strip"]) byId(name).hidden = (name === "drop") === Boolean(file);
  document.body.classList.toggle("has-image", Boolean(file));
  document.body.classList.toggle("has-turns", entries.length > 0);
  showNote(byId("notes"), "talk", file || entries.length === 0 || !sees() ? "" : "The picture of this conversation is not here: the conversation can be read, but not continued.");
  showTalks();
  if (file) await Promise.all([picture.show(file, talk.shown), service.asked]);
  else picture.hide();
  if (opened !== state.opened) return;
  if (file) requests.restart();
  if (hadFocus && matchMedia("(pointer: fine)").matches) byId("question").focus();
  showChips();
  await goOn(talk);
}

async function goOn({ chat, model, frame }) {
  if (!state.info || state.lost) return;
  if (chat && model === state.model) {
    state.chat = chat;
    if (state.file) picture.frame(frame, state.info.scales, state.info.tileSize);
    showEncoded(state.info, frame);
  } else if (state.file || !sees()) await startChat(await state.model);
  else rest();
}

function removePresent() {
  state.asking?.abort.abort();
  conversation.take();
  closeImage();
  Object.assign(state, { asking: null, talk: newIdentity(), modelName: null, record: noRecord(), before: null });
  showAsking(false);
  byId("keep").hidden = true;
  document.body.classList.remove("has-turns");
  showNote(byId("notes"), "talk", "");
  rest();
  if (state.info && !state.lost && !sees()) state.model.then(startChat).catch(unexpected);
}

/** The list and its heading, which appear as soon as there is something to return to, or to keep. */
export function showTalks() {
  const all = talks.all();
  byId("talks").hidden = all.length < 2 && !talks.kept && !all.some(({ entries }) => entries.length > 0);
  byId("talk-count").textContent = all.length;
  if (byId("talks").open) talks.show();
}

function closePanelOfTalks() {
  const hadFocus = byId("talks").contains(document.activeElement);
  byId("talks").open = false;
  if (hadFocus) byId("scroll").focus();
}

// A picture that has not been opened yet.
function imageOf(file) {
  const image = new Image();
  image.alt = "";
  image.src = URL.createObjectURL(file);
  image.onload = () => URL.revokeObjectURL(image.src);
  image.onerror = () => (URL.revokeObjectURL(image.src), image.replaceWith("picture"));
  return image;
}

// Back to the start; the conversation stays readable.
function closeImage() {
  closeChat();
  picture.hide();
  Object.assign(state, { file: null, sample: null, encoded: false, frame: null, opened: state.opened + 1 });
  byId("opened").textContent = "";
  for (const id of ["numbers", "strip"]) byId(id).hidden = true;
  byId("drop").hidden = false;
  document.body.classList.remove("has-image");
  showChips();
}
