"""Runs our converted models in llama.cpp, including its image encoder (mtmd), and compares the results with PyTorch's. Writes nothing.

    cargo build -p quantize && .venv/bin/python tests/golden/encoder_llama_cpp.py   # on demand; from anywhere

Needs llama-cpp-python with libmtmd, which its source distribution builds by default
(`pip install --no-binary llama-cpp-python llama-cpp-python==0.3.36`); MTMD_CPP_LIB may name another folder with a libmtmd of the same version.

Each checkpoint with a CLIP tower and one scale is converted to f32. The input is the square that PyTorch's tower saw, because llama.cpp resizes differently.
Since 2025, llama.cpp puts CLIP's class token after the patches, so that the first patch is dropped instead (ggml-org/llama.cpp#25814). For such versions the
rows of the position embedding are moved accordingly, and every image token except the first, which is not computed, is correct.
"""

import ctypes
import json
import subprocess
import tempfile
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
from families import pad, variant
from llama_cpp import mtmd_cpp
from make import IMAGE
from PIL import Image
from safetensors.numpy import load_file

GOLDEN = Path(__file__).parent
QUANTIZE = GOLDEN / "../../target/debug/quantize"
# Folder, options for a separate tower, how its picture becomes a square.
CHECKPOINTS = [("llava-med", [], "pad"), ("llava-vicuna", ["--encoder", "tower"], "crop"), ("llava-hf", [], "crop")]
# Relative to the root mean square: llama.cpp looks GELU up in an f16 table.
TOLERANCE = 5e-3


def convert(name, options, folder):
    """decoder.gguf and encoder.gguf of a checkpoint, in f32."""
    options = [str(GOLDEN / name / option) if not option.startswith("--") else option for option in options]
    command = [QUANTIZE, "convert", GOLDEN / name / "checkpoint", *options, "--type", "f32", "-o", folder]
    subprocess.run(command, check=True, capture_output=True)
    files = {}
    for file in json.loads((folder / "manifest.json").read_text())["files"]:
        files[file["name"]] = folder / f"whole-{file['name']}"
        files[file["name"]].write_bytes(b"".join((folder / chunk["path"]).read_bytes() for chunk in file["chunks"]))
    return files["decoder.gguf"], files["encoder.gguf"]


def square(name, fit):
    """(size, size, 3) u8: the picture before it is normalised."""
    this = variant(0, fit=fit)
    picture, size = Image.open(GOLDEN / name / "picture.png").convert("RGB"), this.scales[-1]
    picture = pad(picture) if fit == "pad" else picture
    short = min(picture.size)
    picture = picture.resize([int(size * side / short) for side in picture.size], Image.Resampling.BICUBIC)
    left, top = (picture.width - size) // 2, (picture.height - size) // 2
    return np.asarray(picture.crop((left, top, left + size, top + size))).copy()


