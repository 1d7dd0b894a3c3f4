"""A small Llama3-Med, built from transformers' CLIP and Llama, in the reference's own checkpoint layout.

The picture is seen at 64, 128 and 256 pixels: 1 + 4 + 16 tiles of 64 x 64, each 8 x 8 patches. The features of a scale's tiles are joined, averaged
down to 8 x 8 and concatenated with those of the other scales; an `mlp2x_gelu` connector makes 64 image tokens of them (arXiv 2406.09454).
"""

import json
import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

SCALES = (64, 128, 256)
TILE, PATCH = 64, 8
GRID = TILE // PATCH
WIDTH = 128  # of the tower
DIM = 256  # of the decoder
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
SYSTEM = "You are a helpful language and vision assistant. "
SPECIAL = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


# Pictures to tiles, features to tokens ------------------------------------------------------------------------------------


def square(image):
    """The reference's preprocessing up to the crop: (height, width, 3) to (256, 256, 3), uint8. The identity on 256 x 256."""
    size = SCALES[-1]
    height, width = image.shape[:2]
    short, long = min(width, height), max(width, height)
    if short != size:
        resized = (size, int(size * long / short)) if width <= height else (int(size * long / short), size)
        image = np.asarray(Image.fromarray(image).resize(resized, Image.Resampling.BICUBIC))
        height, width = image.shape[:2]
    left, top = (width - size) // 2, (height - size) // 2
    return image[top:top + size, left:left + size]


def normalise(squares):
    """(n, 256, 256, 3) uint8 to (n, 3, 256, 256) f32."""
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in (MEAN, STD))
    return (squares.permute(0, 3, 1, 2).float() / 255 - mean) / std


def at_scale(pixels, scale):
    """The reference's bicubic resize, without a low-pass filter: the published weights were trained on it."""
    if scale == pixels.shape[-1]:
        return pixels
    return F.interpolate(pixels, size=(scale, scale), mode="bicubic", align_corners=False)


def split(pixels):
    """(n, 3, side, side) to its tiles (n, tiles, 3, 64, 64), row-major."""
    n, k = len(pixels), pixels.shape[-1] // TILE
    return pixels.view(n, 3, k, TILE, k, TILE).permute(0, 2, 4, 1, 3, 5).reshape(n, k * k, 3, TILE, TILE)


def merge(features):
    """One scale's features (n, tiles, 64 patches, width), averaged down to the smallest scale's grid: (n, 64, width)."""
    n, n_tiles, _, width = features.shape
    k = int(n_tiles**0.5)
    maps = features.view(n, k, k, GRID, GRID, width).permute(0, 5, 1, 3, 2, 4).reshape(n, width, k * GRID, k * GRID)
    return F.adaptive_avg_pool2d(maps, GRID).flatten(2).transpose(1, 2)


def encode(tower, pixels, blur=False):
    """Merged features (n, 64, 3 * width) of pictures (n, 3, 256, 256). `blur`: the higher scales see the coarse picture enlarged."""
    coarse = at_scale(pixels, SCALES[0])
    merged = []
    for scale in SCALES:
        scaled = at_scale(pixels, scale)
        if blur and scale > SCALES[0]:
            scaled = F.interpolate(coarse, size=(scale, scale), mode="bicubic", align_corners=False)
        tiles = split(scaled)
        merged.append(merge(patches(tower, tiles.flatten(0, 1)).view(*tiles.shape[:2], GRID * GRID, -1)))
    return torch.cat(merged, -1)


def patches(tower, tiles):
    """What the reference takes from a CLIP tower: the second-to-last layer's output, without the class token. The last layer is only added when saving."""
    return tower(tiles, output_hidden_states=True).hidden_states[-1][:, 1:]


# Modules ------------------------------------------------------------------------------------------------------------------


def make_tower(n_layers=4):
    """A CLIP tower with only the layers that are used; a checkpoint has one more."""
    return CLIPVisionModel(CLIPVisionConfig(
        hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=n_layers, num_attention_heads=WIDTH // 32,
        image_size=TILE, patch_size=PATCH, hidden_act="quick_gelu"))


def make_connector(n_scales=len(SCALES)):
    """`mlp2x_gelu`."""
    return nn.Sequential(nn.Linear(n_scales * WIDTH, DIM), nn.GELU(), nn.Linear(DIM, DIM))


def make_llama(tokenizer, n_layers=5):
    """A Llama-3 with a few million parameters."""
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=DIM, intermediate_size=512, num_hidden_layers=n_layers,
        num_attention_heads=DIM // 32, num_key_value_heads=2, rms_norm_eps=1e-5, max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, tie_word_embeddings=False))


