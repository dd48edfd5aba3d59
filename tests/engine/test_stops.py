"""Stop strings never show, however the text is cut."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llm_server.engine.stops import StopStrings


@given(
    st.text("abc", max_size=40),
    st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
    st.data(),
)
def test_text_ends_before_the_first_stop_string(
    text: str, stops: list[str], data: st.DataObject
) -> None:
    strings, out, rest, stopped = StopStrings(stops), "", text, False
    while rest and not stopped:
        n = data.draw(st.integers(1, len(rest)))
        shown, stopped = strings.feed(rest[:n])
        out, rest = out + shown, rest[n:]
        assert not any(stop in out for stop in stops)
    if not stopped:
        out += strings.flush()
        assert out == text and strings.found is None
    else:
        assert text.startswith(out)
        assert strings.found in stops and text.startswith(strings.found, len(out))


def test_only_what_could_become_a_stop_string_is_held_back() -> None:
    strings = StopStrings(["user:"])
    assert strings.feed("hello us") == ("hello ", False)
    assert strings.feed("ual") == ("usual", False)
    assert strings.feed(" user:x") == (" ", True)
