"""Writes image files in every supported format, and the results of Pillow, transformers and PyTorch for pictures.

    .venv/bin/python tests/golden/preprocess.py            # the environment of make.py

    preprocess/*                    small files, one per format and pixel type
    preprocess.safetensors
        decoded.<file>              (height, width, 3) uint8: on black, convert("RGB"), upright
        picture.<width>x<height>    (height, width, 3) uint8: the input of preprocessing
        square.<case>               (size, size, 3) uint8: resized and squared, before normalisation
        pixels.<case>               (3, size, size): normalised
        tiles.<case>.*              pixels of the largest scale, and tiles of every scale
        merge.<case>.*              tiles' features, and the merged tokens

If Pillow has no sensible result (its convert("RGB") saturates 16-bit grey and drops alpha), the expected pixels are computed
here by the engine's documented rule. Resizing is done by CLIPImageProcessor and SiglipImageProcessor, on Pillow.
"""

import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors.numpy import save_file
from torch.nn import functional as F
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

FOLDER = Path(__file__).parent
PNG = b"\x89PNG\r\n\x1a\n"
FILES = FOLDER / "preprocess"
RNG = np.random.default_rng(20260)
NORMS = {
    "clip": ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]),
    "optimus": ([0.707223, 0.578729, 0.703617], [0.211883, 0.230117, 0.177517]),
    "siglip": ([0.5] * 3, [0.5] * 3),
}


def scene(width: int, height: int) -> np.ndarray:
    """A picture with slopes, edges and noise: (height, width, 3) uint8."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    waves = [np.sin(x / 3.1 + channel) * np.cos(y / (4.3 + channel)) for channel in range(3)]
    values = 128 + 70 * np.stack(waves, -1) + RNG.normal(0, 25, (height, width, 3))
    values[height // 3 : height // 2, width // 4 : width // 2] = [255, 0, 12]
    return values.clip(0, 255).astype(np.uint8)


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(values: np.ndarray, color: int, bits: int) -> bytes:
    """A PNG with pixels that Pillow cannot write: 16-bit colour, and rows of 2 or 4 bits that are already packed."""
    height, width = values.shape[0], values.shape[1]
    if bits == 16:
        rows = values.astype(">u2").tobytes()
    else:
        per_byte = 8 // bits
        shifts = np.arange(per_byte)[::-1] * bits
        padded = np.pad(values, ((0, 0), (0, -width % per_byte))).reshape(height, -1, per_byte)
        rows = (padded << shifts).sum(-1).astype(np.uint8).tobytes()
    stride = len(rows) // height
    filtered = b"".join(b"\0" + rows[y * stride : (y + 1) * stride] for y in range(height))

    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    return PNG + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(filtered)) + chunk(b"IEND", b"")


def rows_of(values: np.ndarray) -> bytes:
    """A PNG's rows of 8-bit pixels, without a filter."""
    return b"".join(b"\0" + row.tobytes() for row in values)


def interlaced(values: np.ndarray) -> bytes:
    """An interlaced PNG of RGB, (height, width, 3)."""
    passes = [(0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2), (1, 2, 0, 1)]
    parts = [values[top::down, left::right] for top, down, left, right in passes]
    data = zlib.compress(b"".join(rows_of(part) for part in parts if part.size))
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 8, 2, 0, 0, 1)
    return PNG + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def animated_png(default: np.ndarray, frame: np.ndarray, left: int, top: int) -> bytes:
    """An animated PNG whose default picture is not one of the frames, and is larger than the first frame."""
    height, width = default.shape[:2]
    control = struct.pack(">IIIIIHHBB", 0, frame.shape[1], frame.shape[0], left, top, 1, 10, 0, 0)
    return PNG + b"".join(
        [
            chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
            chunk(b"acTL", struct.pack(">II", 1, 0)),
            chunk(b"IDAT", zlib.compress(rows_of(default))),
            chunk(b"fcTL", control),
            chunk(b"fdAT", struct.pack(">I", 1) + zlib.compress(rows_of(frame))),
            chunk(b"IEND", b""),
        ]
    )


