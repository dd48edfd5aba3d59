"""Look-up and eviction against plain references that know nothing of keys."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llm_server.cache.chunkfile import PARENT_BYTES, Chunk
from llm_server.cache.index import HEAD_DAYS, Index, Stored, eviction_order
from llm_server.cache.keys import Chain, Kind, common_tokens, pack, root_key

SIZE = 3
ROOT = root_key(b"f" * 32)
# Few different tokens, so that prompts share beginnings.
PROMPT = st.lists(st.integers(0, 1), min_size=1, max_size=14)
KINDS = st.sampled_from(Kind)
PUTS = st.lists(st.tuples(PROMPT, KINDS), max_size=12)


def chunk_of(tokens: list[int], kind: Kind) -> tuple[Chunk, bytes]:
    """The chunk that ends where `tokens` end, and its packed tokens."""
    chain = Chain.of(ROOT, tokens, SIZE)
    start = chain.chunk_start(len(tokens))
    parent = chain.keys[start // SIZE][:PARENT_BYTES]
    key = chain.key(kind, start, len(tokens))
    return Chunk(key, parent, kind, start, len(tokens) - start), chain.slice(start, len(tokens))


def common(a: list[int], b: list[int]) -> int:
    return common_tokens(pack(a), pack(b))


@given(PUTS, PROMPT)
def test_the_longest_prefix_is_found(puts: list[tuple[list[int], Kind]], prompt: list[int]) -> None:
    index = Index()
    for stored, kind in puts:
        chunk, packed = chunk_of(stored, kind)
        index.add(chunk)
        index.learn(chunk.key, packed)
    chain = Chain.of(ROOT, prompt, SIZE)
    whole = index.whole(chain)
    n = len(whole) * SIZE
    partial = index.partial(chain, len(whole))

    ranges = [stored for stored, kind in puts if kind is Kind.RANGE]
    expected = 0
    while prompt[: expected + SIZE] in ranges and expected + SIZE <= len(prompt):
        expected += SIZE
    assert n == expected
    behind = [s for s in ranges if s[:n] == prompt[:n] and n < len(s) <= n + SIZE]
    assert n + (partial[1] if partial else 0) == max(
        [common(stored, prompt) for stored in behind], default=n
    )


@given(PUTS, PROMPT, st.integers(0, 15))
def test_the_latest_checkpoint_is_found(
    puts: list[tuple[list[int], Kind]], prompt: list[int], n_max: int
) -> None:
    index = Index(chunk_of(stored, kind)[0] for stored, kind in puts)
    chunk = index.checkpoint(Chain.of(ROOT, prompt, SIZE), n_max)
    fitting = [
        len(stored)
        for stored, kind in puts
        if kind is Kind.CHECKPOINT and prompt[: len(stored)] == stored and len(stored) <= n_max
    ]
    assert (chunk.start + chunk.n_tokens if chunk else None) == max(fitting, default=None)


@given(PUTS)
def test_nothing_is_left_when_all_is_discarded(puts: list[tuple[list[int], Kind]]) -> None:
    chunks = [chunk_of(stored, kind)[0] for stored, kind in puts]
    index = Index(chunks)
    assert len(index) == len({chunk.key for chunk in chunks})
    for chunk in chunks:
        index.discard(chunk.key)
    assert len(index) == 0
    assert vars(index) == vars(Index())


def test_a_head_stays_a_head() -> None:
    chunk, _ = chunk_of([1, 1], Kind.RANGE)
    index = Index([chunk.as_head(), chunk])
    assert index.get(chunk.key) == chunk.as_head()


NOW = 1_900_000_000.0


def stored(name: str, age_s: float, *, start: int = 0, head: bool = False) -> Stored:
    chunk = Chunk(name.encode(), b"", Kind.RANGE, start, SIZE, head)
    return Stored(chunk, name, 10, NOW - age_s)


def names(victims: list[Stored]) -> str:
    return "".join(victim.path for victim in victims)


def test_least_recently_used_goes_first_and_heads_last() -> None:
    files = [stored("h", 9000, head=True), stored("a", 600), stored("b", 7200), stored("c", 0)]
    assert names(eviction_order(files, NOW)) == "bach"


def test_the_end_of_a_prompt_goes_before_its_beginning() -> None:
    files = [stored("a", 3600, start=0), stored("c", 3600, start=6), stored("b", 3600, start=3)]
    assert names(eviction_order(files, NOW)) == "cba"


def test_dates_in_the_future_do_not_protect() -> None:
    files = [stored("a", 3600), stored("f", -86400.0 * 3650), stored("g", -86400.0 * 3651)]
    assert names(eviction_order(files, NOW)) == "fga"


def test_forgotten_heads_are_nothing_special() -> None:
    files = [stored("a", 3600), stored("h", 86400 * (HEAD_DAYS + 1), head=True)]
    assert names(eviction_order(files, NOW)) == "ha"
