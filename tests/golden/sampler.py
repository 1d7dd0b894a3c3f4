"""Writes sampler.json: which tokens Hugging Face's warpers keep, and their probabilities, for tests/tests/sampler.rs.

    .venv/bin/python tests/golden/sampler.py

The order of the warpers is that of `generate` itself: they come from the list that a model builds from its generation config.

    logits  two vocabularies of 160 tokens without equal values: one peaked, one flat
    cases   index of the logits, ids of the answer so far, options, and id and probability of every remaining token, in order of ids
"""

import json
from pathlib import Path

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
from transformers.generation.logits_process import LogitsProcessorList

N_TOKENS = 160
RECENT = [3, 70, 3, 12, 150, 99]
OPTIONS = [
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 40},
    {"temperature": 1.3, "top_p": 0.9},
    {"temperature": 1.0, "min_p": 0.05},
    # Here the order matters: with min-p first, top-p would have less probability to distribute, and keep fewer tokens.
    {"temperature": 1.0, "top_p": 0.9, "min_p": 0.1},
    {"temperature": 1.5, "top_p": 0.95, "min_p": 0.2},
    {"temperature": 0.8, "top_k": 60, "top_p": 0.8, "min_p": 0.02},
    {"temperature": 1.2, "top_k": 30, "top_p": 0.97, "min_p": 0.01, "repetition_penalty": 1.3},
    {"temperature": 0.2, "top_k": 5, "top_p": 0.5, "min_p": 0.5},
]


def make_logits(scale: float, seed: int) -> list[float]:
    values = scale * torch.randn(N_TOKENS, generator=torch.Generator().manual_seed(seed))
    rounded = [round(value, 6) for value in values.tolist()]
    assert len(set(rounded)) == N_TOKENS
    return rounded


def left(model: LlamaForCausalLM, logits: list[float], options: dict[str, float]) -> list[tuple[int, float]]:
    config = GenerationConfig(do_sample=True, **{"top_k": 0, "top_p": 1.0, **options})
    warpers = model._get_logits_processor(config, input_ids_seq_length=len(RECENT), logits_processor=LogitsProcessorList())
    probabilities = warpers(torch.tensor([RECENT]), torch.tensor([logits])).softmax(dim=-1)[0]
    return [(id, round(p, 8)) for id, p in enumerate(probabilities.tolist()) if p > 0]


def main() -> None:
    config = LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=N_TOKENS)
    model = LlamaForCausalLM(config)
    logits = [make_logits(3.0, 1), make_logits(1.0, 2)]
    cases = [
        {"logits": idx, "recent": RECENT, "options": options, "left": left(model, logits[idx], options)}
        for idx in range(len(logits))
        for options in OPTIONS
    ]
    path = Path(__file__).with_suffix(".json")
    path.write_text(json.dumps({"logits": logits, "cases": cases}, separators=(",", ":")) + "\n")
    print(path.name, [len(case["left"]) for case in cases])


if __name__ == "__main__":
    main()
