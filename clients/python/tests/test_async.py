"""The client that awaits, against a server."""

import asyncio

import pytest
from conftest import SOME, Cable

from candlewick import AsyncClient, FailedPrecondition, InvalidArgument, RequestOptions, SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=16)
LONG = SamplingParams(temperature=0, max_tokens=300, ignore_eos=True)
PROMPT = "Once upon a time"


def test_streams_run_side_by_side(address: str) -> None:
    async def ask() -> None:
        async with AsyncClient(address, timeout=120) as client:
            whole = (await client.generate(PROMPT, sampling=GREEDY)).output.text

            async def stream() -> str:
                return "".join([text async for text in client.generate_stream(PROMPT, sampling=GREEDY).text()])

            assert set(await asyncio.gather(*(stream() for _ in range(16)))) == {whole}
            said = [text async for text in client.chat_stream("What is candlewick?", sampling=GREEDY).text()]
            assert "".join(said) == (await client.chat("What is candlewick?", sampling=GREEDY)).message.content
            ids = await client.tokenize(PROMPT)
            assert await client.detokenize(ids, skip_special_tokens=True) == PROMPT
            assert (await client.quote(PROMPT)).prompt_tokens == len(ids)
            assert len(await client.models()) == 1

    asyncio.run(ask())


def test_a_wrong_field_is_named(address: str) -> None:
    async def ask() -> None:
        async with AsyncClient(address, timeout=120) as client:
            with pytest.raises(InvalidArgument) as caught:
                async for _ in client.generate_stream(PROMPT, sampling=SamplingParams(top_p=7)):
                    pass
            assert [one.field for one in caught.value.field_violations] == ["options.sampling.top_p"]

    asyncio.run(ask())


def test_a_resumable_stream_goes_on_after_the_line_is_cut(address: str, cable: Cable) -> None:
    async def ask() -> None:
        async with AsyncClient(cable.address, timeout=120) as client:
            whole = (await client.generate(PROMPT, sampling=LONG)).output.text
            cable.cut()
            cable.allowance = SOME
            async with client.generate_stream(PROMPT, sampling=LONG, options=RequestOptions(resumable=True)) as stream:
                text = (await anext(stream)).text
                cable.cut()
                assert text + "".join([more async for more in stream.text()]) == whole

    asyncio.run(ask())


def test_a_session_turns_cancels_forks_and_rewinds(address: str) -> None:
    async def ask() -> None:
        async with AsyncClient(address, timeout=120) as client:
            async with await client.session(system="You tell stories.", sampling=GREEDY, credits=24) as session:
                turn = await session.say("Hello")
                assert "".join([text async for text in turn.text()]) == (await turn.done()).message.content
                long = await session.say("A long one.", sampling=LONG)
                await anext(long)
                await session.cancel()
                assert (await long.done()).cancelled
                await session.cancel()
                await session.grant(1000)
                await session.rewind(1)
                async with await session.fork() as fork:
                    await fork.grant(1000)
                    left = await (await fork.say("What next?")).done()
                    right = await (await session.say("What next?")).done()
                    assert left.message.content == right.message.content
                assert [type(one) for one in session.conversation.refusals] == [FailedPrecondition]

    asyncio.run(ask())


def test_a_session_survives_a_cut_line(cable: Cable) -> None:
    async def ask() -> None:
        cable.allowance = SOME
        async with AsyncClient(cable.address, timeout=120) as client:
            async with await client.session(sampling=GREEDY) as session:
                turn = await session.say("A long one.", sampling=LONG)
                text = (await anext(turn)).text
                cable.cut()
                assert text + "".join([more async for more in turn.text()]) == (await turn.done()).message.content
                cable.deaf = True
                lost = await session.say("And then?")
                cable.cut()
                assert (await lost.done()).turn_index == 1
                assert session.reconnects >= 2

    asyncio.run(ask())
