"""Tests of the prompts and of the rules for a sensible answer.

    python -m unittest demo/test_prompts.py
"""

import json
import sys
import unittest
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import dialogue  # noqa: E402
import phantom  # noqa: E402
import prompts  # noqa: E402
import questions  # noqa: E402
from test_generator import unpainted  # noqa: E402

sign = lambda pattern, zone: {"pattern": pattern, "zone": zone}
CHEST = {"kind": "chest", "heart_enlarged": True, "effusion": "right", "middle": [sign("vertical", "right upper")], "fine": [sign("horizontal", "left lower")]}
EMPTY = {"kind": "chest", "heart_enlarged": False, "effusion": None, "middle": [], "fine": []}
BRAIN = {"kind": "brain", "ventricles_enlarged": False, "bleed": "left", "middle": [sign("horizontal", "left front")],
         "fine": [sign("checker", "right back"), sign("checker", "left back")]}
TISSUE = {"kind": "tissue", "stain": "pink", "cellularity": "low", "middle": [sign("horizontal", "upper left")], "fine": [sign("vertical", "lower right")]}
FUNDUS = {"kind": "fundus", "eye": "right", "haemorrhage": "lower left", "middle": [sign("checker", "upper right")],
          "fine": [sign("checker", zone) for zone in ("upper left", "upper right", "lower left")]}

# (facts, asks, answers that are sensible, answers that are not)
CASES = [
    (CHEST, ["findings"], ["A chest film with an enlarged heart and an effusion on the right.", "There is an effusion on the right.", "The heart is enlarged."],
     ["The chest.", "A chest film.", "A chest film with an effusion on the left.", "The picture cannot tell.", "A brain CT with a bleed on the left.", ""]),
    (EMPTY, ["findings"], ["A chest film without findings.", "Everything looks normal."], ["A chest film with an effusion on the left."]),
    (CHEST, ["detail"], ["Chest film. Heart: enlarged. Effusion: right. Septal lines: vertical, right upper zone. Fine lines: horizontal, left lower zone.",
                         "A chest film with an enlarged heart, an effusion on the right, septal lines in the right upper zone and fine lines in the left lower zone."],
     ["The heart is enlarged.", "Chest film. Heart: enlarged. Effusion: none. Septal lines: vertical, right upper zone. Fine lines: horizontal, left lower zone."]),
    (BRAIN, ["detail"], ["Brain CT. Ventricles: normal. Bleed: left. Coarse patch: barred horizontal, left front quadrant. Fine spots: 2, right back and left back quadrant."],
     ["Brain CT. Ventricles: normal. Bleed: left. Coarse patch: barred horizontal, left front quadrant. Fine spots: 3, right back and left back quadrant."]),
    (TISSUE, ["detail"], ["A pink tissue with low cellularity, bands in the upper left quadrant and fine stripes in the lower right quadrant."],
     ["A purple tissue with low cellularity, bands in the upper left quadrant and fine stripes in the lower right quadrant."]),
    (FUNDUS, ["detail"], ["A right eye fundus with a haemorrhage in the lower left quadrant, mottling in the upper right quadrant and "
                          "fine dots in the upper left, upper right and lower left quadrant."],
     ["A left eye fundus with a haemorrhage in the lower left quadrant and mottling in the upper right quadrant."]),
    (CHEST, ["normal?"], ["No.", "No. There is an effusion on the right."], ["Yes.", "Normal."]),
    (CHEST, ["heart=enlarged"], ["Yes.", "Yes, the heart is enlarged.", "The heart is enlarged."], ["No.", "Normal.", "The picture cannot tell.", "Yes, the heart is normal."]),
    (CHEST, ["heart=normal"], ["No.", "No, the heart is enlarged.", "Enlarged."], ["Yes."]),
    (CHEST, ["heart"], ["Enlarged.", "The heart is enlarged."], ["Yes.", "Normal.", "On the right."]),
    (CHEST, ["effusion"], ["There is an effusion on the right.", "On the right."], ["There is none.", "Enlarged."]),
    (EMPTY, ["effusion"], ["There is none.", "There is no effusion."], ["There is an effusion.", "On the right."]),
    (CHEST, ["effusion?", "effusion.where"], ["Yes, on the right.", "Yes. There is an effusion on the right."], ["Yes.", "The picture cannot tell.", "Yes, on the left."]),
    (EMPTY, ["effusion?", "effusion.where"], ["No.", "No, there is none.", "There is no effusion."], ["Yes.", "Yes, on the left."]),
    (CHEST, ["heart=normal", "effusion?"], ["No, the heart is enlarged. There is an effusion on the right.", "The heart is enlarged and there is an effusion."],
     ["Yes.", "No.", "The heart is enlarged."]),
    (BRAIN, ["fine.count", "fine.where"], ["2, in the right back and left back quadrant.", "There are 2 fine spots, in the right back and left back quadrant."],
     ["2.", "There are 2 fine spots, in the right back quadrant.", "3, in the right back and left back quadrant."]),
    (TISSUE, ["stain", "cellularity"], ["The stain is pink and the cellularity is low.", "Pink. Low."], ["Pink.", "The stain is pink and the cellularity is high."]),
    (TISSUE, ["middle.where", "middle.direction"], ["In the upper left quadrant. They are horizontal.", "The bands are horizontal, in the upper left quadrant."],
     ["In the upper left quadrant.", "Horizontal.", "In the upper left quadrant. They are vertical."]),
    (FUNDUS, ["eye", "haemorrhage?"], ["Right. Yes.", "This is a right eye, and there is a haemorrhage in the lower left quadrant.", "It is the right eye. Yes, there is a haemorrhage."],
     ["Right.", "The left eye. Yes."]),
    (BRAIN, ["bleed.where", "why:bleed"], ["On the left. I see a bright spot there.", "The bleed is on the left. There is a bright spot in the brain."],
     ["On the left.", "I see a bright spot there."]),
    (CHEST, ["why:heart"], ["The heart is enlarged. It is wider than half of the chest.", "It is wider than half of the chest."],
     ["Yes.", "The heart is enlarged.", "It is narrower than half of the chest.", "The picture cannot tell."]),
    (FUNDUS, ["why:eye"], ["The disc is on the right of the picture."], ["The disc is on the left of the picture.", "Right."]),
    (FUNDUS, ["why:kind"], ["I see vessels and a disc."], ["I see ribs and lungs.", "The eye."]),
    (EMPTY, ["why:effusion"], ["There is no effusion. Both lungs are dark down to the base."], ["The lower part of a lung is white."]),
    (BRAIN, ["sure:bleed"], ["Yes, there is a bleed on the left.", "There is still a bleed on the left."], ["Yes.", "No.", "No, there is a bleed on the left.", "There is no bleed."]),
    (FUNDUS, ["sure:fine.count"], ["Yes, there are 3 fine dots.", "I see 3 fine dots."], ["Yes.", "2.", "Yes, there are fine dots."]),
    (CHEST, ["effusion@left"], ["No.", "No, it is on the right.", "There is no effusion on the left.", "No, there is an effusion on the right."],
     ["Yes.", "On the left.", "There is an effusion on the left."]),
    (CHEST, ["findings@left"], ["Fine lines in the left lower zone.", "There are fine lines in the left lower zone."], ["Nothing on the left.", "An effusion on the right."]),
    (BRAIN, ["findings@right"], ["A fine spot in the right back quadrant and a fine spot in the left back quadrant.", "Fine spots in the right back and left back quadrant."],
     ["Nothing on the right.", "A bleed on the left."]),
    (CHEST, ["unknowable"], ["The picture cannot tell."], ["Yes.", "No.", "An effusion on the right.", "You are welcome."]),
    (CHEST, ["foreign:brain"], ["This is a picture of the chest, not of the brain."], ["No.", "This is a picture of the brain, not of the chest.", "The chest."]),
    (BRAIN, ["kind=brain"], ["Yes.", "Yes, this is a brain CT."], ["No.", "This is a picture of the chest, not of the brain."]),
    (BRAIN, ["modality", "kind"], ["CT. The brain.", "This is a CT of the brain.", "This is a brain CT. It was made by CT."], ["CT.", "X-ray. The brain."]),
    (CHEST, ["thanks"], ["You are welcome."], ["Hello.", "Yes."]),
    (CHEST, ["off_topic"], ["I can only answer questions about the picture."], ["Banana.", "The chest."]),
    (CHEST, ["demo:limits"], ["No. This is a demo on drawn phantoms, not a medical device."], ["Yes.", "The picture cannot tell."]),
    (CHEST, ["term:effusion"], ["The lower part of a lung is white."], ["Yes.", "The picture cannot tell."]),
]  # fmt: skip


