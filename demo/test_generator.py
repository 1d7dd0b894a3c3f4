"""Tests of the generator: the scale gate, determinism, balance, held-out wordings and the files.

    python -m unittest demo/test_generator.py
"""

import json
import sys
import tempfile
import unittest
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
import generate  # noqa: E402
import phantom  # noqa: E402
import questions  # noqa: E402

LEAK_LIMIT = 1.5  # grey levels at 128 px at the edge of a fine patch


def bicubic(image: np.ndarray, factor: int) -> np.ndarray:
    """Torch's bicubic (a = -0.75, no anti-aliasing) at factor 2 or 4, exactly: (h, w, c) uint8 -> (h / factor, w / factor, c) times 1024."""
    taps = np.array([-3, 19, 19, -3])  # both factors sample half-way between two px
    value = image.astype(np.int64)
    for axis in (0, 1):
        n = value.shape[axis] // factor
        first = np.arange(n) * factor + factor // 2 - 2
        value = sum(tap * value.take(np.clip(first + i, 0, value.shape[axis] - 1), axis) for i, tap in enumerate(taps))
    return value


def central(p: phantom.Phantom) -> np.ndarray:
    """The square that the reference preprocessing keeps."""
    height, width = p.image.shape[:2]
    top, left = (height - phantom.SIDE) // 2, (width - phantom.SIDE) // 2
    return p.image[top : top + phantom.SIDE, left : left + phantom.SIDE]


def sample(kind: str, seeds: range, split: str = "train"):
    """Exact phantoms of a kind."""
    return [p for p in (phantom.make(seed, split, kind) for seed in seeds) if p.exact]


class Gate(unittest.TestCase):
    def test_textures_exist_at_their_scales_only(self):
        worst = 0.0
        for kind in phantom.KINDS:
            for split in ("train", "ood"):
                for p in sample(kind, range(14), split):
                    shown = central(p)
                    for hide in ("fine", "middle"):
                        hidden = central(phantom.make(p.seed, split, kind, hide=(hide,)))
                        self.assertEqual(bool(p.facts[hide]), not np.array_equal(shown, hidden))
                        np.testing.assert_array_equal(bicubic(shown, 4), bicubic(hidden, 4))
                        difference = np.abs(bicubic(shown, 2) - bicubic(hidden, 2)).max() / 1024
                        if hide == "fine":
                            worst = max(worst, difference)
                        elif p.facts["middle"]:
                            self.assertGreater(difference, 20)
        self.assertLess(worst, LEAK_LIMIT)

    def test_margins_do_not_move_the_square(self):
        for seed in range(40):
            p = phantom.make(seed, kind="chest")
            height, width = p.image.shape[:2]
            if p.exact:
                self.assertEqual(min(height, width), phantom.SIDE)
                self.assertEqual((height % 4, width % 4), (0, 0))
            else:
                self.assertEqual((p.facts["fine"], p.facts["middle"]), ([], []))


class Make(unittest.TestCase):
    def test_is_a_pure_function(self):
        for seed in range(8):
            a, b = phantom.make(seed), phantom.make(seed)
            np.testing.assert_array_equal(a.image, b.image)
            self.assertEqual((a.kind, a.facts), (b.kind, b.facts))
            np.testing.assert_array_equal(a.image, phantom.make(seed, kind=a.kind).image)
            self.assertFalse(np.array_equal(a.image, phantom.make(seed + 1000, kind=a.kind).image))
            json.dumps(a.facts)

    def test_cells_follow_the_facts(self):
        for kind in phantom.KINDS:
            for p in sample(kind, range(30)):
                self.assertEqual(list(p.cells), list(phantom.LABELS))
                for cells in p.cells.values():
                    self.assertEqual((cells.shape, cells.dtype), ((phantom.GRID, phantom.GRID), np.dtype(bool)))
                self.assertTrue(p.cells[f"kind_{kind}"].all())
                for scale in ("middle", "fine"):
                    for pattern in ("horizontal", "vertical", "checker"):
                        wanted = sum(sign["pattern"] == pattern for sign in p.facts[scale])
                        self.assertGreaterEqual(p.cells[f"{scale}_{pattern}"].sum(), 16 * wanted)
                        self.assertEqual(p.cells[f"{scale}_{pattern}"].any(), wanted > 0)
                fine, middle = ([p.cells[f"{scale}_{pattern}"] for pattern in ("horizontal", "vertical", "checker")] for scale in ("fine", "middle"))
                self.assertFalse((np.any(fine, 0) & np.any(middle, 0)).any())
                for name in ("effusion", "bleed", "haemorrhage", "heart_enlarged", "ventricles_enlarged"):
                    if name in p.facts:
                        self.assertEqual(p.cells[name].any(), bool(p.facts[name]), (kind, p.seed, name))

    def test_facts_are_balanced_and_pairs_are_held_out(self):
        for kind in phantom.KINDS:
            rng = np.random.default_rng(0)
            for name in ("middle", "fine"):
                held_out = phantom.HELD_OUT.get((kind, name), set())
                pairs = {"train": Counter(), "ood": Counter()}
                for split, counter in pairs.items():
                    for _ in range(2000):
                        facts = phantom.draw_facts(rng, kind, split, exact=True)
                        counter.update((facts.get("eye", sign["pattern"]), sign["zone"]) for sign in facts[name])
                self.assertFalse(held_out & set(pairs["train"]))
                self.assertTrue(held_out <= set(pairs["ood"]))
                for zone in phantom.ZONES[kind]:
                    share = sum(n for (_, z), n in pairs["train"].items() if z == zone) / pairs["train"].total()
                    self.assertAlmostEqual(share, 0.25, delta=0.05)

    def test_strangers_are_frequent_enough_and_of_many_kinds(self):
        n = sum(phantom.make(seed).kind == phantom.STRANGER for seed in range(300))
        self.assertTrue(10 <= n <= 45, n)
        looks = set()
        for seed in range(60):
            p, again = (phantom.make(seed, kind=phantom.STRANGER) for _ in range(2))
            np.testing.assert_array_equal(p.image, again.image)
            self.assertEqual((p.image.dtype, p.image.shape[2]), (np.dtype(np.uint8), 3))
            self.assertGreaterEqual(min(p.image.shape[:2]), 190)
            self.assertFalse(any(cells.any() for cells in p.cells.values()))
            looks.add(int(p.image.std() / 8))
        self.assertGreater(len(looks), 6)

    def test_splits_are_disjoint(self):
        ends = sorted((seeds.start, seeds.stop) for seeds in phantom.SPLITS.values())
        for (_, stop), (start, _) in zip(ends, ends[1:]):
            self.assertLessEqual(stop, start)