def animated_webp(width: int, height: int, frame: bytes, size: tuple[int, int], left: int, top: int) -> bytes:
    """An animated WebP with one lossless frame, at even coordinates on a larger canvas."""

    def riff(kind: bytes, data: bytes) -> bytes:
        return kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)

    def three(*numbers: int) -> bytes:
        return b"".join(struct.pack("<I", number)[:3] for number in numbers)

    canvas = riff(b"VP8X", bytes([0x12, 0, 0, 0]) + three(width - 1, height - 1))
    place = three(left // 2, top // 2, size[0] - 1, size[1] - 1, 40) + b"\2"
    body = canvas + riff(b"ANIM", b"\xff" * 4 + b"\0\0") + riff(b"ANMF", place + frame[12:])
    return riff(b"RIFF", b"WEBP" + body)


def tiff(
    values: np.ndarray,
    sample_format: int,
    order: str = "<",
    photometric: int = 0,
    extra_sample: int | None = None,
    planar: bool = False,
) -> bytes:
    """An uncompressed TIFF with pixels that Pillow cannot write; sample formats are 1 unsigned, 2 signed, 3 float."""
    height, width = values.shape[:2]
    n_channels = 1 if values.ndim == 2 else values.shape[2]
    stored = values.transpose(2, 0, 1) if planar else values
    data = stored.astype(values.dtype.newbyteorder(order)).tobytes()
    plane = len(data) // n_channels
    tags = [
        (256, 4, [width]),
        (257, 4, [height]),
        (258, 3, [values.dtype.itemsize * 8] * n_channels),
        (259, 3, [1]),
        (262, 3, [2 if n_channels >= 3 else 1 - photometric]),
        (273, 4, [8 + plane * channel for channel in range(n_channels)] if planar else [8]),
        (277, 3, [n_channels]),
        (278, 4, [height]),
        (279, 4, [plane] * n_channels if planar else [len(data)]),
        *([(284, 3, [2])] if planar else []),
        *([] if extra_sample is None else [(338, 3, [extra_sample])]),
        (339, 3, [sample_format] * n_channels),
    ]
    extra = b""
    extra_at = 8 + len(data) + 2 + 12 * len(tags) + 4
    entries = b""
    for tag, kind, items in tags:
        packed = b"".join(struct.pack(order + {3: "H", 4: "I"}[kind], item) for item in items)
        if len(packed) > 4:
            extra, packed = extra + packed, struct.pack(order + "I", extra_at + len(extra))
        entries += struct.pack(order + "HHI", tag, kind, len(items)) + packed.ljust(4, b"\0")
    start = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "I", 8 + len(data))
    return start + data + struct.pack(order + "H", len(tags)) + entries + b"\0" * 4 + extra


def stretched(values: np.ndarray) -> np.ndarray:
    """The engine's rule for narrow ranges: the range without a thousandth of the values at either end becomes 0..255."""
    flat = np.sort(values.astype(np.float64).ravel())
    left_out = len(flat) // 1000
    low, high = flat[left_out], flat[len(flat) - 1 - left_out]
    return np.floor(((values - low) / (high - low)).clip(0, 1) * 255 + 0.5).astype(np.uint8)


def on_black(image: Image.Image) -> np.ndarray:
    """(height, width, 3): a picture as displayed on a black background."""
    rgba = np.asarray(image.convert("RGBA")).astype(np.float64)
    return np.floor(rgba[:, :, :3] * rgba[:, :, 3:] / 255 + 0.5).astype(np.uint8)


def placed(frame: np.ndarray, width: int, height: int, left: int, top: int) -> np.ndarray:
    """A frame on a larger black canvas."""
    canvas = np.zeros((height, width, 3), np.uint8)
    canvas[top : top + frame.shape[0], left : left + frame.shape[1]] = frame
    return canvas


def grey_to_rgb(grey: np.ndarray) -> np.ndarray:
    """Grey as RGB."""
    return np.repeat(grey[:, :, None], 3, 2)


