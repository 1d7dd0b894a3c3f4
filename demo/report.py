"""Writes demo/REPORT.md from the saved results: python demo/report.py. With --measure QUANTIZE FILES it first measures the checkpoint natively.

FILES is a folder with the splits as `generate.py` writes them, QUANTIZE the command-line tool.

demo/results/ARM-STEPS-SEED.json     what `train.py test` found of every arm of the ablation, in PyTorch
demo/results/native/NAME.json        what `quantize eval --json` printed of the bundled checkpoint, converted
demo/{misses,training,strangers}.md  why thresholds were missed, how it was trained, pictures that nothing was built with; written by hand

The thresholds below were written before the final run and do not move.
"""

import argparse
import json
import subprocess
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
MAX_LOSS = 1.0  # points that 4 bits may cost against f32
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
    "q4_0, another's picture": ("q4_0", "test", [*FIRST, "--shuffle"]),
}


def interval(percent, n):
    """Half of Wilson's 95 % interval, in points."""
    z, p = 1.96, percent / 100
    return 100 * z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5 / (1 + z * z / n)


def shown(percent, n):
    return f"{percent:.1f} ± {interval(percent, n):.1f}"


def table(header, rows):
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


def read(folder):
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def of_arm(result, split="test"):
    """(percent, number) for each column, of an arm on a split."""
    return [result["splits"][split][f"{scale} {kind}"] for scale, kind in COLUMNS]


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
    """What 4 bits cost: percent of the same questions, and points lost against f32."""
    reports = {name.split(",")[0]: native[name] for name in NATIVE if name.endswith("first 6000") and name in native}
    whole = reports["f32"]["strict"]
    rows = []
    for name, report in reports.items():
        strict = report["strict"]
        lost = [whole[kind]["accuracy"] - strict[kind]["accuracy"] for kind in ("closed", "open")]
        rows.append([name, *(f"{strict[kind]['accuracy']:.2f}" for kind in ("closed", "open")), *(f"{points:+.2f}" for points in lost),
                     "met" if max(lost) <= MAX_LOSS else "**missed**"])
    return table(["", "closed", "open", "closed, lost", "open, lost", f"at most {MAX_LOSS:.0f} point"], rows)


def measure(quantize, files):
    """Converts the checkpoint to every format and lets `quantize eval` ask and score; an interrupted run goes on where it was."""
    out = DEMO / "results" / "native"
    out.mkdir(parents=True, exist_ok=True)

    def run(name):
        dtype, split, options = NATIVE[name]
        folder = files / "models" / dtype
        plain = name.replace(", ", "-").replace(" ", "-").replace("'", "")
        answers = [quantize, "eval", folder, "--questions", files / f"{split}.json", "--images", files / "images", "--ranks", "1",
                   "--max-tokens", "96", "--json", "-o", files / f"{plain}.jsonl", *options]
        report = json.loads(subprocess.run(answers, check=True, stdout=subprocess.PIPE).stdout)
        kept = {"name": name, "n_questions": report["n_questions"], "protocol": report["protocol"], "strict": report["strict"],
                "scale": report["breakdown"]["scale"]}
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
    ablation = {result["arm"]: result for result in read(DEMO / "results")}
    native = {report["name"]: report for report in read(DEMO / "results" / "native")}
    test = native["q4_0, test"]
    found = {(arm, split): of_arm(result, split) for arm, result in ablation.items() for split in SPLITS}
    found |= {("all", split): of_native(native[name]) for name, (_, split, options) in NATIVE.items() if name.startswith("q4_0") and not options}
    protocol = test["protocol"]["scores"]
    parts = [
        "# PhantomVQA: what the demo model can do\n",
        "Made by `demo/report.py` from the files in `demo/results/`. PhantomVQA is drawn by a program. It shows that several scales see what one cannot, and that\n"
        "the whole way from training to the browser works. It says nothing about medicine.\n",
        f"## Thresholds\n\nWritten down before the final run; they do not move. The bundled model at 4 bits, by `quantize eval`: {test['n_questions']} questions about 2000 pictures of\n"
        "held-out seeds, the same with wordings that training never has, and other pictures: noise and contrast outside of the training's, and for half of the signs\n"
        "of some findings a pair of place and direction that training never has. The last two rows are arms of the ablation. An answer is right if it is so word\n"
        "for word; ± is half of the 95 % interval, which takes questions as independent.\n",
        thresholds(found),
        (DEMO / "misses.md").read_text(),
        "Published scripts would print, with their own rules, "
        f"{protocol['yes/no accuracy']:.1f} for closed questions and {protocol['recall']:.1f} (token recall) for open ones.\n",
        "## Without the picture\n\nThe first 6000 questions of the test split, with a grey picture and with that of another question. Nothing is left of what the model\n"
        "knew. Closed answers fall below the 50 % of guessing, since a picture of another kind is answered with \"This is a picture of the eye, not of the chest.\"\n",
        columns_table([(name.removeprefix("q4_0, "), of_native(native[name])) for name, (_, _, options) in NATIVE.items() if options != FIRST and options]),
        f"## What the scales are for\n\nEach arm: the same encoder, frozen; a connector and a decoder of their own, trained alike for {next(iter(ablation.values()))['steps']} steps, one seed; in PyTorch,\n"
        "test split. The features of one and two scales are slices of those of all. The blur control has the same network and cost as all scales, but its larger\n"
        "pictures are enlarged from the coarse one: what it lacks is resolution, not capacity. So short a training leaves every arm unfinished (the bundled model\n"
        "had more than five times as many steps); what it shows is who can see the fine signs at all.\n",
        columns_table([(ARMS[arm], of_arm(ablation[arm])) for arm in ARMS if arm in ablation]),
        "## Number formats\n\nThe same checkpoint, converted; the first 6000 questions of the test split, natively. Training ended on 4-bit weights (Q4_0).\n",
        formats_table(native),
    ]
    for name in ("training.md", "strangers.md"):
        parts.append((DEMO / name).read_text())
    (DEMO / "REPORT.md").write_text("\n".join(parts))


if __name__ == "__main__":
    main()
