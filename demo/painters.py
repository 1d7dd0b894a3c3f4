"""PhantomVQA's painters: how the four kinds of pictures look, and the canvas and drawing tools that they share.

A painter draws the base image of one kind on a `Canvas`, following the facts. It returns the image as grey levels (height, width) or as colours
(3, height, width), the areas of the labels that it draws, and the cells of the zones where a sign may be. Areas are soft masks of the picture or
cells of its central square. The chest's painter also adds the cardiothoracic ratio that it drew to the facts. `phantom.py` draws the facts, and
exposes and textures the painted image.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIDE, CELL, GRID = 256, 4, 64  # px of the central square, px of a cell, cells along the square

BODY_ZONES = ("right upper", "left upper", "right lower", "left lower")  # of the patient
BRAIN_ZONES = ("right front", "left front", "right back", "left back")  # of the patient
QUADRANTS = ("upper left", "upper right", "lower left", "lower right")  # of the picture

# ---- drawing --------------------------------------------------------------------------------------------------------------------------------------


def ramp(value: np.ndarray, low: float, high: float) -> np.ndarray:
    """Smooth step from 0 at `low` to 1 at `high` (which may be the smaller one)."""
    t = (value - low) * np.float32(1 / (high - low))
    np.clip(t, 0, 1, out=t)
    step = 3 - 2 * t
    step *= t
    step *= t
    return step


def curve(points, closed: bool = False, steps: int = 6) -> np.ndarray:
    """Catmull-Rom curve (n, 2) through points."""
    p = np.asarray(points, np.float32)
    p = np.concatenate([p[-1:], p, p[:2]]) if closed else np.concatenate([2 * p[:1] - p[1:2], p, 2 * p[-1:] - p[-2:-1]])
    t = (np.arange(steps, dtype=np.float32) / steps)[None, :, None]
    a, b, c, d = (p[i : len(p) - 3 + i, None] for i in range(4))
    spline = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    return np.concatenate([spline.reshape(-1, 2), p[-2:-1]])


def mirrored(points) -> np.ndarray:
    """Points on the other side of the midline."""
    return np.asarray(points, np.float32) * (-1, 1)


def norm(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Distance from the origin; several times as fast as np.hypot, which guards against overflow."""
    return np.sqrt(x * x + y * y)


@lru_cache(maxsize=256)
def spread(n: int, size: float) -> np.ndarray:
    """Weights (n, n_knots) that interpolate knots `size` px apart at n px, by Catmull-Rom cubics."""
    knot, t = np.divmod(np.arange(n) / size, 1.0)
    weights = np.zeros((n, int(knot[-1]) + 4), np.float32)
    cubics = (-t / 2 + t**2 - t**3 / 2, 1 - 5 * t**2 / 2 + 3 * t**3 / 2, t / 2 + 2 * t**2 - 3 * t**3 / 2, (t**3 - t**2) / 2)
    for i, cubic in enumerate(cubics):
        weights[np.arange(n), knot.astype(int) + i] = cubic
    return weights


