"""Stop strings: cut at the right place whatever the pieces, and never shown in part."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from forgellm.generation.stop_strings import StopStrings

_TEXT = st.text("ab\n", max_size=12)
_STOPS = st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=4)


def expected_cut(text: str, stops: list[str]) -> str | None:
    """Read a letter at a time: the text before the stop string that is complete first."""
    for end in range(len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)]
    return None


@given(_STOPS, st.lists(_TEXT, max_size=6))
def test_the_cut_does_not_depend_on_the_pieces(stops: list[str], pieces: list[str]) -> None:
    text, shown = "".join(pieces), ""
    cut = expected_cut(text, stops)
    filtered = StopStrings(stops)
    for piece in pieces:
        shown += filtered.add(piece)
        assert (text if cut is None else cut).startswith(shown)
        if filtered.found:
            break
    else:
        shown += filtered.rest()
    assert filtered.found == (cut is not None)
    assert shown == (text if cut is None else cut)


def test_only_what_may_begin_a_stop_string_is_held_back() -> None:
    filtered = StopStrings(["\nUser:"])
    assert filtered.add("It grinds.") == "It grinds."
    assert filtered.add(" Slowly\nUs") == " Slowly"
    assert filtered.add("es water") == "\nUses water"
