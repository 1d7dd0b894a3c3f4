"""Writes demo/REPORT.md from the saved results: python demo/report.py. With --measure QUANTIZE FILES it first measures the checkpoint natively.

FILES is a folder with the splits as `generate.py` writes them, QUANTIZE the command-line tool.

demo/results/ARM-STEPS-SEED.json     what `train.py test` found of every arm of the ablation, in PyTorch
demo/results/native/NAME.json        what `quantize eval --json` printed of the bundled checkpoint, converted
demo/results/prompts*.json           what `talk.py` asked, the answers, and which are sensible
demo/{misses,training,strangers}.md  why thresholds were missed, how it was trained, pictures used for nothing else; written by hand

The thresholds below were written before the final run and do not move.
"""

import argparse
import json
import subprocess
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

DEMO = Path(__file__).parent
SPLITS = {"test": "held-out seeds", "test-paraphrase": "held-out wordings", "test-ood": "out of distribution"}
# Percent: (what, scale, kind of answer, arm, at least or at most, threshold)
THRESHOLDS = [
    ("coarse signs, closed", "coarse", "CLOSED", "all", ">=", 95),
    ("middle signs, closed", "middle", "CLOSED", "all", ">=", 90),
    ("fine signs, closed", "fine", "CLOSED", "all", ">=", 85),
    ("coarse signs, open", "coarse", "OPEN", "all", ">=", 80),
    ("middle signs, open", "middle", "OPEN", "all", ">=", 80),
    ("fine signs, open", "fine", "OPEN", "all", ">=", 80),
    ("fine signs, closed, one scale", "fine", "CLOSED", "one", "<=", 55),
    ("fine signs, closed, blur control", "fine", "CLOSED", "blur", "<=", 55),
]
ARMS = {
    "one": "one scale: 64",
    "two": "two scales: 64, 128",
    "all": "all scales: 64, 128, 256",
    "blur": "blur control: all three, the larger ones enlarged from 64",
}
COLUMNS = [(scale, kind) for scale in ("coarse", "middle", "fine") for kind in ("CLOSED", "OPEN")]
MAX_LOSS = 1.0  # points that 4 bits may lose compared with f32
# Name of a run: number format, split, arguments of `quantize eval`. The formats and the controls answer the first questions of the test split.
FIRST = ["--limit", "6000"]
NATIVE = {
    "q4_0, test": ("q4_0", "test", []),
    "q4_0, held-out wordings": ("q4_0", "test-paraphrase", []),
    "q4_0, out of distribution": ("q4_0", "test-ood", []),
    "q4_0, first 6000": ("q4_0", "test", FIRST),
    "q4_k, first 6000": ("q4_k", "test", FIRST),
    "q8_0, first 6000": ("q8_0", "test", FIRST),
    "f32, first 6000": ("f32", "test", FIRST),
    "q4_0, grey picture": ("q4_0", "test", [*FIRST, "--blank"]),
    "q4_0, picture of another question": ("q4_0", "test", [*FIRST, "--shuffle"]),
    "q4_0, another picture of the same kind": ("q4_0", "test-swapped", FIRST),
}
TALK = {"before": DEMO / "results/prompts-before.json", "now": DEMO / "results/prompts.json"}
CONTROLS = ("q4_0, grey picture", "q4_0, picture of another question", "q4_0, another picture of the same kind")


def interval(percent, n):
    """Half of Wilson's 95 % interval, in points."""
    z, p = 1.96, percent / 100
    return 100 * z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5 / (1 + z * z / n)


def shown(percent, n):
    return f"{percent:.1f} ± {interval(percent, n):.1f}"


def table(header, rows):
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


def of_arm(results, split="test"):
    """(percent, number) for each column, of an arm on a split: the mean over its seeds, and how many questions one of them answered."""
    columns = [[result["splits"][split][f"{scale} {kind}"] for result in results] for scale, kind in COLUMNS]
    return [(sum(percent for percent, _ in column) / len(column), column[0][1]) for column in columns]


def seeds_table(ablation):
    """Each seed of each arm, for those arms that have several."""
    rows = [(f"{arm}, seed {result['seed']}", of_arm([result])) for arm in ARMS for result in ablation.get(arm, ()) if len(ablation[arm]) > 1]
    return columns_table(rows) if rows else ""


def of_native(report):
    """(percent, number) for each column, of a run of `quantize eval`."""
    parts = (report["scale"][scale][kind.lower()] for scale, kind in COLUMNS)
    return [(part["accuracy"], part["n"]) for part in parts]


