#!/usr/bin/env python3
"""What a token costs over each wire: the tables and the picture of docs/grpc-or-json.md.

    python3 -m venv .venv && .venv/bin/pip install -r tests/clients/requirements-grpc-or-json.txt
    cargo build --release
    .venv/bin/python tests/clients/grpc_or_json.py target/release/candlewick [--svg docs/images/grpc-or-json.svg]

Starts the server with the built-in model, has it generate the same tokens over gRPC, gRPC-Web, and server-sent events over
HTTP/1.1 and HTTP/2, at 1, 64 and 1,024 streams, and prints Markdown. Ends with 0 where every face gave the same text. All is
on the loopback interface; a few minutes on two cores. Linux only: CPU time is read from /proc and the process's clock.
"""

import argparse
import asyncio
import base64
import contextlib
import dataclasses
import importlib
import json
import os
import pathlib
import re
import resource
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

import grpc
from grpc_tools import protoc

from grpc_or_json_picture import picture
from grpc_or_json_report import report, would_be
from grpc_or_json_wire import Http1, Http2, Relay

PROTO = pathlib.Path(__file__).resolve().parents[2] / "proto"
PROMPT = "Once upon a time"
GENERATION = "/candlewick.v1.Generation/"
# Calls under way on one HTTP/2 connection; HTTP/1.1 takes one.
CALLS_A_CONNECTION = 16
# Streams at once, and how often each is asked in a row, so that one stream too gives times to take percentiles of.
SCALES = {1: 16, 64: 1, 1024: 1}
AUTHORITY = "127.0.0.1"
AGENT = {"user-agent": "grpc-or-json/1"}
# What a client that unpacks gzip says. Every wire says it, so that a server that packs would.
UNPACKS = {"accept-encoding": "gzip"}
BODIES = {"content-type": "application/json", **UNPACKS, **AGENT}


class Call:
    """One call, and what came back of it so far."""

    def __init__(self, face):
        self.face, self.buffer = face, b""
        self.sent = self.first = self.status = None
        self.said, self.messages, self.tokens, self.encoding = [], [], 0, None
        self.done = asyncio.get_running_loop().create_future()

    def headers(self, fields):
        self.encoding = fields.get("content-encoding") or fields.get("grpc-encoding")
        if fields[":status"] != "200":
            self.broke(RuntimeError(f"{self.face.name}: {fields}"))

    def message(self, payload, text, tokens):
        self.messages.append(payload)
        if tokens or text:
            self.first = self.first or time.perf_counter()
            self.tokens += tokens
            self.said.append(text)

    def ended(self, trailers):
        status = trailers.get("grpc-status", self.status)
        if status not in (None, "0"):
            self.broke(RuntimeError(f"{self.face.name}: gRPC status {status}: {trailers}"))
        elif not self.done.done():
            self.done.set_result(self)

    def broke(self, error):
        if not self.done.done():
            self.done.set_exception(error)


class GrpcCall(Call):
    """Messages after five bytes each; gRPC-Web's last one holds the trailers."""

    def data(self, data):
        self.buffer += data
        while len(self.buffer) >= 5 and len(self.buffer) >= (end := 5 + int.from_bytes(self.buffer[1:5], "big")):
            flags, payload, self.buffer = self.buffer[0], self.buffer[5:end], self.buffer[end:]
            if flags & 0x80:
                self.status = re.search(rb"grpc-status: *(\d+)", payload).group(1).decode()
                continue
            assert flags == 0, "a packed message"
            self.take(payload)

    def take(self, payload):
        answer = self.face.answer.FromString(payload)
        delta = answer.output if self.face.whole else answer.delta
        self.message(payload, delta.text, len(delta.token_ids))


class GrpcWebTextCall(GrpcCall):
    """The same in base64, whose pieces end with padding wherever the server pleased."""

    encoded = b""

    def data(self, data):
        self.encoded += data
        whole = len(self.encoded) // 4 * 4
        quanta, self.encoded = self.encoded[:whole], self.encoded[whole:]
        super().data(b"".join(base64.b64decode(piece) for piece in re.findall(rb"[^=]+=*", quanta)))


