"""Models that come and go, with both clients, against a server that has room for two."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import served

from candlewick import (
    AsyncClient,
    Client,
    FailedPrecondition,
    Model,
    ModelState,
    NotFound,
    RequestOptions,
    ResourceExhausted,
    SamplingParams,
)

GOLDEN = Path(__file__).resolve().parents[3] / "tests/fixtures/golden"
SMALL = str(GOLDEN / "llama")
OTHER = str(GOLDEN / "qwen3")
READY, UNLOADED = ModelState.MODEL_STATE_READY, ModelState.MODEL_STATE_UNLOADED


@pytest.fixture(scope="module")
def roomy(pytestconfig: pytest.Config) -> Iterator[str]:
    """Where that server listens."""
    with served(pytestconfig, "--max-models", "2") as address:
        yield address


def states(models: list[Model]) -> dict[str, ModelState]:
    return {model.name: model.state for model in models}


def test_a_model_is_loaded_asked_watched_and_unloaded(roomy: str) -> None:
    with Client(roomy, timeout=120) as client, client.watch_models() as watch:
        (first,) = next(watch)
        assert first.is_default
        load = client.load_model(SMALL, name="small")
        assert all(0 <= progress.done <= progress.total for progress in load)
        assert (load.model.name, load.model.state) == ("small", READY)
        assert client.model("small").memory_bytes == load.model.memory_bytes > 0
        while states(next(watch)) != {first.name: READY, "small": READY}:
            pass
        sampling, options = SamplingParams(max_tokens=4, ignore_eos=True), RequestOptions(model="small")
        assert len(client.generate([1, 2, 3], sampling=sampling, options=options).output.token_ids) == 4

        with pytest.raises(ResourceExhausted):
            client.load_model(OTHER).model
        assert client.unload_model("small", wait=60).unloaded
        while states(next(watch)) != {first.name: READY, "small": UNLOADED}:
            pass
        assert client.load_model(name="small").model.state == READY
        assert client.unload_model("small", wait=60, drain_timeout=0).live_requests == 0


def test_what_cannot_be_loaded_says_why(roomy: str) -> None:
    with Client(roomy, timeout=120) as client:
        for load, error in [
            (client.load_model(name="nobody"), NotFound),
            (client.load_model("/nowhere/at/all", name="x"), FailedPrecondition),
        ]:
            with pytest.raises(error):
                load.model
        assert "/nowhere/at/all" in client.model("x").failure
        with pytest.raises(NotFound):
            client.unload_model("nobody")


def test_who_awaits_has_the_same(roomy: str) -> None:
    async def ask() -> None:
        async with AsyncClient(roomy, timeout=120) as client:
            async with client.watch_models() as watch:
                assert any(model.is_default for model in await anext(watch))
                load = client.load_model(SMALL, name="of a task")
                async for progress in load:
                    assert 0 <= progress.done <= progress.total
                assert (await load.model()).state == READY
                while states(await anext(watch)).get("of a task") != READY:
                    pass
            assert (await client.unload_model("of a task", wait=60)).unloaded
            assert (await client.model("of a task")).state == UNLOADED
            with pytest.raises(NotFound):
                await client.load_model(name="nobody").model()

    asyncio.run(ask())
