"""Trains the demo model on PhantomVQA in stages that can be interrupted, from fixed seeds; on a GPU if PyTorch finds one.

    python demo/train.py data         pictures, dense labels and facts of every split
    python demo/train.py encoder      the tower, on dense labels of every patch at every scale
    python demo/train.py tower        instead of the encoder's training: the tower of the checkpoint --start
    python demo/train.py features     the frozen tower's merged features, computed once for all later stages
    python demo/train.py decoder      connector and decoder: reports first, then instructions; the last part on 4-bit weights
    python demo/train.py all          all four; -o demo/checkpoint is the bundled model's folder
    python demo/train.py test         what a trained decoder answers on the held-out splits, into demo/results

The paper trains a connector on captions and then connector and decoder on instructions, with encoders that others had trained. Here nothing is
pretrained, so the tower comes first, and for each image token the connector is also trained to predict which signs are in its cell.
`--arm` trains a connector and a decoder of the ablation on the same features: `one` and `two` scales are slices of them, `blur` has its own. With
`--init` the decoder can already speak and only learns to see. With `--start` both continue from a checkpoint, on the features of its tower.
"""

import argparse
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import model
from data import DEVICE, NO_PICTURE, REPORT, TEST_SIZES, TRAIN_SIZES, Batch, Data, Text, batches, log, make_data, shares
from generate import asked
from phantom import LABELS
from questions import caption, questions

ARMS = {"all": slice(None), "two": slice(0, 2 * model.WIDTH), "one": slice(0, model.WIDTH), "blur": slice(None)}

# Products in bf16 if the processor has tiles for it (AMX) or on a GPU; elsewhere bf16 is slower than f32. Attention on a CPU and the patch embedding train in
# f32: the gradient of the former is slow in bf16, and the latter takes small differences of large numbers.
HAS_TILES = DEVICE.type == "cuda" or torch.cpu._is_amx_tile_supported()
attend = F.scaled_dot_product_attention


def attend_f32(q, k, v, **options):
    with torch.autocast("cpu", enabled=False):
        return attend(q.float(), k.float(), v.float(), **options)


def mixed():
    if DEVICE.type == "cpu":
        F.scaled_dot_product_attention = attend_f32
    return torch.autocast(DEVICE.type, dtype=torch.bfloat16, enabled=HAS_TILES)


class Run:
    """Steps of a training that can be interrupted: `for done in run` yields the finished fraction, up to 1, and the caller takes one `step` of it.

    The learning rate rises, then falls along a cosine to `floor`; the last fifth runs on 4-bit weights. Everything is saved every `every` steps.
    """

    def __init__(self, path, modules, quantised, n_steps, seed, rate, warm_up, floor, beta, decay, every=500):
        self.every, self.path, self.modules, self.quantised, self.n_steps = every, path, modules, quantised, n_steps
        self.rate, self.warm_up, self.floor = rate, warm_up, floor
        self.rng, self.n_done, self.is_quantised, self.start = np.random.default_rng(seed), 0, False, time.time()
        self.optimiser = torch.optim.AdamW(modules.parameters(), lr=rate, betas=(0.9, beta), weight_decay=decay)
        if path.exists():
            saved = torch.load(path, weights_only=False, map_location=DEVICE)
            self.n_done = saved["step"]
            if saved["is_quantised"]:
                self.quantise()
            modules.load_state_dict(saved["modules"])
            self.optimiser.load_state_dict(saved["optimiser"])
            self.rng.bit_generator.state = saved["rng"]
            log(f"{path.name} continues from step {self.n_done}")
        self.first = self.n_done

    def quantise(self):
        model.quantised(*self.quantised)
        self.optimiser.param_groups[0]["params"] = list(self.modules.parameters())
        self.is_quantised = True

    def keep(self):
        torch.save(dict(modules=self.modules.state_dict(), optimiser=self.optimiser.state_dict(), rng=self.rng.bit_generator.state, step=self.n_done,
                        is_quantised=self.is_quantised), self.path.with_suffix(".new"))
        os.replace(self.path.with_suffix(".new"), self.path)

    def __iter__(self):
        while (done := self.n_done / self.n_steps) < 1:
            if done > 0.8 and not self.is_quantised:
                self.quantise()
            fall = max(self.floor, 0.5 + 0.5 * math.cos(math.pi * done))
            self.optimiser.param_groups[0]["lr"] = self.rate * min(1, (self.n_done + 1) / self.warm_up) * fall
            yield done
            if self.n_done % self.every == 0:
                self.keep()

    def step(self, loss):
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.modules.parameters(), 1.0)
        self.optimiser.step()
        self.n_done += 1

    def pace(self):
        return f"step {self.n_done}, {self.n_done / self.n_steps:.0%}, {8 * (self.n_done - self.first) / (time.time() - self.start):.1f} pictures/s"


