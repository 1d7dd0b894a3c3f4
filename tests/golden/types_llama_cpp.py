"""Writes stored types as llama.cpp writes and reads them: types/blocks.safetensors and types/*.gguf with types/logits.safetensors.

    .venv/bin/python tests/golden/types_llama_cpp.py   # or: make golden; from anywhere

blocks.safetensors: for each type random blocks, including extreme factors, and their values from the Python package gguf. The *.gguf files are one small
random decoder, quantized by llama.cpp's own quantizer to each of its mixtures; logits.safetensors are llama.cpp's logits after every token of IDS.
Rows have 256 columns, one super-block; the rows of attn_output and ffn_down have 32, for which the quantizer falls back to types of small blocks.
"""

import ctypes
import tempfile
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
from safetensors.numpy import save_file

FOLDER = Path(__file__).parent / "types"
IDS = [1, 5, 17, 40, 3, 3, 22, 9, 31, 12, 47, 0]
DIM, HEAD_DIM, HIDDEN, VOCAB = 256, 16, 32, 48
BLOCK_TYPES = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"]
# Offsets of the f16 factors in a block.
FACTORS = {"Q4_1": [0, 2], "Q5_1": [0, 2], "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}
# Zero, subnormal, the smallest normal, a common value, the largest; each also negative.
EXTREMES = [0.0, 6e-8, 6.104e-5, 0.0123, 65504.0]
# llama.cpp's ids of its mixtures (llama_ftype).
MIXTURES = {"f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "q2_k": 10, "q3_k_m": 12, "q4_k_m": 15, "q5_k_m": 17, "q6_k": 18,
            "iq4_nl": 25, "iq4_xs": 30, "bf16": 32}


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


def decoder(path, rng):
    """A decoder of one layer in f32. Weights have heavy tails, so that blocks differ."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(256)
    writer.add_embedding_length(DIM)
    writer.add_block_count(1)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_key_length(HEAD_DIM)
    writer.add_value_length(HEAD_DIM)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCAB)
    writer.add_tokenizer_model("no_vocab")
    matrices = {"token_embd": (VOCAB, DIM), "blk.0.attn_q": (2 * HEAD_DIM, DIM), "blk.0.attn_k": (HEAD_DIM, DIM), "blk.0.attn_v": (HEAD_DIM, DIM),
                "blk.0.attn_output": (DIM, 2 * HEAD_DIM), "blk.0.ffn_gate": (HIDDEN, DIM), "blk.0.ffn_up": (HIDDEN, DIM), "blk.0.ffn_down": (DIM, HIDDEN)}
    for name, shape in matrices.items():
        scale = 1.0 if name == "token_embd" else 1.5 / np.sqrt(shape[1])
        writer.add_tensor(f"{name}.weight", (scale * rng.standard_t(5, shape) / np.sqrt(5 / 3)).astype(np.float32))
    for name in ["output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"]:
        gain = 0.1 if name == "output_norm" else 1.0
        writer.add_tensor(f"{name}.weight", (gain * (1 + 0.2 * rng.standard_normal(DIM))).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantize(source, target, mixture):
    """llama.cpp's quantizer."""
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = mixture
    options.nthread = 1
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(options)) != 0:
        raise RuntimeError(f"llama.cpp could not write {target}")


def logits(path):
    """llama.cpp's logits (len(IDS), VOCAB), with keys and values in f32."""
    llama = llama_cpp.Llama(str(path), n_ctx=256, n_threads=1, logits_all=True, verbose=False, type_k=0, type_v=0)
    llama.eval(IDS)
    return np.array(llama.scores[:len(IDS)], np.float32)


def main():
    """Everything."""
    FOLDER.mkdir(exist_ok=True)
    save_file(blocks(np.random.default_rng(1)), FOLDER / "blocks.safetensors")
    results = {"ids": np.array(IDS, np.int64)}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "f32.gguf"
        decoder(source, np.random.default_rng(2))
        results["f32"] = logits(source)
        for name, mixture in MIXTURES.items():
            target = FOLDER / f"{name}.gguf"
            quantize(source, target, mixture)
            results[name] = logits(target)
            error = np.abs(results[name] - results["f32"]).max() / np.sqrt((results["f32"] ** 2).mean())
            types = sorted({tensor.tensor_type.name for tensor in gguf.GGUFReader(target).tensors})
            print(f"{name}: {target.stat().st_size} bytes, {' '.join(types)}, {error:.3f} from f32")
    save_file(results, FOLDER / "logits.safetensors")


if __name__ == "__main__":
    main()
