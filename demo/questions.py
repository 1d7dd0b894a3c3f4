"""PhantomVQA's language: reports, questions and answers, from the facts of a phantom and nothing else.

Every question has an id "kind_finding_form", a few wordings, and two more that only `held_out=True` uses. Closed questions about a finding are asked
such that, over many phantoms, yes and no (or the two words offered) are equally frequent for each id: a question is left out by chance where its
answer is the commoner one. To keep this balance, thin the questions of a picture out one by one by chance; never take a fixed number of them, because
pictures without a sign are asked less.

Chest and brain name the patient's sides, so "right" is on the left of the picture; tissue and fundus name the picture's quadrants.
"""

from __future__ import annotations

import numpy as np

from phantom import KINDS, P_COARSE, P_SIGN, ZONES, Phantom

TITLES = {"chest": "Chest film", "brain": "Brain CT", "tissue": "Stained tissue", "fundus": "Eye fundus"}
PICTURES = {"chest": "a chest film", "brain": "a brain CT", "tissue": "a stained tissue", "fundus": "an eye fundus"}
MODALITIES = {"chest": "X-ray.", "brain": "CT.", "tissue": "Microscopy.", "fundus": "Photography."}
BODY_PARTS = {"chest": "chest", "brain": "brain", "tissue": "tissue", "fundus": "eye"}
AREA = {"chest": "zone", "brain": "quadrant", "tissue": "quadrant", "fundus": "quadrant"}

# Nouns of the signs: with an indefinite article, with the definite one, the verb.
NOUNS = {
    ("chest", "effusion"): ("an effusion", "the effusion", "is"),
    ("chest", "middle"): ("septal lines", "the septal lines", "are"),
    ("chest", "fine"): ("fine lines", "the fine lines", "are"),
    ("brain", "bleed"): ("a bleed", "the bleed", "is"),
    ("brain", "middle"): ("a coarse patch", "the coarse patch", "is"),
    ("brain", "fine"): ("fine spots", "the fine spots", "are"),
    ("tissue", "middle"): ("bands", "the bands", "are"),
    ("tissue", "fine"): ("fine stripes", "the fine stripes", "are"),
    ("fundus", "haemorrhage"): ("a haemorrhage", "the haemorrhage", "is"),
    ("fundus", "middle"): ("mottling", "the mottling", "is"),
    ("fundus", "fine"): ("fine dots", "the fine dots", "are"),
}

# Wordings by form: those of every split, then the two held out. {a} {the} {is} come from NOUNS; {place} is "in the left upper zone" or "on the right".
FORMS = {
    "present": (
        ("{Is} there {a}?", "Do you see {a}?", "Does the picture show {a}?", "Can you find {a}?", "Is there any sign of {a}?",
         "{Is} there {a} in this picture?"),
        ("Look for {a}: {is} there any?", "Would you say that there {is} {a}?"),
    ),
    "place": (
        ("{Is} there {a} {place}?", "Do you see {a} {place}?", "Does the picture show {a} {place}?", "Can you find {a} {place}?",
         "Is there any sign of {a} {place}?"),
        ("Look {place}: {is} there {a}?", "Would you say that there {is} {a} {place}?"),
    ),
    "where": (
        ("Where {is} {the}?", "In which {area} {is} {the}?", "Where do you see {the}?", "Name the {area} of {the}.", "Find {the}.",
         "Which {area} shows {the}?"),
        ("Tell me where {the} {is}.", "Can you say which {area} {the} {is} in?"),
    ),
    "side": (
        ("On which side {is} {the}?", "Where {is} {the}?", "Which side shows {the}?", "Name the side of {the}.", "Find {the}."),
        ("Tell me on which side {the} {is}.", "Can you say where {the} {is}?"),
    ),
    "direction": (
        ("{Is} {the} horizontal or vertical?", "Would you call {the} horizontal or vertical?", "Horizontal or vertical: how do {the} run?",
         "Do {the} run horizontal or vertical?", "What is the direction of {the}, horizontal or vertical?"),
        ("Tell me if {the} {is} horizontal or vertical.", "Which is it for {the}: horizontal or vertical?"),
    ),
    "count": (
        ("How many fine {spots} are there?", "How many fine {spots} do you see?", "Count the fine {spots}.", "What is the number of fine {spots}?",
         "How many fine {spots} does the picture show?"),
        ("Tell me how many fine {spots} there are.", "Give the count of fine {spots}."),
    ),
    "more": (
        ("Which half has more fine {spots}?", "Are there more fine {spots} in the right or the left half?", "Right or left: where are more fine {spots}?",
         "In which half do you see more fine {spots}?", "Which side has more fine {spots}?"),
        ("Tell me which half has more fine {spots}.", "Compare the halves: which one has more fine {spots}?"),
    ),
}  # fmt: skip

