"""Writes metrics.json: the scores of answers against true ones, case by case and set by set, for quantize/tests/metrics.rs.

    .venv/bin/python tests/golden/metrics.py

Needs nltk. Written from the published definition (the VQA challenge's clean-up, LLaVA-Med's and Llama3-Med's run_eval.py, MedTrinity's
run_eval_nocandi.py, nltk's sentence_bleu), not from the Rust code: where the two agree, both follow the definition.

    pairs       one answer and one truth each: cleaned texts, published numbers of each protocol, strict numbers
    candidates  candidate files in both forms, and whether open accuracy counts a hit
    wilson      hits, number of questions, and the ends of the interval as roots of its equation
    sets        whole files of questions and answers with the report of each protocol
"""

import json
import math
import random
import re
import statistics
import sys
import unicodedata
import warnings
from collections import Counter
from pathlib import Path

from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

warnings.simplefilter("ignore")
RNG = random.Random(20260)
Z = statistics.NormalDist().inv_cdf(0.975)

# ---- the clean-up

MARKS = ';/[]"{}()=+\\_-><@`,?!'
assert len(MARKS) == 21
NUMBERS = dict(zip("none zero one two three four five six seven eight nine ten".split(), "0 0 1 2 3 4 5 6 7 8 9 10".split()))
ARTICLES = {"a", "an", "the"}

# Where apostrophes are restored. Forms that the challenge's table lacks (such as "shed" or "were") are separate words.
WHOLE = """
ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's isn't it'd it'll
ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've shouldn't somebody'll somebody's
someone'd someone'll someone's something'd something'll that's there'd there're there's they'd they'll they're they've 'twas
wasn't we've weren't what'll what're what's what've when's where'd where's where've who'd who'll who's who've why'll why're
why's won't would've wouldn't y'all you'd you'll you're you've
""".split()
DOUBLE = """
couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've something'd've there'd've
they'd've we'd've who'd've wouldn't've y'all'd've you'd've
""".split()
CONTRACTIONS = {word.replace("'", ""): word for word in WHOLE}
for word in DOUBLE:
    first, middle, last = word.rsplit("'", 2)
    CONTRACTIONS[f"{first}{middle}'{last}"] = word  # couldnt've
    CONTRACTIONS[f"{first}'{middle}{last}"] = word  # couldn'tve
# Exceptions to the rule.
CONTRACTIONS |= {"yall'd've": "y'all'd've", "yall'll": "y'all'll", "y'allll": "y'all'll", "somebody'd": "somebodyd"}
CONTRACTIONS |= {form: "'ow's'at" for form in ["ow's'at", "'ows'at", "'ow'sat"]}


def normalize(text: str) -> str:
    has_number = re.search(r"\d,\d", text) is not None
    table = {}
    for mark in MARKS:
        table[ord(mark)] = "" if has_number or f"{mark} " in text or f" {mark}" in text else " "
    text = re.sub(r"\.(?!\d)", "", text.translate(table), count=32)
    kept = [NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in kept if word not in ARTICLES)


# ---- published numbers


def overlap(answer: str, truth: str) -> list[float]:
    """Exact match score, f1 score, precision, recall."""
    answer, truth = Counter(normalize(answer).split()), Counter(normalize(truth).split())
    exact = len(answer.keys() & truth.keys()) / answer.total() if answer else 0
    hits = sum(n for word, n in answer.items() if word in truth)
    others = answer.total() - hits
    missing = sum(n for word, n in truth.items() if word not in answer)
    if not hits:
        return [exact, 0, 0, 0]
    precision, recall = hits / (hits + others), hits / (hits + missing)
    return [exact, 2 * precision * recall / (precision + recall), precision, recall]


ORDERS = [(1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0)]


def bleu(answer: str, truth: str, smoothing=None) -> list[float]:
    answer, truth = answer.lower().split(), [truth.lower().split()]
    single = [sentence_bleu(truth, answer, weights=weights, smoothing_function=smoothing) for weights in ORDERS]
    return [sentence_bleu(truth, answer), *single]


