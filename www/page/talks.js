// The list of this visit's conversations, to which the user can return. opening.js decides what they contain and how to open one; talk_store.js keeps them on
// this device.

import { Kept } from "./talk_store.js";

/** No more are started until some are deleted. */
export const MAX_TALKS = 100;

function element(name, properties, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

/** The first question, as the conversation's name. */
export const nameOf = ({ entries }) => entries.find(({ question }) => question)?.question ?? "No question yet";

const hasWords = ({ entries }) => entries.some(({ text }) => text);

/**
 * A talk is { id, at, file, sample, modelName, entries, model, chat, frame, thumbnail }: its picture, its turns, and, while that model is loaded, the client's
 * conversation.
 */
export class Talks {
  /** `list` is an element; `present` returns the talk that is open now, or null; `on` has { open, remove } for a talk. */
  constructor(list, present, on) {
    Object.assign(this, { list, present, on, away: [], kept: null, saving: Promise.resolve() });
  }

  /** All talks, the current one first. */
  all() {
    return [this.present(), ...this.away].filter(Boolean);
  }

  /** Sets a talk aside, to return to later. */
  add(talk) {
    this.away = [talk, ...this.away.filter(({ id }) => id !== talk.id)];
    this.save(talk);
  }

  /** Takes one out of the list. */
  take(talk) {
    this.away = this.away.filter((other) => other !== talk);
  }

  /** Whether closing the tab would lose text. */
  wouldLose() {
    return !this.kept && this.all().some(hasWords);
  }

  /** Keeps a talk on this device if that is wanted. One at a time: the last state wins. */
  save(talk) {
    this.saving = this.saving.then(() => (this.kept && hasWords(talk) ? this.kept.save(talk) : null));
    return this.saving;
  }

  /** Deletes a talk, here and on this device. */
  async remove(talk) {
    this.take(talk);
    talk.chat?.close?.();
    if (talk === this.present() || talk.id === this.present()?.id) this.on.remove(talk);
    this.show();
    await this.saving;
    await this.kept?.remove(talk.id);
  }

  /** The talks kept from earlier visits. */
  async restore() {
    this.kept = await Kept.find();
    if (this.kept) this.away.push(...(await this.kept.load()));
    this.show();
  }

  /** Starts or stops keeping; stopping deletes what was kept, as does switching to keeping without pictures. */
  async keep(isWanted, withPictures) {
    await this.saving;
    if (this.kept && (!isWanted || !withPictures)) await Kept.end();
    this.kept = isWanted ? await Kept.start(withPictures) : null;
    for (const talk of this.all()) await this.save(talk);
  }

  show() {
    const present = this.present();
    this.list.replaceChildren(...this.all().map((talk) => this.#item(talk, talk === present || talk.id === present?.id)));
  }

  #item(talk, isPresent) {
    const n_answers = talk.entries.filter(({ question }) => question).length;
    const picture = talk.thumbnail ?? element("span", { className: "no-thumbnail", ariaHidden: "true", textContent: talk.hadPicture || talk.file ? "picture" : "words" });
    const words = element("span", { className: "talk-name", dir: "auto", textContent: nameOf(talk) });
    const count = element("span", { className: "small", textContent: `${n_answers} question${n_answers === 1 ? "" : "s"}${isPresent ? ", open now" : ""}` });
    const open = element("button", { type: "button", className: "talk" }, picture, element("span", {}, words, " ", count));
    if (isPresent) open.setAttribute("aria-current", "true");
    open.addEventListener("click", () => this.on.open(talk));
    const remove = element("button", { type: "button", className: "remove", textContent: "Delete" });
    remove.setAttribute("aria-label", `Delete: ${nameOf(talk)}`);
    askTwice(remove, () => this.remove(talk));
    return element("li", {}, open, remove);
  }
}

/** A delete button asks first: its second press deletes. */
export function askTwice(button, run) {
  const { textContent, ariaLabel } = button;
  let isSure = false;
  const say = (sure) => {
    isSure = sure;
    button.textContent = sure ? "Delete for good?" : textContent;
    button.ariaLabel = sure ? null : ariaLabel;
  };
  button.addEventListener("click", () => (isSure ? (say(false), run()) : say(true)));
  button.addEventListener("blur", () => say(false));
}