def files() -> dict[str, np.ndarray]:
    """Writes the files; returns the expected pixels of each."""
    FILES.mkdir(exist_ok=True)
    rgb = scene(17, 12)
    smooth = np.asarray(Image.fromarray(scene(6, 5)).resize((21, 18), Image.Resampling.BICUBIC))
    color, soft = Image.fromarray(rgb), Image.fromarray(smooth)
    alpha = Image.fromarray(RNG.integers(0, 256, (12, 17), dtype=np.uint8))
    rgba = color.copy()
    rgba.putalpha(alpha)
    palette = color.quantize(60)
    few = color.quantize(13)
    made: dict[str, np.ndarray] = {}

    def add(name: str, image: Image.Image, **options):
        image.save(FILES / name, **options)
        read = ImageOps.exif_transpose(Image.open(FILES / name))
        made[name] = on_black(read) if read.has_transparency_data else np.asarray(read.convert("RGB"))

    def add_bytes(name: str, data: bytes, expected: np.ndarray | None):
        (FILES / name).write_bytes(data)
        made[name] = np.asarray(Image.open(FILES / name).convert("RGB")) if expected is None else expected

    def exif(orientation: int) -> Image.Exif:
        tags = Image.Exif()
        tags[0x0112] = orientation
        return tags

    lossless = {"lossless": True, "exact": True}
    add("rgb.png", color)
    add("rgba.png", rgba)
    add("grey.png", color.convert("L"))
    add("grey-alpha.png", rgba.convert("LA"))
    add("bilevel.png", color.convert("1"))
    add("palette.png", palette)
    add("palette-4bit.png", few, bits=4)
    add("palette-transparent.png", palette, transparency=3)
    add("grey-transparent.png", color.convert("L"), transparency=100)
    add_bytes("grey-2bit.png", png(rgb[:, :, 0] >> 6, 0, 2), None)
    add_bytes("grey-4bit.png", png(rgb[:, :, 0] >> 4, 0, 4), None)
    deep = rgb.astype(np.uint16) * 257 ^ RNG.integers(0, 256, rgb.shape, dtype=np.uint16)
    add_bytes("rgb-16bit.png", png(deep, 2, 16), None)
    deep_alpha = np.concatenate([deep, deep[:, :, :1]], 2)
    levels = (deep >> 8).astype(np.float64)
    behind = np.floor(levels * (deep_alpha[:, :, 3:] / 65535) + 0.5).astype(np.uint8)
    add_bytes("rgba-16bit.png", png(deep_alpha, 6, 16), behind)
    add_bytes("grey-16bit.png", png(deep[:, :, 0], 0, 16), grey_to_rgb((deep[:, :, 0] >> 8).astype(np.uint8)))
    twelve = (deep[:, :, 0] >> 4) // 3 + 500
    add_bytes("grey-12bit.png", png(twelve, 0, 16), grey_to_rgb(stretched(twelve)))
    add("rotated-6.png", color, exif=exif(6))
    add_bytes("interlaced.png", interlaced(rgb), None)
    add_bytes("frame-of-its-own.png", animated_png(rgb, rgb[2:9, 3:14], 5, 4), placed(rgb[2:9, 3:14], 17, 12, 5, 4))

    add("rgb.bmp", color)
    add("rgba.bmp", rgba)
    add("grey.bmp", color.convert("L"))
    add("palette.bmp", palette)
    add("bilevel.bmp", color.convert("1"))

    add("palette.gif", palette)
    add("grey.gif", color.convert("L"))
    add("transparent.gif", palette, transparency=3)
    add("plain.gif", palette, interlace=0)
    frames = [palette, palette.transpose(Image.Transpose.ROTATE_180)]
    small = palette.crop((3, 2, 12, 8))
    small.save(FILES / "small-frame.gif", interlace=0)
    data = bytearray((FILES / "small-frame.gif").read_bytes())
    # The screen is made larger than the frame; the frame's position comes after the colour table.
    at = 13 + (3 << ((data[10] & 7) + 1))
    data[6:10] = struct.pack("<HH", 17, 12)
    at = data.index(b"\x2c", at)
    data[at + 1 : at + 5] = struct.pack("<HH", 4, 5)
    add_bytes("small-frame.gif", bytes(data), placed(np.asarray(small.convert("RGB")), 17, 12, 4, 5))
    add("animated.gif", frames[0], save_all=True, append_images=frames[1:], duration=40)

    add("rgb.tiff", color)
    add("rgba.tiff", rgba)
    add("grey.tiff", color.convert("L"))
    add("grey-alpha.tiff", rgba.convert("LA"))
    add("bilevel.tiff", color.convert("1"))
    add("palette.tiff", palette)
    add("cmyk.tiff", color.convert("CMYK"))
    add("lzw.tiff", color, compression="tiff_lzw")
    add("deflate.tiff", color, compression="tiff_adobe_deflate")
    add("packbits.tiff", color, compression="packbits")
    add("jpeg.tiff", soft, compression="jpeg")
    add("rotated-8.tiff", color, tiffinfo={274: 8})
    add("big.tiff", color, big_tiff=True)
    for packing in ("zstd", "lzma"):
        add(f"{packing}.tiff", color, compression=packing)
        add(f"{packing}-strips.tiff", color, compression=packing, big_tiff=True, tiffinfo={278: 5, 317: 2})
    add("zstd-grey-16bit.tiff", Image.fromarray(deep[:, :, 0]), compression="zstd", tiffinfo={317: 2})
    made["zstd-grey-16bit.tiff"] = grey_to_rgb((deep[:, :, 0] >> 8).astype(np.uint8))
    add_bytes("planar.tiff", tiff(rgb, 1, planar=True), rgb)
    premultiplied = np.asarray(rgba).astype(np.float64)
    premultiplied[:, :, :3] = np.floor(premultiplied[:, :, :3] * premultiplied[:, :, 3:] / 255 + 0.5)
    premultiplied = premultiplied.astype(np.uint8)
    add_bytes("premultiplied.tiff", tiff(premultiplied, 1, extra_sample=1), premultiplied[:, :, :3])
    add_bytes("not-alpha.tiff", tiff(np.asarray(rgba), 1, extra_sample=0), rgb)
    add_bytes("white-is-zero.tiff", tiff(rgb[:, :, 0], 1, photometric=1), None)
    shallow = (deep >> 8).astype(np.uint8)
    add_bytes("rgb-16bit.tiff", tiff(deep, 1), shallow)
    add_bytes("rgb-16bit-big-endian.tiff", tiff(deep, 1, ">"), shallow)
    add_bytes("grey-16bit.tiff", tiff(deep[:, :, 0], 1), grey_to_rgb(shallow[:, :, 0]))
    signed = twelve.astype(np.int16) - 1024
    add_bytes("grey-signed.tiff", tiff(signed, 2), grey_to_rgb(stretched(signed)))
    unit = (rgb / 255).astype(np.float32)
    add_bytes("rgb-float.tiff", tiff(unit, 3), rgb)
    add_bytes("grey-float.tiff", tiff(unit[:, :, 1], 3, ">"), grey_to_rgb(rgb[:, :, 1]))
    far = unit[:, :, 2] * 3000 - 1000
    add_bytes("grey-float-wide.tiff", tiff(far, 3), grey_to_rgb(stretched(far)))

    add("rgb.webp", color, **lossless)
    add("rgba.webp", rgba, **lossless)
    add("animated.webp", color, save_all=True, append_images=[color.rotate(180)], duration=40, **lossless)
    add("rotated-3.webp", color, exif=exif(3), **lossless)
    inner = color.crop((1, 2, 12, 9))
    inner.save(FILES / "small-frame.webp", **lossless)
    frame = animated_webp(17, 12, (FILES / "small-frame.webp").read_bytes(), inner.size, 4, 2)
    add_bytes("small-frame.webp", frame, placed(np.asarray(inner), 17, 12, 4, 2))
    add("lossy.webp", soft, quality=85)
    add("lossy-alpha.webp", Image.merge("RGBA", [*soft.split(), soft.split()[0]]), quality=85)

    add("rgb-444.jpg", soft, quality=90, subsampling=0)
    add("rgb-422.jpg", soft, quality=90, subsampling=1)
    add("rgb-420.jpg", soft, quality=90, subsampling=2)
    add("progressive.jpg", soft, quality=90, progressive=True)
    add("grey.jpg", soft.convert("L"), quality=90)
    add("cmyk.jpg", soft.convert("CMYK"), quality=90)
    for orientation in range(1, 9):
        add(f"rotated-{orientation}.jpg", soft, quality=90, subsampling=0, exif=exif(orientation))
    return made


