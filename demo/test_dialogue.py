"""Tests of the conversations: every answer is understood by the rules of `prompts.py` and true, and "yes" and "no" are equally frequent.

    python -m unittest demo/test_dialogue.py
"""

import sys
import unittest
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import dialogue  # noqa: E402
import phantom  # noqa: E402
import prompts  # noqa: E402
import questions  # noqa: E402
import speech  # noqa: E402
from test_generator import unpainted  # noqa: E402


class Dialogue(unittest.TestCase):
    def test_answers_are_understood_and_true(self):
        for kind in phantom.KINDS:
            for seed in range(150):
                p = unpainted(seed, kind)
                facts, rng = {"kind": kind, **p.facts}, np.random.default_rng(seed)
                if not p.exact:
                    self.assertFalse({"middle", "fine"} & set(dialogue.topics(p)))
                for topic in dialogue.topics(p):
                    why, sure = ({"asks": [f"{form}:{topic}"], "prompt": ""} for form in ("why", "sure"))
                    said, seen = dialogue.statement(p, topic), dialogue.reason(p, topic)
                    self.assertEqual(prompts.problem(sure, facts, said), "", said)
                    self.assertEqual(prompts.problem(sure, facts, f"Yes, {dialogue.lower(said)}"), "", said)
                    self.assertEqual(prompts.problem(why, facts, seen), "", seen)
                    self.assertEqual(prompts.problem(why, facts, f"{said} {seen}"), "", seen)
                    term = dialogue.TERMS[topic if topic in dialogue.TERMS else (kind, topic)]
                    self.assertEqual(prompts.problem({"asks": [f"term:{topic}"], "prompt": ""}, facts, term), "", term)
                if p.exact:
                    for place in ("right", "left", *phantom.ZONES[kind]):
                        said = dialogue.in_place(p, place)
                        self.assertEqual(prompts.problem({"asks": [f"findings@{place}"], "prompt": ""}, facts, said), "", said)
                for turns in dialogue.fragments(p, rng, 10):
                    for turn in turns:
                        strange = prompts.understood(turn.answer, kind, [prompts.asks(f"why:{topic}") for topic in prompts.TOPICS[kind]])[2]
                        self.assertFalse(strange and turn.answer not in (*dialogue.TERMS.values(), *dialogue.KIND_REASONS.values()), (turn, strange))
                        self.assertNotIn("{", turn.question + turn.answer)

    def test_yes_and_no_are_balanced(self):
        for kind in phantom.KINDS:
            counts = defaultdict(Counter)
            for seed in range(3000):
                p, rng = unpainted(seed, kind), np.random.default_rng(seed)
                talker = dialogue.Talker(p, rng)
                for name in ("single", "other_side", "follow", "why", "sure"):
                    for place, turn in enumerate(getattr(talker, name)()):
                        if turn.answer[:3] in ("Yes", "No.", "No,") and (name != "sure" or not place):
                            counts[name, place][turn.answer[:2]] += 1
            for key, counter in counts.items():
                self.assertAlmostEqual(counter["Ye"] / counter.total(), 0.5, delta=0.07, msg=f"{kind} {key} {counter}")

    def test_strangers_are_refused(self):
        p = phantom.Phantom(3, phantom.STRANGER, np.zeros((1, 1, 3), np.uint8), True, {}, {})
        polite = {questions.NOT_KNOWN, *questions.FIXED.values(), dialogue.DRAWN, dialogue.PRIVATE}
        for turns in dialogue.fragments(p, np.random.default_rng(3), 300):
            for turn in turns:
                self.assertIn(turn.answer, polite)

    def test_slips_keep_the_words_readable(self):
        rng = np.random.default_rng(0)
        for _ in range(300):
            text = "where are the septal lines"
            self.assertTrue(15 < len(speech.slips(text, rng)) < 36)
            self.assertTrue(speech.typed(text, rng))


if __name__ == "__main__":
    unittest.main()
