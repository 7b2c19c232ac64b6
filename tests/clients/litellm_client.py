#!/usr/bin/env python3
"""litellm, the stock gateway library, against the built-in model: as OpenAI's API, as vLLM's, as Anthropic's and Ollama's.

    python3 -m venv .venv && .venv/bin/pip install -r tests/clients/requirements-litellm.txt
    .venv/bin/python tests/clients/litellm_client.py target/release/candlewick [--schema openapi.json]

litellm has a way of its own into each API, and its own reading of the answers: whole and streamed, tools, typed answers,
text completions, embeddings, errors as its classes. Makes no request beyond the server.
"""

import asyncio
import json
import os

# Its list of prices would come from the network.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm
from pydantic import BaseModel, ConfigDict, Field

import stock

QUESTION = [{"role": "user", "content": "What is candlewick?"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather somewhere.",
        "parameters": {
            "type": "object",
            "properties": {"place": {"enum": ["Paris", "Oslo"]}, "days": {"type": "integer", "minimum": 1, "maximum": 7}},
            "required": ["place", "days"],
            "additionalProperties": False,
        },
    },
}


class Person(BaseModel):
    """Somebody."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(min_length=1, max_length=12)
    age: int = Field(ge=0, le=120)


def chat(provider, model, address, **more):
    ask = lambda **asked: litellm.completion(
        model=f"{provider}/{model}", api_base=address, api_key="none", messages=QUESTION, temperature=0, max_tokens=40,
        num_retries=0, **more, **asked,
    )
    whole = ask()
    said = whole.choices[0].message.content
    assert "candlewick" in said.lower() and whole.usage.completion_tokens > 0, whole
    chunks = list(ask(stream=True, stream_options={"include_usage": True}))
    told = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert told == said, (told, said)
    built = litellm.stream_chunk_builder(chunks, messages=QUESTION)
    assert built.choices[0].message.content == said
    return f"{len(chunks)} chunks, {whole.usage.completion_tokens} tokens"


def tools(model, base):
    # Its way to vLLM takes `additionalProperties` out of schemas, and a small model would go on and on.
    ask = lambda **more: litellm.completion(
        model=f"openai/{model}", api_base=f"{base}/v1", api_key="none", messages=QUESTION, temperature=1, seed=1, max_tokens=300,
        tools=[TOOL], tool_choice={"type": "function", "function": {"name": "weather"}}, num_retries=0, **more,
    )
    [call] = ask().choices[0].message.tool_calls
    arguments = json.loads(call.function.arguments)
    assert call.function.name == "weather" and set(arguments) == {"place", "days"}, call
    streamed = litellm.stream_chunk_builder(list(ask(stream=True)))
    [again] = streamed.choices[0].message.tool_calls
    assert json.loads(again.function.arguments) == arguments, again
    # What a program does next: the call and its answer go back.
    messages = [*QUESTION, {"role": "assistant", "tool_calls": [call.model_dump()], "content": None},
                {"role": "tool", "tool_call_id": call.id, "content": "Rain."}]
    after = litellm.completion(
        model=f"openai/{model}", api_base=f"{base}/v1", api_key="none", messages=messages, tools=[TOOL], max_tokens=20
    )
    assert after.choices[0].finish_reason in ("stop", "length", "tool_calls")
    return arguments


def typed(model, base):
    answer = litellm.completion(
        model=f"hosted_vllm/{model}", api_base=f"{base}/v1", api_key="none", messages=QUESTION, temperature=1, seed=1,
        max_tokens=200, response_format=Person,
    )
    return repr(Person.model_validate_json(answer.choices[0].message.content))


def texts(model, base):
    ask = lambda **more: litellm.text_completion(
        model=f"text-completion-openai/{model}", api_base=f"{base}/v1", api_key="none", prompt="Once upon a time",
        temperature=0, max_tokens=20, **more,
    )
    said = ask().choices[0].text
    assert "".join(chunk.choices[0].text or "" for chunk in ask(stream=True) if chunk.choices) == said
    embedded = litellm.embedding(
        model=f"hosted_vllm/{model}", api_base=f"{base}/v1", api_key="none", input=["a wick", "a candle"]
    )
    assert len(embedded.data) == 2 and len(embedded.data[0]["embedding"]) == len(embedded.data[1]["embedding"]) > 0


def errors(model, base):
    ask = lambda name, **more: litellm.completion(
        model=f"hosted_vllm/{name}", api_base=f"{base}/v1", api_key="none", messages=QUESTION, num_retries=0, **more
    )
    for kind, call in ((litellm.NotFoundError, lambda: ask("other")), (litellm.BadRequestError, lambda: ask(model, top_p=7))):
        try:
            call()
        except kind as error:
            assert "other" in str(error) or "top_p" in str(error), error
        else:
            raise AssertionError(f"expected {kind.__name__}")


def responses(model, base):
    ask = lambda **more: litellm.responses(
        model=f"openai/{model}", api_base=f"{base}/v1", api_key="none", input="What is candlewick?", temperature=0,
        max_output_tokens=40, **more,
    )
    said = ask().output[0].content[0].text
    deltas = [event.delta for event in ask(stream=True) if event.type == "response.output_text.delta"]
    assert "".join(deltas) == said and "candlewick" in said.lower()


def crowd(model, base):
    """A router over one deployment, eight calls at once."""
    router = litellm.Router(
        model_list=[{"model_name": "any", "litellm_params": {
            "model": f"hosted_vllm/{model}", "api_base": f"{base}/v1", "api_key": "none"}}]
    )

    async def all_of_them():
        ask = lambda: router.acompletion(model="any", messages=QUESTION, temperature=0, max_tokens=20)
        return await asyncio.gather(*(ask() for _ in range(8)))

    said = {answer.choices[0].message.content for answer in asyncio.run(all_of_them())}
    assert len(said) == 1, said


def main():
    litellm.telemetry = False
    with stock.served(stock.options(__doc__), *stock.TOOLS) as (model, base):
        for provider, address in (
            ("openai", f"{base}/v1"), ("hosted_vllm", f"{base}/v1"), ("anthropic", base), ("ollama_chat", base)
        ):
            stock.passed(f"litellm: {provider}", lambda: chat(provider, model, address))
        stock.passed("litellm: tools", lambda: tools(model, base))
        stock.passed("litellm: typed answers", lambda: typed(model, base))
        stock.passed("litellm: texts and vectors", lambda: texts(model, base))
        stock.passed("litellm: responses", lambda: responses(model, base))
        stock.passed("litellm: errors", lambda: errors(model, base))
        stock.passed("litellm: a router, eight at once", lambda: crowd(model, base))


if __name__ == "__main__":
    main()
