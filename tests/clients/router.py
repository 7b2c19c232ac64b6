#!/usr/bin/env python3
"""Workers with the built-in model behind the SMG router, which speaks vllm.grpc.engine to them and OpenAI's API to us:
streams, structured output and tools through it; where requests with a common beginning are sent, with cache events, without
them, and in turns; a restart of one worker after the other under load, which must lose no request.

    python3 -m venv .venv && .venv/bin/pip install -r tests/clients/requirements-router.txt
    cargo build --release
    .venv/bin/python tests/clients/router.py [--binary target/release/candlewick] [--only NAME …]

Listens on the loopback interface alone, ends by itself within minutes, and ends with 0 where everything came as it should.
"""

import argparse
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request

import jsonschema

ROOT = pathlib.Path(__file__).resolve().parents[2]
PATIENCE_S = 120


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def until(what, holds, patience_s=PATIENCE_S):
    """Waits for what other processes bring about."""
    began = time.monotonic()
    while not holds():
        if time.monotonic() - began > patience_s:
            sys.exit(f"never happened: {what}")
        time.sleep(0.1)


def get(url):
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.read().decode()
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return None


class Process:
    """A program that ends with this one; what it says goes to a file."""

    def __init__(self, command, log):
        self.log = open(log, "ab")
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)

    def cpu_seconds(self):
        """What it and its children have used so far (Linux)."""
        wanted, found, seconds = {self.process.pid}, True, {}
        while found:
            found = False
            for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
                try:
                    fields = stat.read_text().rsplit(")", 1)[1].split()
                except OSError:
                    continue
                pid = int(stat.parent.name)
                if pid not in seconds and (pid in wanted or int(fields[1]) in wanted):
                    wanted.add(pid)
                    seconds[pid] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
                    found = True
        return sum(seconds.values())

    def stop(self, patience_s=60):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()


class Worker:
    def __init__(self, binary, folder, flags=(), blocks=512):
        self.binary, self.folder, self.port = binary, folder, free_port()
        self.flags = ["--num-gpu-blocks-override", str(blocks), *flags]
        self.url = f"grpc://127.0.0.1:{self.port}"
        self.start()

    def start(self):
        command = [self.binary, "serve", "--listen", f"127.0.0.1:{self.port}", "--served-model-name", "demo",
                   "--threads", "1", *self.flags]
        self.process = Process(command, self.folder / f"worker-{self.port}.log")
        until("the worker serves", lambda: get(f"http://127.0.0.1:{self.port}/health"))

    def stop(self):
        self.process.stop()

    def metric(self, name):
        page = get(f"http://127.0.0.1:{self.port}/metrics") or ""
        return sum(float(line.rsplit(" ", 1)[1]) for line in page.splitlines() if line.startswith((name + "{", name + "_total{")))


class Router:
    def __init__(self, workers, folder, policy, flags=()):
        self.port = free_port()
        command = [str(pathlib.Path(sys.executable).parent / "smg"), "launch", "--host", "127.0.0.1", "--port", str(self.port),
                   "--prometheus-port", str(free_port()), "--policy", policy, *flags,
                   "--worker-urls", *(worker.url for worker in workers)]
        self.log = folder / f"router-{self.port}.log"
        self.process = Process(command, self.log)
        until("the router has a worker that answers", lambda: self.works())

    def works(self):
        try:
            self.chat("hello", max_tokens=1)
            return True
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False

    def stop(self):
        self.process.stop(10)

    def post(self, path, body):
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", json.dumps(body).encode(),
                                         {"content-type": "application/json"})
        return urllib.request.urlopen(request, timeout=PATIENCE_S)

    def chat(self, text, **fields):
        body = {"model": "demo", "messages": [{"role": "user", "content": text}], "max_tokens": 48, "temperature": 0, **fields}
        with self.post("/v1/chat/completions", body) as answer:
            if not body.get("stream"):
                return json.load(answer)
            lines = answer.read().decode().splitlines()
        chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        if lines[-2:].count("data: [DONE]") != 1:
            raise ConnectionError(f"a stream without its end: {lines[-2:]}")
        return chunks


class Report:
    def __init__(self):
        self.failed = 0

    def point(self, holds, what):
        print(f"{'ok  ' if holds else 'FAIL'} {what}", flush=True)
        self.failed += not holds