def unpainted(seed: int, kind: str) -> phantom.Phantom:
    """A phantom without its picture, for tests of the language."""
    rng = np.random.default_rng([seed, 7])
    exact = bool(rng.random() < 0.9)
    return phantom.Phantom(seed, kind, np.zeros((1, 1, 3), np.uint8), exact, phantom.draw_facts(rng, kind, "train", exact), {})


class Questions(unittest.TestCase):
    def test_closed_answers_are_balanced(self):
        for kind in phantom.KINDS:
            answers = defaultdict(Counter)
            for seed in range(4000):
                for q in questions.questions(unpainted(seed, kind), np.random.default_rng(seed)):
                    yes_no = q["answer"] in ("Yes.", "No.")
                    if q["answer_type"] == "OPEN":
                        self.assertFalse(yes_no, q)
                    else:
                        offered = " or " in q["question"].lower() and q["answer"][:-1].lower() in q["question"].lower()
                        self.assertTrue(yes_no or offered, q)
                        answers[q["id"]][q["answer"]] += 1
            for id, counter in answers.items():
                self.assertEqual(len(counter), 2, (id, counter))
                self.assertAlmostEqual(min(counter.values()) / counter.total(), 0.5, delta=0.03, msg=f"{id} {counter}")

    def test_wordings(self):
        train, held_out = set(), set()
        for kind in phantom.KINDS:
            for seed in range(300):
                p = unpainted(seed, kind)
                rng = np.random.default_rng(seed)
                train |= {q["question"] for q in questions.questions(p, rng)}
                held_out |= {q["question"] for q in questions.questions(p, rng, held_out=True)}
                asked = questions.questions(p, rng)
                self.assertEqual(len({q["id"] for q in asked}), len(asked))
                if not p.exact:
                    self.assertFalse([q for q in asked if q["scale"] in ("fine", "middle")])
                self.assertIn(len(questions.suggested(p)), (3, 4))
        self.assertFalse(train & held_out)
        self.assertFalse([text for text in train | held_out if "{" in text])
        for form in [*questions.WORDINGS.values(), *questions.FORMS.values()]:
            self.assertFalse(set(form.direct) & set(form.held_out))
            self.assertGreaterEqual(len(form.direct), 5)
            self.assertGreaterEqual(len(form.held_out), 2)

    def test_strangers_are_refused(self):
        p = phantom.Phantom(3, phantom.STRANGER, np.zeros((1, 1, 3), np.uint8), True, {}, {})
        asked = questions.questions(p, np.random.default_rng(3))
        self.assertEqual(len({q["id"] for q in asked}), len(asked))
        polite = set(questions.FIXED.values()) - {questions.FIXED["unknowable"]}
        for q in asked:
            self.assertEqual(q["scale"], "general")
            self.assertIn(q["answer"], {questions.NOT_KNOWN, "No."} | polite)
        self.assertEqual(questions.caption(p), questions.NOT_KNOWN)

    def test_reports_name_every_finding(self):
        for kind in phantom.KINDS:
            for seed in range(50):
                p = unpainted(seed, kind)
                self.assertEqual(questions.caption(p).count(":"), 4)


class Files(unittest.TestCase):
    def test_records(self):
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            manifest = generate.generate("val", 4, folder)
            self.assertEqual(manifest, generate.generate("val", 4, folder))
            written = json.loads((folder / "val.json").read_text())
            self.assertEqual(len(written), manifest["records"])
            self.assertEqual(len({record["id"] for record in written}), len(written))
            for record in written:
                self.assertLessEqual({"id", "image", "answer_type", "question_type", "scale", "finding", "seed", "conversations"}, set(record))
                self.assertIn(record["seed"], phantom.SPLITS["val"])
                human, gpt = record["conversations"]
                self.assertEqual((human["from"], gpt["from"]), ("human", "gpt"))
                self.assertTrue(human["value"].startswith("<image>\n"))
                p = phantom.make(record["seed"])
                np.testing.assert_array_equal(np.asarray(Image.open(folder / "images" / record["image"])), p.image)
            generate.generate("train", 3, folder, multi_turn=True)
            for record in json.loads((folder / "train.json").read_text()):
                said = [turn["value"] for turn in record["conversations"]]
                self.assertEqual([("<image>" in text) for text in said], [True] + [False] * (len(said) - 1))
            self.assertLessEqual(generate.generate("test", 20, folder, limit=30)["records"], 30)


if __name__ == "__main__":
    unittest.main()
