"""Writes the siglip golden's model again, as parts saved by torch and PEFT: pickles, shards, a tower alone, a projector alone, a LoRA adapter.

    .venv/bin/python tests/golden/parts.py            # after make.py; part of `make golden`

    parts/decoder/    config.json, pytorch_model-0000?-of-00002.bin and their index: the language model before fine-tuning, with transformers' names
    parts/tower/      checkpoint.pth: the tower as part of a whole SigLIP model, with text half and logit scale, under "state_dict"
    parts/projector/  mm_projector.bin: LLaVA's name
    parts/adapter/    PEFT's files for a rank-stabilised LoRA with an alpha_pattern, and LLaVA's non_lora_trainables.bin
    parts/types.bin   one tensor of each type and view that torch.save can write

The decoder's weights are the golden's minus the adapter's update, in f32: with the adapter merged, the model equals the golden one up to rounding.
"""

import json
import shutil
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

FOLDER = Path(__file__).parent / "parts"
GOLDEN = Path(__file__).parent / "siglip" / "checkpoint"
TOWER = "vision_tower._vision_tower."
CONNECTOR = "connector._connector."


def adapted(weights):
    """A PEFT model whose merged weights are `weights`, and the weights it was adapted from."""
    text = json.loads((GOLDEN / "config.json").read_text())["text_config"]
    llama = LlamaForCausalLM(LlamaConfig(**{key: value for key, value in text.items() if key != "architectures"}))
    llama.load_state_dict(weights, strict=False)
    llama.config.name_or_path = ""
    lora = LoraConfig(r=4, lora_alpha=6, use_rslora=True, alpha_pattern={"self_attn.k_proj": 10, "layers.1.mlp.down_proj": 3},
                      target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"])
    model = get_peft_model(llama, lora)
    for name, module in model.named_modules():
        if hasattr(module, "lora_A") and module.lora_A:
            for part in (module.lora_A, module.lora_B):
                part["default"].weight.data = torch.randn_like(part["default"].weight) * 0.3
            module.base_layer.weight.data -= module.get_delta_weight("default")
    base = {name.replace(".base_layer", ""): value for name, value in model.get_base_model().state_dict().items()
            if "lora_" not in name and name != "lm_head.weight"}
    return model, base


def save_sharded(folder, tensors):
    """Two shards and their index, as transformers wrote them before safetensors."""
    names, weight_map = sorted(tensors), {}
    for shard_idx in range(2):
        file = f"pytorch_model-{shard_idx + 1:05}-of-00002.bin"
        shard = {name: tensors[name].clone() for name in names[shard_idx::2]}
        weight_map |= dict.fromkeys(shard, file)
        torch.save(shard, folder / file)
    index = {"metadata": {}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index, indent=1) + "\n")


def save_types(path):
    """Every type that is supported or refused, two views of one storage, a parameter, a scalar."""
    values = torch.arange(12, dtype=torch.float32).reshape(3, 4) / 3 - 1
    whole = torch.arange(20, dtype=torch.float32)
    torch.save({"f32": values, "f16": values.half(), "bf16": values.bfloat16(), "f64": values.double(), "i64": values.long(),
                "bool": values > 0, "front": whole[:8].reshape(2, 4), "back": whole[8:].reshape(3, 4),
                "parameter": torch.nn.Parameter(values * 2), "scalar": torch.tensor(0.5), "step": 7, "note": "text"}, path)


def main():
    torch.manual_seed(11)
    shutil.rmtree(FOLDER, ignore_errors=True)
    for name in ("decoder", "tower", "projector", "adapter"):
        (FOLDER / name).mkdir(parents=True)
    weights = load_file(GOLDEN / "model.safetensors")

    def part(prefix):
        return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}

    model, base = adapted(part("language_model."))
    save_sharded(FOLDER / "decoder", base)
    model.save_pretrained(FOLDER / "adapter", safe_serialization=True)
    (FOLDER / "adapter" / "README.md").unlink(missing_ok=True)
    projector = part(CONNECTOR)
    torch.save({f"base_model.model.model.mm_projector.{name}": value for name, value in projector.items()},
               FOLDER / "adapter" / "non_lora_trainables.bin")
    torch.save({f"model.mm_projector.{name}": value.clone() for name, value in projector.items()},
               FOLDER / "projector" / "mm_projector.bin")
    tower = part(TOWER)
    tower |= {"text_model.embeddings.token_embedding.weight": torch.zeros(2, 3), "logit_scale": torch.tensor(1.0)}
    torch.save({"epoch": 3, "state_dict": tower}, FOLDER / "tower" / "checkpoint.pth")
    save_types(FOLDER / "types.bin")


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
