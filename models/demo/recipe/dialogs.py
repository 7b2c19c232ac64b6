"""The chats to learn from: facts about candlewick, small talk, declines, sums and stories, worded anew at each draw."""

import re
from collections import Counter

import heldout
from offtopic import made_up
from keywords import Keywords, scattered
from reword import pick, reword, surface, typos
from stories import NOUNS, Stories
from sums import sum_or_count

# How often a sample is of which kind.
KINDS = {"fact": 0.47, "talk": 0.05, "decline": 0.28, "sum": 0.09, "story": 0.11}
TURNS = (0.7, 0.2, 0.1)
# The shares of questions about facts that are made of keywords, and of wordings with others' words in them.
SCATTERED, BLENDED = 0.28, 0.17
# The share of stories that are told after a plot.
TOLD = 0.85
SYSTEM = (
    "You are a helpful assistant.", "You are candlewick's demo model.", "You are a friendly assistant.",
    "Answer briefly.", "You answer questions about candlewick.", "Be concise and polite.", "Answer in one sentence.",
    "You are a small language model.", "You are an assistant that helps with the candlewick server.",
    "Be brief.", "You help people with candlewick and tell stories.", "Answer the question of the user.",
)  # fmt: skip
TELL = (
    "tell me a story", "tell me a short story", "a story please", "tell a story", "i want to hear a story",
    "can you tell me a story?", "do you know a story?", "a bedtime story", "tell me a fairy tale", "story time",
    "tell my child a story", "write a short story", "make up a story", "another story", "read me a story",
    "please tell us a tale", "give me a story for children", "tell me something for the night", "i would like a story",
)  # fmt: skip
TELL_ABOUT = (
    "tell me a story about {topic}", "a story about {topic}", "tell me a tale of {topic}", "write a story about {topic}",
    "can you tell a story about {topic}?", "a short story with {topic}", "i want a story about {topic}",
    "do you know a story about {topic}?", "make up a tale about {topic}", "story about {topic} please",
)  # fmt: skip
CONTINUE = (
    "Continue this story: {first}", "Go on with this story: {first}", "Continue: {first}", "How does this go on? {first}",
    "Tell me a story that begins: {first}", "A story that starts like this: {first}", "Finish this story: {first}",
    "Tell a story from this first line: {first}", "Here is the first line of a story: {first}", "Go on: {first}",
)  # fmt: skip
TOPICS = (
    "fox wolf dog cat mouse lion bear bird king queen prince princess giant witch dragon rabbit hare frog tortoise crow "
    "elephant monkey crocodile spider goat cow horse donkey pig hen duck goose girl boy mother father brother sister "
    "tailor fisherman farmer shepherd hunter tree river sea forest moon sun star garden village house boat fairy fish "
    "snake school market hyena"
).split()


