"""The pool's judgements."""

from __future__ import annotations

from llm_server.models.policy import backoff_s, fits_beside

GIB = 1 << 30


def test_a_model_fits_beside_another_with_room_to_spare() -> None:
    assert fits_beside(4 * GIB, 6 * GIB)
    assert not fits_beside(4 * GIB, 6 * GIB - 1)
    assert not fits_beside(1, GIB)


def test_the_backoff_doubles_up_to_a_limit() -> None:
    assert [backoff_s(n) for n in (1, 2, 3, 7, 100)] == [0.5, 1.0, 2.0, 30.0, 30.0]