# Wordings of questions about one finding of one kind: id -> (wordings, held-out wordings).
WORDINGS = {
    "chest_heart_enlarged": (
        ("Is the heart enlarged?", "Is the heart too large?", "Does the heart look enlarged?", "Is the heart larger than normal?",
         "Is there an enlarged heart?", "Is the heart big?"),
        ("Would you call the heart enlarged?", "Look at the heart: is it enlarged?"),
    ),
    "chest_heart_size": (
        ("Is the heart normal or enlarged?", "Is the size of the heart normal or enlarged?", "Normal or enlarged: how is the heart?",
         "Would you call the heart normal or enlarged?", "How large is the heart, normal or enlarged?"),
        ("Tell me if the heart is normal or enlarged.", "Which is it for the heart: normal or enlarged?"),
    ),
    "brain_ventricles_enlarged": (
        ("Are the ventricles enlarged?", "Are the ventricles too large?", "Do the ventricles look enlarged?", "Are the ventricles larger than normal?",
         "Are there enlarged ventricles?", "Are the ventricles wide?"),
        ("Would you call the ventricles enlarged?", "Look at the ventricles: are they enlarged?"),
    ),
    "brain_ventricles_size": (
        ("Are the ventricles normal or enlarged?", "Is the size of the ventricles normal or enlarged?", "Normal or enlarged: how are the ventricles?",
         "Would you call the ventricles normal or enlarged?", "How large are the ventricles, normal or enlarged?"),
        ("Tell me if the ventricles are normal or enlarged.", "Which is it for the ventricles: normal or enlarged?"),
    ),
    "brain_middle_pattern": (
        ("Is the coarse patch mottled or barred?", "Would you call the coarse patch mottled or barred?", "Mottled or barred: how is the coarse patch?",
         "Does the coarse patch look mottled or barred?", "What is the pattern of the coarse patch, mottled or barred?"),
        ("Tell me if the coarse patch is mottled or barred.", "Which is it for the coarse patch: mottled or barred?"),
    ),
    "tissue_stain_closed": (
        ("Is the stain mostly {colour}?", "Is the stain {colour}?", "Is the tissue {colour}?", "Does the stain look {colour}?", "Is {colour} the main colour?"),
        ("Would you call the stain {colour}?", "Look at the stain: is it {colour}?"),
    ),
    "tissue_stain": (
        ("What colour is the stain?", "Which colour has the stain?", "What is the main colour?", "Is the stain pink or purple?",
         "Name the colour of the tissue."),
        ("Tell me the colour of the stain.", "Can you say which colour the tissue has?"),
    ),
    "tissue_cellularity_high": (
        ("Is the cellularity high?", "Are there many cells?", "Do you see many cells?", "Is the tissue full of cells?", "Are there many nuclei?"),
        ("Would you call the cellularity high?", "Look at the cells: are there many?"),
    ),
    "tissue_cellularity": (
        ("Is the cellularity low or high?", "Low or high: how is the cellularity?", "Would you call the cellularity low or high?",
         "Is the number of cells low or high?", "What is the cellularity, low or high?"),
        ("Tell me if the cellularity is low or high.", "Which is it for the cellularity: low or high?"),
    ),
    "fundus_eye_closed": (
        ("Is this the {side} eye?", "Is this a {side} eye?", "Does the picture show a {side} eye?", "Do you see a {side} eye?", "Is it the {side} eye?"),
        ("Would you say that this is the {side} eye?", "Look at the disc: is this a {side} eye?"),
    ),
    "fundus_eye": (
        ("Is this a right or a left eye?", "Right or left: which eye is this?", "Is it the right or the left eye?",
         "Does the picture show a right or a left eye?", "Which eye is this, right or left?"),
        ("Tell me if this is a right or a left eye.", "Which is it: the right or the left eye?"),
    ),
    "modality": (
        ("What is the modality?", "How was this picture made?", "Which method made this picture?", "What kind of imaging is this?", "Name the modality.",
         "Is this X-ray, CT, microscopy or photography?"),
        ("Tell me the modality of this picture.", "Can you say how this picture was made?"),
    ),
    "body_part": (
        ("What part of the body is this?", "Which organ is this?", "Which part of the body does the picture show?", "What does the picture show?",
         "Name the part of the body.", "What do you see?"),
        ("Tell me which part of the body this is.", "Can you say what organ the picture shows?"),
    ),
    "is_kind": (
        ("Is this {picture}?", "Does the picture show {picture}?", "Is it {picture}?", "Do you see {picture}?", "Is the picture {picture}?"),
        ("Would you call this {picture}?", "Look at the picture: is it {picture}?"),
    ),
    "describe": (
        ("Describe the picture in one sentence.", "Describe the picture.", "What are the findings?", "Sum up the picture.", "What is wrong here?",
         "Give the findings in one sentence."),
        ("Tell me in one sentence what you see.", "Can you sum up the findings?"),
    ),
    "report": (
        ("Write the report.", "Write a full report.", "Give a full report of the picture.", "Report every finding.", "Go through the findings one by one.",
         "Name every finding, present or absent."),
        ("Tell me the full report.", "Can you write a report of this picture?"),
    ),
    "unknowable": (
        ("How old is the patient?", "What is the name of the patient?", "Does the patient have a fever?", "Is the patient a man or a woman?",
         "How should this be treated?", "What is the prognosis?",
         "Is it malignant?", "Is it cancer?", "Does the patient smoke?", "What caused this?", "How long will it last?", "Does it hurt?"),
        ("What is the age of the patient?", "Which treatment do you recommend?", "Will the patient recover?", "Is this a tumour?"),
    ),
    "greeting": (("Hello.", "Hello!", "Hi.", "Hi there.", "Good morning.", "Good evening."), ("Hey.", "Good day.")),
    "thanks": (("Thank you.", "Thanks.", "Thanks a lot.", "Thank you very much.", "Great, thanks."), ("Many thanks.", "Thank you, that is all.")),
    "off_topic": (
        ("Write a poem.", "Tell me a joke.", "What is the weather?", "Who won the game?", "What is two plus two?", "Write some code.",
         "What is the capital of France?", "Sing a song."),
        ("Tell me a story.", "What time is it?"),
    ),
    "about": (
        ("What can you do?", "Who are you?", "What are you?", "What can I ask?", "How do you work?", "Help."),
        ("Tell me what you can do.", "What is this page?"),
    ),
    "diagnosis": (
        ("Is this a diagnosis?", "Can I trust this?", "Are you a doctor?", "Is this real?", "Is this a real patient?", "Can you diagnose me?"),
        ("Is this a medical device?", "Should I see a doctor?"),
    ),
}  # fmt: skip

