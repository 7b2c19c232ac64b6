#!/usr/bin/env python3
"""Random schemas against a running server; Python's jsonschema says whether the answers are valid.

    python3 -m venv .venv && .venv/bin/pip install -r tests/clients/requirements.txt
    cargo run --release -- serve &
    .venv/bin/python tests/clients/structured_outputs.py [--address HOST:PORT] [--schemas 1000] [--seed 0] [--verbose]

Seed by seed a schema is drawn and sent, the odd ones over gRPC and the even ones as OpenAI's response_format, at
temperature 1 with the same seed. Every answer that is not cut off at its limit of tokens must be JSON that Draft202012 calls
valid, formats included; of names that come twice both values are judged. One schema in ten is sent once more with a
keyword that is not enforced, which the server must refuse by its name. Ends with 0 where all is so, and 95 of 100 answers
are complete.
"""

import argparse
import collections
import concurrent.futures
import http.client
import json
import sys
import tempfile

import grpc
import jsonschema

from python_grpcio import generated_services
from random_schemas import Schemas

STREAMS = 16
PROMPT = "An example:"
VALIDATOR = jsonschema.Draft202012Validator


class Refused(Exception):
    """The server does not take the schema."""


class Grpc:
    """Answers by candlewick.v1.Generation."""

    def __init__(self, address, folder, max_tokens):
        services = generated_services(folder, ["common", "generation"])
        self.common, self.generation = services["common_pb2"], services["generation_pb2"]
        self.stub = services["generation_pb2_grpc"].GenerationStub(grpc.insecure_channel(address))
        self.max_tokens = max_tokens

    def __call__(self, schema, seed):
        outputs = self.common.StructuredOutputs(json=json.dumps(schema))
        sampling = self.common.SamplingParams(
            structured_outputs=outputs, seed=seed, max_tokens=self.max_tokens, temperature=1
        )
        request = self.generation.GenerateStreamRequest(
            prompt=self.generation.Prompt(text=PROMPT), options=self.common.RequestOptions(sampling=sampling)
        )
        text, reason = "", None
        try:
            for event in self.stub.GenerateStream(request, timeout=600):
                text += event.delta.text
                if event.HasField("finished"):
                    reason = event.finished.finish.reason
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.INVALID_ARGUMENT:
                raise Refused(error.details()) from error
            raise
        return text, reason == self.common.FINISH_REASON_LENGTH


class OpenAi:
    """Answers by /v1/chat/completions."""

    def __init__(self, address, max_tokens):
        self.address, self.max_tokens = address, max_tokens

    def __call__(self, schema, seed):
        body = {
            "messages": [{"role": "user", "content": PROMPT}],
            "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}},
            "seed": seed, "max_tokens": self.max_tokens, "temperature": 1,
        }
        connection = http.client.HTTPConnection(self.address, timeout=600)
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
        response = connection.getresponse()
        answer = json.loads(response.read())
        connection.close()
        if response.status == 400:
            raise Refused(answer["error"]["message"])
        (choice,) = answer["choices"]
        return choice["message"]["content"], choice["finish_reason"] == "length"


def first_wins(pairs):
    values = {}
    for name, value in pairs:
        values.setdefault(name, value)
    return values


def judge(text, schema):
    """What is wrong with an answer, or None."""
    validator = VALIDATOR(schema, format_checker=VALIDATOR.FORMAT_CHECKER)
    try:
        for pairs in (dict, first_wins):
            validator.validate(json.loads(text, object_pairs_hook=pairs))
    except (json.JSONDecodeError, jsonschema.ValidationError) as error:
        return str(error).splitlines()[0]
    return None


def one(seed, ask, verbose):
    """The outcomes of one seed; what was not as it should be is printed."""
    schemas = Schemas(seed)
    schema = schemas.document()
    VALIDATOR.check_schema(schema)
    outcomes = []
    try:
        text, cut = ask(schema, seed)
        wrong = None if cut else judge(text, schema)
        outcomes.append(("cut off" if cut else "INVALID" if wrong else "valid", f"{wrong}\n  {text!r}" if wrong or cut and verbose else None))
    except Refused as why:
        outcomes.append(("refused", str(why)))
    except Exception as error:  # Whatever it is, the seed is what one wants to know.
        outcomes.append(("FAILED", repr(error)))
    if seed % 10 == 0:
        spoiled, keyword = schemas.spoiled()
        try:
            ask(spoiled, seed)
            outcomes.append(("TAKEN in spite of its keyword", keyword))
        except Refused as why:
            named = f'"{keyword}"' in str(why)
            outcomes.append(("keyword named" if named else "NOT NAMED", None if named else f"{keyword}: {why}"))
    for outcome, why in outcomes:
        if why is not None:
            print(f"seed {seed}: {outcome}: {why}\n  {json.dumps(schema)}", flush=True)
    return [outcome for outcome, _ in outcomes]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--address", default="127.0.0.1:50051")
    parser.add_argument("--schemas", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="the first one")
    parser.add_argument("--max-tokens", type=int, default=400)
    parser.add_argument("--verbose", action="store_true", help="prints what was cut off as well")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        faces = [OpenAi(given.address, given.max_tokens), Grpc(given.address, folder, given.max_tokens)]
        with concurrent.futures.ThreadPoolExecutor(STREAMS) as pool:
            seeds = range(given.seed, given.seed + given.schemas)
            outcomes = [o for each in pool.map(lambda seed: one(seed, faces[seed % 2], given.verbose), seeds) for o in each]
    counts = collections.Counter(outcomes)
    print(f"{given.schemas} schemas: " + ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items())))
    if any(outcome[:2].isupper() for outcome in counts) or counts["valid"] < 0.95 * given.schemas:
        sys.exit("not as it should be")
    print("all came as it should")


if __name__ == "__main__":
    main()
