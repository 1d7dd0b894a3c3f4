// The client's errors, and everything that users are told about them.

const AGAIN = "Load the model again.";
const TELL_OWNER = "Tell the owner of this page; the details below name the file.";

/** What each kind of error means to the user, and the one thing to do next; if that is missing, the message says it. */
export const KINDS = {
  network: ["The model could not be fetched.", "Check the network connection, then load the model again: what has arrived is kept if the browser allows it."],
  http: ["A file of the model is not at its place.", "Check the address, or tell the owner of this page."],
  forbidden: ["The server does not give the model to everybody.", "Check the address: this page cannot log in, so the files must be public."],
  unavailable: ["The server cannot deliver the model at the moment.", "Wait a little, then load the model again."],
  ranges: ["The server does not serve parts of files.", "This model is read in parts (HTTP byte ranges): put its files on a server that supports them, or open them from your disk."],
  policy: ["The policy of this page forbids it to fetch from that host."],
  cors: ["That host does not let other sites read its files."],
  address: ["The model's address is not valid."],
  kept: ["A part of the model that this browser keeps could not be read.", "Load the model again: that part will be fetched again."],
  pointer: ["A file of the model is a Git LFS pointer, not the file itself.", "`git lfs pull` fetches the files themselves: copy those. If the page is not yours, tell its owner."],
  "web-page": ["A web page came instead of a file of the model.", "Check the address; if this network asks for a login first, log in and load the model again."],
  cut: ["A file of the model is cut short.", "Load the model again; if that does not help, the file was not copied whole: copy it again or tell the owner of this page."],
  program: ["A part of this page's program arrived damaged.", "Load the model again; if that does not help, tell the owner of this page."],
  stopped: ["Loading was stopped.", AGAIN],
  locked: ["The network is locked.", "Reload the page: that unlocks it."],
  replaced: ["A newer version of this page has taken over in another tab.", "Reload this one."],
  invalid: ["This setting cannot be used."],
  hash: ["A part of the model arrived damaged, twice.", "Load the model again; if that does not help, tell the owner of this page."],
  corrupt: ["The model's files are damaged or do not fit together.", TELL_OWNER],
  tokenizer: ["The model's files are damaged or do not fit together.", TELL_OWNER],
  unsupported: ["This model needs something that this page cannot do.", TELL_OWNER],
  "out-of-memory": ["The memory of this browser is not enough.", "Close other tabs and programs, then load the model again."],
  "rank-lost": ["A part of the model stopped.", "Memory may have run out: close other tabs and programs, then load the model again."],
  internal: ["Something went wrong inside the model.", AGAIN],
  "context-full": ["The question is too long for the model.", "Shorten it and ask again."],
  "no-vision": ["This model sees no pictures.", "Ask it in text, or open a model that has an image encoder."],
  image: ["This picture could not be read.", "Save it as PNG or JPEG and open that."],
  file: ["This file could not be read.", "It may have been moved or changed, or this browser may not read it. Choose it again."],
  pair: ["These files are not a model.", "Choose GGUF files together: the language model and, for pictures, the image encoder (mmproj) that belongs to it."],
  busy: ["An answer is still being written.", "Wait until it is finished, or stop it."],
};

// For these kinds the engine says in its own words what is wrong with a file or a value; the meaning goes before them.
const FROM_ENGINE = ["corrupt", "unsupported", "image", "tokenizer", "invalid", "context-full", "out-of-memory", "rank-lost", "internal"];

/** An error with a `kind` for programs, a `message` for users and a `detail` for engineers; `instead` are `load` options that would work, if any would. */
export class ModelError extends Error {
  constructor({ kind, message, detail = "", instead, images }, where = "") {
    const meaning = !instead && FROM_ENGINE.includes(kind) ? `${KINDS[kind][0].slice(0, -1)}: ` : "";
    super(`${meaning}${message}${where.startsWith("rank") ? ` (${where})` : ""}`);
    Object.assign(this, { name: "ModelError", kind, detail, instead, ...(images && { images }) });
  }
}

/** @param {string} message */
export function abortError(message) {
  return new DOMException(message, "AbortError");
}