def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a @ b, in blocks too small for BLAS to start threads, which would wait for each other when all cores are busy."""
    step = max(1, 400_000 // b.size)
    return np.concatenate([a[i : i + step] @ b for i in range(0, len(a), step)])


class Canvas:
    """A picture of (height, width) px. Shapes are given in px from the anatomy's centre, x to the right and y down, and drawn in a random pose."""

    def __init__(self, rng: np.random.Generator, height: int, width: int, rigid: bool):
        self.rng, self.height, self.width = rng, height, width
        self.corner = ((height - SIDE) // 2, (width - SIDE) // 2)  # top and left of the central square
        angle, scale, dy, dx = np.radians(rng.uniform(-5, 5)), rng.uniform(0.94, 1.04), rng.uniform(-6, 6), rng.uniform(-6, 6)
        if not rigid:
            angle, scale, dy, dx = 0.0, 1.0, 0.0, 0.0
        self.turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]], np.float32) * np.float32(scale)
        self.centre = np.array([width / 2 + dx, height / 2 + dy], np.float32)
        self.scale = scale
        back = np.linalg.inv(self.turn)
        px, py = np.arange(width, dtype=np.float32) + 0.5 - self.centre[0], np.arange(height, dtype=np.float32)[:, None] + 0.5 - self.centre[1]
        self.x, self.y = back[0, 0] * px + back[0, 1] * py, back[1, 0] * px + back[1, 1] * py  # (height, width) anatomical coordinates

    def place(self, points) -> np.ndarray:
        """Pixel coordinates (n, 2) of anatomical points."""
        return np.asarray(points, np.float32) @ self.turn.T + self.centre

    def paint(self, draw, blur: float) -> np.ndarray:
        """Soft mask (height, width) in [0, 1] of what `draw(pen, factor)` draws on a sheet of `factor` times the size."""
        factor = 2 if blur < 1 else 1 if blur < 2 else 0.5
        sheet = Image.new("L", (int(self.width * factor), int(self.height * factor)))
        draw(ImageDraw.Draw(sheet), factor)
        if blur < 1:  # supersampling alone is soft enough
            sheet = sheet.reduce(2)
        elif blur < 2:
            sheet = sheet.filter(ImageFilter.BoxBlur(blur)).filter(ImageFilter.BoxBlur(blur * 0.7))
        else:
            sheet = sheet.filter(ImageFilter.GaussianBlur(blur / 2)).resize((self.width, self.height), Image.Resampling.BILINEAR)
        return np.asarray(sheet, np.float32) * np.float32(1 / 255)

    def fill(self, *outlines, blur: float = 1.0) -> np.ndarray:
        """Soft mask of closed outlines."""
        return self.paint(lambda pen, f: [pen.polygon((self.place(o) * f).ravel().tolist(), fill=255) for o in outlines], blur)

    def stroke(self, lines, blur: float = 1.0) -> np.ndarray:
        """Soft mask of (points, width in px, ink in [0, 1]) lines."""

        def draw(pen, f):
            for points, width, ink in lines:
                pen.line((self.place(points) * f).ravel().tolist(), fill=int(255 * ink), width=max(1, round(width * f * self.scale)))

        return self.paint(draw, blur)

    def ellipse(self, x: float, y: float, rx: float, ry: float, edge: float = 1.0) -> np.ndarray:
        """Soft mask of an ellipse whose edge is `edge` px wide."""
        reach = max(rx, ry) * 1.06 + edge + 2
        (column, row), mask = self.place([(x, y)])[0], np.zeros((self.height, self.width), np.float32)
        window = np.s_[max(0, int(row - reach)) : max(0, int(row + reach)), max(0, int(column - reach)) : max(0, int(column + reach))]
        rho = norm((self.x[window] - x) * (1 / rx), (self.y[window] - y) * (1 / ry))
        soft = edge / min(rx, ry)
        mask[window] = ramp(rho, 1 + soft / 2, 1 - soft / 2)
        return mask

    def cloud(self, size_y: float, size_x: float | None = None) -> np.ndarray:
        """Smooth noise (height, width) of about unit deviation, with structures of `size` px."""
        rows, columns = spread(self.height, size_y), spread(self.width, size_x or size_y)
        grid = self.rng.standard_normal((rows.shape[1], columns.shape[1]), np.float32) * np.float32(1.4)
        return product(rows, product(grid, columns.T))

    def square(self, area: np.ndarray) -> np.ndarray:
        """The central square of an area (height, width)."""
        top, left = self.corner
        return area[top : top + SIDE, left : left + SIDE]

    def cells(self, area: np.ndarray) -> np.ndarray:
        """Mean of an area (height, width) over each cell of the central square: (GRID, GRID)."""
        rows = sum(self.square(area)[i::CELL] for i in range(CELL))
        return sum(rows[:, i::CELL] for i in range(CELL)) * np.float32(1 / CELL**2)

    def cell_centres(self) -> tuple[np.ndarray, np.ndarray]:
        """Anatomical y and x (GRID, GRID) of the cells."""
        return self.square(self.y)[2::CELL, 2::CELL], self.square(self.x)[2::CELL, 2::CELL]


def quadrants(names: tuple[str, ...], inside: np.ndarray, y: np.ndarray, x: np.ndarray, gap_y: float, gap_x: float) -> dict[str, np.ndarray]:
    """The zones (GRID, GRID) of four names, from top left by rows: cells inside that are off the two midlines."""
    top, bottom, left, right = y < -gap_y, y > gap_y, x < -gap_x, x > gap_x
    return dict(zip(names, (inside & top & left, inside & top & right, inside & bottom & left, inside & bottom & right)))


def grow(cells: np.ndarray) -> np.ndarray:
    """Cells and their eight neighbours."""
    padded = np.pad(cells, 1)
    rows = padded[:-2] | padded[1:-1] | padded[2:]
    return rows[:, :-2] | rows[:, 1:-1] | rows[:, 2:]


def shrink(cells: np.ndarray) -> np.ndarray:
    """Cells whose eight neighbours are all in the set; outside the grid counts as not in it."""
    return ~grow(~np.pad(cells, 1))[1:-1, 1:-1]


def colour(*channels: float) -> np.ndarray:
    """A colour (3, 1, 1) to combine with masks (height, width)."""
    return np.array(channels, np.float32)[:, None, None]


# ---- chest film -----------------------------------------------------------------------------------------------------------------------------------