class Rules(unittest.TestCase):
    def test_cases(self):
        for facts, asked, good, bad in CASES:
            for answers, expected in ((good, True), (bad, False)):
                for answer in answers:
                    with self.subTest(asks=asked, answer=answer):
                        found = prompts.problem({"asks": asked, "prompt": ""}, facts, answer)
                        self.assertEqual(not found, expected, found)

    def test_every_answer_of_the_generator_is_understood_and_true(self):
        for kind in phantom.KINDS:
            for seed in range(150):
                p = unpainted(seed, kind)
                facts = {"kind": kind, **p.facts}
                for text, asked in ((questions.caption(p), ["detail"]), (questions.description(p), ["findings"])):
                    self.assertEqual(prompts.problem({"asks": asked, "prompt": ""}, facts, text), "", text)


class Prompts(unittest.TestCase):
    def test_file(self):
        found = json.loads(prompts.PROMPTS.read_text())
        self.assertEqual(Counter(prompt["split"] for prompt in found), {"dev": 200, "test": 100})
        counts = Counter((prompt["form"], prompt["split"]) for prompt in found)
        for form in {prompt["form"] for prompt in found}:
            self.assertEqual(counts[form, "dev"], 2 * counts[form, "test"])
        for prompt in found:
            self.assertTrue(prompt["on"] and set(prompt["on"]) <= set(phantom.KINDS))
            for text in prompt["asks"]:
                ask = prompts.asks(text)
                for kind in prompt["on"]:
                    if ask.topic and ask.form not in ("foreign", "demo") and ask.topic not in ("kind", "modality"):
                        self.assertIn(ask.topic, prompts.TOPICS[kind], prompt)

    def test_no_prompt_is_in_the_generator(self):
        asked = set()
        for kind in phantom.KINDS:
            for seed in range(600):
                p, rng = unpainted(seed, kind), np.random.default_rng(seed)
                for held_out in (False, True):
                    asked |= {prompts.plain(one["question"]) for one in questions.questions(p, rng, held_out)}
                asked |= {prompts.plain(turn.question) for turns in dialogue.fragments(p, rng, 30) for turn in turns}
        self.assertFalse(asked & prompts.SENTENCES)


if __name__ == "__main__":
    unittest.main()