FIXED = {
    "unknowable": "The picture cannot tell.",
    "greeting": "Hello. Ask me about the picture.",
    "thanks": "You are welcome.",
    "off_topic": "I can only answer questions about the picture.",
    "about": "I answer questions about drawn pictures of the chest, the brain, tissue and the eye.",
    "diagnosis": "No. This is a demo on drawn phantoms, not a medical device.",
}

# What may be asked about a picture of another kind: (kind, id or noun and form).
FOREIGN = {
    "chest": ("chest_heart_enlarged", "chest_heart_size", ("effusion", "present"), ("effusion", "side"), ("fine", "present"), ("middle", "where")),
    "brain": ("brain_ventricles_enlarged", "brain_ventricles_size", ("bleed", "present"), ("bleed", "side"), ("fine", "present"), ("middle", "where")),
    "tissue": ("tissue_cellularity_high", "tissue_cellularity", "tissue_stain", ("middle", "present"), ("fine", "present"), ("fine", "where")),
    "fundus": ("fundus_eye", ("haemorrhage", "present"), ("haemorrhage", "where"), ("middle", "present"), ("fine", "present"), ("middle", "where")),
}


def places(signs: list[dict], kind: str) -> list[str]:
    """Zones of signs, in the order of ZONES."""
    return [zone for zone in ZONES[kind] if any(sign["zone"] == zone for sign in signs)]


