"""Questions made of what a fact's wordings have in common: its own words, in any order, in any frame.

A model this small learns wordings by heart and stops there; from these it learns which words speak for which fact. How
much a word does depends on how few facts use it.
"""

from collections import Counter

import numpy as np

from reword import FILLERS, pick

LEADS = (
    "how do i", "how can i", "what is", "what are", "why", "can i", "does it", "is there", "tell me about", "explain",
    "what happens with", "which", "where", "when", "how many", "how does", "what if", "i want", "my", "the", "is it",
    "do i need", "help with", "show me", "does candlewick", "what about", "about", "could you explain", "should i", "who",
    "are there", "will", "give me", "i have", "what does", "how", "in candlewick,", "i need", "please",
)  # fmt: skip
BETWEEN = (
    "the", "a", "of", "for", "with", "to", "in", "is", "and", "my", "on", "when", "that", "are", "it", "be", "by", "if", "from",
    "or", "as", "not", "i", "do", "this", "at", "one", "its", "their", "me", "should", "can", "get", "so", "some", "any",
)  # fmt: skip
# The share of words that are replaced by others of the same fact.
BLENDED = 0.35


def content(text):
    """The words of a text that say what it is about."""
    words = (word.strip("?.,!:;()\"'`").lower() for word in text.split())
    return [word for word in words if len(word) > 1 and word not in FILLERS]


def scattered(rng, words):
    """Words with small words before and between them."""
    parts = [pick(rng, LEADS)] if rng.random() < 0.6 else []
    between = rng.choice((0.0, 0.4, 0.8))
    for word in words:
        parts += [pick(rng, BETWEEN)] if rng.random() < between else []
        parts.append(word)
    return " ".join(parts)


class Keywords:
    def __init__(self, facts):
        counts = [Counter(word for text in fact["questions"] + fact["answers"] * 2 for word in content(text)) for fact in facts]
        spread = Counter(word for count in counts for word in count)
        self.words, self.shares = [], []
        for count in counts:
            weight = np.array([n**0.5 * np.log(len(facts) / spread[word]) ** 2 for word, n in count.items()])
            self.words.append(list(count))
            self.shares.append(weight / weight.sum())

    def draw(self, rng, fact, count):
        """Different words of a fact, rare ones first of all."""
        words = self.words[fact]
        count = min(count, int((self.shares[fact] > 0).sum()))
        return [words[n] for n in rng.choice(len(words), count, replace=False, p=self.shares[fact])]

    def scattered(self, rng, fact):
        """Some words of a fact with small words before and between them."""
        return scattered(rng, self.draw(rng, fact, int(rng.integers(2, 7))))

    def blended(self, rng, fact, question):
        """A wording some of whose words are replaced by others of its fact."""
        words = question.split()
        own = iter(self.draw(rng, fact, len(words)))
        replaced = [rng.random() < BLENDED and bool(content(word)) for word in words]
        return " ".join(next(own, word) if replace else word for word, replace in zip(words, replaced))
