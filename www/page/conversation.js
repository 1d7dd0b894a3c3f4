// The turns on the page, and how their text is copied or saved. Text is only ever set as text, never as markup.

import { Markdown, spokenText } from "./markdown.js";
import { NOTICE } from "./record.js";

function child(parent, name, className, text = "") {
  const element = document.createElement(name);
  element.className = className;
  element.textContent = text;
  parent.append(element);
  return element;
}

/** One question and its answer. */
class Turn {
  /** `speak` receives the answer sentence by sentence; `onDrawn` is called when more of it is on the page. */
  constructor(root, question, { speak, onDrawn }) {
    Object.assign(this, { question, speak, onDrawn });
    this.text = "";
    this.n_said = 0;
    this.root = child(root, "div", "turn");
    child(this.root, "p", "who", "You");
    child(this.root, "p", "asked", question).dir = "auto";
    child(this.root, "p", "visually-hidden", "Model");
    this.answer = child(this.root, "div", "answered");
    this.markdown = new Markdown(this.answer);
    this.answer.dir = "auto"; // the answer's script decides, not the page's
    this.answer.dataset.testid = "answer";
    this.answer.setAttribute("aria-busy", "true");
    this.meta = child(this.root, "p", "meta");
    this.problem = child(this.root, "div", "");
  }

  push(piece) {
    this.text += piece;
    this.#drawSoon();
    this.#say(/^[^]*(?:(?<!^\s*\d+)[.!?…](?=\s)|[。！？\n])/m.exec(this.text.slice(this.n_said))?.[0]);
  }

  // However fast pieces arrive, drawing happens at most once per frame.
  #drawSoon() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      if (this.at === undefined) this.#draw(false);
    });
  }

  #draw(isOver) {
    this.markdown.draw(this.text, isOver, Boolean(this.reason));
    this.onDrawn();
  }

  // A screen reader gets whole sentences: it would start over with every piece.
  #say(text) {
    if (!text) return;
    this.n_said += text.length;
    this.speak(spokenText(text));
  }

  /** Ends the answer: `reason` if it did not end by itself, such as "stopped", and other small print. */
  end(reason = "", ...notes) {
    this.#say(this.text.slice(this.n_said));
    if (reason) this.speak(reason);
    this.#close(reason, notes.filter(Boolean).join(" · "), Date.now());
  }

  /** An answer from an earlier time. */
  fill({ text, reason, print, at }) {
    this.text = text;
    this.#close(reason, print, at);
  }

  #close(reason, print, at) {
    Object.assign(this, { reason, print, at });
    this.#draw(true);
    this.answer.setAttribute("aria-busy", "false");
    this.meta.textContent = [reason, print].filter(Boolean).join(" · ");
  }
}

/** The element that scrolls when `element` grows: a part of the page or, in a low window, all of it. */
function scrollerOf(element) {
  const scrolls = (each) => /auto|scroll/.test(getComputedStyle(each).overflowY);
  for (let each = element.parentElement; each && each !== document.body; each = each.parentElement) if (scrolls(each)) return each;
  return document.scrollingElement;
}

/** The turns of the current conversation. */
export class Conversation {
  /** `spoken` is a live region. */
  constructor(root, spoken) {
    this.root = root;
    this.spoken = spoken;
    this.entries = []; // turns, and the dividers between them: { divider }
    root.ownerDocument.addEventListener("copy", (event) => this.#copied(event));
  }

  get turns() {
    return this.entries.filter((entry) => entry instanceof Turn);
  }

  // Copying part of an answer by hand adds the notice.
  #copied(event) {
    const selection = this.root.ownerDocument.getSelection();
    const text = selection?.toString() ?? "";
    if (!text || !selection.anchorNode || !this.root.contains(selection.anchorNode)) return;
    event.clipboardData?.setData("text/plain", `${text}\n\n${NOTICE}\n`);
    event.preventDefault();
  }

  /** Adds a question; its answer becomes the newest. */
  add(question) {
    this.spoken.replaceChildren();
    const turn = this.#append(question, (text) => text && child(this.spoken, "p", "", text));
    this.follow(true);
    return turn;
  }

  #append(question, speak) {
    delete this.turns.at(-1)?.answer.dataset.testid;
    const turn = new Turn(this.root, question, { speak, onDrawn: () => turn === this.turns.at(-1) && this.follow() });
    this.entries.push(turn);
    return turn;
  }

  /** Keeps the end of the newest turn in view while it grows, unless the reader has scrolled back. */
  follow(always = false) {
    const scroller = scrollerOf(this.root);
    const turn = this.turns.at(-1).root;
    const edge = scroller === document.scrollingElement ? innerHeight : scroller.getBoundingClientRect().bottom;
    const behind = turn.getBoundingClientRect().bottom + parseFloat(getComputedStyle(turn).scrollMarginBottom) - edge;
    if (behind > 0 && (always || behind < 120)) scroller.scrollTop += behind;
  }

  /** A divider between turns: the model does not know what is above it. */
  divide(divider) {
    this.entries.push({ divider });
    child(this.root, "p", "divider", divider);
  }

  /** The history that the model may continue from: the turns below the last divider. */
  history() {
    const start = this.entries.findLastIndex(({ divider }) => divider) + 1;
    return this.entries.slice(start).filter(({ text }) => text).map(({ question, text }) => ({ question, answer: text.trim() }));
  }

  /** Removes everything and returns it for `put`. */
  take() {
    const { entries } = this;
    this.entries = [];
    this.root.replaceChildren();
    this.spoken.replaceChildren();
    return entries;
  }

  /** Shows what `take` returned, or the same as plain objects. */
  put(entries) {
    this.take();
    for (const entry of entries) {
      if (entry.divider) this.divide(entry.divider);
      else this.#append(entry.question, () => {}).fill(entry);
    }
    if (this.turns.length > 0) this.follow(true);
  }
}

/** Copies `text`, also on plain http, where browsers have no clipboard interface. Returns whether it worked. */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = document.createElement("textarea");
    area.value = text;
    area.className = "visually-hidden";
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}

/** Offers `text` as a file. */
export function saveText(text, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/plain" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
