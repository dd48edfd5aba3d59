"""What an answer says of itself in every dialect: where it came from, its tokens and its times."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field

import msgspec

from llm_server.worker.messages import Finished, Sampling, Timings, Usage


@dataclass(frozen=True, slots=True)
class Origin:
    """Who answers: the model and its configuration.

    `ids` are those of the worker's requests that make the answer, prompt by prompt, `n` to each.
    `created` is in seconds since the epoch.
    """

    model: str
    fingerprint: str
    ids: range
    n: int = 1
    created: int = field(default_factory=lambda: int(time.time()))
    sampling: Sampling = Sampling()
    """How tokens are picked: what the request set, over what the model's own defaults are."""

    def head(self, prefix: str) -> tuple[str, int, str, str]:
        """What an answer begins with: an id as unguessable as OpenAI's, when, and by whom."""
        return prefix + secrets.token_hex(12), self.created, self.model, self.fingerprint


class CachedJson(msgspec.Struct):
    """How much of the prompt was not computed."""

    cached_tokens: int


class ThoughtJson(msgspec.Struct):
    """How much of the completion was thinking."""

    reasoning_tokens: int


class UsageJson(msgspec.Struct):
    """OpenAI's `usage`."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedJson
    completion_tokens_details: ThoughtJson


class TimingsJson(msgspec.Struct):
    """Tokens and milliseconds by stage, in llama-server's spelling; `prompt_n` were computed.

    `cache_n` were reused, `cache_disk_n` of them read from the disk and attached in `cache_ms`.
    Of `draft_n` tokens that were guessed and computed, `draft_n_accepted` were right.
    """

    queue_ms: float
    cache_ms: float
    cache_n: int
    cache_disk_n: int
    prompt_n: int
    prompt_ms: float
    prompt_per_second: float
    predicted_n: int
    predicted_ms: float
    predicted_per_second: float
    draft_n: int
    draft_n_accepted: int


class Ends:
    """How the requests of one answer ended, and what they took together."""

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self._ends: dict[int, Finished] = {}

    def add(self, event: Finished) -> None:
        """One has ended."""
        self._ends[event.id] = event

    def __getitem__(self, index: int) -> Finished:
        """The end of the `index`-th request, which must have come."""
        return self._ends[self._origin.ids[index]]

    @property
    def all_in(self) -> bool:
        """Whether nothing is missing."""
        return len(self._ends) == len(self._origin.ids)

    @property
    def usage(self) -> Usage:
        """All tokens: those of a prompt once, however many answers it has."""
        ends = [self[i] for i in range(len(self._origin.ids))]
        prompts = [end.usage for end in ends[:: self._origin.n]]
        return Usage(
            prompt_tokens=sum(u.prompt_tokens for u in prompts),
            completion_tokens=sum(end.usage.completion_tokens for end in ends),
            cached_tokens=sum(u.cached_tokens for u in prompts),
            disk_tokens=sum(u.disk_tokens for u in prompts),
            state_bytes=sum(u.state_bytes for u in prompts),
            reasoning_tokens=sum(end.usage.reasoning_tokens for end in ends),
        )

    @property
    def timings(self) -> Timings:
        """Of each stage the longest time, as the requests run together; of counts the sum."""
        times = [end.timings for end in self._ends.values()]
        return Timings(
            queue_ms=max(t.queue_ms for t in times),
            prompt_ms=max(t.prompt_ms for t in times),
            predicted_ms=max(t.predicted_ms for t in times),
            cache_ms=max(t.cache_ms for t in times),
            draft_n=sum(t.draft_n for t in times),
            draft_n_accepted=sum(t.draft_n_accepted for t in times),
        )


def usage_json(usage: Usage) -> UsageJson:
    """The worker's counts in OpenAI's shape."""
    return UsageJson(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
        prompt_tokens_details=CachedJson(usage.cached_tokens),
        completion_tokens_details=ThoughtJson(usage.reasoning_tokens),
    )


def timings_json(usage: Usage, timings: Timings) -> TimingsJson:
    """The worker's times, with the rates people compare."""
    computed = usage.prompt_tokens - usage.cached_tokens
    return TimingsJson(
        queue_ms=round(timings.queue_ms, 3),
        cache_ms=round(timings.cache_ms, 3),
        cache_n=usage.cached_tokens,
        cache_disk_n=usage.disk_tokens,
        prompt_n=computed,
        prompt_ms=round(timings.prompt_ms, 3),
        prompt_per_second=_per_second(computed, timings.prompt_ms),
        predicted_n=usage.completion_tokens,
        predicted_ms=round(timings.predicted_ms, 3),
        predicted_per_second=_per_second(usage.completion_tokens, timings.predicted_ms),
        draft_n=timings.draft_n,
        draft_n_accepted=timings.draft_n_accepted,
    )


def _per_second(count: int, milliseconds: float) -> float:
    return round(count * 1000 / milliseconds, 2) if milliseconds > 0 else 0.0
