"""Trains the second demo model, which talks: SmolLM2-135M-Instruct learns to see with the bundled model's image encoder, by the paper's recipe.

    python demo/smollm2.py target/real    the base, once; see there
    python demo/chat.py data                 pictures, dense labels and facts of every split, and the frozen encoder's merged features
    python demo/chat.py connector            a new connector: words for what is in the cell of an image token, then captions through the frozen base
    python demo/chat.py instruct             connector and a LoRA adapter on conversations, with general conversation mixed in
    python demo/chat.py all                  all three; -o demo/chat is the folder of the adapter and the connector
    python demo/chat.py pace                 seconds per step of both trainings on 1 and 2 threads
    python demo/chat.py same                 that the converted model has the same logits
    python demo/chat.py talk                 five-turn conversations and sampled answers of a trained model, into demo/results/chat
    python demo/chat.py score ANSWERS.jsonl QUESTIONS.json    answers of `quantize eval` by their first sentence, into demo/results/chat

Every stage can be interrupted and continues. A step depends only on its number and the seed, so an interrupted run gives the same weights. The paper's first
stage needs many captions because its connector starts from nothing; here, every image token is first fitted to the base's own embeddings of the words for
what is in its cell, which costs no pass through the base.
"""

import argparse
import itertools
import json
import re
import subprocess
import time
from collections import defaultdict
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

import general
import model
import sentences
import train
from data import DEVICE, TEST_SIZES, TRAIN_SIZES, Batch, Data, log, make_data, typed
from phantom import LABELS, SPLITS, STRANGER, ZONES, distribution, make
from questions import NOUNS, PICTURES, questions
from report import THRESHOLDS, interval
from smollm2 import llama_of, tokenizer_of, unpack

SYSTEM = "You are a helpful assistant that looks at pictures."
USER, REPLY, END = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>"
ENCODER = Path(__file__).parent / "checkpoint"  # whose tower is used
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
RANK = 16
N_PICTURES = 4  # a step
GENERAL = 0.4  # general conversations for each picture: about a fifth of all tokens
SHARES = {"coarse": 0.3, "middle": 0.3, "fine": 0.4, "general": 0.1}  # how often a question is asked, by its scale
CHECK = 150  # steps between two looks at validation pictures


# ---- the model


class Text:
    """Conversations in ChatML, token by token, as `data.Batch` packs them."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.head = self.ids(f"<|im_start|>system\n{SYSTEM}<|im_end|>\n{USER}")

    @lru_cache(maxsize=100_000)
    def ids(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def turns(self, turns, has_image=True, rng=None):
        """Ids after the image (or after the head), and which of them belong to answers."""
        ids, is_answer = [], []
        for turn_idx, (question, answer) in enumerate(turns):
            opening = ("\n" if has_image else "") if turn_idx == 0 else f"\n{USER}"
            asked, answered = self.ids(f"{opening}{question}{REPLY}"), self.ids(f"{answer}{END}")
            ids += asked + answered
            is_answer += [False] * len(asked) + [True] * len(answered)
        return ids, is_answer


def make_connector(dim):
    """`mlp2x_gelu` to the base's width."""
    return nn.Sequential(nn.Linear(len(model.SCALES) * model.WIDTH, dim), nn.GELU(), nn.Linear(dim, dim))


def load_base(folder):
    """Tokenizer and frozen decoder, with the weights that `smollm2.py` writes."""
    _, reader = unpack(folder)
    return tokenizer_of(reader), llama_of(reader, in_f16=True).requires_grad_(False).to(DEVICE)


def adapted(llama):
    """Puts a LoRA adapter on every linear layer of the decoder; its embedding stays frozen."""
    llama.config.name_or_path = "SmolLM2-135M-Instruct"
    return get_peft_model(llama, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=TARGETS, task_type="CAUSAL_LM"))


