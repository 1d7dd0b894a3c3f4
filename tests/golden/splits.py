"""Writes splits.json: ids of texts under the real Llama-3 vocabulary with the rules for splitting text into words that `tokenizer.ggml.pre` names.

    npm ci && node tests/golden/llama3-vocabulary.mjs && python tests/golden/splits.py [--llama-cpp]

Each rule is written here as in the original tokenizer.json (`default`, llama.cpp's own, with its expressions) and run by Hugging Face `tokenizers`.
The vocabulary is not the one that a rule was made for, but its ids show the splits. With `--llama-cpp`, llama.cpp is a second reference, and
differences are printed.
"""

import json
import sys
import tempfile
from pathlib import Path

from text import CORPUS, random_texts
from tokenizers import Tokenizer

HERE = Path(__file__).parent
VOCABULARY = HERE / "../../target/llama3-tokenizer.json"

TEXTS = list(dict.fromkeys([text for text in CORPUS if len(text) < 200] + [
    # Digits of several scripts between letters and punctuation
    "1234567", "a1b22c333d4444", "3,14 1.000.000 12:30 2024-01-31", "x²y³ ½¼ Ⅳ ⅳ 〇一二三 ٠١٢٣٤٥ १२३४ 𝟘𝟙𝟚𝟛 ①②③④", "v1.2.3-rc4", "0x1F 1e-10 100%",
    # Contractions, capitals in the middle
    "I'm I'M i'll I'LL we'VE it'S 'Tis DON'T ſ'ſ 'S'T'RE", "HelloWorld XMLHttpRequest iPhone McDonald ÜBERGrößen ΑΒΓαβγ ДОМдом ǅ ŉ", "CamelCase's SHOUTING'LL",
    # Combining marks, composed and decomposed
    "e\u0301 E\u0301 cafe\u0301s n\u0303 A\u030a \u1100\u1161\u11a8 \u0915\u094d\u0937\u093f \u0e01\u0e34\u0e19 \u05e9\u05c1 a\u0300\u0301\u0302b", "\u0301start \u0301",
    # White space and line ends
    "a\r\nb\r\n\r\nc", "\r\n \r\n\t\r", "a \r\n b\t\tc\t", "end  ", " \n x", "x\u00a0y \u3000z\u2003 w", "\x0b\x0c\x1c\x85|",
    # CJK, kana, Hangul, Bopomofo, with their own punctuation
    "胸部X线片：右肺下叶有结节。大小约3cm！", "「レントゲン」の結果は、正常です。", "흉부 X-선 사진: 이상 없음.", "ㄅㄆㄇ ㄱㄴㄷ 〜～、。・", "龥龦鿿㐀豈",
    # Emoji
    "👩🏽‍⚕️ took 3 x-rays 🩻🩻!", "🇩🇪🇯🇵1️⃣2️⃣",
    # Symbols
    "/usr/bin/env //x\n/y", "a_b__c $x^2$ <=>|~` «quote» ‘it’s’ “so” —–-", "!?.,;:()[]{}", "\\n\\r \"'\" ''s",
    "؟ ، ۔ (نعم) | क्या? । ॥", "naïve café (élève) œuvre", "   'quoted'   ",
] + random_texts(40, seed=5)))

GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
BYTES = GPT2 | {"use_regex": False}
DIGITS = {"type": "Digits", "individual_digits": True}
NFC = {"type": "NFC"}
# Parts of expressions that several tokenizers share.
CONTRACTION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
TAIL = r"\s*[\r\n]+|\s+(?!\S)|\s+"
SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
CASED = [rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*"]
DEEPSEEK_LETTERS = ("\\s?["
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376\u0377\u037b-\u037d"
    "\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5"
    "\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d"
    "\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb"
    "\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134"
    "\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b"
    "\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f"
    "\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
    "]+")
BLOOM = " ?[^(\\s|[.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c])]+"


def split(*alternatives):
    return {"type": "Split", "pattern": {"Regex": "|".join(alternatives)}, "behavior": "Isolated", "invert": False}


# Steps, normalizer and whether merges are ignored, by llama.cpp's name.
ORIGINALS = {
    "llama-bpe": ([split(CONTRACTION, WORD, r"\p{N}{1,3}", SIGNS, TAIL), BYTES], None, True),
    "smaug-bpe": ([split(CONTRACTION, WORD, r"\p{N}{1,3}", SIGNS, TAIL), BYTES], None, False),
    "gpt-2": ([GPT2], None, False),
    "mpt": ([GPT2], NFC, False),
    "smollm": ([DIGITS, GPT2], None, False),
    "command-r": ([DIGITS, GPT2], NFC, False),
    "tekken": ([split(*CASED, r"\p{N}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", TAIL), BYTES], None, True),
    "qwen2": ([split(CONTRACTION, WORD, r"\p{N}", SIGNS, TAIL), BYTES], NFC, False),
    "stablelm2": ([split(CONTRACTION, WORD, r"\p{N}", SIGNS, TAIL), BYTES], None, False),
    "deepseek-llm": ([split("[\r\n]"), split(DEEPSEEK_LETTERS), split("\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"), split(r"\s+$"),
                      split("[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"), DIGITS, BYTES], None, False),
    "deepseek-coder": ([split("[\r\n]"), split(r"\s?\p{L}+"), split(r"\s?\p{P}+"), split("[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"), DIGITS, BYTES], None, False),
    "deepseek-v3": ([split(r"\p{N}{1,3}"), split("[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"),
                     split(r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+""", r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+",
                           r" ?[\p{P}\p{S}]+[\r\n]*", TAIL), BYTES], None, False),
    "gpt-4o": ([split(*(cased + CONTRACTION + "?" for cased in CASED), r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", TAIL), BYTES], None, False),
    "seed-coder": ([split(CONTRACTION, WORD, r"\p{N}{1}", r" ?[^\s\p{L}\p{N}\r\n]+", TAIL), BYTES], None, False),
    "minicpm5": ([split(r"\p{N}{1,3}"), split(CONTRACTION, WORD, r"\p{N}+", SIGNS, TAIL), BYTES], None, True),
    "bloom": ([split(BLOOM), BYTES], None, False),
    "viking": ([split(BLOOM), DIGITS, BYTES], None, False),
    "default": ([split(r"[\p{P}\$\+<=>\^~\|]+"), split(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"),
                 split(r"\p{N}+"), split("[0-9][0-9][0-9]"), BYTES], None, False),
}


def original_ids(document, name):
    steps, normalizer, ignore_merges = ORIGINALS[name]
    document["normalizer"], document["pre_tokenizer"] = normalizer, {"type": "Sequence", "pretokenizers": steps}
    document["model"]["ignore_merges"] = ignore_merges
    tokenizer = Tokenizer.from_str(json.dumps(document))
    tokenizer.encode_special_tokens = True
    return [tokenizer.encode(text, add_special_tokens=False).ids for text in TEXTS]


def compare_with_llama_cpp(ids):
    from ggml import llama_cpp_ids

    with tempfile.TemporaryDirectory() as folder:
        for name, found in ids.items():
            theirs = llama_cpp_ids("llama3", TEXTS, folder, pre=name)
            different = [text for text, some, other in zip(TEXTS, found, theirs) if some != other]
            print(f"{name}: llama.cpp gives other ids for {len(different)} of {len(TEXTS)} texts: {different[:6]!r}")


def main():
    document = json.loads(VOCABULARY.read_text())
    ids = {name: original_ids(document, name) for name in ORIGINALS}
    if "--llama-cpp" in sys.argv:
        compare_with_llama_cpp(ids)
    # Ids equal to those of Llama-3's own rule are omitted.
    first = ids["llama-bpe"]
    rows = []
    for name, found in ids.items():
        steps, normalizer, ignore_merges = ORIGINALS[name]
        row = {"pre": name, "normalizer": normalizer, "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
               "ignore_merges": ignore_merges, "ids": [some if name == "llama-bpe" or some != other else None for some, other in zip(found, first)]}
        rows.append(json.dumps(row, separators=(",", ":")))
    (HERE / "splits.json").write_text(f'{{"texts": {json.dumps(TEXTS, separators=(",", ":"))},\n"rows": [\n' + ",\n".join(rows) + "\n]}\n")


if __name__ == "__main__":
    main()
