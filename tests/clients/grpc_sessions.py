#!/usr/bin/env python3
"""A crowd of sessions (grpcio) against a running server: turns, cancels, forks, rewinds, credits, reconnects, and streams
that are dropped and resumed.

    python3 -m venv .venv && .venv/bin/pip install -r tests/clients/requirements.txt
    cargo run -- serve &
    .venv/bin/python tests/clients/grpc_sessions.py [ADDRESS] [SESSIONS] [TURNS]

ADDRESS defaults to 127.0.0.1:50051, SESSIONS to 12, TURNS to 4. Greedy sampling, so that what one session says can be
compared with what another says, and with what a plain stream says. Ends with 0 where everything came as it should.
"""

import hashlib
import importlib
import pathlib
import queue
import random
import sys
import tempfile
import threading
import time

import grpc
from grpc_tools import protoc

PROTO = pathlib.Path(__file__).resolve().parents[2] / "proto"
WAIT = 120


def generated(folder, *services):
    files = [f"candlewick/v1/{name}.proto" for name in services]
    if protoc.main(["protoc", f"-I{PROTO}", f"--python_out={folder}", f"--grpc_python_out={folder}", *files]):
        sys.exit("the .proto files do not compile")
    sys.path.insert(0, folder)
    return [importlib.import_module(f"candlewick.v1.{name}_{kind}") for name in services for kind in ("pb2", "pb2_grpc")]


class Trouble(AssertionError):
    """An error that a session told, or its end where something else was waited for."""

    def __init__(self, why, code):
        super().__init__(why)
        self.code = code


class Talk:
    """One connection to a session."""

    def __init__(self, pb, stub, **opening):
        self.pb, self.seq, self.said = pb, opening.get("after_seq", 0), queue.Queue()
        self.say(open=pb.SessionOpen(**opening))
        self.call = stub.Session(iter(self.said.get, None), timeout=10 * WAIT)

    def say(self, **event):
        self.said.put(self.pb.SessionRequest(**event))

    def hear(self, *kinds):
        """The next event of one of these kinds; deltas' text before it is collected."""
        text = ""
        for response in self.call:
            self.seq += 1
            assert response.seq == self.seq, f"event {response.seq} comes after {self.seq - 1}"
            kind = response.WhichOneof("event")
            if kind in kinds:
                return getattr(response, kind), text
            if kind == "delta":
                text += response.delta.text
            elif kind == "error":
                code = next(code.name for code in grpc.StatusCode if code.value[0] == response.error.code)
                raise Trouble(f"an error came: {response.error}", code)
        raise Trouble(f"the session ended before {kinds}", "ENDED")

    def turn(self, content, **options):
        self.say(user=self.pb.UserTurn(content=content, **options))
        done, text = self.hear("turn_done")
        return done, text

    def hang_up(self):
        """As a connection that breaks."""
        self.call.cancel()
        self.said.put(None)

    def close(self):
        self.say(close=self.pb.CloseSession())
        for _ in self.call:
            pass
        self.said.put(None)


