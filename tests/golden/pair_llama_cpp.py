"""Writes the checkpoint llava-vicuna/ as the GGUF pair of llama.cpp's converters: pair/decoder.gguf, the same in three parts, pair/mmproj.gguf.

    .venv/bin/python tests/golden/pair_llama_cpp.py   # or: make golden; after families.py, from anywhere

The decoder has the names, keys and rotary order of convert_hf_to_gguf.py (names by the package gguf), the encoder those of mtmd's
convert_image_encoder_to_gguf.py: an MLP's first product is `ffn_down`, its second `ffn_up`. pair/text.safetensors holds llama.cpp's ids of a text prompt
and its logits after each of the last N_LOGITS of them. With a
picture the reference is the converted checkpoint itself, which is tested against PyTorch: the Python package has no mtmd.
"""

from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import sentencepiece
import torch
from make import CLIP_NORM, QUESTION
from safetensors.numpy import load_file, save_file
from families import TEXT, VICUNA, VISION

SOURCE = Path(__file__).parent / "llava-vicuna"
TARGET = Path(__file__).parent / "pair"
N_BLOCKS = VISION["num_hidden_layers"] - 1
N_LOGITS = 8
PARTS = [5, 14]  # where the parts of the split file end, in tensors


def permute(weight, n_heads):
    """Rows of q and k for rotary pairs of neighbours, as in LlamaModel.permute."""
    return weight.reshape(n_heads, 2, weight.shape[0] // n_heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def decoder_tensors():
    """Names and values, in the order of llama.cpp's names."""
    checkpoint = torch.load(SOURCE / "checkpoint/pytorch_model.bin", weights_only=True)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, TEXT["num_hidden_layers"])
    for name, tensor in checkpoint.items():
        if name.startswith("model.mm_projector."):
            continue
        tensor = tensor.float().numpy()
        if "q_proj" in name or "k_proj" in name:
            tensor = permute(tensor, TEXT["num_attention_heads" if "q_proj" in name else "num_key_value_heads"])
        yield names.get_name(name, try_suffixes=(".weight",)), tensor