class Pair:
    """A decoder and an image encoder in llama.cpp."""

    def __init__(self, decoder, encoder):
        self.llama = llama_cpp.Llama(str(decoder), n_ctx=512, n_batch=512, n_threads=1, logits_all=True, verbose=False, type_k=0, type_v=0)
        params = mtmd_cpp.mtmd_context_params_default()
        params.use_gpu, params.n_threads, params.warmup, params.print_timings = False, 2, False, False
        self.context = mtmd_cpp.mtmd_init_from_file(str(encoder).encode(), self.llama.model, params)
        if self.context is None:
            raise RuntimeError(f"llama.cpp does not open {encoder}")

    def look(self, pixels):
        """Image tokens (n_tokens, dim) and their chunk."""
        height, width, _ = pixels.shape
        bitmap = mtmd_cpp.mtmd_bitmap_init(width, height, pixels.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8)))
        chunks = mtmd_cpp.mtmd_input_chunks_init()
        marker = mtmd_cpp.mtmd_get_marker(self.context)
        text = mtmd_cpp.mtmd_input_text(marker, len(marker), False, True)
        bitmaps = (mtmd_cpp.mtmd_bitmap_p_ctypes * 1)(bitmap)
        assert mtmd_cpp.mtmd_tokenize(self.context, chunks, ctypes.byref(text), bitmaps, 1) == 0
        chunks = [mtmd_cpp.mtmd_input_chunks_get(chunks, idx) for idx in range(mtmd_cpp.mtmd_input_chunks_size(chunks))]
        [chunk] = [chunk for chunk in chunks if mtmd_cpp.mtmd_input_chunk_get_type(chunk) == mtmd_cpp.MTMD_INPUT_CHUNK_TYPE_IMAGE]
        assert mtmd_cpp.mtmd_encode_chunk(self.context, chunk) == 0
        shape = mtmd_cpp.mtmd_input_chunk_get_n_tokens(chunk), self.llama.n_embd()
        return np.ctypeslib.as_array(mtmd_cpp.mtmd_get_output_embd(self.context), shape).copy(), chunk

    def answer(self, ids, image_tokens, chunk, n_steps):
        """The best token that is not padding, step by step, and the logits at each step."""
        vocab = llama_cpp.llama_model_get_vocab(self.llama.model)
        is_unused = [bool(llama_cpp.llama_vocab_get_attr(vocab, id) & llama_cpp.LLAMA_TOKEN_ATTR_UNUSED) for id in range(self.llama.n_vocab())]
        at = ids.index(IMAGE)
        self.llama.eval(ids[:at])
        n_past = llama_cpp.llama_pos(0)
        flat = np.ascontiguousarray(image_tokens, np.float32)
        status = mtmd_cpp.mtmd_helper_decode_image_chunk(
            self.context, self.llama.ctx, chunk, flat.ctypes.data_as(ctypes.POINTER(ctypes.c_float)), at, 0, 512, ctypes.byref(n_past), mtmd_cpp.mtmd_helper_post_decode_callback(0), None)
        assert status == 0 and n_past.value == at + len(image_tokens)
        self.llama.n_tokens = n_past.value
        logits, answer, following = [], [], ids[at + 1:]
        for _ in range(n_steps):
            self.llama.eval(following)
            logits.append(np.array(self.llama.scores[self.llama.n_tokens - 1], np.float32))
            following = [int(np.where(is_unused, -np.inf, logits[-1]).argmax())]
            answer += following
        return answer, np.stack(logits)


def put_class_token_last(encoder):
    """Moves the class token's row of the position embedding after those of the patches, in the file."""
    [positions] = [tensor for tensor in gguf.GGUFReader(encoder, "r+").tensors if tensor.name == "v.position_embd.weight"]
    positions.data[:] = np.roll(positions.data, -1, axis=0)


def difference(found, expected):
    """The largest difference, relative to the root mean square."""
    return np.abs(found - expected).max() / np.sqrt((expected ** 2).mean())


def main():
    for name, options, fit in CHECKPOINTS:
        golden = load_file(GOLDEN / name / "golden.safetensors")
        expected, ids, answer = golden["image_tokens"], golden["prompt_ids"].tolist(), golden["greedy_ids"].tolist()
        with tempfile.TemporaryDirectory() as folder:
            decoder, encoder = convert(name, options, Path(folder) / "model")
            pair, note = Pair(decoder, encoder), ""
            image_tokens, chunk = pair.look(square(name, fit))
            if difference(image_tokens, expected) > 1:
                put_class_token_last(encoder)
                pair, note = Pair(decoder, encoder), ", the class token being last"
                image_tokens, chunk = pair.look(square(name, fit))
                image_tokens = np.concatenate([expected[:1], image_tokens[:-1]])
            found, logits = pair.answer(ids, image_tokens, chunk, len(answer))
        errors = difference(image_tokens, expected), difference(logits, golden["logits"])
        print(f"{name}: image tokens {expected.shape} differ by {errors[0]:.1e}, logits by {errors[1]:.1e}, answers {'agree' if found == answer else found}{note}")
        assert errors[0] < TOLERANCE and found == answer


if __name__ == "__main__":
    main()
