"""Writes ggml.json: ids of texts under the real Llama-3, Llama-2 and Mistral vocabularies, from llama.cpp with a GGUF file.

    npm ci && node tests/golden/llama3-vocabulary.mjs && node tests/golden/sentencepiece-vocabularies.mjs && python tests/golden/ggml.py

The vocabularies are written as llama.cpp's converters write them (`tokenizer.ggml.*`), into temporary files. The ids in
text.json and pieces.json for the same texts are a second reference.
"""

import json
import tempfile
from pathlib import Path

import gguf
import llama_cpp
import sentencepiece
from text import CORPUS, random_texts

HERE = Path(__file__).parent
TARGET = HERE / "../../target"
NORMAL, UNKNOWN, CONTROL, BYTE = (int(kind) for kind in (
    gguf.TokenType.NORMAL, gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.BYTE))


def add_llama3(writer, pre):
    """Byte-level BPE with merges; `pre` names the rule by which text is split into words."""
    document = json.loads((TARGET / "llama3-tokenizer.json").read_text())
    tokens = sorted(document["model"]["vocab"], key=document["model"]["vocab"].get)
    added = [token["content"] for token in document["added_tokens"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens + added)
    writer.add_token_types([NORMAL] * len(tokens) + [CONTROL] * len(added))
    writer.add_token_merges(document["model"]["merges"])
    writer.add_bos_token_id(128000)
    writer.add_eos_token_id(128009)


def add_sentencepiece(writer, name):
    """SentencePiece's BPE with scores."""
    model = sentencepiece.SentencePieceProcessor(model_file=str(TARGET / f"{name}-tokenizer.model"))
    ids = range(model.vocab_size())
    kinds = [UNKNOWN if model.is_unknown(i) else CONTROL if model.is_control(i) else BYTE if model.is_byte(i) else NORMAL for i in ids]
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([model.id_to_piece(i) for i in ids])
    writer.add_token_scores([model.get_score(i) for i in ids])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def llama_cpp_ids(name, texts, folder, pre="llama-bpe"):
    """llama.cpp's ids of each text: without the begin token, and with control tokens as text."""
    path = Path(folder) / f"{name}.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    if name == "llama3":
        add_llama3(writer, pre)
    else:
        add_sentencepiece(writer, name)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    llama = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    return [llama.tokenize(text.encode(), add_bos=False, special=False) if text else [] for text in texts]


def main():
    texts = list(dict.fromkeys(CORPUS + random_texts(100, seed=3)))
    with tempfile.TemporaryDirectory() as folder:
        ids = {name: llama_cpp_ids(name, texts, folder) for name in ("llama3", "llama2", "mistral")}
    others = {case["text"]: case for case in json.loads((HERE / "pieces.json").read_text())}
    others |= {case["text"]: others.get(case["text"], {}) | {"llama3": case["ids"]} for case in json.loads((HERE / "text.json").read_text())["texts"]}
    for name, found in ids.items():
        known = [(text, some, others[text][name]) for text, some in zip(texts, found) if name in others.get(text, {})]
        different = [text for text, some, other in known if some != other]
        print(f"{name}: llama.cpp gives other ids than the library of the vocabulary for {len(different)} of {len(known)} texts: {different[:5]!r}")
    cases = [dict(text=text) | {name: found[i] for name, found in ids.items()} for i, text in enumerate(texts)]
    (HERE / "ggml.json").write_text("[\n" + ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases) + "\n]\n")


if __name__ == "__main__":
    main()
