// The conversation with the model: sends the picture and the questions, and writes the answers to the page.

import { reloadModel, showLost, withMoreRanks } from "./loading.js";
import { showNumbers } from "./numbers.js";
import { announce, asked, byId, conversation, guarded, hooks, imageRefused, on, picture, rest, sees, setModelLine, setStatus, showProgress, state, unexpected } from "./state.js";
import { explain, showError, speedText } from "./words.js";

export function closeChat() {
  state.chat?.close?.();
  state.chat = null;
}

// The model encodes the image at once, if it sees pictures; the question may still be being typed.
export async function startChat(model) {
  const { file } = state;
  if (state.chat) return;
  const { scales, tileSize } = model.info;
  showNumbers(byId("numbers"), model.info);
  const isOther = state.modelName !== null && state.modelName !== model.info.name;
  if (isOther && conversation.history().length > 0) conversation.divide("Another model was opened; it does not know what is above.");
  state.modelName = model.info.name;
  let chat = null; // progress may be reported before `chat` is returned
  const current = (act) => (value) => file === state.file && (chat ?? state.chat) === state.chat && act(value);
  const onPicture = current((frame) => picture.frame(frame, scales, tileSize));
  chat = model.chat({ image: file ?? undefined, history: conversation.history(), onPicture, onProgress: current(chatProgress) });
  state.chat = chat;
  try {
    const frame = await chat.ready;
    if (chat !== state.chat) return;
    if (file) announce("The image is encoded. You can ask.");
    showEncoded(model.info, frame);
  } catch (error) {
    if (chat !== state.chat || error.name === "AbortError") return;
    imageFailed(error);
  }
}

/** The model has the picture, if there is one: `frame` is the engine's description of it. */
export function showEncoded(info, frame) {
  Object.assign(state, { encoded: true, frame });
  picture.light(0, 0); // no tile is being encoded any more
  showNumbers(byId("numbers"), info, state.chat);
  rest();
}

function chatProgress(progress) {
  // The start of the prompt is read in the background: nothing waits for it.
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
  state.refused = true;
  hooks.refused();
  imageRefused(explainFailure(error), withMoreRanks(error));
  setModelLine("ready");
}

/** An error after which the model keeps working. */
export function explainFailure(error) {
  const explained = explain(error);
  if (error.kind !== "out-of-memory") return explained;
  const more = error.moreRanks ? `, or open it with ${error.moreRanks} ranks: each has memory of its own` : "";
  return { ...explained, next: `Close other tabs and programs and try again${more}. The model itself goes on; a short conversation takes less memory than a long one.` };
}

export function showChips() {
  const questions = [...(state.sample?.questions ?? []), ...(state.info?.suggestedQuestions ?? [])];
  const before = new Set(conversation.turns.map((turn) => turn.question));
  const fresh = [...new Set(questions)].filter((question) => !before.has(question)).slice(0, 4);
  byId("chips").replaceChildren(...fresh.map((question) => {
    const chip = document.createElement("button");
    chip.type = "button";
    chip.textContent = question;
    chip.dir = "auto";
    on(chip, "click", () => {
      byId("scroll").focus(); // the chip disappears; the answer follows
      return ask(question);
    });
    return chip;
  }));
}

// Resolves when the model has the current image, whatever is still missing: the image, the model, the encoding.
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

export async function ask(question) {
  question = question.trim();
  if (!question) return byId("question").focus();
  if (state.asking) {
    announce("Still answering: wait, or press Stop first.");
    return setStatus("Still answering: wait, or press Stop first");
  }
  if (!state.file && sees()) {
    byId("question").value = question;
    setStatus("Open an image first; your question is kept");
    announce("Open an image first; your question is kept.");
    return chooser().focus();
  }
  byId("question").value = "";
  if (!state.file) byId("image-error").replaceChildren(); // a refused picture is not part of this
  enlarge(false);
  document.body.classList.add("has-turns"); // on a phone the conversation now takes the space
  const turn = conversation.add(question);
  const asking = { abort: new AbortController() };
  const { file, record } = state;
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
    hooks.answered(record, asking.info);
    if (turn === conversation.turns.at(-1)) conversation.follow(); // the elements around it took space
    if (!turn.failed && file === state.file) rest();
  }
}

// The button that opens a picture: one for mouse, one for touch.
const chooser = () => [...document.querySelectorAll(".choose")].find((button) => button.offsetParent) ?? byId("another");

async function answer(turn, asking) {
  const { signal } = asking.abort;
  const chat = await chatForQuestion(signal);
  asking.info = state.info; // another model may be open by the time this one has answered
  for await (const piece of chat.ask(turn.question, { maxTokens: asked.tokens ?? 512, signal })) {
    turn.push(piece);
  }
  turn.end(...ending(chat, signal));
  if (chat === state.chat) showNumbers(byId("numbers"), state.info, chat);
}

// Why an answer ended, if the model did not end it.
const ENDS = {
  length: "cut off at the maximum length",
  context: "cut off: the conversation is full",
  repetition: "stopped: it repeated itself",
  cancelled: "stopped",
  failed: "interrupted by an error",
};

// The small print of an answer, starting with the reason for its end.
function ending(chat, signal) {
  const { nTokens, tokensPerSecond, nDropped } = chat.timings;
  return [
    signal.aborted ? ENDS.cancelled : ENDS[chat.finish],
    nTokens ? `${nTokens} token${nTokens === 1 ? "" : "s"}` : "",
    speedText(tokensPerSecond, nTokens),
    nDropped ? `the oldest ${nDropped} turns no longer fit and were left out` : "",
  ];
}

function answerFailed(turn, asking, error) {
  if (asking.abort.signal.aborted || error.name === "AbortError") return turn.end(ENDS.cancelled);
  turn.end(ENDS.failed);
  turn.failed = true;
  if (!byId("question").value) byId("question").value = turn.question;
  // The problem with the model or the image is already shown there.
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

export function showAsking(isAsking) {
  const stopHadFocus = document.activeElement === byId("stop");
  byId("ask").hidden = isAsking;
  byId("stop").hidden = !isAsking;
  if (!isAsking && stopHadFocus) byId("question").focus();
}

/** On a phone: the whole picture, or a strip of it above the conversation. */
export function enlarge(isOpen) {
  byId("image").classList.toggle("open", isOpen);
  byId("enlarge").setAttribute("aria-expanded", String(isOpen));
  byId("enlarge").textContent = isOpen ? "Make it small" : "Show the picture";
}

export function stop() {
  state.asking?.abort.abort();
}
