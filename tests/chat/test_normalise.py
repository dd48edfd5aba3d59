"""Other shapes of a conversation, for templates that refuse it as it is."""

from __future__ import annotations

from llm_server.chat.normalise import join_neighbours, split_calls
from llm_server.worker.messages import FunctionCall, Message


def calls(*ids: str) -> Message:
    return Message("assistant", tool_calls=[FunctionCall(id, "f", "{}") for id in ids])


def result(id: str, text: str) -> Message:
    return Message("tool", text, tool_call_id=id)


def test_results_follow_their_calls_though_ids_come_again_in_each_turn() -> None:
    user = Message("user", "q")
    split = split_calls(
        [user, calls("0", "1"), result("1", "Rome"), result("0", "Oslo")]
        + [Message("assistant", "ok"), user, calls("0"), result("0", "Cairo")]
    )
    assert split == (
        [user, calls("0"), result("0", "Oslo"), calls("1"), result("1", "Rome")]
        + [Message("assistant", "ok"), user, calls("0"), result("0", "Cairo")]
    )


def test_thoughts_of_neighbours_are_joined_as_their_texts_are() -> None:
    first = Message("assistant", "a", reasoning_content="hm")
    second = Message("assistant", "b", reasoning_content="well")
    assert join_neighbours([first, second]) == [
        Message("assistant", "a\n\nb", reasoning_content="hm\n\nwell")
    ]
