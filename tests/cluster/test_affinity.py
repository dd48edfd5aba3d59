"""Where requests go: by plain arithmetic, without a cluster."""

from __future__ import annotations

from collections import Counter

from llm_server.cluster.affinity import BLOCK, BYTES_PER_REQUEST, Affinity, marks_of
from llm_server.worker.messages import ChatRequest, CompletionRequest, Embed, Message, Rerank

IDLE = {"r1": 0, "r2": 0, "r3": 0}


def chat(*texts: str, salt: str = "", tools: int = 0) -> ChatRequest:
    roles = ("system", "user", "assistant")
    messages = [
        Message(roles[0] if i == 0 else roles[2 - i % 2], text) for i, text in enumerate(texts)
    ]
    return ChatRequest(
        messages, [{"type": "function", "n": i} for i in range(tools)], cache_salt=salt
    )


def test_marks_of_a_longer_conversation_begin_with_those_of_the_shorter() -> None:
    short, long = (
        marks_of(chat("be kind", "hello")),
        marks_of(chat("be kind", "hello", "hi", "bye")),
    )
    assert long.startswith(short)
    assert len(long) == len(short) + 2 * 12


def test_marks_differ_by_salt_tools_and_text() -> None:
    one = marks_of(chat("be kind", "hello"))
    for other in (
        chat("be kind", "hello", salt="somebody"),
        chat("be kind", "hello", tools=1),
        chat("be rude", "hello"),
    ):
        assert marks_of(other)[12:24] != one[12:24]


def test_a_long_text_is_known_in_blocks() -> None:
    text = "x" * (10 * BLOCK)
    one, other = (marks_of(CompletionRequest(text + end)) for end in ("one", "other"))
    shared = next(i for i in range(0, len(one), 12) if one[i : i + 12] != other[i : i + 12])
    assert shared == 11 * 12  # The session, and ten blocks.


def test_marks_are_bounded_and_keep_the_end_of_a_long_conversation() -> None:
    many = chat(*[f"message {i}" for i in range(3000)])
    marks = marks_of(many)
    assert len(marks) <= 12 * 513
    changed = chat(*[f"message {i}" for i in range(2999)], "another one")
    assert marks_of(changed)[-12:] != marks[-12:]
    assert len(marks_of(CompletionRequest("x" * 4_000_000))) <= 12 * 513


def test_embeddings_have_no_marks_and_go_where_least_is_to_do() -> None:
    assert marks_of(Embed(["text"])) == marks_of(Rerank("query", ["text"])) == b""
    assert Affinity[str]().order(b"", {"r1": 2, "r2": 0, "r3": 1}) == ["r2", "r3", "r1"]


def test_what_is_known_attracts() -> None:
    affinity: Affinity[str] = Affinity()
    for replica in IDLE:
        affinity.note(marks_of(chat(f"system of {replica}" + "x" * 5000, "hello")), replica)
    for replica in IDLE:
        asked = marks_of(chat(f"system of {replica}" + "x" * 5000, "something else"))
        assert affinity.order(asked, IDLE)[0] == replica


def test_the_longer_match_wins_over_the_shorter() -> None:
    affinity: Affinity[str] = Affinity()
    system = "be kind"
    affinity.note(marks_of(chat(system, "a" * 3000)), "r1")
    affinity.note(marks_of(chat(system, "b" * 3000)), "r2")
    assert affinity.order(marks_of(chat(system, "b" * 3000, "yes", "and?")), IDLE)[0] == "r2"
    assert affinity.order(marks_of(chat(system, "a" * 3000, "yes", "and?")), IDLE)[0] == "r1"


def test_a_busy_replica_is_worth_its_prompt_and_no_more() -> None:
    affinity: Affinity[str] = Affinity()
    asked = marks_of(chat("x" * (3 * BYTES_PER_REQUEST), "hello"))
    affinity.note(asked, "r1")
    assert affinity.order(asked, {"r1": 3, "r2": 0, "r3": 0})[0] == "r1"
    assert affinity.order(asked, {"r1": 4, "r2": 0, "r3": 0})[0] != "r1"


def test_a_session_stays_however_busy_its_replica_is() -> None:
    affinity: Affinity[str] = Affinity()
    affinity.note(marks_of(chat("be kind", "hello"), "mine"), "r2")
    loads = {"r1": 0, "r2": 9, "r3": 0}
    assert affinity.order(marks_of(chat("something else"), "mine"), loads)[0] == "r2"
    assert affinity.order(marks_of(chat("something else"), "another"), loads)[0] != "r2"
    affinity.note(marks_of(chat("be kind", "hello"), "mine"), "r3")
    assert affinity.order(marks_of(chat("something else"), "mine"), loads)[0] == "r3"


def test_ingresses_that_know_nothing_agree_and_spread_the_heads() -> None:
    first: Affinity[str] = Affinity()
    second: Affinity[str] = Affinity()
    chosen = Counter()
    for i in range(300):
        asked = marks_of(chat(f"agent {i}" + "x" * 500, "hello"))
        assert first.order(asked, IDLE) == second.order(asked, dict(reversed(IDLE.items())))
        chosen[first.order(asked, IDLE)[0]] += 1
    assert all(60 < n < 140 for n in chosen.values())


def test_a_lost_replica_is_forgotten() -> None:
    affinity: Affinity[str] = Affinity()
    affinity.note(marks_of(chat("be kind", "hello"), "mine"), "r1")
    affinity.forget("r1")
    assert len(affinity) == 0


def test_memory_is_bounded() -> None:
    affinity: Affinity[str] = Affinity(max_remembered=100)
    for i in range(200):
        affinity.note(marks_of(chat(f"agent {i}", "hello")), "r1")
    assert len(affinity) == 100
