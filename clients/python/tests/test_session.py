"""Sessions of the client that blocks, against a server."""

from collections.abc import Iterator

import pytest
from conftest import SOME, Cable

from candlewick import Aborted, Client, FailedPrecondition, InvalidArgument, NotFound, SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=16)
LONG = SamplingParams(temperature=0, max_tokens=300, ignore_eos=True)


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    with Client(address, timeout=120) as client:
        yield client


@pytest.fixture
def far(cable: Cable) -> Iterator[Client]:
    """A client whose line can be cut."""
    with Client(cable.address, timeout=120) as client:
        yield client


def test_a_second_turn_computes_what_is_new(client: Client) -> None:
    with client.session(system="You tell stories.", sampling=GREEDY) as session:
        assert session.opened is not None and session.opened.effective.max_tokens == 16
        first = session.say("Once upon a time there was a fox.")
        text = "".join(first.text())
        assert text == first.done.message.content and first.done.turn_index == 0
        second = session.say("And then?").done
        before = first.done.usage.prompt_tokens + first.done.usage.completion_tokens
        assert second.turn_index == 1
        assert second.computed_tokens <= second.usage.prompt_tokens - before + 17


def test_a_rewound_session_answers_as_before(client: Client) -> None:
    with client.session(sampling=GREEDY) as session:
        session.say("Hello").done
        said = session.say("And then?").done.message.content
        session.rewind(1)
        again = session.say("And then?").done
        assert again.message.content == said and again.turn_index == 1


def test_a_fork_goes_on_as_its_parent_does(client: Client) -> None:
    with client.session(sampling=GREEDY) as session:
        session.say("Hello").done
        with session.fork() as fork:
            assert fork.id != session.id
            assert fork.say("What next?").done.message.content == session.say("What next?").done.message.content


def test_a_cancelled_turn_keeps_what_was_said(client: Client) -> None:
    with client.session(sampling=GREEDY, credits=8) as session:
        turn = session.say("A long one.", sampling=LONG)
        next(turn)
        # Without credit it waits, so it has not ended by itself.
        session.cancel()
        assert turn.done.cancelled and turn.done.usage.completion_tokens < 300
        session.grant(1000)
        assert session.say("Hello").done.turn_index == 1


def test_a_cancel_that_comes_too_late_harms_nothing(client: Client) -> None:
    with client.session(sampling=GREEDY) as session:
        session.say("Hello").done
        session.cancel()
        session.edit(temperature=0.5)
        assert session.say("And then?").done.turn_index == 1
        assert [type(one) for one in session.conversation.refusals] == [FailedPrecondition] * 2
        assert [one.event for one in session.conversation.refusals] == ["cancel", "edit"]


def test_an_edit_shortens_the_turn_under_way(client: Client) -> None:
    with client.session(sampling=GREEDY, credits=8) as session:
        turn = session.say("A long one.", sampling=LONG)
        next(turn)
        # Without credit the turn waits, so the edit is there before the end.
        session.edit(max_tokens=12)
        session.grant(1000)
        assert turn.done.usage.completion_tokens == 12


def test_a_turn_that_is_refused_leaves_the_session_as_it_was(client: Client) -> None:
    with client.session(sampling=GREEDY) as session:
        with pytest.raises(InvalidArgument) as caught:
            session.say("Hello", sampling=SamplingParams(temperature=-1)).done
        assert [one.field for one in caught.value.field_violations] == ["user.sampling.temperature"]
        with pytest.raises(InvalidArgument) as refused:
            session.rewind(7)
        assert refused.value.event == "rewind" and refused.value.field_violations[0].field == "rewind.turn_index"
        assert session.say("Hello").done.turn_index == 0


def test_one_turn_at_a_time(client: Client) -> None:
    with client.session(sampling=GREEDY) as session:
        turn = session.say("Hello")
        # The client knows, before it asks.
        with pytest.raises(FailedPrecondition):
            session.say("And?")
        assert turn.done.turn_index == 0


def test_a_session_survives_a_cut_line_in_the_middle_of_a_turn(cable: Cable, client: Client, far: Client) -> None:
    with client.session(sampling=GREEDY) as near:
        whole = near.say("A long one.", sampling=LONG).done.message.content
    cable.allowance = SOME
    with far.session(sampling=GREEDY) as session:
        turn = session.say("A long one.", sampling=LONG)
        text = next(turn).text
        cable.cut()
        assert text + "".join(turn.text()) == whole == turn.done.message.content
        assert session.reconnects > 0
        assert session.say("And then?").done.turn_index == 1


def test_a_turn_that_was_lost_with_the_line_is_said_again(cable: Cable, far: Client) -> None:
    with far.session(sampling=GREEDY) as session:
        session.say("Hello").done
        cable.deaf = True
        turn = session.say("And then?")
        cable.cut()
        assert turn.done.turn_index == 1
        assert session.say("And then?").done.turn_index == 2


def test_a_grant_that_was_lost_with_the_line_is_said_again(cable: Cable, far: Client) -> None:
    with far.session(sampling=GREEDY, credits=0) as session:
        turn = session.say("Hello")
        while turn.log.started is None:
            session._hear()
        cable.deaf = True
        session.grant(16)
        cable.cut()
        assert turn.done.usage.completion_tokens <= 16 and session.reconnects == 1


def test_a_turn_that_arrived_is_not_said_twice(cable: Cable, far: Client) -> None:
    with far.session(sampling=GREEDY) as session:
        heard: list[str] = []
        turn = session.say("Hello")
        # It may have arrived or not when the line is cut: in either case there is one turn.
        cable.cut()
        heard.extend(turn.text())
        assert turn.done.turn_index == 0 and "".join(heard) == turn.done.message.content
        assert session.say("And then?").done.turn_index == 1


def test_a_rewind_is_done_though_the_line_was_cut(cable: Cable, far: Client) -> None:
    with far.session(sampling=GREEDY) as session:
        session.say("Hello").done
        cable.deaf = True
        cable.cut()
        session.rewind(0)
        assert session.say("Hello again").done.turn_index == 0


def test_who_comes_back_by_id_reads_the_turn_on(client: Client) -> None:
    session = client.session(sampling=GREEDY, credits=8)
    text = next(session.say("A long one.", sampling=LONG)).text
    session.detach()
    with client.session(session.id, after_seq=session.last_seq) as again:
        turn = again.current()
        assert turn is not None
        again.grant(1000)
        assert text + "".join(turn.text()) == turn.done.message.content
        assert again.say("And then?").done.turn_index == 1
    with pytest.raises(NotFound):
        client.session(session.id, after_seq=session.last_seq).say("Hello").done


def test_a_session_that_is_taken_over_says_so(client: Client) -> None:
    session = client.session(sampling=GREEDY)
    session.say("Hello").done
    with client.session(session.id, after_seq=session.last_seq) as other:
        assert other.current() is None
        with pytest.raises(Aborted):
            session.say("And then?").done
