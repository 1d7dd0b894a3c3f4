"""What a model that talks says about a phantom: the questions of `questions.py` and more, answered in whole sentences that follow from its facts alone.

Each answer has several wordings. Closed questions still begin with yes or no, and the first sentence holds what was asked for, so that `understood` can score
it like the small model's answers. What the drawing cannot show is said to be unknown, and nothing is certain about a real picture.
"""

from __future__ import annotations

import re

import numpy as np

from phantom import STRANGER, ZONES, Phantom
from questions import AREA, BODY_PARTS, NOUNS, PICTURES, joined, places, questions

COARSE = {"chest": ("heart", "effusion"), "brain": ("ventricles", "bleed"), "tissue": ("stain", "cellularity"), "fundus": ("eye", "haemorrhage")}
MODALITIES = {"chest": "X-ray", "brain": "CT", "tissue": "microscopy", "fundus": "photography"}
NUMBERS = ("no", "one", "two", "three")

# What is seen of a sign: (if present or enlarged, if not).
SEEN = {
    "heart": ("it is wider than half of the chest", "it is narrower than half of the chest"),
    "effusion": ("the base of the {where} lung is white", "both lungs are dark down to the base"),
    "ventricles": ("the dark spaces in the middle of the brain are wide", "the dark spaces in the middle of the brain are narrow"),
    "bleed": ("there is a bright spot in the {where} half of the brain", "there is no bright spot in the brain"),
    "haemorrhage": ("there is a dark red blot in the {where} quadrant", "there is no dark red blot on the back of the eye"),
    "middle": ("a coarse pattern fills a patch in the {where} {area}", "no patch has such a coarse pattern"),
    "fine": ("a very fine pattern fills a patch in the {where} {area}", "no patch has such a fine pattern"),
}

