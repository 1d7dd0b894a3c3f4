"""Writes a sharded checkpoint of real size with random bf16 weights, to measure a conversion: `large_checkpoint.py SHAPE FOLDER`; `make convert-large` runs it.

Llama3-Med's layout with CLIP-L/14-336 at three scales, and the small tokenizer of the golden clip-s2: ids beyond it have no tokens. Needs
only Python and disk space for the weights: 16.8 GB for 8b, 7.1 GB for 3b.
"""

import json
import math
import random
import shutil
import struct
import sys
from pathlib import Path

GOLDEN = Path(__file__).parent / "clip-s2" / "checkpoint"
SHARD_BYTES = 5 << 30
PIECE_WEIGHTS = 4 << 20
# dim, MLP, layers, heads, whether the output matrix is the embedding table
SHAPES = {"8b": (4096, 14336, 32, 32, False), "3b": (3072, 8192, 28, 24, True), "1b": (2048, 8192, 16, 32, True)}
VOCAB_SIZE, N_KV_HEADS = 128256, 8
TOWER, TOWER_MLP, N_BLOCKS, IMAGE_SIZE, PATCH_SIZE = 1024, 4096, 24, 336, 14
# Sign and exponent of values between 0.002 and 0.03.
HIGH_BYTES = bytes((0x3B, 0x3C, 0xBB, 0xBC)[byte % 4] for byte in range(256))

ONE = bytes((0x80, 0x3F))


def decoder(dim, hidden_dim, n_layers, n_heads, tied):
    """Names and shapes."""
    head_dim = 64 if dim == 2048 else 128
    kv = N_KV_HEADS * head_dim
    yield "model.embed_tokens.weight", (VOCAB_SIZE, dim)
    for layer in range(n_layers):
        for name, shape in (
            ("input_layernorm", (dim,)), ("self_attn.q_proj", (n_heads * head_dim, dim)), ("self_attn.k_proj", (kv, dim)),
            ("self_attn.v_proj", (kv, dim)), ("self_attn.o_proj", (dim, n_heads * head_dim)), ("post_attention_layernorm", (dim,)),
            ("mlp.gate_proj", (hidden_dim, dim)), ("mlp.up_proj", (hidden_dim, dim)), ("mlp.down_proj", (dim, hidden_dim)),
        ):
            yield f"model.layers.{layer}.{name}.weight", shape
    yield "model.norm.weight", (dim,)
    if not tied:
        yield "lm_head.weight", (VOCAB_SIZE, dim)


def tower():
    """Names and shapes of CLIP-L/14-336."""
    yield "embeddings.class_embedding", (TOWER,)
    yield "embeddings.patch_embedding.weight", (TOWER, 3, PATCH_SIZE, PATCH_SIZE)
    yield "embeddings.position_embedding.weight", ((IMAGE_SIZE // PATCH_SIZE) ** 2 + 1, TOWER)
    norms = ["pre_layrnorm", "post_layernorm"]
    for block in range(N_BLOCKS):
        norms += [f"encoder.layers.{block}.layer_norm{norm}" for norm in (1, 2)]
        linears = [(f"self_attn.{name}_proj", TOWER, TOWER) for name in ("q", "k", "v", "out")]
        for name, n_rows, n_cols in [*linears, ("mlp.fc1", TOWER_MLP, TOWER), ("mlp.fc2", TOWER, TOWER_MLP)]:
            yield f"encoder.layers.{block}.{name}.weight", (n_rows, n_cols)
            yield f"encoder.layers.{block}.{name}.bias", (n_rows,)
    for norm in norms:
        yield f"{norm}.weight", (TOWER,)
        yield f"{norm}.bias", (TOWER,)


def config(dim, hidden_dim, n_layers, n_heads, tied):
    """The golden's configuration with these sizes."""
    value = json.loads((GOLDEN / "config.json").read_text())
    value["text_config"].update(
        hidden_size=dim, intermediate_size=hidden_dim, num_hidden_layers=n_layers, num_attention_heads=n_heads, num_key_value_heads=N_KV_HEADS,
        max_position_embeddings=8192, vocab_size=VOCAB_SIZE, tie_word_embeddings=tied,
    )
    value["vision_config"].update(
        hidden_size=TOWER, intermediate_size=TOWER_MLP, num_hidden_layers=N_BLOCKS, num_attention_heads=16, image_size=IMAGE_SIZE, patch_size=PATCH_SIZE,
    )
    value.update(hidden_size=dim, vocab_size=VOCAB_SIZE, vision_hidden_size=3 * TOWER, torch_dtype="bfloat16", s2_scales="336,672,1008")
    return value


def write_shard(path, tensors, source):
    """One safetensors file."""
    header, end = {}, 0
    for name, shape in tensors:
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in tensors:
            left = math.prod(shape)
            if "norm" in name and name.endswith("weight"):
                # Around 1, like norms; values around 0 would look like delta weights.
                file.write(ONE * left)
                continue
            while left > 0:
                n_weights = min(left, PIECE_WEIGHTS)
                piece = bytearray(source.randbytes(2 * n_weights))
                piece[1::2] = piece[1::2].translate(HIGH_BYTES)
                file.write(piece)
                left -= n_weights


def main():
    """One checkpoint."""
    shape, folder = SHAPES[sys.argv[1]], Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(GOLDEN / name, folder)
    (folder / "config.json").write_text(json.dumps(config(*shape), indent=2))
    tensors = [(f"language_model.{name}", shape) for name, shape in decoder(*shape)]
    tensors += [(f"vision_tower._vision_tower.vision_model.{name}", shape) for name, shape in tower()]
    for layer, n_inputs in ((0, 3 * TOWER), (2, shape[0])):
        tensors += [(f"connector._connector.{layer}.weight", (shape[0], n_inputs)), (f"connector._connector.{layer}.bias", (shape[0],))]
    shards, n_bytes = [[]], 0
    for name, dims in tensors:
        n_bytes += 2 * math.prod(dims)
        if n_bytes > SHARD_BYTES and shards[-1]:
            shards.append([])
            n_bytes = 2 * math.prod(dims)
        shards[-1].append((name, dims))
    places, source = {}, random.Random(0)
    for idx, shard in enumerate(shards, 1):
        file = f"model-{idx:05}-of-{len(shards):05}.safetensors"
        write_shard(folder / file, shard, source)
        places.update({name: file for name, _ in shard})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


if __name__ == "__main__":
    main()
