"""Renders chat templates with transformers' own render_jinja_template and writes what came of it as JSON.

    python chat_templates.py FOLDER > ../data/chat_templates.json

The file holds the conversations, the options, the cases (pairs of them), the reasons for which Jinja could not render
something, and for each template of FOLDER a list with an entry a case: the 64-bit FNV-1a hash of the text; "raised HASH",
that of the message which the template raised; or "failed N", the Nth of the reasons, where Jinja could not render the
template at all. Hashes, because the templates are other people's.

Messages go through what apply_chat_template does before it renders: fields that are null are left out.
"""

import datetime
import json
import pathlib
import sys

import jinja2
from transformers.utils import chat_template_utils

NOW = datetime.datetime(2026, 7, 25, 17, 20)  # 1785000000 s after 1970, in UTC
TOKENS = {"bos_token": "<bos>", "eos_token": "<eos>"}


class FixedNow(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(NOW.year, NOW.month, NOW.day, NOW.hour, NOW.minute)


chat_template_utils.datetime = FixedNow

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather in a city — now & <soon>",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Name of the \"city\""},
                "days": {"type": "integer", "description": "How many", "default": 1},
                "unit": {"type": "string", "enum": ["c", "f"]},
                "places": {"type": "array", "items": {"type": "string"}},
                "options": {"type": "object", "properties": {"wind": {"type": "boolean"}}, "required": ["wind"]},
            },
            "required": ["city"],
        },
    },
}
CLOCK = {
    "type": "function",
    "function": {"name": "clock", "description": "The time", "parameters": {"type": "object", "properties": {}}},
}


def call(name, arguments, identity):
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}}


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


PARIS = call("get_weather", {"city": "Paris é <b>", "days": 2, "options": {"wind": True}, "places": ["a", "b"]}, "abcdef123")
TIME = call("clock", {}, "bcdefg234")
ANSWER = {"role": "tool", "name": "get_weather", "tool_call_id": "abcdef123", "content": '{"t": 21.5}'}
SECOND = {"role": "tool", "name": "clock", "tool_call_id": "bcdefg234", "content": "12:00"}

CONVERSATIONS = {
    "plain": [user("Hello there ")],
    "system": [{"role": "system", "content": "Be brief. "}, user("Hi, é <b>\n"), assistant("Hello!"), user("2+2?")],
    "two users": [user("a"), user("b")],
    "ends with an answer": [user("a"), assistant(" b ")],
    "tool call": [user("Weather?"), assistant("", tool_calls=[PARIS])],
    "tool call without content": [user("Weather?"), assistant(None, tool_calls=[PARIS])],
    "tool result": [user("Weather?"), assistant("", tool_calls=[PARIS]), ANSWER],
    "tool results": [
        {"role": "system", "content": "Be brief."},
        user("Weather and time?"),
        assistant("I look.", tool_calls=[PARIS, TIME]),
        ANSWER,
        SECOND,
        assistant("Fine, noon."),
        user("Thanks"),
    ],
    "text arguments": [user("Weather?"), assistant("", tool_calls=[call("get_weather", '{"city": "Rome"}', "abcdef123")]), ANSWER],
    "thinking": [user("a"), assistant("b", reasoning_content="hm\nso"), user("c")],
    "thinking in the text": [user("a"), assistant("<think>\nhm\n</think>\n\nb"), user("c")],
    "thinking and a tool": [user("a"), assistant("", reasoning_content="I need it", tool_calls=[PARIS]), ANSWER],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]}],
}

OPTIONS = {
    "start": {"add_generation_prompt": True},
    "no start": {"add_generation_prompt": False},
    "tools": {"add_generation_prompt": True, "tools": [WEATHER, CLOCK]},
    "thinks": {"add_generation_prompt": True, "kwargs": {"enable_thinking": True, "thinking": True}},
    "thinks not": {"add_generation_prompt": True, "kwargs": {"enable_thinking": False, "thinking": False}},
    "thinks with tools": {"add_generation_prompt": True, "tools": [WEATHER], "kwargs": {"enable_thinking": True}},
    "documents": {"add_generation_prompt": True, "documents": [{"doc_id": 1, "title": "T", "text": "é <1>"}]},
    "continues": {"continue_final_message": True},
}

CASES = [
    (conversation, option)
    for conversation in CONVERSATIONS
    for option in OPTIONS
    # Only an answer can be gone on with.
    if option != "continues" or conversation == "ends with an answer"
]


def fnv1a(text):
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return f"{value:016x}"


REASONS = []


def failed(error):
    reason = f"{type(error).__name__}: {error}"
    if reason not in REASONS:
        REASONS.append(reason)
    return f"failed {REASONS.index(reason)}"


def render(source, conversation, option):
    option = dict(OPTIONS[option])
    kwargs = {**TOKENS, **option.pop("kwargs", {})}
    messages = [{k: v for k, v in m.items() if v is not None} for m in CONVERSATIONS[conversation]]
    try:
        texts, _ = chat_template_utils.render_jinja_template(
            conversations=[messages], chat_template=source, **option, **kwargs
        )
        return fnv1a(texts[0])
    except jinja2.exceptions.TemplateError as error:
        # Only raise_exception raises the class itself; the engine's own errors are below it.
        return f"raised {fnv1a(str(error))}" if type(error) is jinja2.exceptions.TemplateError else failed(error)
    except Exception as error:
        return failed(error)


def main():
    dump = lambda value: json.dumps(value, ensure_ascii=False)
    print('{"conversations": ' + dump(CONVERSATIONS) + ",")
    print('"options": ' + dump(OPTIONS) + ",")
    print('"cases": ' + dump(CASES) + ",")
    print('"templates": {')
    paths = sorted(pathlib.Path(sys.argv[1]).glob("*.jinja"))
    for path in paths:
        rows = [render(path.read_text(), *case) for case in CASES]
        print(f"{dump(path.name)}: {dump(rows)}" + ("," if path != paths[-1] else ""))
    print('},\n"reasons": ' + dump(REASONS) + "}")


if __name__ == "__main__":
    main()