# ---- the tower


def encoder_of(tower):
    """The layers of a tower, in any version of transformers."""
    return getattr(tower, "vision_model", tower).encoder


def whiten(tower, pixels):
    """Initialises the patch embedding with cosine patterns scaled to equal response: at first a flat patch responds 130 times as strongly as the finest one."""
    n = model.PATCH
    steps = torch.arange(n) + 0.5
    cosines = torch.stack([torch.cos(math.pi * k * steps / n) for k in range(n)])
    patterns = torch.einsum("ay,bx->abyx", cosines, cosines).flatten(0, 1)  # (64, 8, 8)
    order = sorted(range(n * n), key=lambda i: i // n + i % n)
    grey, colour = torch.tensor([1.0, 1, 1]), torch.tensor([[1.0, 0, -1], [1, -2, 1]])
    n_colour = (model.WIDTH - n * n) // 2
    filters = [patterns[i][None] * grey.view(3, 1, 1) for i in range(n * n)]
    filters += [patterns[order[i]][None] * axis.view(3, 1, 1) for axis in colour for i in range(n_colour)]
    weight = torch.stack(filters).to(DEVICE)
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
    patch_embedding.forward = lambda tiles: torch.autocast(DEVICE.type, enabled=False)(embed)(tiles.float())


def tile_batch(data, idxs, rng):
    """Tiles of every scale (n, 3, 64, 64) with their labels (n, 64 patches, labels): how much of a patch has the sign; and which labels can be seen."""
    pixels, cells = data.pixels(idxs), data.cells(idxs)
    visible_from = torch.tensor(list(LABELS.values()), device=DEVICE)
    rare = torch.tensor([name.startswith(("fine", "middle")) for name in LABELS], device=DEVICE)
    tiles, targets, masks = [], [], []
    for scale, n_chosen in zip(model.SCALES, (1, 2, 5)):
        all_tiles = model.split(model.at_scale(pixels, scale))
        n_tiles = all_tiles.shape[1]
        k = int(n_tiles**0.5)
        fractions = F.adaptive_avg_pool2d(cells, k * model.GRID)  # (n, labels, 8k, 8k)
        per_tile = fractions.view(len(idxs), -1, k, model.GRID, k, model.GRID).permute(0, 2, 4, 3, 5, 1).reshape(len(idxs), n_tiles, 64, -1)
        wanted = (per_tile[..., rare] > 0).any(-1).any(-1).float() * 0.5 + torch.from_numpy(rng.random((len(idxs), n_tiles)).astype(np.float32)).to(DEVICE)
        chosen = wanted.topk(n_chosen, 1).indices
        rows = torch.arange(len(idxs), device=DEVICE)[:, None]
        tiles.append(all_tiles[rows, chosen].flatten(0, 1))
        targets.append(per_tile[rows, chosen].flatten(0, 1))
        masks.append((visible_from <= scale).float().expand(len(idxs) * n_chosen, -1))
    return torch.cat(tiles), torch.cat(targets), torch.cat(masks)


def train_encoder(folder, n_steps):
    """Every patch predicts which signs are in it and which are anywhere in its tile."""
    if (folder / "encoder.pt").exists():
        return
    torch.manual_seed(1)
    data, val = Data(folder, "train"), Data(folder, "val")
    data.squares = np.array(data.squares)  # 2.4 GB; in random order, pages of a file would be read from disk again and again
    tower = model.make_tower().to(DEVICE)
    whiten(tower, data.pixels(range(64)))
    heads = nn.Linear(model.WIDTH, 2 * len(LABELS)).to(DEVICE)
    rare = torch.tensor([10.0 if name.startswith(("fine", "middle")) else 2.0 for name in LABELS], device=DEVICE)

    def losses(tiles, targets, masks):
        here, anywhere = heads(model.patches(tower, tiles)).chunk(2, -1)
        in_tile = (targets > 0.2).any(1, keepdim=True).float().expand_as(targets)
        loss = F.binary_cross_entropy_with_logits(here, targets, pos_weight=rare, reduction="none")
        loss = loss + 0.3 * F.binary_cross_entropy_with_logits(anywhere, in_tile, reduction="none")
        return (loss.float() * masks[:, None]).sum() / masks.sum() / targets.shape[1], here.float()

    run = Run(folder / "encoder-state.pt", nn.ModuleList([tower, heads]), [encoder_of(tower)], n_steps, 1, 1e-3, 100, 0.03, 0.98, 0.02)
    running = 0.0
    for _ in run:
        idxs = run.rng.integers(0, len(data.phantoms), 8)
        with mixed():
            loss, _ = losses(*tile_batch(data, idxs, run.rng))
        run.step(loss)
        running += (loss.item() - running) * 0.02
        if run.n_done % 250 == 0:
            log(f"encoder {run.pace()}, loss {running:.4f}")
    with torch.no_grad():
        picked = [losses(*(batch := tile_batch(val, range(first, first + 50), run.rng)))[1:] + batch[1:] for first in range(0, 200, 50)]
    here, targets, masks = (torch.cat(parts) for parts in zip(*picked))
    report = {}
    for label_idx, name in enumerate(LABELS):
        seen = masks[:, label_idx] > 0
        scores, truth = here[seen][..., label_idx].flatten(), targets[seen][..., label_idx].flatten() > 0.5
        order = scores.argsort(descending=True)
        hits = truth[order].float()
        report[name] = round(float((hits.cumsum(0) / torch.arange(1, len(hits) + 1, device=DEVICE) * hits).sum() / hits.sum().clamp(min=1)), 3)
    log("encoder: average precision", report)
    torch.save({"tower": model.weights(tower), "precision": report}, folder / "encoder.pt")


def load_tower(folder):
    tower = model.make_tower()
    tower.load_state_dict(torch.load(folder / "encoder.pt", map_location="cpu")["tower"])
    tower.half().float()  # as it will be stored
    model.quantised(encoder_of(tower))
    return tower.eval().requires_grad_(False).to(DEVICE)


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
                features[first:first + 8] = model.encode(tower, data.pixels(range(first, min(n, first + 8))), blur).half().cpu().numpy()
        features.flush()
        unfinished.rename(path)
        log(f"{path.name}: {n} pictures encoded")


# ---- connector and decoder


def tokenizer_of(folder, data):
    path = folder / "tokenizer.json"
    if not path.exists():
        rng = np.random.default_rng(0)
        texts = [model.SYSTEM, "system user assistant", REPORT, NO_PICTURE]
        for phantom in data.phantoms[:4000]:
            texts += [caption(phantom)] + [part for one in questions(phantom, rng) for part in (one["question"], one["answer"])]
        model.make_tokenizer(texts).save(str(path))
    return model.Tokenizer.from_file(str(path))


def picked(features, idxs, channels):
    """An arm's channels of some pictures' features."""
    return torch.from_numpy(np.stack([features[idx] for idx in idxs])).to(DEVICE).float()[..., channels]


def standardise(connector, features):
    """Folds the mean and spread into the connector's first layer."""
    sample = features.flatten(0, 1)
    mean, spread = sample.mean(0), sample.std(0) + 1e-3
    with torch.no_grad():
        first = connector[0]
        first.weight.div_(spread)
        first.bias.sub_(first.weight @ mean)
        connector[2].weight.mul_(3)


@torch.inference_mode()
def evaluate(text, connector, llama, features, phantoms, channels, split="val"):
    """Percent of answers that are correct token for token, and their number, by scale and kind of answer and by question."""
    right = {}
    for first in range(0, len(phantoms), 8):
        idxs = range(first, min(len(phantoms), first + 8))
        found = [asked(phantoms[idx], split, keep=1.0) for idx in idxs]
        batch = Batch(text, [[([(one["question"], one["answer"])], True) for one in of_picture] for of_picture in found])
        image_tokens = connector(picked(features, idxs, channels))
        logits, targets = batch.run(llama, image_tokens)
        hits = torch.zeros(batch.ids[:, 1:].shape, device=DEVICE)
        hits[batch.answers[:, 1:]] = (logits.argmax(-1) == targets).float()
        for row, of_picture in enumerate(found):
            for group_idx, one in enumerate(of_picture):
                mine = batch.answers[row, 1:] & (batch.group[row, 1:] == group_idx)
                # A greedy answer is correct token for token exactly if each token is the most likely one after the correct ones before it.
                for kind in (f"{one['scale']} {one['answer_type']}", one["id"]):
                    right.setdefault(kind, []).append(float(hits[row][mine].min()))
    return {kind: [round(100 * sum(hits) / len(hits), 2), len(hits)] for kind, hits in sorted(right.items())}


def test(folder, arm, seed, checkpoint, limit, results):
    """What an arm answers on the held-out splits, to questions about their first `limit` pictures."""
    tokenizer, tower, connector, llama = model.load(checkpoint)
    connector, llama = connector.to(DEVICE), llama.to(DEVICE)
    text, channels, kind = Text(tokenizer), ARMS[arm], "blur" if arm == "blur" else "features"
    state = json.loads((folder / f"decoder-{arm}-{seed}.json").read_text())
    model.quantised(connector, llama)
    found = {}
    for split in TEST_SIZES:
        phantoms = Data(folder, split).phantoms[:limit]
        features = np.load(folder / f"{split}.{kind}.npy", mmap_mode="r")
        found[split] = evaluate(text, connector, llama, features, phantoms, channels, split)
    results.mkdir(parents=True, exist_ok=True)
    path = results / f"{arm}-{state['steps']}-{seed}.json"
    path.write_text(json.dumps({**state, "splits": found}, indent=1) + "\n")
    log(path, {split: {kind: value for kind, value in of_split.items() if " " in kind} for split, of_split in found.items()})


def train_decoder(folder, arm, n_steps, reports, rate, seed, out, init=None, start=None, every=500):
    """Trains connector and decoder from scratch; or with the decoder of `init`; or both from the checkpoint `start`, without the reports at the beginning."""
    torch.manual_seed(seed)
    channels = ARMS[arm]
    data, val = Data(folder, "train"), Data(folder, "val")
    kind = "blur" if arm == "blur" else "features"
    features, val_features = (np.load(folder / f"{split}.{kind}.npy") for split in ("train", "val"))
    tokenizer = tokenizer_of(folder, data)
    text = Text(tokenizer)
    connector, llama = model.make_connector({"one": 1, "two": 2}.get(arm, 3)).to(DEVICE), model.make_llama(tokenizer).to(DEVICE)
    standardise(connector, picked(features, range(400), channels))
    if start:
        connector, llama = (module.to(DEVICE) for module in model.load(start)[2:])
        reports = 0
    elif init:
        llama.load_state_dict(model.load(init)[3].state_dict())
    else:
        nn.init.normal_(llama.model.embed_tokens.weight, 0, 0.5)
    signs = nn.Linear(model.DIM, len(LABELS)).to(DEVICE)  # which signs are in the cell of an image token; dropped afterwards
    if start:  # a connector that can see must not follow a head that cannot
        nn.init.zeros_(signs.weight)
    modules = nn.ModuleList([connector, llama, signs])
    run = Run(folder / f"decoder-{arm}-{seed}.pt", modules, [connector, llama], n_steps, seed, rate, 50 if start else 200, 0.02, 0.95, 0.05, every)
    running, phase = [0.0, 0.0], {}
    stream = batches(text, data.phantoms, run.rng, phase)
    for done in run:
        if run.n_done % every == 0 and run.n_done and start:  # to be tried while the training goes on
            model.save(out, tokenizer, load_tower(folder).cpu(), connector, llama)
        if run.n_done % 500 == 0 and run.n_done >= bool(start) and done >= reports:
            found = evaluate(text, connector, llama, val_features, val.phantoms[:150], channels)
            phase["shares"] = shares(found)
            log(found)
        phase["reports_only"] = done < reports
        idxs, batch = next(stream)
        present = F.adaptive_max_pool2d(data.cells(idxs), model.GRID).flatten(2).transpose(1, 2)
        with mixed():
            image_tokens = connector(picked(features, idxs, channels))
            logits, targets = batch.run(llama, image_tokens)
            loss = F.cross_entropy(logits.float(), targets)
            hint = F.binary_cross_entropy_with_logits(signs(image_tokens).float(), present)
        run.step(loss + hint)
        running = [old + (new.item() - old) * 0.02 for old, new in zip(running, (loss, hint))]
        if run.n_done % min(100, every) == 0:
            log(f"{arm} {run.pace()}, answers {running[0]:.4f}, signs {running[1]:.4f}")
    result = evaluate(text, connector, llama, val_features, val.phantoms, channels)
    log(f"{arm}: {n_steps} steps", result)
    model.save(out, tokenizer, load_tower(folder).cpu(), connector.cpu(), llama.cpu())
    (folder / f"decoder-{arm}-{seed}.json").write_text(json.dumps({"arm": arm, "seed": seed, "steps": n_steps, "val": result}, indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["data", "encoder", "tower", "features", "decoder", "test", "all"])
    parser.add_argument("--work", type=Path, default=Path("target/phantom"), help="where pictures and intermediate states are saved")
    parser.add_argument("--arm", choices=ARMS, default="all", help="what the decoder sees")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--encoder-steps", type=int, default=6000, help="of 8 pictures each")
    parser.add_argument("--steps", type=int, default=9000, help="of the decoder's training, 8 pictures each")
    parser.add_argument("--reports", type=float, default=1 / 3, help="fraction of these steps on reports only: they are cheap, and each names every finding")
    parser.add_argument("--init", type=Path, help="a checkpoint whose decoder this one starts from; the connector starts from scratch")
    parser.add_argument("--start", type=Path, help="a checkpoint whose connector and decoder this training continues, on the features of its own tower")
    parser.add_argument("--every", type=int, default=500, help="steps after which the decoder's training is saved")
    parser.add_argument("--rate", type=float, default=1e-3, help="the decoder's highest learning rate")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=int, help="number of pictures of each split to test")
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
    if args.stage == "tower":
        torch.save({"tower": model.weights(model.load(args.start)[1]), "precision": {}}, args.work / "encoder.pt")
    if args.stage in ("features", "all"):
        make_features(args.work, TRAIN_SIZES | TEST_SIZES, args.arm == "blur")
    if args.stage in ("decoder", "all"):
        train_decoder(args.work, args.arm, args.steps, args.reports, args.rate, args.seed, out, args.init, args.start, args.every)
    if args.stage == "test":
        test(args.work, args.arm, args.seed, out, args.limit, args.results)
