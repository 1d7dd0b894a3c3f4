"""PhantomVQA's conversations: what people ask beyond the questions of `questions.py`, and true answers in short sentences.

`fragments` gives pieces of conversation about a phantom, each of one to three turns that belong together: descriptions in any words, two questions in one, why,
are you sure, the other side, a single word, a follow-up that only makes sense after its question, terms, small talk. `data.py` puts them in any order.

Of every sign there is one statement ("There are horizontal septal lines in the right upper zone."), which answers most of these, and one reason, which says what
is seen. Questions answered with a bare "Yes." or "No." keep the balance of `questions.py`: both are equally frequent for each kind of question.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

import prompts
import speech
from phantom import KINDS, P_COARSE, P_SIGN, STRANGER, ZONES, Phantom, draw_facts
from questions import AREA, BODY_PARTS, FIXED, MODALITIES, NOT_KNOWN, caption, description, joined, places

NOUNS = speech.NOUNS
PLURAL = {("brain", "ventricles"), ("tissue", "middle"), ("chest", "middle"), ("chest", "fine"), ("brain", "fine"), ("tissue", "fine"), ("fundus", "fine")}
DRAWN = "The picture was drawn by a program. I only know drawn pictures."
PRIVATE = "Everything stays in your browser."
TERMS = {  # what a word means in these drawings
    "heart": "An enlarged heart is wider than half of the chest.",
    "effusion": "An effusion is fluid: the lower part of a lung is white.",
    ("chest", "middle"): "Septal lines are a pattern of coarse lines in a lung.",
    ("chest", "fine"): "Fine lines are a pattern of thin lines in a lung.",
    "ventricles": "Ventricles are dark spaces in the middle: enlarged ones are wide.",
    "bleed": "A bleed is a bright area in the brain.",
    ("brain", "middle"): "A coarse patch is an area with a coarse pattern.",
    ("brain", "fine"): "Fine spots are small areas with a tiny pattern.",
    "stain": "The stain is the dye, which makes the tissue pink or purple.",
    "cellularity": "High cellularity means that the nuclei are close together.",
    ("tissue", "middle"): "Bands are a pattern of broad lines.",
    ("tissue", "fine"): "Fine stripes are a pattern of thin lines.",
    "eye": "In a right eye, the disc is on the right of the picture.",
    "haemorrhage": "A haemorrhage is a dark red area.",
    ("fundus", "middle"): "Mottling is an area with a coarse pattern.",
    ("fundus", "fine"): "Fine dots are small areas with a tiny pattern.",
}  # fmt: skip
KIND_REASONS = {"chest": "I see ribs, lungs and a heart.", "brain": "I see a skull and ventricles.", "tissue": "I see stained nuclei.", "fundus": "I see vessels and a disc."}
MEANT = {"chest": "This is a chest film.", "brain": "This is a brain CT.", "tissue": "This is a stained tissue.", "fundus": "This is an eye fundus."}


class Turn(NamedTuple):
    question: str
    answer: str
    needs_picture: bool = True


def topics(p: Phantom) -> list[str]:
    """What can be asked about: files of another size do not show textures."""
    return [topic for kind, topic in NOUNS if kind == p.kind and (p.exact or topic not in ("middle", "fine"))]


def is_sign(topic: str) -> bool:
    """Whether a topic is a sign that may be absent."""
    return topic in ("effusion", "bleed", "haemorrhage", "middle", "fine")


def zones(p: Phantom, topic: str) -> list[str]:
    """Where a sign is; for effusion and bleed a side."""
    found = p.facts[topic]
    return places(found, p.kind) if isinstance(found, list) else [found] if found else []


def where(p: Phantom, topic: str, here: list[str]) -> str:
    """ "on the left", "in the left upper and right upper zone"."""
    return f"on the {here[0]}" if topic in ("effusion", "bleed") else f"in the {joined(here)} {AREA[p.kind]}"


def phrase(p: Phantom, topic: str, here: list[str], counted: bool = True) -> str:
    """A sign that is present, as a noun phrase with its place: "horizontal septal lines in the right upper zone". Spots and dots are counted."""
    noun = NOUNS[p.kind, topic][0]
    if topic == "fine" and p.kind in ("brain", "fundus"):
        one, comma = ("1" if counted else "a", "") if len(here) == 1 else (str(len(here)) if counted else "", "," if counted else "")
        return f"{one} {noun[:-1] if len(here) == 1 else noun}{comma} {where(p, topic, here)}".strip()
    if topic == "middle" and p.kind == "brain":
        pattern = p.facts["middle"][0]["pattern"]
        return f"a {'mottled' if pattern == 'checker' else 'barred'} coarse patch {where(p, topic, here)}"
    if topic in ("middle", "fine") and p.kind != "fundus":
        return f"{p.facts[topic][0]['pattern']} {noun} {where(p, topic, here)}"
    article = "" if topic == "middle" else "an " if topic == "effusion" else "a "
    return f"{article}{noun} {where(p, topic, here)}"


def statement(p: Phantom, topic: str) -> str:
    """All that is true of a topic, in one sentence."""
    facts, kind = p.facts, p.kind
    if topic in ("heart", "ventricles"):
        return f"The {topic} {'is' if topic == 'heart' else 'are'} {'enlarged' if facts[f'{topic}_enlarged'] else 'normal'}."
    if topic == "eye":
        return f"This is a {facts['eye']} eye."
    if topic in ("stain", "cellularity"):
        return f"The {topic} is {facts[topic]}."
    here, noun = zones(p, topic), NOUNS[kind, topic][0]
    many = (kind, topic) in PLURAL
    if not here:
        return f"There {'are' if many else 'is'} no {noun}."
    return f"There {'are' if many and len(here) + (kind not in ('brain', 'fundus')) > 1 else 'is'} {phrase(p, topic, here)}."


def reason(p: Phantom, topic: str) -> str:
    """What is seen that speaks for the statement."""
    facts, kind = p.facts, p.kind
    if topic == "heart":
        return f"The heart is {'wider' if facts['heart_enlarged'] else 'narrower'} than half of the chest."
    if topic == "ventricles":
        return f"The dark spaces in the middle are {'wide' if facts['ventricles_enlarged'] else 'narrow'}."
    if topic == "stain":
        return f"Most of the picture is {facts['stain']}."
    if topic == "cellularity":
        return f"The nuclei are {'close together' if facts['cellularity'] == 'high' else 'far apart'}."
    if topic == "eye":
        return f"The disc is on the {facts['eye']} of the picture."
    here = zones(p, topic)
    if topic == "effusion":
        return f"The lower part of the {here[0]} lung is white." if here else "Both lungs are dark down to the base."
    look = {
        "bleed": "bright area in the brain", "haemorrhage": "dark red area",
        "middle": {"chest": "pattern of coarse lines", "brain": "coarse pattern", "tissue": "pattern of broad lines", "fundus": "coarse pattern"}[kind],
        "fine": "pattern of thin lines" if kind in ("chest", "tissue") else "tiny pattern",
    }[topic]  # fmt: skip
    return f"I see a {look} {where(p, topic, here)}." if here else f"I see no {look}."


def lower(sentence: str) -> str:
    """A sentence after "Yes, "."""
    return sentence if sentence.startswith("I ") else sentence[0].lower() + sentence[1:]


def at(p: Phantom, topic: str, place: str) -> list[str]:
    """Zones of a sign in a part of the picture, as "left"."""
    return [zone for zone in zones(p, topic) if set(place.split()) <= set(zone.split())]


def in_place(p: Phantom, place: str) -> str:
    """What is in a part of the picture."""
    found = [phrase(p, topic, here, counted=False) for topic in topics(p) if is_sign(topic) and (here := at(p, topic, place))]
    sentence = joined_phrases(found) if found else f"nothing {place_words(place)[0]}"
    return sentence[0].upper() + sentence[1:] + "."


def joined_phrases(found: list[str]) -> str:
    """Phrases that may have commas of their own."""
    return found[0] if len(found) == 1 else ", ".join(found[:-1]) + " and " + found[-1]


def place_words(place: str) -> tuple[str, ...]:
    """What people call a part of the picture; the first is the answer's."""
    if place in ("right", "left"):
        return (f"on the {place}", f"on the {place} side", f"in the {place} half", f"at the {place}", f"to the {place}", f"{place}", f"on the {place} hand side", f"{place} side")
    if place in ("upper", "lower"):
        own, more = f"in the {place} half", ("at the top", "on top", "above", "in the upper part") if place == "upper" else ("at the bottom", "below", "down", "in the lower part")
        return (own, f"in the {place} area", f"{place} half", *more)
    if place in ("front", "back"):
        return (f"in the {place}", f"at the {place}", f"in the {place} part", f"{place} half", *(("anterior", "frontal") if place == "front" else ("posterior", "occipital")))
    return (f"in the {place} part", f"{place}", f"in the {place} corner", f"in the {place} quadrant", f"in the {place} zone", f"in the {' '.join(reversed(place.split()))} part")


