"""Writes small random checkpoints of LLaVA's families in their own layouts, and PyTorch's results for them; layout and goldens are those of make.py.

    .venv/bin/python tests/golden/families.py            # after make.py; part of `make golden`

    llava-med/      LLaVA-Med v1.5: llava_mistral, tower inside, sharded pickles, tokenizer.model as the only tokenizer file, [INST], padded pictures
    llava-vicuna/   LLaVA-1.5: llava_llama in one pickle, the tower outside in tower/ (a whole CLIPModel saved by transformers), tokenizer.model
    llava-s2/       LLaVA-Tri: llava_llama on Llama-3, tower inside, three scales, tokenizer.json that adds a second begin token
    llava-hf/       LlavaForConditionalGeneration saved by transformers, sparse config.json, chat_template.jinja; logits by that class itself
    llava-siglip/   the same with a SigLIP tower: every patch of the last layer is used
    llava-qwen/     llava_qwen: a Qwen2 decoder (biases of q, k and v, a tied head), ChatML, tower inside; decoder.gguf is the decoder as
                    written by llama.cpp's library

Only the features and what follows are kept: make.py covers the towers' stages. `turns_ids` is the prompt of a second question after the answer
`greedy_ids`: it shows how turns are joined.
"""

import copy
import io
import json
import shutil
from pathlib import Path

import gguf
import sentencepiece
import torch
from make import CLIP_NORM, IMAGE, N_STEPS, QUESTION, SENTENCES, SIGLIP_NORM, SPECIAL, Variant, embed, greedy, make_connector, make_picture, make_tokenizer
from make import merge, preprocess, randomise, split
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlavaConfig, LlavaForConditionalGeneration, MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM

FOLDER = Path(__file__).parent
SECOND = "Is it large?"
VICUNA = ("A chat between a curious user and an artificial intelligence assistant. "
          "The assistant gives helpful, detailed, and polite answers to the user's questions.")
VISION = dict(hidden_size=48, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, image_size=24, patch_size=6)
TEXT = dict(hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)


def variant(seed, connector="mlp2x_gelu", scales=(24,), fit="crop", dtype=torch.float16):
    return Variant(seed=seed, tower="clip", scales=list(scales), norm=CLIP_NORM, fit=fit, picture=(61, 40), dtype=dtype,
                   connector=connector, text=TEXT, vision=VISION, layout="")


# Tokens ---------------------------------------------------------------------------------------------------------------


def sentencepiece_model():
    """A small tokenizer.model like Llama-2's: pairs merged by score, byte fallback, no normalisation."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES + [VICUNA, "USER: ASSISTANT: [INST] [/INST]"]), model_writer=model, model_type="bpe",
        vocab_size=420, byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        split_digits=True, allow_whitespace_only_pieces=True, unk_id=0, bos_id=1, eos_id=2, pad_id=-1, minloglevel=2)
    return model.getvalue()


def piece_ids(processor, text):
    """A text with <s> and </s> in it: as in LlamaTokenizer, control tokens split it into separate texts."""
    ids = []
    for part_idx, part in enumerate(text.replace("<s>", "\0<s>\0").replace("</s>", "\0</s>\0").split("\0")):
        ids += [processor.piece_to_id(part)] if part in ("<s>", "</s>") else processor.encode(part) if part else []
    return ids


def llava_ids(text, encode, bos):
    """LLaVA's tokenizer_image_token: the parts around <image> are tokenised separately, each with a begin token, of which only the first is kept."""
    ids = []
    for part_idx, part in enumerate(text.split("<image>")):
        part = encode(part)
        if part_idx:
            ids.append(IMAGE)
        ids += part if part_idx == 0 else part[1:] if part[:1] == [bos] else part
    return ids


# Stages ---------------------------------------------------------------------------------------------------------------


def pad(picture):
    """LLaVA's expand2square, without LLaVA-Med's random pixel."""
    side = max(picture.size)
    square = Image.new("RGB", (side, side), tuple(int(mean * 255) for mean in CLIP_NORM[0]))
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square


