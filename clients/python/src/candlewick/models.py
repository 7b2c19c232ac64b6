"""How models come and go: the progress of a load, and the list of all models whenever it changes."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from types import TracebackType
from typing import Self

import grpc

from candlewick.calls import AsyncCalling, Iterating, Patience
from candlewick.errors import of_rpc
from candlewick.v1.models_pb2 import LoadProgress, LoadResponse, Model, WatchResponse


class Load(Iterator[LoadProgress]):
    """How far a load has come; `model` once it is through. It goes on where nobody listens any more."""

    def __init__(self, call: Iterating[LoadResponse]) -> None:
        self._call = call
        self._model: Model | None = None

    def __next__(self) -> LoadProgress:
        while True:
            try:
                response = next(self._call)
            except grpc.RpcError as error:
                raise of_rpc(error) from error
            if response.HasField("progress"):
                return response.progress
            self._model = response.model

    @property
    def model(self) -> Model:
        """The model, once requests may name it."""
        for _ in self:
            pass
        assert self._model is not None
        return self._model

    def close(self) -> None:
        """Listens no more; the model is loaded all the same."""
        self._call.cancel()


class Watch(Iterator[list[Model]]):
    """All models now and at every change, until the server goes down or the watch is closed. A connection that breaks is
    made anew. Who reads slowly misses some lists."""

    def __init__(self, begin: Callable[[], Iterating[WatchResponse]], patience: Patience) -> None:
        self._begin, self._patience = begin, patience
        self._call = begin()

    def __next__(self) -> list[Model]:
        while True:
            try:
                response = next(self._call)
            except grpc.RpcError as error:
                time.sleep(self._patience.pause(of_rpc(error)))
                self._call = self._begin()
                continue
            self._patience.heard()
            return list(response.models)

    def close(self) -> None:
        """Has seen enough."""
        self._call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class AsyncLoad(AsyncIterator[LoadProgress]):
    """The same for who awaits: how far a load has come, and `await load.model()` once it is through."""

    def __init__(self, call: AsyncCalling) -> None:
        self._call = call
        self._model: Model | None = None

    async def __anext__(self) -> LoadProgress:
        while True:
            try:
                response = await self._call.read()
            except grpc.RpcError as error:
                raise of_rpc(error) from error
            if not isinstance(response, LoadResponse):
                raise StopAsyncIteration
            if response.HasField("progress"):
                return response.progress
            self._model = response.model

    async def model(self) -> Model:
        """The model, once requests may name it."""
        async for _ in self:
            pass
        assert self._model is not None
        return self._model

    def close(self) -> None:
        """Listens no more; the model is loaded all the same."""
        self._call.cancel()


class AsyncWatch(AsyncIterator[list[Model]]):
    """All models now and at every change; see `Watch`."""

    def __init__(self, begin: Callable[[], AsyncCalling], patience: Patience) -> None:
        self._begin, self._patience = begin, patience
        self._call = begin()

    async def __anext__(self) -> list[Model]:
        while True:
            try:
                response = await self._call.read()
            except grpc.RpcError as error:
                await asyncio.sleep(self._patience.pause(of_rpc(error)))
                self._call = self._begin()
                continue
            if not isinstance(response, WatchResponse):
                raise StopAsyncIteration
            self._patience.heard()
            return list(response.models)

    def close(self) -> None:
        """Has seen enough."""
        self._call.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.close()
