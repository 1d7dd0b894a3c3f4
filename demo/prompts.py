"""What people type at the sample pictures, and the rules by which an answer is sensible.

`prompts.json` has 300 prompts, written by hand before the model was trained for them: 200 to develop on ("dev") and 100 that nothing is chosen by ("test"),
split at random within every form. Each says on which pictures it is asked ("on"), what was asked before it ("before"; the model's own answers stand in between)
and what it asks for ("asks", see `Ask`). No prompt occurs in training: `dialogue.py` leaves out what is
in `SENTENCES`.

An answer is sensible if
1. every sentence is understood: all its words are known, and it says something about the picture, or is one of the things that need no picture;
2. every sentence is true of the picture, by the phantom's facts, and "yes" and "no" are right;
3. every ask is answered: each part of a double question, the sign and what is seen of it for "why", the same fact again for "are you sure".
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

from phantom import ZONES

PROMPTS = Path(__file__).parent / "prompts.json"


class Ask(NamedTuple):
    """One thing that a prompt asks for, written in `prompts.json` as a string:

    TOPIC          whatever is true of it          TOPIC?          if it is there
    TOPIC.ASPECT   its size, place, count, ...     TOPIC@PLACE     if it is there
    TOPIC=VALUE    if it has that value            FORM:ASK        "why", "sure", "term", "foreign" and "demo" before a topic or kind
    """

    form: str  # "open", "closed", "why", ..., or one of the asks that name no sign, as "findings" or "unknowable"
    topic: str = ""
    aspect: str = ""
    value: str = ""


class Claim(NamedTuple):
    """One thing that an answer says."""

    topic: str  # a topic of the picture's kind, "answer", "picture", "region", or "" if it must be resolved
    aspect: str
    value: object


TOPICS = {  # how answers name the topics of each kind
    "chest": {"heart": "heart", "effusion": "effusion|fluid", "middle": "septal lines", "fine": "fine lines"},
    "brain": {"ventricles": "ventricles", "bleed": "bleed", "middle": "coarse patch", "fine": "fine spots?"},
    "tissue": {"stain": "stain|tissue", "cellularity": "cellularity|cells|nuclei", "middle": "bands", "fine": "fine stripes"},
    "fundus": {"eye": "eye", "haemorrhage": "haemorrhage", "middle": "mottling", "fine": "fine dots?"},
}
VALUES = {  # topics that always have one of two values: aspect and words
    "heart": ("size", {"enlarged": "enlarged|large", "normal": "normal|not enlarged"}),
    "ventricles": ("size", {"enlarged": "enlarged|large|wide", "normal": "normal|not enlarged"}),
    "stain": ("colour", {"pink": "pink", "purple": "purple"}),
    "cellularity": ("level", {"high": "high|many", "low": "low|few"}),
    "eye": ("side", {"right": "right", "left": "left"}),
}
PATTERNS = ("horizontal", "vertical", "mottled", "barred")
# What is seen of a sign: words that a reason must have, by the value that they speak for.
REASONS = {
    "heart": {"enlarged": "(wider|more) than half", "normal": "(narrower|less) than half"},
    "effusion": {True: "(white|bright)", False: "dark down to"},
    "ventricles": {"enlarged": "wide", "normal": "narrow"},
    "bleed": {True: "bright", False: "no bright"},
    "stain": {"pink": "pink", "purple": "purple"},
    "cellularity": {"high": "close together|many nuclei", "low": "far apart|few nuclei"},
    "eye": {"right": "disc .*right", "left": "disc .*left"},
    "haemorrhage": {True: "dark red", False: "no dark red"},
    "middle": {True: "pattern|coarse|broad", False: "no .*(pattern|coarse|broad)"},
    "fine": {True: "pattern|thin|tiny", False: "no .*(pattern|thin|tiny)"},
    "kind": {"chest": "ribs|lungs", "brain": "skull|ventricles", "tissue": "nuclei|cells", "fundus": "vessels|disc"},
}
KINDS = {
    "chest": r"(a |the )?(drawn )?(chest( film| x-ray)?|x-ray of the chest)",
    "brain": r"(a |the )?(drawn )?(brain( ct)?|ct( slice)? of the brain)",
    "tissue": r"(an? |the )?(drawn )?(slide of |section of )?(stained )?tissue",
    "fundus": r"(an? |the )?(drawn )?(eye( fundus)?|back of (an|the) eye)",
}
MODALITIES = {"chest": "x-ray", "brain": "ct", "tissue": "microscopy", "fundus": "photography"}
# Sentences that need no picture: the asks that they answer. Everything is in lower case.
SAID = {
    r"the (picture|drawing) cannot (tell|show)( that| this)?": {"unknowable"},
    r"hello( .*)?|ask me about (it|the picture)": {"greeting"},
    r"you are welcome|goodbye|thank you|i am glad( .*)?": {"thanks"},
    r"i can only answer questions about the picture|i do not understand( that| this)?( .*)?": {"off_topic"},
    r"i answer questions about drawn pictures of the chest, the brain, tissue and the eye": {"demo:can", "demo:what", "demo:drawn"},
    r"this is a demo on drawn phantoms, not a medical device": {"demo:limits", "demo:drawn", "demo:what"},
    r"i am a small (demo )?model.*": {"demo:what"},
    r"(you can |please )?ask (me )?(about|for|what|where|how) .*": {"demo:can", "greeting", "off_topic"},
    r"(i|this demo) only (know|knows) drawn pictures.*|i know nothing (of|about) real (pictures|patients).*": {"demo:drawn", "demo:limits"},
    r"(the|this) picture (is drawn|was drawn) by a program.*|nothing here is real": {"demo:drawn"},
    r"(everything|it all|your picture|the picture) (stays|runs) (in|on) (your|the|this) (browser|computer)": {"demo:private"},
}  # fmt: skip
GRAMMAR_WORDS = set(
    "a an and also are as at both but each has have here i in is it its just look looked again lie lies of on one only run runs see seen shape still "
    "sure that the their there these they this to total with yes no not none nor nothing does do they're other same where which so my answer "
    "picture drawn drawing quadrant quadrants zone zones half halves side sides patient's patient equal equally more fewer than modality part body film ct "
    "chest brain eye fundus x-ray microscopy photography stained slice back was made by kind found findings finding normal abnormal everything looks look without "
    "number heart effusion fluid size name say".split())  # fmt: skip


def asks(text: str) -> Ask:
    """Reads one ask."""
    if ":" in text:
        form, rest = text.split(":")
        topic, _, aspect = rest.partition(".")
        return Ask(form, topic, aspect)
    if text.endswith("?"):
        return Ask("normal") if text == "normal?" else Ask("closed", text[:-1], "present", "yes")
    if "@" in text:
        topic, place = text.split("@")
        return Ask("region", value=place) if topic == "findings" else Ask("closed", topic, "where", place)
    if "=" in text:
        name, value = text.split("=")
        topic, _, aspect = name.partition(".")
        return Ask("closed", topic, aspect or default_aspect(topic), value)
    if text in ("findings", "detail", "unknowable", "off_topic", "greeting", "thanks"):
        return Ask(text)
    topic, _, aspect = text.partition(".")
    return Ask("open", topic, "pattern" if aspect == "direction" else aspect)


def default_aspect(topic: str) -> str:
    """The aspect of a topic that has a value."""
    return "kind" if topic == "kind" else VALUES[topic][0] if topic in VALUES else "pattern"


# ---- the truth -----------------------------------------------------------------------------------------------------------


def truth(facts: dict, topic: str, aspect: str) -> object:
    """What is true: a bool for "present", a set of places for "where", a word or a number for the others."""
    if topic in ("kind", "modality"):
        return facts["kind"] if topic == "kind" else MODALITIES[facts["kind"]]
    if topic in VALUES:
        value = facts[f"{topic}_enlarged"] if topic in ("heart", "ventricles") else facts[topic]
        value = ("enlarged" if value else "normal") if isinstance(value, bool) else value
        return True if aspect == "present" else value
    found = facts[topic]
    zones = [sign["zone"] for sign in found] if isinstance(found, list) else [found] if found else []
    if aspect == "present":
        return bool(zones)
    if aspect == "count":
        return len(zones)
    if aspect == "more":
        right, left = (sum(side in zone for zone in zones) for side in ("right", "left"))
        return "equal" if right == left else "right" if right > left else "left"
    if aspect == "pattern":
        kinds = {sign["pattern"] for sign in found} if isinstance(found, list) else set()
        if facts["kind"] == "brain" and topic == "middle":
            return {"mottled" if kind == "checker" else kind for kind in kinds} | ({"barred"} if kinds and kinds != {"checker"} else set())
        return kinds
    return set(zones)


def at(place: str, zone: str) -> bool:
    """Whether a zone lies in a place, as "left upper" in "left"."""
    return set(place.split()) <= set(zone.split())


def is_true(claim: Claim, facts: dict) -> bool:
    """Whether a claim is true."""
    topic, aspect, value = claim
    if topic == "answer":
        return True  # judged with the asks
    if topic == "region":
        return not any(at(value, zone) for name in signs(facts) for zone in truth(facts, name, "where"))
    if topic == "picture":
        return value == (bool(findings(facts)) if aspect == "findings" else truth(facts, aspect, aspect))
    if aspect == "reason":
        return value == truth(facts, topic, "present" if topic not in VALUES else "value")
    if aspect == "absent":  # at places
        return not any(at(place, zone) for place in value for zone in truth(facts, topic, "where"))
    found = truth(facts, topic, aspect)
    if aspect == "where":
        return all(any(at(place, zone) for zone in found) for place in value)
    return value in found if isinstance(found, set) else value == found


def signs(facts: dict) -> list[str]:
    """Topics that may be absent."""
    return [topic for topic in TOPICS[facts["kind"]] if topic not in VALUES]


def findings(facts: dict) -> list[str]:
    """What a describer must not miss: signs that are present, and enlarged organs."""
    large = [topic for topic in ("heart", "ventricles") if facts.get(f"{topic}_enlarged")]
    return large + [topic for topic in signs(facts) if truth(facts, topic, "present")]


# ---- what an answer says -------------------------------------------------------------------------------------------------


def places(text: str, kind: str) -> tuple[list[str], str]:
    """Places named in a text, and the text without them."""
    found = []
    names = [zone for zone in ZONES[kind]] + [" ".join(reversed(zone.split())) for zone in ZONES[kind]]
    for name in names:
        if re.search(rf"\b{name}\b", text):
            found.append(name)
            text = re.sub(rf"\b{name}\b", " ", text)
    for name in ("right", "left", "upper", "lower", "front", "back"):
        if re.search(rf"\b{name}\b", text):
            found.append(name)
            text = re.sub(rf"\b{name}\b", " ", text)
    return found, text


def reason(sentence: str, kind: str, asked: list[Ask], last: str) -> list[Claim]:
    """A sentence that says what is seen of a sign."""
    wanted = [ask.topic for ask in asked if ask.form in ("why", "term")] + ([last] if last else [])
    named = [topic for topic, noun in TOPICS[kind].items() if re.search(rf"\b({noun})\b", sentence)]
    for topic in [*wanted, *named]:
        found = [value for value, words in REASONS.get(topic, {}).items() if re.search(rf"\b({words})\b", sentence)]
        if found:
            # the negative of a sign comes last, and includes the positive one's words
            sides = ("right", "left") if topic in ("effusion", "bleed") else () if topic in VALUES or topic == "kind" else sum((zone.split() for zone in ZONES[kind]), [])
            where = [place for place in places(sentence, kind)[0] if place in sides or topic not in ("effusion", "bleed") and sides]
            return [Claim(topic, "reason", found[-1])] + ([Claim(topic, "where" if found[-1] is True else "absent", tuple(where))] if where else [])
    return []


def chunks(sentence: str, kind: str) -> list[str]:
    """A sentence cut before each chunk that names another topic."""
    nouns = "|".join(TOPICS[kind].values())
    parts: list[str] = []
    for part in re.split(r", (?:and |but )?| and | with |; ", sentence):
        new = re.search(rf"\b({nouns})\b", part) or re.match(r"(yes|no|not)$", part)
        if parts and not new and not re.match(r"(yes|no)$", parts[-1]):
            parts[-1] += f" and {part}"
        else:
            parts.append(part)
    return parts


def claims_of(chunk: str, kind: str, last: str) -> tuple[list[Claim], str]:
    """Claims of a chunk that names at most one topic, and the words that nothing explains."""
    rest, found = chunk, []
    named = [(topic, noun) for topic, noun in TOPICS[kind].items() if re.search(rf"\b({noun})\b", chunk)]
    topic = named[0][0] if named else ""
    for _, noun in named:
        rest = re.sub(rf"\b({noun})\b", " ", rest)
    is_value = topic in VALUES or (not topic and last in VALUES and re.match(r"(it|they) ", chunk))
    if topic == "eye" or is_value and last == "eye" and not topic:  # "a right eye", "the left eye"
        sides = [side for side in ("right", "left") if re.search(rf"\b{side}\b", rest)]
        if sides:
            return [Claim("eye", "side", sides[0])], re.sub(rf"\b{sides[0]}\b", " ", rest)
    values = VALUES.get(topic or (last if is_value else ""), None)
    options = [values] if values else [VALUES[name] for name in TOPICS[kind] if name in VALUES and name != "eye"] if not topic else []
    for aspect, words in options:
        for value, pattern in reversed(words.items()):  # "not enlarged" before "enlarged"
            if re.search(rf"\b({pattern})\b", rest):
                owner = topic or next(name for name in TOPICS[kind] if name in VALUES and VALUES[name][1] is words)
                rest = re.sub(rf"\b({pattern})\b", " ", rest)
                return [Claim(owner, aspect, value)], rest
    more = re.search(r"\bmore\b", rest)
    if re.search(r"\bequal(ly)?\b", rest):
        return [Claim(topic or "fine", "more", "equal")], rest
    for word in PATTERNS:
        if re.search(rf"\b{word}\b", rest):
            found.append(Claim(topic, "pattern", word))
            rest = re.sub(rf"\b{word}\b", " ", rest)
    number = re.search(r"\b(\d+|one|two|three)\b", rest)
    if number:
        word = number.group(1)
        found.append(Claim(topic or last or "fine", "count", {"one": 1, "two": 2, "three": 3}.get(word) or int(word)))
        rest = rest.replace(word, " ")
    where, rest = places(rest, kind)
    negative = bool(re.search(r"\b(no|not|none|nothing|without|neither|nor)\b", rest))
    if re.search(r"\bnothing\b", rest) and not topic:
        return [Claim("region", "nothing", place) for place in where] or [Claim("picture", "findings", False)], rest
    if where and more:
        found.append(Claim(topic or "fine", "more", where[0]))
    elif where and negative:
        found.append(Claim(topic, "absent", tuple(where)))
    elif where:
        found.append(Claim(topic, "where", tuple(where)))
    elif negative and (topic or "none" in rest):
        found.append(Claim(topic, "present", False))
    if not found and topic and topic not in VALUES:
        found.append(Claim(topic, "present", True))
    return found, rest


def understood(answer: str, kind: str, asked: list[Ask]) -> tuple[list[Claim], set[str], str]:
    """The claims of an answer, the asks that its fixed sentences answer, and its first sentence that is not understood."""
    found: list[Claim] = []
    said: set[str] = set()
    last = next((ask.topic for ask in asked if ask.topic in TOPICS[kind]), "")
    text = re.sub(r"(?<=\w): ", " ", answer.lower().strip())
    text = re.sub(r"\bnone\b(?=, )", "none", text)
    for sentence in [part.strip() for part in re.split(r"[.!?]+(?:\s+|$)", text) if part.strip()]:
        fixed = [ids for pattern, ids in SAID.items() if re.fullmatch(pattern, sentence)]
        if fixed:
            said |= set().union(*fixed)
            continue
        foreign = re.fullmatch(r"this is (a picture of )?(.*), not (a picture )?of (.*)", sentence)
        if foreign:
            is_kind, is_not = (next((kind for kind, words in KINDS.items() if re.fullmatch(words, part)), None) for part in foreign.group(2, 4))
            if is_kind and is_not and is_kind != is_not:
                found.append(Claim("picture", "kind", is_kind))
                said.add(f"foreign:{is_not}")
                continue
            return found, said, sentence
        polarity = re.match(r"(yes|no)(, |$)", sentence)
        if polarity:
            found.append(Claim("answer", "polarity", polarity.group(1)))
            sentence = sentence[polarity.end():]
            if not sentence:
                continue
        shown = re.fullmatch(r"((this|it) is |i see )?(" + "|".join(f"(?P<{kind}>{words})" for kind, words in KINDS.items()) + r")(,? (?P<rest>(with|without) .*))?", sentence)
        if shown:
            found.append(Claim("picture", "kind", next(kind for kind in KINDS if shown.group(kind))))
            found += [Claim("picture", "modality", word) for word in ("ct", "x-ray") if re.search(rf"\b{word}\b", sentence)]
            sentence = (shown.group("rest") or "").removeprefix("with ")
            if not sentence:
                continue
        if re.fullmatch(r"without (any )?findings|(i see )?no findings|everything (looks|is) normal|nothing abnormal", sentence):
            found.append(Claim("picture", "findings", False))
            continue
        modality = re.fullmatch(r"((this|it) (is|was made by) )?(an? )?(x-ray|ct|microscopy|photography)", sentence)
        if modality:
            found.append(Claim("picture", "modality", modality.group(5)))
            continue
        plain, topic = [], last
        for chunk in chunks(sentence, kind):
            more, rest = claims_of(chunk, kind, topic)
            if any(word not in GRAMMAR_WORDS for word in re.findall(r"[a-z0-9'-]+", rest)):
                plain = []
                break
            plain += more
            topic = next((claim.topic for claim in more if claim.topic in TOPICS[kind]), topic)
        plain = plain or reason(sentence, kind, asked, last)
        if not plain:
            return found, said, sentence
        found, last = found + plain, topic
    return found, said, ""


# ---- the verdict ---------------------------------------------------------------------------------------------------------


def resolve(claims: list[Claim], asked: list[Ask], facts: dict) -> list[Claim]:
    """Claims without a topic get that of the first ask which they can answer and none has answered yet, else the last topic named."""
    open_asks = [ask for ask in asked if ask.topic in TOPICS[facts["kind"]]]
    taken, out, last = set(), [], ""
    for claim in claims:
        if not claim.topic:
            fits = [ask for ask in open_asks if ask not in taken and (ask.aspect in ("", claim.aspect, "present", "where") or claim.aspect == "present")]
            if claim.aspect == "where" and any(ask.aspect == "more" for ask in open_asks):
                claim = Claim("fine", "more", claim.value[0])
            else:
                owner = last if last else (fits or open_asks)[0].topic if open_asks else ""
                if not last and fits:
                    taken.add(fits[0])
                claim = claim._replace(topic=owner)
        elif claim.topic in TOPICS[facts["kind"]]:
            last = claim.topic
        if claim.aspect == "where" and claim.topic == "eye":
            claim = Claim("eye", "side", claim.value[0])
        out.append(claim)
    return out


def closed_truth(ask: Ask, facts: dict) -> bool:
    """The answer to a closed ask."""
    if ask.aspect == "where":
        return any(at(ask.value, zone) for zone in truth(facts, ask.topic, "where"))
    found = truth(facts, ask.topic, ask.aspect)
    return bool(found) if ask.aspect == "present" else ask.value in found if isinstance(found, set) else found == ask.value


def answered(ask: Ask, claims: list[Claim], said: set[str], facts: dict, n_closed: int) -> bool:
    """Whether true claims answer an ask."""
    kind = facts["kind"]
    about = [claim for claim in claims if claim.topic == ask.topic and claim.aspect != "reason"]
    if ask.form == "closed":
        if ask.topic == "kind":
            return n_closed > 0 or any(claim[:2] == ("picture", "kind") for claim in claims)
        aspects = {"present": ("present", "where", "count", "pattern"), "where": ("where", "absent", "present")}.get(ask.aspect, (ask.aspect,))
        present = any(claim.aspect in aspects and (ask.aspect != "where" or claim.aspect != "present" or not claim.value) for claim in about)
        return present or n_closed > 0
    if ask.form == "open" and ask.topic in ("kind", "modality"):
        return any(claim[:2] == ("picture", ask.topic) for claim in claims)
    if ask.form == "open" or ask.form == "sure" and ask.topic != "kind":
        none = any(claim.aspect == "present" for claim in about) or any(claim == ("answer", "polarity", "no") for claim in claims)
        if none and ask.topic not in VALUES and not truth(facts, ask.topic, "present"):
            return True
        if ask.aspect == "where":  # all its places
            named = [place for claim in about if claim.aspect == "where" for place in claim.value]
            return bool(named) and all(any(at(place, zone) for place in named) for zone in truth(facts, ask.topic, "where"))
        return any(not ask.aspect or claim.aspect == ("pattern" if ask.aspect == "direction" else ask.aspect) for claim in about)
    if ask.form == "sure":
        return any(claim[:2] == ("picture", "kind") for claim in claims)
    if ask.form == "why":
        if ask.topic == "kind":
            return any(claim.topic == "kind" for claim in claims)
        return any(claim[:2] == (ask.topic, "reason") for claim in claims)
    if ask.form == "term":
        return any(claim[:2] == (ask.topic, "reason") for claim in claims)
    if ask.form == "foreign":
        return f"foreign:{ask.topic}" in said
    if ask.form == "demo":
        return f"demo:{ask.topic}" in said
    positive = {claim.topic for claim in claims if claim.topic in TOPICS[kind] and claim.aspect != "reason" and claim.value is not False}
    if ask.form in ("findings", "normal"):
        nothing = not findings(facts) and any(claim[:2] == ("picture", "findings") for claim in claims)
        plain = ask.form == "normal" and any(claim.topic == "answer" for claim in claims)
        return nothing or plain or bool(positive)
    if ask.form == "detail":
        return len({claim.topic for claim in claims if claim.topic in TOPICS[kind]}) >= min(3, len(findings(facts)))
    if ask.form == "region":
        here = [name for name in signs(facts) if any(at(ask.value, zone) for zone in truth(facts, name, "where"))]
        return any(claim.topic in here and claim.aspect == "where" for claim in claims) if here else any(claim.topic == "region" for claim in claims)
    return ask.form in said


def problem(prompt: dict, facts: dict, answer: str) -> str:
    """Why an answer is not sensible, or "". `facts` are those of the phantom, with its kind."""
    asked = [asks(text) for text in prompt["asks"]]
    if not answer.strip():
        return "empty"
    claims, said, strange = understood(answer, facts["kind"], asked)
    if strange:
        return f"not understood: {strange}"
    claims = resolve(claims, asked, facts)
    for claim in claims:
        if claim.aspect == "reason" and any(ask.form == "term" for ask in asked):
            continue  # what a word means in general
        if not claim.topic or not (claim.topic == "kind" or is_true(claim, facts)):
            return f"not true: {claim.topic} {claim.aspect} {claim.value}"
        if claim.topic == "kind" and claim.value != facts["kind"]:
            return "not true: a reason for another kind"
    closed = [ask for ask in asked if ask.form in ("closed", "normal")]
    polarity = [claim.value == "yes" for claim in claims if claim.topic == "answer"]
    for ask, yes in zip(closed, polarity):
        right = not findings(facts) if ask.form == "normal" and "abnormal" not in prompt["prompt"].lower() else closed_truth(ask, facts) if ask.form == "closed" else None
        if right is None or yes != right:
            return f"wrong {'yes' if yes else 'no'}"
    if polarity and not closed:
        if not all(polarity) and any(ask.form == "sure" for ask in asked):
            return "flips"
        if all(ask.form in ("open", "findings", "detail", "why", "term") for ask in asked) and len(claims) == len(polarity):
            return "only yes or no"
    for idx, ask in enumerate(asked):
        n_closed = max(0, len(polarity) - closed.index(ask)) if ask in closed else 0
        if not answered(ask, claims, said, facts, n_closed):
            return f"not answered: {prompt['asks'][idx]}"
    extra = said - {prompt["asks"][0]}
    if said and claims and "unknowable" in extra and "unknowable" not in prompt["asks"]:
        return "says that it cannot tell"
    return ""


def sensible(prompt: dict, facts: dict, answer: str) -> bool:
    """Whether an answer to a prompt of `prompts.json` is sensible."""
    return not problem(prompt, facts, answer)


def plain(text: str) -> str:
    """A prompt without capitals and marks."""
    return re.sub("[^a-z0-9 ]", "", text.lower()).strip()


# What training must not see. Prompts of one or two words are no sentences.
SENTENCES = {text for prompt in json.loads(PROMPTS.read_text()) if len((text := plain(prompt["prompt"])).split()) > 2}


def load(split: str) -> list[dict]:
    """The prompts of a split."""
    return [prompt for prompt in json.loads(PROMPTS.read_text()) if prompt["split"] == split]
