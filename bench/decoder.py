"""llama.cpp on a GGUF file, natively: `decoder.py FILE THREADS CONTEXT`. Needs the package llama_cpp (pip install llama-cpp-python).

Prints one line of JSON when the model is loaded, and one for each input line `{"prompt": N, "generate": M}`: tokens per second of prefill
and of decoding after it.
"""

import json
import sys
import time

import llama_cpp
import numpy as np


def speeds(model, n_prompt, n_generate):
    """Tokens per second for a prompt and for what follows it, without reusing an earlier prompt."""
    tokens = [1000 + 7 * i % 20000 for i in range(n_prompt)]
    model.reset()
    start = time.perf_counter()
    model.eval(tokens)
    prefill = time.perf_counter() - start
    start = time.perf_counter()
    for _ in range(n_generate):
        model.eval([int(np.argmax(model.scores[model.n_tokens - 1]))])
    decode = time.perf_counter() - start
    return {"prefill": n_prompt / prefill, "decode": n_generate / decode if n_generate else None}


def main():
    path, n_threads, n_ctx = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    start = time.perf_counter()
    model = llama_cpp.Llama(path, n_ctx=n_ctx, n_threads=n_threads, n_threads_batch=n_threads, n_batch=512, verbose=False)
    model.eval([1000] * 8)
    features = llama_cpp.llama_print_system_info().decode()
    ready = {"version": llama_cpp.__version__, "features": features, "load": time.perf_counter() - start}
    print(json.dumps(ready), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        print(json.dumps(speeds(model, order["prompt"], order["generate"])), flush=True)


main()
