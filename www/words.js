// Numbers and errors in plain words. Every error says what happened and the one thing to do next; the engine's own sentence folds out.

/** `bytes` as people read it: "3.2 MB". */
export function bytesText(bytes) {
  const units = ["bytes", "kB", "MB", "GB"];
  const unitIdx = bytes < 1000 ? 0 : Math.min(3, Math.floor(Math.log10(bytes) / 3));
  const value = bytes / 1000 ** unitIdx;
  return `${value < 10 && unitIdx > 0 ? value.toFixed(1) : Math.round(value)} ${units[unitIdx]}`;
}

/** `seconds` as a duration that is left: "40 s left", "3 min left"; nothing when unknown. */
export function leftText(seconds) {
  if (!Number.isFinite(seconds)) return "";
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s left`;
  return `${Math.round(seconds / 60)} min left`;
}

/** Milliseconds with a sensible number of digits: "85 ms", "3.2 s". */
export function timeText(ms) {
  if (!Number.isFinite(ms)) return "–";
  return ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(ms < 10000 ? 1 : 0)} s`;
}

/** One line for a progress object of the client: what is going on and how long it will take. */
export function progressText(progress) {
  const left = leftText(progress.secondsLeft);
  const parts = {
    loading: () => [
      `Loading the model: ${bytesText(progress.done)} of ${bytesText(progress.total)}`,
      progress.bytesPerSecond ? `${bytesText(progress.bytesPerSecond)}/s` : "",
      left,
    ],
    encoding: () => [`Encoding the image: tile ${Math.min(progress.done + 1, progress.total)} of ${progress.total}`, left],
    reading: () => ["Reading the image and the question", left],
    answering: () => ["Answering", progress.tokensPerSecond ? `${progress.tokensPerSecond.toFixed(1)} tokens/s` : ""],
  }[progress.stage];
  return parts ? parts().filter(Boolean).join(" · ") : "";
}

// What a message of the engine, the loader or the browser means to the person in front of the page. The first match is taken.
const CAUSES = [
  [/out of memory|not enough memory|memory limit|allocat|RangeError/i, "The memory of this browser is not enough.", "Close other tabs and programs, then load the model again."],
  [/context (is )?full|does not fit the context|context length/i, "The conversation has become too long for the model.", "Open the image again to start afresh."],
  [/quota/i, "There is no room on this disk for the model.", "Free some space, then load the model again."],
  [/sha-?256|hash|checksum/i, "A part of the model arrived damaged, twice.", "Load the model again; if that does not help, tell the owner of this page."],
  [/status 40[34]|HTTP 40[34]|not found|\b404\b/i, "A file of the model is not at its place.", "Check the address, or tell the owner of this page."],
  [/Content Security Policy|violat/i, "This page is not allowed to fetch from the model's host.", "Ask the owner of this page to add the host when the site is assembled."],
  [/rank|worker/i, "A part of the model stopped.", "Load the model again."],
  [/fetch|network|connection|offline|load failed|HTTP|status \d/i, "The model could not be fetched.", "Check the network connection, then load the model again."],
  [/manifest|gguf|tensor|config|tokenizer|format/i, "The model's files do not make sense together.", "Tell the owner of this page; the details below name the file."],
];

/** An error as `{ title, next, details }`; `stage` is "load", "image" or "answer". */
export function explain(error, stage) {
  const details = error instanceof Error ? `${error.name}: ${error.message}` : String(error);
  if (stage === "image" && !/memory|allocat|rank|worker/i.test(details)) {
    return { title: "This picture could not be read.", next: "Save it as PNG or JPEG and open that.", details };
  }
  const cause = CAUSES.find(([pattern]) => pattern.test(details));
  if (cause) return { title: cause[1], next: cause[2], details };
  const title = stage === "load" ? "The model could not be loaded." : "The answer broke off.";
  return { title, next: "Load the model again.", details };
}

/** Why a file cannot be opened as an image, before the model sees it; null when nothing speaks against it. */
export async function refusal(file) {
  const start = new Uint8Array(await file.slice(0, 132).arrayBuffer());
  const isDicom = /\.(dcm|dicom)$/i.test(file.name ?? "") || String.fromCharCode(...start.slice(128)) === "DICM";
  if (isDicom) {
    const title = "This is a DICOM file; DICOM is not read yet.";
    return { title, next: "Export the picture as PNG in your viewer and open that.", details: "DICOM (DICM prefix or .dcm name)" };
  }
  if (start.length === 0) {
    return { title: "This file is empty.", next: "Open another one.", details: "0 bytes" };
  }
  return null;
}

/** Shows an explained error inside `place`, with an optional button `{ label, run }`; returns the element. */
export function showError(place, { title, next, details }, action) {
  const box = document.createElement("div");
  box.className = "error";
  box.setAttribute("role", "alert");
  const heading = document.createElement("strong");
  heading.textContent = title;
  const advice = document.createElement("span");
  advice.textContent = next;
  const fold = document.createElement("details");
  const summary = document.createElement("summary");
  summary.textContent = "Details";
  const text = document.createElement("pre");
  text.textContent = details;
  fold.append(summary, text);
  box.append(heading, advice, fold);
  if (action) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = action.label;
    button.addEventListener("click", action.run);
    box.append(button);
  }
  place.replaceChildren(box);
  box.scrollIntoView({ block: "nearest" });
  return box;
}
