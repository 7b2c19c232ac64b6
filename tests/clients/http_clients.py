#!/usr/bin/env python3
"""The stock Python clients of OpenAI, Anthropic and Ollama against the built-in model.

    python3 -m venv .venv && .venv/bin/pip install -r tests/clients/requirements-http.txt
    .venv/bin/python tests/clients/http_clients.py target/release/candlewick [--schema openapi.json]

Starts the server, asks it in every way that these clients have for what it offers, and ends with 0 where every answer is as
it must be. With OpenAI's own schema (openapi.json of its repository openai-openapi) a proxy between the two checks every
answer, chunk and error against it.
"""

import contextlib
import io
import json
import pathlib
import re
import subprocess
import time
import urllib.request

import anthropic
import ollama
import openai

import stock

DOCUMENT = pathlib.Path(__file__).resolve().parents[2] / "docs" / "openai.md"
MODEL_QUESTION = [{"role": "user", "content": "What is candlewick?"}]
PROMPT = "Once upon a time"
WEATHER = [{"role": "user", "content": "What is the weather?"}]
#: Closed, so that a small model cannot go on and on.
PLACE = {
    "type": "object", "properties": {"place": {"enum": ["Bern", "Oslo"]}}, "required": ["place"],
    "additionalProperties": False,
}


def refused(kind, call, **expected):
    """The call fails with this error of the client's, whose fields are as expected."""
    try:
        call()
    except kind as error:
        for name, value in expected.items():
            assert getattr(error, name) == value, f"{name} is {getattr(error, name)!r} in {error!r}"
        return error
    raise AssertionError(f"expected {kind.__name__}")


def metric(base, name):
    text = urllib.request.urlopen(f"{base}/metrics").read().decode()
    return sum(float(value) for value in re.findall(rf"^{re.escape(name)}(?:{{.*}})? (\S+)$", text, re.MULTILINE))


def becomes(what, holds):
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.02)


def openai_models_and_errors(client, model):
    models = client.models.list()
    assert [entry.id for entry in models.data] == [model]
    assert client.models.retrieve(model).id == model
    ask = client.chat.completions.create
    refused(openai.NotFoundError, lambda: ask(model="other", messages=MODEL_QUESTION), status_code=404)
    wrong = lambda: ask(model=model, messages=MODEL_QUESTION, top_p=7)
    refused(openai.BadRequestError, wrong, param="top_p", type="invalid_request_error")
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]
    refused(openai.BadRequestError, lambda: ask(model=model, messages=image), param="messages[0].content[0].type")


def openai_embeddings(client, model):
    texts = ["a wick", "a candle", "a wick"]
    create = lambda **more: client.embeddings.create(model=model, input=texts, **more)
    # The client asks for base64 unless told otherwise, and decodes it.
    plain, packed = create(encoding_format="float"), create()
    vectors = [row.embedding for row in plain.data]
    near = lambda one, other: all(abs(x - y) < 1e-6 for x, y in zip(one, other, strict=True))
    assert all(near(one, row.embedding) for one, row in zip(vectors, packed.data, strict=True)), "encodings differ"
    assert vectors[0] == vectors[2] != vectors[1]
    assert all(abs(sum(x * x for x in vector) - 1) < 1e-5 for vector in vectors), "the length is 1"
    assert all(len(row.embedding) == 8 for row in create(dimensions=8).data)
    refused(openai.BadRequestError, lambda: create(dimensions=10**6), param="dimensions")


def openai_chat(client, model):
    ask = lambda **more: client.chat.completions.create(
        model=model, messages=MODEL_QUESTION, temperature=0, max_completion_tokens=40, **more
    )
    whole = ask(logprobs=True, top_logprobs=2)
    choice = whole.choices[0]
    assert "candlewick" in choice.message.content.lower() and choice.finish_reason in ("stop", "length"), choice
    assert all(len(entry.top_logprobs) == 2 and entry.logprob <= 0 for entry in choice.logprobs.content)
    assert all(entry.token == entry.top_logprobs[0].token for entry in choice.logprobs.content), "greedy is the likeliest"
    chunks = list(ask(stream=True, stream_options={"include_usage": True}))
    told = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert told == choice.message.content
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    several = ask(n=2, seed=7)
    assert [choice.message.content for choice in several.choices] == [told, told], "greedy, whatever the seed"


