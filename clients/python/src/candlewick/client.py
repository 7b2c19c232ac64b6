"""The client that blocks: for scripts, and for programs with threads."""

import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Self, Unpack

import grpc

from candlewick import calls, conversation
from candlewick.calls import (
    Asked,
    ChatHow,
    Event,
    How,
    Iterating,
    LoadHow,
    MessagesLike,
    Method,
    Patience,
    PromptLike,
    Retry,
    StreamLog,
    Told,
)
from candlewick.conversation import Opening
from candlewick.errors import of_rpc
from candlewick.models import Load, Watch
from candlewick.session import Session
from candlewick.v1 import chat_pb2
from candlewick.v1 import common_pb2
from candlewick.v1 import generation_pb2
from candlewick.v1 import models_pb2
from candlewick.v1 import tokens_pb2

Calling = Iterating[Event]


class Stream(Iterator[common_pb2.Delta]):
    """Deltas as they come; closing it cancels the request, unless it is resumable.

    What else the stream says is in `log`. A connection that breaks before the first event is made anew, and a resumable
    stream is resumed where it stopped.
    """

    def __init__(
        self,
        first: Callable[[float | None], Calling] | None,
        resume: Callable[[generation_pb2.ResumeRequest, float | None], Calling],
        patience: Patience,
        log: StreamLog,
    ) -> None:
        self.log = log
        self._first, self._resume, self._patience = first, resume, patience
        self._call = self._open()

    def _open(self) -> Calling:
        back = self.log.way_back()
        if back is None and self._first is not None:
            return self._first(self._patience.left())
        assert back is not None
        return self._resume(back, self._patience.left())

    def __next__(self) -> common_pb2.Delta:
        while True:
            try:
                event = next(self._call)
            except grpc.RpcError as error:
                failure = of_rpc(error)
                pause = self._patience.pause(failure)
                try:
                    self.log.way_back()
                except LookupError:
                    raise failure from error
                time.sleep(pause)
                self._call = self._open()
                continue
            self._patience.heard()
            delta = self.log.take(event)
            if delta is not None:
                return delta

    def text(self) -> Iterator[str]:
        """The text of the first sequence, as it comes."""
        return (delta.text for delta in self if delta.index == 0 and delta.text)

    def close(self) -> None:
        """Goes away. The server ends the request, or, of a resumable stream, keeps it for a while."""
        self._call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class Client:
    """A connection to a server. May be used by many threads; each stream and session by one at a time."""

    def __init__(
        self,
        target: str = "127.0.0.1:50051",
        *,
        api_key: str | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        timeout: float | None = None,
        retry: Retry = Retry(),
        options: Sequence[tuple[str, int | str]] = (),
    ) -> None:
        """`credentials` for TLS; `timeout` in seconds, of every call that brings an answer and does not say otherwise."""
        given = (*calls.CHANNEL_OPTIONS, *options)
        if credentials is None:
            self._channel = grpc.insecure_channel(target, given)
        else:
            self._channel = grpc.secure_channel(target, credentials, given)
        self._metadata = calls.metadata(api_key)
        self._timeout, self._retry = timeout, retry

    def close(self) -> None:
        """Ends the connection and everything on it."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def generate(
        self, prompt: PromptLike, *, timeout: float | None = None, **how: Unpack[How]
    ) -> generation_pb2.GenerateResponse:
        """Continues a prompt, all at once."""
        return self._unary(calls.GENERATE, calls.generate(prompt, **how), timeout)

    def generate_stream(self, prompt: PromptLike, *, timeout: float | None = None, **how: Unpack[How]) -> Stream:
        """Continues a prompt, delta by delta."""
        asked = calls.generate_stream(prompt, **how)
        return self._stream(lambda left: self._open(calls.GENERATE_STREAM, asked, left), timeout)

    def chat(
        self, messages: MessagesLike, *, timeout: float | None = None, **how: Unpack[ChatHow]
    ) -> chat_pb2.CompleteResponse:
        """Answers messages, all at once."""
        return self._unary(calls.COMPLETE, calls.complete(messages, **how), timeout)

    def chat_stream(self, messages: MessagesLike, *, timeout: float | None = None, **how: Unpack[ChatHow]) -> Stream:
        """Answers messages, delta by delta."""
        asked = calls.complete_stream(messages, **how)
        return self._stream(lambda left: self._open(calls.COMPLETE_STREAM, asked, left), timeout)

    def resume(self, stream_id: str, after_seq: int = 0, *, timeout: float | None = None) -> Stream:
        """Reads a resumable stream on, after the last event that was read."""
        return self._stream(None, timeout, StreamLog(stream_id, after_seq))

    def quote(
        self,
        prompt: PromptLike | None = None,
        *,
        messages: MessagesLike | None = None,
        timeout: float | None = None,
        **how: Unpack[ChatHow],
    ) -> generation_pb2.QuoteResponse:
        """What a request of a prompt or of messages would meet with, without running it."""
        return self._unary(calls.QUOTE, calls.quote(prompt, messages, **how), timeout)

    def tokenize(
        self, text: str, *, model: str | None = None, add_special_tokens: bool | None = None, timeout: float | None = None
    ) -> list[int]:
        """The token ids of a text."""
        asked = tokens_pb2.TokenizeRequest(model=model, text=text, add_special_tokens=add_special_tokens)
        return list(self._unary(calls.TOKENIZE, asked, timeout).token_ids)

    def detokenize(
        self,
        token_ids: Sequence[int],
        *,
        model: str | None = None,
        skip_special_tokens: bool | None = None,
        timeout: float | None = None,
    ) -> str:
        """The text of token ids."""
        asked = tokens_pb2.DetokenizeRequest(model=model, token_ids=token_ids, skip_special_tokens=skip_special_tokens)
        return self._unary(calls.DETOKENIZE, asked, timeout).text

    def models(self, *, timeout: float | None = None) -> list[models_pb2.Model]:
        """What is served."""
        return list(self._unary(calls.LIST, models_pb2.ListRequest(), timeout).models)

    def model(self, name: str, *, timeout: float | None = None) -> models_pb2.Model:
        """One of them, in memory or not."""
        return self._unary(calls.GET, models_pb2.GetRequest(name=name), timeout).model

    def load_model(self, path: str | None = None, *, timeout: float | None = None, **how: Unpack[LoadHow]) -> Load:
        """Loads a model from a path or repository, or one that was served before by its name; see `LoadHow`. Iterate over
        its progress, or take its `model`.

        Never tried again, since it goes on where nobody listens; without a `timeout` it takes its time.
        """
        return Load(self._open(calls.LOAD, calls.load(path, **how), timeout))

    def unload_model(
        self, name: str, *, wait: float | None = None, drain_timeout: float | None = None, timeout: float | None = None
    ) -> models_pb2.UnloadResponse:
        """Takes a model's name away, and its memory once its streams have ended; says how many it still has.

        Waits for that for `wait` seconds at the most. After `drain_timeout` seconds, streams are cut off.
        """
        return self._unary(calls.UNLOAD, calls.unload(name, wait, drain_timeout), timeout)

    def watch_models(self) -> Watch:
        """The list of models now and at every change."""
        return Watch(lambda: self._open(calls.WATCH, models_pb2.WatchRequest(), None), Patience(self._retry, None))

    def session(
        self,
        session_id: str | None = None,
        *,
        after_seq: int | None = None,
        on_event: Callable[[chat_pb2.SessionResponse], None] | None = None,
        **how: Unpack[Opening],
    ) -> Session:
        """Opens a conversation that the server keeps, or, with a `session_id`, comes back to one; see `Opening`.

        `on_event` sees every event, in the thread that waits for it.
        """
        opening = conversation.opening(session_id, after_seq, **how)
        connect = self._channel.stream_stream(
            calls.SESSION.path, request_serializer=calls.SESSION.encode, response_deserializer=calls.SESSION.decode
        )
        return Session(lambda said: connect(said, metadata=self._metadata), opening, self._retry, on_event)

    def _unary(self, method: Method[Asked, Told], asked: Asked, timeout: float | None) -> Told:
        patience = Patience(self._retry, self._timeout if timeout is None else timeout)
        call = self._channel.unary_unary(
            method.path, request_serializer=method.encode, response_deserializer=method.decode
        )
        while True:
            try:
                return call(asked, timeout=patience.left(), metadata=self._metadata)
            except grpc.RpcError as error:
                time.sleep(patience.pause(of_rpc(error)))

    def _open(self, method: Method[Asked, Told], asked: Asked, left: float | None) -> Iterating[Told]:
        call = self._channel.unary_stream(
            method.path, request_serializer=method.encode, response_deserializer=method.decode
        )
        return call(asked, timeout=left, metadata=self._metadata)

    def _stream(
        self, first: Callable[[float | None], Calling] | None, timeout: float | None, log: StreamLog | None = None
    ) -> Stream:
        patience = Patience(self._retry, self._timeout if timeout is None else timeout)
        return Stream(first, lambda back, left: self._open(calls.RESUME, back, left), patience, log or StreamLog())
