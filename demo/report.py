"""Writes demo/REPORT.md from the saved results: python demo/report.py.

demo/results/ARM-STEPS-SEED.json     what `train.py test` found: every arm of the ablation in PyTorch
demo/results/native/NAME.json        what `quantize eval --json` printed of the bundled checkpoint, converted to several formats
demo/strangers.md                    pictures that were never used while building, tried in the page; written by hand

The thresholds below were written before the final run and do not move.
"""

import json
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
    for name, report in native.items():
        scales = report["breakdown"]["scale"]
        cells = []
        for scale, kind in COLUMNS:
            part = scales[scale][kind.lower()]
            cells.append(f"{part['accuracy']:.1f}")
        strict = report["strict"]
        rows.append([name, *cells, f"{strict['closed']['accuracy']:.2f}", f"{strict['open']['accuracy']:.2f}"])
    return table(["", *(f"{scale} {kind.lower()}" for scale, kind in COLUMNS), "all closed", "all open"], rows)


def main():
    results = read(DEMO / "results")
    most = max(result["steps"] for result in results)
    trained = next(result for result in results if result["arm"] == "all" and result["steps"] == most)
    ablation = {result["arm"]: result for result in results if result["steps"] != most}
    native = {path.stem: json.loads(path.read_text()) for path in sorted((DEMO / "results" / "native").glob("*.json"))}
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