DESCRIBE = {  # by the number of sentences wanted
    "short": (
        "What do you see here?", "What is this?", "Describe it in a few words.", "A short summary, please.", "What is special about this picture?",
        "Is anything abnormal here?", "What catches your eye?", "Give me the main findings.", "So what is it?",
    ),
    "medium": (
        "Describe what you see.", "What does this image show?", "Please describe the image.", "Can you describe this for me?", "What can be seen?",
        "Walk me through the picture.", "Say something about this picture.", "How would you describe it?",
    ),
    "long": (
        "Describe the picture in detail.", "Give a detailed description.", "Go through everything that you see, one by one.",
        "Report all that is there and all that is not.", "Please describe the image as fully as you can.", "I would like a long description.",
        "Be thorough: what is in the picture?",
    ),
}  # fmt: skip
WHY = (
    "Why is that?", "Why do you say that?", "How do you see that?", "What do you base that on?", "Can you explain that?", "What is the reason?", "And why?",
    "What in the picture shows that?",
)  # fmt: skip
SURE = (
    "Is that so?", "Is that certain?", "Can I be sure of that?", "Please check again.", "Look again, is that right?", "How sure are you?",
    "I am not convinced.",
)  # fmt: skip
REAL = (
    "I have a real X-ray, can you read it?", "Can you look at my own scan?", "Would you be right about a real patient?", "Can you read real pictures too?",
    "What if this were a real picture?", "Is this picture real?", "Have you ever seen a real chest film?", "Could you help my doctor?",
    "Were you trained on patients?", "Does this also work for hospital images?", "What have you learned from?", "How much of this can I believe?",
)  # fmt: skip
TERMS = {
    ("an effusion", "effusion", "a pleural effusion"): (
        "An effusion is fluid that collects in the space around a lung. On a chest film it makes the base of the lung look white.",
        "It is fluid between the lung and the chest wall. In a chest film one sees it as a white area at the base of the lung.",
    ),
    ("an enlarged heart", "cardiomegaly", "enlarged heart"): (
        "An enlarged heart is wider than half of the chest on a chest film. It can have many causes, and a film alone does not tell which.",
        "It means that the heart is larger than normal. On a chest film it then takes up more than half of the width of the chest.",
    ),
    ("septal lines", "septal line"): (
        "Septal lines are short lines in a lung. They show that the walls between its small parts are thickened, often by fluid.",
        "They are thin lines on a chest film where the walls between the small parts of the lung have become thick.",
    ),
    ("a chest film", "chest film", "a chest X-ray"): (
        "A chest film is an X-ray picture of the chest. Air looks dark in it, and bone and fluid look white.",
        "It is a picture of the chest made with X-rays: the lungs are dark, and the heart and the bones are white.",
    ),
    ("a bleed", "bleeding in the brain"): (
        "A bleed is blood that has left its vessel. On a CT of the brain, fresh blood looks bright.",
        "It means that blood has left a vessel. In a CT picture of the brain it is a bright spot.",
    ),
    ("ventricles", "the ventricles", "a ventricle"): (
        "The ventricles are spaces filled with fluid in the middle of the brain. They look dark on CT.",
        "They are the fluid-filled spaces inside the brain. On a CT picture they are dark.",
    ),
    ("a CT", "CT", "a CT slice", "computed tomography"): (
        "CT, computed tomography, makes pictures of slices through the body with X-rays. Bone is bright, and fluid is dark.",
        "A CT is made with X-rays from many directions, from which a computer draws a slice of the body.",
    ),
    ("a coarse patch", "coarse patch"): (
        "Here, a coarse patch is an area of the drawn brain with a coarse pattern. It is mottled or barred. It is a sign made up for these drawings.",
    ),
    ("fine spots", "a fine spot"): (
        "Fine spots are small areas with a very fine pattern in the drawn brain. They can only be seen at the full size of the picture.",
    ),
    ("cellularity", "high cellularity", "low cellularity"): (
        "Cellularity says how many cells a tissue has. If it is high, the dark nuclei lie close together.",
        "It means how densely cells are packed. With low cellularity, the nuclei are far apart.",
    ),
    ("a stain", "the stain", "staining"): (
        "A stain is a dye that makes tissue visible under the microscope. It colours different parts of the cells differently.",
        "It is the colour that is put on a thin slice of tissue, so that its cells can be seen under a microscope.",
    ),
    ("a nucleus", "nuclei", "a cell nucleus"): (
        "The nucleus is the part of a cell that holds its genes. In a stained tissue it is a dark spot.",
        "Nuclei are the dark, round parts in the middle of cells. They hold the genes.",
    ),
    ("bands", "fine stripes", "stripes"): (
        "Bands and fine stripes are patterns in the drawn tissue: bands are coarse, and fine stripes are very thin. They are made up for these drawings.",
    ),
    ("the fundus", "an eye fundus", "fundus"): (
        "The fundus is the back of the eye, seen through the pupil. It shows the retina, its vessels and the optic disc.",
        "It is the back of the eye. In a picture of it one sees the retina, vessels and a bright disc.",
    ),
    ("the optic disc", "the disc", "optic disc"): (
        "The optic disc is where the nerve leaves the eye. It is a bright, round spot in a picture of the fundus.",
        "It is the bright spot at the back of the eye where the vessels and the nerve come together.",
    ),
    ("a haemorrhage", "haemorrhage", "a hemorrhage"): (
        "A haemorrhage is bleeding. At the back of the eye it is a dark red blot.",
        "It means that blood has left a vessel. In a picture of the back of the eye one sees a dark red blot.",
    ),
    ("mottling", "fine dots"): (
        "Mottling is a coarse pattern and fine dots are a very fine one, both at the back of the drawn eye. They are made up for these drawings.",
    ),
    ("a phantom", "phantoms", "a drawn phantom"): (
        "A phantom is a picture that a program drew and whose content is known exactly. I have learned from such drawings only.",
        "Here, a phantom is a drawn picture that looks a little like a medical one. It shows no patient.",
    ),
    ("a quadrant", "quadrants", "a zone"): (
        "A quadrant is one of four parts of a picture: upper or lower, and left or right. A zone is the same for the lungs.",
    ),
    ("the patient's right", "left and right here"): (
        "In the chest and the brain, right means the patient's right, which is on the left of the picture. In tissue and eye, it means the picture's right.",
    ),
}  # fmt: skip
TERM_FORMS = ("What is {}?", "What does {} mean?", "Explain {}.", "Can you explain what {} means?", "Tell me about {}.", "I do not know what {} is.", "And what is {}?")
HONEST = (
    "I have only seen pictures that a program drew. About a real picture I could not be sure of anything.",
    "No real picture was in my training, only drawn ones. Please ask a doctor about real ones.",
    "I know drawn pictures only, so my answers mean nothing for a real patient.",
)
SAID = {
    "unknowable": (
        "The picture cannot tell.", "The picture cannot tell. I only see what is drawn.", "That cannot be seen in this picture.",
        "I cannot tell that from the picture.", "The picture does not show that, so I cannot say.",
    ),
    "greeting": (
        "Hello! Ask me about the picture.", "Hello. What would you like to know about the picture?", "Hi! I can tell you what I see in the picture.",
    ),
    "thanks": (
        "You are welcome.", "You are welcome! Ask me anything else about the picture.", "Glad to help.",
    ),
    "about": (
        "I am a small demo model. I answer questions about drawn pictures of the chest, the brain, tissue and the eye.",
        "I talk about drawn pictures: chest films, CT slices of the brain, stained tissue and the back of the eye. You can ask what I see, where it is, and why.",
        "I am a small language model that has learned to look at drawn medical pictures. I have never seen a real one.",
    ),
    "stranger": (
        "This is not a picture that I know.", "This is not a picture that I know. I have only seen drawn chests, brains, tissues and eyes.",
        "I do not know this kind of picture, so I cannot say anything about it.",
        "I cannot tell. This does not look like the drawn pictures that I have learned from.",
    ),
    "nothing": (
        "I see no picture. Open one, then ask me about it.", "There is no picture yet. Please open one.", "I cannot see a picture. Open one, then ask again.",
    ),
    "diagnosis": tuple(f"No. {text}" for text in ("This is a demo on drawn phantoms, not a medical device.", *HONEST)),
}  # fmt: skip


