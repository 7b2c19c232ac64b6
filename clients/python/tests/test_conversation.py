"""What a session's client keeps in mind, without a server."""

import grpc

from candlewick.conversation import Conversation, user_turn
from candlewick.errors import FailedPrecondition, InvalidArgument
from candlewick.v1 import chat_pb2 as chat

OVER = grpc.StatusCode.FAILED_PRECONDITION
WRONG = grpc.StatusCode.INVALID_ARGUMENT


def opened() -> Conversation:
    made = Conversation(chat.SessionOpen(system="Hello"))
    made.take(chat.SessionResponse(seq=1, opened=chat.Opened(session_id="one")))
    return made


def cancel() -> chat.SessionRequest:
    return chat.SessionRequest(cancel=chat.CancelTurn())


def refusal(seq: int, code: grpc.StatusCode, answers: int | None, turn_index: int | None = None) -> chat.SessionResponse:
    error = chat.SessionError(code=code.value[0], message="no", turn_index=turn_index)
    return chat.SessionResponse(seq=seq, error=error, answers=answers)


def test_what_was_not_answered_is_said_again_in_its_order_and_nothing_else() -> None:
    talk = opened()
    grant = talk.say(chat.SessionRequest(grant=chat.Grant(tokens=5)))
    requests = user_turn("Hello")
    talk.begin_turn(requests)
    stop = talk.say(cancel())
    hello = talk.hello()
    assert hello[0].open.session_id == "one" and hello[0].open.after_seq == 1
    assert hello[1:] == [grant, *requests, stop]
    talk.take(chat.SessionResponse(seq=2, turn_started=chat.TurnStarted(turn_index=0), answers=requests[0].id))
    # The turn's beginning says that the grant arrived as well.
    assert talk.hello()[1:] == [stop] and talk.hello()[0].open.after_seq == 2


def test_what_waits_for_an_answer_is_bounded() -> None:
    talk = opened()
    said = [talk.say(cancel()) for _ in range(100)]
    assert talk.hello()[1:] == said[-64:]


def test_a_refusal_belongs_to_what_it_answers() -> None:
    talk = opened()
    late = talk.say(cancel())
    requests = user_turn("Hello")
    turn = talk.begin_turn(requests)
    talk.take(refusal(2, OVER, late.id))
    assert not turn.over and [type(one) for one in talk.refusals] == [FailedPrecondition]
    talk.take(refusal(3, WRONG, requests[0].id))
    assert isinstance(turn.error, InvalidArgument) and talk.hello()[1:] == []


def test_an_answer_to_another_client_is_no_answer() -> None:
    talk = opened()
    asked = talk.ask(chat.SessionRequest(rewind=chat.Rewind(turn_index=1)))
    talk.take(chat.SessionResponse(seq=2, rewound=chat.Rewound(turn_index=1), answers=asked.id ^ 1))
    assert talk.answer is None
    talk.take(chat.SessionResponse(seq=3, rewound=chat.Rewound(turn_index=1), answers=asked.id))
    assert isinstance(talk.answer, chat.Rewound)


def test_an_error_with_a_turn_ends_that_turn_alone() -> None:
    talk = opened()
    requests = user_turn("Hello")
    turn = talk.begin_turn(requests)
    talk.take(chat.SessionResponse(seq=2, turn_started=chat.TurnStarted(turn_index=0), answers=requests[0].id))
    talk.take(refusal(3, WRONG, 12345))
    assert not turn.over and len(talk.refusals) == 1
    talk.take(refusal(4, grpc.StatusCode.INTERNAL, requests[0].id, turn_index=0))
    assert turn.over and turn.error is not None and turn.error.turn_index == 0


def test_a_turn_that_was_under_way_before_this_client_came_is_found() -> None:
    talk = Conversation(chat.SessionOpen(session_id="one", after_seq=7))
    probe = talk.probe()
    talk.take(refusal(8, OVER, probe.id))
    assert isinstance(talk.answer, FailedPrecondition)
    turn = talk.probed(talk.answer)
    assert turn is not None and not turn.over
    talk.take(chat.SessionResponse(seq=9, turn_done=chat.TurnDone(turn_index=3)))
    assert talk.turn is turn and turn.over


def test_where_no_turn_is_under_way_none_is_found() -> None:
    talk = Conversation(chat.SessionOpen(session_id="one", after_seq=7))
    talk.take(refusal(8, WRONG, talk.probe().id))
    assert isinstance(talk.answer, InvalidArgument) and talk.probed(talk.answer) is None