def stages(name, variant, llama, tower, connector, select, n_known, prompts, n_drop=1):
    """From features to greedy answer, then the second turn's ids. The first `n_drop` tokens of the tower are not patches."""
    folder = FOLDER / name
    picture = make_picture(variant)
    picture.save(folder / "picture.png", optimize=True)
    tiles = split(preprocess(pad(picture) if variant.fit == "pad" else picture, variant), variant.scales)
    features = merge(tower(tiles, output_hidden_states=True).hidden_states[select][:, n_drop:], variant.scales)
    image_tokens = connector(features)
    first = prompts([])
    logits, greedy_ids = greedy(llama, embed(llama, first, image_tokens), n_known)
    golden = dict(features=features, image_tokens=image_tokens, prompt_ids=torch.tensor(first), logits=logits,
                  greedy_ids=greedy_ids, turns_ids=torch.tensor(prompts(greedy_ids.tolist())))
    save_file({key: value.contiguous() for key, value in golden.items()}, folder / "golden.safetensors")
    best = logits[:, :n_known].topk(2).values
    print(name, {key: tuple(value.shape) for key, value in golden.items()}, f"margin {(best[:, 0] - best[:, 1]).min():.4f}",
          f"{len(set(greedy_ids.tolist()))} different", greedy_ids.tolist())
    return golden


# Files ----------------------------------------------------------------------------------------------------------------


def fresh(name):
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "checkpoint").mkdir(parents=True)
    return folder / "checkpoint"


def write_json(path, content):
    path.write_text(json.dumps(content, indent=1) + "\n")


def stored(module, prefix, dtype, skip=()):
    return {prefix + key: value.to(dtype).clone() for key, value in module.state_dict().items() if key not in skip}


def save_shards(folder, tensors, n_shards):
    names, weight_map = sorted(tensors), {}
    for shard_idx in range(n_shards):
        file = f"pytorch_model-{shard_idx + 1:05}-of-{n_shards:05}.bin"
        shard = {name: tensors[name].clone() for name in names[shard_idx::n_shards]}
        weight_map |= dict.fromkeys(shard, file)
        torch.save(shard, folder / file)
    write_json(folder / "pytorch_model.bin.index.json", {"metadata": {}, "weight_map": dict(sorted(weight_map.items()))})


def mm_config(model_type, architecture, text, vocab_size, **others):
    """config.json as LLaVA saves it: the language model's, with mm_* keys."""
    return dict(text, architectures=[architecture], model_type=model_type, vocab_size=vocab_size, hidden_act="silu", bos_token_id=1,
                eos_token_id=2, mm_hidden_size=VISION["hidden_size"], mm_projector_type="mlp2x_gelu",
                mm_vision_tower="openai/clip-vit-large-patch14-336", mm_vision_select_layer=-2, mm_vision_select_feature="patch",
                mm_patch_merge_type="flat", mm_use_im_start_end=False, mm_use_im_patch_token=False, use_mm_proj=True,
                tokenizer_model_max_length=2048, tie_word_embeddings=False, **others)


def clip(variant):
    return randomise(CLIPVisionModel(CLIPVisionConfig(**VISION, attn_implementation="eager")), variant.dtype)


