"""PhantomVQA as the trainer reads it: pictures, dense labels and facts on disk, and conversations as packed batches of tokens."""

import pickle
import time
from functools import lru_cache, partial
from multiprocessing import Pool

import numpy as np
import torch
from torch.nn import functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import model
import speech
from dialogue import Turn, fragments
from phantom import LABELS, SPLITS, distribution, make
from questions import caption, questions

N_CELLS = 64  # per side, of 4 pixels each
TRAIN_SIZES = {"train": 12_000, "val": 400}
TEST_SIZES = {"test": 2000, "test-paraphrase": 700, "test-ood": 1000}
REPORT = "Give a full report."
POLITE = ("greeting", "thanks", "about", "off_topic", "diagnosis")  # questions whose answers need no picture
NO_PICTURE = "I see no picture. Open one, then ask me about it."
NOISE, CASUAL, SLIPS = 0.2, 0.25, 0.3  # shares of questions with random words, without capital and full stop, and as people type them
N_FRAGMENTS = 8  # of a picture, each time
N_TURNS, LONG, P_LONG = (1, 2, 3, 4, 6), 30, 0.12  # how many turns a conversation has; how many a long one, and how many pictures have a long one
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def log(*parts):
    print(time.strftime("%H:%M:%S"), *parts, flush=True)


# ---- pictures as the model's square, labels as bits, facts unchanged


def make_one(seed, split):
    """A picture's square (256, 256, 3), its label cells (labels, 64, 64) as bits, and the phantom without its arrays."""
    phantom = make(seed, distribution(split))
    cells = np.packbits(np.stack([phantom.cells[name] for name in LABELS]).reshape(len(LABELS), -1), axis=1)
    square = np.ascontiguousarray(model.square(phantom.image))
    phantom.image = phantom.cells = None
    return square, cells, phantom