def open_hit(answer: str, truth: str, candidates) -> bool:
    candidates = candidates["0"] if isinstance(candidates, dict) else candidates
    said = set(normalize(answer).split())

    def part(candidate: str) -> float:
        words = set(candidate.split())
        return len(words & said) / len(words) if words else 0.0

    # max() returns the first of equal values, like list.index(max(...)).
    return max((normalize(str(candidate)) for candidate in candidates), key=part) == normalize(truth)


def has_yes_or_no(answer: str) -> bool:
    return "yes" in answer or "no" in answer


def published(protocol: str, answer: str, truth: str) -> dict:
    """Numbers of one pair as the protocol's script computes them; `counted` says whether a closed question counts towards the accuracy."""
    answer, truth = answer.lower(), truth.lower()
    if protocol == "medtrinity":
        scores = bleu(answer, truth, SmoothingFunction().method1)
        return {"overlap": overlap(answer, truth), "bleu": scores, "closed": truth in answer, "counted": True}
    answer, truth = normalize(answer), normalize(truth)
    closed = has_yes_or_no(answer) and truth in answer
    counted = closed or protocol != "llava-med-pvqa" or not has_yes_or_no(answer)
    return {"overlap": overlap(answer, truth), "bleu": bleu(answer, truth), "closed": closed, "counted": counted}


# ---- strict numbers


def is_exact(answer: str, truth: str) -> bool:
    clean = normalize(answer)
    return clean == normalize(truth) and (clean != "" or answer.strip().lower() == truth.strip().lower())


def is_closed_hit(answer: str, truth: str) -> bool:
    if normalize(truth) not in ("yes", "no"):
        return is_exact(answer, truth)
    first = re.search(r"[^\W_]+", answer.lower())
    return first is not None and first.group() == normalize(truth)


def strict_overlap(answer: str, truth: str) -> list[float]:
    answer, truth = Counter(normalize(answer).split()), Counter(normalize(truth).split())
    hits = (answer & truth).total()
    if not hits:
        return [0, 0, 0]
    precision, recall = hits / answer.total(), hits / truth.total()
    return [2 * precision * recall / (precision + recall), precision, recall]


def wilson(hits: int, n: int) -> list[float]:
    """Roots of (rate - p)^2 = Z^2 p (1 - p) / n."""
    a, b, c = 1 + Z**2 / n, -(2 * hits / n + Z**2 / n), (hits / n) ** 2
    root = math.sqrt(max(b * b - 4 * a * c, 0))
    return [min(max(end, 0), 1) for end in [(-b - root) / (2 * a), (-b + root) / (2 * a)]]


def strict_of(items: list[tuple[str, str]], right) -> dict:
    n, hits = len(items), sum(right(answer, truth) for answer, truth in items)
    scores = [strict_overlap(answer, truth) for answer, truth in items]
    f1 = [score[0] for score in scores]
    truths = Counter(normalize(truth) for _, truth in items)
    majority = min(truths, key=lambda truth: (-truths[truth], truth))
    half = Z * statistics.stdev(f1) / math.sqrt(n) if n > 1 else None
    mean = statistics.fmean(f1)
    return {
        "n": n, "n_right": hits, "accuracy": 100 * hits / n, "accuracy_ci95": [100 * end for end in wilson(hits, n)],
        "token_f1": 100 * mean,
        "token_f1_ci95": None if half is None else [100 * max(mean - half, 0), 100 * min(mean + half, 1)],
        "token_recall": 100 * statistics.fmean(score[2] for score in scores),
        "majority_answer": majority, "majority_accuracy": 100 * truths[majority] / n,
    }


def strict(items: list[tuple[dict, str, str]]) -> dict:
    classes = {}
    for question, answer, truth in items:
        is_word = normalize(truth) in ("yes", "no")
        kind = question.get("answer_type")
        if kind in ("CLOSED", "yes/no") or (kind is None and is_word):
            classes.setdefault("closed", []).append((answer, truth))
            classes.setdefault("closed yes/no" if is_word else "closed other", []).append((answer, truth))
        else:
            classes.setdefault("open", []).append((answer, truth))
    return {name: strict_of(items, is_exact if name == "open" else is_closed_hit) for name, items in classes.items()}


