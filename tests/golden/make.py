"""Writes small random Llama3-Med checkpoints in their published layouts, and PyTorch's results for them stage by stage.

    python -m venv .venv && .venv/bin/pip install -r tests/golden/requirements.txt
    .venv/bin/python tests/golden/make.py            # or: make golden

Every variant becomes a folder beside this script:

    <variant>/checkpoint/          as the reference code would save it: config.json, tokenizer.json, safetensors
    <variant>/picture.png
    <variant>/golden.safetensors   every stage's output, f32 on the CPU, from the stored (f16, bf16) weights widened to f32:
        pixels          (3, size, size)            normalised, at the largest scale
        tiles           (n_tiles, 3, tile, tile)   scale by scale, row-major
        tower           (n_tiles, n_patches, V)    class and register tokens dropped
        features        (n_tokens, V * n_scales)   merged, pooled, concatenated
        image_tokens    (n_tokens, dim)            after the connector
        prompt_ids      (n,) int64                 with -200 in place of the image tokens
        logits          (24, vocabulary)           row 0 after the prompt, row i after the prompt and i greedy tokens
        greedy_ids      (24,) int64                the best token that the tokenizer knows; no stop token among them
        text_ids        (n,) int64                 a prompt without an image
        text_logits     (n, vocabulary)            after every token of it

The towers are transformers' CLIP and SigLIP and timm's vit_giant_patch14_reg4_dinov2, the decoder is transformers' Llama. The multi-scale step is
implemented here from its description. Weights are drawn so that every bias, norm and gamma matters and greedy answers vary.
"""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM
from transformers import SiglipVisionConfig, SiglipVisionModel

FOLDER = Path(__file__).parent
N_STEPS = 24
IMAGE = -200
SYSTEM = "You are a helpful language and vision assistant. "
QUESTION = "What does the picture show, and where is the mass?"
CLIP_NORM = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
SIGLIP_NORM = ([0.5] * 3, [0.5] * 3)
OPTIMUS_NORM = ([0.707223, 0.578729, 0.703617], [0.211883, 0.230117, 0.177517])


@dataclass
class Variant:
    """One checkpoint: its sizes, its layout and its picture."""

    seed: int
    tower: str
    scales: list[int]
    norm: tuple
    fit: str  # crop or stretch
    picture: tuple[int, int]  # width, height
    dtype: torch.dtype
    connector: str
    text: dict
    vision: dict
    layout: str  # sharded, single or folders
    model_type: str = "tinyllava"
    n_padding: int = 0  # embedding rows beyond the tokenizer
    extra_config: dict = field(default_factory=dict)


LLAMA31_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    # 8192 in the published models; small here so that a short prompt covers all three frequency bands.
    "original_max_position_embeddings": 48,
}

VARIANTS = {
    # Three scales, 14 tiles, a grid of 5, heads 12 wide; rows a multiple of 32, so Q4_0 and Q8_0 apply.
    "clip-s2": Variant(
        seed=3,
        tower="clip",
        scales=[30, 60, 90],
        norm=CLIP_NORM,
        fit="crop",
        picture=(157, 120),
        dtype=torch.float16,
        connector="mlp2x_gelu",
        text=dict(hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
                  num_key_value_heads=2, rope=LLAMA31_ROPE, max_position_embeddings=384),
        vision=dict(hidden_size=96, intermediate_size=160, num_hidden_layers=4, num_attention_heads=8, image_size=30,
                    patch_size=6),
        layout="sharded",
    ),
    # One scale, a linear connector, a tied head, one key/value head, head_dim given; no row is a multiple of 32.
    "siglip": Variant(
        seed=6,
        tower="siglip",
        scales=[35],
        norm=SIGLIP_NORM,
        fit="stretch",
        picture=(23, 51),
        dtype=torch.float32,
        connector="linear",
        text=dict(hidden_size=36, intermediate_size=56, num_hidden_layers=2, num_attention_heads=3,
                  num_key_value_heads=1, head_dim=10, tie_word_embeddings=True, max_position_embeddings=256),
        vision=dict(hidden_size=36, intermediate_size=52, num_hidden_layers=3, num_attention_heads=3, image_size=35,
                    patch_size=5),
        layout="single",
    ),
    # 46 tiles as with H-optimus-0, register tokens, layer scale, packed SwiGLU; a padded vocabulary; decoder rows of 256 for Q4_K.
    "optimus-s2": Variant(
        seed=4,
        tower="optimus",
        scales=[21, 63, 126],
        norm=OPTIMUS_NORM,
        fit="crop",
        picture=(140, 200),
        dtype=torch.bfloat16,
        connector="mlp2x_gelu",
        text=dict(hidden_size=256, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
                  num_key_value_heads=2, rope=LLAMA31_ROPE, max_position_embeddings=512),
        vision=dict(embed_dim=96, depth=3, num_heads=4, img_size=21, patch_size=7),
        layout="folders",
        model_type="llama3med",
        n_padding=24,
    ),
}