def llava_med():
    """The tower's number of heads is in vision_config, unlike in LLaVA-Med's own: it cannot be derived, as 48 is no known tower's width."""
    this, checkpoint = variant(21, fit="pad", dtype=torch.bfloat16), fresh("llava-med")
    torch.manual_seed(this.seed)
    model = sentencepiece_model()
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    n_known = processor.get_piece_size()
    text = dict(TEXT, rms_norm_eps=1e-5, rope_theta=1e6, max_position_embeddings=32768, sliding_window=None)
    config = MistralConfig(**{**text, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, vocab_size=n_known,
                           attn_implementation="eager")
    mistral = randomise(MistralForCausalLM(config), this.dtype)
    tower, connector = clip(this), make_connector(this, VISION["hidden_size"], TEXT["hidden_size"])
    tensors = stored(mistral, "", this.dtype) | stored(connector, "model.mm_projector.", this.dtype)
    tensors |= stored(tower, "model.vision_tower.vision_tower.vision_model.", this.dtype)
    save_shards(checkpoint, tensors, 2)
    (checkpoint / "tokenizer.model").write_bytes(model)
    write_json(checkpoint / "config.json", mm_config("llava_mistral", "LlavaMistralForCausalLM", text, n_known,
                                                     image_aspect_ratio="pad", vision_config=dict(VISION)))

    def prompts(answer):
        text = f"<s>[INST] <image>\n{QUESTION} [/INST]"
        ids = llava_ids(text, lambda part: piece_ids(processor, part), 1)
        return ids if not answer else ids + answer + [processor.piece_to_id("▁"), 2] + piece_ids(processor, f"[INST] {SECOND} [/INST]")

    stages("llava-med", this, mistral, tower, connector, -2, n_known, prompts)


def llava_vicuna():
    this, checkpoint = variant(22), fresh("llava-vicuna")
    torch.manual_seed(this.seed)
    model = sentencepiece_model()
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    n_known = processor.get_piece_size()
    text = dict(TEXT, rms_norm_eps=1e-5, max_position_embeddings=4096, rope_theta=10000.0)
    config = LlamaConfig(**{**text, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}, vocab_size=n_known + 12,
                         attn_implementation="eager")
    llama = randomise(LlamaForCausalLM(config), this.dtype)
    connector = make_connector(this, VISION["hidden_size"], TEXT["hidden_size"])
    whole = CLIPModel(CLIPConfig(vision_config=VISION, projection_dim=8, attn_implementation="eager",
                                 text_config=dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
                                                  vocab_size=16, max_position_embeddings=4)))
    randomise(whole, this.dtype)
    whole.to(this.dtype).save_pretrained(FOLDER / "llava-vicuna" / "tower")
    tower = whole.float().vision_model
    torch.save(stored(llama, "", this.dtype) | stored(connector, "model.mm_projector.", this.dtype), checkpoint / "pytorch_model.bin")
    (checkpoint / "tokenizer.model").write_bytes(model)
    write_json(checkpoint / "added_tokens.json", {"<pad>": n_known})
    write_json(checkpoint / "tokenizer_config.json", {"add_bos_token": True, "add_eos_token": False, "bos_token": "<s>", "legacy": True,
                                                      "eos_token": "</s>", "tokenizer_class": "LlamaTokenizer"})
    write_json(checkpoint / "config.json", mm_config("llava_llama", "LlavaLlamaForCausalLM", text, n_known + 12))

    def prompts(answer):
        ids = llava_ids(f"<s>{VICUNA} USER: <image>\n{QUESTION} ASSISTANT:", lambda part: piece_ids(processor, part), 1)
        return ids if not answer else ids + answer + [2] + piece_ids(processor, f"USER: {SECOND} ASSISTANT:")

    stages("llava-vicuna", this, llama, tower, connector, -2, n_known + 1, prompts)


