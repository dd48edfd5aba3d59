"""A worker process on a fake context, whose cache folder takes nothing until a FIFO has a writer.

Run as a program with the folder and the FIFO. It is loaded as it starts, every prompt is a head,
and an answer ends at its `max_tokens` or, minutes later, where its context does.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace

from llm_server.cache.disk import DiskTier
from llm_server.cache.files import Files
from llm_server.cache.store import ChunkStore
from llm_server.engine.sequence import Prompt
from llm_server.worker.load import Ready
from llm_server.worker.main import serve
from llm_server.worker.messages import Asked, CompletionRequest, Loaded
from tests.engine.fake_context import FakeContext, FakeSampler, FakeVocabulary, Text


class StuckFiles(Files):
    def create(self, path: str) -> int:
        os.close(os.open(sys.argv[2], os.O_RDONLY))
        return super().create(path)


def main() -> None:
    context = FakeContext(n_ctx=100_000, model=lambda _: 7)
    context.model = SimpleNamespace(vocab=FakeVocabulary())  # type: ignore[attr-defined]

    def prepare(id: int, request: Asked) -> Prompt:
        assert isinstance(request, CompletionRequest) and isinstance(request.prompt, list)
        return Prompt(
            id,
            request.prompt,
            make_sampler=lambda: FakeSampler(context),
            parser=Text(id),
            max_tokens=request.sampling.max_tokens,
            head=len(request.prompt),
            persist=request.persist,
        )

    store = ChunkStore(Path(sys.argv[1]), bytes(32), 1 << 30, files=StuckFiles())
    disk = DiskTier(store, bytes(32), whole_state=False)
    loaded = Loaded(n_ctx=100_000, parallel=8, description="fake")
    ready = Ready(context, prepare, disk, loaded, 0, finish=lambda: None)  # type: ignore[arg-type]
    serve(ready, "off", os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb"))


if __name__ == "__main__":
    main()
