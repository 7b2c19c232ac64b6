"""What a session's client has to keep in mind, without a transport: turns, answers that are waited for, and what may
have been lost when a connection broke.

Every event of the client's has an id. Whatever answers it says so, and since events are obeyed in turn, it says as well that
those before it arrived. What is left when a connection breaks is said again on the next one: the server obeys no id twice.
"""

import random
import uuid
from collections import deque
from typing import TypedDict, Unpack

import grpc

from candlewick import calls
from candlewick.calls import MessagesLike
from candlewick.errors import CandlewickError, FailedPrecondition, of_session
from candlewick.v1 import chat_pb2 as chat
from candlewick.v1 import common_pb2 as common

#: No conversation has so many turns.
_NO_TURN = 2**32 - 1
#: Events that the server remembers by their ids. The contract says so.
_REMEMBERED = 64
#: Refusals of edits, cancels and grants that are kept to be looked at.
_REFUSALS = 16


class TurnLog:
    """What is known of one turn."""

    def __init__(self, ids: frozenset[int] = frozenset()) -> None:
        #: Of the events that began it; none where another connection did.
        self.ids = ids
        #: Its index and effective parameters, once it was admitted.
        self.started: chat.TurnStarted | None = None
        #: The last heartbeat.
        self.progress: common.Progress | None = None
        #: How it ended.
        self.done: chat.TurnDone | None = None
        self.error: CandlewickError | None = None
        #: Deltas that nobody took yet.
        self.deltas: deque[common.Delta] = deque()

    def take(self, response: chat.SessionResponse) -> None:
        """Keeps what an event of the turn says."""
        match response.WhichOneof("event"):
            case "turn_started":
                self.started = response.turn_started
            case "progress":
                self.progress = response.progress
            case "delta":
                self.deltas.append(response.delta)
            case "turn_done":
                self.done = response.turn_done

    @property
    def over(self) -> bool:
        """Whether nothing more comes."""
        return self.done is not None or self.error is not None


class Conversation:
    """One session as its client sees it."""

    def __init__(self, opening: chat.SessionOpen) -> None:
        self._opening = opening
        self.session_id = opening.session_id
        self.last_seq = opening.after_seq
        #: What the server said first; none after coming back by id, unless from the beginning.
        self.opened: chat.Opened | None = None
        self.turn: TurnLog | None = None
        #: Edits, cancels and grants that came too late or were wrong.
        self.refusals: deque[CandlewickError] = deque(maxlen=_REFUSALS)
        #: How often keys and values were lost to others.
        self.evictions = 0
        #: The answer to the rewind or fork that is waited for.
        self.answer: chat.Rewound | chat.Forked | CandlewickError | None = None
        self._asked: int | None = None
        # Another client of this session has ids of its own.
        self._next_id = random.getrandbits(63)
        #: Said, and not known to have arrived.
        self._unsure: deque[chat.SessionRequest] = deque(maxlen=_REMEMBERED)

    # What the client says.

    def hello(self) -> list[chat.SessionRequest]:
        """What a connection begins with: the first event, and those that may have been lost with the one before."""
        opening = self._opening
        if self.session_id:
            opening = chat.SessionOpen(session_id=self.session_id, after_seq=self.last_seq)
        return [chat.SessionRequest(open=opening), *self._unsure]

    def say(self, request: chat.SessionRequest) -> chat.SessionRequest:
        """An event with its id, kept until it is known to have arrived."""
        request.id, self._next_id = self._next_id, self._next_id + 1
        self._unsure.append(request)
        return request

    def begin_turn(self, requests: list[chat.SessionRequest]) -> TurnLog:
        """A turn that these events begin, which get their ids and are yet to be sent."""
        if self.turn is not None and not self.turn.over:
            raise FailedPrecondition(grpc.StatusCode.FAILED_PRECONDITION, "a turn is under way: read or cancel it first")
        self.turn = TurnLog(frozenset(self.say(request).id for request in requests))
        return self.turn

    def ask(self, request: chat.SessionRequest) -> chat.SessionRequest:
        """A rewind or a fork whose answer will be waited for."""
        self._asked, self.answer = self.say(request).id, None
        return request

    def probe(self) -> chat.SessionRequest:
        """What the server always refuses, and says with it whether a turn is under way: see `probed`."""
        return self.ask(chat.SessionRequest(rewind=chat.Rewind(turn_index=_NO_TURN)))

    def probed(self, refusal: CandlewickError) -> TurnLog | None:
        """The last turn that was told of, or is under way, after the refusal of a probe. Raises other errors."""
        if refusal.code is grpc.StatusCode.FAILED_PRECONDITION:
            return self._under_way()
        if refusal.code is not grpc.StatusCode.INVALID_ARGUMENT:
            raise refusal
        return self.turn

    # What the server says.

    def take(self, response: chat.SessionResponse) -> None:
        """Keeps what an event says where it belongs."""
        self.last_seq = response.seq
        answers = response.answers if response.HasField("answers") else None
        if any(said.id == answers for said in self._unsure):
            while self._unsure.popleft().id != answers:
                pass
        match response.WhichOneof("event"):
            case "opened":
                self.opened, self.session_id = response.opened, response.opened.session_id
            case "rewound":
                self._answered(answers, response.rewound)
            case "forked":
                self._answered(answers, response.forked)
            case "evicting":
                self.evictions += response.evicting.lost
            case "error":
                self._refused(answers, of_session(response.error))
            case "turn_started" | "progress" | "delta" | "turn_done":
                self._under_way().take(response)

    def _under_way(self) -> TurnLog:
        """The turn that an event is of: this client's, or one that was begun before it came back to the session."""
        if self.turn is None or self.turn.over:
            self.turn = TurnLog()
        return self.turn

    def _answered(self, answers: int | None, answer: chat.Rewound | chat.Forked | CandlewickError) -> None:
        if answers is not None and answers == self._asked:
            self._asked, self.answer = None, answer

    def _refused(self, answers: int | None, error: CandlewickError) -> None:
        turn = self.turn
        if turn is not None and not turn.over and (error.turn_index is not None or answers in turn.ids):
            turn.error = error
        elif answers is not None and answers == self._asked:
            self._answered(answers, error)
        else:
            self.refusals.append(error)