# ---- whole sets


def mean(values: list[float]):
    return 100 * math.fsum(values) / len(values) if values else None


def report(protocol: str, questions: list[dict], answers: list[dict], candidates) -> dict:
    by_id = {json.dumps(answer["question_id"]): answer["text"] for answer in answers}
    key = "conversations" if "conversations" in questions[0] else "conversatons"
    items = [
        (question, by_id[json.dumps(question["id"])], question[key][1]["value"])
        for question in questions if json.dumps(question["id"]) in by_id
    ]
    is_open, is_closed = {"OPEN"}, {"CLOSED"}
    if protocol == "llava-med-pvqa":
        is_open, is_closed = {"OPEN", "other", "number"}, {"CLOSED", "yes/no"}
    kind = lambda question: question.get("answer_type", "OPEN")
    opened = [(answer, truth) for question, answer, truth in items if kind(question) in is_open]
    closed = [(answer, truth) for question, answer, truth in items if kind(question) in is_closed]
    open_numbers = [published(protocol, *pair) for pair in opened]
    closed_numbers = [published(protocol, *pair) for pair in closed]
    scores = {
        name: mean([numbers["overlap"][column] for numbers in open_numbers])
        for column, name in enumerate(["exact match score", "f1 score", "precision", "recall"])
    }
    if protocol != "llava-med-pvqa":
        for column, name in enumerate(["bleu_score", "bleu_score_1", "bleu_score_2", "bleu_score_3"]):
            scores[name] = mean([numbers["bleu"][column] for numbers in open_numbers])
    if protocol in ("llama3med", "llava-med"):
        if candidates is None:
            candidates = [question[key][1]["value"] for question in questions if question.get("answer_type") == "OPEN"]
        clean = lambda text: normalize(text.lower())
        scores["open accuracy"] = mean([open_hit(clean(answer), clean(truth), candidates) for answer, truth in opened])
    counted = [numbers["closed"] for numbers in closed_numbers if numbers["counted"]]
    scores["yes/no accuracy"] = mean(counted)
    if protocol == "medtrinity":
        for column, name in enumerate(["closed f1 score", "closed precision", "closed recall"], 1):
            scores[name] = mean([numbers["overlap"][column] for numbers in closed_numbers])
    breakdown = {}
    for group in ["scale", "kind", "question_type", "finding"]:
        values = sorted({question[group] for question, _, _ in items if group in question})
        if values:
            breakdown[group] = {v: strict([item for item in items if item[0].get(group) == v]) for v in values}
    return {
        "n_questions": len(items),
        "protocol": {
            "name": protocol, "n_open": len(opened), "n_closed": len(closed), "n_closed_counted": len(counted),
            "n_skipped": len(items) - len(opened) - len(closed), "scores": scores,
        },
        "strict": strict(items),
        "breakdown": breakdown,
    }


# ---- cases

