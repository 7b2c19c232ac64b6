"""A conversation that the server keeps, for the client that blocks."""

import queue
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Protocol, Self, Unpack

import grpc

from candlewick import conversation
from candlewick.calls import Patience, Retry
from candlewick.conversation import Conversation, Editing, Saying, TurnLog
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
        self._over = False
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

    def say(self, content: str, **how: Unpack[Saying]) -> Turn:
        """Begins a turn. Iterate over it, or take its `done`."""
        return self._begin(conversation.user_turn(content, **how))

    def answer_tools(self, results: dict[str, str], *, sampling: common.SamplingParams | None = None) -> Turn:
        """Answers the calls of the last message, by their ids; with the last answer the model goes on."""
        return self._begin(conversation.tool_turn(results, sampling))

    def current(self) -> Turn | None:
        """After coming back by id: the last turn that was told of, which may still be under way."""
        refusal = self._answer(self.conversation.probe())
        # Whatever was told before is here with the answer.
        assert isinstance(refusal, CandlewickError)
        turn = self.conversation.probed(refusal)
        return None if turn is None else Turn(self, turn)

    def cancel(self) -> None:
        """Ends the turn under way: what was said so far stays, and its `done` comes with `cancelled`."""
        self._say([self.conversation.say(chat.SessionRequest(cancel=chat.CancelTurn()))])

    def edit(self, **how: Unpack[Editing]) -> None:
        """Changes the turn under way, from its next token on. One that is refused is in `conversation.refusals`."""
        self._say([self.conversation.say(conversation.edit(**how))])

    def grant(self, tokens: int) -> None:
        """Allows so many tokens more."""
        self._say([self.conversation.say(chat.SessionRequest(grant=chat.Grant(tokens=tokens)))])

    def rewind(self, turn_index: int) -> None:
        """Goes back to before this turn."""
        self._done(chat.SessionRequest(rewind=chat.Rewind(turn_index=turn_index)))

    def fork(self, turn_index: int | None = None) -> "Session":
        """A session of its own that begins like this one: before this turn, or as the last finished one left it."""
        forked = self._done(chat.SessionRequest(fork=chat.Fork(turn_index=turn_index)))
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
        self._say(self.conversation.hello())
        self._call = self._connect(iter(self._said.get, None))

    def _begin(self, requests: list[chat.SessionRequest]) -> Turn:
        log = self.conversation.begin_turn(requests)
        self._say(requests)
        return Turn(self, log)

    def _answer(self, request: chat.SessionRequest) -> chat.Rewound | chat.Forked | CandlewickError:
        self._say([request])
        while self.conversation.answer is None:
            self._hear()
        return self.conversation.answer

    def _done(self, request: chat.SessionRequest) -> chat.Rewound | chat.Forked:
        answer = self._answer(self.conversation.ask(request))
        if isinstance(answer, CandlewickError):
            raise answer
        return answer

    def _say(self, requests: list[chat.SessionRequest]) -> None:
        # Where the connection is gone, who reads next finds out, and says again what was lost.
        for request in requests:
            self._said.put(request)

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
        self.conversation.take(response)
        if self._on_event is not None:
            self._on_event(response)
        if response.WhichOneof("event") == "turn_done":
            self._say([chat.SessionRequest(ack=chat.Ack(seq=response.seq))])

    def _redial(self, error: CandlewickError) -> None:
        """A new connection after the old one broke, or the error where there is no point in one."""
        if self._over:
            raise error
        time.sleep(self._patience.pause(error))
        self._said.put(None)
        self.reconnects += 1
        self._dial()
