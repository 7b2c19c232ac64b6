"""What both clients share: the calls of the contract, deadlines, retries, and how a request is made."""

import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypedDict, TypeVar, Unpack

import grpc
from google.protobuf.message import Message as Proto

from candlewick.errors import CandlewickError
from candlewick.v1 import chat_pb2 as chat
from candlewick.v1 import common_pb2 as common
from candlewick.v1 import generation_pb2 as generation
from candlewick.v1 import models_pb2 as models
from candlewick.v1 import tokens_pb2 as tokens

Asked = TypeVar("Asked", bound=Proto)
Told = TypeVar("Told", bound=Proto)
Out = TypeVar("Out", covariant=True)
#: What a stream of tokens says, whichever call opened it.
Event = generation.GenerateStreamResponse | chat.CompleteStreamResponse | generation.ResumeResponse
#: Text, or token ids.
PromptLike = str | Sequence[int] | generation.Prompt
#: Messages, or one thing that a user says.
MessagesLike = str | Iterable[chat.Message]


class Iterating(Protocol[Out]):
    """A call under way: what comes, one after the other, and it can be cancelled."""

    def __next__(self) -> Out: ...

    def cancel(self) -> object: ...


class AsyncCalling(Protocol):
    """The same for who awaits."""

    async def read(self) -> object:
        """The next event, or `grpc.aio.EOF`."""

    def cancel(self) -> bool:
        """Ends it."""


@dataclass(frozen=True)
class Method(Generic[Asked, Told]):
    """A call of the contract: its path, and what goes in and comes out."""

    service: str
    name: str
    asked: type[Asked]
    told: type[Told]

    @property
    def path(self) -> str:
        """As HTTP/2 has it."""
        return f"/candlewick.v1.{self.service}/{self.name}"

    def encode(self, message: Asked) -> bytes:
        """A request on the wire."""
        return message.SerializeToString()

    def decode(self, data: bytes) -> Told:
        """A response off the wire."""
        return self.told.FromString(data)


GENERATE = Method("Generation", "Generate", generation.GenerateRequest, generation.GenerateResponse)
GENERATE_STREAM = Method(
    "Generation", "GenerateStream", generation.GenerateStreamRequest, generation.GenerateStreamResponse
)
RESUME = Method("Generation", "Resume", generation.ResumeRequest, generation.ResumeResponse)
QUOTE = Method("Generation", "Quote", generation.QuoteRequest, generation.QuoteResponse)
COMPLETE = Method("Chat", "Complete", chat.CompleteRequest, chat.CompleteResponse)
COMPLETE_STREAM = Method("Chat", "CompleteStream", chat.CompleteStreamRequest, chat.CompleteStreamResponse)
SESSION = Method("Chat", "Session", chat.SessionRequest, chat.SessionResponse)
LIST = Method("Models", "List", models.ListRequest, models.ListResponse)
GET = Method("Models", "Get", models.GetRequest, models.GetResponse)
LOAD = Method("Models", "Load", models.LoadRequest, models.LoadResponse)
UNLOAD = Method("Models", "Unload", models.UnloadRequest, models.UnloadResponse)
WATCH = Method("Models", "Watch", models.WatchRequest, models.WatchResponse)
TOKENIZE = Method("Tokens", "Tokenize", tokens.TokenizeRequest, tokens.TokenizeResponse)
DETOKENIZE = Method("Tokens", "Detokenize", tokens.DetokenizeRequest, tokens.DetokenizeResponse)


@dataclass(frozen=True)
class Retry:
    """How often, and after how long, to try again what has not begun or can be gone on with."""

    attempts: int = 5
    #: Seconds before the second attempt; doubled for each further one.
    first_delay: float = 0.2
    max_delay: float = 5.0

    def delay(self, failures: int, error: CandlewickError) -> float | None:
        """Seconds to wait after so many failures in a row; none where it is time to give up."""
        if error.code is not grpc.StatusCode.UNAVAILABLE or failures >= self.attempts:
            return None
        longest: float = min(self.first_delay * 2 ** (failures - 1), self.max_delay)
        return max(error.retry_after or 0.0, longest * random.uniform(0.5, 1))


class Patience:
    """The retries of one call, within its deadline. `deadline` is in seconds from now; none is forever."""

    def __init__(self, retry: Retry, deadline: float | None) -> None:
        self._retry = retry
        self._ends = None if deadline is None else time.monotonic() + deadline
        self._failures = 0

    def left(self) -> float | None:
        """Seconds until the deadline."""
        return None if self._ends is None else max(self._ends - time.monotonic(), 0.0)

    def heard(self) -> None:
        """The server answered: the next failure is the first again."""
        self._failures = 0

    def pause(self, error: CandlewickError) -> float:
        """Seconds to wait before another attempt; raises the error where there is to be none."""
        self._failures += 1
        delay, left = self._retry.delay(self._failures, error), self.left()
        if delay is None or (left is not None and delay >= left):
            raise error
        return delay


def metadata(api_key: str | None) -> tuple[tuple[str, str], ...]:
    """What goes with every call."""
    return () if api_key is None else (("authorization", f"Bearer {api_key}"),)


#: Channels come back soon after a server does, and notice one whose machine vanished.
CHANNEL_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.max_receive_message_length", 64 << 20),
)