def thresholds(found):
    """`found` of an arm and split: (percent, number) for each column."""
    rows = []
    for what, scale, kind, arm, sign, threshold in THRESHOLDS:
        row = [what, f"{sign} {threshold}"]
        for split in SPLITS:
            if (arm, split) not in found:
                row.append("not measured")
                continue
            percent, n = found[arm, split][COLUMNS.index((scale, kind))]
            met = percent >= threshold if sign == ">=" else percent <= threshold
            row.append(shown(percent, n) + (", met" if met else ", **missed**"))
        rows.append(row)
    return table(["", "threshold, %", *SPLITS.values()], rows)


def columns_table(rows):
    """Rows of (name, found) under the columns."""
    return table(["", *(f"{scale} {kind.lower()}" for scale, kind in COLUMNS)], [[name, *(shown(*one) for one in found)] for name, found in rows])


def formats_table(native):
    """What 4 bits cost: percent correct on the same questions, and points lost compared with f32."""
    reports = {name.split(",")[0]: native[name] for name in NATIVE if name.endswith("first 6000") and name in native}
    whole = reports["f32"]["strict"]
    rows = []
    for name, report in reports.items():
        strict = report["strict"]
        lost = [whole[kind]["accuracy"] - strict[kind]["accuracy"] for kind in ("closed", "open")]
        rows.append([name, *(f"{strict[kind]['accuracy']:.2f}" for kind in ("closed", "open")), *(f"{points:+.2f}" for points in lost),
                     "met" if max(lost) <= MAX_LOSS else "**missed**"])
    return table(["", "closed", "open", "closed, lost", "open, lost", f"at most {MAX_LOSS:.0f} point"], rows)


def talk():
    """Sensible answers to the prompts of prompts.json, of the model before it was trained on conversations and of the present one: by split and form."""
    found = {name: json.loads(path.read_text())["sensible"] for name, path in TALK.items() if path.exists()}
    rows = [(form, *(f"{of[form][0]:.1f}" for of in found.values()), str(n)) for form, (_, n) in next(iter(found.values())).items()]
    return table(["", *found, "prompts"], rows)


def majority(files):
    """The most frequent answer to each question, weighted by how often it is asked: (percent, number) for each column, from the test split's records."""
    answers = defaultdict(lambda: defaultdict(Counter))
    for record in json.loads((files / "test.json").read_text()):
        answers[record["scale"], record["answer_type"]][record["id"].split("-", 1)[1]][record["conversations"][1]["value"]] += 1
    found = []
    for column in COLUMNS:
        counters = answers[column].values()
        n = sum(counter.total() for counter in counters)
        found.append((100 * sum(max(counter.values()) for counter in counters) / n, n))
    return found


def swap(files):
    """The test split again, each question with another picture of the same kind: what the wording alone reveals."""
    records = json.loads((files / "test.json").read_text())
    images = defaultdict(list)
    for record in records:
        if record["image"] not in images[record["kind"]]:
            images[record["kind"]].append(record["image"])
    following = {image: group[idx - 1] for group in images.values() for idx, image in enumerate(group)}
    (files / "test-swapped.json").write_text(json.dumps([{**record, "image": following[record["image"]]} for record in records]))


