"""llama.cpp on a GGUF file, natively: `bench_llama_cpp.py FILE THREADS PROMPT GENERATE` prints one JSON line with its tokens per second.

Needs the package llama_cpp (pip install llama-cpp-python); `bench.mjs` runs it beside the page on the same file.
"""

import json
import sys
import time

import llama_cpp
import numpy as np

path, n_threads, n_prompt, n_generate = sys.argv[1], *map(int, sys.argv[2:5])
model = llama_cpp.Llama(path, n_ctx=n_prompt + n_generate + 64, n_threads=n_threads, n_threads_batch=n_threads, n_batch=512, verbose=False)
tokens = [1000 + 7 * i % 20000 for i in range(n_prompt)]
model.eval(tokens[:8])
model.reset()
start = time.perf_counter()
model.eval(tokens)
prefill = time.perf_counter() - start
start = time.perf_counter()
for _ in range(n_generate):
    model.eval([int(np.argmax(model.scores[model.n_tokens - 1]))])
decode = time.perf_counter() - start
print(json.dumps({"version": llama_cpp.__version__, "prefill": n_prompt / prefill, "decode": n_generate / decode}))
