"""Text that ends before the first of some strings, given out as early as that is safe."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Holds back the end of the text as long as it could be the beginning of a stop string.

    The string that is complete first counts, so that the cut does not depend on the pieces in
    which the text comes.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.found = False
        self._stops = stops
        self._held = ""

    def add(self, text: str) -> str:
        """What may be seen now that `text` has come. After a stop string nothing more."""
        self._held += text
        places = [(self._held.find(stop), stop) for stop in self._stops]
        ends = [(place + len(stop), place) for place, stop in places if place >= 0]
        if ends:
            self.found = True
            return self._release(min(ends)[1])
        return self._release(len(self._held) - self._num_doubtful())

    def rest(self) -> str:
        """What is still held back when no more text comes."""
        return self._release(len(self._held))

    def _num_doubtful(self) -> int:
        """Length of the longest end of the text with which a stop string begins."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stops):
                return length
        return 0

    def _release(self, end: int) -> str:
        seen, self._held = self._held[:end], self._held[end:]
        return seen