def make_data(folder, sizes):
    for split, n_images in sizes.items():
        if (folder / f"{split}.facts").exists():
            continue
        seeds = list(SPLITS[split])[:n_images]
        squares = np.lib.format.open_memmap(folder / f"{split}.squares.npy", "w+", np.uint8, (n_images, 256, 256, 3))
        cells = np.lib.format.open_memmap(folder / f"{split}.cells.npy", "w+", np.uint8, (n_images, len(LABELS), N_CELLS**2 // 8))
        phantoms = []
        with Pool() as pool:
            for idx, (square, bits, phantom) in enumerate(pool.imap(partial(make_one, split=split), seeds, chunksize=32)):
                squares[idx], cells[idx] = square, bits
                phantoms.append(phantom)
        (folder / f"{split}.facts").write_bytes(pickle.dumps(phantoms))
        log(f"{split}: {n_images} pictures")


class Data:
    """One split as written by `make_data`."""

    def __init__(self, folder, split):
        self.squares = np.load(folder / f"{split}.squares.npy", mmap_mode="r")
        self.bits = np.load(folder / f"{split}.cells.npy")
        self.phantoms = pickle.loads((folder / f"{split}.facts").read_bytes())

    def pixels(self, idxs):
        return model.normalise(torch.from_numpy(np.stack([self.squares[idx] for idx in idxs]))).to(DEVICE)

    def cells(self, idxs):
        bits = np.unpackbits(np.stack([self.bits[idx] for idx in idxs]), axis=2)
        return torch.from_numpy(bits).view(len(idxs), len(LABELS), N_CELLS, N_CELLS).to(DEVICE).float()


# ---- text to tokens


class Text:
    """Conversations as the reference writes them, token by token."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.head = self.ids(f"<|start_header_id|>system<|end_header_id|>\n\n{model.SYSTEM}<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n")
        self.head = [tokenizer.token_to_id("<|begin_of_text|>"), *self.head]

    @lru_cache(maxsize=100_000)
    def ids(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def noisy(self, ids, rng):
        """Inserts one to three random tokens into a question: words that training never has must not matter."""
        at = int(rng.integers(len(ids)))
        n_words = self.tokenizer.get_vocab_size() - len(model.SPECIAL)
        return [*ids[:at], *(int(i) for i in rng.integers(n_words, size=rng.integers(1, 4))), *ids[at:]]

    def turns(self, turns, has_image=True, rng=None):
        """Ids after the image (or after the head), and which of them belong to answers."""
        ids, is_answer = [], []
        for turn_idx, (question, answer) in enumerate(turns):
            opening = ("\n" if has_image else "") if turn_idx == 0 else "<|start_header_id|>user<|end_header_id|>\n\n"
            asked = self.ids(f"{opening}{question}")
            if rng is not None and rng.random() < NOISE:
                n_opening = len(self.ids(opening)) if opening else 0
                asked = asked[:n_opening] + self.noisy(asked[n_opening:], rng)
            asked = asked + self.ids("<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n")
            answered = self.ids(f"{answer}<|eot_id|>")
            ids += asked + answered
            is_answer += [False] * len(asked) + [True] * len(answered)
        return ids, is_answer


class Batch:
    """Several pictures, each with conversations packed behind one copy of its prefix: every conversation sees only the prefix and itself."""

    def __init__(self, text, conversations, rng=None):
        """`conversations`: for each picture a list of (turns, has_image). With `rng`, some questions get random words."""
        head = len(text.head)
        first = head + 64
        rows, spans = [], []
        for row, of_picture in enumerate(conversations):
            ids, answers, group, position = [*text.head, *[0] * 64], [False] * first, [-1] * first, list(range(first))
            for group_idx, (turns, has_image) in enumerate(of_picture):
                more, is_answer = text.turns(turns, has_image, rng)
                start = first if has_image else head
                spans.append((len(more), row, len(ids), start))
                ids += more
                answers += is_answer
                group += [group_idx] * len(more)
                position += range(start, start + len(more))
            rows.append((ids, answers, group, position))
        length = max(len(row[0]) for row in rows)
        self.ids, self.answers, self.group, self.positions = (
            torch.tensor([row[part] + [fill] * (length - len(row[part])) for row in rows], device=DEVICE)
            for part, fill in ((0, 0), (1, False), (2, -1), (3, 0)))
        self.image = slice(head, first)
        self.packing = Packing(spans, len(rows), length, first)

    def run(self, llama, image_tokens):
        """Logits that predict the answers' tokens, and these tokens."""
        llama.config._attn_implementation = "packed"
        embeddings = llama.model.embed_tokens(self.ids)
        embeddings = torch.cat([embeddings[:, :self.image.start], image_tokens, embeddings[:, self.image.stop:]], 1)
        unused = torch.empty(len(self.ids), 1, 1, 1, dtype=torch.bool)  # a dummy mask, so that none is computed
        hidden = llama.model(inputs_embeds=embeddings, attention_mask=unused, position_ids=self.positions, use_cache=False,
                             packing=self.packing).last_hidden_state
        chosen = self.answers[:, 1:]
        return llama.lm_head(hidden[:, :-1][chosen]), self.ids[:, 1:][chosen]


class Packing:
    """Which tokens see which in a batch: prefixes are causal, and conversations of equal length attend to their prefix and themselves in one product.

    A dense mask over whole rows would do four times the work.
    """

    def __init__(self, spans, n_rows, length, n_prefix):
        """`spans` of conversations: (tokens, row, first token in the row, how much of the prefix it sees)."""
        self.n_prefix = n_prefix
        places = torch.full((n_rows, length), 0)  # where each token's output is
        places[:, :n_prefix] = torch.arange(n_rows * n_prefix).view(n_rows, n_prefix)
        self.groups, start = [], n_rows * n_prefix
        spans = sorted(spans)
        while spans:
            longest = spans[-1][0]
            n = sum(span[0] > 0.75 * longest for span in spans)
            spans, together = spans[:-n], spans[-n:]
            steps = torch.arange(longest)
            lengths, rows, firsts, seen = (torch.tensor(part)[:, None] for part in zip(*together))
            index = rows * length + firsts + steps.clamp(max=lengths - 1)
            own = (steps[None, :, None] >= steps) & (steps < lengths)[:, None, :]
            prefix = (torch.arange(n_prefix) < seen)[:, None, :].expand(-1, longest, -1)
            self.groups.append((index.flatten().to(DEVICE), rows[:, 0].to(DEVICE), torch.cat([prefix, own], 2)[:, None].to(DEVICE)))
            for idx, (tokens, row, first, _) in enumerate(together):
                places[row, first:first + tokens] = start + idx * longest + torch.arange(tokens)
            start += n * longest
        self.places = places.flatten().to(DEVICE)


def attend_packed(module, query, key, value, attention_mask, packing, **_):
    """Attention (rows, heads, length, head_dim) of a packed batch, in f32 on a CPU, where the gradient in bf16 is slow."""
    n_rows, n_heads, length, dim = query.shape
    n_prefix, n_shared = packing.n_prefix, n_heads // key.shape[1]
    with torch.autocast(DEVICE.type, enabled=False):
        q, k, v = (part.float() if DEVICE.type == "cpu" else part for part in (query, key, value))
        repeated = lambda part: part.repeat_interleave(n_shared, 1)
        of_prefix = F.scaled_dot_product_attention(q[:, :, :n_prefix], *(repeated(part[:, :, :n_prefix]) for part in (k, v)), is_causal=True)
        found = [of_prefix.transpose(1, 2).reshape(-1, n_heads * dim)]
        tokens = [part.transpose(1, 2).reshape(n_rows * length, -1) for part in (q, k, v)]
        for index, rows, mask in packing.groups:
            own = [part.index_select(0, index).view(len(rows), mask.shape[2], -1, dim).transpose(1, 2) for part in tokens]
            behind = [repeated(torch.cat([part[:, :, :n_prefix].index_select(0, rows), mine], 2)) for part, mine in ((k, own[1]), (v, own[2]))]
            found.append(F.scaled_dot_product_attention(own[0], *behind, attn_mask=mask).transpose(1, 2).reshape(-1, n_heads * dim))
        out = torch.cat(found).index_select(0, packing.places)
    return out.view(n_rows, length, n_heads, dim).to(query.dtype), None


ALL_ATTENTION_FUNCTIONS["packed"] = attend_packed


def typed(question, rng):
    """A question as people type it: sometimes with slips and other capitals, or without capital and without full stop."""
    if rng.random() < SLIPS:
        return speech.typed(question, rng)
    return question[0].lower() + question[1:].rstrip(".?!") if rng.random() < CASUAL else question


def shares(found):
    """How often to ask each question, from the results of `train.evaluate`: questions answered well are asked less, general questions half as often."""
    return {id: min(1.0, max(0.15, 2.2 - percent / 50)) for id, (percent, _) in found.items()}


def conversations(phantom, rng, phase):
    """What is asked about a picture this time, alone or several in a row, rarely up to 30 turns: its report, questions and fragments of talk; sometimes without it.

    `phase` has `reports_only` and, after the first evaluation, the `shares` of the questions.
    """
    # A report would deny what a file of another size cannot show.
    report = [(REPORT, caption(phantom))] if phantom.exact else []
    if report and phase["reports_only"]:
        return [(report, True)]
    # Each question has its own probability: a fixed number of questions would favour pictures with few questions, and so their answers.
    share = lambda one: phase.get("shares", {}).get(one["id"], 0.4) * (0.5 if one["scale"] == "general" else 1.0)
    pieces = [[Turn(typed(one["question"], rng), one["answer"], one["id"] not in POLITE)] for one in questions(phantom, rng) if rng.random() < share(one)]
    pieces += [[Turn(*pair)] for pair in report] + fragments(phantom, rng, N_FRAGMENTS)
    alone = pieces[rng.integers(len(pieces))] if pieces else []
    rng.shuffle(pieces)
    out, is_long = [], rng.random() < P_LONG
    while pieces:
        n_turns, turns = LONG if is_long else int(rng.choice(N_TURNS, p=[0.4, 0.25, 0.15, 0.1, 0.1])), []
        while pieces and len(turns) < n_turns:
            turns += pieces.pop()
        out.append(([turn[:2] for turn in turns[:LONG]], True))
    if not out or (alone and rng.random() < 0.2):
        out.append(([(turn.question, NO_PICTURE if turn.needs_picture else turn.answer) for turn in alone or [Turn(REPORT, "")]], False))
    return out


def batches(text, phantoms, rng, phase):
    """An endless stream of batches of 8 pictures, grouped by length: (indices, Batch)."""
    while True:
        order = rng.permutation(len(phantoms))
        for first in range(0, len(order) - 31, 32):
            several = [(idx, conversations(phantoms[idx], rng, phase)) for idx in order[first:first + 32]]
            several.sort(key=lambda one: sum(len(text.turns(turns)[0]) for turns, _ in one[1]))
            for part in rng.permutation(4):
                idxs, asked_of = zip(*several[8 * part:8 * part + 8])
                yield idxs, Batch(text, asked_of, rng)