# Tokenizer ------------------------------------------------------------------------------------------------------------

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|start_header_id|>",
           "<|end_header_id|>", "<|eot_id|>"]
SENTENCES = [
    "What does the picture show, and where is the mass? The picture shows a round mass in the left lung.",
    "You are a helpful language and vision assistant. system user assistant",
    "How many bright spots are there? There are 3 bright spots in the upper right, 12 mm apart.",
    "Is there a fracture? No, there is no fracture. Yes, there's one in the lower third.",
    "Das Bild zeigt eine Raumforderung. La imagen muestra una masa. 肺に腫瘤があります。",
]


def make_tokenizer():
    """A byte-level BPE in the form of Llama-3's: its pattern, its special tokens, BOS from the post-processor."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(LLAMA3_PATTERN), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=378, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.add_special_tokens(SPECIAL)
    bos = tokenizer.token_to_id(SPECIAL[0])
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single=f"{SPECIAL[0]} $A", special_tokens=[(SPECIAL[0], bos)]),
    ])
    return tokenizer


def prompt(tokenizer, question, image):
    """The training form of one turn, up to the assistant's header; the parts around the image are tokenised separately."""
    question = f"<image>\n{question}" if image else question
    text = (f"<|start_header_id|>system<|end_header_id|>\n\n{SYSTEM}<|eot_id|>"
            f"<|start_header_id|>user<|end_header_id|>\n\n{question}<|eot_id|>"
            f"<|start_header_id|>assistant<|end_header_id|>\n\n")
    ids = []
    for piece_idx, piece in enumerate(text.split("<image>")):
        piece_ids = tokenizer.encode(piece).ids
        ids += piece_ids if piece_idx == 0 else [IMAGE] + piece_ids[1:]
    return ids


# Models ---------------------------------------------------------------------------------------------------------------


def randomise(module, dtype):
    """Draws every parameter, then rounds it to the stored type."""
    for name, parameter in module.named_parameters():
        if "norm" in name and name.endswith("weight"):
            values = 1.0 + torch.randn_like(parameter) * 0.3
        elif name.endswith("gamma"):
            values = torch.randn_like(parameter) * 0.5
        elif name.endswith("bias"):
            values = torch.randn_like(parameter) * 0.2
        elif parameter.dim() > 1 and not any(word in name for word in ("embed_tokens", "position", "pos_embed", "token")):
            values = torch.randn_like(parameter) * 1.5 / parameter[0].numel() ** 0.5
        else:
            values = torch.randn_like(parameter)
        parameter.data = values.to(dtype).float()
    return module.eval().requires_grad_(False)


def make_tower(variant):
    """The tower and the function from a batch of tiles to its patch features."""
    if variant.tower == "clip":
        tower = randomise(CLIPVisionModel(CLIPVisionConfig(**variant.vision, attn_implementation="eager")), variant.dtype)
        return tower, lambda tiles: tower(tiles, output_hidden_states=True).hidden_states[-2][:, 1:]
    if variant.tower == "siglip":
        config = SiglipVisionConfig(**variant.vision, attn_implementation="eager")
        tower = randomise(SiglipVisionModel(config), variant.dtype)
        return tower, lambda tiles: tower(tiles, output_hidden_states=True).hidden_states[-2]
    tower = timm.create_model("vit_giant_patch14_reg4_dinov2", pretrained=False, num_classes=0, **variant.vision)
    randomise(tower, variant.dtype)
    return tower, lambda tiles: tower.forward_features(tiles)[:, 5:]


def make_connector(variant, n_in, dim):
    """`linear` or `mlpNx_gelu`."""
    if variant.connector == "linear":
        return randomise(torch.nn.Linear(n_in, dim), variant.dtype)
    layers = [torch.nn.Linear(n_in, dim)]
    for _ in range(1, int(variant.connector[3])):
        layers += [torch.nn.GELU(), torch.nn.Linear(dim, dim)]
    return randomise(torch.nn.Sequential(*layers), variant.dtype)