FIXED = [
    # Yes and no: inside words, first and last, with punctuation
    ("Yes", "yes"), ("yes.", "Yes"), ("**Yes**, it is", "yes"), ("_no_", "no"), ("No, it is not.", "No"), ("normal", "no"), ("I don't know", "no"),
    ("not seen", "no"), ("The answer is yes", "yes"), ("yes and no", "no"), ("yes and no", "yes"), ("eyes", "yes"), ("yesterday", "yes"), ("none", "no"),
    ("nothing abnormal", "no"), ("Nodule", "no"), ("abnormal", "normal"), ("left", "left"), ("left lung", "left"), ("It is on the left, not the right", "left"),
    ("no, the left", "left"), ("right", "left"), ("yes", ""), ("", "yes"), ("", ""), ("no", "no evidence"), ("n o", "no"), ("no-", "no"), ("-no", "no"),
    ("no!yes", "yes"), ("Y", "yes"), ("true", "yes"), ("yes1", "yes"), ("yes_", "yes"), ("ja", "yes"), ("NO", "No."), ("no\u0301", "no"),
    # Punctuation with and without spaces, digits with commas anywhere
    ("T2-weighted", "t2 weighted"), ("T2 -weighted", "t2weighted"), ("T2- weighted", "t2weighted"), ("x-ray/ct", "x ray ct"), ("x-ray, CT", "xray ct"),
    ("1,5 T2-weighted", "15 t2weighted"), ("1, 5 T2-weighted", "1 5 t2 weighted"), ("a,b", "a b"), ("1,a-b", "1 a b"), ("(left) lung", "left lung"),
    ("left(lung)", "left lung"), ('"left" lung', "left lung"), ("{a}[b]=c+d\\e_f>g<h@i`j", "b c d e f g h i j"), (";/[]\"{}()=+\\_-><@`,?!", ""),
    ("what?!", "what"), ("what ?!", "what"), ("\tx-\ty", "x y"), ("x-\ny", "x y"), ("a\u00a0-b", "b"), ("10,000-20,000", "1000020000"), ("١,٢ a-b", "١٢ ab"),
    ("²,³ a-b", "² ³ b"), ("１,２-３", "１２３"), ("𝟏,𝟐-x", "𝟏𝟐x"), ("½,½-x", "½ ½ x"),
    # Periods: before digits, after digits, many
    ("3.5 cm.", "3.5 cm"), ("3. 5", "3 5"), (".5", "5"), ("a.5", "a.5"), ("U.S.A.", "usa"), ("no.", "no"), ("3.", "3"), ("...", ""), ("5...5", "5.5"), (". .", ""),
    ("." * 32 + "lung", "lung"), ("." * 33 + "lung", "lung"), ("." * 40 + "lung " + "." * 40, "lung"), ("a. " * 40, "a"), ("." * 70 + "no", "no"),
    ("no" + "." * 33, "no"), ("lung" + "." * 65, "lung"), ("lung", "." * 33 + "lung"), ("lung", "." * 65 + "lung"), ("x." * 33 + "1", "x" * 32 + "x.1"), (".\u0663", "x"),
    # Articles, numbers, contractions
    ("A", "a"), ("B", "A"), ("the", "an"), ("the", "The"), ("The left lung", "left lung"), ("none", "0"), ("zero", "none"), ("Ten", "10"), ("eleven", "11"),
    ("two lungs", "2 lungs"), ("one one two", "1 2"), ("dont", "don't"), ("Dont", "don't"), ("isnt it", "isn't it"), ("Im", "I'm"), ("Ive", "i've"),
    ("Id've", "I'd've"), ("somebody'd", "somebodyd"), ("somebodyd've", "somebody'd've"), ("ow's'at", "'ow's'at"), ("'ows'at 'ow'sat", "'ow's'at"), ("twas", "'twas"),
    ("let's she's", "let's she's"), ("shed", "she'd"), ("were well hell", "we're we'll he'll"), ("yall'd've y'alld've y'all'dve", "y'all'd've"),
    ("oclock", "o'clock"), ("wont", "won't"), ("whove", "who've"), ("don’t", "don't"), ("an.", ""), ("the-a", ""), ("a-one", "1"), ("th.e lung", "lung"),
    # Words: repeated, partly shared, longer and shorter
    ("lung lung lung", "lung"), ("lung", "lung lung lung"), ("lung lung heart", "lung heart heart"), ("left lower lobe", "left upper lobe"), ("heart", "lung"),
    ("The lesion is in the left lower lobe of the lung", "left lower lobe"), ("left lower lobe", "The lesion is in the left lower lobe of the lung"),
    ("pleural effusion on the left side of the chest", "pleural effusion on the right side of the chest"), ("effusion pleural", "pleural effusion"),
    ("a b c d e f g h", "a b c d e f g h"), ("b c d e", "b c d e"), ("b c d", "b c d"), ("b c", "b c"), ("b", "b"), ("b c d e f", "b c d x f"), ("c b", "b c"), ("b b b b b", "b b"),
    ("x b c d e", "b c d e"), ("b x c x d x e", "b c d e"), ("b c d e x x x x x x", "b c d e"), ("b", "b c d e f g h i j k"),
    # Non-ASCII letters, all kinds of white space
    ("ÉCHO cardiographie", "écho cardiographie"), ("e\u0301cho", "écho"), ("ΑΣ ΑΣΑ", "ας ασα"), ("İstanbul", "i\u0307stanbul"), ("STRAẞE", "straße"), ("肺", "肺"), ("肺 心", "肺"),
    ("🫁 lung", "lung"), ("lung\u00a0heart", "lung heart"), ("lung\u3000heart", "lung heart"), ("lung\x1fheart", "lung heart"), ("lung\x1cheart\x85x", "lung heart x"),
    ("lung\u200bheart", "lung heart"), ("lung\ufeff", "lung"), (" lung\n", "lung"), ("\n\t ", " "), ("lung\x00", "lung"), ("µm μm", "μm"), ("10 % ± 5", "10 % ± 5"),
]
PARTS = """yes no Yes NO normal know not left right the a an The none zero two ten 10 1,5 3.5 . ... T2-weighted x-ray dont isnt don't pleural effusion lung
liver - (mri) / µm ÉCHO ΑΣ ١,٢ 肺 hed've y'allll cardiomegaly, nodule? "mass" upper lobe""".split()
GLUE = [" "] * 12 + ["  ", "\t", "\n", "\u00a0", "\x1f", "-", ", ", ". ", ".", ""]


