"""The client that awaits: for programs that hold many streams and sessions at once."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from types import TracebackType
from typing import Protocol, Self, Unpack

import grpc
import grpc.aio

from candlewick import calls, conversation
from candlewick.calls import (
    Asked,
    AsyncCalling,
    ChatHow,
    Event,
    How,
    LoadHow,
    MessagesLike,
    Method,
    Patience,
    PromptLike,
    Retry,
    StreamLog,
    Told,
)
from candlewick.conversation import Conversation, Editing, Opening, Saying, TurnLog
from candlewick.errors import Aborted, CandlewickError, of_rpc
from candlewick.models import AsyncLoad, AsyncWatch
from candlewick.v1 import chat_pb2
from candlewick.v1 import common_pb2
from candlewick.v1 import generation_pb2
from candlewick.v1 import models_pb2
from candlewick.v1 import tokens_pb2


class AsyncStream(AsyncIterator[common_pb2.Delta]):
    """Deltas as they come; see `Stream`."""

    def __init__(
        self,
        first: Callable[[float | None], AsyncCalling] | None,
        resume: Callable[[generation_pb2.ResumeRequest, float | None], AsyncCalling],
        patience: Patience,
        log: StreamLog,
    ) -> None:
        self.log = log
        self._first, self._resume, self._patience = first, resume, patience
        self._call = self._open()

    def _open(self) -> AsyncCalling:
        back = self.log.way_back()
        if back is None and self._first is not None:
            return self._first(self._patience.left())
        assert back is not None
        return self._resume(back, self._patience.left())

    async def __anext__(self) -> common_pb2.Delta:
        while True:
            try:
                event = await self._call.read()
            except grpc.RpcError as error:
                failure = of_rpc(error)
                pause = self._patience.pause(failure)
                try:
                    self.log.way_back()
                except LookupError:
                    raise failure from error
                await asyncio.sleep(pause)
                self._call = self._open()
                continue
            if not isinstance(event, Event):
                raise StopAsyncIteration
            self._patience.heard()
            delta = self.log.take(event)
            if delta is not None:
                return delta

    async def text(self) -> AsyncIterator[str]:
        """The text of the first sequence, as it comes."""
        async for delta in self:
            if delta.index == 0 and delta.text:
                yield delta.text

    def close(self) -> None:
        """Goes away. The server ends the request, or, of a resumable stream, keeps it for a while."""
        self._call.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.close()


class AsyncClient:
    """A connection to a server; see `Client`. Make it inside the event loop that uses it."""

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
            self._channel = grpc.aio.insecure_channel(target, given)
        else:
            self._channel = grpc.aio.secure_channel(target, credentials, given)
        self._metadata = calls.metadata(api_key)
        self._timeout, self._retry = timeout, retry

    async def close(self) -> None:
        """Ends the connection and everything on it."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def generate(
        self, prompt: PromptLike, *, timeout: float | None = None, **how: Unpack[How]
    ) -> generation_pb2.GenerateResponse:
        """Continues a prompt, all at once."""
        return await self._unary(calls.GENERATE, calls.generate(prompt, **how), timeout)

    def generate_stream(self, prompt: PromptLike, *, timeout: float | None = None, **how: Unpack[How]) -> AsyncStream:
        """Continues a prompt, delta by delta."""
        asked = calls.generate_stream(prompt, **how)
        return self._stream(lambda left: self._open(calls.GENERATE_STREAM, asked, left), timeout)

    async def chat(
        self, messages: MessagesLike, *, timeout: float | None = None, **how: Unpack[ChatHow]
    ) -> chat_pb2.CompleteResponse:
        """Answers messages, all at once."""
        return await self._unary(calls.COMPLETE, calls.complete(messages, **how), timeout)

    def chat_stream(self, messages: MessagesLike, *, timeout: float | None = None, **how: Unpack[ChatHow]) -> AsyncStream:
        """Answers messages, delta by delta."""
        asked = calls.complete_stream(messages, **how)
        return self._stream(lambda left: self._open(calls.COMPLETE_STREAM, asked, left), timeout)

    def resume(self, stream_id: str, after_seq: int = 0, *, timeout: float | None = None) -> AsyncStream:
        """Reads a resumable stream on, after the last event that was read."""
        return self._stream(None, timeout, StreamLog(stream_id, after_seq))

    async def quote(
        self,
        prompt: PromptLike | None = None,
        *,
        messages: MessagesLike | None = None,
        timeout: float | None = None,
        **how: Unpack[ChatHow],
    ) -> generation_pb2.QuoteResponse:
        """What a request of a prompt or of messages would meet with, without running it."""
        return await self._unary(calls.QUOTE, calls.quote(prompt, messages, **how), timeout)

    async def tokenize(
        self, text: str, *, model: str | None = None, add_special_tokens: bool | None = None, timeout: float | None = None
    ) -> list[int]:
        """The token ids of a text."""
        asked = tokens_pb2.TokenizeRequest(model=model, text=text, add_special_tokens=add_special_tokens)
        return list((await self._unary(calls.TOKENIZE, asked, timeout)).token_ids)

    async def detokenize(
        self,
        token_ids: Sequence[int],
        *,
        model: str | None = None,
        skip_special_tokens: bool | None = None,
        timeout: float | None = None,
    ) -> str:
        """The text of token ids."""
        asked = tokens_pb2.DetokenizeRequest(model=model, token_ids=token_ids, skip_special_tokens=skip_special_tokens)
        return (await self._unary(calls.DETOKENIZE, asked, timeout)).text

    async def models(self, *, timeout: float | None = None) -> list[models_pb2.Model]:
        """What is served."""
        return list((await self._unary(calls.LIST, models_pb2.ListRequest(), timeout)).models)

    async def model(self, name: str, *, timeout: float | None = None) -> models_pb2.Model:
        """One of them, in memory or not."""
        return (await self._unary(calls.GET, models_pb2.GetRequest(name=name), timeout)).model

    def load_model(self, path: str | None = None, *, timeout: float | None = None, **how: Unpack[LoadHow]) -> AsyncLoad:
        """Loads a model; see `Client.load_model`. Iterate over its progress, or `await` its `model()`."""
        return AsyncLoad(self._open(calls.LOAD, calls.load(path, **how), timeout))

    async def unload_model(
        self, name: str, *, wait: float | None = None, drain_timeout: float | None = None, timeout: float | None = None
    ) -> models_pb2.UnloadResponse:
        """Takes a model's name away, and its memory once its streams have ended; see `Client.unload_model`."""
        return await self._unary(calls.UNLOAD, calls.unload(name, wait, drain_timeout), timeout)

    def watch_models(self) -> AsyncWatch:
        """The list of models now and at every change."""
        begin = lambda: self._open(calls.WATCH, models_pb2.WatchRequest(), None)
        return AsyncWatch(begin, Patience(self._retry, None))

    async def session(
        self,
        session_id: str | None = None,
        *,
        after_seq: int | None = None,
        on_event: Callable[[chat_pb2.SessionResponse], None] | None = None,
        **how: Unpack[Opening],
    ) -> "AsyncSession":
        """Opens a conversation that the server keeps, or, with a `session_id`, comes back to one; see `Client.session`."""
        opening = conversation.opening(session_id, after_seq, **how)
        connect = self._channel.stream_stream(
            calls.SESSION.path, request_serializer=calls.SESSION.encode, response_deserializer=calls.SESSION.decode
        )
        session = AsyncSession(lambda: connect(metadata=self._metadata), opening, self._retry, on_event)
        return await session.open()

    async def _unary(self, method: Method[Asked, Told], asked: Asked, timeout: float | None) -> Told:
        patience = Patience(self._retry, self._timeout if timeout is None else timeout)
        call = self._channel.unary_unary(
            method.path, request_serializer=method.encode, response_deserializer=method.decode
        )
        while True:
            try:
                return await call(asked, timeout=patience.left(), metadata=self._metadata)
            except grpc.RpcError as error:
                await asyncio.sleep(patience.pause(of_rpc(error)))

    def _open(self, method: Method[Asked, Told], asked: Asked, left: float | None) -> AsyncCalling:
        call = self._channel.unary_stream(
            method.path, request_serializer=method.encode, response_deserializer=method.decode
        )
        return call(asked, timeout=left, metadata=self._metadata)

    def _stream(
        self, first: Callable[[float | None], AsyncCalling] | None, timeout: float | None, log: StreamLog | None = None
    ) -> AsyncStream:
        patience = Patience(self._retry, self._timeout if timeout is None else timeout)
        return AsyncStream(first, lambda back, left: self._open(calls.RESUME, back, left), patience, log or StreamLog())