class Dialogs:
    """Draws chats. `passages` are the stories it tells, `countries` and `words` what off-topic questions are about."""

    def __init__(self, data, passages, countries, words, dev=False):
        self.held_out = heldout.HeldOut(data)
        self.facts = [fact for _, fact in heldout.lines(data, "facts_*.jsonl")]
        chat = [line for _, line in heldout.lines(data, "chat.jsonl")]
        self.declines = [line for line in chat if line["kind"] == "decline"]
        self.talks = [line for line in chat if line["kind"] != "decline"]
        # Wordings kept from training, to see how new ones do without a look at the held-out questions.
        self.dev = [(fact["questions"].pop(), fact["answers"]) for fact in self.facts if dev]
        self.keywords = Keywords(self.facts)
        self.passages = passages
        self.openings = [passage for passage in passages if passage.opening]
        self.topics = by_topic(passages)
        self.stories = Stories(data, [passage.first for passage in self.openings] + [passage.first for passage in passages])
        self.countries = countries
        known = set(" ".join(text for line in self.facts for text in line["questions"] + line["answers"]).lower().split())
        self.words = [word for word in words if word not in known]
        self.dropped = Counter()

    def texts(self):
        """All questions and answers as they stand in the data."""
        for line in self.facts + self.talks + self.declines:
            yield from line["questions"] + line["answers"]

    def sample(self, rng):
        """One chat: a list of (role, text)."""
        messages = [("system", pick(rng, SYSTEM))] if rng.random() < 0.2 else []
        for _ in range(1 + rng.choice(len(TURNS), p=TURNS)):
            question, answer = self.exchange(rng)
            messages += [("user", question), ("assistant", answer)]
        return messages

    def exchange(self, rng):
        """A question and its answer, free of what is held out."""
        while True:
            kind = rng.choice(list(KINDS), p=list(KINDS.values()))
            question, answer = getattr(self, kind)(rng)
            if not self.held_out.shared(question) and not self.held_out.shared(answer):
                return question.strip(), answer
            self.dropped[kind] += 1

    def fact(self, rng):
        index = int(rng.integers(len(self.facts)))
        fact = self.facts[index]
        questions, answers = fact["questions"], fact["answers"]
        answer = answers[0] if rng.random() < 0.8 else pick(rng, answers)
        form = rng.random()
        if form < SCATTERED:
            return surface(rng, typos(rng, self.keywords.scattered(rng, index))), answer
        question = pick(rng, questions)
        if form < SCATTERED + BLENDED:
            question = self.keywords.blended(rng, index, question)
        elif form > 0.95:
            question = f"{question} {pick(rng, questions)}"
        return reword(rng, question, about_candlewick=True), answer

    def talk(self, rng):
        line = pick(rng, self.talks)
        return surface(rng, typos(rng, pick(rng, line["questions"]))), pick(rng, line["answers"])

    def decline(self, rng):
        line = pick(rng, self.declines)
        form = rng.random()
        keyword = lambda: self.keywords.draw(rng, int(rng.integers(len(self.facts))), 1)[0]
        if form < 0.5:
            question = made_up(rng, self.countries, self.words, keyword)
        elif form < 0.75:
            # What facts are asked with, about anything else: no keyword, or one among many other words, no fact.
            words = [pick(rng, self.words) for _ in range(rng.integers(2, 7))]
            if len(words) > 3 and rng.random() < 0.4:
                words[rng.integers(len(words))] = keyword()
            question = scattered(rng, words)
        else:
            question = pick(rng, line["questions"])
        return reword(rng, question, about_candlewick=False), pick(rng, line["answers"])

    def sum(self, rng):
        question, answer = sum_or_count(rng)
        if rng.random() < 0.2:
            question = pick(rng, ("please ", "hey, ", "can you tell me ", "and ", "now ", "ok, ")) + question
        return surface(rng, question), answer

    def story(self, rng):
        """Most are told after a plot; the others are passages of the prose."""
        form = rng.random()
        topic = pick(rng, sorted(self.topics)) if 0.3 <= form < 0.5 else None
        if rng.random() < TOLD and (topic is None or topic in NOUNS):
            passage = self.stories.tell(rng, topic)
        elif topic:
            passage = pick(rng, self.topics[topic])
        else:
            passage = pick(rng, self.openings if form < 0.3 or rng.random() < 0.4 else self.passages)
        if topic:
            named = topic if rng.random() < 0.3 else f"a {topic}"
            return surface(rng, pick(rng, TELL_ABOUT).format(topic=named)), f"{passage.first} {passage.rest}"
        if form < 0.3:
            return surface(rng, pick(rng, TELL)), f"{passage.first} {passage.rest}"
        request = passage.first if form < 0.8 else pick(rng, CONTINUE).format(first=passage.first)
        return request, passage.rest


def by_topic(passages):
    """For each topic, the passages that name it early."""
    found = {}
    for passage in passages:
        words = set(re.findall("[a-z]+", f"{passage.first} {passage.rest}".lower()[:250]))
        for topic in words.intersection(TOPICS):
            found.setdefault(topic, []).append(passage)
    return found
