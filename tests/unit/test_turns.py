"""Who is answered when, in one event loop, without HTTP."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Generator
from types import SimpleNamespace
from typing import Any

import pytest

from forgellm.errors import Conflict, Unavailable
from forgellm.model_server.loading import LoadedModel
from forgellm.model_server.turns import AnswerStream, Turns


class Bench:
    """A model with some places; an answer begins, waits for `let_go`, and says its name."""

    def __init__(self, num_places: int) -> None:
        engine: Any = SimpleNamespace(max_concurrent=num_places)
        self.model: LoadedModel | None = LoadedModel(engine, None)  # type: ignore[arg-type]
        self.may_replace: list[bool] = []
        self.began: list[str] = []
        self.let_go = {name: threading.Event() for name in "abcdefgh"}

    async def get(self, may_replace: bool) -> LoadedModel | None:
        self.may_replace.append(may_replace)
        return self.model

    def prepare(self, name: str) -> Callable[[LoadedModel], Any]:
        def work(model: LoadedModel, is_cancelled: Callable[[], bool]) -> Generator[str]:
            self.began.append(name)
            assert self.let_go[name].wait(30)
            yield name

        return lambda model: work

    async def ask(self, turns: Turns, name: str) -> list[str]:
        stream: AnswerStream[str] = await turns.start(
            name, self.get, self.prepare(name), ["cancelled"]
        )
        return [item async for item in stream]


async def settled(is_so: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not is_so():
            await asyncio.sleep(0.002)


def test_the_line_is_served_in_order() -> None:
    async def run() -> None:
        bench, turns = Bench(2), Turns()
        asked = [asyncio.create_task(bench.ask(turns, name)) for name in "abcdef"]
        for number, name in enumerate("bacdfe"):  # whoever ends, the next in line begins
            await settled(lambda number=number: len(bench.began) == min(6, 2 + number))
            bench.let_go[name].set()
        assert [await task for task in asked] == [[name] for name in "abcdef"]
        assert sorted(bench.began[:2]) == ["a", "b"] and bench.began[2:] == ["c", "d", "e", "f"]

    asyncio.run(run())


def test_those_who_wait_are_counted_beside_those_who_run() -> None:
    async def run() -> None:
        bench, turns = Bench(2), Turns(max_waiting=3)
        asked = [asyncio.create_task(bench.ask(turns, name)) for name in "ab"]
        await settled(lambda: len(bench.began) == 2)
        asked += [asyncio.create_task(bench.ask(turns, name)) for name in "cde"]
        await asyncio.sleep(0)
        with pytest.raises(Unavailable, match="3 requests wait"):
            await bench.ask(turns, "f")
        with pytest.raises(Conflict):
            await bench.ask(turns, "c")
        assert turns.cancel("d") == ["d"]
        assert await asked[3] == ["cancelled"]
        asked.append(asyncio.create_task(bench.ask(turns, "f")))
        for event in bench.let_go.values():
            event.set()
        assert [(await task)[0] for task in asked] == ["a", "b", "c", "cancelled", "e", "f"]

    asyncio.run(run())


def test_who_leaves_at_the_head_of_the_line_lets_the_next_one_up() -> None:
    async def run() -> None:
        bench, turns = Bench(1), Turns()
        asked = [asyncio.create_task(bench.ask(turns, name)) for name in "abc"]
        await settled(lambda: bench.began == ["a"] and len(bench.may_replace) == 2)
        asked[1].cancel()  # its client has gone away
        await settled(lambda: len(bench.may_replace) == 3)
        bench.let_go["a"].set()
        bench.let_go["c"].set()
        assert await asked[2] == ["c"] and bench.began == ["a", "c"]

    asyncio.run(run())


def test_a_model_may_take_another_s_place_only_when_nothing_runs() -> None:
    async def run() -> None:
        bench, turns = Bench(4), Turns()
        first = asyncio.create_task(bench.ask(turns, "a"))
        await settled(lambda: bench.began == ["a"])
        model, bench.model = bench.model, None
        second = asyncio.create_task(bench.ask(turns, "b"))
        await settled(lambda: len(bench.may_replace) == 2)
        bench.model = model
        bench.let_go["a"].set()
        bench.let_go["b"].set()
        assert [await first, await second] == [["a"], ["b"]]
        assert bench.may_replace == [True, False, True]

    asyncio.run(run())
