"""A conversation that the server keeps, for the client that blocks."""

import queue
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Protocol, Self

import grpc

from candlewick import conversation
from candlewick.calls import Patience, Retry
from candlewick.conversation import Conversation, TurnLog
from candlewick.errors import Aborted, CandlewickError, of_rpc
from candlewick.v1 import chat_pb2 as chat
from candlewick.v1 import common_pb2 as common


class Line(Protocol):
    """A connection of a session: what the server says, one after the other."""

    def __next__(self) -> chat.SessionResponse: ...

    def cancel(self) -> object: ...


Connect = Callable[[Iterator[chat.SessionRequest]], Line]


class Turn(Iterator[common.Delta]):
    """The deltas of one turn; `done` once they are through."""

    def __init__(self, session: "Session", log: TurnLog) -> None:
        self._session, self.log = session, log

    def __next__(self) -> common.Delta:
        while not self.log.deltas:
            if self.log.error is not None:
                raise self.log.error
            if self.log.done is not None:
                raise StopIteration
            self._session._hear()
        return self.log.deltas.popleft()

    def text(self) -> Iterator[str]:
        """The text as it comes."""
        return (delta.text for delta in self if delta.text)

    @property
    def done(self) -> chat.TurnDone:
        """How the turn ended, all of it read: the message, its usage, its receipt."""
        for _ in self:
            pass
        assert self.log.done is not None
        return self.log.done


