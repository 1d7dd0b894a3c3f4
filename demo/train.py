"""Trains the demo model on PhantomVQA in stages that can be interrupted, from fixed seeds.

    python demo/train.py data         pictures, dense labels and facts of every split
    python demo/train.py encoder      the tower, on dense labels of every patch at every scale
    python demo/train.py features     the frozen tower's merged features, once for all that follows
    python demo/train.py decoder      connector and decoder: reports first, then instructions; the last part on 4-bit weights
    python demo/train.py all          the four of them; -o demo/checkpoint is where the bundled model lies
    python demo/train.py test         what a trained decoder answers on the held-out splits, into demo/results

The paper trains a connector on captions and then connector and decoder on instructions, behind encoders that others had trained. Here nothing is
pretrained, so the tower comes first, and the connector is told at each image token which signs are in its cell.
`--arm` trains a decoder of the ablation on the same features: `one` and `two` scales are slices of them, `blur` has its own.
"""

import argparse
import json
import math
import os
import pickle
import time
from functools import lru_cache, partial
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import model
from generate import asked
from phantom import LABELS, SPLITS, distribution, make
from questions import caption, questions

N_CELLS = 64  # a side, of 4 pixels each
TRAIN_SIZES = {"train": 12_000, "val": 400}
TEST_SIZES = {"test": 2000, "test-paraphrase": 700, "test-ood": 1000}
ARMS = {"all": slice(None), "two": slice(0, 2 * model.WIDTH), "one": slice(0, model.WIDTH), "blur": slice(None)}
REPORT = "Give a full report."
POLITE = ("greeting", "thanks", "about", "off_topic", "diagnosis")  # questions whose answers need no picture
NO_PICTURE = "I see no picture. Open one, then ask me about it."


# Products in bf16 where the processor has tiles for it (AMX); elsewhere bf16 is slower than f32. Attention and the patch embedding train in f32: the one's
# gradient is slow in bf16, the other takes small differences of large numbers.
HAS_TILES = torch.cpu._is_amx_tile_supported()
attend = F.scaled_dot_product_attention


def attend_f32(q, k, v, **options):
    with torch.autocast("cpu", enabled=False):
        return attend(q.float(), k.float(), v.float(), **options)


def mixed():
    F.scaled_dot_product_attention = attend_f32
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=HAS_TILES)


def log(*parts):
    print(time.strftime("%H:%M:%S"), *parts, flush=True)


# ---- data: pictures as the model's square, labels as bits, facts as they are


def make_one(seed, split):
    """A picture's square (256, 256, 3), its label cells (labels, 64, 64) as bits, and the phantom without its arrays."""
    phantom = make(seed, distribution(split))
    cells = np.packbits(np.stack([phantom.cells[name] for name in LABELS]).reshape(len(LABELS), -1), axis=1)
    square = np.ascontiguousarray(model.square(phantom.image))
    phantom.image = phantom.cells = None
    return square, cells, phantom


