"""Which heads are stored at once."""

from __future__ import annotations

from llm_server.cache.heads import MAX_NAMESPACES, N_IN_VAIN, Heads


def in_vain(n: int, namespace: str = "") -> Heads:
    """So many heads have been computed and not used again."""
    heads = Heads()
    for i in range(n):
        heads.computed([i], namespace)
    return heads


def test_where_no_head_is_used_again_the_next_one_waits() -> None:
    assert in_vain(N_IN_VAIN - 1).computed([99], "")
    assert not in_vain(N_IN_VAIN).computed([99], "")
    assert not in_vain(2 * N_IN_VAIN).computed([99], "")


def test_namespaces_do_not_judge_each_other() -> None:
    assert in_vain(N_IN_VAIN, "one").computed([99], "another")


def test_where_one_is_used_again_the_next_ones_are_stored() -> None:
    heads = in_vain(N_IN_VAIN + 1)
    heads.used([N_IN_VAIN], "")
    told = [heads.computed([99 + i], "") for i in range(N_IN_VAIN + 1)]
    assert told == [True] * N_IN_VAIN + [False]


def test_an_old_head_that_is_used_all_the_time_speaks_for_no_new_one() -> None:
    heads = in_vain(N_IN_VAIN + 1)
    heads.used([0], "")
    assert not heads.computed([99], "")


def test_a_head_that_is_computed_again_is_used() -> None:
    heads = in_vain(N_IN_VAIN)
    assert not heads.computed([99], "")
    assert heads.computed([99], "")


def test_no_number_of_namespaces_takes_more_than_its_room() -> None:
    heads = in_vain(N_IN_VAIN)
    for i in range(MAX_NAMESPACES):
        heads.computed([1], str(i))
    assert heads.computed([99], ""), "forgotten"
    assert len(heads._last) == MAX_NAMESPACES