def phrase(n: int) -> str:
    return "".join(RNG.choice(PARTS) + RNG.choice(GLUE) for _ in range(n))


def changed(text: str) -> str:
    """An answer that shares words with the text: some omitted, some doubled, some new."""
    words = [word for word in text.split(" ") for _ in range(RNG.choice([0, 1, 1, 1, 1, 2]))]
    if RNG.random() < 0.3:
        RNG.shuffle(words)
    return " ".join(words + [phrase(RNG.choice([0, 0, 1, 3]))])


def pair_cases() -> list[dict]:
    pairs = list(FIXED)
    pairs += [(form, word) for form, word in CONTRACTIONS.items()]
    zeros = [chr(code) for code in range(sys.maxunicode) if unicodedata.decimal(chr(code), None) == 0]
    pairs += [(f"{zero},{chr(ord(zero) + 9)}-x", f"{chr(ord(zero) - 1)},{zero}-x.{chr(ord(zero) + 9)}") for zero in zeros]
    while len(pairs) < 660:
        truth = phrase(RNG.choice([1, 1, 2, 3, 6, 12]))
        pairs.append((changed(truth) if RNG.random() < 0.7 else phrase(RNG.choice([1, 3, 8])), truth))
    return [
        {
            "answer": answer, "truth": truth, "normal": [normalize(answer), normalize(normalize(answer)), normalize(truth)],
            "llama3med": published("llama3med", answer, truth), "medtrinity": published("medtrinity", answer, truth),
            "pvqa counted": published("llava-med-pvqa", answer, truth)["counted"],
            "strict": {"exact": is_exact(answer, truth), "closed": is_closed_hit(answer, truth), "overlap": strict_overlap(answer, truth)},
        }
        for answer, truth in pairs
    ]