def part_words(kind: str, place: str) -> tuple[str, ...]:
    """Nouns for a half."""
    more = {"chest": (f"the {place} lung", f"{place} lung", f"the {place} side of the chest", f"the {place} hemithorax"),
            "brain": (f"the {place} side of the brain", f"the {place} half of the brain", f"{place} hemisphere")}.get(kind, ())  # fmt: skip
    return (*(more if place in ("right", "left") else ()), f"the {place} half", f"the {place} part of the picture", f"the {place} side" if place in ("right", "left") else f"the {place} area")


class Talker:
    """Makes fragments about one phantom."""

    def __init__(self, p: Phantom, rng: np.random.Generator):
        self.p, self.kind, self.rng, self.topics = p, p.kind, rng, topics(p)
        self.signs = [topic for topic in self.topics if is_sign(topic)]

    # -- words

    def draw(self, options):
        return options[self.rng.integers(len(options))]

    def often(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def it(self) -> str:
        """ "this picture", "the x-ray"."""
        thing = self.draw(speech.KIND_THINGS[self.kind]) if self.often(0.3) else self.draw(speech.THINGS)
        return "it" if self.often(0.12) else f"{self.draw(('this', 'this', 'the', 'the', 'that', 'my'))} {thing}"

    def noun(self, topic: str, kind: str | None = None) -> str:
        names = NOUNS[kind or self.kind, topic]
        return names[0] if self.often(0.4) else self.draw(names)

    def fill(self, text: str, topic: str = "", kind: str | None = None, noun: str = "", **slots: str) -> str:
        kind = kind or self.kind
        n = noun or (self.noun(topic, kind) if topic else "")
        single = n and not n.endswith("s") and n not in ("fluid", "bleeding", "blood", "mottling", "pleural fluid", "liquid", "nuclei", "banding", "striping")
        a = (("an " if n[0] in "aeiou" else "a ") + n) if single else n
        return text.format(n=n, a=a, area=AREA[kind], it=self.it(), thing=self.draw(speech.THINGS), **slots)

    def ask(self, options, topic: str = "", **slots: str) -> str:
        """A question as typed."""
        return speech.typed(self.fill(self.draw(options), topic, **slots), self.rng)

    # -- single questions: (question, answer, topic)

    def chance(self, topic: str) -> float:
        """How often a sign is present."""
        return P_COARSE if topic in ("effusion", "bleed", "haemorrhage") else P_SIGN

    def keep(self, truth: bool, p: float) -> bool:
        """As `questions.Asker.balanced`."""
        return self.often(min(1, (1 - p) / p) if truth else min(1, p / (1 - p)))

    def present(self, topic: str) -> str | None:
        return ("Yes." if zones(self.p, topic) else "No.") if self.keep(bool(zones(self.p, topic)), self.chance(topic)) else None

    def plain(self) -> tuple[str, str, str] | None:
        """A question about a sign or a value, answered as in `questions.py`: the raw text, the answer, the topic."""
        topic = self.draw(self.topics)
        if not is_sign(topic):
            aspect = self.value(topic)
            if self.often(0.5):
                return self.fill(self.draw(speech.VALUE[self.kind, topic]), topic), statement(self.p, topic), topic
            asked = self.draw(list(speech.YES_VALUE[self.kind, topic]))
            return self.fill(self.draw(speech.YES_VALUE[self.kind, topic][asked])), "Yes." if asked == aspect else "No.", topic
        here = zones(self.p, topic)
        forms = ["present", "present", "where"] + (["count", "more"] if topic == "fine" and self.kind in ("brain", "fundus") else []) + (["direction"] if self.direction(topic) else [])
        form = self.draw(forms)
        if form == "present":
            answer = self.present(topic)
            return (self.fill(self.draw(speech.PRESENT), topic), answer, topic) if answer else None
        answer = self.short(topic, form)
        options = {"where": speech.SIDE + speech.WHERE if topic in ("effusion", "bleed") else speech.WHERE, "count": speech.COUNT, "more": speech.MORE_SIDE, "direction": speech.DIRECTION}[form]
        return (self.fill(self.draw(options), topic), answer, topic) if here or self.often(0.3) else None

    def value(self, topic: str) -> str:
        found = self.p.facts[f"{topic}_enlarged" if topic in ("heart", "ventricles") else topic]
        return ("enlarged" if found else "normal") if isinstance(found, bool) else found

    def direction(self, topic: str) -> str:
        """The direction of a texture, if it has one."""
        if topic not in ("middle", "fine") or not self.p.facts[topic] or self.kind == "fundus" or (self.kind == "brain" and topic == "fine"):
            return ""
        pattern = self.p.facts[topic][0]["pattern"]
        return "" if pattern == "checker" else pattern

    def short(self, topic: str, form: str) -> str:
        """The short answers of `questions.py`."""
        here = zones(self.p, topic)
        if form == "count":
            return f"{len(here)}."
        if form == "direction":
            return self.direction(topic).capitalize() + "."
        if form == "more":
            right, left = (sum(side in zone for zone in here) for side in ("right", "left"))
            return "They are equal." if right == left else "The right." if right > left else "The left."
        verb = "are" if (self.kind, topic) in PLURAL else "is"
        return where(self.p, topic, here).capitalize() + "." if here else f"There {verb} none."

    # -- fragments: lists of turns

    def single(self) -> list[Turn]:
        found = self.plain()
        return [Turn(speech.typed(found[0], self.rng), found[1])] if found else []

    def describe(self) -> list[Turn]:
        form = self.draw(("brief", "brief", "brief", "detailed", "detailed", "healthy", "more", "kind", "modality"))
        if form in ("kind", "modality"):
            both = f"The {BODY_PARTS[self.kind]}." if form == "kind" else MODALITIES[self.kind]
            return [Turn(self.ask(speech.KIND if form == "kind" else speech.MODALITY), both)]
        if not self.p.exact:
            return []
        brief, full = description(self.p), caption(self.p)
        if form == "brief":
            return [Turn(self.ask(speech.BRIEF), brief)]
        if form == "detailed":
            return [Turn(self.ask(speech.DETAILED), full)]
        if form == "more":
            return [Turn(self.ask(speech.BRIEF), brief), Turn(self.ask(speech.MORE), full)]
        ill = bool(self.signs_present() or self.p.facts.get("heart_enlarged") or self.p.facts.get("ventricles_enlarged"))
        return [Turn(self.ask(speech.HEALTHY), f"{'No' if ill else 'Yes'}. {brief}")]

    def signs_present(self) -> list[str]:
        return [topic for topic in self.signs if zones(self.p, topic)]

    def word(self) -> list[Turn]:
        topic = self.draw(self.topics)
        return [Turn(self.ask(speech.ABOUT_IT, topic), statement(self.p, topic))]

    def half(self) -> tuple[str, str] | None:
        """One half of a double question: the raw text and a statement."""
        form = self.rng.random()
        if form < 0.1:
            return self.fill(self.draw(speech.MODALITY)), MODALITIES[self.kind]
        if form < 0.2:
            return self.fill(self.draw(speech.KIND)), MEANT[self.kind]
        if form < 0.28 and self.p.exact:
            return self.fill(self.draw(speech.BRIEF)), description(self.p)
        if form < 0.40:
            topic = self.draw(self.topics)
            return self.fill(self.draw(speech.ABOUT_IT), topic), statement(self.p, topic)
        found = self.plain()
        return (found[0], statement(self.p, found[2])) if found else None

    def two(self) -> list[Turn]:
        """Two questions in one: different topics, or two things about one sign."""
        form, topic = self.rng.random(), self.draw(self.topics)
        if form < 0.3 and is_sign(topic):
            noun = self.noun(topic)
            more = [*speech.THEN_WHERE[:12], *(speech.THEN_SIDE[:6] if topic in ("effusion", "bleed") else ())]
            more += [*speech.THEN_COUNT[:4], *speech.THEN_MORE[:2]] if topic == "fine" and self.kind in ("brain", "fundus") else []
            more += speech.THEN_DIRECTION[:8] if self.kind in ("chest", "tissue") and topic in ("middle", "fine") else []
            first = self.draw(speech.PRESENT + (speech.COUNT + speech.COUNT if topic == "fine" and self.kind in ("brain", "fundus") else ()) + speech.WHERE[:8])
            second = self.fill(self.draw(more), topic)
            second = self.draw(("if so ", "if yes ", "", "", "", "in that case ")) + second
            text, answer = self.both(self.fill(first, topic, noun=noun), second), statement(self.p, topic)
        elif form < 0.45:
            found = self.plain()
            if not found:
                return []
            text, answer = self.both(found[0], self.draw(speech.WHY)), f"{statement(self.p, found[2])} {reason(self.p, found[2])}"
        elif form < 0.6:  # "effusion and heart", "any bands or stripes"
            other = self.draw(self.topics)
            if other == topic:
                return []
            options = ("{a} and {b}", "{a}, {b}", "{a} or {b}", "any {a} or {b}", "is there {a} or {b}", "do you see {a} and {b}", "what about {a} and {b}", "tell me about the {a} and the {b}", "where are {a} and {b}",
                       "are there {a} and {b}", "both {a} and {b}", "{a} as well as {b}", "check {a} and {b}", "the {a} and also the {b}", "describe {a} and {b}", "where is the {a} and where the {b}", "position of {a} and of {b}")  # fmt: skip
            text, answer = self.draw(options).format(a=self.noun(topic), b=self.noun(other)), f"{statement(self.p, topic)} {statement(self.p, other)}"
        else:
            first, second = self.half(), self.half()
            if not first or not second or first[1] == second[1]:
                return []
            text, answer = self.both(first[0], second[0]), f"{first[1]} {second[1]}"
        return [Turn(speech.typed(text, self.rng), answer)]

    def both(self, first: str, second: str) -> str:
        """Two questions joined."""
        joint = self.draw((" and ", " and ", " and ", ", and ", "? ", "? ", "? And ", ", ", " and also ", ". ", ", plus ", "; ", " & ", " and then ", "? also, ", " - and "))
        return first + joint + (second[0].upper() + second[1:] if joint[-2:] in ("? ", ". ") and self.often(0.6) else second)

    def why(self) -> list[Turn]:
        form = self.rng.random()
        if form < 0.12:
            first = Turn(self.ask(speech.KIND), f"The {BODY_PARTS[self.kind]}.")
            return [first, Turn(self.ask(speech.WHY), KIND_REASONS[self.kind])]
        topic = self.draw(self.topics)
        answer = reason(self.p, topic)
        if form < 0.4:
            return [Turn(self.ask(speech.WHY_SIGN, topic), f"{statement(self.p, topic)} {answer}")]
        first = self.opening()
        return [first[0], Turn(self.ask(speech.WHY), reason(self.p, first[1]))] if first else []

    def opening(self, only_signs: bool = False) -> tuple[Turn, str] | None:
        """A question about a topic, in old or new words, with its answer; and the topic."""
        if self.often(0.2):
            topic = self.draw(self.signs if only_signs else self.topics) if self.signs else None
            return (Turn(self.ask(speech.ABOUT_IT, topic), statement(self.p, topic)), topic) if topic else None
        found = self.plain()
        if not found or (only_signs and not is_sign(found[2])):
            return None
        return Turn(speech.typed(found[0], self.rng), found[1]), found[2]

    def sure(self) -> list[Turn]:
        if self.often(0.12):
            is_kind = MEANT[self.kind]
            doubts = self.often(0.7)
            return [Turn(self.ask(speech.KIND), f"The {BODY_PARTS[self.kind]}."), Turn(self.ask(speech.DOUBT if doubts else speech.DISAGREE), f"Yes, {lower(is_kind)}" if doubts else is_kind)]
        first = self.opening()
        if not first:
            return []
        fact = statement(self.p, first[1])
        turns = [first[0]]
        for _ in range(2 if self.often(0.2) else 1):
            turns.append(Turn(self.ask(speech.DOUBT), f"Yes, {lower(fact)}") if self.often(0.6) else Turn(self.ask(speech.DISAGREE), fact))
        return turns

    def other_side(self) -> list[Turn]:
        """A place, then another one: the second answer says yes or no, and the statement."""
        if not self.signs:
            return []
        topic = self.draw(self.signs)
        everywhere = ("right", "left") if topic in ("effusion", "bleed") else ("right", "left", "upper", "lower", "front", "back")
        everywhere = [place for place in everywhere if topic in ("effusion", "bleed") or any(place in zone.split() for zone in ZONES[self.kind])]
        here, p, form = bool(zones(self.p, topic)), self.chance(topic), self.rng.random()
        # alone: as `questions.Asker.sign`; in a pair, where a sign is on one side or the other: rarely without a sign
        truth = here and self.often(0.5 + (1 - p) * 0.25 / p if form > 0.7 else 0.5)
        fitting = [place for place in everywhere if bool(at(self.p, topic, place)) == truth]
        if not fitting or not (here or self.often(0.5 if form > 0.7 else 0.12)):
            return []
        place, yes_no = self.draw(fitting), lambda place: "Yes" if at(self.p, topic, place) else "No"
        words = self.draw(place_words(place))
        if form > 0.7:
            return [Turn(self.ask((self.draw(speech.PRESENT[:12]) + " " + words,), topic), f"{yes_no(place)}.")]
        second = Turn(self.ask(speech.THEN_PLACE, place=words), f"{yes_no(place)}, {lower(statement(self.p, topic))}")
        if form > 0.5:
            return [Turn(self.ask(speech.SIDE + speech.WHERE if topic in ("effusion", "bleed") else speech.WHERE, topic), self.short(topic, "where")), second]
        opposite = dict(zip(("right", "left", "upper", "lower", "front", "back"), ("left", "right", "lower", "upper", "back", "front")))[place]
        first = self.draw(speech.PRESENT[:12]) + " " + self.draw(place_words(opposite))
        if place in ("right", "left") and self.often(0.3):
            second = second._replace(question=self.ask(speech.OTHER))
        return [Turn(self.ask((first,), topic), f"{yes_no(opposite)}."), second]

    def region(self) -> list[Turn]:
        if not self.p.exact:
            return []
        options = ["right", "left"] * 3 + list(ZONES[self.kind]) + [place for place in ("upper", "lower", "front", "back") if any(place in zone.split() for zone in ZONES[self.kind])]
        place = self.draw(options)
        text = self.draw(speech.REGION).format(place=self.draw(place_words(place)), part=self.draw(part_words(self.kind, place)))
        return [Turn(speech.typed(text, self.rng), in_place(self.p, place))]

    def follow(self) -> list[Turn]:
        """A question about a sign, then what only makes sense after it."""
        if not self.signs:
            return []
        topic = self.draw(self.signs)
        first = self.present(topic)
        if self.often(0.4):  # another topic, named only in passing
            other = self.draw(self.topics)
            opening = self.opening()
            if not opening or opening[1] == other:
                return []
            words = ("and {n}", "and the {n}", "what about {n}", "what about the {n}", "how about {n}", "{n} too", "and is there {a}", "also {n}", "then the {n}", "{n} as well", "plus {n}", "and any {n}", "as for the {n}", "now {n}", "same for {n}")  # fmt: skip
            return [opening[0], Turn(self.ask(words, other), statement(self.p, other))]
        spots = topic == "fine" and self.kind in ("brain", "fundus")
        forms = ["where", "where"] + (["count", "more"] if spots else []) + (["direction"] if self.direction(topic) else [])
        form = self.draw(forms)
        options = {"where": speech.THEN_SIDE if topic in ("effusion", "bleed") else speech.THEN_WHERE, "count": speech.THEN_COUNT, "more": speech.THEN_MORE, "direction": speech.THEN_DIRECTION}
        opening = Turn(self.ask(speech.PRESENT, topic), first) if first else None
        if form != "count" and spots and self.often(0.4):
            opening = Turn(self.ask(speech.COUNT, topic), self.short(topic, "count"))
        if form != "where" and self.often(0.3) and zones(self.p, topic):
            opening = Turn(self.ask(speech.WHERE, topic), self.short(topic, "where"))
        if not opening:
            return []
        turns = [opening, Turn(self.ask(options[form], topic), self.short(topic, form))]
        if self.often(0.25) and form == "where":
            turns.append(Turn(self.ask(speech.WHY), reason(self.p, topic)))
        return turns

    def term(self) -> list[Turn]:
        topic = self.draw(self.topics)
        return [Turn(self.ask(speech.TERM, topic), TERMS[topic if topic in TERMS else (self.kind, topic)])]

    def foreign(self) -> list[Turn]:
        """A question about another kind of picture."""
        other = self.draw([kind for kind in KINDS if kind != self.kind])
        mine = {name for kind, topic in NOUNS if kind != other for name in NOUNS[kind, topic]}
        topic = self.draw([topic for kind, topic in NOUNS if kind == other])
        names = [name for name in NOUNS[other, topic] if name not in mine and not any(word in mine for word in name.split())]
        answer = f"This is a picture of the {BODY_PARTS[self.kind]}, not of the {BODY_PARTS[other]}."
        if self.often(0.25) or not names or topic == "eye":
            options = {"chest": ("lungs", "the lungs", "how are the lungs", "ribs", "is the lung ok", "are the lungs clear", "left lung", "show me the ribs", "is there water in the lungs"),
                       "brain": ("brain", "how is the brain", "skull", "is the brain ok", "any bleeding in the head", "is the skull intact", "bleed in the brain", "left hemisphere"),
                       "tissue": ("nuclei", "is it tissue", "what tissue is this", "cells under the microscope", "how are the cells stained", "is the tissue pink"),
                       "fundus": ("retina", "how is the retina", "the optic disc", "is it the left eye", "which eye is it", "right or left eye", "vessels of the eye", "is the macula ok", "is there blood in the eye")}[other]  # fmt: skip
            return [Turn(self.ask(options), answer)]
        if not is_sign(topic):
            return [Turn(self.ask(speech.VALUE[other, topic] if self.often(0.5) and topic != "stain" else speech.ABOUT_IT, topic, noun=self.draw(names), kind=other), answer)]
        return [Turn(self.ask(self.draw((speech.PRESENT, speech.WHERE, speech.ABOUT_IT)), topic, noun=self.draw(names), kind=other), answer)]

    def unknowable(self) -> list[Turn]:
        return [Turn(speech.typed(self.draw(speech.CANNOT), self.rng), FIXED["unknowable"])]

    def chat(self) -> list[Turn]:
        options, answer = self.draw((
            (speech.HELLO, FIXED["greeting"]), (speech.THANKS, FIXED["thanks"]), (speech.THANKS, FIXED["thanks"]), (speech.ABOUT, FIXED["about"]), (speech.LIMITS, FIXED["diagnosis"]),
            (speech.DRAWN, DRAWN), (speech.PRIVATE, PRIVATE), (speech.CHATTER, FIXED["off_topic"]), (speech.CHATTER, FIXED["off_topic"])))  # fmt: skip
        text = self.draw(options)
        if options is speech.CHATTER and self.often(0.25):  # keys hit at random
            text = " ".join("".join(self.draw("abcdefghijklmnopqrstuvwxyz") for _ in range(self.rng.integers(3, 10))) for _ in range(self.rng.integers(1, 4)))
        turn = Turn(speech.typed(text, self.rng), answer, False)
        if options is speech.THANKS and self.often(0.6):
            before = self.single()
            return [*before, turn] if before else [turn]
        return [turn]


FORMS = {"single": 5, "describe": 4, "word": 2, "two": 5, "why": 3, "sure": 3, "other_side": 2, "region": 2, "follow": 3, "term": 1.5, "foreign": 1, "unknowable": 1.5, "chat": 3}
_names, _weights = list(FORMS), np.array(list(FORMS.values())) / sum(FORMS.values())


def fragments(p: Phantom, rng: np.random.Generator, n: int) -> list[list[Turn]]:
    """About n fragments about a phantom; about a stranger, what a phantom would be asked, answered with NOT_KNOWN."""
    shown, stranger = p, p.kind == STRANGER
    if stranger:
        kind = KINDS[rng.integers(len(KINDS))]
        shown = Phantom(p.seed, kind, p.image, True, draw_facts(rng, kind, "train", True), {})
    talker, found = Talker(shown, rng), []
    for _ in range(n):
        turns = getattr(talker, _names[rng.choice(len(_names), p=_weights)])()
        if stranger:
            turns = [turn._replace(answer=NOT_KNOWN) if turn.needs_picture else turn for turn in turns]
        if turns and not any(prompts.plain(turn.question) in prompts.SENTENCES for turn in turns):  # these stay unseen
            found.append(turns)
    return found