LUNG = ((-31, -101), (-54, -93), (-74, -72), (-88, -38), (-97, 2), (-103, 44), (-105, 70), (-96, 58), (-80, 48), (-60, 43), (-38, 45), (-21, 54),
        (-19, 20), (-20, -20), (-21, -60), (-22, -88))  # fmt: skip
INNER_THORAX = 206.0  # px between the lateral walls


def paint_chest(canvas: Canvas, rng: np.random.Generator, facts: dict) -> tuple[np.ndarray, dict, dict]:
    """Base image (height, width), soft or cell areas by label, cells of the zones."""
    x, y, jitter = canvas.x, canvas.y, lambda points, s=1.5: np.asarray(points, np.float32) + rng.normal(0, s, (len(points), 2)).astype(np.float32)
    right, left = curve(jitter(LUNG), True), curve(jitter(mirrored(LUNG) + [(0, 7 * (py > 30)) for _, py in LUNG]), True)
    lungs = canvas.fill(right, left, blur=1.6)
    shoulder = rng.uniform(-6, 6)
    half = [(20, -300), (22, -132), (30, -117), (70, -104 + shoulder), (112, -92 + shoulder), (138, -70), (150, -30), (160, 40), (172, 300)]
    torso = canvas.fill(curve(half + mirrored(half[::-1]).tolist(), True), blur=2.5)
    armpits = canvas.fill(*(curve(s * np.array([(124, 8), (128, 40), (131, 300), (147, 300), (139, 60)]) * (1, s), True) for s in (-1, 1)), blur=3)

    # soft tissue, thicker towards the abdomen
    image = 45 + torso * (72 + 7 * canvas.cloud(60) + ramp(y, 10, 140) * 56)
    image -= armpits * (image - 45) * 0.95
    lung_level = 52 + 14 * ramp(np.abs(x), 50, 20) + 16 * ramp(y, -50, -110) + 14 * ramp(y, 0, 70) + 5 * canvas.cloud(24) + 2.5 * canvas.cloud(9)
    image += (lung_level - image) * lungs * 0.92

    # mediastinum and heart: a third on the patient's right, the rest on the left
    mediastinum = ramp(np.abs(x - 3), 36, 18) * ramp(y, -125, -60) * ramp(y, 80, 30)
    image += mediastinum * 46
    image += canvas.ellipse(21, -47, 15, 16, 9) * 20
    ctr = rng.uniform(0.575, 0.66) if facts["heart_enlarged"] else rng.uniform(0.37, 0.45)
    facts["ctr"] = round(float(ctr), 3)
    w = ctr * INNER_THORAX
    outline = [(-0.10 * w, -38), (-0.24 * w, -14), (-0.34 * w, 14), (-0.32 * w, 40), (-0.18 * w, 56), (0.2 * w, 64), (0.52 * w, 62), (0.66 * w, 46),
               (0.64 * w, 26), (0.46 * w, 2), (0.28 * w, -22), (0.20 * w, -40)]  # fmt: skip
    heart = canvas.fill(curve(jitter(outline, 1), True), blur=2.4)
    image += (166 + 10 * ramp(y, -30, 50) + 3 * canvas.cloud(40) - image) * heart * 0.86
    spine = ramp(np.abs(x + 2 * np.sin(y / 60)), 17, 11) * torso
    image += spine * (14 + 4 * np.sin(y * (2 * np.pi / 17)))
    image -= ramp(np.abs(x - 1 - 0.02 * y), 8, 4) * ramp(y, -135, -110) * ramp(y, -30, -48) * 24  # the trachea
    aerated = lungs * (1 - 0.85 * heart)

    # vessels from the hila
    branches = []
    for s in (-1, 1):
        for heading in np.linspace(-1.25, 1.35, 10) + rng.normal(0, 0.12, 10):
            length, bend = rng.uniform(36, 66), rng.normal(0, 0.5)
            t = np.linspace(0, 1, 5)
            points = np.stack([s * (20 + length * t * np.cos(heading + bend * t)), -10 + 14 * heading * (1 - t) + length * t * np.sin(heading + bend * t)], 1)
            branches += [(points[2:], 2, 0.4), (points[1:4], 3, 0.5), (points[:3], 4, 0.6)]
    hila = canvas.ellipse(-27, -8, 10, 20, 12) + canvas.ellipse(27, -14, 10, 18, 12)
    image += (canvas.stroke(branches, 1.4) * 44 + hila * 22) * aerated

    # bones: ribs (the anterior part runs down to the midline), clavicles, scapulae, heads of the humeri; each with a paler marrow
    bones, slope = [], rng.uniform(24, 36)
    for s in (-1, 1):
        for rib in range(10):
            top, t = -104 + 17.5 * rib + rng.normal(0, 1), np.linspace(0, 1, 8)
            reach = (60, 78, 89, 95, 99, 103, 106, 108, 109, 109)[rib]
            bones.append((np.stack([s * (14 + (reach - 14) * np.sin(t * np.pi / 2)), top - 9 * np.sin(t * np.pi * 0.7) + slope * t**2.4], 1), 8, 0.8))
            if 1 < rib < 8:
                bones.append((np.stack([s * (reach - (reach - 44) * t**1.2), top + slope + 34 * t**0.8 - 12], 1), 7, 0.42))
        bones.append((curve([(s * 92, -84), (s * 82, -50), (s * 90, -14), (s * 110, -44), (s * 122, -80)]), 5, 0.4))
        bones.append((curve([(s * 9, -84), (s * 34, -92), (s * 62, -101 + shoulder), (s * 96, -102 + shoulder), (s * 116, -93 + shoulder)]), 10, 1.0))
    shell, marrow = canvas.stroke(bones, 1.3), canvas.stroke([(points, width / 2, ink) for points, width, ink in bones], 1.2)
    image += (shell * 36 - marrow * 16) * (0.3 + 0.7 * aerated) * torso
    for s in (-1, 1):
        image += canvas.ellipse(s * 124, -76 + shoulder, 16, 18, 9) * 18 * torso

    effusion = np.zeros_like(image)
    if facts["effusion"]:
        s, top = (-1 if facts["effusion"] == "right" else 1), rng.uniform(-8, 14)
        fluid = curve([(s * 112, top - 6), (s * 98, top + 8), (s * 80, top + 21), (s * 58, top + 29), (s * 30, top + 33), (s * 12, top + 35)])
        effusion = canvas.fill(np.concatenate([fluid, [(s * 12, 110), (s * 114, 110)]]), blur=3) * ramp(lungs, 0.02, 0.4)
        image += (174 + 3 * canvas.cloud(30) - image) * effusion * 0.9

    # distractors: the stomach's bubble, the film's marker, leads on the skin
    if rng.random() < 0.6:
        image -= canvas.ellipse(rng.uniform(42, 62), rng.uniform(80, 90), rng.uniform(16, 24), rng.uniform(9, 13), 9) * rng.uniform(18, 40)
    marker = [((-5, 8), (-5, -8), (2, -8), (4, -5), (2, -1), (-5, -1)), ((-1, -1), (5, 8))]
    corner = (rng.uniform(-114, -106), rng.uniform(-116, -110))
    extras = [(np.array(line) * 0.8 + corner, 2, 1.0) for line in marker] if rng.random() < 0.6 else []
    if rng.random() < 0.25:
        lead = rng.normal(0, 8, (5, 2)) + np.linspace((rng.uniform(-90, 90), -60), (rng.uniform(-60, 60), 140), 5)
        extras += [(curve(lead), 1, 0.5), (lead[:1] + [(-3, 0), (3, 0)], 6, 0.8)]
    if extras:
        image += canvas.stroke(extras, 0.6) * 75

    cell_y, cell_x = canvas.cell_centres()
    inside = canvas.cells(lungs) > 0.7
    zones = quadrants(BODY_ZONES, inside, cell_y + 22, cell_x, 5, 24)
    areas = {"lung": lungs, "heart": heart, "spine": spine, "effusion": effusion, "heart_enlarged": heart * facts["heart_enlarged"]}
    return image, areas, zones