def openai_completions(client, model):
    ask = lambda **more: client.completions.create(model=model, **{"prompt": PROMPT, "max_tokens": 24, **more})
    seeded = [ask(temperature=1, seed=5).choices[0].text for _ in range(2)]
    assert seeded[0] == seeded[1], seeded
    batch = ask(prompt=[PROMPT, "The sun"], temperature=0, echo=True)
    assert [choice.text.startswith(start) for choice, start in zip(batch.choices, (PROMPT, "The sun"))] == [True, True]
    logprobs = ask(temperature=0, logprobs=3).choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == 24
    plain = ask(temperature=0).choices[0].text
    assert "".join(chunk.choices[0].text for chunk in ask(temperature=0, stream=True)) == plain
    word = plain.split()[3]
    stopped = ask(temperature=0, stop=[word]).choices[0]
    assert stopped.finish_reason == "stop" and stopped.text == plain.split(word)[0]
    ids = client.post("/../tokenize", body={"prompt": PROMPT}, cast_to=object)["tokens"]
    assert client.post("/../detokenize", body={"tokens": ids}, cast_to=object)["prompt"].endswith(PROMPT)
    assert ask(prompt=ids, temperature=0).choices[0].text == plain
    ban = ask(temperature=0, max_tokens=1, logprobs=0, extra_body={"return_tokens_as_token_ids": True})
    banned = ban.choices[0].logprobs.tokens[0].removeprefix("token_id:")
    other = ask(temperature=0, max_tokens=1, logit_bias={banned: -100})
    assert other.choices[0].text != plain[: len(other.choices[0].text)] or other.choices[0].text == ""
    long = ask(temperature=0, max_tokens=60, extra_body={"ignore_eos": True, "min_tokens": 60, "top_k": 1, "min_p": 0.1})
    assert long.usage.completion_tokens == 60


def openai_cancel(client, model, base):
    # Long enough that reading the metrics comes in between.
    ask = lambda: client.completions.create(
        model=model, prompt=PROMPT, max_tokens=480, stream=True, extra_body={"ignore_eos": True}
    )
    before = metric(base, "vllm:request_success_total")
    for _ in range(5):
        stream = ask()
        next(iter(stream))
        stream.close()
    becomes("the sequences are freed", lambda: metric(base, "vllm:num_requests_running") == 0)
    becomes("their ends are counted", lambda: metric(base, "vllm:request_success_total") >= before + 5)


def openai_responses(client, model):
    ask = lambda **more: client.responses.create(
        model=model, **{"input": "What is candlewick?", "temperature": 0, "max_output_tokens": 40, **more}
    )
    first = ask()
    assert "candlewick" in first.output_text.lower()
    assert client.responses.retrieve(first.id).output_text == first.output_text
    second = ask(input="Who are you?", previous_response_id=first.id)
    assert second.usage.input_tokens > first.usage.input_tokens
    events = list(ask(stream=True))
    told = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert told == first.output_text and events[-1].response.output_text == told
    assert client.responses.input_items.list(first.id).data
    later = ask(background=True)
    becomes("the response is made", lambda: client.responses.retrieve(later.id).status != "in_progress")
    assert client.responses.retrieve(later.id).output_text == told
    client.responses.delete(later.id)
    refused(openai.NotFoundError, lambda: client.responses.retrieve(later.id), status_code=404)
    with ask(background=True, stream=True) as stream:
        begun = [event for event, _ in zip(stream, range(4))]
    read_on = client.responses.retrieve(begun[0].response.id, stream=True, starting_after=begun[-1].sequence_number)
    events = begun + list(read_on)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[-1].response.output_text == told
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == told


def anthropic_messages(client, model):
    # Sampling is in the API, but no longer in this client.
    asked = {"model": model, "max_tokens": 40, "messages": MODEL_QUESTION, "extra_body": {"temperature": 0}}
    whole = client.messages.create(**asked)
    assert whole.content[0].type == "text" and "candlewick" in whole.content[0].text.lower()
    with client.messages.stream(**asked) as stream:
        told = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert told == whole.content[0].text == final.content[0].text
    assert (final.stop_reason, final.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens)
    assert client.messages.count_tokens(model=model, messages=MODEL_QUESTION).input_tokens > 0
    refused(anthropic.NotFoundError, lambda: client.messages.create(**{**asked, "model": "other"}), status_code=404)
    refused(anthropic.BadRequestError, lambda: client.messages.create(**{**asked, "extra_body": {"top_p": 7}}), status_code=400)


def ollama_chat(client, model):
    options = {"temperature": 0, "num_predict": 40}
    whole = client.chat(model=model, messages=MODEL_QUESTION, options=options)
    assert "candlewick" in whole.message.content.lower() and whole.done
    lines = list(client.chat(model=model, messages=MODEL_QUESTION, options=options, stream=True))
    assert "".join(line.message.content for line in lines) == whole.message.content
    assert lines[-1].eval_count == whole.eval_count > 0
    assert client.generate(model=model, prompt="What is candlewick?", options=options).response == whole.message.content
    assert [entry.model for entry in client.list().models] == [model]
    assert client.show(model).details.family == "llama"
    assert [entry.model for entry in client.ps().models] == [model]
    refused(ollama.ResponseError, lambda: client.chat(model="other", messages=MODEL_QUESTION), status_code=404)


