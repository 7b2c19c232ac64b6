"""The client that blocks, against a server."""

import threading
from collections.abc import Iterator

import grpc
import pytest
from conftest import SOME, Cable

from candlewick import (
    CandlewickError,
    Client,
    DeadlineExceeded,
    InvalidArgument,
    Message,
    NotFound,
    RequestOptions,
    Retry,
    Role,
    SamplingParams,
    Unavailable,
)

GREEDY = SamplingParams(temperature=0, max_tokens=24)
LONG = SamplingParams(temperature=0, max_tokens=400, ignore_eos=True)
PROMPT = "Once upon a time"


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    with Client(address, timeout=120) as client:
        yield client


@pytest.fixture
def far(cable: Cable) -> Iterator[Client]:
    """A client whose line can be cut."""
    with Client(cable.address, timeout=120) as client:
        yield client


def test_a_stream_says_what_a_unary_call_says(client: Client) -> None:
    whole = client.generate(PROMPT, sampling=GREEDY)
    stream = client.generate_stream(PROMPT, sampling=GREEDY)
    assert "".join(stream.text()) == whole.output.text != ""
    assert stream.log.started is not None and stream.log.started.effective.max_tokens == 24
    assert [end.usage.completion_tokens for end in stream.log.finished] == [24]
    assert stream.log.finished[0].finish == whole.finished.finish


def test_token_ids_go_in_as_text_does(client: Client) -> None:
    ids = client.tokenize(PROMPT)
    assert client.detokenize(ids, skip_special_tokens=True) == PROMPT
    assert client.generate(ids, sampling=GREEDY).output.text == client.generate(PROMPT, sampling=GREEDY).output.text


def test_a_chat_takes_messages_or_a_text(client: Client) -> None:
    said = client.chat("What is candlewick?", sampling=GREEDY).message.content
    messages = [Message(role=Role.ROLE_USER, content="What is candlewick?")]
    assert "".join(client.chat_stream(messages, sampling=GREEDY).text()) == said


def test_models_and_quotes_are_there_without_running_anything(client: Client) -> None:
    (model,) = client.models()
    quote = client.quote(PROMPT)
    assert quote.model == model.name and quote.prompt_tokens == len(client.tokenize(PROMPT))
    assert client.quote(messages="Hello").prompt_tokens > 0


def test_every_alternative_comes_with_its_index(client: Client) -> None:
    stream = client.generate_stream(PROMPT, sampling=SamplingParams(n=3, seed=1, max_tokens=4))
    assert {delta.index for delta in stream} == {0, 1, 2}
    assert {end.index for end in stream.log.finished} == {0, 1, 2}


def test_a_wrong_field_is_named(client: Client) -> None:
    for call in (client.generate, lambda prompt, sampling: next(client.generate_stream(prompt, sampling=sampling))):
        with pytest.raises(InvalidArgument) as caught:
            call(PROMPT, sampling=SamplingParams(temperature=-1))
        assert [one.field for one in caught.value.field_violations] == ["options.sampling.temperature"]
        assert caught.value.details.reason == "INVALID_REQUEST"


def test_an_unknown_model_and_an_unknown_stream_are_not_found(client: Client) -> None:
    with pytest.raises(NotFound):
        client.generate(PROMPT, options=RequestOptions(model="nobody"))
    with pytest.raises(NotFound):
        next(client.resume("nothing"))


def test_a_deadline_ends_a_stream(client: Client) -> None:
    with pytest.raises(DeadlineExceeded):
        for _ in client.generate_stream(PROMPT, sampling=LONG, timeout=0.001):
            pass


def test_a_stream_that_is_closed_is_over(cable: Cable, far: Client) -> None:
    cable.allowance = SOME
    with far.generate_stream(PROMPT, sampling=LONG) as stream:
        next(stream)
    with pytest.raises(CandlewickError) as caught:
        for _ in stream:
            pass
    assert caught.value.code is grpc.StatusCode.CANCELLED


def test_nobody_at_the_other_end_is_unavailable(cable: Cable) -> None:
    nowhere = cable.address
    cable.close()
    with Client(nowhere, retry=Retry(attempts=2, first_delay=0.01)) as client:
        with pytest.raises(Unavailable):
            client.models()


def test_what_has_not_begun_is_tried_again(cable: Cable, far: Client) -> None:
    cable.refuse = 1
    assert len(far.models()) == 1
    cable.cut()
    cable.refuse = 1
    assert "".join(far.generate_stream(PROMPT, sampling=GREEDY).text())


def test_a_resumable_stream_goes_on_after_the_line_is_cut(cable: Cable, client: Client, far: Client) -> None:
    whole = client.generate(PROMPT, sampling=LONG).output.text
    cable.allowance = SOME
    with far.generate_stream(PROMPT, sampling=LONG, options=RequestOptions(resumable=True)) as stream:
        text = next(stream).text
        cable.cut()
        assert text + "".join(stream.text()) == whole
    assert cable.connections == 2


def test_a_stream_that_has_begun_and_cannot_be_resumed_fails(cable: Cable, far: Client) -> None:
    cable.allowance = SOME
    stream = far.generate_stream(PROMPT, sampling=LONG)
    next(stream)
    cable.cut()
    with pytest.raises(Unavailable):
        for _ in stream:
            pass


def test_a_stream_can_be_resumed_by_hand(client: Client) -> None:
    whole = client.generate(PROMPT, sampling=GREEDY).output.text
    stream = client.generate_stream(PROMPT, sampling=GREEDY, options=RequestOptions(resumable=True))
    first = next(stream).text
    stream.close()
    rest = client.resume(stream.log.stream_id, stream.log.last_seq)
    assert first + "".join(rest.text()) == whole


def test_threads_share_a_client(client: Client) -> None:
    texts: list[str] = []
    said = [threading.Thread(target=lambda: texts.append(client.generate(PROMPT, sampling=GREEDY).output.text)) for _ in range(8)]
    for thread in said:
        thread.start()
    for thread in said:
        thread.join()
    assert len(texts) == 8 and len(set(texts)) == 1


def test_a_key_goes_along_as_metadata(address: str) -> None:
    with Client(address, api_key="secret") as client:
        assert client._metadata == (("authorization", "Bearer secret"),)
        assert client.models()
