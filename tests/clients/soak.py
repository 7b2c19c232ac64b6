#!/usr/bin/env python3
"""An hour of everything at once against one server with the built-in model: is what it holds at the end what it held before?

    python3 -m venv .venv && .venv/bin/pip install -r tests/clients/requirements.txt
    .venv/bin/python tests/clients/soak.py target/release/candlewick [--minutes 60] [--workers 16] [--seed 1]

Starts a server of its own with few blocks and few places, so that sequences wait, are preempted and are refused. Workers
stream over gRPC and HTTP, cancel, go away, stall, set deadlines that pass, hold sessions that they fork, rewind and leave
without a word, drop streams and resume them, ask for vectors and for JSON that matches a schema, and ask for what is wrong;
some on a connection of their own each time. After a quarter of the time the engine panics, once (--engine-panic-after).

Each minute a line says what the server holds: memory, file descriptors, threads, KV blocks by who has them, requests that
run and wait. At the end, when the load has stopped and sessions have timed out, it must hold what it held at the start: no
block of a sequence or a lease, nobody in line, as many file descriptors, and every place in line free, which as many sessions
as there are places show by taking them all. In ten minutes or more, memory may not have grown by more than 8 MiB between the
third quarter of the time and the last. What was generated greedily must be what was generated before anything else ran. Ends
with 0 where all of this holds. Listens on the loopback interface alone, and ends by itself.
"""

import argparse
import collections
import http.client
import itertools
import json
import os
import pathlib
import queue
import random
import re
import subprocess
import sys
import tempfile
import threading
import time

import grpc
from grpc_sessions import Talk, Trouble, generated

PLACES = {"--max-num-seqs": 16, "--max-waiting": 16}
SERVER = PLACES | {
    "--num-gpu-blocks-override": 200,
    "--max-model-len": 512,
    "--stall-timeout": 4,
    "--session-ttl": 5,
    "--max-sessions": 48,
    "--resume-ttl": 5,
    "--max-resumable-streams": 24,
}
WAIT = 120
# How long what ends with the load may take: sessions and streams that nobody came back for, and some more.
SETTLE = 40
# Between the first and the last stream that noticed the engine's end.
RESTART = 30
# What an allocator takes at a time, for one thread or another.
ALLOWED_MIB = 8
# Any request may be told to come back later.
ALWAYS = {"OK", "RESOURCE_EXHAUSTED"}
RESTARTING = {"INTERNAL", "UNAVAILABLE"}
HTTP_CODES = {429: "RESOURCE_EXHAUSTED", 500: "INTERNAL", 503: "UNAVAILABLE"}
PROMPTS = [f"Once upon a time there was a {who}" for who in ("fox", "girl", "king", "candle", "ship", "very old tree")]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["wick", "wax"]}, "lit": {"type": "boolean"}},
    "required": ["name", "lit"],
    "additionalProperties": False,
}