def square(picture: np.ndarray, fit: str, size: int, norm: tuple, raw: bool) -> np.ndarray:
    """The reference's prepared pixels, (3, size, size); raw ones are uint8 and not normalised."""
    image = Image.fromarray(picture)
    mean, std = norm
    options = {"image_mean": mean, "image_std": std, "do_rescale": not raw, "do_normalize": not raw}
    if fit == "stretch":
        options["resample"] = Image.Resampling.BICUBIC
        processor = SiglipImageProcessorPil(size={"height": size, "width": size}, **options)
    else:
        crop = {"height": size, "width": size}
        processor = CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size=crop, **options)
    if fit == "pad":
        side = max(image.size)
        whole = Image.new("RGB", (side, side), tuple(int(value * 255) for value in mean))
        whole.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        image = whole
    return np.asarray(processor(image, return_tensors="np")["pixel_values"][0])


def tiles_of(pixels: torch.Tensor, scales: list[int]) -> torch.Tensor:
    """Tiles of every scale, scale by scale and row by row: (n_tiles, 3, tile, tile)."""
    tile = scales[0]
    tiles = []
    for scale in scales:
        resized = F.interpolate(pixels[None], size=(scale, scale), mode="bicubic", align_corners=False)[0]
        for top in range(0, scale, tile):
            tiles += [resized[:, top : top + tile, left : left + tile] for left in range(0, scale, tile)]
    return torch.stack(tiles)


