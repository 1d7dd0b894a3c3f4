"""Pictures that are not phantoms: flat, noisy, patterned, written, drawn and photograph-like ones.

No question is ever about what they show. They teach the model to say that it does not know a picture; no real photograph was used.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageDraw, ImageFilter


def paint_stranger(rng: np.random.Generator) -> np.ndarray:
    """A stranger (height, width, 3) uint8 of any size and shape."""
    short = int(rng.choice((256, 256, 256, 200, 320, 480)))
    long = int(short * rng.choice((1, 1, rng.uniform(1, 2.2))))
    height, width = (short, long) if rng.random() < 0.5 else (long, short)
    image = STYLES[rng.integers(len(STYLES))](rng, height, width)
    image = np.clip(np.broadcast_to(image, (*image.shape[:2], 3)), 0, 255).astype(np.uint8)
    if rng.random() < 0.2:
        image = np.repeat(image.mean(2, keepdims=True).astype(np.uint8), 3, 2)
    if rng.random() < 0.4:  # like most files
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=int(rng.integers(30, 95)))
        image = np.asarray(Image.open(file))
    return image


def colours(rng, n: int, spread: float = 45.0) -> np.ndarray:
    """A palette (n, 3) around one colour, or of any colours."""
    if rng.random() < 0.3:
        return rng.uniform(0, 255, (n, 3))
    return np.clip(rng.uniform(0, 255, 3) + rng.normal(0, spread, (n, 3)), 0, 255)


def clouds(rng, height: int, width: int, n: int = 3) -> np.ndarray:
    """Noise (height, width, n) of unit deviation whose power falls with frequency, as in photographs."""
    y, x = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)
    fall = np.maximum(np.hypot(y, x), 1 / max(height, width)) ** -rng.uniform(0.7, 1.8)
    noise = [np.fft.irfft2(np.fft.rfft2(rng.standard_normal((height, width))) * fall, s=(height, width)) for _ in range(n)]
    mix = rng.normal(0, 1, (n, n)) * rng.uniform(0, 1) + np.ones((n, n))  # a photograph's channels are similar
    image = np.stack(noise, 2) @ mix
    return (image - image.mean((0, 1))) / (image.std() + 1e-9)


def flat(rng, height, width):
    """One colour, often white or black, sometimes with some noise."""
    colour = rng.choice((0, 255, 128)) if rng.random() < 0.6 else rng.uniform(0, 255, 3)
    return np.zeros((height, width, 3)) + colour + rng.normal(0, rng.choice((0, 0, 3, 12)), (height, width, 1))


def slope(rng, height, width):
    """A gradient between two colours."""
    y, x = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)
    angle = rng.uniform(0, 2 * np.pi)
    t = (np.hypot(y, x) if rng.random() < 0.3 else np.sin(angle) * y + np.cos(angle) * x)[..., None]
    first, second = rng.uniform(0, 255, (2, 3))
    return first + (second - first) * (t - t.min()) / np.ptp(t)


def noise(rng, height, width):
    """Grey or coloured noise in blocks of one to sixteen pixels."""
    block = int(rng.choice((1, 1, 2, 4, 8, 16)))
    grid = rng.normal(128, rng.uniform(20, 110), (-(-height // block), -(-width // block), rng.choice((1, 3))))
    return grid.repeat(block, 0).repeat(block, 1)[:height, :width]


def code(rng, height, width):
    """Black modules on white, like a matrix code with its corners, or bars."""
    n = int(rng.integers(17, 60))
    modules = rng.random((n, n)) < 0.5
    if rng.random() < 0.2:
        modules[:] = modules[:1]
    else:
        for top, left in ((0, 0), (0, n - 7), (n - 7, 0)):
            modules[top : top + 7, left : left + 7] = True
            modules[top + 1 : top + 6, left + 1 : left + 6] = False
            modules[top + 2 : top + 5, left + 2 : left + 5] = True
    sheet = np.pad(np.where(modules, 0, 255).astype(np.uint8), int(rng.integers(0, 6)), constant_values=255)
    how = Image.Resampling.NEAREST if rng.random() < 0.5 else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(sheet).resize((width, height), how))[..., None]


def writing(rng, height, width):
    """Lines of strokes like a page of text, dark on light or the other way round, with a box or two."""
    paper, ink = (rng.uniform(190, 255, 3), rng.uniform(0, 90, 3))[:: rng.choice((1, 1, 1, -1))]
    sheet = Image.new("RGB", (width, height), tuple(int(c) for c in paper))
    pen, size, y = ImageDraw.Draw(sheet), int(rng.integers(6, 26)), 8
    colour = tuple(int(c) for c in ink)
    while y < height - size:
        x, end = 8, width * rng.uniform(0.4, 0.97)
        while x < end:
            for _ in range(int(rng.integers(1, 9))):  # a word
                points = [(x + rng.uniform(0, size * 0.5), y + rng.uniform(0, size)) for _ in range(int(rng.integers(2, 5)))]
                pen.line(points, fill=colour, width=max(1, size // 9))
                x += size * 0.62
            x += size * 0.6
        y += int(size * 1.6)
    for _ in range(int(rng.integers(0, 3))):
        left, top = rng.uniform(0, width * 0.7), rng.uniform(0, height * 0.7)
        pen.rectangle((left, top, left + rng.uniform(20, width / 3), top + rng.uniform(15, height / 3)), fill=tuple(int(c) for c in rng.uniform(0, 255, 3)))
    return np.asarray(sheet)


def leaves(rng, height, width):
    """Objects of all sizes in front of each other, each shaded and textured: what photographs have in common."""
    palette = colours(rng, 12, rng.uniform(25, 80))
    image = palette[0] + clouds(rng, height, width) * rng.uniform(5, 40)
    textures = [clouds(rng, height, width) * rng.uniform(2, 30) for _ in range(3)]
    side = min(height, width)
    light = slope(rng, height, width).mean(2, keepdims=True) - 128
    for _ in range(int(rng.integers(4, 90))):
        radius = side * min(0.6, 0.03 * rng.uniform(0.02, 1) ** -0.8)
        sheet = Image.new("L", (width, height))
        x, y, n = rng.uniform(0, width), rng.uniform(0, height), int(rng.integers(3, 9))
        if rng.random() < 0.4:
            points = [(x - radius, y - radius * rng.uniform(0.3, 1.6)), (x + radius, y + radius)]
            ImageDraw.Draw(sheet).ellipse([min(a) for a in zip(*points)] + [max(a) for a in zip(*points)], fill=255)
        else:
            turns = np.sort(rng.uniform(0, 2 * np.pi, n))
            reach = radius * rng.uniform(0.5, 1.6, n)
            ImageDraw.Draw(sheet).polygon([(x + r * np.cos(t), y + r * np.sin(t)) for t, r in zip(turns, reach)], fill=255)
        if rng.random() < 0.5:
            sheet = sheet.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 4)))
        mask = np.asarray(sheet, np.float32)[..., None] / 255
        thing = palette[rng.integers(len(palette))] + textures[rng.integers(3)] + light * rng.uniform(-0.4, 0.4)
        image += (thing - image) * mask
    return image


def drawing(rng, height, width):
    """A few plain shapes on a plain background, as in a chart, an icon or a cartoon."""
    palette = rng.uniform(0, 255, (6, 3))
    if rng.random() < 0.6:
        palette[0] = 255
    fill = lambda: tuple(int(c) for c in palette[rng.integers(1, 6)])
    sheet = Image.new("RGB", (width, height), tuple(int(c) for c in palette[0]))
    pen = ImageDraw.Draw(sheet)
    for _ in range(int(rng.integers(1, 14))):
        x, y = np.sort(rng.uniform(0, width, 2)), np.sort(rng.uniform(0, height, 2))
        box, form = (x[0], y[0], x[1], y[1]), rng.integers(4)
        if form == 0:
            pen.rectangle(box, fill=fill())
        elif form == 1:
            pen.ellipse(box, fill=fill(), outline=fill(), width=int(rng.integers(0, 9)))
        elif form == 2:
            pen.line([(rng.uniform(0, width), rng.uniform(0, height)) for _ in range(int(rng.integers(2, 8)))], fill=fill(), width=int(rng.integers(1, 9)))
        else:
            pen.polygon([(rng.uniform(0, width), rng.uniform(0, height)) for _ in range(3)], fill=fill())
    return np.asarray(sheet)


def landscape(rng, height, width):
    """Light above, dark below, with rough ground, and perhaps something upright in the middle: a view, or somebody in front of a wall."""
    line = height * rng.uniform(0.2, 0.9) + clouds(rng, 2, width, 1)[0, :, 0] * height * rng.uniform(0, 0.08)
    below = (np.arange(height)[:, None] > line)[..., None]
    above = slope(rng, height, width) * 0.5 + rng.uniform(60, 130, 3) + clouds(rng, height, width) * rng.uniform(0, 18)
    image = np.where(below, rng.uniform(20, 160, 3) + clouds(rng, height, width) * rng.uniform(10, 45), above)
    for _ in range(int(rng.integers(0, 4))):
        y, x = np.mgrid[:height, :width]
        centre_y, centre_x, tall, wide = rng.uniform(0.2, 0.8) * height, rng.uniform(0.2, 0.8) * width, rng.uniform(0.1, 0.5) * height, rng.uniform(0.1, 0.35) * width
        rho = ((y - centre_y) / tall) ** 2 + ((x - centre_x) / wide) ** 2
        mask = np.clip((1 - rho) * rng.uniform(3, 25), 0, 1)[..., None]
        thing = rng.uniform(20, 235, 3) * (1 - 0.4 * np.minimum(rho, 1))[..., None] + clouds(rng, height, width) * rng.uniform(3, 25)
        image = image * (1 - mask) + thing * mask
    return image


def cloudy(rng, height, width):
    """Noise like a photograph's, of any contrast."""
    return rng.uniform(60, 190, 3) + clouds(rng, height, width) * rng.uniform(10, 70)


STYLES = (flat, slope, noise, code, writing, leaves, leaves, leaves, drawing, landscape, landscape, cloudy)
