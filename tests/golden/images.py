"""Writes images.safetensors into clip-s2/ and llava-vicuna/: conversations with several images, as the reference code assembles them.

    .venv/bin/python tests/golden/images.py            # after make.py and families.py; part of `make golden`

Reads the checkpoints of those scripts. `one` and `other` are the image tokens of picture.png and of the same picture upside down. Each case has the ids
of its prompt, with -200 and -201 for the two images, and the logits after it:

    two         both images before the question
    behind      the image after the question, as in LLaVA-Med's data
    second      the second image in the second turn
    between     text, image, text, image, text

As in LLaVA's tokenizer_image_token, the text parts around the images are tokenised separately, each with a begin token, of which only the first is kept.
"""

import re
from pathlib import Path

import families
import sentencepiece
import torch
from make import IMAGE, QUESTION, SPECIAL, VARIANTS, make_connector, merge, preprocess, split
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import CLIPModel, CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

FOLDER = Path(__file__).parent
ANSWER = "Yes, the mass."
SECOND = "Is it large?"


def conversations(turn):
    """The cases as texts with ANSWER between them: `turn` writes a question with everything before it and everything up to its answer."""
    return {
        "two": [turn(f"<image>\n<other>\n{QUESTION}", True)],
        "behind": [turn(f"{QUESTION}\n<image>", True)],
        "second": [turn(f"<image>\n{QUESTION}", True), turn(f"<other>\n{SECOND}", False)],
        "between": [turn("Where <image> is it large, and in <other>?", True)],
    }


def ids_of(texts, encode, answer, bos):
    """A conversation's ids. The engine keeps an answer's own ids, so the text after it is tokenised separately."""
    ids = []
    for text_idx, text in enumerate(texts):
        ids += answer if text_idx else []
        for part in re.split("(<image>|<other>)", text):
            if part in ("<image>", "<other>"):
                ids.append(IMAGE if part == "<image>" else IMAGE - 1)
            elif part:
                part = encode(part)
                ids += part[1:] if ids and part[:1] == [bos] else part
    return ids


def run(llama, ids, images):
    rows = [images[IMAGE - i] if i <= IMAGE else llama.model.embed_tokens.weight[i][None] for i in ids]
    return llama(inputs_embeds=torch.cat(rows)[None]).logits[0, -1]


def write(name, llama, encode_image, cases):
    picture = Image.open(FOLDER / name / "picture.png").convert("RGB")
    images = [encode_image(picture), encode_image(picture.transpose(Image.Transpose.ROTATE_180))]
    golden = dict(one=images[0], other=images[1])
    for case, ids in cases.items():
        golden[f"{case}_ids"] = torch.tensor(ids)
        golden[f"{case}_logits"] = run(llama, ids, images)
    expected = load_file(FOLDER / name / "golden.safetensors")
    worst = (images[0] - expected["image_tokens"]).abs().max().item()
    first = (run(llama, expected["prompt_ids"].tolist(), images) - expected["logits"][0]).abs().max().item()
    print(name, f"image tokens and logits of {name}/golden.safetensors are met to {worst:.1e} and {first:.1e}")
    assert max(worst, first) < 1e-3
    save_file({key: value.contiguous() for key, value in golden.items()}, FOLDER / name / "images.safetensors")


def load(module, tensors, prefix=""):
    """A module with the tensors of a checkpoint that have this prefix, in f32 like the goldens."""
    found = {key.removeprefix(prefix): value.float() for key, value in tensors.items() if key.startswith(prefix)}
    missing, unexpected = module.load_state_dict(found, strict=False)
    assert not missing and not [key for key in unexpected if "position_ids" not in key], (missing, unexpected)
    return module.eval()


def clip_s2():
    """Llama3-Med's layout and its Llama-3 conversations."""
    name, checkpoint = "clip-s2", FOLDER / "clip-s2" / "checkpoint"
    variant, tensors = VARIANTS[name], {}
    for file in sorted(checkpoint.glob("*.safetensors")):
        tensors |= load_file(file)
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    text = dict(variant.text)
    rope = text.pop("rope")
    config = LlamaConfig(**text, vocab_size=tensors["language_model.model.embed_tokens.weight"].shape[0], rms_norm_eps=1e-5,
                         rope_parameters={**rope, "rope_theta": 500000.0}, attn_implementation="eager")
    llama = load(LlamaForCausalLM(config), tensors, "language_model.")
    tower = load(CLIPVisionModel(CLIPVisionConfig(**variant.vision, attn_implementation="eager")), tensors, "vision_tower._vision_tower.vision_model.")
    connector = load(make_connector(variant, 96 * len(variant.scales), llama.config.hidden_size), tensors, "connector._connector.")

    def encode_image(picture):
        tiles = split(preprocess(picture, variant), variant.scales)
        return connector(merge(tower(tiles, output_hidden_states=True).hidden_states[-2][:, 1:], variant.scales))

    def header(role):
        return f"<|start_header_id|>{role}<|end_header_id|>\n\n"

    def turn(question, is_first):
        system = f"{header('system')}You are a helpful language and vision assistant. {SPECIAL[5]}"
        return f"{system if is_first else SPECIAL[5]}{header('user')}{question}{SPECIAL[5]}{header('assistant')}"

    bos = tokenizer.token_to_id(SPECIAL[0])
    answer = tokenizer.encode(ANSWER, add_special_tokens=False).ids
    cases = conversations(turn)
    write(name, llama, encode_image, {case: ids_of(texts, lambda part: tokenizer.encode(part).ids, answer, bos) for case, texts in cases.items()})


def llava_vicuna():
    """LLaVA-1.5's layout and Vicuna's conversations."""
    name, checkpoint = "llava-vicuna", FOLDER / "llava-vicuna" / "checkpoint"
    variant, tensors = families.variant(22), torch.load(checkpoint / "pytorch_model.bin", weights_only=True)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(checkpoint / "tokenizer.model"))
    connector = load(make_connector(variant, 48, 48), tensors, "model.mm_projector.")
    text = dict(families.TEXT, rms_norm_eps=1e-5, max_position_embeddings=4096, rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
    config = LlamaConfig(**text, vocab_size=tensors["model.embed_tokens.weight"].shape[0], attn_implementation="eager")
    llama = load(LlamaForCausalLM(config), {key: value for key, value in tensors.items() if "mm_projector" not in key})
    tower = CLIPModel.from_pretrained(FOLDER / name / "tower", attn_implementation="eager").float().vision_model

    def encode_image(picture):
        tiles = split(preprocess(picture, variant), variant.scales)
        return connector(merge(tower(tiles, output_hidden_states=True).hidden_states[-2][:, 1:], variant.scales))

    def turn(question, is_first):
        return f"{f'<s>{families.VICUNA} ' if is_first else '</s>'}USER: {question} ASSISTANT:"

    answer, cases = processor.encode(ANSWER), conversations(turn)
    write(name, llama, encode_image, {case: ids_of(texts, lambda part: families.piece_ids(processor, part), answer, 1) for case, texts in cases.items()})


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    clip_s2()
    llava_vicuna()
