"""Says a question in other words: openings, synonyms, politeness, case, punctuation, dropped words, typos.

What stays is what the question is about, so that the model learns to go by that and not by one wording.
"""

import re

SYNONYMS = [line.split("|") for line in """
how do i|how can i|how would i|how should i|how to|how does one|how could i|what is the way to|in what way can i
what is|what's|explain|tell me what is|define|describe
what are|explain|list|which are
tell me about|explain|describe|say something about|give me details on|talk about|inform me about
can i|may i|could i|am i able to|is it possible to|is there a way to
i want to|i would like to|i need to|i wish to|i am trying to|help me
does it|does candlewick|will it|can it
which|what
why|for what reason|how come
where|in which place
show me|give me|let me see|display
flag|option|switch|command line option|argument
model|checkpoint
start|launch|run|bring up|boot
stop|halt|shut down
change|set|adjust|alter|modify
use|work with|make use of
answer|reply|response
prompt|input|input text
generate|produce|create
happens|goes on|occurs
error|failure|fault
crash|panic|failure
maximum|max|highest|upper limit
minimum|min|lowest
default|standard
memory|ram
gpu|graphics card|cuda card
cpu|processor
directory|folder
supported|available|offered
support|offer|handle
install|set up
build|compile
download|fetch
client|caller|client program
clients|callers|users
purpose|point|meaning
speed|throughput|tokens per second
fast|quick|speedy
slow|sluggish
cached|remembered|kept in the cache
reuse|share|use again
kv cache|key value cache|cache of keys and values
requests|calls
wait|queue
cancel|abort|give up
monitor|watch|observe
several|many|multiple|a number of
big|large
small|tiny|little
license|licence
quantization|quantisation|quantizing
quantized|quantised
color|colour
temperature|temp
python|a python program|python code
terminal|shell|command line|console
example|sample
""".strip().splitlines()]  # fmt: skip
OTHERS = {}
for group in SYNONYMS:
    for phrase in group:
        OTHERS.setdefault(phrase, set()).update(set(group) - {phrase})
OTHERS = {phrase: sorted(others) for phrase, others in OTHERS.items()}
PHRASE = re.compile(r"(?<![\w`./-])(" + "|".join(sorted(map(re.escape, OTHERS), key=len, reverse=True)) + r")(?![\w`./-])", re.IGNORECASE)
BEFORE = (
    "please ", "hey, ", "hi, ", "hello, ", "ok, ", "so ", "so, ", "well, ", "now ", "tell me, ", "please tell me, ",
    "can you tell me ", "could you tell me ", "i want to know ", "i would like to know ", "do you know ", "question: ",
    "quick question: ", "one question: ", "one more thing: ", "i wonder ", "i was wondering, ", "just curious: ",
    "excuse me, ", "sorry, ", "and ", "also, ", "but ", "say, ", "i do not understand, ", "explain to me ", "hmm, ",
    "let me ask: ", "my question is ", "for my project: ", "a friend asks: ",
)  # fmt: skip
ABOUT = ("candlewick: ", "in candlewick, ", "with candlewick, ", "about candlewick: ", "for candlewick, ", "on candlewick: ")
AFTER = (
    " please", ", please", " thanks", ", thank you", ", do you know", " exactly", " again", " for me", ", i wonder",
    ", can you say", ", briefly", " in short", ", i forgot", " really", " then", ", any idea", " or not",
)  # fmt: skip
ABOUT_AFTER = (" in candlewick", " with candlewick", " of candlewick", " here", " in this server", " in this program")
FILLERS = frozenset(
    "a an the is are was be do does did can could may will would should i you it its my your me we to of in on for with "
    "at by from and or that this there what which how when where why who if so please tell about have has one any some "
    "get see say into as than then them they he his".split()
)


def pick(rng, choices):
    return choices[rng.integers(len(choices))]


def reword(rng, question, about_candlewick):
    """A question that asks the same; `about_candlewick` allows to name it."""
    if rng.random() < 0.7:
        question = PHRASE.sub(lambda m: pick(rng, OTHERS[m[1].lower()]) if rng.random() < 0.25 else m[1], question)
    if rng.random() < 0.35:
        question = drop_words(rng, question)
    if rng.random() < 0.35:
        before = BEFORE + ABOUT * 2 if about_candlewick else BEFORE
        question = pick(rng, before) + (question[0].lower() + question[1:] if question[1:2].islower() else question)
    if rng.random() < 0.2:
        after = AFTER + ABOUT_AFTER * 2 if about_candlewick else AFTER
        end = question[-1] if question[-1] in "?.!" else ""
        question = question.removesuffix(end) + pick(rng, after) + end
    return surface(rng, typos(rng, question))


def surface(rng, text):
    """Other case and punctuation."""
    if rng.random() < 0.35:
        text = text.rstrip("?.!")
    if rng.random() < 0.15:
        text = text.rstrip("?.!") + pick(rng, ("?", ".", "!", "??", " ?", "..."))
    if rng.random() < 0.1:
        text = text.replace(",", "")
    case = rng.random()
    if case < 0.35:
        text = text[0].upper() + text[1:]
    elif case < 0.55:
        text = text.lower()
    elif case < 0.57:
        text = text.upper()
    elif case < 0.6:
        text = text.title()
    return text


def drop_words(rng, text):
    """Leaves out some of the small words, and few of the others."""
    chances = [0.35 if word.lower().strip("?.,!") in FILLERS else 0.06 for word in text.split()]
    kept = [word for word, chance in zip(text.split(), chances) if rng.random() >= chance]
    return " ".join(kept) if kept and any(word.lower().strip("?.,!") not in FILLERS for word in kept) else text


def typos(rng, text, chance=0.012):
    """Swaps, drops or doubles a letter of a few longer words."""
    words = text.split(" ")
    for n, word in enumerate(words):
        if len(word) > 4 and word.isalpha() and rng.random() < chance:
            at = int(rng.integers(1, len(word) - 1))
            words[n] = pick(rng, (
                word[:at] + word[at + 1] + word[at] + word[at + 2 :], word[:at] + word[at + 1 :], word[: at + 1] + word[at:],
            ))  # fmt: skip
    return " ".join(words)