def draw(rng, options):
    return options[rng.integers(len(options))]


def capital(text: str) -> str:
    return text[0].upper() + text[1:]


class Speaker:
    """Sentences about one phantom."""

    def __init__(self, p: Phantom, rng: np.random.Generator):
        self.p, self.rng, self.kind, self.facts = p, rng, p.kind, p.facts
        # Enlarged files show no pattern, and none may be denied.
        self.topics = () if p.kind == STRANGER else COARSE[p.kind] + (("middle", "fine") if p.exact else ())

    def say(self, *options: str) -> str:
        return draw(self.rng, options)

    def where(self, topic: str) -> list[str]:
        """Places of a sign; none if it is absent."""
        if topic in ("middle", "fine"):
            return places(self.facts[topic], self.kind)
        return [self.facts[topic]] if self.facts.get(topic) else []

    def at(self, topic: str) -> str:
        """ "on the right", "in the left upper zone"."""
        where = joined(self.where(topic))
        return f"on the {where}" if topic in ("effusion", "bleed") else f"in the {where} {AREA[self.kind]}"

    def pattern(self, topic: str) -> str:
        """Direction of a pattern, or empty."""
        found = {sign["pattern"] for sign in self.facts.get(topic) or ()} if topic in ("middle", "fine") else set()
        word = next(iter(found), "")
        if self.kind == "brain" and topic == "middle" and word:
            return "mottled" if word == "checker" else f"barred {word}"
        return "" if word == "checker" else word

    def state(self, topic: str) -> str:
        """What is true of a topic, as a clause."""
        facts = self.facts
        if topic in ("heart", "ventricles"):
            is_ = "is" if topic == "heart" else "are"
            return f"the {topic} {is_} {self.say('enlarged', 'too large') if facts[f'{topic}_enlarged'] else self.say('normal', 'of normal size', 'not enlarged')}"
        if topic == "stain":
            return self.say(f"the stain is {facts['stain']}", f"the tissue is stained {facts['stain']}")
        if topic == "cellularity":
            return self.say(f"the cellularity is {facts['cellularity']}", "there are many cells" if facts["cellularity"] == "high" else "there are few cells")
        if topic == "eye":
            return self.say(f"this is a {facts['eye']} eye", f"it is the {facts['eye']} eye")
        a, the, is_ = NOUNS[self.kind, topic]
        if not self.where(topic):
            return self.say(f"there {is_} no {a.split(' ', 1)[1] if a.split()[0] in ('a', 'an') else a}", f"I see no {a.removeprefix('an ').removeprefix('a ')}")
        pattern = self.pattern(topic)
        if self.kind in ("brain", "fundus") and topic == "fine":
            n = len(facts["fine"])
            spot = a.split()[-1] if n > 1 else a.split()[-1][:-1]
            return f"there {'are' if n > 1 else 'is'} {NUMBERS[n]} fine {spot} {self.at(topic)}"
        if pattern and self.rng.random() < 0.7:
            first = pattern.split()[0]
            if topic == "middle" and self.kind == "brain":
                return f"there is a {pattern} coarse patch {self.at(topic)}" if first == "mottled" else f"there is a coarse patch {self.at(topic)}, {pattern}"
            return f"there {is_} {pattern} {a} {self.at(topic)}"
        return self.say(f"there {is_} {a} {self.at(topic)}", f"{the} {is_} {self.at(topic)}", f"I see {a} {self.at(topic)}")

    def reason(self, topic: str) -> str:
        """What is seen of a topic, as a clause."""
        facts = self.facts
        if topic == "stain":
            return f"most of the tissue is {facts['stain']}"
        if topic == "cellularity":
            return "the dark nuclei lie " + ("close together" if facts["cellularity"] == "high" else "far apart")
        if topic == "eye":
            return f"the disc is on the {facts['eye']} of the picture"
        large = facts.get(f"{topic}_enlarged")
        present = large if large is not None else bool(self.where(topic))
        return SEEN[topic][0 if present else 1].format(where=joined(self.where(topic) or ["none"]), area=AREA[self.kind])

    def is_finding(self, topic: str) -> bool:
        """Whether a describer must not miss it."""
        if topic in ("heart", "ventricles"):
            return self.facts[f"{topic}_enlarged"]
        return topic in ("stain", "cellularity", "eye") or bool(self.where(topic))

    def title(self) -> str:
        picture = PICTURES[self.kind]
        return self.say(f"This is {picture}", f"The picture shows {picture}", f"This is a drawn {picture.split(' ', 1)[1]}", f"I see {picture}")

    def description(self, length: str) -> str:
        """Short: one sentence with the findings; medium: findings in sentences; long: every topic with what is absent and some reasons."""
        rng = self.rng
        if self.kind == STRANGER:
            return self.say(*SAID["stranger"])
        if length == "long":
            parts = [f"{self.title()}."]
            for topic in self.topics:
                text = capital(self.state(topic))
                parts.append(f"{text}: {self.reason(topic)}." if rng.random() < 0.3 else f"{text}.")
            return " ".join(parts)
        found = [self.state(topic) for topic in self.topics if self.is_finding(topic)]
        nothing = self.say("nothing is abnormal", "there are no findings", "I see nothing abnormal")
        if length == "short":
            return f"{self.title()}: {joined(found) if found else nothing}."
        parts = [f"{self.title()}.", *(capital(f"{text}.") for text in found or [nothing])]
        absent = [topic for topic in self.topics if not self.is_finding(topic)]
        if absent and rng.random() < 0.4:
            parts.append(capital(f"{self.state(draw(rng, absent))}."))
        return " ".join(parts)

    def topic(self, id: str) -> str | None:
        """The topic that a question's id is about."""
        parts = id.split("_")
        return parts[1] if parts[0] == self.kind and len(parts) > 1 and parts[1] in self.topics else None

    def answer(self, one: dict) -> str:
        """A question of `questions.py`, answered in sentences: the first one holds what was asked for."""
        id, short, rng = one["id"], one["answer"], self.rng
        topic = self.topic(id)
        if id in SAID:
            return self.say(*SAID[id])
        if id.startswith(STRANGER):
            return self.say(*SAID["stranger"]) if short != "No." else f"No. {self.say(*SAID['stranger'])}"
        if id == "report":
            return self.description("long")
        if id == "describe":
            return self.description("short")
        if id == "modality":
            how = MODALITIES[self.kind]
            return self.say(f"It is drawn like a picture made by {how}.", f"The modality is {how}, but it is only a drawing.", f"{capital(how)}.")
        if id == "body_part":
            if self.kind == "tissue":
                return self.say("The picture shows a tissue.", "This is a stained tissue.", "The tissue.")
            part = BODY_PARTS[self.kind]
            return self.say(f"The picture shows the {part}.", f"This is the {part}.", f"The {part}.")
        if id == "is_kind":
            return f"{short[:-1]}, this is {PICTURES[self.kind]}." if rng.random() < 0.7 else short
        if id == "other_kind":
            return self.say(short, short + " Ask me what it shows.", short + " So I cannot say.")
        if topic is None:
            return short
        because = f" {capital(self.reason(topic))}." if rng.random() < 0.15 else ""
        if short in ("Yes.", "No."):
            return self.say(short, f"{short[:-1]}, {self.state(topic)}.", f"{short[:-1]}, {self.state(topic)}.", f"{short} {capital(self.state(topic))}.") + because
        form = id.rsplit("_", 1)[1]
        _, the, is_ = NOUNS.get((self.kind, topic), ("", f"the {topic}", "are" if topic == "ventricles" else "is"))
        if form in ("where", "side"):
            if not self.where(topic):
                return self.say(short, capital(f"{self.state(topic)}."), f"Nowhere: {self.state(topic)}.") + because
            return self.say(short, f"{capital(the)} {is_} {self.at(topic)}.", f"I see {the.removeprefix('the ')} {self.at(topic)}.") + because
        if form in ("direction", "pattern"):
            word = short[:-1].lower()
            return self.say(f"{capital(the)} {is_} {word}.", f"{'They are' if is_ == 'are' else 'It is'} {word}.", short) + because
        if form == "count":
            n, noun = int(short[:-1]), the.split()[-1]
            noun = noun[:-1] if n == 1 else noun
            if n == 0:
                return self.say(short, f"There are no fine {noun}.", f"I see no fine {noun}.")
            are = "is" if n == 1 else "are"
            return self.say(short, f"There {are} {NUMBERS[n]} fine {noun}.", f"I count {NUMBERS[n]} fine {noun}, {self.at(topic)}.", f"I count {n}.")
        if form == "more":
            word = short[:-1].split()[-1]
            return short if word == "equal" else self.say(short, f"The {word} half has more.", f"There are more on the {word}.")
        return self.say(capital(f"{self.state(topic)}."), short) + because

    def why(self, topic: str) -> str:
        """Why a topic is as was said."""
        reason, state = self.reason(topic), self.state(topic)
        return self.say(f"Because {reason}.", f"{capital(reason)}.", f"{capital(state)}, because {reason}.", f"I see that {reason}.")

    def sure(self, topic: str) -> str:
        """The same fact again, and how far it goes."""
        state = self.state(topic)
        return self.say(f"Yes, {state}.", f"I looked again: {state}.", f"As far as the drawing shows, {state}.", f"Yes, {state}. But I know drawn pictures only.",
                        f"I still think so: {state}. In a real picture I could not be sure.")