def measure(quantize, files):
    """Converts the checkpoint to every format and lets `quantize eval` ask and score; an interrupted run resumes."""
    out = DEMO / "results" / "native"
    out.mkdir(parents=True, exist_ok=True)
    swap(files)
    (DEMO / "results" / "majority.json").write_text(json.dumps(majority(files)) + "\n")

    def run(name):
        dtype, split, options = NATIVE[name]
        folder = files / "models" / dtype
        plain = name.replace(", ", "-").replace(" ", "-").replace("'", "")
        answers = [quantize, "eval", folder, "--questions", files / f"{split}.json", "--images", files / "images", "--ranks", "1",
                   "--max-tokens", "96", "--json", "-o", files / f"{plain}.jsonl", *options]
        report = json.loads(subprocess.run(answers, check=True, stdout=subprocess.PIPE).stdout)
        kept = {"name": name, "n_questions": report["n_questions"], "protocol": report["protocol"], "strict": report["strict"],
                "scale": report["breakdown"]["scale"], "strangers": report["breakdown"]["finding"].get("stranger")}
        (out / f"{plain}.json").write_text(json.dumps(kept, indent=1) + "\n")

    for dtype in {dtype for dtype, _, _ in NATIVE.values()}:
        subprocess.run([quantize, "convert", DEMO / "checkpoint", "--type", dtype, "-o", files / "models" / dtype], check=True)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, NATIVE))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", nargs=2, type=Path, metavar=("QUANTIZE", "FILES"))
    arguments = parser.parse_args()
    if arguments.measure:
        measure(*arguments.measure)
    ablation = defaultdict(list)
    for path in sorted((DEMO / "results").glob("*-*-*.json")):
        result = json.loads(path.read_text())
        ablation[result["arm"]].append(result)
    native = {report["name"]: report for report in (json.loads(path.read_text()) for path in sorted((DEMO / "results/native").glob("*.json")))}
    test = native["q4_0, test"]
    found = {(arm, split): of_arm(results, split) for arm, results in ablation.items() for split in SPLITS}
    of_model = {split: of_native(native[name]) for name, (dtype, split, options) in NATIVE.items() if dtype == "q4_0" and not options}
    found |= {("all", split): columns for split, columns in of_model.items()}
    protocol, strangers = test["protocol"]["scores"], test["strangers"]["open"]
    n_seeds, n_steps = len(ablation["all"]), ablation["all"][0]["steps"]
    parts = [
        "# PhantomVQA: what the demo model can do\n",
        "Made by `demo/report.py` from the files in `demo/results/`. PhantomVQA is drawn by a program. It shows that several scales see what one cannot, and that\n"
        "the whole pipeline from training to the browser works. It says nothing about medicine.\n",
        f"## Thresholds\n\nWritten down before the first training; they do not move. The bundled model at 4 bits, by `quantize eval`: {test['n_questions']} questions about 2000 pictures of\n"
        "held-out seeds; the same with wordings that never occur in training; and out-of-distribution pictures: noise and contrast beyond the training's range, and,\n"
        "for half of the signs of some findings, pairs of place and direction that never occur in training. The last two rows are arms of the ablation. An answer is\n"
        "correct if it matches word for word; ± is half of the 95 % interval, which treats questions as independent.\n",
        thresholds(found),
        (DEMO / "misses.md").read_text(),
        "With their own rules, published scripts would print "
        f"{protocol['yes/no accuracy']:.1f} for closed questions and {protocol['recall']:.1f} (token recall) for open ones.\n",
        f"Of the questions about drawn and noisy pictures that are not phantoms, {shown(strangers['accuracy'], strangers['n'])} % were answered with "
        "\"This is not a picture that I know.\", as they should be.\n",
        "## What people type\n\n300 prompts, written by hand before the training for them: sensible answers in percent, by the rules of `demo/prompts.py`, about the sample\n"
        "pictures. The untouched hundred is \"test\"; the other rows are the prompts to develop on, all and by form.\n",
        talk(),
        "## Without the right picture\n\nThe most frequent answer to each question, without any model; then the model's answers to the first 6000 questions of the test split with another picture of the\n"
        "same kind, with any other picture, and with a grey one. With a picture of the same kind it does no better than guessing, so the wording alone reveals nothing. It refuses a\n"
        "grey picture or one of another kind, which counts as wrong here.\n",
        columns_table([("most frequent answer", json.loads((DEMO / "results/majority.json").read_text()))]
                      + [(name.removeprefix("q4_0, "), of_native(native[name])) for name in reversed(CONTROLS)]),
        f"## What the scales are for\n\nEach arm: the same frozen encoder; a new connector and the bundled decoder, which can already speak; both trained in the same way for {n_steps} steps, {'one seed' if n_seeds == 1 else f'{n_seeds} seeds'}; in PyTorch,\n"
        "the first 700 pictures of the test split. The features of one and two scales are slices of those of all. The blur control has the same network and cost as all scales, but its larger\n"
        "pictures are enlarged from the coarse one: what it lacks is resolution, not capacity. This training is shorter than the bundled model's; it shows\n"
        "which arm can see which signs at all.\n",
        columns_table([(ARMS[arm], of_arm(ablation[arm])) for arm in ARMS if arm in ablation]),
        seeds_table(ablation),
        "## Number formats\n\nThe same checkpoint, converted; the first 6000 questions of the test split, natively. Training ended on 4-bit weights (Q4_0).\n",
        formats_table(native),
    ]
    for name in ("training.md", "strangers.md"):
        parts.append((DEMO / name).read_text())
    (DEMO / "REPORT.md").write_text("\n".join(part for part in parts if part))


if __name__ == "__main__":
    main()
