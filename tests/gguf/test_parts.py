"""What the names of parts say."""

from __future__ import annotations

from llm_server.gguf.parts import split_of


def test_a_name_makes_no_others_before_they_are_asked_for() -> None:
    split = split_of("m-00001-of-99999.gguf")
    assert split is not None
    names = split.names
    assert next(names) == "m-00001-of-99999.gguf"
    assert next(names) == "m-00002-of-99999.gguf"
