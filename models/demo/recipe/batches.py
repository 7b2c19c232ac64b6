"""Cuts prose and chats into rows of equal length, with what each token has to predict.

A batch depends on the seed, its number and how far training has come, on nothing else, so a run can be taken up again
anywhere.
"""

from array import array

import numpy as np

# How much of the prose tokens comes from which pool.
POOLS = {"storybook": 0.15, "tales": 0.55, "novels": 0.30}
# The share of rows that are chats, when training begins and when it ends.
CHATS = (0.5, 0.9)


class Prose:
    """The tokens of a pool, and where its paragraphs begin."""

    def __init__(self, documents, vocabulary):
        between = {True: [vocabulary.end, vocabulary.begin], False: vocabulary.encode(["\n\n"])[0]}
        is_first = [n == 0 for document in documents for n in range(len(document.paragraphs))]
        ids, self.starts = array("H"), []
        for first, paragraph in zip(is_first, vocabulary.encode([text for d in documents for text in d.paragraphs])):
            ids.extend(between[first])
            self.starts.append(len(ids))
            ids.extend(paragraph)
        self.ids = np.frombuffer(ids, dtype=np.uint16)
        self.begin = vocabulary.begin

    def window(self, start, length):
        """Text from the start of a paragraph, opened by the begin token."""
        return np.concatenate([[self.begin], self.ids[start : start + length - 1]])

    def windows(self, length, count):
        """Windows at equal distances."""
        starts = [start for start in self.starts if start + length <= len(self.ids)]
        return np.stack([self.window(starts[n * len(starts) // count], length) for n in range(count)])


class Batches:
    def __init__(self, pools, dialogs, vocabulary, seed):
        self.pools, self.dialogs, self.vocabulary, self.seed = pools, dialogs, vocabulary, seed
        self.shares = np.array([POOLS[name] for name in pools])
        self.shares /= self.shares.sum()

    def batch(self, number, progress, rows, length):
        """Ids, labels (-100: not asked), the number of the text within its row that each token belongs to, and how many
        rows, the first ones, are chats."""
        rng = np.random.default_rng([self.seed, number])
        chats = round(rows * (CHATS[0] + (CHATS[1] - CHATS[0]) * progress))
        ids = np.zeros((rows, length + 1), dtype=np.int64)
        asked = np.zeros((rows, length + 1), dtype=bool)
        texts = np.full((rows, length + 1), -1)
        for row, placed in enumerate(self.packed(rng, chats, length + 1)):
            at = 0
            for n, (tokens, said) in enumerate(placed):
                span = slice(at, at + len(tokens))
                ids[row, span], asked[row, span], texts[row, span] = tokens, said, n
                at += len(tokens)
        for row in range(chats, rows):
            pool = self.pools[list(self.pools)[rng.choice(len(self.shares), p=self.shares)]]
            window = pool.window(pool.starts[rng.integers(len(pool.starts))], length + 1)
            ids[row, : len(window)], asked[row, 1 : len(window)], texts[row, : len(window)] = window, True, 0
        labels = np.where(asked[:, 1:], ids[:, 1:], -100)
        return ids[:, :-1], labels, texts[:, :-1], chats

    def packed(self, rng, rows, length):
        """Chats in `rows` rows, longest first, each in the first row that has room for it."""
        chats, total = [], 0
        while total < rows * length:
            ids, said = self.vocabulary.chat(self.dialogs.sample(rng))
            if len(ids) <= length:
                chats.append((ids, said))
                total += len(ids)
        placed, room = [[] for _ in range(rows)], [length] * rows
        for chat in sorted(chats, key=lambda chat: -len(chat[0])):
            row = next((row for row in range(rows) if room[row] >= len(chat[0])), None)
            if row is not None:
                placed[row].append(chat)
                room[row] -= len(chat[0])
        return placed