def make_data(folder, sizes):
    for split, n_images in sizes.items():
        if (folder / f"{split}.facts").exists():
            continue
        seeds = list(SPLITS[split])[:n_images]
        squares = np.lib.format.open_memmap(folder / f"{split}.squares.npy", "w+", np.uint8, (n_images, 256, 256, 3))
        cells = np.lib.format.open_memmap(folder / f"{split}.cells.npy", "w+", np.uint8, (n_images, len(LABELS), N_CELLS**2 // 8))
        phantoms = []
        with Pool() as pool:
            for idx, (square, bits, phantom) in enumerate(pool.imap(partial(make_one, split=split), seeds, chunksize=32)):
                squares[idx], cells[idx] = square, bits
                phantoms.append(phantom)
        (folder / f"{split}.facts").write_bytes(pickle.dumps(phantoms))
        log(f"{split}: {n_images} pictures")


class Data:
    """One split as `make_data` left it."""

    def __init__(self, folder, split):
        self.squares = np.load(folder / f"{split}.squares.npy", mmap_mode="r")
        self.bits = np.load(folder / f"{split}.cells.npy", mmap_mode="r")
        self.phantoms = pickle.loads((folder / f"{split}.facts").read_bytes())

    def pixels(self, idxs):
        return model.normalise(torch.from_numpy(np.stack([self.squares[idx] for idx in idxs])))

    def cells(self, idxs):
        bits = np.unpackbits(np.stack([self.bits[idx] for idx in idxs]), axis=2)
        return torch.from_numpy(bits).view(len(idxs), len(LABELS), N_CELLS, N_CELLS).float()


# ---- the tower


def whiten(tower, pixels):
    """Starts the patch embedding as cosine patterns scaled to the same response: at first a flat patch answers 130 times as loudly as the finest one."""
    n = model.PATCH
    steps = torch.arange(n) + 0.5
    cosines = torch.stack([torch.cos(math.pi * k * steps / n) for k in range(n)])
    patterns = torch.einsum("ay,bx->abyx", cosines, cosines).flatten(0, 1)  # (64, 8, 8)
    order = sorted(range(n * n), key=lambda i: i // n + i % n)
    grey, colour = torch.tensor([1.0, 1, 1]), torch.tensor([[1.0, 0, -1], [1, -2, 1]])
    n_colour = (model.WIDTH - n * n) // 2
    filters = [patterns[i][None] * grey.view(3, 1, 1) for i in range(n * n)]
    filters += [patterns[order[i]][None] * axis.view(3, 1, 1) for axis in colour for i in range(n_colour)]
    weight = torch.stack(filters)
    embeddings = getattr(tower, "vision_model", tower).embeddings
    with torch.no_grad():
        tiles = torch.cat([model.split(model.at_scale(pixels, scale)).flatten(0, 1) for scale in model.SCALES])
        response = F.conv2d(tiles, weight, stride=n).transpose(0, 1).flatten(1)
        gain = 1 / (response.std(1) + 0.02)
        embeddings.patch_embedding.weight.copy_(weight * gain.view(-1, 1, 1, 1))
        embeddings.position_embedding.weight.normal_(0, 0.3)
        embeddings.position_embedding.weight[1:] -= response.mean(1) * gain
    patch_embedding = embeddings.patch_embedding
    embed = patch_embedding.forward
    patch_embedding.forward = lambda tiles: torch.autocast("cpu", enabled=False)(embed)(tiles.float())


def tile_batch(data, idxs, rng):
    """Tiles of every scale (n, 3, 64, 64) with their labels (n, 64 patches, labels): how much of a patch carries the sign; and which labels can be seen."""
    pixels, cells = data.pixels(idxs), data.cells(idxs)
    visible_from = torch.tensor(list(LABELS.values()))
    rare = torch.tensor([name.startswith(("fine", "middle")) for name in LABELS])
    tiles, targets, masks = [], [], []
    for scale, n_chosen in zip(model.SCALES, (1, 2, 5)):
        all_tiles = model.split(model.at_scale(pixels, scale))
        n_tiles = all_tiles.shape[1]
        k = int(n_tiles**0.5)
        fractions = F.adaptive_avg_pool2d(cells, k * model.GRID)  # (n, labels, 8k, 8k)
        per_tile = fractions.view(len(idxs), -1, k, model.GRID, k, model.GRID).permute(0, 2, 4, 3, 5, 1).reshape(len(idxs), n_tiles, 64, -1)
        wanted = (per_tile[..., rare] > 0).any(-1).any(-1).float() * 0.5 + torch.from_numpy(rng.random((len(idxs), n_tiles)).astype(np.float32))
        chosen = wanted.topk(n_chosen, 1).indices
        rows = torch.arange(len(idxs))[:, None]
        tiles.append(all_tiles[rows, chosen].flatten(0, 1))
        targets.append(per_tile[rows, chosen].flatten(0, 1))
        masks.append((visible_from <= scale).float().expand(len(idxs) * n_chosen, -1))
    return torch.cat(tiles), torch.cat(targets), torch.cat(masks)


def train_encoder(folder, n_steps):
    """Every patch tells which signs lie in it and which lie anywhere in its tile."""
    if (folder / "encoder.pt").exists():
        return
    torch.manual_seed(1)
    rng = np.random.default_rng(1)
    data, val = Data(folder, "train"), Data(folder, "val")
    tower = model.make_tower()
    whiten(tower, data.pixels(range(64)))
    heads = nn.Linear(model.WIDTH, 2 * len(LABELS))
    rare = torch.tensor([10.0 if name.startswith(("fine", "middle")) else 2.0 for name in LABELS])
    parameters = [*tower.parameters(), *heads.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.02)

    def losses(tiles, targets, masks):
        here, anywhere = heads(model.patches(tower, tiles)).chunk(2, -1)
        in_tile = (targets > 0.2).any(1, keepdim=True).float().expand_as(targets)
        loss = F.binary_cross_entropy_with_logits(here, targets, pos_weight=rare, reduction="none")
        loss = loss + 0.3 * F.binary_cross_entropy_with_logits(anywhere, in_tile, reduction="none")
        return (loss.float() * masks[:, None]).sum() / masks.sum() / targets.shape[1], here.float()

    step, is_quantised, running = 0, False, 0.0
    while (done := step / n_steps) < 1:
        if done > 0.8 and not is_quantised:
            model.quantised(tower.vision_model.encoder if hasattr(tower, "vision_model") else tower.encoder)
            optimiser.param_groups[0]["params"] = [*tower.parameters(), *heads.parameters()]
            is_quantised = True
        for group in optimiser.param_groups:
            group["lr"] = 1e-3 * min(1, (step + 1) / 100) * max(0.03, 0.5 + 0.5 * math.cos(math.pi * done))
        idxs = rng.integers(0, len(data.phantoms), 8)
        with mixed():
            loss, _ = losses(*tile_batch(data, idxs, rng))
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        step += 1
        running += (loss.item() - running) * 0.02
        if step % 250 == 0:
            log(f"encoder step {step}, {done:.0%}, loss {running:.4f}")
    with torch.no_grad():
        picked = [losses(*(batch := tile_batch(val, range(first, first + 50), rng)))[1:] + batch[1:] for first in range(0, 200, 50)]
    here, targets, masks = (torch.cat(parts) for parts in zip(*picked))
    report = {}
    for label_idx, name in enumerate(LABELS):
        seen = masks[:, label_idx] > 0
        scores, truth = here[seen][..., label_idx].flatten(), targets[seen][..., label_idx].flatten() > 0.5
        order = scores.argsort(descending=True)
        hits = truth[order].float()
        report[name] = round(float((hits.cumsum(0) / torch.arange(1, len(hits) + 1) * hits).sum() / hits.sum().clamp(min=1)), 3)
    log(f"encoder: {step} steps; average precision", report)
    torch.save({"tower": model.weights(tower), "precision": report}, folder / "encoder.pt")


def load_tower(folder):
    tower = model.make_tower()
    tower.load_state_dict(torch.load(folder / "encoder.pt")["tower"])
    tower.half().float()  # as it will be stored
    model.quantised(tower.vision_model.encoder if hasattr(tower, "vision_model") else tower.encoder)
    return tower.eval().requires_grad_(False)


def make_features(folder, splits, blur=False):
    tower = load_tower(folder)
    for split in splits:
        path = folder / f"{split}.{'blur' if blur else 'features'}.npy"
        if path.exists():
            continue
        data = Data(folder, split)
        n = len(data.phantoms)
        unfinished = path.with_suffix(".partial")
        features = np.lib.format.open_memmap(unfinished, "w+", np.float16, (n, 64, 3 * model.WIDTH))
        with torch.inference_mode(), mixed():
            for first in range(0, n, 8):
                features[first:first + 8] = model.encode(tower, data.pixels(range(first, min(n, first + 8))), blur).half().numpy()
        features.flush()
        unfinished.rename(path)
        log(f"{path.name}: {n} pictures encoded")


# ---- text to tokens


class Text:
    """Conversations as the reference writes them, token by token."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.head = self.ids(f"<|start_header_id|>system<|end_header_id|>\n\n{model.SYSTEM}<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n")
        self.head = [tokenizer.token_to_id("<|begin_of_text|>"), *self.head]

    @lru_cache(maxsize=100_000)
    def ids(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def noisy(self, ids, rng):
        """Puts one to three random tokens somewhere into a question: words that training never has must not matter."""
        at = int(rng.integers(len(ids)))
        n_words = self.tokenizer.get_vocab_size() - len(model.SPECIAL)
        return [*ids[:at], *(int(i) for i in rng.integers(n_words, size=rng.integers(1, 4))), *ids[at:]]

    def turns(self, turns, has_image=True, rng=None, noise=0.0):
        """Ids after the image (or after the head), and which of them are answers."""
        ids, is_answer = [], []
        for turn_idx, (question, answer) in enumerate(turns):
            opening = ("\n" if has_image else "") if turn_idx == 0 else "<|start_header_id|>user<|end_header_id|>\n\n"
            asked = self.ids(f"{opening}{question}")
            if noise and rng.random() < noise:
                n_opening = len(self.ids(opening)) if opening else 0
                asked = asked[:n_opening] + self.noisy(asked[n_opening:], rng)
            asked = asked + self.ids("<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n")
            answered = self.ids(f"{answer}<|eot_id|>")
            ids += asked + answered
            is_answer += [False] * len(asked) + [True] * len(answered)
        return ids, is_answer


class Batch:
    """Several pictures, each with conversations packed behind one copy of its prefix: every conversation sees the prefix and itself alone."""

    def __init__(self, text, conversations, rng=None, noise=0.0):
        """`conversations`: for each picture a list of (turns, has_image); `noise` is the share of questions that get some."""
        head = len(text.head)
        first = head + 64
        rows = []
        for of_picture in conversations:
            ids, answers, group, position = [*text.head, *[0] * 64], [False] * first, [0] * head + [1] * 64, list(range(first))
            blind = [False] * first
            for group_idx, (turns, has_image) in enumerate(of_picture):
                more, is_answer = text.turns(turns, has_image, rng, noise)
                start = first if has_image else head
                ids += more
                answers += is_answer
                group += [group_idx + 2] * len(more)
                blind += [not has_image] * len(more)
                position += range(start, start + len(more))
            rows.append((ids, answers, group, position, blind))
        length = max(len(row[0]) for row in rows)
        padded = [torch.tensor([row[part] + [fill] * (length - len(row[part])) for row in rows])
                  for part, fill in ((0, 0), (1, False), (2, -1), (3, 0), (4, False))]
        self.ids, self.answers, self.group, self.positions, blind = padded
        self.image = slice(head, first)
        keys, queries = self.group[:, None, :], self.group[:, :, None]
        sees = (keys == 0) | ((keys == 1) & ~blind[:, :, None]) | (keys == queries)
        self.mask = (sees & torch.ones(length, length, dtype=torch.bool).tril())[:, None]

    def run(self, llama, image_tokens):
        """Logits that choose the answers' tokens, and these tokens."""
        embeddings = llama.model.embed_tokens(self.ids)
        embeddings = torch.cat([embeddings[:, :self.image.start], image_tokens, embeddings[:, self.image.stop:]], 1)
        hidden = llama.model(inputs_embeds=embeddings, attention_mask=self.mask, position_ids=self.positions, use_cache=False).last_hidden_state
        chosen = self.answers[:, 1:]
        return llama.lm_head(hidden[:, :-1][chosen]), self.ids[:, 1:][chosen]


def conversations(phantom, rng, reports_only):
    """What is asked about a picture this time: its report and questions, alone or several in a row, and now and then one without the picture."""
    # A report denies what a file of another size cannot show.
    report = [(REPORT, caption(phantom))] if phantom.exact else []
    if report and reports_only:
        return [(report, True)]
    # Each with a probability of its own: a fixed number of questions would favour the pictures, and so the answers, that have few.
    asked_of = [one for one in questions(phantom, rng) if rng.random() < (0.15 if one["scale"] == "general" else 0.7)]
    pairs = [(one["question"], one["answer"]) for one in asked_of] + report
    rng.shuffle(pairs)
    out = []
    while pairs:
        n_turns = int(rng.choice([1, 2, 3, 4, 6], p=[0.5, 0.2, 0.1, 0.1, 0.1]))
        out.append((pairs[:n_turns], True))
        pairs = pairs[n_turns:]
    if not out or rng.random() < 0.2:
        one = questions(phantom, rng)[rng.integers(-10, 10)]
        out.append(([(one["question"], one["answer"] if one["id"] in POLITE else NO_PICTURE)], False))
    return out


# ---- connector and decoder


def tokenizer_of(folder, data):
    path = folder / "tokenizer.json"
    if not path.exists():
        rng = np.random.default_rng(0)
        texts = [model.SYSTEM, "system user assistant", REPORT, NO_PICTURE]
        for phantom in data.phantoms[:1500]:
            texts += [caption(phantom)] + [part for one in questions(phantom, rng) for part in (one["question"], one["answer"])]
        model.make_tokenizer(texts).save(str(path))
    return model.Tokenizer.from_file(str(path))


def standardise(connector, features):
    """Folds the features' mean and spread into the connector's first layer."""
    sample = torch.from_numpy(np.stack(features[:400])).float().flatten(0, 1)
    mean, spread = sample.mean(0), sample.std(0) + 1e-3
    with torch.no_grad():
        first = connector[0]
        first.weight.div_(spread)
        first.bias.sub_(first.weight @ mean)
        connector[2].weight.mul_(3)


@torch.inference_mode()
def evaluate(text, connector, llama, features, phantoms, channels, split="val"):
    """Percent of answers that come out right token for token, and their number, by scale and kind of answer and by question."""
    right = {}
    for first in range(0, len(phantoms), 8):
        idxs = range(first, min(len(phantoms), first + 8))
        found = [asked(phantoms[idx], split, keep=1.0) for idx in idxs]
        batch = Batch(text, [[([(one["question"], one["answer"])], True) for one in of_picture] for of_picture in found])
        image_tokens = connector(torch.from_numpy(np.stack([features[idx] for idx in idxs])).float()[..., channels])
        logits, targets = batch.run(llama, image_tokens)
        hits = torch.zeros(batch.ids[:, 1:].shape)
        hits[batch.answers[:, 1:]] = (logits.argmax(-1) == targets).float()
        for row, of_picture in enumerate(found):
            for group_idx, one in enumerate(of_picture):
                mine = batch.answers[row, 1:] & (batch.group[row, 1:] == group_idx + 2)
                # Greedy answers are right token for token exactly when each token is the likeliest after the right ones before it.
                for kind in (f"{one['scale']} {one['answer_type']}", one["id"]):
                    right.setdefault(kind, []).append(float(hits[row][mine].min()))
    return {kind: [round(100 * sum(hits) / len(hits), 2), len(hits)] for kind, hits in sorted(right.items())}


def test(folder, arm, seed, checkpoint, results):
    """What an arm answers on the held-out splits."""
    tokenizer, tower, connector, llama = model.load(checkpoint)
    text, channels, kind = Text(tokenizer), ARMS[arm], "blur" if arm == "blur" else "features"
    state = json.loads((folder / f"decoder-{arm}-{seed}.json").read_text())
    model.quantised(connector, llama)
    found = {}
    for split in TEST_SIZES:
        phantoms = Data(folder, split).phantoms
        features = np.load(folder / f"{split}.{kind}.npy", mmap_mode="r")
        found[split] = evaluate(text, connector, llama, features, phantoms, channels, split)
    results.mkdir(parents=True, exist_ok=True)
    path = results / f"{arm}-{state['steps']}-{seed}.json"
    path.write_text(json.dumps({**state, "splits": found}, indent=1) + "\n")
    log(path, {split: {kind: value for kind, value in of_split.items() if " " in kind} for split, of_split in found.items()})


def batches(text, phantoms, rng, state, noise):
    """Batches of 8 pictures without end, those of like length together: (indices, Batch)."""
    while True:
        order = rng.permutation(len(phantoms))
        for first in range(0, len(order) - 31, 32):
            several = [(idx, conversations(phantoms[idx], rng, state["reports_only"])) for idx in order[first:first + 32]]
            several.sort(key=lambda one: sum(len(text.turns(turns)[0]) for turns, _ in one[1]))
            for part in rng.permutation(4):
                idxs, asked_of = zip(*several[8 * part:8 * part + 8])
                yield idxs, Batch(text, asked_of, rng, noise)


def train_decoder(folder, arm, n_steps, rate, noise, seed, out):
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    channels = ARMS[arm]
    data, val = Data(folder, "train"), Data(folder, "val")
    kind = "blur" if arm == "blur" else "features"
    features, val_features = (np.load(folder / f"{split}.{kind}.npy", mmap_mode="r") for split in ("train", "val"))
    tokenizer = tokenizer_of(folder, data)
    text = Text(tokenizer)
    connector, llama = model.make_connector({"one": 1, "two": 2}.get(arm, 3)), model.make_llama(tokenizer)
    standardise(connector, [feature[:, channels] for feature in features[:400]])
    nn.init.normal_(llama.model.embed_tokens.weight, 0, 0.5)
    signs = nn.Linear(model.DIM, len(LABELS))  # which signs lie in the cell of an image token; dropped afterwards
    modules = nn.ModuleList([connector, llama, signs])
    optimiser = torch.optim.AdamW(modules.parameters(), lr=1, betas=(0.9, 0.95), weight_decay=0.05)
    state = folder / f"decoder-{arm}-{seed}.pt"
    start, step, is_quantised, running = time.time(), 0, False, [0.0, 0.0]

    def quantise():
        model.quantised(connector, llama)
        optimiser.param_groups[0]["params"] = list(modules.parameters())

    if state.exists():
        saved = torch.load(state, weights_only=False)
        step, is_quantised = saved["step"], saved["is_quantised"]
        if is_quantised:
            quantise()
        modules.load_state_dict(saved["modules"])
        optimiser.load_state_dict(saved["optimiser"])
        rng.bit_generator.state = saved["rng"]
        log(f"goes on from step {step}")

    def keep():
        torch.save(dict(modules=modules.state_dict(), optimiser=optimiser.state_dict(), rng=rng.bit_generator.state, step=step,
                        is_quantised=is_quantised), state.with_suffix(".new"))
        os.replace(state.with_suffix(".new"), state)

    visited, phase = 0, {}
    stream = batches(text, data.phantoms, rng, phase, noise)
    while (done := step / n_steps) < 1:
        if done > 0.8 and not is_quantised:
            quantise()
            is_quantised = True
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 200) * max(0.02, 0.5 + 0.5 * math.cos(math.pi * done))
        phase["reports_only"] = done < 0.1
        idxs, batch = next(stream)
        present = F.adaptive_max_pool2d(data.cells(idxs), model.GRID).flatten(2).transpose(1, 2)
        with mixed():
            image_tokens = connector(torch.from_numpy(np.stack([features[idx] for idx in idxs])).float()[..., channels])
            logits, targets = batch.run(llama, image_tokens)
            loss = F.cross_entropy(logits.float(), targets)
            hint = F.binary_cross_entropy_with_logits(signs(image_tokens).float(), present)
        optimiser.zero_grad()
        (loss + hint).backward()
        nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        optimiser.step()
        step, visited = step + 1, visited + 8
        running = [old + (new.item() - old) * 0.02 for old, new in zip(running, (loss, hint))]
        if step % 100 == 0:
            log(f"{arm} step {step}, {done:.0%}, answers {running[0]:.4f}, signs {running[1]:.4f}, {visited / (time.time() - start):.1f} pictures/s")
        if step % 500 == 0:
            keep()
            log({kind: value for kind, value in evaluate(text, connector, llama, val_features, val.phantoms[:100], channels).items() if " " in kind})
    result = evaluate(text, connector, llama, val_features, val.phantoms, channels)
    log(f"{arm}: {step} steps", result)
    tower = load_tower(folder)
    model.save(out, tokenizer, tower, connector, llama)
    (folder / f"decoder-{arm}-{seed}.json").write_text(json.dumps({"arm": arm, "seed": seed, "steps": step, "val": result}, indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["data", "encoder", "features", "decoder", "test", "all"])
    parser.add_argument("--work", type=Path, default=Path("target/phantom"), help="where pictures and intermediate states are kept")
    parser.add_argument("--arm", choices=ARMS, default="all", help="what the decoder sees")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--encoder-steps", type=int, default=3000, help="of 8 pictures each")
    parser.add_argument("--steps", type=int, default=4500, help="of the decoder's training, 8 pictures each")
    parser.add_argument("--rate", type=float, default=1.5e-3, help="the decoder's highest learning rate")
    parser.add_argument("--noise", type=float, default=0.0, help="share of questions with random words in them")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, default=Path("demo/results"))
    parser.add_argument("-o", "--out", type=Path, help="the checkpoint's folder")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    out = args.out or args.work / f"checkpoint-{args.arm}-{args.seed}"
    if args.stage in ("data", "all"):
        make_data(args.work, TRAIN_SIZES | TEST_SIZES)
    if args.stage in ("encoder", "all"):
        train_encoder(args.work, args.encoder_steps)
    if args.stage in ("features", "all"):
        make_features(args.work, TRAIN_SIZES | TEST_SIZES, args.arm == "blur")
    if args.stage in ("decoder", "all"):
        train_decoder(args.work, args.arm, args.steps, args.rate, args.noise, args.seed, out)
    if args.stage == "test":
        test(args.work, args.arm, args.seed, out, args.results)
