#!/usr/bin/env python3
"""Random schemas against a running server; Python's jsonschema says whether the answers are valid.

    python3 -m venv .venv && .venv/bin/pip install -r tests/clients/requirements.txt
    cargo run --release -- serve &
    .venv/bin/python tests/clients/structured_outputs.py [ADDRESS] [SCHEMAS]

ADDRESS defaults to 127.0.0.1:50051, SCHEMAS to 1000. Answers cut off at their limit of tokens are counted and not judged.
Ends with 0 where every complete answer is valid, and most are complete.
"""

import concurrent.futures
import json
import random
import sys
import tempfile

import grpc
import jsonschema

from python_grpcio import generated_services

STREAMS = 16


def leaf(draw):
    low = draw.randrange(-500, 500)
    return draw.choice(
        [
            {"type": "string", "maxLength": draw.randrange(1, 20)},
            {"type": "string", "pattern": draw.choice(["^[A-Z][a-z]{2,5}$", r"^\d{3}-\d{4}$", "^(a|b)*c$"])},
            {"type": "integer", "minimum": low, "maximum": low + draw.randrange(0, 300)},
            {"type": "integer", "minimum": 0, "maximum": 900, "multipleOf": draw.choice([2, 5, 7])},
            {"type": "number", "minimum": low, "maximum": low + 10},
            {"type": draw.choice(["boolean", "null"])},
            {"enum": ["red", 'gr"een\n', 7, None, {"a": [1, "é"]}]},
            {"type": ["integer", "null"], "minimum": 0, "maximum": 99},
        ]
    )


def schema(draw, depth=2):
    if depth == 0 or draw.random() < 0.3:
        return leaf(draw)
    kind = draw.randrange(4)
    if kind == 0:
        least = draw.randrange(3)
        items = {"type": "array", "items": schema(draw, depth - 1), "minItems": least}
        return {**items, "maxItems": least + draw.randrange(3)}
    if kind == 1:
        return {"anyOf": [schema(draw, depth - 1), leaf(draw)]}
    names = draw.sample(["id", "name", "a b", "über", 'q"uote', "tags", "x/y", ""], draw.randrange(1, 5))
    properties = {name: schema(draw, depth - 1) for name in names}
    required = [name for name in names if draw.random() < 0.6]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def main(address="127.0.0.1:50051", schemas="1000"):
    with tempfile.TemporaryDirectory() as folder, grpc.insecure_channel(address) as channel:
        services = generated_services(folder, ["common", "generation"])
        common, generation = services["common_pb2"], services["generation_pb2"]
        stub = services["generation_pb2_grpc"].GenerationStub(channel)

        def answer(seed):
            wanted = schema(random.Random(seed))
            outputs = common.StructuredOutputs(json=json.dumps(wanted), whitespace_pattern=" ?")
            sampling = common.SamplingParams(structured_outputs=outputs, seed=seed, max_tokens=400, temperature=1.5)
            request = generation.GenerateStreamRequest(
                prompt=generation.Prompt(text="An example:"), options=common.RequestOptions(sampling=sampling)
            )
            text, reason = "", None
            for event in stub.GenerateStream(request, timeout=600):
                text += event.delta.text
                if event.HasField("finished"):
                    reason = event.finished.finish.reason
            if reason == common.FINISH_REASON_LENGTH:
                return None
            try:
                jsonschema.validate(json.loads(text), wanted)
                return True
            except (json.JSONDecodeError, jsonschema.ValidationError) as error:
                print(f"seed {seed}: {error}\n{json.dumps(wanted)}\n{text!r}")
                return False

        with concurrent.futures.ThreadPoolExecutor(STREAMS) as pool:
            answers = list(pool.map(answer, range(int(schemas))))
    valid, invalid, cut = (answers.count(outcome) for outcome in (True, False, None))
    print(f"{schemas} schemas: {valid} valid, {invalid} invalid, {cut} cut off")
    if invalid or valid < 0.8 * len(answers):
        sys.exit("not as it should be")


if __name__ == "__main__":
    main(*sys.argv[1:])