def streams(report, binary, folder):
    workers = [Worker(binary, folder) for _ in range(2)]
    router = Router(workers, folder, "cache_aware")
    try:
        whole = router.chat("Tell me a story about a fox.", ignore_eos=True)
        chunks = router.chat("Tell me a story about a fox.", ignore_eos=True, stream=True, stream_options={"include_usage": True})
        said = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
        report.point(said == whole["choices"][0]["message"]["content"] and len(chunks) > 8,
                     f"{len(chunks)} chunks say what the whole answer says: {said[:40]!r}…")
        reasons = [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"] if choice.get("finish_reason")]
        usage = next((chunk["usage"] for chunk in chunks if chunk.get("usage")), {})
        report.point(reasons == ["length"] and usage.get("completion_tokens") == 48, f"it ends with {reasons} and {usage}")

        both = router.chat("Tell me a story about a fox.", n=2, max_tokens=8)
        report.point(sorted(choice["index"] for choice in both["choices"]) == [0, 1], "two answers to one request")
        logprobs = router.chat("hello", logprobs=True, top_logprobs=2, max_tokens=5, ignore_eos=True)["choices"][0]["logprobs"]
        report.point(len(logprobs["content"]) == 5 and all(t["logprob"] <= 0 for t in logprobs["content"]), "log-probabilities of five tokens")
        stopped = router.chat("Tell me a story about a fox.", stop=["."], ignore_eos=True)["choices"][0]
        report.point(stopped["finish_reason"] == "stop" and "." not in stopped["message"]["content"], "a stop string ends the text")
        try:
            router.chat("hello", temperature=-1)
            report.point(False, "a negative temperature was taken")
        except urllib.error.HTTPError as error:
            report.point(error.code == 400, f"a negative temperature is refused with {error.code}")
    finally:
        router.stop()
        [worker.stop() for worker in workers]


def constraints(report, binary, folder):
    workers = [Worker(binary, folder) for _ in range(2)]
    router = Router(workers, folder, "round_robin")
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0, "maximum": 150}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    try:
        for _ in workers:
            form = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema, "strict": True}}
            # Left to itself the small model puts line ends between the fields for ever.
            free = {"frequency_penalty": 2, "max_tokens": 400}
            text = router.chat("Who are you?", response_format=form, **free)["choices"][0]["message"]["content"]
            jsonschema.validate(json.loads(text), schema)
            report.point(True, f"an answer by a schema: {text}")
            tool = {"type": "function", "function": {"name": "greet", "description": "Greets a person", "parameters": schema}}
            choice = router.chat("Greet Ann, who is 30.", tools=[tool],
                                 tool_choice={"type": "function", "function": {"name": "greet"}}, **free)["choices"][0]
            (call,) = choice["message"].get("tool_calls") or [{"function": {"name": None, "arguments": "null"}}]
            jsonschema.validate(json.loads(call["function"]["arguments"]), schema)
            report.point(call["function"]["name"] == "greet", f"a call of a tool: {call['function']}")
    finally:
        router.stop()
        [worker.stop() for worker in workers]


CHOICES = [("cache events", "cache_aware", ["--enable-kv-cache-events=true"]),
           ("no cache events", "cache_aware", ["--enable-kv-cache-events=false"]),
           ("in turns", "round_robin", [])]


def affinity(report, binary, folder):
    """The same load three times: groups of requests with a long common beginning, in one random order, one by one, over
    workers each of whose caches holds less than all of them."""
    found = {name: cached_share(report, binary, folder, name, policy, flags, routers=1) for name, policy, flags in CHOICES}
    report.point(found["cache events"] > found["in turns"], "with cache events more is found than in turns")


def several_routers(report, binary, folder):
    """The same load through two routers, of which each sees half: what the other one sent where it can only know from the
    workers' events."""
    found = {name: cached_share(report, binary, folder, name, policy, flags, routers=2) for name, policy, flags in CHOICES}
    report.point(found["cache events"] > found["no cache events"], "with cache events more is found than by guessing")


