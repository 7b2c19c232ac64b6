#!/usr/bin/env python3
"""The proxies of deploy/proxies in front of two workers, each that is installed: streams arrive token by token, statuses in
trailers with their details, a stream in both directions, errors in the middle of a stream, what operators may do is not passed on, sessions keep to their worker, and
a worker that drains gets nothing new.

    python3 -m venv .venv && .venv/bin/pip install -r tests/clients/requirements-proxies.txt
    cargo build --release
    .venv/bin/python tests/clients/proxies.py [--binary target/release/candlewick] [--only envoy nginx haproxy]

The configurations are run as they are, but for ports and temporary folders. Listens on the loopback interface alone, ends by itself, and ends
with 0 where everything came as it should; a proxy that is not installed is named and passed over.
"""

import argparse
import base64
import collections
import json
import os
import pathlib
import queue
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

import grpc
from grpc_tools import protoc

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROXIES = {
    "envoy": ("envoy.yaml", lambda program, file, folder: [program, "-c", file, "--concurrency", "1", "--base-id", str(os.getpid()), "--log-level", "warn"]),
    "nginx": ("nginx.conf", lambda program, file, folder: [program, "-p", str(folder), "-c", file, "-g", "daemon off;"]),
    "haproxy": ("haproxy.cfg", lambda program, file, folder: [program, "-db", "-f", file]),
}


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def until(what, holds, patience_s=60):
    began = time.monotonic()
    while not holds():
        if time.monotonic() - began > patience_s:
            raise TimeoutError(f"never happened: {what}")
        time.sleep(0.1)


def serves(port):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
            return True
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def started(port):
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    except OSError:
        return False


def served(port):
    """Requests that a worker has ended."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as page:
        lines = page.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("vllm:request_success_total{"))


class Proxy:
    def __init__(self, name, program, workers, folder):
        file, command = PROXIES[name]
        text = (ROOT / "deploy/proxies" / file).read_text()
        self.ports = {port: free_port() for port in sorted(set(re.findall(r"80[0-9]{2}\b", text)))}
        for old, new in [*self.ports.items(), *zip(["50061", "50062"], map(str, workers))]:
            text = re.sub(rf"\b{old}\b", str(new), text)
        # Where the system's own folders are not there to be written to.
        paths = [f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")]
        text = text.replace("http {", "http {" + " ".join(paths), 1)
        path = folder / file
        path.write_text(text)
        self.process = subprocess.Popen(command(program, str(path), folder), stdout=subprocess.DEVNULL, stderr=open(folder / f"{name}.log", "wb"))
        until(f"{name} listens", lambda: started(self.ports["8080"]))
        self.least = f"127.0.0.1:{self.ports['8080']}"
        # Envoy has one port for all.
        self.session = f"127.0.0.1:{self.ports.get('8081', self.ports['8080'])}"
        self.http = f"127.0.0.1:{self.ports.get('8082', self.ports['8080'])}"

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()


class Services:
    """The project's own messages and stubs, generated."""

    def __init__(self, folder):
        files = [str(file.relative_to(ROOT / "proto")) for file in sorted((ROOT / "proto" / "candlewick" / "v1").glob("*.proto"))]
        files.append("inference/grpc_service.proto")
        if protoc.main(["protoc", f"-I{ROOT / 'proto'}", f"--python_out={folder}", f"--grpc_python_out={folder}", *files]):
            sys.exit("the .proto files do not compile")
        sys.path.insert(0, str(folder))
        from candlewick.v1 import chat_pb2, chat_pb2_grpc, common_pb2, generation_pb2, generation_pb2_grpc
        from inference import grpc_service_pb2, grpc_service_pb2_grpc

        self.common, self.generation, self.rpc = common_pb2, generation_pb2, generation_pb2_grpc
        self.chat, self.chat_rpc = chat_pb2, chat_pb2_grpc
        self.inference, self.inference_rpc = grpc_service_pb2, grpc_service_pb2_grpc

    def request(self, max_tokens, text="Once upon a time", **sampling):
        sampling = self.common.SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True, **sampling)
        return self.generation.GenerateStreamRequest(prompt=self.generation.Prompt(text=text), options=self.common.RequestOptions(sampling=sampling))

    def ask(self, request_id, parameters):
        tensors = [("text_input", b"Once upon a time", "BYTES"), ("sampling_parameters", json.dumps(parameters).encode(), "BYTES"), ("stream", None, "BOOL")]
        message = self.inference.ModelInferRequest(model_name="demo", id=request_id)
        for name, value, kind in tensors:
            message.inputs.add(name=name, datatype=kind, shape=[1])
            message.raw_input_contents.append(b"\x01" if value is None else struct.pack("<I", len(value)) + value)
        return message