def joined(words: list[str]) -> str:
    """Words as a list in a sentence."""
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def pattern_word(kind: str, pattern: str) -> str:
    """The word for a texture's pattern: "mottled" or "barred" for patches, else its direction."""
    if kind == "brain":
        return "mottled" if pattern == "checker" else f"barred {pattern}"
    return pattern


def caption(p: Phantom) -> str:
    """The full report: every finding of the kind, present or absent, in one fixed order."""
    facts, area = p.facts, AREA[p.kind]
    enlarged = lambda name: "enlarged" if facts[name] else "normal"

    def texture(name: str) -> str:
        if not facts[name]:
            return "none"
        zones = f"{joined(places(facts[name], p.kind))} {area}"
        if name == "fine" and p.kind in ("brain", "fundus"):
            return f"{len(facts[name])}, {zones}"
        return zones if p.kind == "fundus" else f"{pattern_word(p.kind, facts[name][0]['pattern'])}, {zones}"

    if p.kind == "chest":
        parts = [("Heart", enlarged("heart_enlarged")), ("Effusion", facts["effusion"] or "none")]
    elif p.kind == "brain":
        parts = [("Ventricles", enlarged("ventricles_enlarged")), ("Bleed", facts["bleed"] or "none")]
    elif p.kind == "tissue":
        parts = [("Stain", facts["stain"]), ("Cellularity", facts["cellularity"])]
    else:
        haemorrhage = f"{facts['haemorrhage']} {area}" if facts["haemorrhage"] else "none"
        parts = [("Eye", facts["eye"]), ("Haemorrhage", haemorrhage)]
    parts += [(NOUNS[p.kind, name][0].removeprefix("a ").capitalize(), texture(name)) for name in ("middle", "fine")]
    return f"{TITLES[p.kind]}. " + " ".join(f"{name}: {value}." for name, value in parts)


def description(p: Phantom) -> str:
    """One sentence that names what is present."""
    facts, kind, area = p.facts, p.kind, AREA[p.kind]
    found = []
    if facts.get("heart_enlarged"):
        found.append("an enlarged heart")
    if facts.get("effusion"):
        found.append(f"an effusion on the {facts['effusion']}")
    if facts.get("ventricles_enlarged"):
        found.append("enlarged ventricles")
    if facts.get("bleed"):
        found.append(f"a bleed on the {facts['bleed']}")
    if kind == "tissue":
        found.append(f"{facts['cellularity']} cellularity")
    if facts.get("haemorrhage"):
        found.append(f"a haemorrhage in the {facts['haemorrhage']} {area}")
    for name in ("middle", "fine"):
        if facts[name]:
            found.append(f"{NOUNS[kind, name][0]} in the {joined(places(facts[name], kind))} {area}")
    title = {"tissue": f"A {facts.get('stain')} tissue", "fundus": f"A {facts.get('eye')} eye fundus"}.get(kind, "A " + PICTURES[kind].split(" ", 1)[1])
    return f"{title} with {joined(found)}." if found else f"{title} without findings."