def make_llama(variant, n_known):
    """A Llama whose padding rows, if there are any, would win if they were not banned."""
    text = dict(variant.text)
    rope = text.pop("rope", {"rope_type": "default"})
    config = LlamaConfig(**text, vocab_size=n_known + variant.n_padding, rms_norm_eps=1e-5,
                         rope_parameters={**rope, "rope_theta": 500000.0}, attn_implementation="eager")
    llama = randomise(LlamaForCausalLM(config), variant.dtype)
    if variant.text.get("tie_word_embeddings"):  # otherwise every token's best successor would be itself
        llama.model.embed_tokens.weight.data *= 0.25
    if variant.n_padding:
        llama.lm_head.weight.data[n_known:] *= 2
    return llama


# Stages ---------------------------------------------------------------------------------------------------------------


def make_picture(variant):
    """Smooth shapes with edges, each channel different."""
    width, height = variant.picture
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) / max(width, height)
    red = 0.5 + 0.5 * np.sin(13 * x + 3 * y)
    green = ((x - 0.4) ** 2 + (y - 0.3) ** 2 < 0.06) * 0.7 + 0.2 * y
    blue = 0.5 + 0.5 * np.cos(21 * x * y) * (y > 0.25)
    return Image.fromarray((np.stack([red, green, blue], -1) * 255).clip(0, 255).astype(np.uint8), "RGB")


def preprocess(picture, variant):
    """Shortest edge to the largest scale and centre-crop, or plain stretching; bicubic, then normalised."""
    size = variant.scales[-1]
    width, height = picture.size
    short, long = min(width, height), max(width, height)
    resized = (size, int(size * long / short)) if width <= height else (int(size * long / short), size)
    picture = picture.resize((size, size) if variant.fit == "stretch" else resized, Image.Resampling.BICUBIC)
    left, top = (picture.width - size) // 2, (picture.height - size) // 2
    values = np.asarray(picture.crop((left, top, left + size, top + size))).astype(np.float64) / 255
    mean, std = (np.array(part, dtype=np.float64) for part in variant.norm)
    return torch.from_numpy((((values - mean) / std).astype(np.float32)).transpose(2, 0, 1).copy())


