"""CLIP-L/14-336 in PyTorch, f32: `encoder.py THREADS`. Needs torch and transformers; the weights are random.

Only the blocks that the features need are present, up to the second-to-last one, as in the model that it is compared with. Prints one line of JSON
when ready, and one for each input line `{"tiles": N}`: seconds per tile, one at a time or N in a batch, whichever is faster.
"""

import json
import sys
import time

import torch
import transformers


def mtmd():
    """Whether llama.cpp's image encoder could be measured too."""
    try:
        import llama_cpp.mtmd_cpp
        return "The package llama_cpp has llama.cpp's mtmd, which is not measured here."
    except Exception:
        return "llama.cpp's mtmd is not in the package llama_cpp."


def main():
    torch.set_num_threads(int(sys.argv[1]))
    torch.manual_seed(0)
    config = transformers.CLIPVisionConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16, image_size=336,
                                           patch_size=14, projection_dim=768)
    model = transformers.CLIPVisionModel(config).eval()

    def seconds_per_tile(n_tiles):
        tiles = torch.randn(n_tiles, 3, 336, 336)
        start = time.perf_counter()
        with torch.inference_mode():
            model(pixel_values=tiles)
        return (time.perf_counter() - start) / n_tiles

    seconds_per_tile(1)
    version = f"PyTorch {torch.__version__}, transformers {transformers.__version__}"
    print(json.dumps({"version": version, "mtmd": mtmd()}), flush=True)
    for line in sys.stdin:
        n_tiles = json.loads(line)["tiles"]
        print(json.dumps({"one": seconds_per_tile(1), "batch": seconds_per_tile(n_tiles)}), flush=True)


main()