def term(rng: np.random.Generator) -> tuple[str, str]:
    """A question for the meaning of a word, and its answer."""
    names, answers = draw(rng, list(TERMS.items()))
    return draw(rng, TERM_FORMS).format(draw(rng, names)), draw(rng, answers)


def pool(p: Phantom, rng: np.random.Generator, share) -> list[list[tuple[str, str]]]:
    """Runs of turns about a phantom in any order: a question, or one with what is asked after it. `share` of a question is how often it is asked."""
    speaker, runs = Speaker(p, rng), []
    for one in questions(p, rng):
        if one["id"] == "off_topic" or rng.random() >= share(one):
            continue
        run = [(one["question"], speaker.answer(one))]
        topic = speaker.topic(one["id"])
        if topic and rng.random() < 0.15:
            run.append((draw(rng, WHY), speaker.why(topic)))
        if topic and rng.random() < 0.1:
            run.append((draw(rng, SURE), speaker.sure(topic)))
        runs.append(run)
    if rng.random() < 0.5:
        length = draw(rng, list(DESCRIBE))
        if p.exact:
            runs.append([(draw(rng, DESCRIBE[length]), speaker.description(length))])
    if rng.random() < 0.3:
        runs.append([term(rng)])
    if rng.random() < 0.15:
        runs.append([(draw(rng, REAL), speaker.say(*HONEST))])
    return [runs[i] for i in rng.permutation(len(runs))]