class SseCall(Call):
    """OpenAI's chunks. Tokens are counted by the usage of the last one: a chunk does not say how many it holds."""

    def data(self, data):
        *events, self.buffer = (self.buffer + data).split(b"\n\n")
        for event in events:
            # A comment: nothing came for so long that the server says that it is alive.
            if event.startswith(b":"):
                continue
            payload = event.removeprefix(b"data: ")
            if payload == b"[DONE]":
                self.messages.append(payload)
                continue
            chunk = json.loads(payload)
            choice = (chunk["choices"] or [{}])[0]
            text = choice.get("text") or choice.get("delta", {}).get("content") or ""
            self.message(payload, text, (chunk.get("usage") or {}).get("completion_tokens", 0))


class JsonCall(Call):
    """An answer all at once."""

    def data(self, data):
        self.buffer += data

    def ended(self, trailers):
        answer = json.loads(self.buffer)
        self.message(self.buffer, answer["choices"][0]["text"], answer["usage"]["completion_tokens"])
        super().ended(trailers)


@dataclasses.dataclass
class Face:
    """A way to ask."""

    name: str
    wire: type
    path: str
    call: type
    fields: dict
    body: object
    answer: type = None
    whole: bool = False
    # Whether its text must be that of the others: a chat's prompt is another one.
    chat: bool = False


def faces(common, generation):
    def protobuf(kind, **more):
        def body(tokens):
            sampling = common.SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
            options = common.RequestOptions(sampling=sampling, **more)
            message = kind(prompt=generation.Prompt(text=PROMPT), options=options).SerializeToString()
            return b"\0" + len(message).to_bytes(4, "big") + message

        return body

    def base64_of(body):
        return lambda tokens: base64.b64encode(body(tokens))

    def completion(**more):
        def body(tokens):
            asked = {"max_tokens": tokens, "temperature": 0, "ignore_eos": True, **more}
            if asked.get("stream"):
                asked["stream_options"] = {"include_usage": True}
            return json.dumps(asked).encode()

        return body

    plain, asked = {"prompt": PROMPT}, {"messages": [{"role": "user", "content": "Tell me a story."}]}
    stream, whole = generation.GenerateStreamRequest, generation.GenerateRequest
    events, answer = generation.GenerateStreamResponse, generation.GenerateResponse
    native = {"te": "trailers", "content-type": "application/grpc", "grpc-accept-encoding": "gzip", **AGENT}
    web = {"content-type": "application/grpc-web+proto", "x-grpc-web": "1", "grpc-accept-encoding": "gzip", **UNPACKS, **AGENT}
    text = {**web, "content-type": "application/grpc-web-text+proto", "accept": "application/grpc-web-text"}
    calls, completions, chat = GENERATION + "GenerateStream", "/v1/completions", "/v1/chat/completions"
    coalescing = protobuf(stream, slow_reader=common.SLOW_READER_COALESCE)
    return [
        Face("gRPC, all at once", Http2, GENERATION + "Generate", GrpcCall, native, protobuf(whole), answer, whole=True),
        Face("JSON, all at once, HTTP/1.1", Http1, completions, JsonCall, BODIES, completion(**plain), whole=True),
        Face("gRPC", Http2, calls, GrpcCall, native, protobuf(stream), events),
        Face("gRPC, coalescing", Http2, calls, GrpcCall, native, coalescing, events),
        Face("gRPC-Web, HTTP/2", Http2, calls, GrpcCall, web, protobuf(stream), events),
        Face("gRPC-Web, HTTP/1.1", Http1, calls, GrpcCall, web, protobuf(stream), events),
        Face("gRPC-Web text, HTTP/1.1", Http1, calls, GrpcWebTextCall, text, base64_of(protobuf(stream)), events),
        Face("SSE completions, HTTP/2", Http2, completions, SseCall, BODIES, completion(stream=True, **plain)),
        Face("SSE completions, HTTP/1.1", Http1, completions, SseCall, BODIES, completion(stream=True, **plain)),
        Face("SSE chat, HTTP/1.1", Http1, chat, SseCall, BODIES, completion(stream=True, **asked), chat=True),
    ]


