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
recommend a good {word} near {country}
recommend some {word} for my {word2}
suggest a {word} for the {word2}
suggest three names for a {word}
list the five largest {word} of {country}
list everything that has {word} in it
name a famous {word} from {country}
name two kinds of {word}
calculate the {word} of a {word2} with length {small}
find the area of a square of {big} metres
find me a cheap {word}
find out who {word} the {word2}
compute the average of {big}, {small} and {big2}
solve x + {small} = {big}
convert {big} miles to kilometres
convert {small} pounds to euros
what percentage of {big} is {small}?
please write an essay on {word} and {word2}
please write a letter to my {word}
please write a function that counts {word}
please draw a {word} with a {word2}
write a java class for a {word}
write a {language} function that turns every {word} into a {word2}
write a {language} program that prints {big} {word}
write me a short {language} script for my {word}
please write {language} code which reads a {word}
please write a {language} class with a {word} and a {word2}
can you write a {language} loop over all {word}?
fix this {language} code: {word} {word2}
how do i sort a list of {word} in {language}?
how do i print a {word} in {language}?
what is a {word} in {language}?
explain the {language} error about {word}
write a sql query that finds every {word}
debug this c program: {word} {word2}
compare {word} with {word2}
summarise the book about {word}
describe the {word} of {country}
describe how {word} becomes {word2}
plan a week in {country}
plan a birthday for my {word}
book a table at the {word}
remind me to {word} tomorrow
play some {word} music
turn on the {word}
send an email to {word}
help me choose between {word} and {word2}
help me with my homework on {word}
prove that every {word} is a {word2}
show me a picture of a {word}
show me the news about {word}
my {word} makes a {word2} noise every morning
my {word} does not like the {word2} any more
my neighbour has a {word} and i do not
i lost my {word} near the {word2}
i want to become a {word}
i am going to {country} with my {word}
i feel {word} since {year}
we need a new {word} for the {word2}
which {word} won the {word2} in {year}?
which {word} is the {word2}?
who scored for {country} in {year}?
who played the {word} in the film about {country}?
at what temperature does {word} melt?
in which year did {country} lose the {word}?
has anyone ever {word} a {word2}?
would a {word} eat a {word2}?
could {country} win against {country2}?
should i give my {word} a {word2}?
does {word} contain {word2}?
did the {word} really {word2} in {year}?
""".strip().splitlines()

LANGUAGES = "python java javascript rust go c c++ ruby php sql swift kotlin bash html css typescript perl".split()
ASKS = """
recommend suggest find list name calculate compute solve convert write draft compose translate explain compare describe
summarise plan book order call send play draw paint sketch show give tell teach help check correct fix repair prove choose
rank sort count measure weigh estimate guess predict recall quote rate review design invent cook bake grow clean remove buy
sell hire rent pack build imagine discuss analyse outline
""".split()
OPENERS = """
which|who|whose|when did|when will|where did|where can|why did|why would|why was|how did|how far|how old|how long did|
how often|what happened to|what became of|what kind of|what time|is it true that|did|does|has|have|had|was|were|will|
would|could|can|should|shall|may|must|are|is|do|at what age|in which year|for how long|to whom|from which|under which|
my|our|the|this|these|some|every|yesterday|today|tomorrow|last week|next year|sometimes|recently
""".replace("\n", "").split("|")
BEFORE = "a an the my your his her our their this that some any every another two three ten many old new good best small".split()
AFTER = "of in on at near with without for from to under over between during after before about against than and or".split()


def clause(rng, words, keyword):
    """Something asked or told in an order of words that facts and stories do not begin with."""
    pick = lambda choices: choices[rng.integers(len(choices))]
    is_ask = rng.random() < 0.5
    parts = [pick(ASKS) if is_ask else pick(OPENERS)]
    if is_ask and rng.random() < 0.4:
        parts.insert(0, pick(("please", "kindly", "now", "could you", "can you", "would you", "i want you to", "just")))
    for n in range(rng.integers(2, 5)):
        parts += [pick(AFTER)] if n and rng.random() < 0.7 else []
        parts += [pick(BEFORE)] if rng.random() < 0.6 else []
        parts += [pick(words) for _ in range(rng.integers(1, 3))]
    if keyword and len(parts) > 4:
        parts[rng.integers(2, len(parts))] = keyword
    text = " ".join(parts)
    return (text[0].upper() + text[1:] if rng.random() < 0.7 else text) + pick((".", ".", "", "!") if is_ask else ("?", "?", "", "."))


def made_up(rng, countries, words, keyword):
    """One such question; `keyword` draws a word that facts are about, which does not make it one of them."""
    pick = lambda choices: choices[rng.integers(len(choices))]
    if rng.random() < 0.45:
        return clause(rng, words, keyword() if rng.random() < 0.4 else None)
    return pick(FORMS).format(
        country=pick(countries), country2=pick(countries), word=pick(words), word2=pick(words),
        language=pick(LANGUAGES), big=rng.integers(60, 5000), big2=rng.integers(60, 5000), small=rng.integers(2, 60), year=rng.integers(900, 2020),
    )  # fmt: skip
