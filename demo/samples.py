"""Writes the page's sample pictures (demo/samples/), adds them to demo/about.json, and prints the true answers to the questions that the page suggests.

    python demo/samples.py
"""

import json
from itertools import count
from pathlib import Path

import numpy as np
from PIL import Image

from phantom import Phantom, make
from questions import caption, questions, suggested

HERE = Path(__file__).parent

# One picture of each kind, from the split "val", with signs of every scale, chosen for their looks and because the bundled model correctly answers what the
# page suggests for them: seed and alternative text, which does not give away an answer.
SAMPLES = {
    "chest": (10_036_853, "Drawn chest film"),
    "brain": (10_005_225, "Drawn CT slice of a brain"),
    "tissue": (10_000_678, "Drawn section of stained tissue"),
    "fundus": (10_000_732, "Drawn back of an eye"),
}


def true_answer(p: Phantom, question: str) -> str:
    """The answer to a wording from `questions`, which draws wordings at random."""
    if question == "Give a full report.":
        return caption(p)
    return next(q["answer"] for seed in count() for q in questions(p, np.random.default_rng(seed)) if q["question"] == question)


def main() -> None:
    """Write pictures and about.json, print answers."""
    path = HERE / "about.json"
    about = json.loads(path.read_text())
    about["samples"] = []
    for kind, (seed, alt) in SAMPLES.items():
        p = make(seed)
        assert p.kind == kind and p.exact, (seed, p.kind, p.exact)
        Image.fromarray(p.image).save(HERE / f"samples/{kind}.png", optimize=True)
        own = suggested(p)[:-1]  # the last one is the report, which is suggested for every picture
        about["samples"].append({"path": f"samples/{kind}.png", "alt": alt, "questions": own})
        print(f"{kind}.png")
        for question in own + about["suggested_questions"]:
            print(f"  {question} -> {true_answer(p, question)}")
    path.write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    main()