class Server:
    """The server under measurement."""

    def __init__(self, binary, streams):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        flags = ["--threads", "1", "--max-model-len", "256", "--num-gpu-blocks-override", str(16 * streams)]
        flags += ["--max-num-seqs", str(streams), "--max-waiting", str(streams), "--log-level", "error"]
        command = [binary, "serve", "--listen", f"127.0.0.1:{self.port}", *flags]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        for _ in range(600):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5).read()
                return
            if self.process.poll() is not None:
                sys.exit("the server did not start")
            time.sleep(0.1)
        sys.exit("the server is not ready after a minute")

    def cpu(self):
        """CPU seconds so far: of the process, user and system; of its engine thread, which computes the model; and in the
        kernel, of all others, by the clock's ticks."""
        # The process's CPU-time clock, as pthread_getcpuclockid(3) names it: what /proc/PID/stat has, to the nanosecond.
        process, engine, kernel = time.clock_gettime((~self.process.pid) << 3 | 2), 0, 0
        for task in pathlib.Path(f"/proc/{self.process.pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError):
                if (task / "comm").read_text().startswith("engine"):
                    engine += int((task / "schedstat").read_text().split()[0]) / 1e9
                else:
                    kernel += int((task / "stat").read_text().rpartition(")")[2].split()[12]) / os.sysconf("SC_CLK_TCK")
        return process, engine, kernel

    def close(self):
        self.process.terminate()
        self.process.wait(60)


async def connect(face, port, number):
    loop = asyncio.get_running_loop()
    connections = []
    for _ in range(number):
        connections.append((await loop.create_connection(face.wire, "127.0.0.1", port))[1])
    await asyncio.gather(*(connection.ready for connection in connections))
    # The server's answer to what opened an HTTP/2 connection is not the calls'.
    await asyncio.sleep(0.2)
    return connections


async def ask(face, connections, streams, rounds, tokens):
    """Has `streams` callers ask `rounds` times each; all calls."""
    body = face.body(tokens)

    async def caller(k):
        calls = []
        for _ in range(rounds):
            call = face.call(face)
            call.sent = time.perf_counter()
            connections[k % len(connections)].start(AUTHORITY, face.path, face.fields, body, call)
            calls.append(await asyncio.wait_for(call.done, 600))
        return calls

    return [call for calls in await asyncio.gather(*(caller(k) for k in range(streams))) for call in calls]


async def measure(face, server, relay, streams, rounds, tokens):
    """The text, and one cell of the tables."""
    connections = await connect(face, relay.port, streams if face.wire is Http1 else -(-streams // CALLS_A_CONNECTION))
    # Tables of compressed headers, the prefix cache and the allocator are warm.
    await ask(face, connections, len(connections), 1, 4)
    await asyncio.sleep(0.1)
    (up, down, reads), cpu, began = relay.counters(), server.cpu(), (time.perf_counter(), time.process_time())
    calls = await ask(face, connections, streams, rounds, tokens)
    ended = (time.perf_counter(), time.process_time())
    process, engine, kernel = (after - before for after, before in zip(server.cpu(), cpu))
    up_after, down_after, reads_after = relay.counters()
    for connection in connections:
        connection.transport.close()
    count = sum(call.tokens for call in calls)
    assert count == streams * rounds * tokens, (face.name, count)
    assert all(call.encoding in (None, "identity") for call in calls), "packed: this program counts plain messages"
    texts = {"".join(call.said) for call in calls}
    assert len(texts) == 1, (face.name, texts)
    (text,) = texts
    times = sorted(call.first - call.sent for call in calls)
    return text, {
        "up": (up_after - up) / count,
        "down": (down_after - down) / count,
        "reads": (reads_after - reads) / count,
        "payload": sum(len(message) for call in calls for message in call.messages) / count,
        "messages": sum(len(call.messages) for call in calls) / count,
        "said": len(text.encode()) / tokens,
        "process": process / count * 1e6,
        "serving": (process - engine) / count * 1e6,
        "kernel": kernel / (process - engine),
        "median": statistics.median(times) * 1e3,
        "p95": times[min(len(times) - 1, int(len(times) * 0.95))] * 1e3,
        "rate": count / (ended[0] - began[0]),
        "client": (ended[1] - began[1]) / (ended[0] - began[0]),
    }


async def bytes_of(face, relay, tokens):
    """Bytes of one call, to the server and back, on a connection that has seen one."""
    (connection,) = await connect(face, relay.port, 1)
    await ask(face, [connection], 1, 1, tokens)
    await asyncio.sleep(0.1)
    before = relay.counters()
    (call,) = await ask(face, [connection], 1, 1, tokens)
    await asyncio.sleep(0.1)
    after = relay.counters()
    connection.transport.close()
    return after[0] - before[0], after[1] - before[1], call


def stock(relay, generation, request, tokens):
    """The same call by grpcio: bytes to the server and back, a token, window updates and pings included."""
    message = generation.GenerateStreamRequest.FromString(request[5:])
    with grpc.insecure_channel(f"127.0.0.1:{relay.port}") as channel:
        call = channel.unary_stream(
            GENERATION + "GenerateStream",
            request_serializer=generation.GenerateStreamRequest.SerializeToString,
            response_deserializer=generation.GenerateStreamResponse.FromString,
        )
        for _ in call(message, timeout=60):
            pass
        time.sleep(0.2)
        before = relay.counters()
        count = sum(len(answer.delta.token_ids) for answer in call(message, timeout=60))
        time.sleep(0.2)
        after = relay.counters()
    assert count == tokens
    return [(b - a) / tokens for a, b in zip(before, after)]


async def by_call(faces, relay, tokens):
    """What a call costs in bytes up, down, and down for a token more; and the messages of one call of each face."""
    calls, captured = {}, {}
    for face in faces:
        few, many = await bytes_of(face, relay, tokens // 4), await bytes_of(face, relay, tokens)
        a_token = (many[1] - few[1]) / (tokens - tokens // 4)
        calls[face.name] = [many[0], many[1] - a_token * tokens, a_token]
        captured[face.name] = many[2].messages
    return calls, captured


async def repetition(faces, server, relay, scales, tokens, cells):
    """Adds to `cells`, by face and number of streams, one measurement of each."""
    texts = set()
    for streams in scales:
        for face in faces:
            text, cell = await measure(face, server, relay, streams, SCALES[streams], tokens)
            texts |= set() if face.chat else {text}
            cells[face.name].setdefault(str(streams), []).append(cell)
            print(f"{streams:5} {face.name:28} {cell['serving']:7.1f} us a token", file=sys.stderr, flush=True)
    assert len(texts) == 1, f"the faces do not say the same: {texts}"


def generated_messages():
    """The messages of the project's own .proto files: common's, and generation's."""
    with tempfile.TemporaryDirectory() as folder:
        files = [f"candlewick/v1/{name}.proto" for name in ("common", "chat", "generation")]
        if protoc.main(["protoc", f"-I{PROTO}", f"--python_out={folder}", *files]):
            sys.exit("the .proto files do not compile")
        sys.path.insert(0, folder)
        return [importlib.import_module(f"candlewick.v1.{name}_pb2") for name in ("common", "generation")]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("binary", help="the server: target/release/candlewick")
    parser.add_argument("--streams", type=int, default=max(SCALES), help="leave out what has more streams at once")
    parser.add_argument("--tokens", type=int, default=32, help="tokens a stream")
    parser.add_argument("--repeat", type=int, default=3, help="how often all is measured; medians are printed")
    parser.add_argument("--svg", type=pathlib.Path, help="where the picture goes")
    parser.add_argument("--json", type=pathlib.Path, help="where every single figure goes")
    arguments = parser.parse_args()
    # A relay holds two sockets a connection.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    # So that the server goes down with this program.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    common, generation = generated_messages()
    every = faces(common, generation)
    server = Server(arguments.binary, max(SCALES))
    with contextlib.closing(server), contextlib.closing(Relay(server.port)) as relay:
        calls, captured = asyncio.run(by_call(every, relay, arguments.tokens))
        measured = {"tokens": arguments.tokens, "calls": calls, "cells": {face.name: {} for face in every}}
        measured |= would_be(captured, generation.GenerateStreamResponse)
        scales = [streams for streams in SCALES if streams <= arguments.streams]
        for _ in range(arguments.repeat):
            asyncio.run(repetition(every, server, relay, scales, arguments.tokens, measured["cells"]))
            if arguments.json:
                arguments.json.write_text(json.dumps(measured, indent=1), encoding="utf-8")
        # Last: from its first call on, grpcio has threads in this process.
        request = next(face for face in every if face.name == "gRPC").body(arguments.tokens)
        measured["grpcio"] = stock(relay, generation, request, arguments.tokens)
    if arguments.json:
        arguments.json.write_text(json.dumps(measured, indent=1), encoding="utf-8")
    if arguments.svg:
        arguments.svg.write_text(picture(measured["cells"]), encoding="utf-8")
    print(report(measured))


if __name__ == "__main__":
    main()
