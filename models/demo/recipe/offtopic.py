"""Makes up questions about anything but candlewick, so that the model declines whatever it has not learned.

Countries come from the World Factbook, all other words from the corpus's prose: what a question is about hardly ever
comes twice, which is the point.
"""

FORMS = """
what is the capital of {country}?
how many people live in {country}?
what language is spoken in {country}?
who is the president of {country}?
where is {country}?
is {country} bigger than {country2}?
what is the weather like in {country}?
how do i travel from {country} to {country2}?
what do people eat in {country}?
tell me about the history of {country}
when did {country} become independent?
what is the currency of {country}?
which countries border {country}?
is it safe to visit {country}?
what are the main exports of {country}?
how large is {country}?
do i need a visa for {country}?
who won the match between {country} and {country2}?
news from {country}
what religion do people have in {country}?
what does {word} mean?
what does the word {word} mean?
define {word}
how do you spell {word}?
translate {word} into french
what is the opposite of {word}?
what rhymes with {word}?
tell me about {word}
what is a {word}?
what is {word}?
where can i buy a {word}?
how do i make a {word}?
how much does a {word} cost?
how do i repair my {word}?
who invented the {word}?
is {word} good for me?
write a poem about {word}
give me a recipe with {word} and {word2}
what is the difference between {word} and {word2}?
which is better, {word} or {word2}?
why is {word} so {word2}?
can you recommend a {word}?
what do you think about {word}?
how do i get rid of {word}?
what is the history of the {word}?
is a {word} dangerous?
my {word} hurts, what should i do?
my {word} is broken
how long does a {word} live?
how do i learn to {word}?
is it legal to {word}?
what is the best {word}?
how many {word} are there in {country}?
why do people {word} the {word2}?
when was the first {word}?
explain {word} and {word2}
do you like {word}?
what colour is a {word}?
how heavy is a {word}?
who wrote the book about the {word} and the {word2}?
{word} {word2}
{word} of {country}
what is {big} times {big2}?
what is {big} + {big2}?
what is {big} divided by {small}?
what is the square root of {big}?
how many {word} make a {word2}?
what happened in {year}?
who was king in {year}?
write code that sorts {word} by {word2}
write a python function for {word}
how do i {word} in excel?
how do i configure {word} in windows?
""".strip().splitlines()


def made_up(rng, countries, words):
    """One such question."""
    pick = lambda choices: choices[rng.integers(len(choices))]
    return pick(FORMS).format(
        country=pick(countries), country2=pick(countries), word=pick(words), word2=pick(words),
        big=rng.integers(60, 5000), big2=rng.integers(60, 5000), small=rng.integers(2, 60), year=rng.integers(900, 2020),
    )  # fmt: skip