def first_sentence(text: str) -> str:
    """Up to the first full stop; "X-ray" and numbers have none."""
    return re.split(r"(?<=[.!?])\s|(?<=[a-z]):\s|\n", text.strip())[0]


def understood(one: dict, kind: str, text: str) -> str | None:
    """The short answer that the first sentence gives to a question of `questions.py`, in its own words; None if it gives none, or more than one."""
    said, short = first_sentence(text).lower(), one["answer"]
    words = re.findall(r"[a-z]+|\d+", said)
    only = lambda options: options[0] if len(options) == 1 else None
    if short in ("Yes.", "No."):
        return {"yes": "Yes.", "no": "No."}.get(words[0] if words else "")
    if said.rstrip(".") == short.lower().rstrip("."):
        return short
    form = one["id"].rsplit("_", 1)[1]
    denied = bool({"no", "none", "nowhere", "nothing"} & set(words))
    if form == "count":
        numbers = {**{name: n for n, name in enumerate(NUMBERS)}, **{str(n): n for n in range(4)}}
        found = only(sorted({numbers[word] for word in words if word in numbers}))
        return None if found is None else f"{found}."
    if form == "more":
        found = only([word for word in ("right", "left", "equal") if word in words])
        return {"right": "The right.", "left": "The left.", "equal": "They are equal."}.get(found)
    if form in ("where", "side"):
        if denied:
            return "There is none." if " is " in short else "There are none."
        if one["finding"] in ("effusion", "bleed"):
            found = only([side for side in ("right", "left") if side in words])
            return found and f"On the {found}."
        zones = [zone for zone in ZONES[kind] if zone in said]
        return f"In the {joined(zones)} {AREA[kind]}." if zones else None
    for pair in (("horizontal", "vertical"), ("mottled", "barred"), ("pink", "purple"), ("low", "high"), ("right", "left")):
        if short.lower().rstrip(".") in pair:
            few, many = ("few" in words, "many" in words) if pair[0] == "low" else (False, False)
            found = only([word for word, other in zip(pair, (few, many)) if word in words or other])
            return found and f"{found.capitalize()}."
    if short in ("Normal.", "Enlarged."):
        return "Normal." if {"normal", "not"} & set(words) else "Enlarged." if {"enlarged", "large"} & set(words) else None
    return None


def is_right(one: dict, kind: str, text: str) -> bool:
    """Whether the first sentence of an answer says what is true."""
    return understood(one, kind, text) == one["answer"]