def llava_s2():
    this, checkpoint = variant(23, scales=(24, 48, 72)), fresh("llava-s2")
    torch.manual_seed(this.seed)
    tokenizer = make_tokenizer()
    n_known = tokenizer.get_vocab_size()
    text = dict(TEXT, rms_norm_eps=1e-5, max_position_embeddings=8192, rope_theta=500000.0)
    config = LlamaConfig(**{**text, "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}, vocab_size=n_known,
                         attn_implementation="eager")
    llama = randomise(LlamaForCausalLM(config), this.dtype)
    tower, connector = clip(this), make_connector(this, 3 * VISION["hidden_size"], TEXT["hidden_size"])
    tensors = stored(llama, "", this.dtype) | stored(connector, "model.mm_projector.", this.dtype)
    tensors |= stored(tower, "model.vision_tower.vision_tower.vision_model.", this.dtype)
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(checkpoint / "tokenizer.json"))
    bos, end = tokenizer.token_to_id(SPECIAL[0]), SPECIAL[5]
    write_json(checkpoint / "config.json", dict(
        mm_config("llava_llama", "LlavaLlamaForCausalLM", text, n_known, s2=True, s2_scales="24,48,72", vision_config=dict(VISION)),
        bos_token_id=bos, eos_token_id=tokenizer.token_to_id(SPECIAL[1]), mm_vision_select_layer=-1))

    def header(role):
        return f"<|start_header_id|>{role}<|end_header_id|>\n\n"

    def prompts(answer):
        text = f"<|begin_of_text|>{header('system')}{VICUNA}{end}{header('user')}<image>\n{QUESTION}{end}{header('assistant')}"
        ids = llava_ids(text, lambda part: tokenizer.encode(part).ids, bos)
        assert ids[:2] == [bos, bos], "the tokenizer's and the template's"
        follow = f"{end}{header('user')}{SECOND}{end}{header('assistant')}"
        return ids if not answer else ids + answer + tokenizer.encode(follow, add_special_tokens=False).ids

    stages("llava-s2", this, llama, tower, connector, -1, n_known, prompts)


def llava_hf():
    """Like published ones, config.json has only values that differ from transformers' defaults."""
    transformers_llava("llava-hf", 24, dict(VISION, model_type="clip_vision_model", projection_dim=8), {}, {
        "do_center_crop": True, "do_resize": True, "image_mean": CLIP_NORM[0], "image_std": CLIP_NORM[1],
        "crop_size": {"height": 24, "width": 24}, "size": {"shortest_edge": 24}, "image_processor_type": "CLIPImageProcessor"})


def llava_siglip():
    """No class token, so every token of the tower is a patch: the strategy `full` keeps them, `default` would drop the first."""
    transformers_llava("llava-siglip", 26, dict(VISION, model_type="siglip_vision_model"), {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"}, {
        "do_resize": True, "image_mean": SIGLIP_NORM[0], "image_std": SIGLIP_NORM[1],
        "size": {"height": 24, "width": 24}, "image_processor_type": "SiglipImageProcessor"})