def make_tokenizer(texts, vocab_size=1024):
    """A byte-level BPE like Llama-3's, trained on `texts`; its special tokens come after the vocabulary."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(LLAMA3_PATTERN), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single=f"{SPECIAL[0]} $A", special_tokens=[(SPECIAL[0], tokenizer.token_to_id(SPECIAL[0]))])])
    return tokenizer


# 4 bits -------------------------------------------------------------------------------------------------------------------


class Q4(nn.Module):
    """Weights as Q4_0 stores them (blocks of 32 along a row, one f16 scale, 16 steps), with a straight-through gradient."""

    def forward(self, weight):
        blocks = weight.detach().reshape(-1, 32)
        extreme = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))
        scale = extreme / -8
        inverse = torch.where(scale == 0, 0, 1 / scale)
        steps = (blocks * inverse + 8.5).floor().clamp(0, 15) - 8
        stored = (steps * scale.half().float()).view_as(weight)
        return weight + (stored - weight).detach()


def quantised(*modules):
    """Makes the modules use every matrix as Q4_0 from here on."""
    for module in modules:
        for part in module.modules():
            if isinstance(part, (nn.Linear, nn.Embedding)) and part.weight.shape[-1] % 32 == 0 and "Vision" not in type(part).__name__:
                nn.utils.parametrize.register_parametrization(part, "weight", Q4())


def weights(module):
    """A state dict with the trained value of every parameter, whether used as Q4_0 or not."""
    return {re.sub(r"parametrizations\.(\w+)\.original", r"\1", name): value.detach() for name, value in module.state_dict().items()}


# Checkpoint ---------------------------------------------------------------------------------------------------------------


def save(folder, tokenizer, tower, connector, llama):
    """Writes the checkpoint as the reference code saves one: config.json, tokenizer.json, model.safetensors (f16)."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    parts = (("language_model.", llama), ("vision_tower._vision_tower.vision_model.", tower), ("connector._connector.", connector))
    tensors = {}
    for prefix, module in parts:
        names = ((prefix + name.removeprefix("vision_model."), value) for name, value in weights(module).items())
        tensors |= {name: value.half().contiguous().clone() for name, value in names if not name.endswith("position_ids")}
    n_layers = tower.config.num_hidden_layers
    for name in [name for name in tensors if f".layers.{n_layers - 1}." in name and name.startswith("vision_tower")]:
        tensors[name.replace(f".layers.{n_layers - 1}.", f".layers.{n_layers}.")] = torch.zeros_like(tensors[name])  # the last layer is never run
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    text, vision = llama.config, tower.config
    ids = {name: tokenizer.token_to_id(name) for name in SPECIAL}
    text_keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "rms_norm_eps",
                 "max_position_embeddings", "vocab_size", "tie_word_embeddings")
    vision_keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size", "hidden_act",
                   "layer_norm_eps")
    config = dict(
        model_type="tinyllava", architectures=["TinyLlavaForConditionalGeneration"],
        llm_model_name_or_path="PhantomVQA", tokenizer_name_or_path="PhantomVQA", vision_model_name_or_path="PhantomVQA (clip)",
        connector_type="mlp2x_gelu",
        text_config=dict({key: getattr(text, key) for key in text_keys}, model_type="llama", hidden_act="silu",
                         rope_theta=text.rope_parameters["rope_theta"], bos_token_id=ids["<|begin_of_text|>"],
                         eos_token_id=ids["<|end_of_text|>"]),
        vision_config=dict({key: getattr(vision, key) for key in vision_keys}, num_hidden_layers=n_layers + 1, model_type="clip_vision_model"),
        hidden_size=text.hidden_size, vocab_size=text.vocab_size, image_token_index=-200, ignore_index=-100,
        pad_token="<|end_of_text|>", pad_token_id=ids["<|end_of_text|>"], tokenizer_padding_side="right",
        tokenizer_model_max_length=text.max_position_embeddings, tokenizer_use_fast=True,
        vision_hidden_size=connector[0].in_features, vision_feature_layer=-2, vision_feature_select_strategy="patch",
        image_aspect_ratio="square", torch_dtype="float16",
        s2_scales=",".join(str(scale) for scale in SCALES[:connector[0].in_features // WIDTH]))
    generation = dict(bos_token_id=ids["<|begin_of_text|>"], eos_token_id=[ids["<|end_of_text|>"], ids["<|eot_id|>"]])
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    tokenizer.save(str(folder / "tokenizer.json"))


def load(folder):
    """What `save` wrote: tokenizer, tower, connector, llama, in f32."""
    folder = Path(folder)
    config = json.loads((folder / "config.json").read_text())
    tensors = {name: value.float() for name, value in load_file(folder / "model.safetensors").items()}
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tower = make_tower(config["vision_config"]["num_hidden_layers"] - 1)
    connector = make_connector(len(config["s2_scales"].split(",")))
    llama = make_llama(tokenizer, config["text_config"]["num_hidden_layers"])
    inner = "vision_model." if any(name.startswith("vision_model.") for name in tower.state_dict()) else ""
    for prefix, module, inside in (("language_model.", llama, ""), ("vision_tower._vision_tower.vision_model.", tower, inner),
                                   ("connector._connector.", connector, "")):
        unused = f".layers.{tower.config.num_hidden_layers}."
        part = {inside + name.removeprefix(prefix): value for name, value in tensors.items()
                if name.startswith(prefix) and not (module is tower and unused in name)}
        missing = module.load_state_dict(part, strict=False)
        assert not missing.unexpected_keys and all(key.endswith("position_ids") for key in missing.missing_keys), missing
        module.eval()
    return tokenizer, tower, connector, llama
