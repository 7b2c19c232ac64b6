#!/usr/bin/env python3
"""Embeddings through stock clients (grpcio, openai) beside those of Hugging Face's transformers.

    python3 -m venv .venv && .venv/bin/pip install -r tests/clients/requirements-embeddings.txt
    .venv/bin/python tests/clients/embeddings.py target/release/candlewick [CHECKPOINT ...]

Serves each checkpoint (a directory; two of the small ones in tests/fixtures/golden unless named) in float32 and asks for
mean and last vectors of random inputs: in one call, through a stream, and over HTTP in both encodings. All must be within
1e-4 of what transformers computes, and those of one input the same bits whichever way they came. Ends with 0 where they
are.
"""

import argparse
import importlib
import json
import pathlib
import random
import re
import subprocess
import sys
import tempfile

import grpc
import openai
import torch
from grpc_tools import protoc
from transformers import AutoModel

ROOT = pathlib.Path(__file__).resolve().parents[2]
CHECKPOINTS = [ROOT / "tests" / "fixtures" / "golden" / name for name in ("llama", "qwen3")]
LENGTHS = [1, 2, 7, 16, 17, 33, 64, 100]
FAR = 1e-4


def generated(folder):
    """The messages and the stub, generated from the project's own .proto files."""
    files = [f"candlewick/v1/{name}.proto" for name in ("common", "generation", "chat", "embeddings")]
    include = f"-I{ROOT / 'proto'}"
    if protoc.main(["protoc", include, f"--python_out={folder}", f"--grpc_python_out={folder}", *files]):
        sys.exit("the .proto files do not compile")
    sys.path.insert(0, folder)
    names = ("generation_pb2", "embeddings_pb2", "embeddings_pb2_grpc")
    return [importlib.import_module(f"candlewick.v1.{name}") for name in names]


class Oracle:
    """What transformers makes of token ids."""

    def __init__(self, checkpoint):
        self.model = AutoModel.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager").eval()

    def vector(self, ids, pooling, normalize, dimensions=None):
        with torch.no_grad():
            states = self.model(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[0].double()
        vector = states.mean(0) if pooling == "mean" else states[-1]
        vector = vector[:dimensions]
        return (vector / vector.norm() if normalize else vector).tolist()


def distance(vector, reference):
    """Of the difference, the length, over that of the reference."""
    difference, reference = torch.tensor(vector).double() - torch.tensor(reference), torch.tensor(reference)
    return float(difference.norm() / reference.norm())


def check(what, vectors, references):
    far = max(distance(*pair) for pair in zip(vectors, references, strict=True))
    assert far < FAR, f"{what}: {far:.2e} away"
    print(f"ok    {what}: {len(vectors)} vectors, {far:.1e} away at the most", flush=True)


def over_grpc(address, inputs, oracle, wire):
    generation, embeddings, rpc = wire
    token_ids = lambda ids: embeddings.EmbedInput(token_ids=generation.TokenIds(ids=ids))
    vectors = {}
    with grpc.insecure_channel(address) as channel:
        stub = rpc.EmbeddingsStub(channel)
        for pooling, number in (("mean", embeddings.POOLING_MEAN), ("last", embeddings.POOLING_LAST)):
            options = embeddings.EmbedOptions(pooling=number, normalize=False)
            request = embeddings.EmbedRequest(inputs=[token_ids(ids) for ids in inputs], options=options)
            answer = stub.Embed(request, timeout=120)
            vectors[pooling] = [list(embedding.values) for embedding in answer.embeddings]
            assert answer.usage.prompt_tokens == sum(map(len, inputs)), answer.usage
            references = [oracle.vector(ids, pooling, False) for ids in inputs]
            check(f"grpcio, Embed, {pooling}", vectors[pooling], references)

            items = [embeddings.EmbedItem(id=k, input=token_ids(ids)) for k, ids in enumerate(inputs)]
            said = [embeddings.EmbedStreamRequest(options=options)]
            said += [embeddings.EmbedStreamRequest(item=item) for item in items]
            results = {result.id: result for result in stub.EmbedStream(iter(said), timeout=120)}
            streamed = [list(results[k].embedding.values) for k in range(len(inputs))]
            assert streamed == vectors[pooling], "a stream gives other vectors than one call"
            print(f"ok    grpcio, EmbedStream, {pooling}: {len(streamed)} vectors, the same bits", flush=True)
        try:
            stub.Embed(embeddings.EmbedRequest(inputs=[token_ids([10**6])]), timeout=10)
            sys.exit("a token beyond the vocabulary was taken")
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.INVALID_ARGUMENT, error
            assert error.details().startswith("inputs[0].token_ids.ids[0]"), error
    return vectors


def over_http(base, model, inputs, oracle, raw):
    client = openai.OpenAI(base_url=f"{base}/v1", api_key="none", max_retries=0)
    create = lambda **more: client.embeddings.create(model=model, input=inputs, **more)
    vectors = lambda answer: [row.embedding for row in sorted(answer.data, key=lambda row: row.index)]
    for pooling in ("mean", "last"):
        body = {"pooling": pooling}
        # The client asks for base64 unless told otherwise, and decodes it.
        packed, plain = create(extra_body=body), create(encoding_format="float", extra_body=body)
        assert packed.usage.prompt_tokens == plain.usage.total_tokens == sum(map(len, inputs))
        single = lambda rows: [torch.tensor(row).tolist() for row in rows]
        assert single(vectors(packed)) == single(vectors(plain)), "the encodings differ"
        check(f"openai, {pooling}", vectors(plain), [oracle.vector(ids, pooling, True) for ids in inputs])
        cut = vectors(create(dimensions=24, extra_body=body))
        check(f"openai, {pooling}, 24 dimensions", cut, [oracle.vector(ids, pooling, True, 24) for ids in inputs])
        unchanged = vectors(create(encoding_format="float", extra_body={**body, "normalize": False}))
        assert single(unchanged) == raw[pooling], "HTTP gives other vectors than gRPC"
    assert vectors(create()) == vectors(packed), "a causal model pools its last token unless its files say otherwise"
    try:
        create(dimensions=10**6)
        sys.exit("a million dimensions were given")
    except openai.BadRequestError as error:
        assert error.param == "dimensions", error


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("binary", help="the candlewick program")
    parser.add_argument("checkpoints", nargs="*", type=pathlib.Path, default=CHECKPOINTS, help="directories")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        wire = generated(folder)
        for checkpoint in arguments.checkpoints:
            print(checkpoint.name, flush=True)
            vocabulary = json.loads((checkpoint / "config.json").read_text())["vocab_size"]
            draw = random.Random(7)
            inputs = [[draw.randrange(3, vocabulary) for _ in range(length)] for length in LENGTHS]
            oracle = Oracle(checkpoint)
            # A budget so small that most inputs come in chunks.
            flags = ["--dtype", "float32", "--max-num-batched-tokens", "24", "--listen", "127.0.0.1:0"]
            command = [arguments.binary, "serve", str(checkpoint), *flags]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
                try:
                    line = server.stdout.readline()
                    model, address = re.match(r"candlewick serves (\S+) on (\S+):", line).groups()
                    raw = over_grpc(address, inputs, oracle, wire)
                    over_http(f"http://{address}", model, inputs, oracle, raw)
                finally:
                    server.terminate()
    print("all vectors are transformers' vectors")


if __name__ == "__main__":
    sys.exit(main())
