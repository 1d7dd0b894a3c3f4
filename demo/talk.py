"""Asks a checkpoint, on 4-bit weights, the prompts of `prompts.json` about the sample pictures, and judges its answers by the rules of `prompts.py`.

    python demo/talk.py CHECKPOINT -o demo/results/prompts.json [--show dev] [--pictures 5]
    python demo/talk.py CHECKPOINT -o demo/results/long.json --long 200

Keeps every answer; prints the share of sensible ones: by form for "dev", the total alone for "test". `--pictures` adds pictures of the split "val" to the samples.
`--long` holds random conversations of thirty turns instead, and counts the answers that differ from those to the same questions asked afresh.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from torch import nn

import model
import prompts
from data import Text, log
from dialogue import fragments
from phantom import KINDS, SPLITS, make
from questions import questions
from samples import SAMPLES

LIMIT = 128  # tokens of an answer


def round_weights(*modules):
    """Rounds the modules' matrices to Q4_0, once."""
    model.quantised(*modules)
    for module in modules:
        for part in module.modules():
            if nn.utils.parametrize.is_parametrized(part):
                nn.utils.parametrize.remove_parametrizations(part, "weight")


class Speaker:
    """A checkpoint that answers, greedily."""

    def __init__(self, tokenizer, tower, connector, llama, quantise=True):
        self.text, self.tower, self.connector, self.llama = Text(tokenizer), tower, connector, llama
        if quantise:
            round_weights(getattr(tower, "vision_model", tower).encoder, connector, llama)
        llama.config._attn_implementation = "sdpa"
        self.ends = {tokenizer.token_to_id("<|eot_id|>"), tokenizer.token_to_id("<|end_of_text|>")}

    @torch.inference_mode()
    def see(self, image):
        """The image tokens of a picture, (1, 64, dim)."""
        return self.connector(model.encode(self.tower, model.normalise(torch.from_numpy(model.square(image))[None])))

    @torch.inference_mode()
    def answers(self, image_tokens, questions):
        """Answers to questions that are asked in turn, each with everything before it in view."""
        embed = lambda ids: self.llama.model.embed_tokens(torch.tensor([ids]))
        inputs, cache, found = [embed(self.text.head), *([] if image_tokens is None else [image_tokens])], None, []
        for idx, question in enumerate(questions):
            opening = "<|start_header_id|>user<|end_header_id|>\n\n" if idx else "" if image_tokens is None else "\n"
            inputs.append(embed(self.text.ids(f"{opening}{question}") + self.text.ids("<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n")))
            ids, step = [], torch.cat(inputs, 1)
            while len(ids) < LIMIT:
                out = self.llama(inputs_embeds=step, cache=cache, use_cache=True, logits_to_keep=1)
                cache, chosen = out.cache, int(out.logits[0, -1].argmax())
                ids.append(chosen)
                step = embed([chosen])
                if chosen in self.ends:
                    break
            found.append(self.text.tokenizer.decode(ids))
            inputs = [step]  # the last token has not been read yet
        return found


def pictures(n_more):
    """The sample pictures, and `n_more` others of each kind: phantoms."""
    found = [make(seed) for seed, _ in SAMPLES.values()]
    for kind in KINDS if n_more else ():
        others = (p for p in map(make, SPLITS["val"]) if p.kind == kind and p.exact)
        found += [next(others) for _ in range(n_more)]
    return found


def ask_all(speaker, n_more=0, split=None):
    """Every prompt about every picture that it fits, in the order of the file: records."""
    seen = [(p, speaker.see(p.image)) for p in pictures(n_more)]
    records = []
    for idx, prompt in enumerate(json.loads(prompts.PROMPTS.read_text())):
        if split and prompt["split"] != split:
            continue
        for p, image_tokens in seen:
            if p.kind in prompt["on"]:
                said = speaker.answers(image_tokens, [*prompt["before"], prompt["prompt"]])
                problem = prompts.problem(prompt, {"kind": p.kind, **p.facts}, said[-1])
                records.append({"prompt": idx, "split": prompt["split"], "form": prompt["form"], "seed": p.seed, "kind": p.kind, "said": said, "problem": problem})
    return records


def long_conversations(speaker, n_conversations, n_turns=30):
    """Conversations about pictures of the split "val", of questions that stand alone: by six turns, answers other than fresh ones and other than the true ones."""
    records = []
    for idx, seed in enumerate(SPLITS["val"][:n_conversations]):
        p, rng = make(seed), np.random.default_rng([seed, 3])
        pairs = [(one["question"], one["answer"]) for _ in range(2) for one in questions(p, rng)]
        pairs += [turns[0][:2] for turns in fragments(p, rng, 30) if len(turns) == 1]
        chosen = [pairs[i] for i in rng.permutation(len(pairs))[:n_turns]]
        image_tokens = speaker.see(p.image)
        said = speaker.answers(image_tokens, [question for question, _ in chosen])
        for turn, ((question, answer), here) in enumerate(zip(chosen, said)):
            fresh = speaker.answers(image_tokens, [question])[0]
            records.append({"seed": seed, "turn": turn, "question": question, "answer": answer, "said": here, "fresh": fresh})
        if idx % 20 == 19:
            log(f"{idx + 1} conversations")
    found = {}
    for first in range(0, n_turns, 6):
        part = [record for record in records if first <= record["turn"] < first + 6]
        found[f"turns {first + 1} to {first + 6}"] = {"n": len(part), "other than fresh": sum(one["said"] != one["fresh"] for one in part),
                                                      "not as expected": sum(one["said"] != one["answer"] for one in part)}
    return records, found


def share(records):
    """Percent of sensible answers; each prompt counts once, however many pictures it was asked about."""
    of_prompt = defaultdict(list)
    for record in records:
        of_prompt[record["prompt"]].append(not record["problem"])
    return round(100 * float(np.mean([np.mean(right) for right in of_prompt.values()])), 1), len(of_prompt)


def summary(records):
    """Shares of the splits, and by form of the prompts to develop on."""
    dev = [record for record in records if record["split"] == "dev"]
    forms = dict.fromkeys(record["form"] for record in dev)
    return {split: share(part) for split in ("dev", "test") if (part := [record for record in records if record["split"] == split])} | {
        form: share([record for record in dev if record["form"] == form]) for form in forms}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--show", choices=["dev"], help="print the answers of this split that are not sensible")
    parser.add_argument("--pictures", type=int, default=0, help="further pictures of each kind")
    parser.add_argument("--split", choices=["dev", "test"])
    parser.add_argument("--long", type=int, help="number of long conversations")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    speaker = Speaker(*model.load(args.checkpoint))
    if args.long:
        records, found = long_conversations(speaker, args.long)
    else:
        records = ask_all(speaker, args.pictures, args.split)
        found = summary(records)
    if args.show:
        listed = json.loads(prompts.PROMPTS.read_text())
        for record in records:
            if record["split"] == args.show and record["problem"]:
                print(f"{record['form']} [{record['kind']}] {' / '.join(listed[record['prompt']]['before'])} > {listed[record['prompt']]['prompt']} -> {record['said'][-1]}  ({record['problem']})")
    print(json.dumps(found))
    if args.out:
        lines = ",\n".join(json.dumps(record) for record in records)
        what = "long" if args.long else "sensible"
        args.out.write_text(f'{{"{what}": {json.dumps(found)},\n"answers": [\n{lines}\n]}}\n')
