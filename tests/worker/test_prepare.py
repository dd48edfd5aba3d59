"""What requests become: prompts for the engine, of real vocabularies."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_server.engine.sequence import Prompt
from llm_server.worker.messages import CompletionRequest, Sampling
from llm_server.worker.prepare import Preparer, open_dialogue
from tests.engine.real import open_context

TEXTS = ["hello world", " hello", "  hello", "\n hello", " ", "é", "<|im_end|>the <s>a", "<s>the"]


@pytest.mark.parametrize("kind", ["attention", "spm"])
@pytest.mark.parametrize("text", TEXTS)
def test_an_echo_has_the_blanks_of_its_prompt_and_no_others(
    kind: str, text: str, request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(f"{kind}_gguf")
    asked = CompletionRequest(text, echo=True, sampling=Sampling(top_logprobs=0))
    with open_context(path, n_ctx=256, parallel=1) as context:
        prompt = Preparer(context, open_dialogue(context.model)).prepare(1, asked)
    assert isinstance(prompt, Prompt) and prompt.echo is not None
    assert len(prompt.echo.pieces) == len(prompt.tokens) - prompt.echo.start
    assert b"".join(prompt.echo.pieces) == text.encode()
