"""Short children's stories: a plot of the data, told with other heroes, places and things at each draw.

The prose has few stories that are short, whole and simple; from these the model learns how one goes: who it is about, what
happens, how it ends. A story goes on from a first line of the plot, or from one of the prose's that names its hero.
"""

import re
from dataclasses import dataclass

import heldout
from reword import pick

# Who stories are about; `he`, `she` or `they` where it is no matter of choice.
HEROES = {
    "": (
        "mouse fox wolf dog cat lion bear bird rabbit hare frog tortoise crow elephant monkey crocodile spider goat horse "
        "donkey pig duck goose owl squirrel mole sparrow snail beetle hedgehog turtle zebra giraffe camel sheep lamb calf "
        "pony bee ant dragon giant dwarf child baker miller tailor shoemaker potter farmer shepherd hunter teacher "
        "gardener singer painter stranger traveller servant doctor otter badger swan eagle raven hyena leopard puppy kitten"
    ).split(),
    "he": "king prince boy father brother son fisherman man woodcutter soldier blacksmith uncle grandfather rooster".split(),
    "she": "queen princess girl mother sister daughter woman witch fairy cow hen aunt grandmother lady widow".split(),
}
SEVERAL = "brothers sisters children boys girls friends animals bears mice birds goats sons daughters kittens ducks princes".split()
NOUNS = {noun: he for he, nouns in HEROES.items() for noun in nouns} | {noun: "they" for noun in SEVERAL}
ADJECTIVES = (
    "small little young old poor clever tired hungry brave proud shy lazy kind curious lonely merry grey white brown black "
    "tiny fat thin quiet cheerful foolish wise"
).split()
BOYS = "Tom Ali Peter Hans Kofi Juma Sipho Leo Ben Otto Musa Finn Emil Jack Sam Tariq".split()
GIRLS = "Anna Mary Lena Amina Grace Nandi Ida Rosa Lily Zola Mila Greta Ella Sita Hope Mia".split()
CASES = {"he": ("he", "him", "his", "was"), "she": ("she", "her", "her", "was"), "they": ("they", "them", "their", "were")}
THINGS = {
    "goal": (
        "the sea", "the end of the rainbow", "the silver mountain", "the garden of the moon", "the great city", "the snow",
        "the blue lake", "the tree with the golden leaves", "the place where the sun sleeps", "the valley of flowers",
        "the castle in the clouds", "the island of birds", "the river of stars",
    ),
    "in_place": (
        "in the forest", "by the river", "in the village", "on the hill", "in the garden", "behind the house", "near the sea",
        "in the valley", "at the edge of the wood", "in the mountains", "in the meadow", "by the old mill", "near the well",
    ),
    "thing": (
        "a golden ring", "a silver spoon", "a red shoe", "a little bell", "a golden key", "a blue stone", "a small drum",
        "a purse full of coins", "a silver cup", "a wooden flute", "a string of pearls", "a shining button", "an old crown",
    ),
    "food": (
        "a piece of bread", "an apple", "a handful of nuts", "some cheese", "a pot of soup", "a little cake", "two eggs",
        "a jar of honey", "a bowl of rice", "a basket of plums", "some warm milk", "a bag of berries", "half a loaf",
    ),
    "weather": (
        "raining", "snowing", "very hot", "cold and windy", "foggy", "stormy", "dark and cold", "grey and wet", "freezing",
    ),
    "gift": (
        "a warm coat", "a basket of apples", "a little silver bell", "a new pair of boots", "a bag of gold", "a white horse",
        "a flute that played by itself", "a blanket of wool", "a lamp that never went out", "a fat goose", "a big cake",
    ),
    "fear": (
        "the dark", "the water", "the big dog", "thunder", "the deep well", "the forest", "the old bridge", "the wind",
        "loud noises", "the fire", "the geese", "the steep stairs", "the moon", "strangers", "the long night",
    ),
    "best": ("strongest", "fastest", "cleverest", "bravest", "most beautiful", "wisest"),
}  # fmt: skip
# How many sentences make a paragraph.
PARAGRAPH = (3, 6)
NAMED = re.compile(
    r"\b(?:a|an|the|two|three|four|seven|his|her|old|little|poor)\s+(?:[a-z]+ )?(" + "|".join(NOUNS) + r")\b", re.IGNORECASE
)
SLOT = re.compile(r"\{(\w+)\}")


