"""Writes demo/REPORT.md from the saved results: python demo/report.py. With --measure QUANTIZE FILES it first measures the checkpoint natively.

FILES is a folder with the splits as `generate.py` writes them, QUANTIZE the command-line tool.

demo/results/ARM-STEPS-SEED.json     what `train.py test` found: every arm of the ablation in PyTorch
demo/results/native/NAME.json        what `quantize eval --json` printed of the bundled checkpoint, converted to several formats
demo/strangers.md                    pictures that were never used while building, tried in the page; written by hand

The thresholds below were written before the final run and do not move.
"""

import argparse
import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

DEMO = Path(__file__).parent
# Percent on the test split: (what, scale, kind of answer, arm, at least or at most, threshold)
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


def table(header, rows):
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


def cell(found, scale, kind):
    percent, n = found[f"{scale} {kind}"]
    return f"{percent:.1f} ± {interval(percent, n):.1f}"


def read(folder):
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def thresholds(trained, ablation):
    rows = []
    for what, scale, kind, arm, sign, threshold in THRESHOLDS:
        source = trained if arm == "all" else ablation.get(arm)
        if source is None:
            rows.append([what, f"{sign} {threshold}", "not measured", ""])
            continue
        percent, n = source["splits"]["test"][f"{scale} {kind}"]
        met = percent >= threshold if sign == ">=" else percent <= threshold
        rows.append([what, f"{sign} {threshold}", f"{percent:.1f} ± {interval(percent, n):.1f}", "met" if met else "**missed**"])
    return table(["on the test split", "threshold, %", "found, %", ""], rows)


def ablation_table(ablation):
    rows = [[ARMS[arm]] + [cell(ablation[arm]["splits"]["test"], *column) for column in COLUMNS] for arm in ARMS if arm in ablation]
    return table(["", *(f"{scale} {kind.lower()}" for scale, kind in COLUMNS)], rows)


def split_table(trained):
    names = {"test": "test", "test-paraphrase": "held-out wordings", "test-ood": "out of distribution", "blank": "grey picture", "shuffled": "another's picture"}
    rows = [[names[split]] + [cell(found, *column) for column in COLUMNS] for split, found in trained["splits"].items()]
    return table(["", *(f"{scale} {kind.lower()}" for scale, kind in COLUMNS)], rows)


def native_table(native):
    rows = []
    for name in (name for name in NATIVE if name in native):
        report = native[name]
        parts = [report["scale"][scale][kind.lower()] for scale, kind in COLUMNS] + [report["strict"]["closed"], report["strict"]["open"]]
        rows.append([name, *(f"{part['accuracy']:.2f}" for part in parts)])
    return table(["", *(f"{scale} {kind.lower()}" for scale, kind in COLUMNS), "all closed", "all open"], rows)


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
    results = read(DEMO / "results")
    most = max(result["steps"] for result in results)
    trained = next(result for result in results if result["arm"] == "all" and result["steps"] == most)
    ablation = {result["arm"]: result for result in results if result["steps"] != most}
    native = {report["name"]: report for report in read(DEMO / "results" / "native")}
    n_steps = next(iter(ablation.values()))["steps"] if ablation else 0
    parts = [
        "# PhantomVQA: what the demo model can do\n",
        "Made by `demo/report.py` from the files in `demo/results/`. PhantomVQA is drawn by a program; it shows that several scales see what one cannot, and\n"
        "that the whole way from training to the browser works. It says nothing about medicine.\n",
        "## Thresholds\n\nWritten down before the final run. An answer counts if it is right word for word; ± is half of the 95 % interval, which takes questions as\n"
        "independent.\n",
        thresholds(trained, ablation),
        f"## The bundled model\n\n{most} steps of 8 pictures, on 4-bit weights from the last fifth on. Held-out splits, and two controls that must fall to chance on\n"
        "closed questions (50 % for yes or no):\n",
        split_table(trained),
        f"## What the scales are for\n\nEach arm: the same encoder, frozen; a connector and a decoder of their own, trained alike for {n_steps} steps, one seed. Test split.\n"
        "The features of one and two scales are slices of those of all. The blur control has the same network and cost as all scales, but its larger pictures are\n"
        "enlarged from the coarse one: what it lacks is resolution, not capacity.\n",
        ablation_table(ablation),
        "## Number formats, natively\n\n`quantize eval` on the converted checkpoint; the same questions. Percent right, strictly.\n",
        native_table(native),
    ]
    strangers = DEMO / "strangers.md"
    if strangers.exists():
        parts.append(strangers.read_text())
    (DEMO / "REPORT.md").write_text("\n".join(parts))


if __name__ == "__main__":
    main()