class Talk:
    """One connection of a session (Chat.Session): what is said goes on while what is heard comes."""

    def __init__(self, services, channel, session, **opening):
        self.chat, self.said = services.chat, queue.Queue()
        self.say(open=services.chat.SessionOpen(**opening))
        stub = services.chat_rpc.ChatStub(channel)
        self.call = stub.Session(iter(self.said.get, None), timeout=120, metadata=[("x-session-id", session)])

    def say(self, **event):
        self.said.put(self.chat.SessionRequest(**event))

    def hear(self, kind):
        """The next event of this kind, and how many pieces of text came before it."""
        pieces = 0
        for response in self.call:
            self.seq = response.seq
            if response.HasField("error"):
                raise RuntimeError(f"an error came: {response.error}")
            if response.WhichOneof("event") == kind:
                return getattr(response, kind), pieces
            pieces += response.HasField("delta")
        raise RuntimeError(f"the session ended before {kind}")

    def end(self):
        self.say(close=self.chat.CloseSession())
        self.said.put(None)
        return sum(1 for _ in self.call)

    def hang_up(self):
        self.call.cancel()
        self.said.put(None)


def sessions(proxy, services, point):
    """A conversation in both directions over one call: turns that wait for each other's answers, a turn cancelled while it
    streams, a connection that breaks and comes back to the same worker, and an end that the client hears."""
    options = services.common.RequestOptions(sampling=services.common.SamplingParams(temperature=0, max_tokens=40, ignore_eos=True))
    long = services.common.SamplingParams(temperature=0, max_tokens=400, ignore_eos=True)
    with grpc.insecure_channel(proxy.session) as channel:
        for number in range(4):
            session = f"talk-{number}"
            talk = Talk(services, channel, session, options=options, system="You tell stories.")
            opened, _ = talk.hear("opened")
            talk.say(user=services.chat.UserTurn(content="Once upon a time there was a fox."))
            first, pieces = talk.hear("turn_done")
            talk.say(user=services.chat.UserTurn(content="And then?"))
            second, more = talk.hear("turn_done")
            cached = second.usage.prompt_tokens - second.computed_tokens
            talk.say(user=services.chat.UserTurn(content="A long one.", sampling=long))
            talk.hear("delta")
            talk.say(cancel=services.chat.CancelTurn())
            cut, _ = talk.hear("turn_done")
            seq = talk.seq
            talk.hang_up()
            talk = Talk(services, channel, session, session_id=opened.session_id, after_seq=seq)
            talk.say(user=services.chat.UserTurn(content="Where were we?"))
            last, _ = talk.hear("turn_done")
            talk.end()
            holds = min(pieces, more) > 10 and cached > first.usage.prompt_tokens and cut.usage.completion_tokens < 400
            if not (holds and last.turn_index == 3 and talk.call.code() == grpc.StatusCode.OK):
                return point(False, f"session {number}: {pieces} and {more} pieces, {cached} tokens cached, {cut}, {last}, {talk.call.code()}")
        point(True, f"4 sessions of 4 turns, {pieces} pieces a turn, a turn cut after {cut.usage.completion_tokens} of 400 tokens, each back after a break")