def split(pixels, scales):
    """Every scale of the picture, cut into tiles of the smallest scale's size."""
    tiles = []
    for scale in scales:
        scaled = F.interpolate(pixels[None], size=(scale, scale), mode="bicubic", align_corners=False)[0]
        n = -(-scale // scales[0])
        side = scale // n
        tiles += [scaled[:, y * side:(y + 1) * side, x * side:(x + 1) * side] for y in range(n) for x in range(n)]
    return torch.stack(tiles)


def merge(tower, scales):
    """Tiles' features put back together, averaged down to the smallest scale's grid, channels side by side."""
    grid = int(tower.shape[1] ** 0.5)
    merged, first = [], 0
    for scale in scales:
        n = -(-scale // scales[0])
        maps = tower[first:first + n * n].reshape(n, n, grid, grid, -1)
        first += n * n
        whole = maps.permute(4, 0, 2, 1, 3).reshape(1, -1, n * grid, n * grid)
        merged.append(F.interpolate(whole, size=(grid, grid), mode="area")[0])
    return torch.cat(merged).flatten(1).T.contiguous()


def embed(llama, ids, image_tokens):
    """Embeddings of a prompt, with the image tokens in place of -200."""
    rows = [image_tokens if i == IMAGE else llama.model.embed_tokens.weight[i][None] for i in ids]
    return torch.cat(rows)[None]


def greedy(llama, embeddings, n_known):
    """Logits and the best token that the tokenizer knows, step by step, without a cache."""
    logits, ids = [], []
    for _ in range(N_STEPS):
        logits.append(llama(inputs_embeds=embeddings).logits[0, -1])
        ids.append(int(logits[-1][:n_known].argmax()))
        embeddings = torch.cat([embeddings, llama.model.embed_tokens.weight[ids[-1]][None, None]], 1)
    return torch.stack(logits), torch.tensor(ids)


# Files ----------------------------------------------------------------------------------------------------------------


def text_config(variant, llama, tokenizer):
    """As transformers 4 wrote it; the `single` layout has the `rope_parameters` of transformers 5."""
    text = dict(variant.text)
    rope = text.pop("rope", None)
    text = dict(text, architectures=["LlamaForCausalLM"], model_type="llama", hidden_act="silu", rms_norm_eps=1e-5,
                vocab_size=llama.config.vocab_size, bos_token_id=tokenizer.token_to_id(SPECIAL[0]),
                eos_token_id=tokenizer.token_to_id(SPECIAL[1]))
    if variant.layout == "single":
        return dict(text, rope_parameters={"rope_type": "default", "rope_theta": 500000.0})
    return dict(text, rope_theta=500000.0, rope_scaling=rope)


def vision_config(variant):
    """For H-optimus it has CLIP's defaults in addition to the true timm fields, as saved by the reference code."""
    if variant.tower != "optimus":
        model_type = {"clip": "clip_vision_model", "siglip": "siglip_vision_model"}[variant.tower]
        act = {"clip": "quick_gelu", "siglip": "gelu_pytorch_tanh"}[variant.tower]
        eps = {"clip": 1e-5, "siglip": 1e-6}[variant.tower]
        return dict(variant.vision, model_type=model_type, hidden_act=act, layer_norm_eps=eps)
    clip = CLIPVisionConfig()
    defaults = {key: getattr(clip, key) for key in (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size",
        "layer_norm_eps", "hidden_act", "projection_dim")}
    timm_fields = dict(variant.vision, architecture="vit_giant_patch14_reg4_dinov2", mlp_ratio=5.33334, reg_tokens=4,
                       no_embed_class=True, init_values=1e-5, num_classes=0, global_pool="token")
    return dict(defaults, model_type="clip_vision_model", **timm_fields)


def config(variant, llama, tokenizer, n_vision):
    """config.json."""
    names = {"clip": "openai/clip-vit-large-patch14-336", "siglip": "google/siglip-so400m-patch14-384",
             "optimus": "bioptimus/H-optimus-0"}
    pad = tokenizer.token_to_id(SPECIAL[1])
    keys = dict(
        model_type=variant.model_type, architectures=["TinyLlavaForConditionalGeneration"],
        llm_model_name_or_path="meta-llama/Meta-Llama-3-8B-Instruct", tokenizer_name_or_path="random",
        vision_model_name_or_path=names[variant.tower], vision_model_name_or_path2="",
        connector_type=variant.connector, text_config=text_config(variant, llama, tokenizer),
        vision_config=vision_config(variant), hidden_size=llama.config.hidden_size,
        vocab_size=llama.config.vocab_size, image_token_index=IMAGE, ignore_index=-100, pad_token="<|end_of_text|>",
        pad_token_id=pad, tokenizer_padding_side="right",
        tokenizer_model_max_length=variant.text["max_position_embeddings"], tokenizer_use_fast=True,
        vision_hidden_size=n_vision * len(variant.scales), vision_feature_layer=-2,
        vision_feature_select_strategy="patch", image_aspect_ratio="square", resampler_hidden_size=768,
        tune_type_llm="full", tune_type_vision_tower="full", tune_type_connector="full",
        torch_dtype=str(variant.dtype).removeprefix("torch."))
    if len(variant.scales) > 1:
        keys["s2_scales"] = ",".join(map(str, variant.scales))
    return keys


def stored(module, prefix, dtype):
    """A module's tensors in the stored type under the checkpoint's names."""
    return {prefix + key: value.to(dtype).contiguous().clone() for key, value in module.state_dict().items()}


def save_weights(folder, variant, llama, tower, connector):
    """The safetensors files in the variant's layout."""
    language = stored(llama, "", variant.dtype)
    if variant.text.get("tie_word_embeddings"):
        del language["lm_head.weight"]
    vision = stored(tower, "" if variant.tower == "optimus" else "vision_model.", variant.dtype)
    mlp = stored(connector, "_connector.", variant.dtype)
    if variant.layout == "folders":
        for name, tensors in (("language_model", language), ("vision_tower", vision), ("connector", mlp)):
            (folder / name).mkdir()
            save_file(tensors, folder / name / "model.safetensors", metadata={"format": "pt"})
        return
    tensors = {f"language_model.{key}": value for key, value in language.items()}
    tensors |= {f"vision_tower._vision_tower.{key}": value for key, value in vision.items()}
    tensors |= {f"connector.{key}": value for key, value in mlp.items()}
    if variant.tower == "clip":  # a buffer that transformers used to save
        n_positions = tower.embeddings.position_embedding.weight.shape[0]
        tensors["vision_tower._vision_tower.vision_model.embeddings.position_ids"] = torch.arange(n_positions)[None]
    if variant.layout == "single":
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names, weight_map = sorted(tensors), {}
    for shard_idx in range(3):
        file = f"model-{shard_idx + 1:05}-of-00003.safetensors"
        shard = {name: tensors[name] for name in names[shard_idx::3]}
        weight_map |= dict.fromkeys(shard, file)
        save_file(shard, folder / file, metadata={"format": "pt"})
    n_bytes = sum(value.numel() * value.element_size() for value in tensors.values())
    index = {"metadata": {"total_size": n_bytes}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def save_json(folder, variant, llama, tokenizer, n_vision):
    """config.json, generation_config.json and the tokenizer's files."""
    ids = {name: tokenizer.token_to_id(name) for name in SPECIAL}
    files = {
        "config.json": config(variant, llama, tokenizer, n_vision),
        "generation_config.json": {"bos_token_id": ids[SPECIAL[0]], "eos_token_id": [ids[SPECIAL[1]], ids[SPECIAL[5]]]},
        "tokenizer_config.json": {
            "added_tokens_decoder": {str(i): {"content": name, "special": True} for name, i in ids.items()},
            "bos_token": SPECIAL[0], "eos_token": SPECIAL[1], "pad_token": SPECIAL[1],
            "model_max_length": variant.text["max_position_embeddings"],
            "tokenizer_class": "PreTrainedTokenizerFast"},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    tokenizer.save(str(folder / "tokenizer.json"))


def make(name, variant):
    """One variant's folder, from the weights to the last golden."""
    torch.manual_seed(variant.seed)
    tokenizer = make_tokenizer()
    n_known = tokenizer.get_vocab_size()
    llama = make_llama(variant, n_known)
    tower, features_of = make_tower(variant)
    n_vision = variant.vision.get("hidden_size", variant.vision.get("embed_dim"))
    connector = make_connector(variant, n_vision * len(variant.scales), llama.config.hidden_size)

    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "checkpoint").mkdir(parents=True)
    save_weights(folder / "checkpoint", variant, llama, tower, connector)
    save_json(folder / "checkpoint", variant, llama, tokenizer, n_vision)
    picture = make_picture(variant)
    picture.save(folder / "picture.png", optimize=True)

    pixels = preprocess(picture, variant)
    tiles = split(pixels, variant.scales)
    tower_out = features_of(tiles)
    features = merge(tower_out, variant.scales)
    image_tokens = connector(features)
    prompt_ids = prompt(tokenizer, QUESTION, image=True)
    logits, greedy_ids = greedy(llama, embed(llama, prompt_ids, image_tokens), n_known)
    text_ids = prompt(tokenizer, QUESTION, image=False)
    text_logits = llama(input_ids=torch.tensor([text_ids])).logits[0]
    golden = dict(pixels=pixels, tiles=tiles, tower=tower_out, features=features, image_tokens=image_tokens,
                  prompt_ids=torch.tensor(prompt_ids), logits=logits, greedy_ids=greedy_ids,
                  text_ids=torch.tensor(text_ids), text_logits=text_logits)
    save_file({key: value.contiguous() for key, value in golden.items()}, folder / "golden.safetensors")
    report(name, tokenizer, golden, n_known)


def report(name, tokenizer, golden, n_known):
    """A summary to check before committing: sizes, variation, and how close to a tie the greedy choices were."""
    known = golden["logits"][:, :n_known]
    stops = {tokenizer.token_to_id(SPECIAL[1]), tokenizer.token_to_id(SPECIAL[5])}
    assert not stops & set(golden["greedy_ids"].tolist()), "the answer stops early: take another seed"
    best = known.topk(2).values
    print(name, {key: tuple(value.shape) for key, value in golden.items()})
    for key, value in golden.items():
        print(f"  {key:14} rms {value.float().pow(2).mean().sqrt():.3f}  max {value.float().abs().max():.3f}")
    n_banned = int((golden["logits"].argmax(1) >= n_known).sum())
    print(f"  {len(set(golden['greedy_ids'].tolist()))} different tokens, smallest margin "
          f"{(best[:, 0] - best[:, 1]).min():.4f}, padding would have won {n_banned} times")
    print(f"  {tokenizer.decode(golden['greedy_ids'].tolist(), skip_special_tokens=False)!r}")


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    for name, variant in VARIANTS.items():
        make(name, variant)
    n_bytes = sum(file.stat().st_size for name in VARIANTS for file in (FOLDER / name).rglob("*") if file.is_file())
    print(f"{n_bytes / 1e6:.2f} MB")
