#!/usr/bin/env python3
"""instructor, the stock library for typed answers, against the built-in model: tool calls whose arguments are objects.

    python3 -m venv .venv && .venv/bin/pip install -r tests/clients/requirements-instructor.txt
    .venv/bin/python tests/clients/instructor_client.py target/release/candlewick [--schema openapi.json]

Asks for objects by tools and by JSON schemas, whole and streamed, and again where a validator refuses. The
mode that describes the schema in the prompt is left out: it does not fit into this model's 512 tokens. The model is small, so what the answers say is nobody's; that they are what was asked for is checked.
"""

import asyncio
from typing import Literal

import instructor
import openai
from pydantic import BaseModel, ConfigDict, Field

import stock

QUESTION = [{"role": "user", "content": "Jason is 25 years old, and his cat is grey."}]


class Closed(BaseModel):
    """Nothing but its fields: a small model would go on and on."""

    model_config = ConfigDict(extra="forbid")


class Person(Closed):
    """A person that is spoken of."""

    name: str = Field(min_length=1, max_length=12)
    age: int = Field(ge=0, le=120)
    kind: Literal["child", "adult"]


class Weather(Closed):
    """The weather somewhere."""

    place: Literal["Paris", "Oslo"]
    unit: Literal["celsius", "fahrenheit"]


class Family(Closed):
    """People that belong together."""

    people: list[Person] = Field(min_length=2, max_length=2)
    home: Weather | None


def asking(base, model, mode):
    client = instructor.from_openai(openai.OpenAI(base_url=f"{base}/v1", api_key="none", max_retries=0), mode=mode)
    return lambda kind, how=client.chat.completions.create, **more: how(
        model=model, messages=QUESTION, response_model=kind, max_retries=0, temperature=1, seed=1, max_tokens=300, **more
    )


def whole(base, model, mode):
    ask = asking(base, model, mode)
    person, family = ask(Person), ask(Family)
    assert isinstance(person, Person) and isinstance(family, Family) and len(family.people) == 2
    return f"{person!r}"


def streamed(base, model, mode):
    client = instructor.from_openai(openai.OpenAI(base_url=f"{base}/v1", api_key="none", max_retries=0), mode=mode)
    ask = asking(base, model, mode)
    parts = list(ask(Person, client.chat.completions.create_partial))
    assert len(parts) > 2, parts
    Person.model_validate(parts[-1].model_dump())
    assert any(part.name is None or part.age is None for part in parts[:-1]), "the first parts are not whole"
    return f"{len(parts)} parts"


def retried(base, model):
    """An answer that its validator does not take is asked for again, with the tool's message and the fault in the history."""

    class Late(Person):
        """The age is wrong at first."""

        def model_post_init(self, _context):
            tries.append(self.age)
            if len(tries) == 1:
                raise ValueError("say it again")

    tries = []
    client = instructor.from_openai(openai.OpenAI(base_url=f"{base}/v1", api_key="none", max_retries=0))
    client.chat.completions.create(
        model=model, messages=QUESTION, response_model=Late, max_retries=2, temperature=1, seed=1, max_tokens=200
    )
    assert len(tries) == 2, tries


def awaited(base, model):
    client = instructor.from_openai(openai.AsyncOpenAI(base_url=f"{base}/v1", api_key="none", max_retries=0))
    ask = lambda: client.chat.completions.create(
        model=model, messages=QUESTION, response_model=Person, max_retries=0, temperature=1, seed=1, max_tokens=300
    )

    async def crowd():
        return await asyncio.gather(*(ask() for _ in range(8)))

    people = asyncio.run(crowd())
    # instructor hangs the raw answer on each, and those have ids of their own.
    assert all(person.model_dump() == people[0].model_dump() for person in people), people


def main():
    with stock.served(stock.options(__doc__), *stock.TOOLS) as (model, base):
        for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
            stock.passed(f"instructor: {mode.value}, whole", lambda: whole(base, model, mode))
            stock.passed(f"instructor: {mode.value}, streamed", lambda: streamed(base, model, mode))
        stock.passed("instructor: asked again", lambda: retried(base, model))
        stock.passed("instructor: eight at once", lambda: awaited(base, model))


if __name__ == "__main__":
    main()