# ---- CT slice of the brain ------------------------------------------------------------------------------------------------------------------------

VENTRICLE = ((3, -6), (3, -24), (8, -40), (17, -48), (20, -42), (15, -26), (10, -8), (13, 10), (25, 32), (29, 48), (22, 50), (12, 34), (5, 16))


def paint_brain(canvas: Canvas, rng: np.random.Generator, facts: dict) -> tuple[np.ndarray, dict, dict]:
    """Base image (height, width), soft or cell areas by label, cells of the zones."""
    x, y = canvas.x, canvas.y
    rx, ry = rng.uniform(83, 90), rng.uniform(100, 106)
    rho = norm(x / (rx * (1 + np.float32(0.0008) * y)), y / np.float32(ry)) + 0.006 * canvas.cloud(60)  # 1 at the inside of the skull
    skull_edge, scalp_edge = rng.uniform(1.09, 1.13), rng.uniform(1.15, 1.19)
    inside = ramp(rho, 1.01, 0.985)
    skull = ramp(rho, 0.985, 1.01) * ramp(rho, skull_edge + 0.012, skull_edge - 0.012)
    scalp = ramp(rho, scalp_edge + 0.02, scalp_edge - 0.02)

    # sulci: lines that run inwards from the skull, as noise in polar coordinates; they and the fissures hold dark fluid
    folds, depth = canvas.cloud(11), canvas.cloud(26)
    polar = rng.standard_normal((9, 46), np.float32)
    polar[:, -3:] = polar[:, :3]
    polar = np.asarray(Image.fromarray(polar).resize((1024, 128), Image.Resampling.BICUBIC, box=(1, 0, 44, 9)))
    turn = np.arctan2(y, x) * (1023 / (2 * np.pi)) + 512 + 9 * depth
    lines = polar[np.clip(rho * 110 + 4 * folds, 0, 127).astype(np.int32), turn.astype(np.int32) & 1023]
    atrophy = rng.uniform(0.75, 1.2)
    sulci = ramp(np.abs(lines), 0.26 * atrophy, 0.0) * ramp(rho + 0.05 * folds, 0.66, 0.86)
    rim = ramp(rho + 0.015 * depth, 0.95, 0.985)
    fissure = ramp(np.abs(x + 1.2 * depth), 4.2, 1.2) * ramp(np.abs(y + 4), 50, 66)
    sylvian = canvas.stroke([(curve([(s * 84, -20), (s * 66, -14), (s * 52, -8), (s * 45, 6)]) + rng.normal(0, 2, 2), 4, 0.9) for s in (-1, 1)], 1.6)

    # white matter is darker than the cortex, which follows the sulci
    white = ramp(rho + 0.05 * folds, 0.88, 0.76) * ramp(np.abs(x), 3, 12) * ramp(np.abs(lines) + 2 * ramp(rho, 0.8, 0.7), 0.3, 0.8)
    tissue = 130 - 17 * white + 2.5 * canvas.cloud(7) + 3 * depth
    for s in (-1, 1):  # basal ganglia and thalamus
        tissue += canvas.ellipse(s * 27, -12, 9, 17, 6) * 12 + canvas.ellipse(s * 12, 12, 9, 12, 6) * 11
    fluid = np.maximum(np.maximum(sulci, rim), np.maximum(fissure, sylvian))
    tissue -= fluid * (tissue - 82) * 0.85
    tissue += ramp(np.abs(x), 1.8, 0.6) * ramp(np.abs(y + 4), 46, 56) * 50  # the falx

    # ventricles
    wide = rng.uniform(1.75, 2.1) if facts["ventricles_enlarged"] else rng.uniform(0.75, 0.95)
    tall = 1 + 0.28 * (wide - 1)
    horn = np.asarray(VENTRICLE) * (wide, tall) + rng.normal(0, 0.8, (len(VENTRICLE), 2))
    ventricles = canvas.fill(curve(horn, True), curve(mirrored(horn), True), blur=1.4)
    third = canvas.ellipse(0, 16, 1.2 + 1.1 * wide, 12, 2)
    tissue += (72 - tissue) * np.maximum(ventricles, third) * 0.95

    bleed = np.zeros_like(tissue)
    if facts["bleed"]:
        s = -1 if facts["bleed"] == "right" else 1
        cx, cy, radius, t = s * rng.uniform(38, 50), rng.uniform(-42, 42), rng.uniform(12, 19), np.linspace(0, 2 * np.pi, 10)[:-1]
        shape = lambda r: np.stack([cx + r * np.cos(t), cy + 1.15 * r * np.sin(t)], 1)
        lobes = radius * (1 + rng.normal(0, 0.13, 9))
        oedema = canvas.fill(curve(shape(lobes + 7), True), blur=5)
        bleed = canvas.fill(curve(shape(lobes), True), blur=1.8) * inside
        tissue += (94 - tissue) * oedema * 0.6
        tissue += (196 + 4 * folds - tissue) * bleed

    # distractors: calcified plexus and pineal gland, the head rest
    if rng.random() < 0.6:
        for cx, cy in ((0, 34), (-19 * wide, 38), (19 * wide, 38)):
            tissue += canvas.ellipse(cx + rng.normal(), cy + rng.normal(), 2.4, 2.4, 2) * rng.uniform(30, 80)
    image = 44 + (58 + 3 * canvas.cloud(9)) * scalp
    image -= (image - 62) * ramp(rho, scalp_edge - 0.05, scalp_edge - 0.02) * ramp(rho, scalp_edge, scalp_edge - 0.02) * 0.3
    image += (212 - image) * skull - skull * ramp(np.abs(rho - (1 + skull_edge) / 2), 0.03, 0.012) * (22 + 10 * folds)
    image += (tissue - image) * inside
    if rng.random() < 0.5:
        rest = np.abs(norm(x, y + 190) - rng.uniform(314, 318))
        image += ramp(rest, 2.2, 0.8) * ramp(np.abs(x), 110, 90) * (1 - scalp) * rng.uniform(20, 45)

    cell_y, cell_x = canvas.cell_centres()
    zones = quadrants(BRAIN_ZONES, canvas.cells(rho) < 0.9, cell_y, cell_x, 5, 8)
    areas = {"brain": inside, "skull": skull, "ventricles": ventricles, "ventricles_enlarged": ventricles * facts["ventricles_enlarged"], "bleed": bleed}
    return image, areas, zones


