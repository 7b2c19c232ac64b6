"""What a session's client has to keep in mind, without a transport: turns, answers that are waited for, and what may
have been lost when a connection broke.

Commands get their answers in the order in which they were said, but some have none (an edit that was done), and a
connection that breaks leaves it open whether the last ones arrived. A probe settles both: a rewind to no turn and a second
`open`, which the server always refuses, and in turn. What was said before is done when the second refusal comes, and the
first one's code says whether a turn is under way.
"""

import uuid
from collections import deque

import grpc

from candlewick.errors import CandlewickError, FailedPrecondition, of_session
from candlewick.v1 import chat_pb2 as chat
from candlewick.v1 import common_pb2 as common

#: No conversation has so many turns.
_NO_TURN = 2**32 - 1
#: Refusals of edits and cancels that are kept to be looked at.
_REFUSALS = 16


class TurnLog:
    """What is known of one turn."""

    def __init__(self, requests: list[chat.SessionRequest]) -> None:
        #: What began it, to be said again if it was lost.
        self.requests = requests
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
    def admitted(self) -> bool:
        """Whether the server has begun it: said so, or was found at it by who came back."""
        return self.started is not None or not self.requests

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
        #: Edits and cancels that came too late or were wrong.
        self.refusals: deque[CandlewickError] = deque(maxlen=_REFUSALS)
        #: How often keys and values were lost to others.
        self.evictions = 0
        #: The answer to the rewind or fork that is waited for.
        self.answer: chat.Rewound | chat.Forked | CandlewickError | None = None
        self._asked: chat.SessionRequest | None = None
        #: Whether commands without an answer may still be refused.
        self._unsettled = False
        #: Refusals since the probe went out; none while there is no probe.
        self._probed: list[CandlewickError] | None = None
        self._said_again = False
        self._under_way = False

    def hello(self) -> chat.SessionRequest:
        """The first event of a connection."""
        if not self.session_id:
            return chat.SessionRequest(open=self._opening)
        return chat.SessionRequest(open=chat.SessionOpen(session_id=self.session_id, after_seq=self.last_seq))

    # What the client says.

    def begin_turn(self, requests: list[chat.SessionRequest]) -> TurnLog:
        """A turn that these events begin, which are yet to be said."""
        if self.turn is not None and not self.turn.over:
            raise FailedPrecondition(grpc.StatusCode.FAILED_PRECONDITION, "a turn is under way: read or cancel it first")
        self._said_again = False
        self.turn = TurnLog(requests)
        return self.turn

    def ask(self, request: chat.SessionRequest) -> None:
        """A rewind or a fork whose answer will be waited for."""
        self._asked, self.answer = request, None

    def unanswered(self) -> None:
        """A command was said that only a refusal would answer."""
        self._unsettled = True

    @property
    def settled(self) -> bool:
        """Whether no refusal of an earlier command can still come."""
        return not self._unsettled

    def probe(self) -> list[chat.SessionRequest]:
        """What to say to find out where the server is; `probing` until its answer is there."""
        self._probed = []
        return [
            chat.SessionRequest(rewind=chat.Rewind(turn_index=_NO_TURN)),
            chat.SessionRequest(open=chat.SessionOpen()),
        ]

    @property
    def probing(self) -> bool:
        """Whether the answer to a probe is yet to come."""
        return self._probed is not None

    def lost(self) -> list[chat.SessionRequest]:
        """After a probe on a new connection: what to say again."""
        again: list[chat.SessionRequest] = []
        turn = self.turn
        if turn is not None and not turn.over and not turn.admitted and not self._under_way:
            self._said_again = True
            again.extend(turn.requests)
        if self._asked is not None and self.answer is None:
            again.append(self._asked)
        return again

    # What the server says.

    def take(self, response: chat.SessionResponse) -> None:
        """Keeps what an event says where it belongs."""
        self.last_seq = response.seq
        turn = self.turn if self.turn is not None and not self.turn.over else None
        match response.WhichOneof("event"):
            case "opened":
                self.opened, self.session_id = response.opened, response.opened.session_id
            case "rewound":
                self._asked, self.answer = None, response.rewound
            case "forked":
                self._asked, self.answer = None, response.forked
            case "evicting":
                self.evictions += response.evicting.lost
            case "error":
                self._refused(response.error, turn)
            case "turn_started" | "progress" | "delta" | "turn_done":
                if turn is None:
                    # Begun before this client came back to the session.
                    turn = self.turn = TurnLog([])
                turn.take(response)

    def _refused(self, error: chat.SessionError, turn: TurnLog | None) -> None:
        made = of_session(error)
        if made.turn_index is not None:
            if turn is not None:
                turn.error = made
        elif self._probed is not None:
            self._probed.append(made)
            if any(field.field == "open" for field in made.field_violations):
                self._settle(self._probed, turn)
        elif turn is not None and not turn.admitted:
            # Of results that were said again, those that had arrived are refused.
            repeated = self._said_again and any("tool_call_id" in field.field for field in made.field_violations)
            if not repeated:
                turn.error = made
        elif self._asked is not None:
            self._asked, self.answer = None, made
        else:
            self.refusals.append(made)

    def _settle(self, probed: list[CandlewickError], turn: TurnLog | None) -> None:
        """The probe is answered: what came before its two refusals was for earlier commands."""
        self._probed, self._unsettled = None, False
        *earlier, of_rewind, _of_open = probed
        self._under_way = of_rewind.code is grpc.StatusCode.FAILED_PRECONDITION
        if earlier and turn is not None and not turn.admitted and not self._under_way:
            turn.error = earlier.pop()
        if earlier and self._asked is not None:
            self._asked, self.answer = None, earlier.pop()
        if turn is None and self._under_way:
            # Begun before this client came back to the session; nothing was heard of it yet.
            self.turn = TurnLog([])
        self.refusals.extend(earlier)


def opening(session_id: str | None, after_seq: int | None, anew: chat.SessionOpen) -> chat.SessionOpen:
    """The first event of a session that is begun anew, or, with an id, of one that is come back to."""
    return anew if session_id is None else chat.SessionOpen(session_id=session_id, after_seq=after_seq)


def user_turn(
    content: str,
    name: str | None,
    sampling: common.SamplingParams | None,
    priority: int | None,
    timeout: float | None,
) -> list[chat.SessionRequest]:
    """What begins a turn of a user's."""
    turn = chat.UserTurn(
        content=content,
        name=name,
        sampling=sampling,
        priority=priority,
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


def edit(
    max_tokens: int | None, temperature: float | None, stop: list[str] | None, priority: int | None
) -> chat.SessionRequest:
    """What changes the turn under way."""
    strings = None if stop is None else chat.StopStrings(stop=stop)
    return chat.SessionRequest(
        edit=chat.EditTurn(max_tokens=max_tokens, temperature=temperature, stop=strings, priority=priority)
    )
