"""Logits of a large decoder in llama.cpp after each of some tokens: `large_logits.py DECODER.gguf OUT.safetensors`; `make test-large` runs it.

Keys and values are kept in f32, as in the engine.
"""

import sys

import llama_cpp
import numpy as np
from safetensors.numpy import save_file

N_TOKENS = 24
GGML_F32 = 0


def main():
    """One file."""
    decoder, out = sys.argv[1:]
    llama = llama_cpp.Llama(decoder, n_ctx=64, n_threads=2, logits_all=True, verbose=False, type_k=GGML_F32, type_v=GGML_F32)
    ids = [(1000 + 7919 * idx) % llama.n_vocab() for idx in range(N_TOKENS)]
    llama.eval(ids)
    logits = np.array(llama.scores[:N_TOKENS], dtype=np.float32)
    save_file({"ids": np.array(ids, dtype=np.int32), "logits": logits}, out)


if __name__ == "__main__":
    main()