class Asker:
    """Collects the questions of one phantom; `rng` draws wordings and leaves questions out."""

    def __init__(self, p: Phantom, rng: np.random.Generator, held_out: bool):
        self.kind, self.rng, self.held_out = p.kind, rng, held_out
        self.found: list[dict] = []

    def word(self, form: str, finding: str | None = None, kind: str | None = None, **slots: str) -> str:
        """A wording of a form about a finding's noun, or of an id of WORDINGS."""
        wordings = (FORMS if finding else WORDINGS)[form][self.held_out]
        text = wordings[self.rng.integers(len(wordings))]
        if finding:
            kind = kind or self.kind
            a, the, verb = NOUNS[kind, finding]
            slots = {"a": a, "the": the, "is": verb, "Is": verb.capitalize(), "area": AREA[kind], "spots": a.split()[-1], **slots}
        return text.format(**slots)

    def add(self, id: str, question: str, answer: str, answer_type: str, question_type: str, scale: str, finding: str) -> None:
        """Ask."""
        self.found.append(dict(id=id, question=question, answer=answer, answer_type=answer_type, question_type=question_type, scale=scale, finding=finding))

    def often(self, probability: float) -> bool:
        """True with a probability."""
        return bool(self.rng.random() < probability)

    def balanced(self, truth: bool, p: float) -> bool:
        """Whether to ask a question whose answer is `truth`, true with probability p, so that both answers are equally frequent."""
        return self.often(min(1, (1 - p) / p) if truth else min(1, p / (1 - p)))

    def sign(self, scale: str, finding: str, here: list[str], everywhere: tuple[str, ...], p: float, preposition: str) -> None:
        """Present (closed), place (closed) and where (open), for a sign that is present with probability p, in the places `here` of `everywhere`."""
        kind, present = self.kind, bool(here)
        _, _, verb = NOUNS[kind, finding]
        area = "" if preposition == "on" else f" {AREA[kind]}"
        where = lambda place: f"{preposition} the {place}{area}"
        id = f"{kind}_{finding}"
        yes_no = lambda truth: "Yes." if truth else "No."
        if self.balanced(present, p):
            self.add(f"{id}_present", self.word("present", finding), yes_no(present), "CLOSED", "PRES", scale, finding)

        # half of the negatives come from pictures that have the sign elsewhere
        truth = present and self.often(0.5 + (1 - p) * 0.25 / p)
        if present or self.often(0.5):
            choices = [place for place in everywhere if (place in here) == truth]
            place = choices[self.rng.integers(len(choices))]
            self.add(f"{id}_place", self.word("place", finding, place=where(place)), yes_no(truth), "CLOSED", "PRES", scale, finding)

        # "none" is as frequent as each place
        none = f"There {verb} none."
        if present or self.often(p / len(everywhere) / (1 - p)):
            answer = where(joined(here)).capitalize() + "." if present else none
            self.add(f"{id}_where", self.word("side" if preposition == "on" else "where", finding), answer, "OPEN", "POS", scale, finding)

    def spots(self, here: list[str], right: str, left: str) -> None:
        """Count (0 to 3, equally frequent) and comparison of the halves (three answers, equally frequent)."""
        kind, n = self.kind, len(here)
        if n or self.often(P_SIGN / 3 / (1 - P_SIGN)):
            self.add(f"{kind}_fine_count", self.word("count", "fine"), f"{n}.", "OPEN", "COUNT", "fine", "fine")
        n_right, n_left = sum(right in zone for zone in here), sum(left in zone for zone in here)
        # unequal: one spot, three spots, and a third of the pairs; equal: the other pairs, and some pictures without spots
        unequal, pairs = P_SIGN / 3 * (2 + 1 / 3), P_SIGN / 3 * 2 / 3
        if n or self.often((unequal / 2 - pairs) / (1 - P_SIGN)):
            answer = "They are equal." if n_right == n_left else "The right." if n_right > n_left else "The left."
            self.add(f"{kind}_fine_more", self.word("more", "fine"), answer, "OPEN", "COUNT", "fine", "fine")


