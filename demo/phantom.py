"""PhantomVQA's pictures: drawn phantoms of four kinds, each a pure function of its seed.

A phantom is a drawing, not medicine: a chest film, a CT slice of the brain, a stained tissue or the back of an eye, with signs of exactly known size.
Some pictures are strangers, not phantoms, so that the model can learn to say so. Coarse signs are shapes. Middle and fine signs are zero-mean textures
of period 4 and 2 px on aligned 4-px cells, which the reference's bicubic interpolation without anti-aliasing (taps -3/32, 19/32, 19/32, -3/32) maps to
exactly zero: a fine sign exists at 256 px only (except for a leak of one grey level at the edge of its patch at 128 px), a middle sign at 128 and
256 px. To make this exact, the base image, drawn by `painters.py`, is rounded and clipped to [LOW, HIGH] before the integer textures are added.
`questions.py` asks about the facts, `generate.py` writes files, `train.py` learns from both.

Sides of chest and brain are the patient's, as a radiologist names them: the patient's right is on the left of the picture. Quadrants of tissue and
fundus are the picture's own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from PIL import Image

from painters import BODY_ZONES, BRAIN_ZONES, CELL, GRID, PAINTERS, QUADRANTS, SIDE, Canvas, grow, shrink
from strangers import paint_stranger

KINDS = ("chest", "brain", "tissue", "fundus")
STRANGER = "stranger"  # the kind of a picture that is not a phantom
P_STRANGER = 0.08
LOW, HIGH = 38, 217  # range of the base image, so that a texture of amplitude 33 never saturates

# First seed and end of each split; `distribution` says which of make's two distributions a split has.
SPLITS = {
    "train": range(0, 10_000_000),
    "val": range(10_000_000, 11_000_000),
    "test": range(11_000_000, 12_000_000),
    "test-paraphrase": range(12_000_000, 13_000_000),
    "test-ood": range(13_000_000, 14_000_000),
}

# Dense labels of 4-px cells, and the smallest scale in px at which they can be seen.
LABELS: dict[str, int] = {
    **{f"kind_{kind}": 64 for kind in KINDS},  # the whole picture
    "lung": 64, "heart": 64, "heart_enlarged": 64, "spine": 64, "effusion": 64,
    "skull": 64, "brain": 64, "ventricles": 64, "ventricles_enlarged": 64, "bleed": 64,
    "pink": 64, "cellular": 64, "gland": 64, "nucleus": 128,
    "field": 64, "disc": 64, "macula": 64, "haemorrhage": 64, "vessel": 128,
    "middle_horizontal": 128, "middle_vertical": 128, "middle_checker": 128,
    "fine_horizontal": 256, "fine_vertical": 256, "fine_checker": 256,
}  # fmt: skip

ZONES = {"chest": BODY_ZONES, "brain": BRAIN_ZONES, "tissue": QUADRANTS, "fundus": QUADRANTS}

P_SIGN = 0.6  # probability of a middle sign and of a fine one
P_COARSE = 0.5  # probability of an effusion, a bleed and a haemorrhage

# Pairs that the distribution "train" never draws; half of the signs of these findings in "ood" are such pairs.
HELD_OUT = {
    ("chest", "fine"): {("horizontal", "right upper"), ("vertical", "left lower")},
    ("brain", "middle"): {("checker", "left front"), ("horizontal", "right back")},
    ("tissue", "middle"): {("horizontal", "lower right"), ("vertical", "upper left")},
    ("fundus", "middle"): {("left", "upper right"), ("right", "lower left")},  # eye and quadrant
}


@dataclass
class Phantom:
    """A picture and everything that is true of it."""

    seed: int
    kind: str  # one of KINDS, or STRANGER
    image: np.ndarray  # (height, width, 3) uint8
    exact: bool  # the reference preprocessing keeps the pixels of the central square
    facts: dict  # can be written as JSON
    cells: dict[str, np.ndarray] = field(repr=False)  # label -> (GRID, GRID) bool, cells of the central square


def distribution(split: str) -> str:
    """The distribution of a split of SPLITS."""
    return "ood" if split == "test-ood" else "train"


def make(seed: int, split: str = "train", kind: str | None = None, hide: tuple[str, ...] = ()) -> Phantom:
    """The phantom of a seed. `split` is a distribution, "train" or "ood"; `hide` leaves out the "fine" or "middle" texture (for tests of the gate)."""
    if split not in ("train", "ood"):
        raise ValueError(f'split: expected "train" or "ood", found {split!r}')
    rng = np.random.default_rng([seed, split == "ood"])
    drawn = STRANGER if rng.random() < P_STRANGER else KINDS[rng.integers(len(KINDS))]
    kind = kind or drawn
    if kind == STRANGER:
        return Phantom(seed, kind, paint_stranger(rng), True, {"split": split}, {name: np.zeros((GRID, GRID), bool) for name in LABELS})
    height, width, scale = draw_size(rng)
    exact = scale == 1.0
    facts = draw_facts(rng, kind, split, exact)
    facts["split"] = split

    canvas = Canvas(rng, height, width, rigid=kind != "tissue")
    base, areas, zones = PAINTERS[kind](canvas, rng, facts)
    base = expose(rng, base, split)
    cells = {name: np.zeros((GRID, GRID), bool) for name in LABELS}
    cells[f"kind_{kind}"][:] = True
    for name, area in areas.items():
        cells[name] = area if area.dtype == bool else canvas.cells(area) > 0.5

    signs = [(name, sign["pattern"], sign["zone"]) for name in ("middle", "fine") for sign in facts[name]]
    texture = np.zeros((SIDE, SIDE), np.int16)
    for (name, pattern, _), patch in zip(signs, draw_patches(rng, signs, zones)):
        cells[f"{name}_{pattern}"] |= patch
        amplitude = int(rng.integers(21, 34)) * (1 - 2 * int(rng.integers(2)))
        if name not in hide:
            texture += amplitudes(patch, amplitude, 2 if is_spot(name, pattern) else 3) * PATTERNS[name, pattern]

    top, left = canvas.corner
    base[top : top + SIDE, left : left + SIDE] += texture[..., None]
    image = base.astype(np.uint8)
    if not exact:
        image = np.asarray(Image.fromarray(image).resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC))
    return Phantom(seed, kind, image, exact, facts, cells)


# ---- facts ----------------------------------------------------------------------------------------------------------------------------------------


def draw_size(rng: np.random.Generator) -> tuple[int, int, float]:
    """Height and width in px whose shortest edge is SIDE, and the factor by which the file is then enlarged (1: exact)."""
    form, edge, tall = rng.random(), SIDE + CELL * int(rng.integers(6, 27)), rng.random() < 0.4
    scale = 1.0 if form < 0.9 else float(rng.choice((200, 224, 320, 384, 512))) / SIDE
    if form < 0.7 or form > 0.95:
        return SIDE, SIDE, scale
    return (edge, SIDE, scale) if tall else (SIDE, edge, scale)


def draw_facts(rng: np.random.Generator, kind: str, split: str, exact: bool) -> dict:
    """Independent facts of a kind: coarse ones by name, "middle" and "fine" as lists of {"pattern", "zone"}."""
    yes = lambda p=0.5: bool(rng.random() < p)
    side = lambda: ("right", "left")[rng.integers(2)]
    facts: dict = {}
    if kind == "chest":
        facts["heart_enlarged"] = yes()
        facts["effusion"] = side() if yes(P_COARSE) else None
        patterns = {"middle": {"horizontal": 0.5, "vertical": 0.5}, "fine": {"horizontal": 0.5, "vertical": 0.5}}
    elif kind == "brain":
        facts["ventricles_enlarged"] = yes()
        facts["bleed"] = side() if yes(P_COARSE) else None
        patterns = {"middle": {"checker": 0.5, "horizontal": 0.25, "vertical": 0.25}, "fine": {}}
    elif kind == "tissue":
        facts["stain"] = ("pink", "purple")[rng.integers(2)]
        facts["cellularity"] = ("low", "high")[rng.integers(2)]
        patterns = {"middle": {"horizontal": 0.5, "vertical": 0.5}, "fine": {"horizontal": 0.5, "vertical": 0.5}}
    else:
        facts["eye"] = side()
        facts["haemorrhage"] = QUADRANTS[rng.integers(4)] if yes(P_COARSE) else None
        patterns = {"middle": {"checker": 1.0}, "fine": {}}
    for name in ("middle", "fine"):
        present = yes(P_SIGN) and exact
        if not patterns[name]:  # spots: one to three, in different quadrants
            count = int(rng.integers(1, 4)) * present
            signs = [("checker", zone) for zone in rng.permutation(ZONES[kind])[:count]]
        else:
            signs = [draw_sign(rng, kind, name, split, patterns[name], facts.get("eye"))] if present else []
        facts[name] = [{"pattern": str(pattern), "zone": str(zone)} for pattern, zone in signs]
    return facts


def draw_sign(rng: np.random.Generator, kind: str, name: str, split: str, patterns: dict[str, float], eye: str | None) -> tuple[str, str]:
    """Pattern and zone of a sign: every pattern and zone as often as the margins say, held-out pairs only in "ood"."""
    zones, held_out = ZONES[kind], HELD_OUT.get((kind, name), frozenset())
    first = tuple(patterns.items()) if eye is None else (("right", 0.5), ("left", 0.5))  # what is paired with the zone
    table = pair_table(first, zones, frozenset(held_out))
    if split == "ood" and held_out and rng.random() < 0.5:
        table = np.array([[float((row, zone) in held_out) for zone in zones] for row, _ in first])
    if eye is not None:
        table = table * np.array([[float(row == eye)] for row, _ in first])
    row_idx, zone_idx = divmod(int(rng.choice(table.size, p=table.ravel() / table.sum())), len(zones))
    return first[row_idx][0] if eye is None else "checker", zones[zone_idx]


@lru_cache
def pair_table(first: tuple[tuple[str, float], ...], zones: tuple[str, ...], held_out: frozenset) -> np.ndarray:
    """Probabilities (n_first, n_zones) that are zero at the held-out pairs and have the given margins, by proportional fitting."""
    table = np.array([[0.0 if (row, zone) in held_out else 1.0 for zone in zones] for row, _ in first])
    margin = np.array([[p] for _, p in first])
    for _ in range(200):
        table *= margin / table.sum(1, keepdims=True)
        table *= 1 / len(zones) / table.sum(0)
    return table / table.sum()


# ---- exposure -------------------------------------------------------------------------------------------------------------------------------------


def expose(rng: np.random.Generator, base: np.ndarray, split: str) -> np.ndarray:
    """Exposure, tone and noise, independent of every fact: (height, width) or (3, height, width) float -> (height, width, 3) int16 in [LOW, HIGH]."""
    sign = lambda: 1 - 2 * int(rng.integers(2))
    if split == "train":
        contrast, brightness, tone, sigma = rng.uniform(0.81, 1.14), rng.uniform(-11.5, 11.5), rng.uniform(-0.29, 0.29), rng.uniform(1.5, 4.9)
    else:
        contrast, brightness = rng.uniform(0.65, 0.8) if sign() > 0 else rng.uniform(1.15, 1.3), sign() * rng.uniform(12, 22)
        tone, sigma = sign() * rng.uniform(0.3, 0.5), rng.uniform(5, 7)
    value = (base.reshape(-1, *base.shape[-2:]) - LOW) * (1 / (HIGH - LOW))
    value += tone * value * (1 - value)  # a monotonic tone curve, cheaper than a power
    value *= contrast * (HIGH - LOW)
    if split == "train":  # shading, so that kinds cannot be told by the brightness of a corner
        y, x = np.linspace(-1, 1, value.shape[1], dtype=np.float32)[:, None], np.linspace(-1, 1, value.shape[2], dtype=np.float32)
        a, b, c, d = rng.uniform(-6, 6, 4).astype(np.float32)
        value += a * y + b * x + c * y * x + d * (y * y + x * x - 1)
    value += brightness + (HIGH + LOW) / 2 - contrast * (HIGH - LOW) / 2
    value += rng.standard_normal(value.shape[1:], np.float32) * sigma
    if len(value) == 3:  # a camera also has colour noise
        value[::2] += rng.integers(-2, 3, (2, *value.shape[1:]), np.int8)
    value = np.clip(np.rint(value), LOW, HIGH).astype(np.int16)
    return np.repeat(value[0, :, :, None], 3, 2) if len(value) == 1 else np.ascontiguousarray(value.transpose(1, 2, 0))


# ---- textures -------------------------------------------------------------------------------------------------------------------------------------

_px = np.arange(SIDE)
_waves = {"fine": 1 - 2 * (_px % 2), "middle": 1 - 2 * (_px // 2 % 2)}  # +1, -1 with period 2 and 4 px, in step with the cells
PATTERNS = {}  # (scale, pattern) -> (SIDE, SIDE) of +1 and -1
for _scale, _wave in _waves.items():
    PATTERNS[_scale, "horizontal"] = np.repeat(_wave[:, None], SIDE, 1).astype(np.int16)
    PATTERNS[_scale, "vertical"] = np.repeat(_wave[None, :], SIDE, 0).astype(np.int16)
    PATTERNS[_scale, "checker"] = np.outer(_wave, _wave).astype(np.int16)

_cell_y, _cell_x = np.mgrid[:GRID, :GRID]


def is_spot(name: str, pattern: str) -> bool:
    """Whether a sign is a spot of 20 to 24 px; the other patches are about 28 to 52 px across."""
    return (name, pattern) == ("fine", "checker")


def draw_patches(rng: np.random.Generator, signs: list[tuple[str, str, str]], zones: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Blobs of cells (GRID, GRID), clear of each other, for signs of (name, pattern, zone)."""
    best, best_size = [], -1.0
    for _ in range(8):  # a zone with two patches may need a retry
        taken, patches = np.zeros((GRID, GRID), bool), []
        for name, pattern, zone in signs:
            patches.append(draw_patch(rng, zones[zone] & ~grow(grow(taken)), is_spot(name, pattern)))
            taken |= patches[-1]
        size = min((patch.sum() / (16 if is_spot(*sign[:2]) else 44) for sign, patch in zip(signs, patches)), default=1.0)
        if size > best_size:
            best, best_size = patches, size
        if size >= 1:
            break
    return best


