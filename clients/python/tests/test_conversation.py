"""What a session's client keeps in mind, without a server."""

import grpc

from candlewick.conversation import Conversation, user_turn
from candlewick.errors import FailedPrecondition, InvalidArgument
from candlewick.v1 import chat_pb2 as chat


def opened() -> Conversation:
    made = Conversation(chat.SessionOpen(system="Hello"))
    made.take(chat.SessionResponse(seq=1, opened=chat.Opened(session_id="one")))
    return made


def refusal(seq: int, code: grpc.StatusCode, field: str = "") -> chat.SessionResponse:
    fields = [chat.FieldError(field=field, description="is wrong")] if field else []
    return chat.SessionResponse(seq=seq, error=chat.SessionError(code=code.value[0], message="no", fields=fields))


def answer_to_a_probe(seq: int, under_way: bool) -> list[chat.SessionResponse]:
    of_rewind = grpc.StatusCode.FAILED_PRECONDITION if under_way else grpc.StatusCode.INVALID_ARGUMENT
    return [refusal(seq, of_rewind, "" if under_way else "turn"), refusal(seq + 1, grpc.StatusCode.INVALID_ARGUMENT, "open")]


def test_a_turn_that_the_server_never_heard_is_said_again() -> None:
    talk = opened()
    turn = talk.begin_turn(user_turn("Hello", None, None, None, None))
    assert talk.hello().open.session_id == "one" and talk.hello().open.after_seq == 1
    talk.probe()
    for response in answer_to_a_probe(2, under_way=False):
        talk.take(response)
    assert not talk.probing and talk.lost() == turn.requests


def test_a_turn_under_way_is_not_said_again_though_nothing_was_heard_of_it() -> None:
    talk = opened()
    talk.begin_turn(user_turn("Hello", None, None, None, None))
    talk.probe()
    for response in answer_to_a_probe(2, under_way=True):
        talk.take(response)
    assert talk.lost() == []


def test_a_refusal_from_before_the_break_is_the_turns() -> None:
    talk = opened()
    turn = talk.begin_turn(user_turn("Hello", None, None, None, None))
    talk.probe()
    talk.take(refusal(2, grpc.StatusCode.INVALID_ARGUMENT, "sampling.temperature"))
    for response in answer_to_a_probe(3, under_way=False):
        talk.take(response)
    assert isinstance(turn.error, InvalidArgument) and talk.lost() == []


def test_what_was_refused_before_a_probe_is_no_turns() -> None:
    talk = opened()
    talk.unanswered()
    assert not talk.settled
    talk.probe()
    talk.take(refusal(2, grpc.StatusCode.FAILED_PRECONDITION))
    for response in answer_to_a_probe(3, under_way=False):
        talk.take(response)
    assert talk.settled and [type(one) for one in talk.refusals] == [FailedPrecondition]


def test_an_error_with_a_turn_ends_that_turn_alone() -> None:
    talk = opened()
    turn = talk.begin_turn(user_turn("Hello", None, None, None, None))
    talk.take(chat.SessionResponse(seq=2, turn_started=chat.TurnStarted(turn_index=0)))
    talk.take(refusal(3, grpc.StatusCode.INVALID_ARGUMENT, "edit.temperature"))
    assert not turn.over and len(talk.refusals) == 1
    talk.take(chat.SessionResponse(seq=4, error=chat.SessionError(code=13, message="no", turn_index=0)))
    assert turn.over and turn.error is not None and turn.error.turn_index == 0


def test_a_turn_that_was_under_way_before_this_client_came_is_found() -> None:
    talk = Conversation(chat.SessionOpen(session_id="one", after_seq=7))
    talk.probe()
    for response in answer_to_a_probe(8, under_way=True):
        talk.take(response)
    turn = talk.turn
    assert turn is not None and not turn.over and talk.lost() == []
    talk.take(refusal(10, grpc.StatusCode.INVALID_ARGUMENT, "edit.temperature"))
    assert not turn.over
    talk.take(chat.SessionResponse(seq=11, turn_done=chat.TurnDone(turn_index=3)))
    assert talk.turn is turn and turn.over