class AsyncLine(AsyncCalling, Protocol):
    """A connection of a session."""

    def write(self, request: chat_pb2.SessionRequest) -> Awaitable[None]:
        """Says something."""


class AsyncTurn(AsyncIterator[common_pb2.Delta]):
    """The deltas of one turn; `await turn.done()` reads them to the end."""

    def __init__(self, session: "AsyncSession", log: TurnLog) -> None:
        self._session, self.log = session, log

    async def __anext__(self) -> common_pb2.Delta:
        while not self.log.deltas:
            if self.log.error is not None:
                raise self.log.error
            if self.log.done is not None:
                raise StopAsyncIteration
            await self._session._hear()
        return self.log.deltas.popleft()

    async def text(self) -> AsyncIterator[str]:
        """The text as it comes."""
        async for delta in self:
            if delta.text:
                yield delta.text

    async def done(self) -> chat_pb2.TurnDone:
        """How the turn ended, all of it read: the message, its usage, its receipt."""
        async for _ in self:
            pass
        assert self.log.done is not None
        return self.log.done


class AsyncSession:
    """One conversation; see `Session`. For one task; `cancel`, `edit`, `grant` and `detach` may come from others."""

    def __init__(
        self,
        connect: Callable[[], AsyncLine],
        opening: chat_pb2.SessionOpen,
        retry: Retry,
        on_event: Callable[[chat_pb2.SessionResponse], None] | None,
    ) -> None:
        self._connect, self._retry, self._on_event = connect, retry, on_event
        self._patience = Patience(retry, None)
        self.conversation = Conversation(opening)
        #: Connections that broke and were made anew.
        self.reconnects = 0
        self._over = False

    async def open(self) -> Self:
        """Says the first event; `AsyncClient.session` has done so."""
        await self._dial()
        if not self.id:
            while self.conversation.opened is None:
                await self._hear()
        return self

    @property
    def id(self) -> str:
        """For coming back to it; nobody can guess it."""
        return self.conversation.session_id

    @property
    def last_seq(self) -> int:
        """The number of the last event: what `after_seq` is for who comes back. Events of finished turns are not kept."""
        return self.conversation.last_seq

    @property
    def opened(self) -> chat_pb2.Opened | None:
        """The model and the effective parameters; none where the session was opened before."""
        return self.conversation.opened

    async def say(self, content: str, **how: Unpack[Saying]) -> AsyncTurn:
        """Begins a turn."""
        return await self._begin(conversation.user_turn(content, **how))

    async def answer_tools(self, results: dict[str, str], *, sampling: common_pb2.SamplingParams | None = None) -> AsyncTurn:
        """Answers the calls of the last message, by their ids; with the last answer the model goes on."""
        return await self._begin(conversation.tool_turn(results, sampling))

    async def current(self) -> AsyncTurn | None:
        """After coming back by id: the last turn that was told of, which may still be under way."""
        refusal = await self._answer(self.conversation.probe())
        # Whatever was told before is here with the answer.
        assert isinstance(refusal, CandlewickError)
        turn = self.conversation.probed(refusal)
        return None if turn is None else AsyncTurn(self, turn)

    async def cancel(self) -> None:
        """Ends the turn under way: what was said so far stays, and its `done` comes with `cancelled`."""
        await self._say([self.conversation.say(chat_pb2.SessionRequest(cancel=chat_pb2.CancelTurn()))])

    async def edit(self, **how: Unpack[Editing]) -> None:
        """Changes the turn under way, from its next token on. One that is refused is in `conversation.refusals`."""
        await self._say([self.conversation.say(conversation.edit(**how))])

    async def grant(self, tokens: int) -> None:
        """Allows so many tokens more."""
        await self._say([self.conversation.say(chat_pb2.SessionRequest(grant=chat_pb2.Grant(tokens=tokens)))])

    async def rewind(self, turn_index: int) -> None:
        """Goes back to before this turn."""
        await self._done(chat_pb2.SessionRequest(rewind=chat_pb2.Rewind(turn_index=turn_index)))

    async def fork(self, turn_index: int | None = None) -> "AsyncSession":
        """A session of its own that begins like this one: before this turn, or as the last finished one left it."""
        forked = await self._done(chat_pb2.SessionRequest(fork=chat_pb2.Fork(turn_index=turn_index)))
        assert isinstance(forked, chat_pb2.Forked)
        opening = chat_pb2.SessionOpen(session_id=forked.session_id)
        return await AsyncSession(self._connect, opening, self._retry, self._on_event).open()

    def detach(self) -> None:
        """Hangs up; the session stays on the server for its lease, and goes on with its turn."""
        self._over = True
        self._call.cancel()

    async def close(self) -> None:
        """Ends the session, on the server too."""
        if self._over:
            return
        self._over = True
        try:
            await self._call.write(chat_pb2.SessionRequest(close=chat_pb2.CloseSession()))
            while isinstance(await self._call.read(), chat_pb2.SessionResponse):
                pass
        except (grpc.RpcError, asyncio.InvalidStateError):
            # It has ended, as it should or with its connection.
            pass

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    # The line.

    async def _dial(self) -> None:
        self._call = self._connect()
        await self._say(self.conversation.hello())

    async def _begin(self, requests: list[chat_pb2.SessionRequest]) -> AsyncTurn:
        log = self.conversation.begin_turn(requests)
        await self._say(requests)
        return AsyncTurn(self, log)

    async def _answer(
        self, request: chat_pb2.SessionRequest
    ) -> chat_pb2.Rewound | chat_pb2.Forked | CandlewickError:
        await self._say([request])
        while self.conversation.answer is None:
            await self._hear()
        return self.conversation.answer

    async def _done(self, request: chat_pb2.SessionRequest) -> chat_pb2.Rewound | chat_pb2.Forked:
        answer = await self._answer(self.conversation.ask(request))
        if isinstance(answer, CandlewickError):
            raise answer
        return answer

    async def _say(self, requests: list[chat_pb2.SessionRequest]) -> None:
        try:
            for request in requests:
                await self._call.write(request)
        except (grpc.RpcError, asyncio.InvalidStateError):
            # The connection is gone: who reads next finds out, and says again what was lost.
            pass

    async def _hear(self) -> None:
        """The next event, on a new connection where the old one broke."""
        while True:
            try:
                response = await self._call.read()
                break
            except grpc.RpcError as error:
                await self._redial(of_rpc(error))
        if not isinstance(response, chat_pb2.SessionResponse):
            self._over = True
            raise Aborted(grpc.StatusCode.ABORTED, "the session has ended")
        self._patience.heard()
        self.conversation.take(response)
        if self._on_event is not None:
            self._on_event(response)
        if response.WhichOneof("event") == "turn_done":
            await self._say([chat_pb2.SessionRequest(ack=chat_pb2.Ack(seq=response.seq))])

    async def _redial(self, error: CandlewickError) -> None:
        """A new connection after the old one broke, or the error where there is no point in one."""
        if self._over:
            raise error
        await asyncio.sleep(self._patience.pause(error))
        self.reconnects += 1
        await self._dial()