def questions(p: Phantom, rng: np.random.Generator, held_out: bool = False) -> list[dict]:
    """The questions that make sense for a phantom, at most one per id; wordings drawn by rng, from the held-out ones only if `held_out`."""
    ask, facts, kind = Asker(p, rng, held_out), p.facts, p.kind
    yes_no = lambda truth: "Yes." if truth else "No."
    sides = ("right", "left")
    draw = lambda options: options[rng.integers(len(options))]

    def coarse(id: str, answer: str, answer_type: str, question_type: str, finding: str, **slots: str) -> None:
        ask.add(id, ask.word(id, **slots), answer, answer_type, question_type, "coarse", finding)

    if kind in ("chest", "brain"):
        organ, finding = ("heart", "effusion") if kind == "chest" else ("ventricles", "bleed")
        large = facts[f"{organ}_enlarged"]
        coarse(f"{kind}_{organ}_enlarged", yes_no(large), "CLOSED", "SIZE", f"{organ}_enlarged")
        coarse(f"{kind}_{organ}_size", "Enlarged." if large else "Normal.", "CLOSED", "SIZE", f"{organ}_enlarged")
        ask.sign("coarse", finding, [facts[finding]] if facts[finding] else [], sides, P_COARSE, "on")
    elif kind == "tissue":
        colour = draw(("pink", "purple"))
        coarse("tissue_stain_closed", yes_no(colour == facts["stain"]), "CLOSED", "COLOR", "stain", colour=colour)
        coarse("tissue_stain", facts["stain"].capitalize() + ".", "OPEN", "COLOR", "stain")
        coarse("tissue_cellularity_high", yes_no(facts["cellularity"] == "high"), "CLOSED", "ATTRIB", "cellularity")
        coarse("tissue_cellularity", facts["cellularity"].capitalize() + ".", "CLOSED", "ATTRIB", "cellularity")
    else:
        side = draw(sides)
        coarse("fundus_eye_closed", yes_no(side == facts["eye"]), "CLOSED", "POS", "eye", side=side)
        coarse("fundus_eye", facts["eye"].capitalize() + ".", "CLOSED", "POS", "eye")
        ask.sign("coarse", "haemorrhage", [facts["haemorrhage"]] if facts["haemorrhage"] else [], ZONES[kind], P_COARSE, "in")

    if p.exact:
        for name in ("middle", "fine"):
            here = places(facts[name], kind)
            ask.sign(name, name, here, ZONES[kind], P_SIGN, "in")
            spots = name == "fine" and kind in ("brain", "fundus")
            if spots:
                ask.spots(here, *sides)
            elif here and kind != "fundus":
                pattern = facts[name][0]["pattern"]
                if kind == "brain":
                    word = "Mottled." if pattern == "checker" else "Barred."
                    ask.add("brain_middle_pattern", ask.word("brain_middle_pattern"), word, "CLOSED", "ATTRIB", name, name)
                if pattern != "checker":
                    ask.add(f"{kind}_{name}_direction", ask.word("direction", name), pattern.capitalize() + ".", "CLOSED", "ATTRIB", name, name)

    def general(id: str, answer: str, question_type: str = "OTHER", answer_type: str = "OPEN", **slots: str) -> None:
        ask.add(id, ask.word(id, **slots), answer, answer_type, question_type, "general", id)

    general("modality", MODALITIES[kind], "MODALITY")
    general("body_part", f"The {BODY_PARTS[kind]}.", "ORGAN")
    other = draw([name for name in KINDS if name != kind])
    asked = draw((kind, other))
    general("is_kind", yes_no(asked == kind), "MODALITY", "CLOSED", picture=PICTURES[asked])
    if p.exact:  # a report of an enlarged file would deny signs that it cannot show
        general("describe", description(p))
        general("report", caption(p))
    for id, answer in FIXED.items():
        general(id, answer)
    item = draw(FOREIGN[other])
    text = ask.word(item) if isinstance(item, str) else ask.word(item[1], item[0], kind=other)
    answer = f"This is a picture of the {BODY_PARTS[kind]}, not of the {BODY_PARTS[other]}."
    ask.add("other_kind", text, answer, "OPEN", "OTHER", "general", "other_kind")
    return ask.found


def suggested(p: Phantom) -> list[str]:
    """Questions that fit this picture, for the page."""
    direction = {"chest": "lines", "tissue": "stripes"}.get(p.kind)
    if not direction:
        fine = f"How many {NOUNS[p.kind, 'fine'][0]} are there?"
    else:
        fine = f"Are the fine {direction} horizontal or vertical?" if p.facts["fine"] else f"Are there fine {direction}?"
    _, the, verb = NOUNS[p.kind, "middle"]
    coarse = {
        "chest": "Is the heart enlarged?",
        "brain": "On which side is the bleed?",
        "tissue": "What colour is the stain?",
        "fundus": "Is this a right or a left eye?",
    }[p.kind]
    return [coarse, f"Where {verb} {the}?", fine, "Write the report."] if p.exact else [coarse, "What is the modality?", "What part of the body is this?"]
