"""Which rows of a run are replay: general text among the domain's, against forgetting."""

from __future__ import annotations

from dataclasses import dataclass

MAX_REPLAY_PASSES = 4


@dataclass(frozen=True)
class Mixture:
    """`num_replay_rows` of the run's `num_rows` rows are replay.

    A row comes wholly from one source; each source's rows are taken in their own order.

    Attributes:
        most_replay_rows: so many are there, with all passes that are allowed.
        start, before: up to row `start` all is as in `before`; replay is spread evenly from there.
    """

    num_rows: int
    num_replay_rows: int
    most_replay_rows: int = 0
    start: int = 0
    before: Mixture | None = None

    @property
    def achieved_ratio(self) -> float:
        """Share of rows from the domain."""
        return 1 - self.num_replay_rows / self.num_rows

    def source_of(self, row: int) -> tuple[bool, int]:
        """Whether row `row` of the run is replay, and which row of its source it is."""
        replay_before = self._replay_before(row)
        is_replay = self._replay_before(row + 1) > replay_before
        return is_replay, replay_before if is_replay else row - replay_before

    def changed(self, start: int, replay_share: float) -> Mixture:
        """The same up to row `start`, and from there on with this share of replay, or what is left
        of it."""
        done, rest = self._replay_before(start), self.num_rows - start
        if rest <= 0:
            return self
        wanted = min(round(rest * replay_share), rest, self.most_replay_rows - done)
        return Mixture(
            self.num_rows, done + max(0, wanted), self.most_replay_rows, start, before=self
        )

    def _replay_before(self, row: int) -> int:
        """How many of the rows before `row` are replay."""
        if self.before is not None and row <= self.start:
            return self.before._replay_before(row)
        done = self.before._replay_before(self.start) if self.before is not None else 0
        rest = self.num_replay_rows - done
        return done + (row - self.start) * rest // (self.num_rows - self.start)


def wanted_replay_rows(num_rows: int, data_mixture_ratio: float) -> int:
    """At least one row is left to the domain."""
    return min(round(num_rows * (1 - data_mixture_ratio)), num_rows - 1)


def plan_mixture(
    num_rows: int, data_mixture_ratio: float, replay_tokens: int, seq_len: int
) -> tuple[Mixture, str | None]:
    """The mixture nearest to the ratio that passes over replay at most `MAX_REPLAY_PASSES` times.

    Also a warning, if that falls short of the ratio.
    """
    wanted = wanted_replay_rows(num_rows, data_mixture_ratio)
    possible = MAX_REPLAY_PASSES * replay_tokens // seq_len
    mixture = Mixture(num_rows, min(wanted, possible), possible)
    if wanted <= possible:
        return mixture, None
    return mixture, (
        f"data_mixture_ratio {data_mixture_ratio:g} asks for {wanted} rows of general text, but "
        f"{MAX_REPLAY_PASSES} passes over the replay text give only {possible}: "
        f"{100 * mixture.achieved_ratio:.1f} % of the training text comes from the dataset. "
        "Name a larger folder of general text in replay_dataset."
    )