def merged(features: torch.Tensor, scales: list[int], grid: int) -> torch.Tensor:
    """(n_tiles, grid * grid, channels) to (grid * grid, channels * n_scales)."""
    out = []
    start = 0
    for scale in scales:
        side = scale // scales[0]
        part = features[start : start + side * side]
        start += side * side
        board = part.view(side, side, grid, grid, -1).permute(4, 0, 2, 1, 3).reshape(1, -1, side * grid, side * grid)
        out.append(F.interpolate(board, size=(grid, grid), mode="area")[0])
    return torch.cat(out).flatten(1).T.contiguous()


def main():
    stored = {f"decoded.{name}": pixels for name, pixels in files().items()}
    pictures = [(37, 23), (24, 41), (1, 9), (9, 1), (1, 1), (20, 20), (75, 51), (5, 100), (31, 98)]
    for width, height in pictures:
        picture = scene(width, height)
        stored[f"picture.{width}x{height}"] = picture
        for fit in ("crop", "pad", "stretch"):
            for size, norm in ((20, "optimus"), (15, "clip")):
                case = f"{width}x{height}.{fit}.{size}.{norm}"
                stored[f"square.{case}"] = square(picture, fit, size, NORMS[norm], True).transpose(1, 2, 0)
        if (width, height) == (37, 23):
            for fit, size, norm in (("crop", 84, "optimus"), ("stretch", 56, "siglip")):
                case = f"{width}x{height}.{fit}.{size}.{norm}"
                stored[f"square.{case}"] = square(picture, fit, size, NORMS[norm], True).transpose(1, 2, 0)
            for fit, norm in (("crop", "clip"), ("pad", "optimus"), ("stretch", "siglip")):
                stored[f"pixels.{width}x{height}.{fit}.14.{norm}"] = square(picture, fit, 14, NORMS[norm], False)
    cases = [("four-scales", [7, 14, 21, 28], None), ("coarse", [28, 56, 84], [0, 4]), ("same", [10], None)]
    for case, scales, kept in cases:
        pixels = torch.from_numpy(RNG.normal(0, 1.2, (3, scales[-1], scales[-1])).astype(np.float32))
        if kept is not None:
            # Kept small: one-byte pixels, which the test converts to floats in the same way.
            levels = RNG.integers(0, 256, (3, scales[-1], scales[-1]), dtype=np.uint8)
            pixels = torch.from_numpy(levels.astype(np.float32) / 64 - 2)
            stored[f"tiles.{case}.levels"] = levels
            stored[f"tiles.{case}.kept"] = np.array(kept, dtype=np.int64)
        else:
            stored[f"tiles.{case}.pixels"] = pixels.numpy()
        tiles = tiles_of(pixels, scales)
        stored[f"tiles.{case}.scales"] = np.array(scales, dtype=np.int64)
        stored[f"tiles.{case}.tiles"] = (tiles if kept is None else tiles[kept]).numpy()
    for case, scales, grid, n_channels in (("four-scales", [7, 14, 21, 28], 3, 5), ("three-scales", [28, 56, 84], 5, 7)):
        n_tiles = sum((scale // scales[0]) ** 2 for scale in scales)
        features = torch.from_numpy(RNG.normal(0, 1, (n_tiles, grid * grid, n_channels)).astype(np.float32))
        stored[f"merge.{case}.scales"] = np.array(scales, dtype=np.int64)
        stored[f"merge.{case}.features"] = features.numpy()
        stored[f"merge.{case}.merged"] = merged(features, scales, grid).numpy()
    save_file({name: np.ascontiguousarray(value) for name, value in stored.items()}, FOLDER / "preprocess.safetensors")


if __name__ == "__main__":
    main()
