"""Blocks of every stored type and what they mean: types/blocks.safetensors.

    .venv/bin/python tests/golden/blocks.py   # from anywhere

For each type random blocks, extreme factors among them, and their values by the Python package gguf.
"""

from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import save_file

FOLDER = Path(__file__).parent / "types"
BLOCK_TYPES = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"]
# Where the f16 factors lie in a block.
FACTORS = {"Q4_1": [0, 2], "Q5_1": [0, 2], "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}
# Zero, subnormal, the smallest normal, a common one, the largest; each also negative.
EXTREMES = [0.0, 6e-8, 6.104e-5, 0.0123, 65504.0]


def blocks(rng):
    """Bytes and values of ten times 256 weights of each type."""
    tensors = {}
    for name in BLOCK_TYPES:
        kind = gguf.GGMLQuantizationType[name]
        block_len, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        data = rng.integers(0, 256, (10, 256 // block_len, block_bytes), dtype=np.uint8)
        for i, factor in enumerate([sign * factor for factor in EXTREMES for sign in (1, -1)]):
            for at in FACTORS.get(name, [0]):
                data[i, :, at:at + 2] = np.frombuffer(np.float16(factor).tobytes(), np.uint8)
        data = data.reshape(-1, block_bytes)
        tensors[f"{name.lower()}.bytes"] = data
        tensors[f"{name.lower()}.values"] = gguf.quants.dequantize(data, kind).astype(np.float32).reshape(-1)
    return tensors


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    save_file(blocks(np.random.default_rng(1)), FOLDER / "blocks.safetensors")