def save(folder, tokenizer_folder, connector, peft=None):
    """Writes what was trained: the folder is a checkpoint for `quantize convert` that lacks only what --decoder, --encoder and --adapter add."""
    folder.mkdir(parents=True, exist_ok=True)
    base, encoder = json.loads((tokenizer_folder / "config.json").read_text()), json.loads((ENCODER / "config.json").read_text())
    dim = connector[2].out_features
    text = {key: base[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "rms_norm_eps",
                                       "max_position_embeddings", "vocab_size", "tie_word_embeddings", "rope_theta", "bos_token_id", "eos_token_id",
                                       "model_type", "hidden_act")}
    config = {**encoder, "llm_model_name_or_path": "SmolLM2-135M-Instruct", "tokenizer_name_or_path": "SmolLM2-135M-Instruct", "text_config": text,
              "hidden_size": dim, "vocab_size": base["vocab_size"], "pad_token": END, "pad_token_id": base["eos_token_id"],
              "tokenizer_model_max_length": base["max_position_embeddings"]}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "generation_config.json").write_text(json.dumps(dict(bos_token_id=base["bos_token_id"], eos_token_id=base["eos_token_id"])) + "\n")
    tokenizer = json.loads((tokenizer_folder / "tokenizer_config.json").read_text())
    template = re.sub(r"(?<=system\n).*?(?=<\|im_end\|>)", SYSTEM, tokenizer["chat_template"], count=1, flags=re.S)
    (folder / "tokenizer_config.json").write_text(json.dumps({**tokenizer, "chat_template": template}, indent=1) + "\n")
    named = {f"connector._connector.{name}": value.detach().half().cpu().contiguous() for name, value in connector.state_dict().items()}
    (folder / "connector").mkdir(exist_ok=True)
    save_file(named, folder / "connector/model.safetensors", metadata={"format": "pt"})
    if peft is not None:
        config = peft.peft_config["default"].to_dict() | {"base_model_name_or_path": "SmolLM2-135M-Instruct", "inference_mode": True, "target_modules": TARGETS}
        (folder / "adapter").mkdir(exist_ok=True)
        plain = {key: value for key, value in config.items() if isinstance(value, (str, int, float, bool, list, dict, type(None)))}
        (folder / "adapter/adapter_config.json").write_text(json.dumps(plain, indent=1, default=str) + "\n")
        adapter = {name: value.detach().half().cpu().contiguous() for name, value in get_peft_model_state_dict(peft).items()}
        save_file(adapter, folder / "adapter/adapter_model.safetensors", metadata={"format": "pt"})


def load(folder, base):
    """What `save` wrote, on its base: tokenizer, tower, connector and the adapted decoder, in f32."""
    tokenizer, llama = load_base(base)
    connector = make_connector(llama.config.hidden_size)
    named = load_file(folder / "connector/model.safetensors")
    connector.load_state_dict({name.removeprefix("connector._connector."): value.float() for name, value in named.items()})
    adapter = folder / "adapter/adapter_model.safetensors"
    if adapter.exists():
        peft = adapted(llama)
        set_peft_model_state_dict(peft, {name: value.float() for name, value in load_file(adapter).items()})
        llama = peft.merge_and_unload()
    return tokenizer, model.load(ENCODER)[1].to(DEVICE), connector.eval().to(DEVICE), llama.eval()


# ---- data


def make_features(work, sizes):
    """Everything that training needs of the pictures, in `train.py`'s own files; the tower is the bundled one on 4-bit weights."""
    make_data(work, sizes)
    if not (work / "encoder.pt").exists():
        torch.save({"tower": model.weights(model.load(ENCODER)[1])}, work / "encoder.pt")
    train.make_features(work, sizes)


