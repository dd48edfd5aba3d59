"""OpenAI's older endpoint, `POST /completions`: text that goes on, without a conversation.

From its JSON to `CompletionRequest`s, and from events to its own shapes of answers.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import msgspec
from fastapi import APIRouter
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from llm_server.api.body import Json
from llm_server.api.completion import LastChunks
from llm_server.api.context import answer, read_call
from llm_server.api.fields import (
    check_generation,
    chosen_sampling,
    prompts_of,
    validated,
)
from llm_server.api.logprobs import TextColumns, TextLogprobs
from llm_server.api.requests import Call, call_of, choices
from llm_server.api.schema import operation
from llm_server.api.usage import Ends, Origin, TimingsJson, UsageJson, timings_json, usage_json
from llm_server.api.wire import CompletionBody
from llm_server.errors import InvalidRequest, UnsupportedParameter
from llm_server.worker.messages import (
    CompletionRequest,
    Content,
    Finished,
    FinishReason,
    Logprobs,
    RequestEvent,
    Sampling,
)

router = APIRouter()

DEFAULT_MAX_TOKENS = 16
"""OpenAI's, here alone."""


class TextChoice(msgspec.Struct):
    """One choice; in a stream, what a chunk adds to it."""

    text: str
    index: int
    logprobs: TextLogprobs | None = None
    finish_reason: FinishReason | None = None


class TextCompletion(msgspec.Struct):
    """One `text_completion`, whole or as a chunk."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[TextChoice]
    object: Literal["text_completion"] = "text_completion"
    usage: UsageJson | None | UnsetType = UNSET
    timings: TimingsJson | UnsetType = UNSET


@router.post(
    "/completions",
    openapi_extra=operation(
        TextCompletion,
        body=CompletionBody,
        example={"prompt": "Once upon a time", "max_tokens": 32},
        chunk=TextCompletion,
    ),
)
async def completions(request: Request) -> Response:
    """Continue a prompt, at once or as a stream of server-sent events."""
    call = await read_call(request, completion_call)
    return answer(request, call, TextFold, partial(TextChunks, include_usage=call.include_usage))


def completion_call(body: dict[str, Json]) -> Call:
    """The body of a completion request, understood. Raises InvalidRequest."""
    ignored = check_generation(body, CompletionBody)
    wanted = validated(CompletionBody, body)
    n = wanted.n or 1
    if wanted.best_of not in (None, n):
        raise UnsupportedParameter(
            "best_of is supported only as the number of choices, n.", param="best_of"
        )
    suffix = wanted.suffix or None
    if wanted.echo and suffix is not None:
        raise InvalidRequest("A prompt with a suffix cannot be echoed.", param="echo")
    prompts = prompts_of(wanted.prompt)
    alone = isinstance(wanted.prompt, str) or isinstance(wanted.prompt[0], int)
    places = ["prompt"] if alone else [f"prompt[{i}]" for i in range(len(prompts))]
    chosen = chosen_sampling(wanted)
    told = {"max_tokens": DEFAULT_MAX_TOKENS, "top_logprobs": wanted.logprobs} | chosen
    sampling = Sampling(**told)
    requests = [
        request
        for prompt, place in zip(prompts, places, strict=True)
        for request in choices(
            CompletionRequest(prompt, suffix, bool(wanted.echo), sampling, place=place), n
        )
    ]
    return call_of(wanted, requests, ignored=ignored, chosen=chosen.keys(), n=n)


class TextChunks(LastChunks):
    """Makes the chunks of one stream (`chat.Chunker`)."""

    def __init__(self, origin: Origin, include_usage: bool) -> None:
        super().__init__(origin, "cmpl-", include_usage)
        self._columns = {id: TextColumns() for id in origin.ids}

    def opening(self) -> list[TextCompletion]:
        """Nothing comes before the text."""
        return []

    def of(self, event: RequestEvent) -> list[TextCompletion]:
        """The chunks an event becomes; none for Progress and Failed."""
        if isinstance(event, Content):
            return [self._chunk(event.id, event.text)]
        if isinstance(event, Logprobs):
            self._columns[event.id].add(event)
        if isinstance(event, Finished):
            return self._closing(event)
        return []

    def _empty(self, id: int) -> TextCompletion:
        return self._chunk(id, "")

    def _chunk(self, id: int, text: str) -> TextCompletion:
        choice = TextChoice(text, id - self._ids[0], self._columns[id].taken())
        return TextCompletion(*self._head, [choice], usage=self._usage)


class TextFold:
    """Collects the events of one answer into one object (`chat.Folder`)."""

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self._texts: dict[int, list[str]] = {id: [] for id in origin.ids}
        self._columns = {id: TextColumns() for id in origin.ids}
        self._ends = Ends(origin)

    def add(self, event: RequestEvent) -> None:
        """Take the next event."""
        if isinstance(event, Content):
            self._texts[event.id].append(event.text)
        elif isinstance(event, Logprobs):
            self._columns[event.id].add(event)
        elif isinstance(event, Finished):
            self._ends.add(event)

    def whole(self) -> TextCompletion:
        """The whole answer, after the last event."""
        usage = self._ends.usage
        return TextCompletion(
            *self._origin.head("cmpl-"),
            [self._choice(index, id) for index, id in enumerate(self._origin.ids)],
            usage=usage_json(usage),
            timings=timings_json(usage, self._ends.timings),
        )

    def _choice(self, index: int, id: int) -> TextChoice:
        text, logprobs = "".join(self._texts[id]), self._columns[id].taken()
        return TextChoice(text, index, logprobs, self._ends[index].reason)
