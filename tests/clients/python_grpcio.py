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


def generated_services(folder, services):
    """Generates the messages and stubs from the project's own .proto files, and imports those of `services` by name.

    All files are compiled, because they import each other.
    """
    files = [str(file.relative_to(PROTO)) for file in sorted(PROTO.glob("candlewick/v1/*.proto"))]
    status = protoc.main(["protoc", f"-I{PROTO}", f"--python_out={folder}", f"--grpc_python_out={folder}", *files])
    if status:
        sys.exit("the .proto files do not compile")
    sys.path.insert(0, folder)
    names = [f"{service}_{kind}" for service in services for kind in ("pb2", "pb2_grpc")]
    return {name: importlib.import_module(f"candlewick.v1.{name}") for name in names}


def main(address="127.0.0.1:50051", prompt="Once upon a time"):
    with tempfile.TemporaryDirectory() as folder, grpc.insecure_channel(address) as channel:
        services = generated_services(folder, ["common", "generation", "models"])
        common, generation, models = (services[f"{name}_pb2"] for name in ("common", "generation", "models"))
        generation_rpc, models_rpc = services["generation_pb2_grpc"], services["models_pb2_grpc"]

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
