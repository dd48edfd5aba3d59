"""Who gets into which batch of texts, and what comes out: the embedder on a context that counts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

from llm_server.engine.embedder import Embedder, Texts
from llm_server.errors import ShuttingDown
from llm_server.llama.context import DecodeError
from llm_server.worker.messages import Embedded, Failed, Finished, RequestEvent


class CountingContext:
    """A text's vector is its first token, twice that, and so on."""

    n_batch = 20
    n_shared = 8
    max_texts = 4
    n_embd = 3

    def __init__(self) -> None:
        self.batches: list[list[list[int]]] = []
        self.failing = False
        self.closed = False

    def embed(self, texts: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
        self.batches.append([list(text) for text in texts])
        if self.failing:
            raise DecodeError("compute failed")
        firsts = np.array([text[0] for text in texts], np.float32)
        return np.outer(firsts, np.arange(1, self.n_embd + 1, dtype=np.float32))

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def context() -> CountingContext:
    return CountingContext()


@pytest.fixture
def embedder(context: CountingContext) -> Embedder:
    return Embedder(context)


def run(embedder: Embedder) -> list[RequestEvent]:
    events = []
    while not embedder.idle:
        events += embedder.step()
    return events


def vectors(events: list[RequestEvent], id: int) -> npt.NDArray[np.float32]:
    pieces = [event for event in events if isinstance(event, Embedded) and event.id == id]
    n = sum(piece.n for piece in pieces)
    return np.frombuffer(b"".join(piece.vectors for piece in pieces), "<f4").reshape(n, -1)


def test_requests_take_turns(context: CountingContext, embedder: Embedder) -> None:
    embedder.submit(Texts(1, [[10 + i] for i in range(6)]))
    embedder.submit(Texts(2, [[20]]))
    events = embedder.step()
    assert context.batches == [[[10], [20], [11], [12]]]
    assert [type(event) for event in events] == [Embedded, Embedded, Finished]
    assert events[-1].id == 2
    events += run(embedder)
    assert context.batches[1:] == [[[13], [14], [15]]]
    ends = [event for event in events if isinstance(event, Finished)]
    assert [(end.id, end.usage.prompt_tokens, end.reason) for end in ends] == [
        (2, 1, "stop"),
        (1, 6, "stop"),
    ]
    assert embedder.step() == []


def test_owners_take_turns(context: CountingContext, embedder: Embedder) -> None:
    for id in range(6):
        embedder.submit(Texts(id, [[10 + id]]), "many")
    embedder.submit(Texts(6, [[20], [21]]), "one")
    embedder.step()
    assert context.batches == [[[10], [20], [11], [21]]]


def test_vectors_keep_the_order_of_their_texts_and_have_length_1(embedder: Embedder) -> None:
    embedder.submit(Texts(1, [[(-1) ** i * (i + 1)] * (i % 5 + 1) for i in range(9)]))
    found = vectors(run(embedder), 1)
    assert found.shape == (9, 3)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(np.sign(found[:, 0]), [(-1) ** i for i in range(9)])


def test_dimensions_cut_and_scale(embedder: Embedder) -> None:
    embedder.submit(Texts(1, [[7], [0]], dimensions=2))
    one, zero = vectors(run(embedder), 1)
    np.testing.assert_allclose(one, np.array([1, 2]) / np.sqrt(5), rtol=1e-6)
    np.testing.assert_array_equal(zero, [0, 0])


def test_scores_stay_as_they_are(embedder: Embedder) -> None:
    embedder.submit(Texts(1, [[-7], [0], [9]], scored=True))
    np.testing.assert_array_equal(vectors(run(embedder), 1), [[-7], [0], [9]])


def test_short_texts_share_a_batch_and_long_ones_do_not(
    context: CountingContext, embedder: Embedder
) -> None:
    embedder.submit(Texts(1, [[1] * 5, [2] * 3, [3], [4] * 20, [5]]))
    run(embedder)
    sizes = [[len(text) for text in batch] for batch in context.batches]
    assert sizes == [[5, 3], [1], [20], [1]]


def test_what_is_cancelled_is_not_computed(context: CountingContext, embedder: Embedder) -> None:
    embedder.submit(Texts(1, [[1]] * 100))
    embedder.submit(Texts(2, [[2]] * 5))
    embedder.step()
    embedder.cancel(1)
    embedder.cancel(99)
    events = run(embedder)
    assert {event.id for event in events} == {2}
    assert [[2]] * 3 == context.batches[-1]


def test_a_failed_batch_fails_its_requests_alone(
    context: CountingContext, embedder: Embedder
) -> None:
    for id in range(1, 6):
        embedder.submit(Texts(id, [[id]] * 2))
    context.failing = True
    events = embedder.step()
    assert [event.id for event in events if isinstance(event, Failed)] == [1, 2, 3, 4]
    assert all(isinstance(event, Failed) and event.error.status == 500 for event in events)
    context.failing = False
    assert {event.id for event in run(embedder)} == {5}


def test_the_end(context: CountingContext, embedder: Embedder) -> None:
    embedder.submit(Texts(1, [[1]]))
    (failed,) = embedder.fail_all(ShuttingDown("The end."))
    assert isinstance(failed, Failed) and failed.error.code == "shutting_down"
    assert embedder.idle
    embedder.close(1.0)
    assert context.closed