# ---- stained tissue -------------------------------------------------------------------------------------------------------------------------------

STAINS = {"pink": ((218, 140, 172), (196, 104, 148), (104, 62, 128)), "purple": ((176, 138, 202), (142, 102, 178), (72, 52, 124))}  # stroma, fibre, nucleus


def paint_tissue(canvas: Canvas, rng: np.random.Generator, facts: dict) -> tuple[np.ndarray, dict, dict]:
    """Base image (3, height, width), soft or cell areas by label, cells of the zones."""
    height, width = canvas.height, canvas.width
    stroma, fibre, ink = (colour(*rgb) + colour(*rng.normal(0, 4, 3)) for rgb in STAINS[facts["stain"]])

    # fibres: noise stretched along a wandering direction
    direction = rng.uniform(0, np.pi) + 0.25 * canvas.cloud(110)
    along, across = canvas.x * np.cos(direction) + canvas.y * np.sin(direction), canvas.y * np.cos(direction) - canvas.x * np.sin(direction)
    across += 5 * canvas.cloud(38)
    thin, broad = (
        np.asarray(Image.fromarray(rng.standard_normal(shape, np.float32)).resize((512, 512), Image.Resampling.BICUBIC)) for shape in ((64, 256), (26, 64))
    )
    row, column = along.astype(np.int32) & 511, (across * 0.9).astype(np.int32) & 511
    fibres, bundles = thin[row, column], broad[row, column]
    density = 0.42 + 0.2 * fibres + 0.14 * bundles + 0.16 * canvas.cloud(46)
    image = stroma + (fibre - stroma) * np.clip(density, 0, 1.2)

    # clefts between bundles are pale
    clefts = ramp(0.9 * bundles + 0.25 * fibres + 0.8 * canvas.cloud(34), 1.5, 1.9) * rng.uniform(0.5, 0.95)
    image += (213 - image) * clefts

    # glands: a pale lumen, a ring of cells
    gland, lumen, ring_nuclei = np.zeros((height, width), np.float32), np.zeros((height, width), np.float32), []
    for _ in range(int(rng.integers(0, 4))):
        cx, cy, radius = rng.uniform(-width / 2, width / 2), rng.uniform(-height / 2, height / 2), rng.uniform(20, 32)
        if any(np.hypot(cx - gx, cy - gy) < radius + gr + 4 for gx, gy, gr, _, _ in ring_nuclei):
            continue
        t = np.linspace(0, 2 * np.pi, 9)[:-1]
        lobes = 1 + rng.normal(0, 0.1, 8)
        outline = lambda r: curve(np.stack([cx + r * lobes * np.cos(t), cy + r * lobes * np.sin(t)], 1), True)
        gland = np.maximum(gland, canvas.fill(outline(radius), blur=1.2))
        lumen = np.maximum(lumen, canvas.fill(outline(radius * rng.uniform(0.35, 0.5)), blur=1.2))
        ring_nuclei.append((cx, cy, radius, outline(radius * 0.78), lobes))
    image += (0.45 * stroma + 0.55 * fibre - 6 - image) * gland * 0.85
    image += (215 - image) * lumen

    # nuclei: a jittered grid (about a Poisson-disc sample), none in glands except in their rings
    step = rng.uniform(24, 28) if facts["cellularity"] == "low" else rng.uniform(12.5, 14)
    rows, columns = np.mgrid[-step : height + step : step * 0.87, -step : width + step : step]
    columns += (np.arange(len(columns)) % 2 * step / 2)[:, None]
    centres = np.stack([rows.ravel(), columns.ravel()], 1) + rng.uniform(-0.3, 0.3, (rows.size, 2)) * step
    centres = centres[rng.random(len(centres)) < 0.88]
    at = np.clip(centres.astype(int), 0, (height - 1, width - 1))
    centres = centres[(gland[at[:, 0], at[:, 1]] < 0.1) & (clefts[at[:, 0], at[:, 1]] < 0.2)]
    turn = direction[at[:, 0], at[:, 1]][: len(centres)] + rng.normal(0, 0.5, len(centres))
    long, short = rng.uniform(3.6, 5.6, len(centres)), rng.uniform(2.3, 3.6, len(centres))
    for cx, cy, radius, line, _ in ring_nuclei:
        spots = line[:: max(1, round(len(line) * 7.5 / (2 * np.pi * radius * 0.78)))][:-1]
        centres = np.concatenate([centres, np.stack([spots[:, 1] + height / 2, spots[:, 0] + width / 2], 1) + rng.normal(0, 0.7, (len(spots), 2))])
        turn = np.concatenate([turn, np.arctan2(spots[:, 1] - cy, spots[:, 0] - cx)])
        long, short = np.concatenate([long, rng.uniform(3.6, 4.8, len(spots))]), np.concatenate([short, rng.uniform(2.4, 3.0, len(spots))])
    nuclei = stamp(rng, height, width, centres, turn, long, short)
    shade = nuclei * (0.8 + 0.1 * canvas.cloud(5))
    image += (ink - image) * np.clip(shade, 0, 0.97)

    cell_y, cell_x = canvas.cell_centres()
    margin = np.zeros((GRID, GRID), bool)
    margin[2:-2, 2:-2] = True
    everywhere = np.ones((GRID, GRID), bool)
    areas = {"gland": gland, "nucleus": nuclei, "pink": everywhere & (facts["stain"] == "pink"), "cellular": everywhere & (facts["cellularity"] == "high")}
    return image, areas, quadrants(QUADRANTS, margin, cell_y, cell_x, 6, 6)


