"""Small sums and counting: makes up a question and its right answer, in digits or in words."""

ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
TENS = "twenty thirty forty fifty".split()
PLUS = ("{a} + {b}", "{a}+{b}", "{a} plus {b}", "what is {a} + {b}?", "what is {a} plus {b}?", "how much is {a} and {b}?",
        "add {a} and {b}", "sum of {a} and {b}", "how much is {a} + {b}?", "what do you get when you add {b} to {a}?",
        "{a} + {b} = ?", "{a}+{b}=", "calculate {a} + {b}", "compute {a} plus {b}", "can you add {a} and {b}?")  # fmt: skip
MINUS = ("{a} - {b}", "{a}-{b}", "{a} minus {b}", "what is {a} - {b}?", "what is {a} minus {b}?", "take {b} from {a}",
         "subtract {b} from {a}", "how much is {a} - {b}?", "{a} - {b} = ?", "how much is {a} minus {b}?",
         "{a} less {b}", "calculate {a} - {b}", "what is left when you take {b} away from {a}?")  # fmt: skip
UP = ("count from {a} to {b}", "count from {a} up to {b}", "can you count from {a} to {b}?", "numbers from {a} to {b}",
      "list the numbers from {a} to {b}", "count up from {a} to {b}", "start at {a} and count to {b}")  # fmt: skip
UP_FROM_ONE = ("count to {b}", "can you count to {b}?", "count up to {b}", "please count to {b}", "count till {b}")
DOWN = ("count down from {a} to {b}", "count backwards from {a} to {b}", "count from {a} down to {b}", "countdown from {a} to {b}")
DOWN_TO_ONE = ("count down from {a}", "countdown from {a}", "count backwards from {a}", "can you count down from {a}?")


# The share of sums whose numbers are at most ten.
SMALL = 0.8


def in_words(number):
    if number < 20:
        return ONES[number]
    return TENS[number // 10 - 2] + (f"-{ONES[number % 10]}" if number % 10 else "")


def capital(text):
    return text[0].upper() + text[1:]


def sum_or_count(rng):
    """A question and its answer."""
    spell = in_words if rng.random() < 0.35 else str
    pick = lambda forms: forms[rng.integers(len(forms))]
    if rng.random() < 0.7:
        most = 10 if rng.random() < SMALL else 20
        a, b = sorted(rng.integers(0, most + 1, 2).tolist(), reverse=True)
        if rng.random() < 0.5:
            question, sign, result = MINUS, "-", a - b
        else:
            a, b = (a, b) if rng.random() < 0.5 else (b, a)
            question, sign, result = PLUS, "+", a + b
        if spell is in_words:
            sign = {"+": "plus", "-": "minus"}[sign]
            answer = f"{spell(a)} {sign} {spell(b)} is {spell(result)}."
        else:
            answer = f"{a} {sign} {b} = {result}."
        return pick(question).format(a=spell(a), b=spell(b)), capital(answer)
    low = 1 if rng.random() < 0.5 else int(rng.integers(0, 31))
    high = low + int(rng.integers(2, 20))
    numbers = list(range(low, high + 1))
    if rng.random() < 0.6:
        question = UP_FROM_ONE if low == 1 and rng.random() < 0.6 else UP
    else:
        question = DOWN_TO_ONE if low == 1 and rng.random() < 0.6 else DOWN
        numbers.reverse()
    question = pick(question).format(a=spell(numbers[0]), b=spell(numbers[-1]))
    return question, capital(", ".join(map(spell, numbers))) + "."
