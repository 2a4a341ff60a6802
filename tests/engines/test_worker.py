"""The threads of several models: one computes at a time, and none waits for another's end."""

from __future__ import annotations

import gc
import threading

from forgellm.engines.worker import Worker
from serving import eventually


class Busy:
    """Has always something to do, and sees whether it is alone with that."""

    computing = 0
    most_at_once = 0

    def __init__(self) -> None:
        self.num_steps = 0

    @property
    def is_idle(self) -> bool:
        return False

    def step(self) -> None:
        Busy.computing += 1
        Busy.most_at_once = max(Busy.most_at_once, Busy.computing)
        threading.Event().wait(0.0005)  # the other has every chance to come in
        Busy.computing -= 1
        self.num_steps += 1

    def close(self) -> None:
        pass


def make_worker() -> Worker[Busy]:
    return Worker(Busy, "busy", lambda: None)


def num_steps(worker: Worker[Busy]) -> int:
    """An order: it is done though neither of the two ever rests."""
    return worker.call(lambda state: state.num_steps)


def test_two_models_that_are_both_busy_take_turns() -> None:
    first, second = make_worker(), make_worker()
    eventually(lambda: min(num_steps(first), num_steps(second)) >= 50)
    assert Busy.most_at_once == 1


def test_a_model_given_up_while_another_computes_does_not_wait_for_it() -> None:
    """A garbage collection in one model's thread may be what ends another."""
    holder = [make_worker()]
    other = make_worker()
    ended = threading.Event()

    def give_up(state: Busy) -> None:
        holder.clear()
        gc.collect()
        ended.set()

    other.send(give_up)
    assert ended.wait(10)