@dataclass
class Hero:
    noun: str
    a: str
    the: str
    he: str

    def slots(self):
        he, him, his, was = CASES[self.he]
        return {"a": self.a, "the": self.the, "he": he, "him": him, "his": his, "was": was}


def capital(text):
    return text[0].upper() + text[1:]


def with_article(words):
    return ("an " if words[0] in "aeiou" else "a ") + words


def hero(rng, noun=None, several=0.07, named=0.12):
    """Someone to tell of: anyone, or a `noun`."""
    form = rng.random() if noun is None else 1.0
    if form < named:
        girl = rng.random() < 0.5
        name = pick(rng, GIRLS if girl else BOYS)
        return Hero(name, f"a {'girl' if girl else 'boy'} called {name}", name, "she" if girl else "he")
    if form < named + several:
        noun, count = pick(rng, SEVERAL), pick(rng, ("two", "three", "some", "four"))
        return Hero(noun, f"{count} {noun}", f"the {noun}", "they")
    if noun is None:
        kind = pick(rng, ("", "", "", "he", "she"))
        noun = pick(rng, HEROES[kind])
    adjective = pick(rng, ADJECTIVES) if rng.random() < 0.6 else ""
    he = NOUNS.get(noun) or pick(rng, ("he", "she"))
    return Hero(noun, with_article(f"{adjective} {noun}".strip()), f"the {noun}", he)


def hero_of(rng, sentence):
    """Whom a sentence of the prose is about, or nothing."""
    found = NAMED.search(sentence)
    if not found:
        return None
    noun = found[1].lower()
    said = set(re.findall("[a-z]+", sentence.lower()))
    he = "she" if said & {"she", "her"} else "he" if said & {"he", "his", "him"} else NOUNS[noun] or pick(rng, ("he", "she"))
    return Hero(noun, found[0].lower(), f"the {noun}", "they" if noun in SEVERAL else he)


@dataclass
class Story:
    first: str
    rest: str
    # What one could ask for it by.
    topic: str


class Stories:
    """Tells the plots in `data`, from first lines of their own or those among `firsts`, sentences of prose."""

    def __init__(self, data, firsts):
        self.plots = [plot for _, plot in heldout.lines(data, "plots.jsonl")]
        self.firsts = [first for first in firsts if NAMED.search(first)]

    def tell(self, rng, noun=None):
        plot = pick(rng, self.plots)
        first = pick(rng, self.firsts) if noun is None and rng.random() < 0.35 else None
        who = hero_of(rng, first) if first else hero(rng, noun)
        other = hero(rng, several=0, named=0)
        while other.noun == who.noun:
            other = hero(rng, several=0, named=0)
        slots = who.slots() | {"a2": other.a, "the2": other.the}
        slots |= {name: pick(rng, choices) for name, choices in THINGS.items()}
        sentences = [first] if first else [pick(rng, plot["openings"])]
        sentences += [plot["bridge"]] if first else []
        sentences += [pick(rng, stage) for stage in plot["stages"]]
        first, *rest = self.filled(sentences, slots)
        paragraphs = []
        while rest:
            count = int(rng.integers(*PARAGRAPH))
            paragraphs.append(" ".join(rest[:count]))
            rest = rest[count:]
        return Story(first, "\n\n".join(paragraphs), who.noun)

    @staticmethod
    def filled(sentences, slots):
        """The sentences with names for slots; the first word of the other hero introduces it."""
        known = False

        def name(slot):
            nonlocal known
            key = slot[1]
            if key.lower() in ("a2", "the2"):
                key = key if known else ("A2" if key[0].isupper() else "a2")
                known = True
            value = slots[key[0].lower() + key[1:]]
            return capital(value) if key[0].isupper() else value

        return [SLOT.sub(name, sentence) for sentence in sentences]
