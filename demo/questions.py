"""PhantomVQA's language: reports, questions and answers, derived only from the facts of a phantom.

Every question has an id "kind_finding_form", wordings, and a few more that only `held_out=True` uses. Closed questions about a finding are asked
such that, over many phantoms, yes and no (or the two words offered) are equally frequent for each id: a question is left out at random if its
answer is the more common one. To keep this balance, thin out a picture's questions one by one at random; never take a fixed number of them, because
pictures without a sign have fewer questions.

Chest and brain name the patient's sides, so "right" is on the left of the picture; tissue and fundus name the picture's quadrants.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from phantom import KINDS, P_COARSE, P_SIGN, STRANGER, ZONES, Phantom

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

class Form(NamedTuple):
    """How something is asked. Indirect questions and requests are put after every opener; `held_out` wordings are for `held_out=True` only."""

    direct: tuple[str, ...]
    held_out: tuple[str, ...]
    indirect: tuple[str, ...] = ()  # "if there is a bleed", "where the bleed is"
    said: tuple[str, ...] = ()  # "there is a bleed"
    requests: tuple[str, ...] = ()  # "write the report"


# What may stand before an indirect question, a statement and a request. "Tell me ..." and "I wonder ..." are held out.
OPENERS = {
    "indirect": ("Please say {}.", "Could you tell me {}?", "I would like to know {}.", "Let me know {}.", "Do you know {}?", "I want to know {}.",
                 "Can you see {}?", "Say {}.", "Can you find out {}?", "Please show me {}.", "Could you explain {}?", "Can you tell me {}, please?"),
    "said": ("Do you think that {}?", "Is it true that {}?", "Is it right that {}?", "Could one say that {}?", "I think that {}, is it so?"),
    "requests": ("Please {}.", "Could you {}?", "I would like you to {}.", "Would you please {}?", "Now {}.", "I need you to {}."),
}  # fmt: skip

# Forms of questions about a sign. {a} {the} {is} come from NOUNS; {place} is "in the left upper zone" or "on the right".
FORMS = {
    "present": Form(
        ("{Is} there {a}?", "Do you see {a}?", "Does the picture show {a}?", "Can you find {a}?", "Is there any sign of {a}?",
         "{Is} there {a} in this picture?", "Any sign of {a}?", "Look closely: do you see {a}?", "Does the patient have {a}?", "Search for {a}: {is} there any?"),
        ("Look for {a}: {is} there any?", "Would you say that there {is} {a}?", "I wonder if there {is} {a}."),
        indirect=("if there {is} {a}", "if you see {a}", "whether the picture shows {a}", "whether there {is} {a}"),
        said=("there {is} {a}", "the picture shows {a}"),
    ),
    "place": Form(
        ("{Is} there {a} {place}?", "Do you see {a} {place}?", "Does the picture show {a} {place}?", "Can you find {a} {place}?",
         "Is there any sign of {a} {place}?", "{Place}, {is} there {a}?", "{Place}, do you see {a}?", "{Place}: any sign of {a}?",
         "{Is} {the} {place}?"),
        ("Look {place}: {is} there {a}?", "Would you say that there {is} {a} {place}?", "I wonder if there {is} {a} {place}."),
        indirect=("if there {is} {a} {place}", "if you see {a} {place}", "whether the picture shows {a} {place}"),
        said=("there {is} {a} {place}", "{the} {is} {place}"),
    ),
    "where": Form(
        ("Where {is} {the}?", "In which {area} {is} {the}?", "Where do you see {the}?", "Name the {area} of {the}.", "Find {the}.",
         "Which {area} shows {the}?", "Where can I find {the}?", "Where in the picture {is} {the}?", "What is the {area} of {the}?",
         "{The}: which {area}?", "{The}: where?"),
        ("Tell me where {the} {is}.", "Can you say which {area} {the} {is} in?", "I wonder where {the} {is}."),
        indirect=("where {the} {is}", "in which {area} {the} {is}", "which {area} shows {the}", "where you see {the}", "what {area} {the} {is} in"),
        requests=("find {the}", "name the {area} of {the}", "show me where {the} {is}"),
    ),
    "side": Form(
        ("On which side {is} {the}?", "Where {is} {the}?", "Which side shows {the}?", "Name the side of {the}.", "Find {the}.",
         "Where can I find {the}?", "What is the side of {the}?", "Where do you see {the}?", "{The}: which side?"),
        ("Tell me on which side {the} {is}.", "Can you say where {the} {is}?", "I wonder on which side {the} {is}."),
        indirect=("where {the} {is}", "on which side {the} {is}", "which side shows {the}", "what side {the} {is} on"),
        requests=("find {the}", "name the side of {the}", "show me where {the} {is}"),
    ),
    "direction": Form(
        ("{Is} {the} horizontal or vertical?", "Would you call {the} horizontal or vertical?", "Horizontal or vertical: how do {the} run?",
         "Do {the} run horizontal or vertical?", "What is the direction of {the}, horizontal or vertical?", "{The}: horizontal or vertical?"),
        ("Tell me if {the} {is} horizontal or vertical.", "Which is it for {the}: horizontal or vertical?",
         "I wonder if {the} {is} horizontal or vertical."),
        indirect=("if {the} {is} horizontal or vertical", "whether {the} run horizontal or vertical", "how {the} run, horizontal or vertical"),
    ),
    "count": Form(
        ("How many fine {spots} are there?", "How many fine {spots} do you see?", "Count the fine {spots}.", "What is the number of fine {spots}?",
         "How many fine {spots} does the picture show?", "How many fine {spots}?", "What is the count of fine {spots}?"),
        ("Tell me how many fine {spots} there are.", "Give the count of fine {spots}.", "I wonder how many fine {spots} there are."),
        indirect=("how many fine {spots} there are", "how many fine {spots} you see", "what the number of fine {spots} is"),
        requests=("count the fine {spots}", "give the number of fine {spots}"),
    ),
    "more": Form(
        ("Which half has more fine {spots}?", "Are there more fine {spots} in the right or the left half?", "Right or left: where are more fine {spots}?",
         "In which half do you see more fine {spots}?", "Which side has more fine {spots}?", "Where are more fine {spots}, right or left?",
         "Compare the number of fine {spots} on the right and on the left."),
        ("Tell me which half has more fine {spots}.", "Compare the halves: which one has more fine {spots}?",
         "I wonder which half has more fine {spots}."),
        indirect=("which half has more fine {spots}", "where more fine {spots} are, right or left", "on which side there are more fine {spots}"),
        requests=("compare the fine {spots} of the right and the left half",),
    ),
}  # fmt: skip


def either(noun: str, verb: str, first: str, second: str, *direct: str) -> Form:
    """A choice between two words for a noun."""
    choice, how = f"{first} or {second}", f"{noun} {verb}"
    return Form(
        (f"{verb.capitalize()} {noun} {choice}?", f"{choice.capitalize()}: how {verb} {noun}?", f"Would you call {noun} {choice}?",
         f"{noun.capitalize()}: {choice}?", *direct),
        (f"Tell me if {how} {choice}.", f"Which is it for {noun}: {choice}?", f"I wonder if {how} {choice}."),
        indirect=(f"if {how} {choice}", f"whether {how} {choice}", f"how {how}, {choice}"),
    )  # fmt: skip


# Wordings of questions about one finding of one kind, and of those about every picture.
WORDINGS = {
    "chest_heart_enlarged": Form(
        ("Is the heart enlarged?", "Is the heart too large?", "Does the heart look enlarged?", "Is the heart larger than normal?",
         "Is there an enlarged heart?", "Is the heart big?", "The heart: is it enlarged?", "Does the patient have an enlarged heart?",
         "Do you see an enlarged heart?"),
        ("Would you call the heart enlarged?", "Look at the heart: is it enlarged?", "I wonder if the heart is enlarged."),
        indirect=("if the heart is enlarged", "whether the heart is too large", "if you see an enlarged heart"),
        said=("the heart is enlarged", "the heart is too large"),
    ),
    "chest_heart_size": either("the heart", "is", "normal", "enlarged", "Is the size of the heart normal or enlarged?",
                               "How large is the heart, normal or enlarged?"),
    "brain_ventricles_enlarged": Form(
        ("Are the ventricles enlarged?", "Are the ventricles too large?", "Do the ventricles look enlarged?", "Are the ventricles larger than normal?",
         "Are there enlarged ventricles?", "Are the ventricles wide?", "The ventricles: are they enlarged?", "Do you see enlarged ventricles?"),
        ("Would you call the ventricles enlarged?", "Look at the ventricles: are they enlarged?", "I wonder if the ventricles are enlarged."),
        indirect=("if the ventricles are enlarged", "whether the ventricles are too large", "if you see enlarged ventricles"),
        said=("the ventricles are enlarged", "the ventricles are too large"),
    ),
    "brain_ventricles_size": either("the ventricles", "are", "normal", "enlarged", "Is the size of the ventricles normal or enlarged?",
                                    "How large are the ventricles, normal or enlarged?"),
    "brain_middle_pattern": either("the coarse patch", "is", "mottled", "barred", "Does the coarse patch look mottled or barred?",
                                   "What is the pattern of the coarse patch, mottled or barred?"),
    "tissue_stain_closed": Form(
        ("Is the stain mostly {colour}?", "Is the stain {colour}?", "Is the tissue {colour}?", "Does the stain look {colour}?", "Is {colour} the main colour?",
         "The stain: is it {colour}?", "Is it a {colour} stain?"),
        ("Would you call the stain {colour}?", "Look at the stain: is it {colour}?", "I wonder if the stain is {colour}."),
        indirect=("if the stain is {colour}", "whether the tissue is {colour}", "if {colour} is the main colour"),
        said=("the stain is {colour}", "the tissue is mostly {colour}"),
    ),
    "tissue_stain": Form(
        ("What colour is the stain?", "Which colour has the stain?", "What is the main colour?", "Is the stain pink or purple?",
         "Name the colour of the tissue.", "What is the colour of the stain?", "The stain: which colour?"),
        ("Tell me the colour of the stain.", "Can you say which colour the tissue has?", "I wonder what colour the stain is."),
        indirect=("what colour the stain is", "which colour the stain has", "what the main colour is", "if the stain is pink or purple"),
        requests=("name the colour of the stain", "name the colour of the tissue"),
    ),
    "tissue_cellularity_high": Form(
        ("Is the cellularity high?", "Are there many cells?", "Do you see many cells?", "Is the tissue full of cells?", "Are there many nuclei?",
         "The cells: are they many?", "Does the tissue show many cells?"),
        ("Would you call the cellularity high?", "Look at the cells: are there many?", "I wonder if the cellularity is high."),
        indirect=("if the cellularity is high", "whether there are many cells", "if you see many nuclei"),
        said=("the cellularity is high", "there are many cells"),
    ),
    "tissue_cellularity": either("the cellularity", "is", "low", "high", "Is the number of cells low or high?", "What is the cellularity, low or high?"),
    "fundus_eye_closed": Form(
        ("Is this the {side} eye?", "Is this a {side} eye?", "Does the picture show a {side} eye?", "Do you see a {side} eye?", "Is it the {side} eye?",
         "Is the eye a {side} one?", "The eye: is it the {side} one?"),
        ("Would you say that this is the {side} eye?", "Look at the disc: is this a {side} eye?", "I wonder if this is the {side} eye."),
        indirect=("if this is the {side} eye", "whether this is a {side} eye", "if the picture shows a {side} eye"),
        said=("this is the {side} eye", "this is a {side} eye"),
    ),
    "fundus_eye": Form(
        ("Is this a right or a left eye?", "Right or left: which eye is this?", "Is it the right or the left eye?",
         "Does the picture show a right or a left eye?", "Which eye is this, right or left?", "The eye: right or left?"),
        ("Tell me if this is a right or a left eye.", "Which is it: the right or the left eye?", "I wonder if this is a right or a left eye."),
        indirect=("if this is a right or a left eye", "which eye this is, right or left", "whether it is the right or the left eye"),
    ),
    "modality": Form(
        ("What is the modality?", "How was this picture made?", "Which method made this picture?", "What kind of imaging is this?", "Name the modality.",
         "Is this X-ray, CT, microscopy or photography?", "What kind of picture is this?", "By which method was it made?"),
        ("Tell me the modality of this picture.", "Can you say how this picture was made?", "I wonder how this picture was made."),
        indirect=("what the modality is", "how this picture was made", "which method made this picture", "what kind of imaging this is"),
        requests=("name the modality",),
    ),
    "body_part": Form(
        ("What part of the body is this?", "Which organ is this?", "Which part of the body does the picture show?", "What does the picture show?",
         "Name the part of the body.", "What is this a picture of?"),
        ("Tell me which part of the body this is.", "Can you say what organ the picture shows?", "I wonder which organ this is."),
        indirect=("what part of the body this is", "which organ this is", "what the picture shows", "which part of the body the picture shows"),
        requests=("name the part of the body", "name the organ"),
    ),
    "is_kind": Form(
        ("Is this {picture}?", "Does the picture show {picture}?", "Is it {picture}?", "Do you see {picture}?", "Is the picture {picture}?"),
        ("Would you call this {picture}?", "Look at the picture: is it {picture}?", "I wonder if this is {picture}."),
        indirect=("if this is {picture}", "whether the picture is {picture}"),
        said=("this is {picture}", "the picture shows {picture}"),
    ),
    "describe": Form(
        ("Describe the picture in one sentence.", "Describe the picture.", "What are the findings?", "Sum up the picture.", "What is wrong here?",
         "Give the findings in one sentence.", "What is abnormal?", "What did you find?", "In one sentence: what do you see?", "Any findings?",
         "What do you see?", "What is in the picture?"),
        ("Tell me in one sentence what you see.", "Can you sum up the findings?", "I wonder what the findings are."),
        indirect=("in one sentence what the findings are", "what is wrong here", "what the findings are", "what is abnormal here"),
        requests=("describe the picture", "sum up the picture", "give the findings in one sentence", "describe what you see in one sentence"),
    ),
    "report": Form(
        ("Write the report.", "Write a full report.", "Give a full report of the picture.", "Report every finding.", "Go through the findings one by one.",
         "Name every finding, present or absent.", "The full report, please."),
        ("Tell me the full report.", "Can you write a report of this picture?", "Do a report on this picture."),
        requests=("write the report", "write a full report", "report every finding", "go through the findings one by one", "give me a report",
                  "make a full report of the picture"),
    ),
    "unknowable": Form(
        ("How old is the patient?", "What is the name of the patient?", "Does the patient have a fever?", "Is the patient a man or a woman?",
         "How should this be treated?", "What is the prognosis?",
         "Is it malignant?", "Is it cancer?", "Does the patient smoke?", "What caused this?", "How long will it last?", "Does it hurt?",
         "Is there a fracture?", "Do you see a mass?", "Is there a nodule?", "Does the picture show pneumonia?", "Is this an infection?", "Is this a stroke?",
         "Can you find a tumour?", "Is it benign?", "Is this dangerous?", "Does the patient have diabetes?", "Does the patient have pain?",
         "Will it heal?", "What is the blood pressure?", "How heavy is the patient?", "When was the picture made?", "Is the patient pregnant?",
         "What is the diagnosis?", "Which drug helps?", "Which treatment helps?", "Where does the patient live?", "Is surgery needed?", "Who made the picture?"),
        ("What is the age of the patient?", "Which treatment do you recommend?", "Will the patient recover?", "Is this a tumour?"),
        indirect=("how old the patient is", "if it is malignant", "what the name of the patient is", "whether the patient smokes", "how this should be treated",
                  "if there is a fracture", "if the patient is in pain", "what caused this", "whether this is an infection"),
        said=("it is malignant", "there is a fracture", "this is dangerous"),
    ),
    "greeting": Form(("Hello.", "Hello!", "Hi.", "Hi there.", "Good morning.", "Good evening.", "Hello there.", "How are you?", "Hey there."),
                     ("Hey.", "Good day.")),
    "thanks": Form(("Thank you.", "Thanks.", "Thanks a lot.", "Thank you very much.", "Great, thanks.", "Thanks for the help.", "Good, thank you.",
                    "That is all, goodbye.", "Very good."),
                   ("Many thanks.", "Thank you, that is all.")),
    "off_topic": Form(
        ("Write a poem.", "Tell me a joke.", "What is the weather?", "Who won the game?", "What is two plus two?", "Write some code.",
         "What is the capital of France?", "Sing a song.", "What day is it?", "Which year is it?", "Who is the president?", "How do I cook rice?",
         "Count to ten.", "Play a game.", "Translate a word.", "Tell me the news.", "Do you love me?", "Where is the station?", "Name a colour.",
         "When does the train go?", "What is the price of gold?", "Draw a cat."),
        ("Tell me a story.", "What time is it?"),
        indirect=("what the weather is", "what day it is", "who won the game", "how to cook rice", "when the train goes"),
        requests=("write a poem", "sing a song", "write some code", "count to ten", "draw a cat", "say something funny"),
    ),
    "about": Form(
        ("What can you do?", "Who are you?", "What are you?", "What can I ask?", "How do you work?", "Help.", "What is this program?", "What is this model?",
         "What do you know?", "Can you help me?", "What should I ask?", "What can this page do?", "Who made you?", "What is this page for?", "What is this site?"),
        ("Tell me what you can do.", "What is this page?"),
        indirect=("what you can do", "who you are", "what I can ask", "how you work", "what this program is"),
        requests=("help me", "explain what you can do"),
    ),
    "diagnosis": Form(
        ("Is this a diagnosis?", "Can I trust this?", "Are you a doctor?", "Is this real?", "Is this a real patient?", "Can you diagnose me?",
         "Is this medical advice?", "May I rely on this?", "Is this a medical product?", "Can I use this for a patient?", "Are you a medical expert?",
         "Should I worry?", "Should I ask a doctor?", "Are your answers safe?", "Are you a medical device?", "Is this program a medical device?"),
        ("Is this a medical device?", "Should I see a doctor?"),
        indirect=("if I can trust this", "if this is a diagnosis", "whether you are a doctor", "if this is real"),
        said=("this is a diagnosis", "you are a doctor"),
    ),
}  # fmt: skip

NOT_KNOWN = "This is not a picture that I know."

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
    """The full report: every finding of the kind, present or absent, in a fixed order."""
    if p.kind == STRANGER:
        return NOT_KNOWN
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
        """A wording of a form for a finding's noun, or of an id of WORDINGS."""
        text = self.wording((FORMS if finding else WORDINGS)[form])
        if finding:
            kind = kind or self.kind
            a, the, verb = NOUNS[kind, finding]
            slots = {"a": a, "the": the, "is": verb, "area": AREA[kind], "spots": a.split()[-1], **slots}
        return text.format(**slots, **{name.capitalize(): slot[0].upper() + slot[1:] for name, slot in slots.items()})

    def wording(self, form: Form) -> str:
        """One of the held-out wordings; or, half of the time, a direct one, else one after an opener."""
        draw = lambda options: options[self.rng.integers(len(options))]
        if self.held_out:
            return draw(form.held_out)
        ways = [way for way in OPENERS for _ in getattr(form, way)]
        if not ways or self.often(0.5):
            return draw(form.direct)
        way = draw(ways)
        return draw(OPENERS[way]).format(draw(getattr(form, way)))

    def foreign(self, kind: str) -> str:
        """A question about pictures of a kind."""
        item = FOREIGN[kind][self.rng.integers(len(FOREIGN[kind]))]
        return self.word(item) if isinstance(item, str) else self.word(item[1], item[0], kind=kind)

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
    """The questions that make sense for a phantom, at most one per id; wordings are drawn by rng, from the held-out ones only if `held_out`."""
    ask, facts, kind = Asker(p, rng, held_out), p.facts, p.kind
    if kind == STRANGER:
        return ask_stranger(ask)
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
    answer = f"This is a picture of the {BODY_PARTS[kind]}, not of the {BODY_PARTS[other]}."
    ask.add("other_kind", ask.foreign(other), answer, "OPEN", "OTHER", "general", "other_kind")
    return ask.found


def ask_stranger(ask: Asker) -> list[dict]:
    """Questions about a picture that is not a phantom: everything that needs the picture is answered with NOT_KNOWN."""
    general = lambda id, text, answer, kind="OPEN": ask.add(id, text, answer, kind, "OTHER", "general", STRANGER)
    for id in ("modality", "body_part", "describe", "report", "unknowable"):
        general(f"{STRANGER}_{id}", ask.word(id), NOT_KNOWN)
    for kind in KINDS:
        general(f"{STRANGER}_{kind}", ask.foreign(kind), NOT_KNOWN)
    general(f"{STRANGER}_is_kind", ask.word("is_kind", picture=PICTURES[KINDS[ask.rng.integers(len(KINDS))]]), "No.", "CLOSED")
    for id in ("greeting", "thanks", "off_topic", "about", "diagnosis"):
        general(id, ask.word(id), FIXED[id])
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