def stamp(rng, height: int, width: int, centres: np.ndarray, turn: np.ndarray, long: np.ndarray, short: np.ndarray) -> np.ndarray:
    """Soft ellipses (height, width) at centres (n, 2) of y and x, with half axes in px, a membrane and a paler inside."""
    size, half = 16, 8
    canvas = np.zeros((height + 2 * size, width + 2 * size), np.float32)
    corner = np.floor(centres).astype(int) - half
    offset = (centres - corner - half).astype(np.float32)
    y = np.arange(-half, half, dtype=np.float32)[None, :, None] + 0.5 - offset[:, :1, None]
    x = np.arange(-half, half, dtype=np.float32)[None, None, :] + 0.5 - offset[:, 1:, None]
    cos, sin = np.cos(turn).astype(np.float32)[:, None, None], np.sin(turn).astype(np.float32)[:, None, None]
    rho = norm((x * cos + y * sin) / long.astype(np.float32)[:, None, None], (y * cos - x * sin) / short.astype(np.float32)[:, None, None])
    pale = rng.uniform(0, 0.25, len(centres)).astype(np.float32)[:, None, None]
    ellipses = ramp(rho, 1.16, 0.84) * (1 - pale * ramp(rho, 0.85, 0.5)) * rng.uniform(0.75, 1, len(centres)).astype(np.float32)[:, None, None]
    for (top, left), ellipse in zip((corner + size).tolist(), ellipses):
        if 0 <= top <= height + size and 0 <= left <= width + size:
            window = canvas[top : top + size, left : left + size]
            np.maximum(window, ellipse, out=window)
    return canvas[size:-size, size:-size]