def openai_functions(client, model):
    tool = {"type": "function", "name": "weather", "parameters": PLACE, "strict": True}
    ask = lambda **more: client.responses.create(
        model=model, **{"input": WEATHER, "temperature": 0, "tools": [tool], "tool_choice": "required", **more}
    )
    first = ask(parallel_tool_calls=False)
    [call] = first.output
    assert (call.type, call.name) == ("function_call", "weather") and json.loads(call.arguments)["place"] in ("Bern", "Oslo")
    events = list(ask(parallel_tool_calls=False, stream=True))
    told = "".join(event.delta for event in events if event.type == "response.function_call_arguments.delta")
    assert told == call.arguments == events[-1].response.output[0].arguments
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "Rain."}
    by_id = ask(input=[output], previous_response_id=first.id, tool_choice="none", max_output_tokens=20)
    by_items = ask(input=[*WEATHER, call.model_dump(), output], tool_choice="none", max_output_tokens=20)
    assert by_id.output_text == by_items.output_text and by_id.usage.input_tokens == by_items.usage.input_tokens
    return told


def anthropic_tools(client, model):
    tool = {"name": "weather", "input_schema": PLACE}
    choice = {"type": "any", "disable_parallel_tool_use": True}
    asked = {"model": model, "max_tokens": 200, "messages": WEATHER, "tools": [tool], "extra_body": {"temperature": 0}}
    whole = client.messages.create(**asked, tool_choice=choice)
    [call] = whole.content
    assert (call.type, call.name, whole.stop_reason) == ("tool_use", "weather", "tool_use") and call.input["place"], whole
    with client.messages.stream(**asked, tool_choice=choice) as stream:
        final = stream.get_final_message()
    assert (final.content[0].input, final.stop_reason) == (call.input, "tool_use"), final
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "Rain."}
    asked["messages"] = [*WEATHER, {"role": "assistant", "content": whole.content}, {"role": "user", "content": [result]}]
    assert client.messages.create(**asked, tool_choice={"type": "none"}).stop_reason in ("end_turn", "max_tokens")
    return call.input


def ollama_tools(client, model):
    function = {"type": "function", "function": {"name": "weather", "description": "It says it.", "parameters": PLACE}}
    calls = [{"function": {"name": "weather", "arguments": {"place": "Bern"}}}]
    result = {"role": "tool", "tool_name": "weather", "content": "Rain."}
    messages = [*WEATHER, {"role": "assistant", "content": "", "tool_calls": calls}, result]
    options = {"temperature": 0, "num_predict": 60}
    assert client.chat(model=model, messages=messages, tools=[function], options=options).done
    shaped = client.chat(model=model, messages=WEATHER, format=PLACE, options=options)
    assert json.loads(shaped.message.content)["place"] in ("Bern", "Oslo"), shaped


def documented_examples(base):
    """What docs/openai.md shows works as it stands, but for the port."""
    text = DOCUMENT.read_text().replace("http://127.0.0.1:50051", base)
    blocks = re.findall(r"```(sh|python)(?: run)?\n(.*?)```", text, re.DOTALL)
    assert {language for language, _ in blocks} == {"sh", "python"}
    shared = {}
    for language, code in blocks:
        said = io.StringIO()
        if language == "sh":
            run = subprocess.run(["sh", "-ec", code], capture_output=True, text=True)
            assert run.returncode == 0, run.stderr
            said.write(run.stdout)
        else:
            with contextlib.redirect_stdout(said):
                exec(code, shared)
        assert len(said.getvalue()) > 20 and "error" not in said.getvalue(), (code, said.getvalue())


def main():
    given = stock.options(__doc__)
    with stock.served(given) as (model, base):
        client = openai.OpenAI(base_url=f"{base}/v1", api_key="none", max_retries=0)
        claude = anthropic.Anthropic(base_url=base, api_key="none", max_retries=0)
        stock.passed("openai: models and errors", lambda: openai_models_and_errors(client, model))
        stock.passed("openai: embeddings", lambda: openai_embeddings(client, model))
        stock.passed("openai: chat", lambda: openai_chat(client, model))
        stock.passed("openai: completions", lambda: openai_completions(client, model))
        stock.passed("openai: a client that goes away", lambda: openai_cancel(client, model, base))
        stock.passed("openai: responses", lambda: openai_responses(client, model))
        stock.passed("anthropic: messages", lambda: anthropic_messages(claude, model))
        stock.passed("the examples of docs/openai.md", lambda: documented_examples(base))
        stock.passed("ollama: chat, generate, models", lambda: ollama_chat(ollama.Client(host=base), model))
    with stock.served(given, *stock.TOOLS) as (model, base):
        client = openai.OpenAI(base_url=f"{base}/v1", api_key="none", max_retries=0)
        claude = anthropic.Anthropic(base_url=base, api_key="none", max_retries=0)
        stock.passed("openai: functions of responses", lambda: openai_functions(client, model))
        stock.passed("anthropic: tools", lambda: anthropic_tools(claude, model))
        stock.passed("ollama: tools and forms", lambda: ollama_tools(ollama.Client(host=base), model))


if __name__ == "__main__":
    main()
