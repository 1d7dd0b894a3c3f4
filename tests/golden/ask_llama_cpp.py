"""Runs converted decoders in llama.cpp and saves its answers: llama_cpp.json, which the tests compare the engine with.

    .venv/bin/python tests/golden/ask_llama_cpp.py   # or: make golden; after make.py, from anywhere

The decoder is a checkpoint of make.py, converted by `quantize convert`; its concatenated chunks are the file that llama.cpp opens. The prompt is text
alone, tokenized by llama.cpp itself. As in the engine, keys and values are kept in f32, and ids that the tokenizer does not know are never chosen.
"""

import json
import re
import subprocess
import tempfile
from pathlib import Path

import llama_cpp
import numpy as np

FOLDER = Path(__file__).parent
N_STEPS = 24
GGML_F32 = 0
SYSTEM = "You are a helpful language and vision assistant. "
QUESTION = "Is there a bright spot in the upper left?"
CASES = [("clip-s2", "f32"), ("siglip", "f32"), ("optimus-s2", "f32"), ("optimus-s2", "f16"), ("optimus-s2", "q8_0"),
         ("optimus-s2", "q4_0"), ("optimus-s2", "q4_k")]


def convert(variant, dtype, folder):
    """decoder.gguf of a checkpoint."""
    command = ["cargo", "run", "--quiet", "-p", "quantize", "--", "convert", str(FOLDER / variant / "checkpoint"),
               "-o", str(folder / "model"), "--type", dtype]
    subprocess.run(command, check=True, cwd=FOLDER)
    manifest = json.loads((folder / "model" / "manifest.json").read_text())
    chunks = next(file for file in manifest["files"] if file["name"] == "decoder.gguf")["chunks"]
    decoder = folder / "decoder.gguf"
    decoder.write_bytes(b"".join((folder / "model" / chunk["path"]).read_bytes() for chunk in chunks))
    return decoder


def answer(decoder, n_known):
    """Ids of the prompt, ids of the greedy answer, and the margin of each over the second best."""
    llama = llama_cpp.Llama(str(decoder), n_ctx=256, n_threads=2, logits_all=True, verbose=False,
                            type_k=GGML_F32, type_v=GGML_F32)
    prompt = (f"<|start_header_id|>system<|end_header_id|>\n\n{SYSTEM}<|eot_id|>"
              f"<|start_header_id|>user<|end_header_id|>\n\n{QUESTION}<|eot_id|>"
              f"<|start_header_id|>assistant<|end_header_id|>\n\n")
    prompt_ids = llama.tokenize(prompt.encode(), add_bos=True, special=True)
    answer_ids, margins = [], []
    llama.eval(prompt_ids)
    for _ in range(N_STEPS):
        known = np.array(llama.scores[llama.n_tokens - 1][:n_known])
        best = np.argsort(known)[::-1]
        margins.append(round(float(known[best[0]] - known[best[1]]), 4))
        answer_ids.append(int(best[0]))
        llama.eval([answer_ids[-1]])
    return dict(prompt_ids=prompt_ids, answer_ids=answer_ids, margins=margins)


def main():
    """Every case."""
    cases = []
    for variant, dtype in CASES:
        tokenizer = json.loads((FOLDER / variant / "checkpoint" / "tokenizer.json").read_text())
        n_known = len(tokenizer["model"]["vocab"]) + len(tokenizer["added_tokens"])
        with tempfile.TemporaryDirectory() as folder:
            cases.append(dict(variant=variant, type=dtype) | answer(convert(variant, dtype, Path(folder)), n_known))
        print(f"{variant} {dtype}: {len(set(cases[-1]['answer_ids']))} different tokens, "
              f"smallest margin {min(cases[-1]['margins'])}")
    document = dict(llama_cpp_python=llama_cpp.__version__, question=QUESTION, cases=cases)
    text = json.dumps(document, indent=1)
    text = re.sub(r"\[[-\d., \n]+\]", lambda numbers: " ".join(numbers[0].split()), text)  # a list of numbers on one line
    (FOLDER / "llama_cpp.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
