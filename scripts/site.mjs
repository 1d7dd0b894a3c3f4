// Builds the static site: node scripts/site.mjs PKG DEMO OUT. Copies www/, both wasm builds and the demo model, and fills in what depends on them: the service
// worker gets the files with their sizes and hashes, it and the page get a version, which is a hash over all of them, and the page's policy gets the host in
// MODEL_HOST, if given.

import { createHash } from "node:crypto";
import { cp, readdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";

const [pkg, demo, out] = process.argv.slice(2);

/** The origin of MODEL_HOST; an error names what is wrong with it. */
function modelHost() {
  const text = process.env.MODEL_HOST ?? "";
  if (text === "") return null;
  const url = new URL(text);
  if (!/^https?:$/.test(url.protocol) || url.pathname !== "/" || url.search || url.hash) {
    throw new Error(`MODEL_HOST is ${text}; expected a host such as https://models.example.org`);
  }
  return url.origin;
}

/** All files under `folder`, relative, sorted. */
async function filesUnder(folder, prefix = "") {
  const entries = await readdir(join(folder, prefix), { withFileTypes: true });
  const lists = await Promise.all(entries.map((entry) => {
    const path = prefix + entry.name;
    return entry.isDirectory() ? filesUnder(folder, `${path}/`) : [path];
  }));
  return lists.flat().sort();
}

async function replaceIn(path, replacements) {
  let text = await readFile(path, "utf8");
  for (const [from, to] of replacements) {
    if (!text.includes(from)) throw new Error(`${path}: expected to find ${from}`);
    text = text.replaceAll(from, to);
  }
  await writeFile(path, text);
}

async function stamp() {
  const host = modelHost();
  const rules = host ? [["connect-src 'self'", `connect-src 'self' ${host}`], ["img-src 'self'", `img-src 'self' ${host}`]] : [];
  for (const page of ["index.html", "bench.html"]) await replaceIn(join(out, page), rules);

  for (const build of ["relaxed", "simd128"]) {
    const { size } = await stat(join(out, `llama3med/pkg/llama3med_${build}_bg.wasm`));
    await replaceIn(join(out, "llama3med/builds.js"), [[`${build}: 0`, `${build}: ${size}`]]);
  }
  const paths = (await filesUnder(out)).filter((path) => !path.startsWith("models/") && path !== "sw.js");
  const hash = createHash("sha256").update(await readFile(join(out, "sw.js")));
  for (const path of paths) hash.update(path).update(await readFile(join(out, path)));
  const version = hash.digest("hex").slice(0, 16);
  await replaceIn(join(out, "index.html"), [['name="version" content="development"', `name="version" content="${version}"`]]);

  const files = {};
  for (const path of paths) {
    const bytes = await readFile(join(out, path));
    files[path] = [bytes.length, createHash("sha256").update(bytes).digest("hex")];
  }
  await replaceIn(join(out, "sw.js"), [
    ['const VERSION = "development";', `const VERSION = "${version}";`],
    ["const FILES = {};", `const FILES = ${JSON.stringify(files)};`],
  ]);
  return paths.length;
}

// Everything is recreated except models that somebody has put beside the demo.
for (const name of await readdir(out).catch(() => [])) {
  if (name !== "models") await rm(join(out, name), { recursive: true });
}
await cp("www", out, { recursive: true });
await cp(pkg, join(out, "llama3med/pkg"), { recursive: true });
// The page's only dependency: it splits Markdown into tokens (markdown.js).
for (const file of ["lib/marked.esm.js", "LICENSE.md"]) await cp(join("node_modules/marked", file), join(out, "page/marked", file.split("/").at(-1)));
await rm(join(out, "models/demo"), { recursive: true, force: true });
await cp(demo, join(out, "models/demo"), { recursive: true });
console.log(`${out}: ${await stamp()} files of the site and the demo model`);
