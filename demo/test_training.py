"""Tests of the trainer: a packed batch gives the same results as each conversation alone.

    python -m unittest demo/test_training.py
"""

import sys
import unittest
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
import data  # noqa: E402
import model  # noqa: E402


class Packed(unittest.TestCase):
    def test_a_batch_equals_its_conversations_alone(self):
        torch.manual_seed(0)
        tokenizer = model.make_tokenizer([model.SYSTEM, "Is there a bleed? Yes. No. Where is it? On the left."])
        text, llama = data.Text(tokenizer), model.make_llama(tokenizer, n_layers=2).to(data.DEVICE)
        bleed, where = ("Is there a bleed?", "Yes."), ("Where is it?", "On the left.")
        conversations = [
            [([bleed], True), ([bleed, where, where, bleed], True), ([where], False)],
            [([where, bleed], True)],
            [([bleed], False), ([where], True), ([bleed, where], True), ([where] * 6, True), ([bleed], True)],
        ]
        tokens = torch.randn(3, 64, model.DIM, device=data.DEVICE)
        batch = data.Batch(text, conversations)
        with torch.inference_mode():
            logits, targets = batch.run(llama, tokens)
        first, n_checked = 0, 0
        llama.config._attn_implementation = "sdpa"
        for picture, of_picture in zip(tokens, conversations):
            for turns, has_image in of_picture:
                ids, is_answer = text.turns(turns, has_image)
                embed = lambda ids: llama.model.embed_tokens(torch.tensor([ids], device=data.DEVICE))
                parts = [embed(text.head), *([picture[None]] if has_image else []), embed(ids)]
                with torch.inference_mode():
                    alone = llama(inputs_embeds=torch.cat(parts, 1)).logits[0, -len(ids) - 1 : -1]
                chosen = np.flatnonzero(is_answer)
                self.assertEqual(targets[first : first + len(chosen)].tolist(), [ids[i] for i in chosen])
                torch.testing.assert_close(logits[first : first + len(chosen)], alone[chosen], atol=2e-5, rtol=0)
                first, n_checked = first + len(chosen), n_checked + 1
        self.assertEqual((first, n_checked), (len(targets), 9))


if __name__ == "__main__":
    unittest.main()