def phrases(p):
    """What may be in a cell of a phantom: (label, its words, weight, quadrant of the picture or None). An image token is first fitted to these words."""
    if p.kind == STRANGER:
        return
    yield f"kind_{p.kind}", PICTURES[p.kind].split(" ", 1)[1], 0.3, None
    for name in ("lung", "heart", "spine", "skull", "brain", "ventricles", "gland", "nucleus", "field", "disc", "macula", "vessel"):
        yield name, name, 0.3, None
    for name, words, weight in (("cellular", "many cells", 0.5), ("pink", "pink", 0.7), ("heart_enlarged", "enlarged", 1), ("ventricles_enlarged", "enlarged", 1)):
        yield name, words, weight, None
    for name in ("effusion", "bleed", "haemorrhage"):
        yield name, f"{name} {p.facts.get(name)}", 1, None
    for name in ("middle", "fine"):
        noun, several = NOUNS[p.kind, name][0].removeprefix("a "), len(p.facts[name]) > 1
        for sign in p.facts[name][:1]:
            pattern = sign["pattern"] if sign["pattern"] != "checker" else "mottled" if (p.kind, name) == ("brain", "middle") else ""
            # Spots have one label for all; their quadrants are nearly the picture's. Zones are in reading order, the patient's right first.
            for quadrant, zone in enumerate(ZONES[p.kind]) if several else ((None, sign["zone"]),):
                yield f"{name}_{sign['pattern']}", f"{noun} {pattern} {zone}", 1.5, quadrant