def through(name, proxy, services, workers, point):
    """Everything that must come through a proxy as it went in."""
    with grpc.insecure_channel(proxy.least) as channel:
        stub = services.rpc.GenerationStub(channel)
        arrivals, events = [], []
        for event in stub.GenerateStream(services.request(120), timeout=60):
            arrivals.append(time.monotonic())
            events.append(event)
        point(len(events) > 60 and arrivals[-1] - arrivals[1] > 5 * (arrivals[1] - arrivals[0]) / 100 and events[-1].HasField("finished"),
              f"{len(events)} events, the first {1000 * (arrivals[-1] - arrivals[0]):.0f} ms before the last")
        try:
            list(stub.GenerateStream(services.request(3, top_p=7.0), timeout=60))
            point(False, "a top_p of 7 was taken")
        except grpc.RpcError as error:
            details = dict(error.trailing_metadata()).get("grpc-status-details-bin", b"")
            point(error.code() == grpc.StatusCode.INVALID_ARGUMENT and b"options.sampling.top_p" in details, "a refusal has its status and its details")
        try:
            list(stub.GenerateStream(services.request(450), timeout=0.2))
            point(False, "a deadline of 0.2 s was not kept")
        except grpc.RpcError as error:
            point(error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, f"a deadline ends a stream in the middle: {error.code()}")
        asked = [services.ask("a", {"max_tokens": 20}), services.ask("wrong", {"top_p": 7}), services.ask("b", {"max_tokens": 20})]
        try:
            answers = list(services.inference_rpc.GRPCInferenceServiceStub(channel).ModelStreamInfer(iter(asked), timeout=60))
        except grpc.RpcError as error:
            answers = []
            print(error.code())
        ids = collections.Counter(answer.infer_response.id for answer in answers)
        failed = [answer.infer_response.id for answer in answers if answer.error_message]
        point(ids["a"] > 10 and ids["b"] > 10 and failed == ["wrong"], f"a stream in both directions: {dict(ids)}, an error for {failed}")

    codes = []
    for address in [proxy.least, proxy.session]:
        with grpc.insecure_channel(address) as channel:
            for path in ["candlewick.v1.Admin/FlushCache", "candlewick.v1.Models/Load", "vllm.grpc.engine.VllmEngine/FlushCache"]:
                try:
                    channel.unary_unary(f"/{path}")(b"", timeout=60)
                    codes.append(None)
                except grpc.RpcError as error:
                    codes.append(error.code())
    point(set(codes) == {grpc.StatusCode.PERMISSION_DENIED}, f"what is for whoever runs a worker is not passed on: {codes}")

    sessions(proxy, services, point)
    before = [served(port) for port in workers]
    with grpc.insecure_channel(proxy.session) as channel:
        stub, spread = services.rpc.GenerationStub(channel), []
        for session in range(8):
            earlier = [served(port) for port in workers]
            for _ in range(3):
                list(stub.GenerateStream(services.request(2), metadata=[("x-session-id", f"session-{session}")], timeout=60))
            spread.append([int(served(port) - count) for port, count in zip(workers, earlier)])
    point(all(sorted(counts) == [0, 3] for counts in spread) and len({tuple(counts) for counts in spread}) == 2,
          f"each of 8 sessions keeps to its worker: {spread}")

    body = json.dumps({"model": "demo", "prompt": "Once upon a time", "max_tokens": 30, "stream": True, "ignore_eos": True}).encode()
    request = urllib.request.Request(f"http://{proxy.http}/v1/completions", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        lines = [line for line in answer.read().decode().splitlines() if line.startswith("data: ")]
    point(len(lines) > 15 and lines[-1] == "data: [DONE]", f"OpenAI over HTTP/1.1: {len(lines)} events")

    if name == "envoy":
        message = services.request(10).SerializeToString()
        frame = base64.b64encode(b"\0" + struct.pack(">I", len(message)) + message)
        headers = {"content-type": "application/grpc-web-text", "accept": "application/grpc-web-text", "x-grpc-web": "1"}
        request = urllib.request.Request(f"http://{proxy.http}/candlewick.v1.Generation/GenerateStream", frame, headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            text = answer.read()
        # Each piece is padded by itself.
        said = b"".join(base64.b64decode(piece) for piece in re.findall(rb"[A-Za-z0-9+/]+={0,2}", text))
        point(b"grpc-status:0" in said, "gRPC-Web in text mode, with its trailers")


# What gRPC clients do by themselves once they are told to: try again what no server has begun with.
RETRIES = {"methodConfig": [{"name": [{}], "retryPolicy": {"maxAttempts": 5, "initialBackoff": "0.5s", "maxBackoff": "2s",
                                                           "backoffMultiplier": 2, "retryableStatusCodes": ["UNAVAILABLE"]}}]}


def draining(name, proxy, services, processes, workers, point):
    """A worker is told to stop under streams: they end whole, new calls are answered by the other. Envoy sees to that by itself;
    the others look at no gRPC status, so there the client does."""
    options = [] if name == "envoy" else [("grpc.service_config", json.dumps(RETRIES))]
    with grpc.insecure_channel(proxy.least, options) as channel:
        stub = services.rpc.GenerationStub(channel)
        streams = [stub.GenerateStream(services.request(300, text=f"Story {k}"), timeout=120) for k in range(6)]
        [next(stream) for stream in streams]
        processes[0].send_signal(signal.SIGTERM)
        late = 0
        for k in range(12):
            late += sum(event.HasField("finished") for event in stub.GenerateStream(services.request(3, text=f"Late {k}"), timeout=60, wait_for_ready=True))
        whole = sum(any(event.HasField("finished") for event in stream) for stream in streams)
        point(whole == 6 and late == 12, f"a worker drained under load: {whole} of 6 streams whole, {late} of 12 later calls answered")


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--binary", default=str(ROOT / "target/release/candlewick"))
    arguments.add_argument("--only", nargs="*", choices=PROXIES, default=list(PROXIES))
    given = arguments.parse_args()
    workers, failed = [free_port(), free_port()], []

    def start(port):
        command = [given.binary, "serve", "--listen", f"127.0.0.1:{port}", "--served-model-name", "demo", "--threads", "1", "--num-gpu-blocks-override", "512"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until("a worker serves", lambda: serves(port))
        return process

    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        services, processes = Services(folder), [start(port) for port in workers]
        try:
            for name in given.only:
                program = shutil.which(name) or shutil.which(name, path=str(pathlib.Path(sys.executable).parent))
                if not program:
                    print(f"{name} is NOT INSTALLED: passed over")
                    continue

                def point(holds, what):
                    print(f"{'ok  ' if holds else 'FAIL'} {name}: {what}", flush=True)
                    failed.extend([] if holds else [what])

                proxy = Proxy(name, program, workers, folder)
                try:
                    through(name, proxy, services, workers, point)
                    draining(name, proxy, services, processes, workers, point)
                except Exception as error:
                    point(False, f"{type(error).__name__}: {error}"[:400])
                    print((folder / f"{name}.log").read_text(errors="replace")[-2000:])
                finally:
                    proxy.stop()
                    processes[0].send_signal(signal.SIGTERM)
                    processes[0].wait(60)
                    processes[0] = start(workers[0])
        finally:
            for process in processes:
                process.send_signal(signal.SIGTERM)
            [process.wait(60) for process in processes]
    sys.exit(f"{len(failed)} points failed" if failed else None)


if __name__ == "__main__":
    main()
