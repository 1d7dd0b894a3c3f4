// The record of a conversation, for copying, saving and printing alike: the notice, when and by what it was answered, the model's own warnings, and a
// description of the picture, but not its name: file names often contain a person's name.

import { bytesText } from "./words.js";

/** Shown beside answers, and part of every text that leaves the page. */
export const NOTICE = "Research software. Not a medical device. Not for diagnosis or treatment.";

/** SHA-256 of a Blob or a text; null over plain http, where browsers cannot compute it. */
async function sha256(content) {
  if (!globalThis.crypto?.subtle) return null;
  const digest = await crypto.subtle.digest("SHA-256", await new Blob([content]).arrayBuffer());
  return Array.from(new Uint8Array(digest), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function hashText({ sha256: parts, headerSha256 }) {
  if (headerSha256) return `sha256 of its header ${headerSha256}`;
  if (!parts?.length) return "no hash is known";
  if (parts.length === 1) return `sha256 ${parts[0]}`;
  const all = await sha256(parts.join("\n"));
  return all ? `${parts.length} parts, sha256 of the lines of their sha256 ${all}` : `${parts.length} parts, sha256 of the first ${parts[0]}`;
}

/** A model, its warnings, and how it was run. */
export async function modelText(info, { tokens = 512, template }) {
  const files = await Promise.all((info.files ?? []).map(async (file) => `File: ${file.name}, ${bytesText(file.size)}, ${await hashText(file)}`));
  const settings = [
    `at most ${tokens} tokens an answer`, "always the likeliest token", `context of ${info.contextLength} tokens`,
    `template ${template ?? "as the model's file says"}`, `${info.ranks} rank${info.ranks === 1 ? "" : "s"}`, `build ${info.build}`,
  ];
  const warnings = (info.notices ?? []).map((notice) => `The model's own warning: ${notice}`);
  return [`Model: ${info.name}`, ...warnings, ...files, `Settings: ${settings.join(", ")}`].join("\n");
}

/** A picture, by its size and its hash; `frame` is the engine's description of it. */
export async function pictureText(file, frame) {
  if (!file) return "Picture: none";
  const hash = await sha256(file);
  return `Picture: ${frame ? `${frame.width} x ${frame.height} pixels, ` : ""}${bytesText(file.size)}, ${hash ? `sha256 ${hash}` : "sha256 not computed over plain http"}`;
}

const timeText = (ms) => new Date(ms).toLocaleString("sv-SE", { dateStyle: "short", timeStyle: "short" });

/** Everything but the turns. `record` is { models, picture } from the texts above; `entries` are the conversation's. */
export function headText({ models, picture }, entries, version) {
  const times = entries.map(({ at }) => at).filter(Boolean);
  const [first, last] = [timeText(Math.min(...times)), timeText(Math.max(...times))];
  const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
  const date = times.length > 0 ? `Date: ${first === last ? first : `${first} to ${last}`} (${zone})` : "";
  return [NOTICE, [date, ...models, picture, `Page: version ${version}`].filter(Boolean).join("\n")].join("\n\n");
}

/**
 * The whole conversation, with the notice first and last. Questions and answers are on lines of their own, so that their first letter determines the reading
 * direction.
 */
export function recordText(head, entries) {
  const turns = entries.map(({ divider, question, text, reason }) =>
    (divider ? `[${divider}]` : `You:\n${question}\n\nModel:\n${text.trim()}${reason ? `\n[${reason}]` : ""}`));
  return [head, ...turns, NOTICE].join("\n\n") + "\n";
}
