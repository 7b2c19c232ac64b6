#!/usr/bin/env python3
"""A stock Python client (grpcio) against a running server: lists the model, streams tokens, cancels, reads an error.

    python3 -m venv .venv && .venv/bin/pip install -r tests/clients/requirements.txt
    cargo run --release -- serve &
    .venv/bin/python tests/clients/python_grpcio.py [ADDRESS] [PROMPT]

ADDRESS defaults to 127.0.0.1:50051. Ends with 0 where everything came as it should.
"""

import importlib
import pathlib
import sys
import tempfile

import grpc
from grpc_tools import protoc

PROTO = pathlib.Path(__file__).resolve().parents[2] / "proto"
SERVICES = ["common", "generation", "models"]


def generated(folder):
    """Generates the messages and stubs from the project's own .proto files, and imports them."""
    files = [f"candlewick/v1/{name}.proto" for name in SERVICES]
    status = protoc.main(["protoc", f"-I{PROTO}", f"--python_out={folder}", f"--grpc_python_out={folder}", *files])
    if status:
        sys.exit("the .proto files do not compile")
    sys.path.insert(0, folder)
    module = lambda name: importlib.import_module(f"candlewick.v1.{name}")
    return module("common_pb2"), module("generation_pb2"), module("generation_pb2_grpc"), module("models_pb2"), module("models_pb2_grpc")


def main(address="127.0.0.1:50051", prompt="Once upon a time"):
    with tempfile.TemporaryDirectory() as folder, grpc.insecure_channel(address) as channel:
        common, generation, generation_rpc, models, models_rpc = generated(folder)

        (model,) = models_rpc.ModelsStub(channel).List(models.ListRequest(), timeout=10).models
        print(f"{model.name}: {model.architecture}, {model.num_parameters:,} parameters in {model.dtype}")

        def request(max_tokens, **sampling):
            if model.has_tokenizer:
                text = generation.Prompt(text=prompt)
            else:
                text = generation.Prompt(token_ids=generation.TokenIds(ids=[1, 2, 3]))
            sampling = common.SamplingParams(temperature=0, max_tokens=max_tokens, **sampling)
            return generation.GenerateStreamRequest(prompt=text, options=common.RequestOptions(sampling=sampling))

        stub = generation_rpc.GenerationStub(channel)
        tokens, finished = [], None
        for response in stub.GenerateStream(request(48, ignore_eos=True), timeout=60):
            match response.WhichOneof("event"):
                case "started":
                    assert response.seq == 1, response
                case "delta":
                    tokens += response.delta.token_ids
                    print(response.delta.text or ("" if model.has_tokenizer else response.delta.token_ids), end="", flush=True)
                case "finished":
                    finished = response.finished
        print()
        assert len(tokens) == 48 == finished.usage.completion_tokens, finished
        assert finished.finish.reason == common.FINISH_REASON_LENGTH, finished

        again = stub.GenerateStream(request(48, ignore_eos=True), timeout=60)
        next(again)
        again.cancel()

        try:
            list(stub.GenerateStream(request(48, top_p=7), timeout=10))
            sys.exit("a top_p of 7 was taken")
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.INVALID_ARGUMENT, error
            print(f"refused as it should be: {error.details()}")
        print("all came as it should")


if __name__ == "__main__":
    main(*sys.argv[1:])