def cached_share(report, binary, folder, name, policy, flags, routers, groups=9, each=6):
    """The share of prompt tokens that came from a cache, as the workers count it and as the answers report it."""
    workers = [Worker(binary, folder, flags, blocks=64) for _ in range(3)]
    fronts = [Router(workers, folder, policy) for _ in range(routers)]
    try:
        chance = random.Random(7)
        order = [group for group in range(groups) for _ in range(each)]
        chance.shuffle(order)
        before = sum(worker.metric("vllm:prefix_cache_hits") for worker in workers)
        asked = sum(worker.metric("vllm:prompt_tokens") for worker in workers)
        reported = 0
        for n, group in enumerate(order):
            text = f"{group} is the number of this story. " * 20 + f"What comes after part {n}?"
            usage = chance.choice(fronts).chat(text, max_tokens=2)["usage"]
            reported += (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        hits = sum(worker.metric("vllm:prefix_cache_hits") for worker in workers) - before
        asked = sum(worker.metric("vllm:prompt_tokens") for worker in workers) - asked
        shares = [worker.metric("vllm:request_success") for worker in workers]
        report.point(hits > 0 and reported == hits,
                     f"{routers} router(s), {name}: {hits:.0f} of {asked:.0f} prompt tokens were cached ({hits / asked:.0%}), "
                     f"as reported; requests {shares}")
        return hits / asked
    finally:
        [front.stop() for front in fronts]
        [worker.stop() for worker in workers]


def rolling_restart(report, binary, folder):
    workers = [Worker(binary, folder, ["--drain-timeout", "60"]) for _ in range(2)]
    router = Router(workers, folder, "cache_aware", ["--health-check-interval-secs", "2", "--health-success-threshold", "1"])
    stop, counts, lost = threading.Event(), [0] * 8, []

    def load(k):
        while not stop.is_set():
            try:
                if k % 2:
                    router.chat(f"story {k} {counts[k]}", max_tokens=100, ignore_eos=True, stream=True)
                else:
                    answer = router.chat(f"story {k} {counts[k]}", max_tokens=100, ignore_eos=True)
                    assert answer["usage"]["completion_tokens"] == 100, answer["usage"]
                counts[k] += 1
            except Exception as error:
                lost.append(f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=load, args=(k,)) for k in range(len(counts))]
    try:
        [thread.start() for thread in threads]
        for worker in workers:
            time.sleep(2)
            worker.stop()
            worker.start()
            # It has rejoined when requests reach it again.
            until("the router sends requests to it again", lambda: worker.metric("vllm:request_success") > 0)
        stop.set()
        [thread.join() for thread in threads]
        report.point(not lost, f"both workers restarted under load: {sum(counts)} requests answered, {len(lost)} lost {lost[:2]}")
    finally:
        stop.set()
        router.stop()
        [worker.stop() for worker in workers]


def figures(report, binary, folder):
    """Measures; checks nothing. Workers and router share the machine's cores, and so does whatever else runs on it."""
    workers = [Worker(binary, folder) for _ in range(3)]
    try:
        for count in (1, 2, 3):
            router = Router(workers[:count], folder, "round_robin")
            try:
                done, began, busy = [], time.monotonic(), router.process.cpu_seconds()

                def load(k):
                    for n in range(6):
                        done.append(router.chat(f"story {k} {n}", max_tokens=64, ignore_eos=True)["usage"]["completion_tokens"])

                threads = [threading.Thread(target=load, args=(k,)) for k in range(12)]
                [thread.start() for thread in threads]
                [thread.join() for thread in threads]
                print(f"     {count} workers: {sum(done) / (time.monotonic() - began):.0f} tokens a second, 12 clients; "
                      f"the router computed {1e6 * (router.process.cpu_seconds() - busy) / sum(done):.0f} µs a token")
                if count == 1:
                    paths = {"straight to the worker": workers[0].port, "through the router": router.port}
                    waits = {name: tokens_apart(port) for name, port in paths.items()}
                    print("     one stream, median time from token to token: " + ", ".join(f"{1e3 * wait:.2f} ms {name}" for name, wait in waits.items()))
                    text = "This is a long beginning that many prompts share. " * 28
                    times = []
                    for tail in ("One.", "Two.", "Three."):
                        began = time.monotonic()
                        cached = router.chat(text + tail, max_tokens=1)["usage"]
                        times.append((time.monotonic() - began, (cached.get("prompt_tokens_details") or {}).get("cached_tokens"), cached["prompt_tokens"]))
                    print("     time to one token: " + ", ".join(f"{1e3 * wait:.0f} ms with {cached} of {prompt} tokens cached" for wait, cached, prompt in times))
            finally:
                router.stop()
    finally:
        [worker.stop() for worker in workers]


def tokens_apart(port):
    """The median time between two tokens of a stream of OpenAI's, in seconds."""
    body = {"model": "demo", "messages": [{"role": "user", "content": "Tell me a story."}], "max_tokens": 300, "temperature": 0,
            "ignore_eos": True, "stream": True}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"})
    arrivals = []
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
        for line in answer:
            if line.startswith(b"data: {"):
                arrivals.append(time.monotonic())
    apart = sorted(after - before for before, after in zip(arrivals, arrivals[1:]))
    return apart[len(apart) // 2]


CHECKS = {"streams": streams, "constraints": constraints, "affinity": affinity, "several_routers": several_routers,
          "rolling_restart": rolling_restart, "figures": figures}


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--binary", default=str(ROOT / "target/release/candlewick"))
    arguments.add_argument("--only", nargs="*", choices=CHECKS, default=list(CHECKS))
    arguments.add_argument("--keep", type=pathlib.Path, help="folder for the logs; without it they are thrown away")
    given = arguments.parse_args()
    report = Report()
    with tempfile.TemporaryDirectory() as folder:
        folder = given.keep or pathlib.Path(folder)
        for name in given.only:
            CHECKS[name](report, given.binary, folder)
    sys.exit(f"{report.failed} points failed" if report.failed else None)


if __name__ == "__main__":
    main()