class Session:
    """One conversation. A connection that breaks is made anew, and what was said on neither side is lost.

    For one thread; `cancel`, `edit`, `grant` and `detach` may come from others.
    """

    def __init__(
        self,
        connect: Connect,
        opening: chat.SessionOpen,
        retry: Retry,
        on_event: Callable[[chat.SessionResponse], None] | None,
    ) -> None:
        self._connect, self._retry, self._on_event = connect, retry, on_event
        self._patience = Patience(retry, None)
        self.conversation = Conversation(opening)
        #: Connections that broke and were made anew.
        self.reconnects = 0
        self._over = self._recovering = False
        self._dial()
        if not self.id:
            while self.conversation.opened is None:
                self._hear()

    @property
    def id(self) -> str:
        """For coming back to it; nobody can guess it."""
        return self.conversation.session_id

    @property
    def last_seq(self) -> int:
        """The number of the last event: what `after_seq` is for who comes back. Events of finished turns are not kept."""
        return self.conversation.last_seq

    @property
    def opened(self) -> chat.Opened | None:
        """The model and the effective parameters; none where the session was opened before."""
        return self.conversation.opened

    def say(
        self,
        content: str,
        *,
        name: str | None = None,
        sampling: common.SamplingParams | None = None,
        priority: int | None = None,
        timeout: float | None = None,
    ) -> Turn:
        """Begins a turn; `sampling` over what the session was opened with. Iterate over it, or take its `done`."""
        return self._begin(conversation.user_turn(content, name, sampling, priority, timeout))

    def answer_tools(self, results: dict[str, str], *, sampling: common.SamplingParams | None = None) -> Turn:
        """Answers the calls of the last message, by their ids; with the last answer the model goes on."""
        return self._begin(conversation.tool_turn(results, sampling))

    def current(self) -> Turn | None:
        """After coming back by id: the last turn that was told of, which may still be under way."""
        self.conversation.unanswered()
        self._settle()
        return None if self.conversation.turn is None else Turn(self, self.conversation.turn)

    def cancel(self) -> None:
        """Ends the turn under way: what was said so far stays, and its `done` comes with `cancelled`."""
        self._unanswered(chat.SessionRequest(cancel=chat.CancelTurn()))

    def edit(
        self,
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
        stop: list[str] | None = None,
        priority: int | None = None,
    ) -> None:
        """Changes the turn under way, from its next token on. One that is refused is in `conversation.refusals`."""
        self._unanswered(conversation.edit(max_tokens, temperature, stop, priority))

    def grant(self, tokens: int) -> None:
        """Allows so many tokens more. One that is said while the connection breaks may be lost: see `reconnects`."""
        self._said.put(chat.SessionRequest(grant=chat.Grant(tokens=tokens)))

    def rewind(self, turn_index: int) -> None:
        """Goes back to before this turn."""
        self._answer(chat.SessionRequest(rewind=chat.Rewind(turn_index=turn_index)))

    def fork(self, turn_index: int | None = None) -> "Session":
        """A session of its own that begins like this one: before this turn, or as the last finished one left it."""
        forked = self._answer(chat.SessionRequest(fork=chat.Fork(turn_index=turn_index)))
        assert isinstance(forked, chat.Forked)
        opening = chat.SessionOpen(session_id=forked.session_id)
        return Session(self._connect, opening, self._retry, self._on_event)

    def detach(self) -> None:
        """Hangs up; the session stays on the server for its lease, and goes on with its turn."""
        self._over = True
        self._call.cancel()
        self._said.put(None)

    def close(self) -> None:
        """Ends the session, on the server too."""
        if self._over:
            return
        self._over = True
        self._said.put(chat.SessionRequest(close=chat.CloseSession()))
        self._said.put(None)
        try:
            while True:
                next(self._call)
        except (StopIteration, grpc.RpcError):
            # It has ended, as it should or with its connection.
            pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    # The line.

    def _dial(self) -> None:
        self._said: queue.SimpleQueue[chat.SessionRequest | None] = queue.SimpleQueue()
        self._said.put(self.conversation.hello())
        self._call = self._connect(iter(self._said.get, None))
        #: Whether this connection has brought anything.
        self._heard = False

    def _begin(self, requests: list[chat.SessionRequest]) -> Turn:
        self._settle()
        log = self.conversation.begin_turn(requests)
        self._say(requests)
        return Turn(self, log)

    def _unanswered(self, request: chat.SessionRequest) -> None:
        self.conversation.unanswered()
        self._said.put(request)

    def _answer(self, request: chat.SessionRequest) -> chat.Rewound | chat.Forked:
        self._settle()
        self.conversation.ask(request)
        self._said.put(request)
        while self.conversation.answer is None:
            self._hear()
        if isinstance(self.conversation.answer, CandlewickError):
            raise self.conversation.answer
        return self.conversation.answer

    def _say(self, requests: list[chat.SessionRequest]) -> None:
        for request in requests:
            self._said.put(request)

    def _settle(self) -> None:
        """Waits until no refusal of an earlier edit or cancel can be taken for one of what is said next, and until what a
        broken connection lost was said again."""
        if not self.conversation.settled and not self.conversation.probing:
            self._say(self.conversation.probe())
        while self.conversation.probing:
            self._hear()

    def _hear(self) -> None:
        """The next event, on a new connection where the old one broke."""
        while True:
            try:
                response = next(self._call)
                break
            except StopIteration:
                self._over = True
                raise Aborted(grpc.StatusCode.ABORTED, "the session has ended") from None
            except grpc.RpcError as error:
                self._redial(of_rpc(error))
        self._patience.heard()
        self._heard = True
        self.conversation.take(response)
        if self._on_event is not None:
            self._on_event(response)
        if response.WhichOneof("event") == "turn_done":
            self._said.put(chat.SessionRequest(ack=chat.Ack(seq=response.seq)))
        if self._recovering and not self.conversation.probing:
            self._recovering = False
            self._say(self.conversation.lost())

    def _redial(self, error: CandlewickError) -> None:
        """A new connection after the old one broke, or the error where there is no point in one."""
        if self._over or (self.conversation.probing and self._heard):
            # Of a second break in the midst of finding out what the first one lost, nobody could tell what it lost.
            self._over = True
            raise error
        time.sleep(self._patience.pause(error))
        self._said.put(None)
        self.reconnects += 1
        self._dial()
        if self.conversation.session_id:
            self._recovering = True
            self._say(self.conversation.probe())