def decoder_keys(writer):
    """Everything except tensors."""
    writer.add_name("small LLaVA")
    writer.add_context_length(4096)
    writer.add_embedding_length(TEXT["hidden_size"])
    writer.add_block_count(TEXT["num_hidden_layers"])
    writer.add_feed_forward_length(TEXT["intermediate_size"])
    writer.add_head_count(TEXT["num_attention_heads"])
    writer.add_head_count_kv(TEXT["num_key_value_heads"])
    writer.add_rope_dimension_count(TEXT["hidden_size"] // TEXT["num_attention_heads"])
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    model = sentencepiece.SentencePieceProcessor(model_file=str(SOURCE / "checkpoint/tokenizer.model"))
    n_pieces, kind = model.get_piece_size(), gguf.TokenType
    tokens = [model.id_to_piece(i) for i in range(n_pieces)] + ["<pad>"] + [f"[PAD{i}]" for i in range(n_pieces + 1, n_pieces + 12)]
    types = [kind.UNKNOWN if model.is_unknown(i) else kind.CONTROL if model.is_control(i) else kind.BYTE if model.is_byte(i) else kind.NORMAL
             for i in range(n_pieces)] + [kind.CONTROL] + [kind.UNUSED] * 11
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([model.get_score(i) for i in range(n_pieces)] + [-1000.0] * 12)
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_chat_template("{{ bos_token }}A chat between a curious user … {% for m in messages %}{{ m['role'] == 'user' and 'USER: ' or 'ASSISTANT: ' }}…{% endfor %}")


def encoder(path):
    """The mmproj."""
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_bool("clip.has_text_encoder", False)
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_bool("clip.has_llava_projector", True)
    writer.add_file_type(0)
    writer.add_name("clip-vit-large-patch14-336")
    writer.add_description("image encoder for LLaVA")
    writer.add_string("clip.projector_type", "mlp")
    writer.add_uint32("clip.vision.image_size", VISION["image_size"])
    writer.add_uint32("clip.vision.patch_size", VISION["patch_size"])
    writer.add_uint32("clip.vision.embedding_length", VISION["hidden_size"])
    writer.add_uint32("clip.vision.feed_forward_length", VISION["intermediate_size"])
    writer.add_uint32("clip.vision.projection_dim", 8)
    writer.add_uint32("clip.vision.attention.head_count", VISION["num_attention_heads"])
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-5)
    writer.add_uint32("clip.vision.block_count", N_BLOCKS)
    writer.add_array("clip.vision.image_mean", CLIP_NORM[0])
    writer.add_array("clip.vision.image_std", CLIP_NORM[1])
    writer.add_bool("clip.use_gelu", False)
    renames = [("vision_model.", "v."), ("encoder.layers", "blk"), ("embeddings.", ""), ("_proj", ""), ("self_attn.", "attn_"), ("layer_norm", "ln"),
               ("mlp.fc1", "ffn_down"), ("mlp.fc2", "ffn_up"), ("embedding", "embd"), ("layrnorm", "ln")]
    for name, tensor in load_file(SOURCE / "tower/model.safetensors").items():
        skipped = not name.startswith("vision_model.") or "post_layernorm" in name or "position_ids" in name or f"layers.{N_BLOCKS}." in name
        if not skipped:
            for old, new in renames:
                name = name.replace(old, new)
            # llama.cpp stores the patch embedding in f16 and matrices in the checkpoint's type; here all are f32, to be compared bit for bit.
            writer.add_tensor(name, tensor.astype(np.float32))
    checkpoint = torch.load(SOURCE / "checkpoint/pytorch_model.bin", weights_only=True)
    for name, tensor in checkpoint.items():
        if name.startswith("model.mm_projector."):
            writer.add_tensor(name.replace("model.mm_projector", "mm"), tensor.float().numpy())
    write(writer)


def write(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    TARGET.mkdir(exist_ok=True)
    tensors = list(decoder_tensors())
    writer = gguf.GGUFWriter(TARGET / "decoder.gguf", "llama")
    decoder_keys(writer)
    for name, tensor in tensors:
        writer.add_tensor(name, tensor)
    write(writer)
    # As in gguf-split: all keys are in the first part.
    ends = [0, *PARTS, len(tensors)]
    for part in range(3):
        writer = gguf.GGUFWriter(TARGET / f"split-{part + 1:05}-of-00003.gguf", "llama")
        writer.add_uint16("split.no", part)
        writer.add_uint16("split.count", 3)
        writer.add_int32("split.tensors.count", len(tensors))
        if part == 0:
            decoder_keys(writer)
        for name, tensor in tensors[ends[part]:ends[part + 1]]:
            writer.add_tensor(name, tensor)
        write(writer)
    encoder(TARGET / "mmproj.gguf")
    results = {}
    for name in ["decoder.gguf", "split-00001-of-00003.gguf"]:
        llama = llama_cpp.Llama(str(TARGET / name), n_ctx=256, n_threads=1, logits_all=True, verbose=False, type_k=0, type_v=0)
        ids = llama.tokenize(f"{VICUNA} USER: {QUESTION} ASSISTANT:".encode(), add_bos=True, special=True)
        llama.eval(ids)
        results[name] = dict(ids=np.array(ids, np.int64), logits=np.array(llama.scores[len(ids) - N_LOGITS:len(ids)], np.float32))
    assert all((results["decoder.gguf"][key] == value).all() for key, value in results["split-00001-of-00003.gguf"].items())
    save_file(results["decoder.gguf"], TARGET / "text.safetensors")
    print({path.name: path.stat().st_size for path in sorted(TARGET.iterdir())}, len(results["decoder.gguf"]["ids"]), "tokens")


if __name__ == "__main__":
    main()