# ---- fundus ---------------------------------------------------------------------------------------------------------------------------------------


def paint_fundus(canvas: Canvas, rng: np.random.Generator, facts: dict) -> tuple[np.ndarray, dict, dict]:
    """Base image (3, height, width), soft or cell areas by label, cells of the zones."""
    x, y = canvas.x, canvas.y
    nasal = 1 if facts["eye"] == "right" else -1  # the disc of a right eye is on the right of the picture
    disc_x, disc_y, fovea_x, fovea_y = nasal * rng.uniform(50, 62), rng.uniform(-8, 4), -nasal * rng.uniform(14, 24), rng.uniform(-2, 8)
    radius = rng.uniform(116, 132)
    rho = norm(x, y) / np.float32(radius)
    inside = ramp(rho, 1.012, 0.99)
    light = (1.04 - 0.2 * rho**2 - 0.16 * ramp(rho, 0.8, 1.02) + 0.05 * (x * rng.normal() + y * rng.normal()) / 100 + 0.03 * canvas.cloud(50)) * inside
    fovea = norm(x - np.float32(fovea_x), y - np.float32(fovea_y))
    pigment, choroid, tint = canvas.cloud(22), canvas.cloud(7, 9), rng.normal(0, 1)
    image = np.stack([205 + 5 * pigment, 104 + 7 * tint + 6 * pigment + 3 * choroid, 58 + 5 * tint + 3 * pigment]) * light

    around = norm((x - disc_x) * (1 / 17), (y - disc_y) * (1 / 19))  # 1 at the edge of the disc
    cup_size = rng.uniform(0.3, 0.55)
    disc, cup = ramp(around, 1.12, 0.86), canvas.ellipse(disc_x + nasal * 1.5, disc_y, 17 * cup_size, 19 * cup_size, 6)
    image += (colour(217, 174, 112) + cup * colour(0, 28, 46) - image) * (disc * 0.92)

    veins, arteries = draw_vessels(rng, nasal, (disc_x, disc_y), (fovea_x, fovea_y))
    vein, artery = canvas.stroke(veins, 0.7), canvas.stroke(arteries, 0.6)

    cell_y, cell_x = canvas.cell_centres()
    top, left = canvas.corner
    middle_y, middle_x = np.mgrid[:GRID, :GRID] * CELL + CELL / 2 - SIDE / 2
    seen = (canvas.cells(rho) < 0.93) & (np.hypot(cell_x - disc_x, cell_y - disc_y) > 22)
    seen[[0, -1]] = seen[:, [0, -1]] = False
    zones = quadrants(QUADRANTS, seen, middle_y, middle_x, 5, 5)

    blood = np.zeros_like(light)
    if facts["haemorrhage"]:
        places = np.argwhere(shrink(shrink(zones[facts["haemorrhage"]])))
        first = places[rng.integers(len(places))]
        near = places[np.hypot(*(places - first).T) < 9]
        blots = []
        for cell_row, cell_column in np.concatenate([first[None], near[rng.integers(len(near), size=int(rng.integers(3, 6)))]]):
            t, size = np.linspace(0, 2 * np.pi, 8)[:-1], rng.uniform(4, 9)
            lobes = size * (1 + rng.normal(0, 0.2, 7))
            blot = np.stack([lobes * np.cos(t) * rng.uniform(0.7, 1.6), lobes * np.sin(t) * rng.uniform(0.7, 1.2)], 1)
            blot += np.array((cell_column, cell_row)) * CELL + CELL / 2 - SIDE / 2
            back = (blot + (canvas.width / 2, canvas.height / 2) - canvas.centre) @ np.linalg.inv(canvas.turn).T
            blots.append(curve(back, True))
        blood = canvas.fill(*blots, blur=1.8) * inside

    # each pigment absorbs its own share of red, green and blue
    absorbed = np.array([[0.20, 0.36, 0.16, 0.44], [0.34, 0.56, 0.42, 0.76], [0.25, 0.36, 0.30, 0.56]], np.float32)
    image *= 1 - np.minimum(product(absorbed, np.stack([ramp(fovea, 34, 2), vein, artery, blood]).reshape(4, -1)).reshape(image.shape), 0.85)

    # distractors: pale drusen-like flecks, a reflex of the flash
    if rng.random() < 0.3:
        for _ in range(int(rng.integers(2, 7))):
            fleck = canvas.ellipse(fovea_x + rng.normal(0, 22), fovea_y + rng.normal(0, 22), rng.uniform(1.5, 3), rng.uniform(1.5, 3), 2)
            image += fleck * colour(10, 40, 20)
    image += (1 - inside) * colour(44, 42, 42)
    vessel = canvas.cells(np.maximum(vein, artery) * inside) > 0.3
    areas = {"field": inside, "disc": disc, "macula": ramp(fovea, 24, 18), "haemorrhage": blood, "vessel": vessel}
    return image, areas, zones


