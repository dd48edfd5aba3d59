"""What a request in the engine counts of itself."""

from __future__ import annotations

from llm_server.cache.prefix import Lease
from llm_server.engine.sequence import Prompt, Sequence
from tests.engine.fake_context import FakeContext, FakeSampler, FakeVocabulary, Text


def test_what_comes_back_from_the_disk_after_a_preemption_is_counted_once() -> None:
    tokens = list(range(1, 21))
    prompt = Prompt(1, tokens, make_sampler=lambda: FakeSampler(FakeContext()), parser=Text(1))
    sequence = Sequence(prompt, FakeVocabulary(), 64)
    for _ in range(2):
        sequence.admit(Lease(0, tokens, 2, ""))
        sequence.restored(14, 0.5)
        usage = sequence.usage()
        assert (usage.cached_tokens, usage.disk_tokens) == (16, 14)
        sequence.preempt()
