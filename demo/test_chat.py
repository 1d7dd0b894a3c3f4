"""Tests of the second demo model's data and training, without its base: a tiny decoder takes its place.

    python -m unittest demo/test_chat.py
"""

import re
import sys
import tempfile
import unittest
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).parent))
import chat  # noqa: E402
import general  # noqa: E402
import model  # noqa: E402
import sentences  # noqa: E402
from data import DEVICE, Batch  # noqa: E402
from phantom import KINDS, STRANGER, make  # noqa: E402
from questions import questions  # noqa: E402

PHANTOMS = [make(seed, kind=kind) for kind in (*KINDS, STRANGER) for seed in range(8)]


def tiny():
    """A tokenizer with ChatML's marks and a random decoder of two layers."""
    tokenizer = model.make_tokenizer([chat.SYSTEM, "user assistant Is there a bleed? Yes, there is a bleed on the left."], 400)
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    torch.manual_seed(0)
    llama = LlamaForCausalLM(LlamaConfig(vocab_size=tokenizer.get_vocab_size(), hidden_size=48, intermediate_size=64, num_hidden_layers=2,
                                         num_attention_heads=3, num_key_value_heads=1, tie_word_embeddings=True))
    return tokenizer, llama.requires_grad_(False).eval().to(DEVICE)


class Sentences(unittest.TestCase):
    def test_every_answer_is_understood_as_what_is_true(self):
        n = 0
        for p in PHANTOMS:
            speaker = sentences.Speaker(p, np.random.default_rng(p.seed))
            for one in questions(p, np.random.default_rng(p.seed)):
                if one["scale"] != "general":
                    n += 1
                    answer = speaker.answer(one)
                    self.assertTrue(sentences.is_right(one, p.kind, answer), (one, answer))
                    if one["answer"] in ("Yes.", "No."):
                        self.assertEqual(answer.startswith("Yes"), one["answer"] == "Yes.", answer)
        self.assertGreater(n, 200)

    def test_other_answers_are_not(self):
        one = dict(id="chest_fine_where", answer="In the left upper zone.", finding="fine")
        self.assertFalse(sentences.is_right(one, "chest", "The fine lines are in the right upper zone."))
        self.assertFalse(sentences.is_right(one, "chest", "In the left upper and right upper zone."))
        self.assertFalse(sentences.is_right(one, "chest", "I see fine lines. They are in the left upper zone."))
        self.assertTrue(sentences.is_right(one, "chest", "I see fine lines in the left upper zone. They are horizontal."))
        self.assertFalse(sentences.is_right(dict(id="chest_heart_size", answer="Enlarged."), "chest", "The heart is not enlarged."))

    def test_a_long_description_names_every_finding_and_denies_none_that_cannot_be_seen(self):
        for p in PHANTOMS:
            text = sentences.Speaker(p, np.random.default_rng(1)).description("long")
            for name in ("middle", "fine"):
                for sign in p.facts.get(name) or ():
                    self.assertTrue(set(sign["zone"].split()) <= set(re.findall("[a-z]+", text)), text)
            if p.kind != STRANGER and not p.exact:
                self.assertNotIn("fine", text)


class Training(unittest.TestCase):
    def test_a_packed_batch_equals_its_conversations_alone(self):
        tokenizer, llama = tiny()
        text, turn = chat.Text(tokenizer), ("Is there a bleed?", "Yes, there is a bleed on the left.")
        several = [[([turn], True), ([turn] * 3, True), ([turn], False)], [([turn] * 2, True)]]
        tokens = torch.randn(2, 64, 48, device=DEVICE)
        with torch.inference_mode():
            logits, targets = Batch(text, several).run(llama, tokens)
        llama.config._attn_implementation, first = "sdpa", 0
        embed = lambda ids: llama.model.embed_tokens(torch.tensor([ids], device=DEVICE))
        for picture, of_picture in zip(tokens, several):
            for turns, has_image in of_picture:
                ids, is_answer = text.turns(turns, has_image)
                with torch.inference_mode():
                    alone = llama(inputs_embeds=torch.cat([embed(text.head), *([picture[None]] if has_image else []), embed(ids)], 1)).logits[0, -len(ids) - 1:-1]
                chosen = np.flatnonzero(is_answer)
                self.assertEqual(targets[first:first + len(chosen)].tolist(), [ids[i] for i in chosen])
                torch.testing.assert_close(logits[first:first + len(chosen)], alone[chosen], atol=2e-5, rtol=0)
                first += len(chosen)
        self.assertEqual(first, len(targets))

    def test_an_interrupted_training_gives_the_same_weights(self):
        others, features = general.conversations()[:5], np.random.default_rng(0).standard_normal((len(PHANTOMS), 64, 3 * model.WIDTH)).astype(np.float16)
        data = SimpleNamespace(phantoms=PHANTOMS)

        def weights(folder, stop):
            """Those after four steps, or before step `stop`."""
            tokenizer, llama = tiny()
            torch.manual_seed(1)
            connector, peft = chat.make_connector(48).to(DEVICE), chat.adapted(llama)
            adapter = nn.ParameterList(part for part in peft.parameters() if part.requires_grad)
            self.assertEqual(len(adapter), 2 * 2 * len(chat.TARGETS))
            run = chat.Run(Path(folder) / "run.pt", nn.ModuleDict({"connector": connector, "adapter": adapter}), 4, 1, 1e-2, 2, 1)

            def of_picture(p, rng):
                if run.n_done == stop:
                    raise InterruptedError
                return chat.instructions(p, rng, others)

            chat.fit("test", run, chat.Text(tokenizer), data, features, llama, connector, of_picture, 1, 4)
            return torch.cat([part.detach().flatten() for part in [*connector.parameters(), *adapter]])

        with tempfile.TemporaryDirectory() as whole, tempfile.TemporaryDirectory() as pieces:
            with self.assertRaises(InterruptedError):
                weights(pieces, 2)
            torch.testing.assert_close(weights(pieces, None), weights(whole, None), atol=0, rtol=0)


if __name__ == "__main__":
    unittest.main()
