"""The API before models that live in replicas."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.live import Nodes, deployed
from tests.fake_live import Live, add_models, events

pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(scope="module")
def live(nodes: Nodes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    models = tmp_path_factory.mktemp("models")
    add_models(models, "a.gguf", "b.gguf")
    with deployed(nodes, models) as server:
        yield server


def test_a_chat_is_answered(live: Live) -> None:
    answer = live.chat("hello")
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"]


def test_a_chat_is_streamed(live: Live) -> None:
    answer = live.chat("hello", stream=True)
    assert answer.status_code == 200
    assert events(answer.text)[-1] == "[DONE]"