def prompt(given: PromptLike) -> generation.Prompt:
    """A prompt of text or token ids."""
    if isinstance(given, generation.Prompt):
        return given
    if isinstance(given, str):
        return generation.Prompt(text=given)
    return generation.Prompt(token_ids=generation.TokenIds(ids=given))


def messages(given: MessagesLike) -> list[chat.Message]:
    """Messages as they are, or a user's one."""
    return [chat.Message(role=chat.ROLE_USER, content=given)] if isinstance(given, str) else list(given)


def request_options(
    sampling: common.SamplingParams | None, options: common.RequestOptions | None
) -> common.RequestOptions:
    """Options with these sampling parameters over their own."""
    merged = common.RequestOptions()
    if options is not None:
        merged.CopyFrom(options)
    if sampling is not None:
        merged.sampling.MergeFrom(sampling)
    return merged


class How(TypedDict, total=False):
    """How a request is met; `sampling` counts over what `options` has of it."""

    sampling: common.SamplingParams | None
    options: common.RequestOptions | None


class ChatHow(How, total=False):
    """The same of a chat: tools, and what else the template is told."""

    chat_options: chat.ChatOptions | None


def _options(how: How) -> common.RequestOptions:
    return request_options(how.get("sampling"), how.get("options"))


def generate(given: PromptLike, **how: Unpack[How]) -> generation.GenerateRequest:
    """A prompt to go on with, all at once."""
    return generation.GenerateRequest(prompt=prompt(given), options=_options(how))


def generate_stream(given: PromptLike, **how: Unpack[How]) -> generation.GenerateStreamRequest:
    """A prompt to go on with, delta by delta."""
    return generation.GenerateStreamRequest(prompt=prompt(given), options=_options(how))


def complete(given: MessagesLike, **how: Unpack[ChatHow]) -> chat.CompleteRequest:
    """Messages to answer, all at once."""
    return chat.CompleteRequest(messages=messages(given), options=_options(how), chat=how.get("chat_options"))


def complete_stream(given: MessagesLike, **how: Unpack[ChatHow]) -> chat.CompleteStreamRequest:
    """Messages to answer, delta by delta."""
    return chat.CompleteStreamRequest(messages=messages(given), options=_options(how), chat=how.get("chat_options"))


def quote(
    prompt_given: PromptLike | None, messages_given: MessagesLike | None, **how: Unpack[ChatHow]
) -> generation.QuoteRequest:
    """A question of a prompt or of messages."""
    return generation.QuoteRequest(
        prompt=None if prompt_given is None else prompt(prompt_given),
        messages=None if messages_given is None else messages(messages_given),
        options=_options(how),
        chat=how.get("chat_options"),
    )


class LoadHow(TypedDict, total=False):
    """How a model is loaded."""

    #: What requests will call it; the last part of its path unless set. Without a path, a model that was served before.
    name: str | None
    #: Whether it takes the place of the model of that name.
    replace: bool | None
    #: In place of the server's own flags of these names; not without a path.
    quantization: str | None
    max_model_len: int | None
    kv_cache_memory_bytes: int | None


def load(path: str | None, **how: Unpack[LoadHow]) -> models.LoadRequest:
    """A model to load."""
    return models.LoadRequest(path=path, **how)


def unload(name: str, wait: float | None, drain_timeout: float | None) -> models.UnloadRequest:
    """A model to unload; times in seconds."""
    return models.UnloadRequest(
        name=name,
        wait_ms=None if wait is None else int(wait * 1000),
        drain_timeout_ms=None if drain_timeout is None else int(drain_timeout * 1000),
    )


class StreamLog:
    """What a stream has said so far beside its deltas. Knows no transport."""

    def __init__(self, stream_id: str = "", after_seq: int = 0) -> None:
        #: The effective parameters and the request's id; none before the first event.
        self.started: common.Started | None = None
        #: The end of each sequence, in the order in which they ended.
        self.finished: list[common.Finished] = []
        #: Log-probabilities of the prompt, where they were asked for.
        self.prompt_logprobs: list[common.PositionLogprobs] = []
        #: The last heartbeat: how far the request has come that says nothing yet.
        self.progress: common.Progress | None = None
        #: The number of the last event.
        self.last_seq = after_seq
        #: For `resume`; empty where the stream is not resumable.
        self.stream_id = stream_id

    def take(self, event: Event) -> common.Delta | None:
        """Keeps what an event says; gives its delta, where it is one."""
        self.last_seq = event.seq
        match event.WhichOneof("event"):
            case "started":
                self.started = event.started
                self.stream_id = event.started.stream_id
            case "progress":
                self.progress = event.progress
            case "prompt_logprobs":
                self.prompt_logprobs.extend(event.prompt_logprobs.logprobs)
            case "finished":
                self.finished.append(event.finished)
            case "delta":
                return event.delta
        return None

    def way_back(self) -> generation.ResumeRequest | None:
        """How to go on after the connection broke: None is from the beginning, for nothing was heard yet.

        Raises LookupError where something was, and the stream is not resumable.
        """
        if self.stream_id:
            return generation.ResumeRequest(stream_id=self.stream_id, after_seq=self.last_seq)
        if self.last_seq:
            raise LookupError("the stream has begun and is not resumable")
        return None
