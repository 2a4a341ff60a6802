"""Who is answered when, in one event loop, without HTTP."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Generator
from types import SimpleNamespace
from typing import Any

import pytest

from forgellm.errors import Conflict, ModelNotLoaded, Unavailable
from forgellm.model_server.loading import LoadedModel
from forgellm.model_server.slot import Slot
from forgellm.model_server.turns import AnswerStream, Turns, Wanted
from forgellm.schema.generation import LoadRequest


def loaded_slot(num_places: int) -> Slot:
    engine: Any = SimpleNamespace(max_concurrent=num_places)
    slot = Slot(LoadRequest(model_name="x", adapter_path=None))
    slot.model = LoadedModel(engine, None)  # type: ignore[arg-type]
    slot.finished.set_result(None)
    return slot


class Bench:
    """A model with some places; an answer begins, waits for `let_go`, and says its name."""

    def __init__(self, num_places: int) -> None:
        self.slot: Slot | None = loaded_slot(num_places)
        self.may_replace: list[bool] = []
        self.began: list[str] = []
        self.let_go = {name: threading.Event() for name in "abcdefgh"}

    async def choose(self, may_replace: bool) -> Slot | None:
        self.may_replace.append(may_replace)
        return self.slot

    def prepare(self, name: str) -> Callable[[LoadedModel], Any]:
        def work(model: LoadedModel, is_cancelled: Callable[[], bool]) -> Generator[str]:
            self.began.append(name)
            assert self.let_go[name].wait(30)
            yield name

        return lambda model: work

    async def ask(self, turns: Turns, name: str) -> list[str]:
        stream: AnswerStream[str] = await turns.start(
            name, Wanted(self.choose), self.prepare(name), ["cancelled"]
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
        await settled(lambda: bench.began == ["a"] and len(bench.may_replace) == 3)
        asked[1].cancel()  # its client has gone away
        bench.let_go["a"].set()
        bench.let_go["c"].set()
        assert await asked[2] == ["c"] and bench.began == ["a", "c"]

    asyncio.run(run())


def test_a_model_may_take_another_s_place_only_when_nothing_runs() -> None:
    async def run() -> None:
        bench, turns = Bench(4), Turns()
        first = asyncio.create_task(bench.ask(turns, "a"))
        await settled(lambda: bench.began == ["a"])
        slot, bench.slot = bench.slot, None
        second = asyncio.create_task(bench.ask(turns, "b"))
        await settled(lambda: len(bench.may_replace) == 2)
        bench.slot = slot
        bench.let_go["a"].set()
        bench.let_go["b"].set()
        assert [await first, await second] == [["a"], ["b"]]
        assert bench.may_replace == [True, False, True]

    asyncio.run(run())


def test_each_model_has_a_line_of_its_own() -> None:
    async def run() -> None:
        bench, turns = Bench(1), Turns()
        asked = [asyncio.create_task(bench.ask(turns, name)) for name in "ab"]
        await settled(lambda: bench.began == ["a"] and len(bench.may_replace) == 2)
        bench.slot = loaded_slot(1)
        asked.append(asyncio.create_task(bench.ask(turns, "c")))
        await settled(lambda: bench.began == ["a", "c"])  # b still waits for a
        for name in "cba":
            bench.let_go[name].set()
        assert [(await task)[0] for task in asked] == ["a", "b", "c"]

    asyncio.run(run())


def test_who_needs_the_place_of_others_lets_all_before_it_end_and_none_behind_it_pass() -> None:
    async def run() -> None:
        bench, turns = Bench(1), Turns()
        asked = [asyncio.create_task(bench.ask(turns, name)) for name in "ab"]
        await settled(lambda: bench.began == ["a"] and len(bench.may_replace) == 2)
        slot, bench.slot = bench.slot, None
        asked.append(asyncio.create_task(bench.ask(turns, "c")))
        await settled(lambda: len(bench.may_replace) == 3)
        asked.append(asyncio.create_task(bench.ask(turns, "d")))
        bench.let_go["a"].set()
        await settled(lambda: bench.began == ["a", "b"])
        await settled(lambda: len(bench.may_replace) == 4)
        assert bench.may_replace[2:] == [False, False]
        bench.slot = slot
        for event in bench.let_go.values():
            event.set()
        assert [(await task)[0] for task in asked] == ["a", "b", "c", "d"]
        assert bench.may_replace[4:] == [True, False]

    asyncio.run(run())


def test_who_waits_for_a_model_that_is_given_up_is_told_or_gets_the_latest() -> None:
    async def run(is_latest: bool) -> list[str]:
        bench, turns = Bench(1), Turns()
        assert bench.slot is not None
        loading = bench.slot = Slot(LoadRequest(model_name="x", adapter_path=None))
        stream = turns.start("a", Wanted(bench.choose, is_latest), bench.prepare("a"), [])
        asked = asyncio.create_task(stream)
        await settled(lambda: bench.may_replace)
        bench.slot = loaded_slot(1)
        bench.let_go["a"].set()
        loading.is_given_up = True
        loading.finished.set_result(None)
        return [item async for item in await asked]

    assert asyncio.run(run(is_latest=True)) == ["a"]
    with pytest.raises(ModelNotLoaded):
        asyncio.run(run(is_latest=False))