class Crowd:
    def __init__(self, address, folder):
        self.channel = grpc.insecure_channel(address)
        self.common, _, self.chat, chat_rpc, self.generation, generation_rpc = generated(
            folder, "common", "chat", "generation"
        )
        self.stub = chat_rpc.ChatStub(self.channel)
        self.generate = generation_rpc.GenerationStub(self.channel)
        self.counts = {}

    def count(self, what, n=1):
        self.counts[what] = self.counts.get(what, 0) + n

    def open(self, **opening):
        options = self.common.RequestOptions(sampling=self.sampling(24))
        return Talk(self.chat, self.stub, options=options, **opening)

    def sampling(self, max_tokens):
        return self.common.SamplingParams(temperature=0, max_tokens=max_tokens)

    def session(self, number, turns):
        """One conversation with everything that can befall it."""
        chance = random.Random(number)
        talk = self.open(system="You tell stories.")
        opened, _ = talk.hear("opened")
        before = 0
        for turn in range(turns):
            done, text = talk.turn(f"Once upon a time there was {number} and {turn}.")
            assert done.turn_index == turn and done.message.content == text, done
            usage = done.usage
            new = usage.prompt_tokens - before
            assert done.computed_tokens <= new + 17 or done.recomputed_tokens > 0, done
            before = usage.prompt_tokens + usage.completion_tokens
            self.count("turns")
            self.count("prompt tokens", usage.prompt_tokens)
            self.count("computed tokens", done.computed_tokens)
            self.count("recomputed tokens", done.recomputed_tokens)
            match chance.choice(["nothing", "cancel", "rewind", "fork", "reconnect"]):
                case "cancel":
                    talk.say(user=self.chat.UserTurn(content="A long one.", sampling=self.sampling(200)))
                    talk.hear("delta")
                    talk.say(cancel=self.chat.CancelTurn())
                    done, _ = talk.hear("turn_done")
                    talk.say(rewind=self.chat.Rewind(turn_index=turn + 1))
                    talk.hear("rewound")
                    self.count("cancels")
                case "rewind":
                    again, _ = talk.turn("And then?")
                    talk.say(rewind=self.chat.Rewind(turn_index=turn + 1))
                    talk.hear("rewound")
                    repeated, text = talk.turn("And then?")
                    assert text == again.message.content, "the same question gets the same answer"
                    talk.say(rewind=self.chat.Rewind(turn_index=turn + 1))
                    talk.hear("rewound")
                    self.count("rewinds")
                case "fork":
                    talk.say(fork=self.chat.Fork(tag=f"{number}"))
                    forked, _ = talk.hear("forked")
                    assert forked.tag == f"{number}" and forked.turns == turn + 1, forked
                    fork = Talk(self.chat, self.stub, session_id=forked.session_id)
                    fork.hear("opened")
                    of_fork, left = fork.turn("What next?")
                    _, right = talk.turn("What next?")
                    assert left == right, "a fork goes on as its parent does"
                    fork.close()
                    talk.say(rewind=self.chat.Rewind(turn_index=turn + 1))
                    talk.hear("rewound")
                    self.count("forks")
                case "reconnect":
                    talk.say(user=self.chat.UserTurn(content="Go on.", sampling=self.sampling(60)))
                    talk.hear("delta")
                    talk.hang_up()
                    talk = Talk(self.chat, self.stub, session_id=opened.session_id, after_seq=talk.seq)
                    talk.hear("turn_done")
                    talk.say(rewind=self.chat.Rewind(turn_index=turn + 1))
                    talk.hear("rewound")
                    self.count("reconnects")
        talk.close()

    def credits(self):
        """No credit, no token."""
        talk = self.open(credits=3)
        talk.hear("opened")
        talk.say(user=self.chat.UserTurn(content="Count.", sampling=self.sampling(10)))
        for _ in range(3):
            talk.hear("delta")
        talk.say(grant=self.chat.Grant(tokens=100))
        done, _ = talk.hear("turn_done")
        assert done.usage.completion_tokens > 3 or done.finish.reason == self.common.FINISH_REASON_STOP, done
        talk.close()

    def resume(self, number):
        """A stream that is dropped after a few events is read on, and is what it would have been."""
        request = self.generation.GenerateStreamRequest(
            prompt=self.generation.Prompt(text=f"There once was a number {number}"),
            options=self.common.RequestOptions(resumable=True, sampling=self.sampling(60)),
        )
        whole = [token for event in self.generate.GenerateStream(request, timeout=WAIT) for token in event.delta.token_ids]
        call = self.generate.GenerateStream(request, timeout=WAIT)
        tokens, seq = [], 0
        for event in call:
            seq = event.seq
            if event.WhichOneof("event") == "started":
                stream_id = event.started.stream_id
            tokens += event.delta.token_ids
            if seq == 5:
                call.cancel()
                break
        resumed = self.generation.ResumeRequest(stream_id=stream_id, after_seq=seq)
        for event in self.generate.Resume(resumed, timeout=WAIT):
            seq += 1
            assert event.seq == seq, event
            tokens += event.delta.token_ids
            if event.WhichOneof("event") == "finished":
                receipt = event.finished.receipt
        assert tokens == whole, "what was resumed is what was said"
        digest = hashlib.sha256(b"".join(token.to_bytes(4, "little") for token in tokens)).hexdigest()
        assert receipt.output_hash == digest, receipt
        self.count("resumed streams")


def main(address="127.0.0.1:50051", sessions=12, turns=4):
    failed = []

    def guarded(work, *arguments):
        try:
            work(*arguments)
        except Exception as error:  # Told at the end, for all threads together.
            failed.append(f"{work.__name__}{arguments}: {error!r}")

    with tempfile.TemporaryDirectory() as folder:
        crowd = Crowd(address, folder)
        quote = crowd.generate.Quote(
            crowd.generation.QuoteRequest(prompt=crowd.generation.Prompt(text="Once upon a time")), timeout=WAIT
        )
        print(f"quote: {quote.prompt_tokens} prompt tokens, {quote.queue_position} before it")
        began = time.monotonic()
        work = [(crowd.session, number, int(turns)) for number in range(int(sessions))]
        work += [(crowd.resume, number) for number in range(4)] + [(crowd.credits,)]
        threads = [threading.Thread(target=guarded, args=each, daemon=True) for each in work]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10 * WAIT)
            if thread.is_alive():
                failed.append("a thread hangs")
        print(", ".join(f"{n} {what}" for what, n in sorted(crowd.counts.items())), f"in {time.monotonic() - began:.0f} s")
    if failed:
        sys.exit("\n".join(failed))
    print("all came as it should")


if __name__ == "__main__":
    main(*sys.argv[1:])
