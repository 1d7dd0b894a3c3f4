// The picture: opens a file, a sample or what was dropped, and closes it.

import { closeChat, enlarge, showAsking, showChips, startChat } from "./asking.js";
import { choosePicture, sortFiles, startOf } from "./files.js";
import { heard, openModel, showLost } from "./loading.js";
import { byId, conversation, guarded, imageRefused, manifestUrl, on, picture, requests, rest, samples, sees, setStatus, state, unexpected } from "./state.js";
import { bytesText, explain, showError } from "./words.js";

// What the manifest says is shown before the model is there; whether it is true the model will tell.
heard.manifest = async (loading, manifest) => {
  if (manifest && loading === state.loading) showSamples(manifest.samples ?? []);
  await Promise.allSettled([...byId("samples").querySelectorAll("img")].map((image) => image.decode()));
  samples.arrived();
};

heard.ready = (model) => {
  showSight();
  if (byId("samples").hidden) showSamples(model.info.samples ?? []);
  showChips();
  rest();
  if (state.file || !sees()) startChat(model).catch(unexpected);
};

heard.afresh = () => state.file && state.suspect === state.file && leaveSuspect();

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
  const response = await fetch(url, { cache: "force-cache" }); // the page shows it already
  if (!response.ok) throw new Error(`status ${response.status}`);
  return response.blob();
}

// What was dropped or pasted: files of a model take the model's place, and of pictures the first is opened.
export async function openFiles(gathering) {
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
export async function openImage(file, { sample = null, remark = "" } = {}) {
  const opened = ++state.opened;
  if (state.info) setStatus("Opening the image", 0);
  const problem = (await unreadable(file)) ?? (sees() ? null : noVision());
  if (opened !== state.opened) return;
  if (problem) return imageRefused(problem);
  state.asking?.abort.abort();
  closeChat();
  conversation.clear();
  document.body.classList.remove("has-turns");
  enlarge(false);
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