class Server:
    """A server of our own, and what it holds."""

    def __init__(self, binary, panic_after):
        arguments = [str(word) for flag in SERVER.items() for word in flag]
        if panic_after:
            arguments += ["--engine-panic-after", f"{panic_after:.3f}"]
        command = [binary, "serve", "--listen", "127.0.0.1:0", *arguments]
        self.log = collections.deque(maxlen=40)
        # A backtrace has all debug symbols read, and keeps them: more than all else that the server holds.
        environment = os.environ | {"RUST_BACKTRACE": "0"}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )
        for line in self.process.stdout:
            self.log.append(line)
            if found := re.search(r"127\.0\.0\.1:\d+", line):
                self.address = found[0]
                break
        else:
            sys.exit("the server did not come up:\n" + "".join(self.log))
        threading.Thread(target=lambda: self.log.extend(self.process.stdout), daemon=True).start()

    def metrics(self):
        """The sums of the series that are looked at, by name, and by state where they have one."""
        connection = http.client.HTTPConnection(self.address, timeout=WAIT)
        connection.request("GET", "/metrics", headers={"connection": "close"})
        text = connection.getresponse().read().decode()
        connection.close()
        sums = collections.Counter()
        for name, labels, value in re.findall(r"^([a-z_]+:[a-z_]+)\{(.*)\} (\S+)$", text, re.MULTILINE):
            state = re.search(r'state="(\w+)"', labels)
            sums[f"{name}/{state[1]}" if state else name] += float(value)
        return sums

    def holds(self):
        """What it holds now."""
        folder = pathlib.Path(f"/proc/{self.process.pid}")
        status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
        metrics = self.metrics()
        count = lambda name: int(metrics[name])
        return {
            "RSS MiB": int(status["VmRSS"].split()[0]) / 1024,
            # Without what is mapped from files.
            "own MiB": int(status["RssAnon"].split()[0]) / 1024,
            "files": len(os.listdir(folder / "fd")),
            "threads": int(status["Threads"]),
            "running": count("vllm:num_requests_running"),
            "waiting": count("vllm:num_requests_waiting"),
            "paused": count("candlewick:paused_readers"),
            "seq blocks": count("candlewick:kv_blocks/sequence"),
            "lease blocks": count("candlewick:kv_blocks/lease"),
            "free blocks": count("candlewick:kv_blocks/free"),
            "cached": count("candlewick:cached_blocks"),
            "tokens": count("vllm:generation_tokens_total"),
            "preempted": count("vllm:num_preemptions_total"),
            "restarts": count("candlewick:engine_restarts_total"),
        }

    def stop(self):
        """Its exit code, once it has drained."""
        self.process.terminate()
        try:
            return self.process.wait(WAIT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


class Load:
    """What workers do, and what came of it."""

    def __init__(self, address, wire):
        self.address = address
        common, _, chat, chat_rpc, generation, generation_rpc, embeddings, embeddings_rpc = wire
        self.common, self.chat, self.generation, self.embeddings = common, chat, generation, embeddings
        self.stubs = chat_rpc.ChatStub, generation_rpc.GenerationStub, embeddings_rpc.EmbeddingsStub
        self.lock = threading.Lock()
        self.outcomes = collections.defaultdict(collections.Counter)
        self.restarts, self.wrong = [], []
        self.stopping = threading.Event()
        self.greedy = {}

    # What is asked.

    def options(self, max_tokens, sampling=None, **options):
        sampling = {"temperature": 0.0, **(sampling or {})}
        return self.common.RequestOptions(
            sampling=self.common.SamplingParams(max_tokens=max_tokens, **sampling), heartbeat_interval_ms=200, **options
        )

    def stream(self, stubs, prompt, options, timeout=WAIT):
        prompt = self.generation.Prompt(text=prompt)
        return stubs.generation.GenerateStream(
            self.generation.GenerateStreamRequest(prompt=prompt, options=options), timeout=timeout
        )

    def remember(self, stubs):
        """What each prompt is continued with while nothing else runs."""
        for prompt in PROMPTS:
            self.greedy[prompt] = tokens(self.stream(stubs, prompt, self.options(40)))

    # What a worker does, one thing at a time. Each takes the chances of its worker, and stubs on some connection.

    def reads(self, chance, stubs):
        prompt = chance.choice(PROMPTS)
        found = tokens(self.stream(stubs, prompt, self.options(40)))
        self.expect(found == self.greedy[prompt], f"{prompt!r} went on otherwise than before: {found}")

    def draws(self, chance, stubs):
        sampling = {"temperature": 1.0, "seed": chance.randrange(1 << 40), "n": chance.choice([1, 1, 2])}
        tokens(self.stream(stubs, chance.choice(PROMPTS), self.options(chance.randrange(1, 200), sampling)))

    def prefills(self, chance, stubs):
        prompt = " ".join(chance.choices("the fox and a king saw one old ship in the night".split(), k=200))
        tokens(self.stream(stubs, prompt, self.options(chance.randrange(1, 20))))

    def waits(self, chance, stubs):
        prompt = self.generation.Prompt(text=chance.choice(PROMPTS))
        stubs.generation.Generate(
            self.generation.GenerateRequest(prompt=prompt, options=self.options(60)), timeout=WAIT
        )

    def cancels(self, chance, stubs):
        sampling = {"ignore_eos": True}
        call = self.stream(stubs, chance.choice(PROMPTS), self.options(400, sampling))
        for _ in itertools.islice(call, chance.choice([0, 1, 2, 10, 100])):
            pass
        call.cancel()

    def stalls(self, chance, stubs):
        # Three texts with twenty alternatives a token, so that windows and buffers are full before the texts are.
        sampling = {"ignore_eos": True, "temperature": 1.0, "logprobs": 20, "n": 3}
        policy = chance.choice(["PAUSE", "PAUSE", "COALESCE", "ABORT"])
        policy = self.common.SlowReader.Value(f"SLOW_READER_{policy}")
        call = self.stream(stubs, chance.choice(PROMPTS), self.options(450, sampling, slow_reader=policy))
        next(call)
        self.stopping.wait(chance.choice([0.5, 2, 9]))
        if chance.random() < 0.5:
            call.cancel()
        else:
            tokens(call)

    def hurries(self, chance, stubs):
        timeout = chance.choice([0.003, 0.02, 0.1, 0.5])
        tokens(self.stream(stubs, chance.choice(PROMPTS), self.options(450, {"ignore_eos": True}), timeout))

    def resumes(self, chance, stubs):
        prompt, stream_id, seq, found = chance.choice(PROMPTS), None, 0, []
        call = self.stream(stubs, prompt, self.options(40, resumable=True))
        for event in itertools.islice(call, chance.randrange(1, 12)):
            seq, stream_id = event.seq, event.started.stream_id or stream_id
            found += event.delta.token_ids
        call.cancel()
        if chance.random() < 0.3:
            return  # Nobody comes back.
        request = self.generation.ResumeRequest(stream_id=stream_id, after_seq=seq)
        found += tokens(stubs.generation.Resume(request, timeout=WAIT))
        self.expect(found == self.greedy[prompt], f"{prompt!r} was resumed as another text: {found}")

    def structures(self, chance, stubs):
        shape = self.common.StructuredOutputs(json=json.dumps(SCHEMA))
        sampling = {"temperature": 1.0, "seed": chance.randrange(1 << 40), "structured_outputs": shape}
        text, last = "", None
        for event in self.stream(stubs, "As JSON:", self.options(60, sampling)):
            text, last = text + event.delta.text, event
        if last.finished.finish.reason == self.common.FINISH_REASON_STOP:
            self.expect(set(json.loads(text)) == {"name", "lit"}, f"not what the schema says: {text}")

    def errs(self, chance, stubs):
        sampling = chance.choice([{"temperature": -1.0}, {"top_p": 7.0}, {"stop": [""]}])
        tokens(self.stream(stubs, chance.choice(PROMPTS), self.options(10, sampling)))

    def embeds(self, chance, stubs):
        text = lambda: self.embeddings.EmbedInput(text=" ".join(chance.choices(PROMPTS, k=chance.randrange(1, 8))))
        if chance.random() < 0.5:
            request = self.embeddings.EmbedRequest(inputs=[text() for _ in range(chance.randrange(1, 10))])
            stubs.embeddings.Embed(request, timeout=chance.choice([0.02, WAIT]))
            return
        wire, most = self.embeddings, chance.choice([3, 100])
        items = (wire.EmbedStreamRequest(item=wire.EmbedItem(id=k, input=text())) for k in range(12))
        call = stubs.embeddings.EmbedStream(items, timeout=WAIT)
        for _ in itertools.islice(call, most):
            pass
        call.cancel()

    def converses(self, chance, stubs):
        chat = self.chat
        opening = {"options": self.options(30), "system": "You tell stories.", "credits": chance.choice([None, 10_000])}
        if chance.random() < 0.2:
            opening["lease"] = chat.Lease(pin=True)
        talk = Talk(chat, stubs.chat, **{name: value for name, value in opening.items() if value is not None})
        try:
            opened, _ = talk.hear("opened")
            turns = 0
            for _ in range(chance.randrange(1, 6)):
                talk.say(user=chat.UserTurn(content=f"And the {chance.choice(PROMPTS)}?"))
                turns += 1
                what = chance.choice(["nothing", "cancel", "edit", "rewind", "fork", "reconnect", "idle"])
                if what == "cancel":
                    talk.hear("delta")
                    talk.say(cancel=chat.CancelTurn())
                elif what == "edit":
                    talk.hear("delta")
                    talk.say(edit=chat.EditTurn(max_tokens=60, temperature=0.5))
                elif what == "reconnect":
                    talk.hear("delta")
                    talk.hang_up()
                    talk = Talk(chat, stubs.chat, session_id=opened.session_id, after_seq=talk.seq)
                talk.hear("turn_done")
                if what == "rewind":
                    turns = chance.randrange(turns)
                    talk.say(rewind=chat.Rewind(turn_index=turns))
                    talk.hear("rewound")
                elif what == "fork":
                    talk.say(fork=chat.Fork())
                    forked, _ = talk.hear("forked")
                    branch = Talk(chat, stubs.chat, session_id=forked.session_id)
                    try:
                        branch.hear("opened")
                        # A fork of a session that counts its credits begins with none.
                        branch.say(grant=chat.Grant(tokens=10_000))
                        branch.turn("What next?")
                    finally:
                        branch.hang_up()
                elif what == "idle":
                    self.stopping.wait(chance.random())
            if chance.random() < 0.5:
                talk.close()
        finally:
            talk.hang_up()

    def posts(self, chance, _stubs):
        """The OpenAI face, over HTTP/1.1."""
        connection = http.client.HTTPConnection(self.address, timeout=WAIT)
        try:
            message = {"role": "user", "content": chance.choice(PROMPTS)}
            body = {"messages": [message], "stream": True, "max_tokens": 60, "n": chance.choice([1, 1, 3])}
            headers = {"content-type": "application/json"}
            connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
            response = connection.getresponse()
            if response.status != 200:
                raise Answered(HTTP_CODES.get(response.status, f"HTTP {response.status}"))
            most = chance.choice([2, 20, 100_000])
            for line in itertools.islice(response, most):
                if line.startswith(b'data: {"error"'):
                    code = json.loads(line[6:])["error"].get("code")
                    raise Answered(HTTP_CODES.get(code, "INTERNAL"))
        finally:
            connection.close()

    # How often, and what may come of it beside what always may.
    WORK = {
        "reads": (5, set()),
        "draws": (4, set()),
        "prefills": (2, set()),
        "waits": (2, set()),
        "cancels": (4, {"CANCELLED"}),
        "stalls": (2, {"CANCELLED", "ABORTED"}),
        "hurries": (3, {"DEADLINE_EXCEEDED", "CANCELLED"}),
        "resumes": (3, {"CANCELLED", "NOT_FOUND", "DATA_LOSS"}),
        "structures": (2, set()),
        "errs": (1, {"INVALID_ARGUMENT"}),
        "embeds": (3, {"DEADLINE_EXCEEDED", "CANCELLED"}),
        "converses": (6, {"CANCELLED", "NOT_FOUND", "FAILED_PRECONDITION"}),
        "posts": (4, set()),
    }

    def work(self, seed):
        """One worker, until it is told to stop."""
        chance = random.Random(seed)
        names, weights = list(self.WORK), [often for often, _ in self.WORK.values()]
        with Connection(self) as lasting:
            while not self.stopping.is_set():
                (name,) = chance.choices(names, weights)
                try:
                    if chance.random() < 0.2:
                        with Connection(self) as stubs:
                            getattr(self, name)(chance, stubs)
                    else:
                        getattr(self, name)(chance, lasting)
                    code, why = "OK", ""
                except (grpc.RpcError, Trouble, Answered) as error:
                    code, why = code_of(error), str(error.details() if isinstance(error, grpc.RpcError) else error)
                except Exception as error:  # Whatever else: told at the end.
                    self.expect(False, f"{name}: {error!r}")
                    continue
                self.count(name, code, why)
                if code == "RESOURCE_EXHAUSTED":
                    self.stopping.wait(chance.random() / 5)

    def count(self, name, code, why):
        with self.lock:
            self.outcomes[name][code] += 1
            if code in RESTARTING:
                self.restarts.append(time.monotonic())
            elif code not in ALWAYS | self.WORK[name][1]:
                self.wrong.append(f"{name} ended with {code}: {why}")

    def expect(self, holds, otherwise):
        if not holds:
            with self.lock:
                self.wrong.append(otherwise)


class Answered(Exception):
    """An HTTP status, or an error in a stream of events, as gRPC's code."""


class Connection:
    """A connection, and the stubs on it."""

    def __init__(self, load):
        # Without the first, channels to one address share a connection; with the second, windows grow until nobody stalls.
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.http2.bdp_probe", 0)]
        self.channel = grpc.insecure_channel(load.address, options=options)
        self.chat, self.generation, self.embeddings = (stub(self.channel) for stub in load.stubs)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.channel.close()


def code_of(error):
    match error:
        case Answered():
            return str(error)
        case Trouble():
            return error.code
        case _:
            return error.code().name


def tokens(call):
    """The ids of a stream that is read to its end."""
    return [token for event in call for token in event.delta.token_ids]


def settled(holds, start):
    return (
        holds["running"] == holds["waiting"] == holds["seq blocks"] == holds["lease blocks"] == 0
        and holds["free blocks"] == start["free blocks"]
        and holds["files"] <= start["files"]
    )


def take_all_places(load, stubs):
    """Whether as many sessions as there are places can hold one each, and the next request is refused."""
    deadline = time.monotonic() + SETTLE
    while True:
        refused, took = hold_all_places(load, stubs)
        # Who stands still for too long loses his place, so what took longer than that says nothing.
        if refused is not None or took < SERVER["--stall-timeout"] or time.monotonic() > deadline:
            return refused == "RESOURCE_EXHAUSTED"


def hold_all_places(load, stubs):
    """As what one request more is refused while sessions hold all places, none where it is answered; and for how long they held
    them."""
    talks = []
    began = time.monotonic()
    try:
        for _ in range(sum(PLACES.values())):
            talks.append(Talk(load.chat, stubs.chat, options=load.options(30, {"ignore_eos": True}), credits=1))
        for talk in talks:
            talk.hear("opened")
        began = time.monotonic()
        for number, talk in enumerate(talks):
            # One credit, two tokens wanted: it keeps its place until somebody grants more.
            talk.say(user=load.chat.UserTurn(content=f"{number}"))
        for talk in talks:
            talk.hear("turn_started")
        refused = refusal(load, stubs)
        took = time.monotonic() - began
        for talk in talks:
            talk.close()
        return refused, took
    except (grpc.RpcError, Trouble) as error:
        print(f"a place was not free: {error!r}")
        return "NOT FREE", time.monotonic() - began
    finally:
        for talk in talks:
            talk.hang_up()


def refusal(load, stubs):
    """As what a request is refused, if it is."""
    try:
        tokens(load.stream(stubs, PROMPTS[0], load.options(1)))
        return None
    except grpc.RpcError as error:
        print(f"with all places taken: {error.code().name}, {error.details()}")
        return error.code().name


def show(label, holds):
    print(f"{label:>7} " + " ".join(f"{value:>12.1f}" if isinstance(value, float) else f"{value:>12}" for value in holds.values()), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("binary")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-panic", action="store_true", help="leave the engine alone")
    options = parser.parse_args()
    if not 0.5 <= options.minutes <= 24 * 60 or not 1 <= options.workers <= 256:
        parser.error("--minutes is between 0.5 and 1440, --workers between 1 and 256")
    seconds = options.minutes * 60
    server = Server(options.binary, 0 if options.no_panic else seconds / 4)
    failed = []
    check = lambda holds, otherwise: None if holds else failed.append(otherwise)
    try:
        with tempfile.TemporaryDirectory() as folder:
            load = Load(server.address, generated(folder, "common", "chat", "generation", "embeddings"))
        with Connection(load) as stubs:
            load.remember(stubs)
        time.sleep(1)
        start = server.holds()
        print(f"{'':>7} " + " ".join(f"{name:>12}" for name in start))
        show("start", start)

        workers = [threading.Thread(target=load.work, args=(f"{options.seed}/{k}",), daemon=True) for k in range(options.workers)]
        for worker in workers:
            worker.start()
        began, samples = time.monotonic(), []
        every = min(60, seconds / 12)
        for k in itertools.count(1):
            if (due := began + k * every) > began + seconds + every / 2:
                break
            time.sleep(max(0, due - time.monotonic()))
            samples.append(server.holds())
            show(f"{k * every / 60:.1f} min", samples[-1])
        load.stopping.set()
        for worker in workers:
            worker.join(2 * WAIT)
            check(not worker.is_alive(), "a worker hangs")

        deadline = time.monotonic() + SETTLE
        while not settled(end := server.holds(), start) and time.monotonic() < deadline:
            time.sleep(1)
        show("end", end)
        for name in ("running", "waiting", "paused", "seq blocks", "lease blocks"):
            check(end[name] == 0, f"{name} is {end[name]} at the end")
        for name in ("files", "free blocks"):
            check(end[name] == start[name], f"{name}: {start[name]} at the start, {end[name]} at the end")
        check(end["restarts"] == (0 if options.no_panic else 1), f"the engine came back {end['restarts']} times")
        with Connection(load) as stubs:
            check(take_all_places(load, stubs), "not every place in line was free, or there were more than there should be")
        quarter = len(samples) // 4
        third, last = samples[2 * quarter : 3 * quarter], samples[3 * quarter :]
        third, last = (max(sample["own MiB"] for sample in part) for part in (third, last))
        print(f"most memory of its own in the third quarter {third:.1f} MiB, in the last {last:.1f} MiB")
        # A shorter run is over before every buffer has been as full as it gets.
        if options.minutes >= 10:
            grown = f"memory grew by more than {ALLOWED_MIB} MiB between the third quarter and the last"
            check(last <= third + ALLOWED_MIB, grown)
    finally:
        code = server.stop()
    check(code == 0, f"the server ended with {code}:\n" + "".join(server.log))

    print(f"\n{'':>11} what came of it")
    for name, outcomes in sorted(load.outcomes.items()):
        print(f"{name:>11} " + ", ".join(f"{n} {code}" for code, n in outcomes.most_common()))
    if load.restarts:
        took = load.restarts[-1] - load.restarts[0]
        print(f"{len(load.restarts)} noticed the panic, within {took:.1f} s")
        check(took <= RESTART, f"streams failed over {took:.1f} s")
    check(options.no_panic == (not load.restarts), "the panic was noticed by nobody, or there was none to notice")
    failed += [f"{n} times: {what}" for what, n in collections.Counter(load.wrong).most_common(20)]
    if failed:
        sys.exit("\n".join(["not flat, or not right:", *failed]))
    print("flat, and as it should be")


if __name__ == "__main__":
    main()