def draw_patch(rng: np.random.Generator, free: np.ndarray, spot: bool) -> np.ndarray:
    """A blob with lobes, of the free cells (GRID, GRID)."""
    radius = rng.uniform(2.5, 2.9) if spot else rng.uniform(4.2, 6.6)
    centres = free
    for _ in range(int(radius)):  # prefer centres where the whole blob fits
        inner = shrink(centres)
        centres = inner if inner.any() else centres
    places = np.flatnonzero(centres)
    if not len(places):
        return centres
    centre_y, centre_x = divmod(int(places[rng.integers(len(places))]), GRID)
    y, x = _cell_y - centre_y, _cell_x - centre_x
    angle, (a, b, c, d) = np.arctan2(y, x), rng.uniform(0, 2 * np.pi, 4)
    lobes = 0.16 * np.cos(2 * angle + a) + 0.10 * np.cos(3 * angle + b) + 0.07 * np.cos(5 * angle + c) + 0.04 * np.cos(7 * angle + d)
    return free & (np.hypot(y, x) < radius * (1 + (0.4 if spot else 1.0) * lobes))


def amplitudes(patch: np.ndarray, amplitude: int, steps: int) -> np.ndarray:
    """Integer amplitude of each pixel (SIDE, SIDE): it rises from the edge of the patch in equal steps of one cell, so that little leaks at 128 px."""
    level = patch.astype(np.int16)
    for _ in range(steps - 1):
        patch = shrink(patch)
        level += patch
    return np.rint(amplitude * level / steps).astype(np.int16).repeat(CELL, 0).repeat(CELL, 1)