class Opening(TypedDict, total=False):
    """How a session is opened, beside its id."""

    #: Instructions: the first message.
    system: str | None
    #: What has been said before.
    messages: MessagesLike
    #: Of all turns that do not say otherwise.
    sampling: common.SamplingParams | None
    options: common.RequestOptions | None
    chat_options: chat.ChatOptions | None
    lease: chat.Lease | None
    context_policy: chat.ContextPolicy | None
    #: Tokens that may be sent before the first `grant`; unless set, nobody counts.
    credits: int | None


def opening(session_id: str | None, after_seq: int | None, **how: Unpack[Opening]) -> chat.SessionOpen:
    """The first event of a session that is begun anew, or, with an id, of one that is come back to."""
    if session_id is not None:
        return chat.SessionOpen(session_id=session_id, after_seq=after_seq)
    return chat.SessionOpen(
        options=calls.request_options(how.get("sampling"), how.get("options")),
        system=how.get("system"),
        messages=calls.messages(how.get("messages", ())),
        chat=how.get("chat_options"),
        lease=how.get("lease"),
        context_policy=how.get("context_policy"),
        credits=how.get("credits"),
    )


class Saying(TypedDict, total=False):
    """How a user's turn is taken."""

    name: str | None
    #: Over what the session was opened with.
    sampling: common.SamplingParams | None
    priority: int | None
    #: Seconds that the turn may take.
    timeout: float | None


class Editing(TypedDict, total=False):
    """What of a turn under way can be changed."""

    #: Those included that it has generated.
    max_tokens: int | None
    temperature: float | None
    stop: list[str] | None
    priority: int | None


def user_turn(content: str, **how: Unpack[Saying]) -> list[chat.SessionRequest]:
    """What begins a turn of a user's."""
    timeout = how.get("timeout")
    turn = chat.UserTurn(
        content=content,
        name=how.get("name"),
        sampling=how.get("sampling"),
        priority=how.get("priority"),
        request_id=str(uuid.uuid4()),
        timeout_ms=None if timeout is None else int(timeout * 1000),
    )
    return [chat.SessionRequest(user=turn)]


def tool_turn(
    results: dict[str, str], sampling: common.SamplingParams | None
) -> list[chat.SessionRequest]:
    """What begins the turn after a model's calls: what each of them gave, by the call's id."""
    made = [chat.ToolResult(tool_call_id=call, content=content) for call, content in results.items()]
    if made and sampling is not None:
        made[-1].sampling.CopyFrom(sampling)
    return [chat.SessionRequest(tool_result=result) for result in made]


def edit(**how: Unpack[Editing]) -> chat.SessionRequest:
    """What changes the turn under way."""
    stop = how.get("stop")
    return chat.SessionRequest(
        edit=chat.EditTurn(
            max_tokens=how.get("max_tokens"),
            temperature=how.get("temperature"),
            stop=None if stop is None else chat.StopStrings(stop=stop),
            priority=how.get("priority"),
        )
    )
