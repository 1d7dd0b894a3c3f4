"""Writes pieces.json: ids of text.py's corpus under the real Llama-2 and Mistral vocabularies, from Google's sentencepiece.

    npm ci && node tests/golden/sentencepiece-vocabularies.mjs && python tests/golden/pieces.py

The ids of llama-tokenizer-js and mistral-tokenizer-js are a second reference.
"""

import json
import subprocess
from pathlib import Path

import sentencepiece
from text import CORPUS, random_texts

HERE = Path(__file__).parent


def main():
    texts = list(dict.fromkeys(CORPUS + random_texts(100, seed=3)))
    script = ["node", str(HERE / "sentencepiece-vocabularies.mjs"), "--encode"]
    answer = subprocess.run(script, input=json.dumps(texts), capture_output=True, text=True, check=True)
    others, cases = json.loads(answer.stdout), [{"text": text} for text in texts]
    for name in ("llama2", "mistral"):
        processor = sentencepiece.SentencePieceProcessor(model_file=str(HERE / f"../../target/{name}-tokenizer.model"))
        different = []
        for case, other in zip(cases, others[name]):
            case[name] = processor.encode(case["text"])
            if case[name] != other:
                different.append(case["text"])
        print(f"{name}-tokenizer-js gives other ids for {len(different)} of {len(cases)} texts: {different[:5]!r}")
    (HERE / "pieces.json").write_text("[\n" + ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases) + "\n]\n")


if __name__ == "__main__":
    main()