def draw_vessels(rng: np.random.Generator, nasal: int, disc: tuple[float, float], fovea: tuple[float, float]) -> tuple[list, list]:
    """Veins and arteries as (points, width, ink) lines: arcades around the fovea and nasal trunks, which branch."""
    layers: tuple[list, list] = ([], [])

    def walk(layer: list, x: float, y: float, heading: float, bend: float, width: float, length: float) -> None:
        points, step = [(x, y)], 5.0
        for i in range(int(length / step)):
            heading += bend * step + rng.normal(0, 0.075)
            x, y = x + step * np.cos(heading), y + step * np.sin(heading)
            points.append((x, y))
            if width > 1.2 and i > 2 and rng.random() < 0.16:
                turn = rng.choice((-1, 1)) * rng.uniform(0.5, 0.9)
                walk(layer, x, y, heading + turn, -turn * 0.006, width * 0.6, (length - step * i) * rng.uniform(0.4, 0.75))
        part = max(2, len(points) // 4)
        for i in range(0, len(points) - 1, part):  # thinner towards the end
            taper = 1 - 0.2 * (i // part)
            layer.append((points[i : i + part + 1], width * taper, (0.95 if width > 1.2 else 0.7) * (0.5 + 0.5 * taper)))

    for layer, width, shift in ((layers[0], 3.4, 0.0), (layers[1], 2.4, 0.16)):
        for s in (-1, 1):  # arcades up and down, towards the temple, then around the fovea
            heading = np.arctan2(s * 1.0, -nasal * (0.45 + shift + rng.normal(0, 0.08)))
            walk(layer, disc[0] + rng.normal(), disc[1] + s * 3, heading, nasal * s * 0.0085, width, rng.uniform(170, 215))
            heading = np.arctan2(s * (0.75 + rng.normal(0, 0.15)), nasal * (0.7 + shift))
            walk(layer, disc[0] + rng.normal(), disc[1] + s * 3, heading, rng.normal(0, 0.003), width * 0.72, rng.uniform(70, 120))
    return layers


PAINTERS = {"chest": paint_chest, "brain": paint_brain, "tissue": paint_tissue, "fundus": paint_fundus}