def transformers_llava(name, seed, vision, select, processor):
    this, checkpoint = variant(seed, fit="crop" if "crop_size" in processor else "stretch"), fresh(name)
    this.norm = (processor["image_mean"], processor["image_std"])
    torch.manual_seed(this.seed)
    tokenizer = make_tokenizer()
    n_known = tokenizer.get_vocab_size()
    vocab_size = n_known + 10
    text = dict(TEXT, model_type="llama", vocab_size=vocab_size, rms_norm_eps=1e-5, max_position_embeddings=8192,
                rope_parameters={"rope_type": "default", "rope_theta": 500000.0})
    image_token = vocab_size - 3
    config = LlavaConfig(text_config=text, vision_config=vision, image_token_id=image_token, image_token_index=image_token,
                         image_seq_length=16, attn_implementation="eager", **select)
    llava = randomise(LlavaForConditionalGeneration(config), this.dtype)
    copy.deepcopy(llava).to(this.dtype).save_pretrained(checkpoint)  # the rotary frequencies stay f32
    (checkpoint / "generation_config.json").unlink(missing_ok=True)
    saved = json.loads((checkpoint / "config.json").read_text())
    kept = ("architectures", "model_type", "image_token_index", "image_token_id", "projector_hidden_act", *select)
    sparse = {key: saved[key] for key in kept if key in saved}
    sparse["text_config"] = {key: text[key] for key in ("model_type", "num_attention_heads", "rms_norm_eps", "max_position_embeddings", "rope_parameters")}
    sparse["vision_config"] = {key: vision[key] for key in ("hidden_size", "image_size", "num_attention_heads", "patch_size", "model_type")}
    write_json(checkpoint / "config.json", sparse)
    write_json(checkpoint / "preprocessor_config.json", processor)
    tokenizer.save(str(checkpoint / "tokenizer.json"))
    write_json(checkpoint / "tokenizer_config.json", {"bos_token": SPECIAL[0], "eos_token": SPECIAL[5], "tokenizer_class": "PreTrainedTokenizerFast"})
    (checkpoint / "chat_template.jinja").write_text(
        "{% for message in messages %}\n{{ '<|start_header_id|>' + message['role'].strip() + '<|end_header_id|>\\n\\n' }}"
        "{%- for content in message['content'] | selectattr('type', 'equalto', 'image') %}\n{{ '<image>\\n' }}{% endfor %}\n"
        "{%- for content in message['content'] | selectattr('type', 'equalto', 'text') %}\n{{ content['text'] | trim }}{% endfor %}\n"
        "{{- '<|eot_id|>' }}{% endfor %}\n{%- if add_generation_prompt %}\n{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}")
    end = SPECIAL[5]

    def header(role):
        return f"<|start_header_id|>{role}<|end_header_id|>\n\n"

    def encode(part):
        return tokenizer.encode(part, add_special_tokens=False).ids

    def prompts(answer):
        first = [tokenizer.token_to_id(SPECIAL[0])] + encode(header("user")) + [IMAGE]
        ids = first + encode(f"\n{QUESTION}{end}{header('assistant')}")
        return ids if not answer else ids + answer + encode(f"{end}{header('user')}{SECOND}{end}{header('assistant')}")

    model = llava.model
    golden = stages(name, this, LlamaShell(model.language_model, llava.lm_head), model.vision_tower, model.multi_modal_projector,
                    config.vision_feature_layer, n_known, prompts, n_drop=0 if select else 1)
    # The class itself, with pixels and ids as input, must give the same logits after every token of the answer.
    picture = make_picture(this)
    pixels = preprocess(picture, this)[None]
    n_image = golden["image_tokens"].shape[0]
    ids = sum(([image_token] * n_image if i == IMAGE else [i] for i in golden["prompt_ids"].tolist()), [])
    ids += golden["greedy_ids"].tolist()[:-1]
    logits = llava(input_ids=torch.tensor([ids]), pixel_values=pixels).logits[0, -N_STEPS:]
    worst = (logits - golden["logits"]).abs().max().item()
    print(f"  LlavaForConditionalGeneration differs by {worst:.1e}")
    assert worst < 1e-4


QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_SYSTEM = "You are a helpful assistant."
QWEN2_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\n" + QWEN2_SYSTEM + "<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def qwen2_tokenizer():
    """A byte-level BPE in the form of Qwen2's: its pattern, composed characters, and no begin token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(QWEN2_PATTERN), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=378, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(SENTENCES + [QWEN2_SYSTEM], trainer)
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")])
    return tokenizer


def llava_qwen():
    this, checkpoint = variant(27, dtype=torch.bfloat16), fresh("llava-qwen")
    torch.manual_seed(this.seed)
    tokenizer = qwen2_tokenizer()
    n_known = tokenizer.get_vocab_size()
    text = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                rms_norm_eps=1e-6, max_position_embeddings=32768, rope_theta=1000000.0)
    config = Qwen2Config(**{**text, "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}}, vocab_size=n_known + 11,
                         tie_word_embeddings=True, attn_implementation="eager")
    qwen2 = randomise(Qwen2ForCausalLM(config), this.dtype)
    # Otherwise every token's best successor would be itself.
    qwen2.model.embed_tokens.weight.data *= 0.25
    tower, connector = clip(this), make_connector(this, VISION["hidden_size"], text["hidden_size"])
    tensors = stored(qwen2, "", this.dtype, skip=("lm_head.weight",)) | stored(connector, "model.mm_projector.", this.dtype)
    tensors |= stored(tower, "model.vision_tower.vision_tower.vision_model.", this.dtype)
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(checkpoint / "tokenizer.json"))
    end = tokenizer.token_to_id("<|im_end|>")
    write_json(checkpoint / "config.json", dict(
        mm_config("llava_qwen", "LlavaQwenForCausalLM", text, n_known + 11, vision_config=dict(VISION), sliding_window=32768,
                  use_sliding_window=False, max_window_layers=2),
        bos_token_id=tokenizer.token_to_id("<|endoftext|>"), eos_token_id=end, tie_word_embeddings=True))
    write_json(checkpoint / "tokenizer_config.json", {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>",
                                                      "tokenizer_class": "Qwen2Tokenizer", "chat_template": QWEN2_TEMPLATE})

    def turn(role, content=""):
        return f"<|im_start|>{role}\n{content}"

    def encode(part):
        return tokenizer.encode(part, add_special_tokens=False).ids

    def prompts(answer):
        text = f"{turn('system', QWEN2_SYSTEM)}<|im_end|>\n{turn('user')}<image>\n{QUESTION}<|im_end|>\n{turn('assistant')}"
        ids = llava_ids(text, encode, None)
        return ids if not answer else ids + answer + encode(f"<|im_end|>\n{turn('user', SECOND)}<|im_end|>\n{turn('assistant')}")

    golden = stages("llava-qwen", this, qwen2, tower, connector, -2, n_known, prompts)
    text_ids = encode(f"{turn('user', SENTENCES[0])}<|im_end|>\n{turn('assistant')}")
    golden |= dict(text_ids=torch.tensor(text_ids), text_logits=qwen2(input_ids=torch.tensor([text_ids])).logits[0])
    save_file({key: value.contiguous() for key, value in golden.items()}, FOLDER / "llava-qwen" / "golden.safetensors")
    write_qwen2_gguf(FOLDER / "llava-qwen" / "decoder.gguf", qwen2, tokenizer)


def write_qwen2_gguf(path, qwen2, tokenizer):
    """The decoder as llama.cpp's converter writes it: with its library's tensor names, keys and vocabulary, and none of this project's keys."""
    config, writer = qwen2.config, gguf.GGUFWriter(path, "qwen2")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    document = json.loads(tokenizer.to_str())
    added = {token["id"] for token in document["added_tokens"]}
    tokens = [tokenizer.id_to_token(i) or f"[PAD{i}]" for i in range(config.vocab_size)]
    kinds = gguf.TokenType
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([int(kinds.CONTROL if i in added else kinds.UNUSED if i >= tokenizer.get_vocab_size() else kinds.NORMAL)
                            for i in range(config.vocab_size)])
    writer.add_token_merges([" ".join(merge) for merge in document["model"]["merges"]])
    writer.add_eos_token_id(tokenizer.token_to_id("<|im_end|>"))
    writer.add_bos_token_id(tokenizer.token_to_id("<|endoftext|>"))
    writer.add_add_bos_token(False)
    writer.add_chat_template(QWEN2_TEMPLATE)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, config.num_hidden_layers)
    for name, tensor in qwen2.state_dict().items():
        if name == "lm_head.weight":  # tied
            continue
        kind = gguf.GGMLQuantizationType.BF16 if tensor.dim() > 1 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(names.get_name(name, (".weight", ".bias")), gguf.quants.quantize(tensor.numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class LlamaShell:
    """A language model and its head in the form that make.py's helpers expect."""

    def __init__(self, model, lm_head):
        self.model, self.lm_head = model, lm_head

    def __call__(self, inputs_embeds):
        class Output:
            logits = self.lm_head(self.model(inputs_embeds=inputs_embeds).last_hidden_state)
        return Output


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    for make in (llava_med, llava_vicuna, llava_s2, llava_hf, llava_siglip, llava_qwen):
        make()
