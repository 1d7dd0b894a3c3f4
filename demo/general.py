"""General conversation for the second demo model: answers of its base to general prompts, so that it stays able to talk (self-distillation).

    python demo/general.py target/real            # answers the questions in demo/general.jsonl that have no answer yet; can be interrupted
    python demo/general.py target/real --again    # answers all of them anew

Each line of the file is one conversation: a list of [question, answer].
"""

import json
import re
import sys
import zlib
from pathlib import Path

PATH = Path(__file__).parent / "general.jsonl"
N_TOKENS, TOGETHER = 80, 32
TEMPERATURE, TOP_P = 0.5, 0.9


def conversations():
    """Those that have been answered."""
    found = [[tuple(turn) for turn in json.loads(line)] for line in PATH.read_text().splitlines()]
    return [turns for turns in found if all(answer for _, answer in turns)]


def whole(text):
    """An answer that was cut off, up to its last whole sentence or line."""
    ends = [match.end() for match in re.finditer(r"[.!?:](?=\s|$)|[^\s\d](?=\n)", text)]
    return text[:ends[-1]].strip() if ends else text.strip()


def answers(llama, tokenizer, dialogues):
    """The base's answers to dialogues that end in a question, with its own system text."""
    import torch

    system = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    ask = lambda question: f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    prompts = [system + "".join(ask(question) + (f"{answer}<|im_end|>\n" if answer else "") for question, answer in turns) for turns in dialogues]
    ids = [tokenizer.encode(prompt, add_special_tokens=False).ids for prompt in prompts]
    longest, end = max(map(len, ids)), tokenizer.token_to_id("<|im_end|>")
    batch = torch.tensor([[end] * (longest - len(row)) + row for row in ids])
    seen = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in ids])
    written = llama.generate(input_ids=batch, attention_mask=seen, max_new_tokens=N_TOKENS, do_sample=True, temperature=TEMPERATURE, top_p=TOP_P, top_k=0,
                             eos_token_id=end, pad_token_id=end)[:, longest:].tolist()
    texts = [tokenizer.decode(row[:row.index(end)] if end in row else row) for row in written]
    return [text.strip() if end in row else whole(text) for text, row in zip(texts, written)]


def main():
    import torch

    from smollm2 import llama_of, tokenizer_of, unpack

    _, reader = unpack(Path(sys.argv[1]))
    llama, tokenizer = llama_of(reader), tokenizer_of(reader)
    found = [json.loads(line) for line in PATH.read_text().splitlines()]
    if "--again" in sys.argv:
        found = [[[question, ""] for question, _ in turns] for turns in found]
    for turn_idx in range(max(map(len, found))):
        asked = sorted((turns for turns in found if len(turns) > turn_idx and not turns[turn_idx][1]), key=lambda turns: len(turns[turn_idx][0]))
        for first in range(0, len(asked), TOGETHER):
            part = asked[first:first + TOGETHER]
            torch.manual_seed(zlib.crc32(part[0][turn_idx][0].encode()))
            with torch.inference_mode():
                for turns, answer in zip(part, answers(llama, tokenizer, [turns[:turn_idx + 1] for turns in part])):
                    turns[turn_idx][1] = answer
            PATH.write_text("".join(json.dumps(turns, ensure_ascii=False) + "\n" for turns in found))
            print(f"turn {turn_idx + 1}: {first + len(part)} of {len(asked)}", flush=True)


if __name__ == "__main__":
    main()