def candidate_cases() -> list[dict]:
    lists = [
        ["lung"], ["left lower lobe", "lung"], ["left lower lobe of the lung", "left"], ["the", "lung"], ["", "lung"], ["a", "an"], [1, "2", 10], ["none", 0],
        ["T2-weighted", "t2 weighted"], ["T1", "T2-weighted"], ["lung", "Lung.", "the lung"], ["x y", "y x", "x"], ["...", "." * 40 + "lung"], ["pleural effusion", "effusion"],
        ["effusion", "pleural effusion"], ["heart", "lung", "liver", "kidney"], ["1,5 a-b", "15 ab"], ["left lung", "right lung", "lung"],
    ]
    texts = ["lung", "left lower lobe", "the lung", "", "2", "one", "0", "none", "t2 weighted", "T2-weighted image", "x", "y x", "pleural effusion", "effusion", "the kidney and liver",
             "left lung", "right", "15 ab", "." * 40 + "lung", "nothing of it"]
    cases = []
    for number, candidates in enumerate(lists):
        for answer in texts:
            for truth in [RNG.choice(texts), str(RNG.choice(candidates))]:
                # As in run_eval.py: both texts are cleaned first, candidates are not.
                clean = [normalize(text.lower()) for text in (answer, truth)]
                form = {"0": candidates} if number % 2 else candidates
                cases.append({"candidates": form, "answer": clean[0], "truth": clean[1], "hit": open_hit(*clean, form)})
    return cases


def set_cases() -> list[dict]:
    cases = []
    for number in range(6):
        questions, answers = [], []
        for i in range([40, 40, 60, 25, 30, 2][number]):
            kind = RNG.choice(["OPEN", "OPEN", "CLOSED", "CLOSED", "CLOSED"] + ["other", "number", "yes/no"] * (number == 2))
            kind = ["OPEN", "CLOSED"][number % 2] if number in (3, 5) else kind
            is_closed = kind in ("CLOSED", "yes/no")
            truth = RNG.choice(["yes", "no", "Yes", "No", "left", "T2-weighted"]) if is_closed else phrase(RNG.choice([1, 2, 4, 9]))
            answer = changed(truth) if RNG.random() < 0.6 else RNG.choice(["yes", "no", "normal", "I don't know", "left", "", phrase(4)])
            question = {"id": i if number % 2 else f"q{i:03}", "image": f"{i // 3}.png", "answer_type": kind}
            if number == 1:
                question |= {"scale": RNG.choice(["coarse", "mid", "fine"]), "finding": RNG.choice(["nodule", "marker"]), "kind": RNG.choice(["cxr", "ct"])}
            if number == 2:
                question |= {"question_type": RNG.choice(["size", "where"])}
            if number == 4 and RNG.random() < 0.3:
                del question["answer_type"]
            key = "conversatons" if number == 2 else "conversations"
            question[key] = [{"from": "human", "value": f"Question {i}?\n<image>"}, {"from": "gpt", "value": truth}]
            questions.append(question)
            answers.append({"question_id": question["id"], "text": answer})
        candidates = [None, {"0": ["yes", "lung", 10, "pleural effusion"]}, ["upper lobe", "T2-weighted", "left"], None, None, None][number]
        for protocol in ["llama3med", "llava-med", "llava-med-pvqa", "medtrinity"]:
            if protocol != "medtrinity" and any("answer_type" not in question for question in questions):
                continue
            said = list(answers)
            if protocol == "medtrinity":
                RNG.shuffle(said)
                said = said[len(said) // 8 :] + [{"question_id": "nobody's", "text": "yes"}]
            expected = report(protocol, questions, said, candidates)
            cases.append({"protocol": protocol, "questions": questions, "answers": said, "candidates": candidates, "report": expected})
    return cases


def main() -> None:
    golden = {
        "pairs": pair_cases(),
        "candidates": candidate_cases(),
        "wilson": [[hits, n, *wilson(hits, n)] for n in [1, 2, 3, 10, 179, 272, 6761] for hits in {0, 1, n // 3, n // 2, n - 1, n}],
        "sets": set_cases(),
    }
    lines = []
    for name, cases in golden.items():
        rows = ",\n".join(json.dumps(case) for case in cases)
        lines.append(f"{json.dumps(name)}: [\n{rows}\n]")
    (Path(__file__).parent / "metrics.json").write_text("{" + ",\n".join(lines) + "}\n")
    print({name: len(cases) for name, cases in golden.items()})


if __name__ == "__main__":
    main()
