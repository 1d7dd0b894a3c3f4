"""Writes PhantomVQA as files: pictures, questions in LLaVA-Med's format, and a manifest with one hash over everything.

    python demo/generate.py --split test --images 2000 -o data/phantomvqa [--keep 0.5] [--multi-turn] [--limit 12000]

DIR/images/SEED.png are the pictures; DIR/SPLIT.json is a list of records, one for each question (or, with --multi-turn, one conversation for each
picture); DIR/SPLIT.manifest.json has seeds, counts and the hash. The same arguments give the same hash.
"""

import argparse
import hashlib
import json
from pathlib import Path

import numpy as np
from PIL import Image

import phantom
import questions

LIKELY = {"fine": 1.0, "middle": 0.7, "coarse": 0.7, "general": 0.25}  # fraction of a scale's questions kept with --keep 1


def asked(p: phantom.Phantom, split: str, keep: float) -> list[dict]:
    """The questions of a phantom in random order. Each is kept at random, regardless of its answer, which keeps the answers balanced."""
    rng = np.random.default_rng([p.seed, 1])
    found = questions.questions(p, rng, held_out=split == "test-paraphrase")
    found = [q for q in found if rng.random() < keep * LIKELY[q["scale"]]]
    return [found[i] for i in rng.permutation(len(found))]


def records(p: phantom.Phantom, found: list[dict], multi_turn: bool) -> list[dict]:
    """LLaVA-Med records of a picture's questions; the picture comes before the first question of a conversation."""

    def turns(qs: list[dict]) -> list[dict]:
        said = []
        for i, q in enumerate(qs):
            said += [{"from": "human", "value": ("" if i else "<image>\n") + q["question"]}, {"from": "gpt", "value": q["answer"]}]
        return said

    image = f"{p.seed}.png"
    if multi_turn:
        return [{"id": str(p.seed), "image": image, "seed": p.seed, "kind": p.kind, "conversations": turns(found)}] if found else []
    fields = ("answer_type", "question_type", "scale", "finding")
    return [
        {"id": f"{p.seed}-{q['id']}", "image": image, **{name: q[name] for name in fields}, "seed": p.seed, "kind": p.kind, "conversations": turns([q])}
        for q in found
    ]


def generate(split: str, n_images: int, directory: Path, keep: float = 1.0, multi_turn: bool = False, limit: int | None = None) -> dict:
    """Write a split and return its manifest. `limit` is the largest number of records; pictures beyond it are not written."""
    seeds = phantom.SPLITS[split]
    if not 0 < n_images <= len(seeds):
        raise ValueError(f"images: expected 1 to {len(seeds)}, found {n_images}")
    (directory / "images").mkdir(parents=True, exist_ok=True)
    everything, seen, written = hashlib.sha256(), {}, []
    for seed in seeds[:n_images]:
        p = phantom.make(seed, phantom.distribution(split))
        digest = hashlib.sha256(repr(p.image.shape).encode() + p.image.tobytes()).digest()
        if digest in seen:
            raise ValueError(f"seed {seed}: the same picture as seed {seen[digest]}")
        new = records(p, asked(p, split, keep), multi_turn)
        if limit is not None and len(written) + len(new) > limit:
            break
        seen[digest] = seed
        Image.fromarray(p.image).save(directory / "images" / f"{seed}.png")
        everything.update(digest + json.dumps(new, sort_keys=True).encode())
        written += new
    manifest = {"split": split, "first_seed": seeds[0], "images": len(seen), "records": len(written), "keep": keep, "multi_turn": multi_turn}
    manifest["sha256"] = everything.hexdigest()
    (directory / f"{split}.json").write_text(json.dumps(written, indent=1) + "\n")
    (directory / f"{split}.manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--split", choices=list(phantom.SPLITS), required=True)
    parser.add_argument("--images", type=int, required=True, help="number of pictures")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--keep", type=float, default=1.0, help="fraction of the questions to keep (default 1)")
    parser.add_argument("--multi-turn", action="store_true", help="one conversation per picture, for training")
    parser.add_argument("--limit", type=int, help="largest number of records")
    arguments = parser.parse_args()
    print(json.dumps(generate(arguments.split, arguments.images, arguments.output, arguments.keep, arguments.multi_turn, arguments.limit), indent=1))


if __name__ == "__main__":
    main()
