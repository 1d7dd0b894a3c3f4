// What the page's URL asks for: ?model=URL or ?decoder=URL&encoder=URL, &template=, &ranks=, &build=, &tokens=. An impossible value is replaced by the nearest
// possible one, and a note says so.

import { MAX_RANKS } from "../llama3med/index.js";

const NAMES = ["model", "decoder", "encoder", "template", "ranks", "build", "tokens"];
const BUILDS = ["relaxed", "simd128"];

/**
 * @param {string} search  as in `location.search`
 * @param {string} base  the base of relative URLs in it
 * @param {string} ownModel  the manifest that opens by default
 * @returns {{ source: string|string[]|null, problem: string, ranks?: number, build?: string, template?: string, tokens?: number, notes: string[] }}
 *   `source` is the URL of a manifest or the URLs of a pair; null if there is none, for the reason in `problem`
 */
export function readQuery(search, base, ownModel) {
  const query = new URLSearchParams(search);
  const notes = [...query.keys()].map(misspelt).filter(Boolean);
  const text = (name) => query.get(name)?.trim() || undefined;
  const number = (name, most, otherwise) => {
    const value = text(name);
    if (value === undefined) return undefined;
    const nearest = Math.min(Math.max(Math.round(Number(value)), 1), most);
    if (Number.isNaN(nearest)) notes.push(`${name}=${value} in the address is not a number: ${otherwise}.`);
    else if (nearest !== Number(value)) notes.push(`${name}=${value} in the address: it must be a whole number from 1${most < Number.MAX_SAFE_INTEGER ? ` to ${most}` : " on"}; ${nearest} is used.`);
    return Number.isNaN(nearest) ? undefined : nearest;
  };
  const ranks = number("ranks", MAX_RANKS, "the page chooses");
  const tokens = number("tokens", Number.MAX_SAFE_INTEGER, "512 is used");
  let build = text("build");
  if (build && !BUILDS.includes(build)) {
    notes.push(`build=${build} in the address: there are only ${BUILDS.join(" and ")}; the page chooses.`);
    build = undefined;
  }
  const pair = ["decoder", "encoder"].filter(text);
  if (pair.length > 0 && text("model")) notes.push("model in the address is ignored, because decoder or encoder is given.");
  const wanted = pair.length > 0 ? pair.map((name) => [name, text(name)]) : [["model", text("model") ?? ownModel]];
  const problem = wanted.map(([name, address]) => problemOf(name, address, base)).find(Boolean) ?? "";
  const addresses = problem ? [] : wanted.map(([, address]) => new URL(address, base).href);
  const source = problem ? null : pair.length > 0 ? addresses : addresses[0];
  return { source, problem, ranks, build, template: text("template"), tokens, notes };
}

function problemOf(name, address, base) {
  if (!URL.canParse(address, base)) return `${name}=${address} in this page's address is not an address.`;
  const { protocol } = new URL(address, base);
  return /^https?:$/.test(protocol) ? null : `${name}=${address} in this page's address: it must begin with http: or https:, or be relative to the page.`;
}

/** A note about a parameter that nearly has one of our names; others may belong to anything else. */
function misspelt(name) {
  if (NAMES.includes(name)) return null;
  const letters = (word) => [...word].sort().join("");
  const isLike = (word, known) => distance(word, known) <= (known.length > 5 ? 2 : 1) || letters(word) === letters(known);
  const meant = NAMES.find((known) => isLike(name.toLowerCase(), known));
  return meant ? `${name} in the address means nothing to this page. Did you mean ${meant}?` : null;
}

/** Letters to change, add or leave out between two words. */
function distance(a, b) {
  let row = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) next.push(Math.min(row[j] + 1, next[j - 1] + 1, row[j - 1] + (a[i - 1] === b[j - 1] ? 0 : 1)));
    row = next;
  }
  return row[b.length];
}
