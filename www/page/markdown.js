// Turns a model's answer, which may contain Markdown, into elements of the page. `marked` only splits it into tokens; the elements are created here, and text
// is set as text: HTML in an answer is shown as written, links and images by name and address. Nothing in an answer is ever parsed as HTML.

let lexer = null;
let loading = null;

/** Fetches `marked`, which the page does not need before the first answer; resolves when it is loaded. */
export function loadMarkdown() {
  loading ??= import("./marked/marked.esm.js").then((marked) => (lexer = marked.lexer));
  loading.catch(() => (loading = null)); // the next answer retries
  return loading;
}

function element(name, children, attributes = {}) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

const MARKS = { strong: "strong", em: "em", del: "del" };

/** Sizes and estimates are not markup, whatever Markdown says: 12*15*9 mm, ~5-~7 mm. */
const isMark = ({ type, raw }, before) => Boolean(MARKS[type]) && (type === "del" ? raw.startsWith("~~") : !/\w$/.test(before));

/** Tokens within a line. */
function inline(tokens) {
  return tokens.flatMap((token, idx) => {
    if (MARKS[token.type] && !isMark(token, tokens[idx - 1]?.raw ?? "")) return token.raw;
    if (MARKS[token.type]) return element(MARKS[token.type], inline(token.tokens));
    if (token.type === "codespan") return element("code", [token.text]);
    if (token.type === "br") return "\n";
    if (token.type === "link") return token.raw.startsWith("[") ? [...inline(token.tokens), ` (${token.href})`] : token.raw;
    if (token.type === "image") return `${token.text} (${token.href})`;
    if (token.type === "escape") return token.text;
    return token.tokens ? inline(token.tokens) : token.raw;
  });
}

const blocks = (tokens) => tokens.filter(({ type }) => type !== "space").map(block);

/** A paragraph, a list, a table, …; a token that would show nothing is shown as written: the answer "2." is an empty list in Markdown. */
function block(token) {
  const made = blockOf(token);
  return made.textContent.trim() || token.type === "hr" ? made : element("p", [token.raw.trim()]);
}

function blockOf(token) {
  if (token.type === "heading") return element("p", [element("strong", inline(token.tokens))]);
  if (token.type === "paragraph") return element("p", inline(token.tokens));
  if (token.type === "list") return element(token.ordered ? "ol" : "ul", token.items.map(item), token.ordered ? { start: token.start } : {});
  if (token.type === "blockquote") return quote(token);
  if (token.type === "code") return element("pre", [element("code", [token.text])], { tabindex: "0" });
  if (token.type === "hr") return element("hr", []);
  if (token.type === "table") return table(token);
  return element("p", [token.raw.trimEnd()]);
}

// Its mark stays: "> 5 mm" is not a quotation.
function quote({ tokens }) {
  const made = element("blockquote", blocks(tokens));
  made.firstElementChild?.prepend("> ");
  return made;
}

function item({ task, checked, tokens }) {
  const box = task ? [checked ? "☑ " : "☐ "] : [];
  return element("li", [...box, ...tokens.flatMap((token) => (token.type === "text" ? inline(token.tokens ?? [token]) : blocks([token])))]);
}

function table({ header, rows }) {
  const cells = (name, row) => element("tr", row.map(({ tokens, align }) => element(name, inline(tokens), align ? { class: align } : {})));
  const body = element("tbody", rows.map((row) => cells("td", row)));
  return element("div", [element("table", [element("thead", [cells("th", header)]), body])], { class: "table", tabindex: "0", role: "group", "aria-label": "Table" });
}

/** Makes `old` equal to `fresh`, changing only what differs: selections survive, and nothing flickers. */
function patch(old, fresh) {
  if (old.nodeName !== fresh.nodeName) return old.replaceWith(fresh);
  if (old.nodeType === Node.TEXT_NODE) {
    if (fresh.data.startsWith(old.data)) old.appendData(fresh.data.slice(old.data.length));
    else old.data = fresh.data;
    return;
  }
  const children = [...fresh.childNodes];
  while (old.childNodes.length > children.length) old.lastChild.remove();
  children.forEach((child, idx) => (idx < old.childNodes.length ? patch(old.childNodes[idx], child) : old.append(child)));
}

const isOdd = (matches) => matches !== null && matches.length % 2 === 1;

/** Closes what an unfinished end has left open, outside fenced code. */
function closed(text) {
  if (isOdd(text.match(/^ {0,3}(```|~~~)/gm))) return text;
  if (isOdd(text.match(/`/g))) return `${text}\``;
  if (isOdd(text.match(/\*\*/g))) return `${text.trimEnd()}**`;
  return /(^|[\s(])\*(?=[^\s*])[^*\n]*$/.test(text) ? `${text.trimEnd()}*` : text;
}

/** The growing text without trailing marks whose meaning is not known yet. */
function withoutPending(text) {
  const start = text.lastIndexOf("\n\n") + 1;
  const isTable = /^ {0,3}\|?[ :-]*-[-| :]*$/m.test(text.slice(start).split("\n").slice(1, -1).join("\n"));
  const rows = isTable ? text : text.replace(/(^|\n)[ \t]*\|[^]*$/, "$1");
  return rows.replace(/(^|\n)[ \t]*(#{1,6}|[-+*_]{1,3}|\d+[.)]?|>|\|[-| :]*)[ \t]*$/, "$1").replace(/[*_~`]{1,3}$/, "");
}

/** A piece of an answer as it should be read aloud. */
export function spokenText(text) {
  const words = text.replace(/^[ |:-]+$|^ *(#+|[-+*]) |[`|]/gm, " ").replace(/(?<!\w)[*_]+(?=\S)|(?<=\S)[*_]+(?!\w)/g, "");
  return words.replace(/\s+/g, " ").trim();
}

/** A growing answer. Finished blocks are left alone; only the last one is rebuilt. */
export class Markdown {
  #text = "";
  #start = 0; // of the last block
  #last = []; // its elements
  #waiting = null; // what to draw when `marked` is loaded

  constructor(root) {
    this.root = root;
  }

  /**
   * Draws all of `text`, which begins with what was drawn before; `isOver` when nothing more will come, `isCut` if it is then incomplete. Until `marked` is
   * loaded, the text is shown as written.
   */
  draw(text, isOver, isCut = false) {
    if (lexer) return this.#draw(text, isOver, isCut);
    this.root.textContent = text;
    const isFirst = !this.#waiting;
    this.#waiting = [text, isOver, isCut];
    if (isFirst) loadMarkdown().then(() => (this.root.replaceChildren(), this.#draw(...this.#waiting)), () => (this.#waiting = null));
  }

  #draw(text, isOver, isCut) {
    this.#text = text.replace(/\r\n?/g, "\n");
    const tail = this.#text.slice(this.#start);
    const tokens = lexer(isOver && !isCut ? tail : closed(withoutPending(tail)));
    const made = blocks(tokens);
    this.#last.slice(made.length).forEach((old) => old.remove());
    made.forEach((fresh, idx) => (idx < this.#last.length ? patch(this.#last[idx], fresh) : this.root.append(fresh)));
    // From here on, only what follows the second-to-last block.
    const n_done = tokens.findLastIndex(({ type }) => type !== "space");
    if (n_done > 0) this.#start += tokens.slice(0, n_done).reduce((sum, { raw }) => sum + raw.length, 0);
    this.#last = made.length > 0 ? [this.root.lastElementChild] : [];
  }
}