class Words:
    """What an image token is at first fitted to: the base's own embeddings of the words for what is in its cell, added up."""

    def __init__(self, text, llama):
        self.text, self.table = text, llama.model.embed_tokens.weight.detach()

    @lru_cache(maxsize=10_000)
    def vector(self, phrase):
        ids = self.text.ids(" " + " ".join(phrase.split()))
        return self.table[ids].sum(0) / len(ids) ** 0.5

    def targets(self, phantoms, cells):
        """(n, 64, dim), from how much of each cell has a label (n, labels, 64, 64)."""
        out = torch.zeros(len(phantoms), model.GRID, model.GRID, self.table.shape[1], device=DEVICE)
        present = (F.adaptive_avg_pool2d(cells, model.GRID) > 0.1).float()
        labels, half = list(LABELS), model.GRID // 2
        for row, p in enumerate(phantoms):
            for name, words, weight, quadrant in phrases(p):
                here = present[row, labels.index(name)]
                if quadrant is not None:
                    mask = torch.zeros_like(here)
                    mask[quadrant // 2 * half:][:half, quadrant % 2 * half:][:, :half] = 1
                    here = here * mask
                out[row] += here[..., None] * weight * self.vector(words)
        return out.flatten(1, 2)


def captions(p, rng):
    """Reports of a picture, for the first stage."""
    speaker = sentences.Speaker(p, rng)
    if p.kind == STRANGER:
        return [([(sentences.draw(rng, sentences.DESCRIBE["short"]), speaker.description("short"))], True)]
    lengths = ("long", "medium") if p.exact else ()
    # An enlarged file shows no pattern, and a description would deny it; its coarse signs are asked for instead.
    asked = [one for one in questions(p, rng) if one["scale"] == "coarse"] if not p.exact else []
    return [([(sentences.draw(rng, sentences.DESCRIBE[length]), speaker.description(length))], True) for length in lengths] \
        + ([([(one["question"], speaker.answer(one)) for one in asked], True)] if asked else [])


def instructions(p, rng, others):
    """Conversations about a picture, of one to six turns, one without it now and then, and general ones."""
    share = lambda one: SHARES[one["scale"]]
    runs, out = sentences.pool(p, rng, share), []
    runs = [[(typed(question, rng), answer) for question, answer in run] for run in runs]
    while runs:
        n_turns, turns = int(rng.choice([1, 2, 3, 4, 5, 6], p=[0.25, 0.15, 0.15, 0.15, 0.15, 0.15])), []
        while runs and (not turns or len(turns) + len(runs[0]) <= n_turns):
            turns += runs.pop(0)
        if turns and rng.random() < 0.05:
            turns = [(sentences.draw(rng, ("Hello.", "Hi!", "Good morning.")), sentences.draw(rng, sentences.SAID["greeting"])), *turns][:6]
        out.append((turns, True))
    if rng.random() < 0.06:
        one = questions(p, rng)[rng.integers(6)]
        out.append(([(typed(one["question"], rng), sentences.draw(rng, sentences.SAID["nothing"]))], False))
    if others and rng.random() < GENERAL:
        out.append((sentences.draw(rng, others), bool(rng.random() < 0.5)))
    return out or captions(p, rng)


def batch_of(text, data, seed, step, of_picture):
    """The batch of a step: indices and packed conversations, a function of the seed and the step alone. Four steps share their pictures out by length."""
    rng = np.random.default_rng([seed, step // 4])
    several = [(idx, of_picture(data.phantoms[idx], rng)) for idx in rng.integers(0, len(data.phantoms), 4 * N_PICTURES)]
    several.sort(key=lambda one: sum(len(text.turns(turns, has_image)[0]) for turns, has_image in one[1]))
    first = rng.permutation(4)[step % 4] * N_PICTURES
    idxs, of_pictures = zip(*several[first:first + N_PICTURES])
    return idxs, Batch(text, of_pictures)


# ---- training


class Run(train.Run):
    """`train.Run` for parameters of a frozen model: nothing is quantised, and everything is saved every `every` steps."""

    def __init__(self, path, modules, n_steps, seed, rate, warm_up, every):
        super().__init__(path, modules, [], n_steps, seed, rate, warm_up, 0.03, 0.98, 0.0)
        self.every = every

    def step(self, loss):
        super().step(loss)
        if self.n_done % self.every == 0:
            self.keep()


def answers_loss(batch, llama, image_tokens):
    """Mean cross-entropy of the answers' tokens."""
    logits, targets = batch.run(llama, image_tokens)
    return F.cross_entropy(logits.float(), targets)


def fit_words(data, features, words, connector, n_steps, seed):
    """Fits image tokens to `Words`; returns the share of their variance that is explained."""
    train.standardise(connector, train.picked(features, range(min(400, len(features))), slice(None)))
    optimiser = torch.optim.AdamW(connector.parameters(), lr=1e-3, weight_decay=0.0)
    explained = 0.0
    for step in range(n_steps):
        rng = np.random.default_rng([seed, 0, step])
        idxs = rng.integers(0, len(data.phantoms), 16)
        targets = words.targets([data.phantoms[idx] for idx in idxs], data.cells(idxs))
        loss = F.mse_loss(connector(train.picked(features, idxs, slice(None))), targets)
        for group in optimiser.param_groups:
            group["lr"] = 1e-3 * min(1, (step + 1) / 50) * (1 - 0.95 * step / n_steps)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        explained += (1 - loss.item() / targets.var().item() - explained) * max(0.02, 1 / (step + 1))
        if (step + 1) % 250 == 0:
            log(f"words: step {step + 1}, {explained:.3f} of the variance explained")
    return explained


@torch.inference_mode()
def sees(text, llama, connector, work, n_pictures=32):
    """Percent of closed questions about validation pictures to which the right one of yes and no is likelier, and their number, by scale."""
    val, features, hits = Data(work, "val"), np.load(work / "val.features.npy", mmap_mode="r"), defaultdict(list)
    yes, no = (text.ids(word)[0] for word in ("Yes", "No"))
    for first in range(0, min(n_pictures, len(val.phantoms)), N_PICTURES):
        idxs = range(first, first + N_PICTURES)
        asked = [questions(val.phantoms[idx], np.random.default_rng(idx)) for idx in idxs]
        found = [[one for one in of_picture if one["answer"] in ("Yes.", "No.") and one["scale"] != "general"] for of_picture in asked]
        if any(found):
            batch = Batch(text, [[([(one["question"], one["answer"])], True) for one in of_picture] for of_picture in found])
            with train.mixed():
                logits, _ = batch.run(llama, connector(train.picked(features, idxs, slice(None))))
            logits = logits.view(-1, len(text.ids(f"Yes.{END}")), logits.shape[-1])[:, 0]
            for one, is_yes in zip(itertools.chain(*found), (logits[:, yes] > logits[:, no]).tolist()):
                hits[one["scale"]].append(is_yes == (one["answer"] == "Yes."))
    return {scale: [round(100 * sum(right) / len(right), 1), len(right)] for scale, right in sorted(hits.items())}


def fit(name, run, text, data, features, llama, connector, of_picture, seed, n_steps, hint=None, check=None):
    """Steps of a stage; logs the loss, seconds per step and now and then what `check` finds. Returns the last running loss."""
    running, started, spent = None, time.time(), time.process_time()
    llama.config.use_cache = False
    for _ in run:
        if check and run.n_done % CHECK == 0 and run.n_done:
            log(f"{name}: step {run.n_done}", check())
        idxs, batch = batch_of(text, data, seed, run.n_done, of_picture)
        with train.mixed():
            image_tokens = connector(train.picked(features, idxs, slice(None)))
            loss = answers_loss(batch, llama, image_tokens)
            extra = 0.0 if hint is None else hint(idxs, image_tokens)
        run.step(loss + extra)
        running = loss.item() if running is None else running + (loss.item() - running) * 0.05
        if run.n_done % 10 == 0 or run.n_done == n_steps:
            done = run.n_done - run.first
            log(f"{name}: step {run.n_done} of {n_steps}, loss {running:.4f}, {(time.time() - started) / done:.2f} s a step, "
                f"{(time.process_time() - spent) / done:.2f} s of processor time, {batch.ids.numel()} tokens in the last one")
    run.keep()
    if check:
        log(f"{name}: step {run.n_done}", check())
    return running


def train_connector(args):
    """First stage: only the connector, on reports, through the frozen base."""
    torch.manual_seed(args.seed)
    tokenizer, llama = load_base(args.base)
    text, data = Text(tokenizer), Data(args.work, "train")
    features = np.load(args.work / "train.features.npy", mmap_mode="r")
    connector, words = make_connector(llama.config.hidden_size).to(DEVICE), Words(text, llama)
    state = args.work / f"connector-{args.seed}.pt"
    if not state.exists():
        fit_words(data, features, words, connector, args.word_steps, args.seed)
    run = Run(state, connector, args.connector_steps, args.seed, args.connector_rate, 20, args.every)
    wanted = lambda idxs: words.targets([data.phantoms[idx] for idx in idxs], data.cells(idxs))
    hint = lambda idxs, tokens: F.mse_loss(tokens.float(), wanted(idxs)) * args.words / words.table.var()
    fit("connector", run, text, data, features, llama, connector, captions, args.seed, args.connector_steps, hint if args.words else None,
        lambda: sees(text, llama, connector, args.work))
    save(args.out, args.base / "base", connector)


def train_instruct(args):
    """Second stage: connector and adapter, on conversations."""
    torch.manual_seed(args.seed)
    tokenizer, llama = load_base(args.base)
    text, data = Text(tokenizer), Data(args.work, "train")
    features = np.load(args.work / "train.features.npy", mmap_mode="r")
    connector = make_connector(llama.config.hidden_size).to(DEVICE)
    connector.load_state_dict(torch.load(args.work / f"connector-{args.seed}.pt", weights_only=False, map_location=DEVICE)["modules"])
    peft = adapted(llama)
    trainable = nn.ModuleDict({"connector": connector, "adapter": nn.ParameterList(part for part in peft.parameters() if part.requires_grad)})
    others = general.conversations()
    run = Run(args.work / f"instruct-{args.seed}.pt", trainable, args.instruct_steps, args.seed, args.rate, 20, args.every)
    of_picture = lambda p, rng: instructions(p, rng, others)
    fit("instruct", run, text, data, features, llama, connector, of_picture, args.seed, args.instruct_steps,
        check=lambda: sees(text, llama, connector, args.work))
    save(args.out, args.base / "base", connector, peft)


def pace(args):
    """Seconds per step of both trainings, on 1 and 2 threads, and how many tokens a step has; nothing is kept."""
    tokenizer, llama = load_base(args.base)
    text, data, others = Text(tokenizer), Data(args.work, "train"), general.conversations()
    features = np.load(args.work / "train.features.npy", mmap_mode="r")
    connector = make_connector(llama.config.hidden_size).to(DEVICE)
    found = {}
    for stage, of_picture in (("connector", captions), ("instruct", lambda p, rng: instructions(p, rng, others))):
        trainable = list(connector.parameters())
        if stage == "instruct":
            trainable += [part for part in adapted(llama).parameters() if part.requires_grad]
        for n_threads in (1, 2):
            torch.set_num_threads(n_threads)
            steps = []
            for step in range(args.pace_steps):
                idxs, batch = batch_of(text, data, args.seed, step, of_picture)
                wall, processor = time.time(), time.process_time()
                with train.mixed():
                    loss = answers_loss(batch, llama, connector(train.picked(features, idxs, slice(None))))
                loss.backward()
                for part in trainable:
                    part.grad = None
                steps.append((time.time() - wall, time.process_time() - processor, batch.ids.numel(), int(batch.answers.sum())))
            mean = np.mean(steps[1:], 0).round(2).tolist()
            found[f"{stage}, {n_threads} threads"] = dict(zip(("seconds", "processor_seconds", "tokens", "answer_tokens"), mean))
            log(f"{stage}, {n_threads} threads", found[f"{stage}, {n_threads} threads"])
    return found


# ---- evaluation


def score(answers, records, kept):
    """Percent right by split's columns, for answers of `quantize eval -o` to the questions of a file of `generate.py`."""
    found, wrong = defaultdict(list), []
    truth = {record["id"]: record for record in json.loads(records.read_text())}
    for line in answers.read_text().splitlines():
        said = json.loads(line)
        record = truth[said["question_id"]]
        one = {**record, "id": record["id"].split("-", 1)[1], "answer": record["conversations"][1]["value"]}
        if one["scale"] not in ("coarse", "middle", "fine"):
            continue
        right = sentences.is_right(one, record["kind"], said["text"])
        found[f"{one['scale']} {one['answer_type']}"].append(right)
        if not right:
            wrong.append({"id": record["id"], "question": said["prompt"], "expected": one["answer"], "said": said["text"]})
    columns = {name: [round(100 * sum(hits) / len(hits), 2), len(hits)] for name, hits in sorted(found.items())}
    met = {what: {"percent": columns[f"{scale} {kind}"][0], "half_interval": round(interval(*columns[f"{scale} {kind}"]), 2), "threshold": threshold,
                  "met": columns[f"{scale} {kind}"][0] >= threshold}
           for what, scale, kind, arm, _, threshold in THRESHOLDS if arm == "all" and f"{scale} {kind}" in columns}
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps({"questions": records.name, "columns": columns, "thresholds": met, "wrong": wrong[:100]}, indent=1) + "\n")
    log(kept, columns)


class Speaker:
    """A trained model that answers in a conversation."""

    def __init__(self, folder, base):
        self.tokenizer, self.tower, self.connector, self.llama = load(folder, base)
        self.text, self.end = Text(self.tokenizer), self.tokenizer.token_to_id(END)
        self.llama.config._attn_implementation = "sdpa"

    @torch.inference_mode()
    def see(self, image):
        """Image tokens (1, 64, dim) of a picture (height, width, 3)."""
        pixels = model.normalise(torch.from_numpy(np.array(model.square(image)))[None]).to(DEVICE)
        return self.connector(model.encode(self.tower, pixels))

    @torch.inference_mode()
    def answers(self, image_tokens, asked, temperature=0.0, top_p=1.0, seed=0, limit=128):
        """Answers to questions asked in turn, and whether each ended by itself; a question may be a function of the answers so far."""
        generator = torch.Generator().manual_seed(seed)
        embed = lambda ids: self.llama.model.embed_tokens(torch.tensor([ids], device=DEVICE))
        inputs, cache, found = [embed(self.text.head), *([] if image_tokens is None else [image_tokens])], None, []
        for turn_idx, question in enumerate(asked):
            opening = ("\n" if image_tokens is not None else "") if turn_idx == 0 else f"\n{USER}"
            inputs.append(embed(self.text.ids(f"{opening}{question}{REPLY}")))
            ids, ended = [], False
            while len(ids) < limit:
                out = self.llama(inputs_embeds=torch.cat(inputs, 1), past_key_values=cache, use_cache=True, logits_to_keep=1)
                cache, logits = out.past_key_values, out.logits[0, -1].float().cpu()
                token = int(logits.argmax()) if temperature == 0 else self.drawn(logits / temperature, top_p, generator)
                inputs = [embed([token])]
                if token == self.end:
                    ended = True
                    break
                ids.append(token)
            if not ended:
                inputs.append(embed([self.end]))
            found.append((self.tokenizer.decode(ids), ended))
        return found

    @staticmethod
    def drawn(logits, top_p, generator):
        chances, order = logits.softmax(-1).sort(descending=True)
        chances[chances.cumsum(0) - chances > top_p] = 0
        return int(order[torch.multinomial(chances, 1, generator=generator)])


def phantom_seeds(split):
    """Seeds of a split whose pictures are phantoms."""
    return (seed for seed in SPLITS[split] if make(seed, distribution(split)).kind != STRANGER)


def repeats(text):
    """Whether four words in a row occur three times."""
    words = text.lower().split()
    counts = defaultdict(int)
    for at in range(len(words) - 3):
        counts[tuple(words[at:at + 4])] += 1
    return max(counts.values(), default=0) >= 3


def talk(args):
    """Five-turn conversations, greedily, and sampled answers at several temperatures: what was said, whether it is right, ends and repeats."""
    speaker, rng = Speaker(args.out, args.base), np.random.default_rng(args.seed)
    args.results.mkdir(parents=True, exist_ok=True)
    dialogues, right, fresh = [], [], []
    for seed in itertools.islice(phantom_seeds("test"), args.dialogues):
        p = make(seed, distribution("test"))
        image_tokens = speaker.see(p.image)
        found = [one for one in questions(p, rng, held_out=True) if one["scale"] != "general"]
        signs = [found[i] for i in rng.permutation(len(found))[:3]]
        asked = [one["question"] for one in signs]
        asked.insert(1, sentences.draw(rng, sentences.WHY))
        asked.append(sentences.term(rng)[0])
        said = speaker.answers(image_tokens, asked)
        alone = [speaker.answers(image_tokens, [question])[0][0] for question in asked]
        turns = []
        for question, (answer, ended), again in zip(asked, said, alone):
            one = next((one for one in signs if one["question"] == question), None)
            turns.append({"question": question, "answer": answer, "ended": ended})
            if one:
                turns[-1] |= {"expected": one["answer"], "right": sentences.is_right(one, p.kind, answer)}
                right.append(turns[-1]["right"])
                fresh.append(sentences.understood(one, p.kind, answer) == sentences.understood(one, p.kind, again))
        dialogues.append({"seed": seed, "kind": p.kind, "turns": turns})
    share = lambda hits: [round(100 * sum(hits) / len(hits), 1), len(hits)] if hits else None
    kept = {"right": share(right), "as_when_asked_alone": share(fresh), "dialogues": dialogues}
    (args.results / "dialogues.json").write_text(json.dumps(kept, indent=1) + "\n")
    sampled = []
    for temperature in (0.0, 0.5, 0.8, 1.0):
        for number, seed in enumerate(itertools.islice(phantom_seeds("test"), args.sampled // 4)):
            p, own = make(seed, distribution("test")), np.random.default_rng([args.seed, number])
            found = [one for one in questions(p, own) if one["scale"] != "general"]
            one = found[own.integers(len(found))] if found and number % 4 != 3 else None
            question = one["question"] if one else sentences.draw(own, sentences.DESCRIBE[("short", "medium", "long")[number % 3]])
            answer, ended = speaker.answers(speaker.see(p.image), [question], temperature, 0.95, number)[0]
            sampled.append({"temperature": temperature, "question": question, "answer": answer, "ended": ended, "repeats": repeats(answer),
                            "right": sentences.is_right(one, p.kind, answer) if one else None})
    table = {}
    for temperature in sorted({one["temperature"] for one in sampled}):
        part = [one for one in sampled if one["temperature"] == temperature]
        table[str(temperature)] = {"right": share([one["right"] for one in part if one["right"] is not None]), "ended": share([one["ended"] for one in part]),
                                   "repeats": share([one["repeats"] for one in part])}
    (args.results / "sampled.json").write_text(json.dumps({"by_temperature": table, "answers": sampled}, indent=1) + "\n")
    log("five turns", share(right), "as when asked alone", share(fresh), "sampled", table)




def same(args):
    """Compares the logits of the converted model, in f32, with those of transformers for the same picture, question and answer."""
    picture, question, folder = Path("demo/samples/chest.png"), "Describe the picture.", args.work / "f32"
    parts = ["--decoder", args.base / "base", "--encoder", ENCODER]
    adapter = args.out / "adapter"
    run = lambda *words: subprocess.run([args.quantize, *map(str, words)], check=True)
    run("convert", args.out, *parts, *(["--adapter", adapter] if adapter.exists() else []), "--type", "f32", "-o", folder)
    run("ask", folder, "--image", picture, "--prompt", question, "--max-tokens", 12, "--ranks", 1, "--logits-out", args.work / "logits.safetensors")
    found = load_file(args.work / "logits.safetensors")
    speaker = Speaker(args.out, args.base)
    image_tokens = speaker.see(np.asarray(Image.open(picture).convert("RGB")))
    ids, theirs = found["tokens"].flatten().tolist(), found["logits"].float()
    embed = lambda ids: speaker.llama.model.embed_tokens(torch.tensor([ids], dtype=torch.long, device=DEVICE))
    with torch.inference_mode():
        prompt = [embed(speaker.text.head), image_tokens, embed(speaker.text.ids(f"\n{question}{REPLY}"))]
        ours = speaker.llama(inputs_embeds=torch.cat([*prompt, embed(ids)], 1)).logits[0, -len(ids) - 1:].float().cpu()[:len(theirs)]
    off = (ours - theirs).abs().max().item()
    tokens_off = (found["image_tokens"].flatten().float() - image_tokens.flatten().cpu()).abs().max().item()
    agree = (ours.argmax(-1) == theirs.argmax(-1)).float().mean().item()
    log(f"largest difference of {theirs.numel()} logits {off:.2e} (their largest {ours.abs().max():.1f}), of image tokens {tokens_off:.2e}; "
        f"{agree:.0%} same choices")
    assert off < 1e-4 * ours.abs().max() and agree == 1, "the converted model is another one"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["data", "connector", "instruct", "all", "pace", "talk", "score", "same"])
    parser.add_argument("files", nargs="*", type=Path, help="of `score`")
    parser.add_argument("--work", type=Path, default=Path("target/chat"), help="where pictures and intermediate states are saved")
    parser.add_argument("--base", type=Path, default=Path("target/real"), help="the folder of `smollm2.py`")
    parser.add_argument("--pictures", type=int, default=TRAIN_SIZES["train"], help="of the training split")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--word-steps", type=int, default=2000, help="of 16 pictures, without the base")
    parser.add_argument("--words", type=float, default=0.1, help="weight of the words while the connector learns from reports")
    parser.add_argument("--connector-steps", type=int, default=100, help=f"of {N_PICTURES} pictures")
    parser.add_argument("--instruct-steps", type=int, default=850, help=f"of {N_PICTURES} pictures")
    parser.add_argument("--connector-rate", type=float, default=5e-4)
    parser.add_argument("--rate", type=float, default=5e-4, help="highest learning rate of the second training")
    parser.add_argument("--every", type=int, default=50, help="steps after which everything is saved")
    parser.add_argument("--quantize", default="target/debug/quantize", help="the command-line tool, for `same`")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pace-steps", type=int, default=6)
    parser.add_argument("--results", type=Path, default=Path("demo/results/chat"))
    parser.add_argument("--dialogues", type=int, default=50)
    parser.add_argument("--sampled", type=int, default=200)
    parser.add_argument("-o", "--out", type=Path, default=Path("demo/chat"), help="the folder of what was trained")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    if args.stage in ("data", "all"):
        share = args.pictures / TRAIN_SIZES["train"]
        make_features(args.work, {split: max(40, round(n * share)) if split != "train" else args.pictures for split, n in TRAIN_SIZES.items()})
    if args.stage in ("connector", "all"):
        train_connector(args)
    if args.stage in ("instruct", "all"):
        train_instruct(args)
    if args.stage == "pace":
        pace(args)
    if args.stage == "talk":
        talk(args)
    if args.stage == "same":
        same(args)
    if args.stage == "score":
        score(*args.files, args.results / f"{args.files[1].stem}.json")


if __name__ == "__main__":
    main()
