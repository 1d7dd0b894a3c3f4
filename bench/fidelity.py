"""The loss of each number format on a trained model: KL divergence and top-1 agreement, calibrated and not. The table in docs/types.md.

    python bench/fidelity.py FOLDER QUANTIZE     # FOLDER has the package in the layout of tests/golden/real.py; measures first, into bench/results/fidelity.json
    python bench/fidelity.py                     # rewrites the table, with speeds from bench/results/limits.json

The model is SmolLM2-135M-Instruct. Its rows of 576 weights are not whole blocks of 256, so it is first padded with zero columns and zero heads, with
norms rescaled: 768 columns, 12 heads and 4 key heads that compute the very same function. Its weights come from Q4_1, whose grid Q4_K can nearly reproduce
and Q4_0 cannot. So it is measured twice, as it is and with every weight moved at random within its step of that grid, each compared with itself in f16.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
FIDELITY, LIMITS, PAGE = ROOT / "bench/results/fidelity.json", ROOT / "bench/results/limits.json", ROOT / "docs/types.md"
TYPES = ["q4_0", "q4_k", "q4_k_m", "q6_k", "q8_0"]
CALIBRATED = TYPES[:3]
WEIGHTS = {"between": "off the grid", "packaged": "as packaged"}
N_TOKENS = 32

# What calibration sees, and what is measured: different questions of the same kinds.
SEEN = """\
What is the largest planet of the solar system?
Explain photosynthesis to a child.
How does a vaccine work?
What is the difference between a virus and a bacterium?
What does the liver do?
Write a function in Python that adds two numbers.
Why is the sky blue?
Who was Marie Curie?
Tell me a story about a lost dog.
What is high blood pressure, and why is it dangerous?
What are good questions for a job interview?
What is the boiling point of water in degrees Fahrenheit?"""
HELD_OUT = """\
What is the capital of Australia?
Explain gravity in simple words.
How does an MRI scanner work?
What is the difference between weather and climate?
What do the kidneys do?
Write a loop in Python that prints the numbers from one to ten.
Why do leaves change colour in autumn?
Who was Isaac Newton?
Tell me a story about a brave mouse.
What is diabetes, and how is it treated?
What makes a good teacher?
What is the speed of light?"""


def widened(name, values, old, new):
    """The same function with a wider residual stream, padded with zeros. `old` and `new` are (width, heads, key heads) in units of weights."""
    import numpy as np

    rows, cols = values.shape[0], values.shape[-1]
    part = name.split(".")[-2]
    pad_rows = {"q_proj": new[1] - old[1], "k_proj": new[2] - old[2], "v_proj": new[2] - old[2], "o_proj": new[0] - old[0], "down_proj": new[0] - old[0]}
    pad_cols = {"o_proj": new[1] - old[1], "down_proj": 0}
    if values.ndim == 1:
        return np.concatenate([values, np.ones(new[0] - rows, values.dtype)]) * np.float32((old[0] / new[0]) ** 0.5)
    return np.pad(values, ((0, pad_rows.get(part, 0)), (0, pad_cols.get(part, new[0] - cols))))


def steps(tensor):
    """The step of the grid that each weight of a Q4_1 or Q8_0 tensor lies on."""
    import gguf
    import numpy as np

    n_bytes = {gguf.GGMLQuantizationType.Q4_1: 20, gguf.GGMLQuantizationType.Q8_0: 34}[tensor.tensor_type]
    scales = np.ascontiguousarray(tensor.data).reshape(-1, n_bytes)[:, :2].copy().view(np.float16).astype(np.float32)
    return np.repeat(scales, 32, axis=1).reshape([int(n) for n in reversed(tensor.shape)])


def make_checkpoint(reader, folder, is_moved):
    """A Llama of transformers', 768 wide."""
    import numpy as np
    import real
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config, random = real.shape(reader), np.random.default_rng(1)
    old = (config["hidden_size"], config["hidden_size"], config["hidden_size"] // 3)
    new = (768, 768, 256)
    noise = {}
    for tensor in reader.tensors if is_moved else []:
        if tensor.data.dtype != np.float32:
            shape = [int(n) for n in reversed(tensor.shape)]
            noise[tensor.name] = (random.random(shape, np.float32) - 0.5) * steps(tensor)
    tensors = {f"model.{name}": widened(name, values, old, new).astype(np.float16) for name, values in real.weights(reader, noise)}
    save_file(tensors, folder / "model.safetensors")
    config |= dict(architectures=["LlamaForCausalLM"], model_type="llama", hidden_size=768, num_attention_heads=12, num_key_value_heads=4, head_dim=64,
                   hidden_act="silu", rms_norm_eps=config["rms_norm_eps"] * old[0] / new[0])
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    real.write_tokenizer(reader, folder)


def measure(folder, quantize):
    """Converts and compares every type of both models; finished measurements are not repeated."""
    sys.path.insert(0, str(ROOT / "tests/golden"))
    import real

    work = folder / "types"
    work.mkdir(exist_ok=True)
    (work / "seen.txt").write_text(SEEN)
    (work / "held_out.txt").write_text(HELD_OUT)
    _, reader = real.unpack(folder)
    results = json.loads(FIDELITY.read_text()) if FIDELITY.exists() else {}
    for weights in WEIGHTS:
        checkpoint = work / weights
        if not (checkpoint / "config.json").exists():
            make_checkpoint(reader, checkpoint, weights == "between")
        for name in [*TYPES, *(f"{name} calibrated" for name in CALIBRATED)]:
            if name in results.get(weights, {}):
                continue
            dtype, *is_calibrated = name.split()
            calibration = ["--calibrate", work / "seen.txt"] if is_calibrated else []
            model = work / "model"
            subprocess.run([quantize, "convert", checkpoint, "--type", dtype, *calibration, "-o", model], check=True)
            options = ["--prompts", work / "held_out.txt", "--max-tokens", str(N_TOKENS), "--ranks", "1", "--json"]
            compared = json.loads(subprocess.run([quantize, "compare", model, checkpoint, *options], check=True, capture_output=True, text=True).stdout)
            size = sum(file["size"] for file in json.loads((model / "manifest.json").read_text())["files"])
            kept = {key: compared[key] for key in ("kl_divergence", "top1_agreement", "n_tokens", "n_prompts")}
            results.setdefault(weights, {})[name] = kept | {"n_bytes": size}
            FIDELITY.write_text(json.dumps(results, indent=1) + "\n")
            print(weights, name, kept)


def share_of_q6_k():
    """The fraction of Llama-3-8B's weights that q4_k_m stores in q6_k: of those that a token is multiplied with, and of the whole file."""
    dim, hidden, n_kv, n_layers, table = 4096, 14336, 1024, 32, 128256 * 4096
    layer = 2 * dim * dim + 2 * n_kv * dim + 3 * hidden * dim
    finer = 16 * (n_kv + hidden) * dim + table
    return finer / (n_layers * layer + table), finer / (n_layers * layer + 2 * table)


def table():
    """Writes the table in Markdown into the page that explains it."""
    fidelity, limits = json.loads(FIDELITY.read_text()), json.loads(LIMITS.read_text())["found"]["found"]
    products = next(each["products"] for each in limits if (each["build"], each["workers"]) == ("relaxed", 2))
    times = {product["shape"][0]: 1 / product["gmacsPerSecond"] for product in products if product["shape"][1:] == [8192, 4096, 1]}
    bits, (of_work, of_file) = dict(q4_0=4.5, q4_k=4.5, q6_k=6.5625, q8_0=8.5), share_of_q6_k()
    times["q4_k_m"] = of_work * times["q6_k"] + (1 - of_work) * times["q4_k"]
    bits["q4_k_m"] = of_file * bits["q6_k"] + (1 - of_file) * bits["q4_k"]

    def cells(name):
        for weights in WEIGHTS:
            found = fidelity[weights].get(name)
            yield from [f"{found['kl_divergence']:.3g}", f"{100 * found['top1_agreement']:.1f} %"] if found else ["", ""]

    lines = ["| | " + " | ".join(f"KL divergence, {words} | same token" for words in WEIGHTS.values()) + " | speed | bits a weight |", "|---|" + 6 * "---:|"]
    for name in TYPES:
        lines.append(" | ".join([f"| {name}", *cells(name), f"{times['q4_0'] / times[name]:.2f}x", f"{bits[name]:.2f} |"]))
        if name in CALIBRATED:
            lines.append(" | ".join([f"| {name}, calibrated", *cells(f"{name} calibrated"), "", " |"]))
    begin, end = "<!-- make types -->\n", "<!-- end -->"
    PAGE.write_text(re.sub(f"{begin}.*{end}", lambda _: begin + "\n".join(lines) + "\n" + end, PAGE.read_text(), flags=re.S))
    print("\n".join(lines))


if __name__ == "__main__":
    if len(sys.argv) > 2:
        measure(Path(sys.argv[1]), sys.argv[2])
    table()
