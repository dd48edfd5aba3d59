"""A cache folder seen from outside, all models together: for people who look into it.

It lists, verifies and clears chunk files, and touches nothing else in the folder. A server may be
using it meanwhile: to it, a cleared chunk is a miss.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from llm_server.cache.chunkfile import PARENT_BYTES, BadChunk, decode
from llm_server.cache.files import Files
from llm_server.cache.folder import ChunkFolder
from llm_server.cache.index import Stored
from llm_server.cache.ledger import Record, Use, read_ledger

_NO_MODEL = bytes(32)


@dataclass(frozen=True, slots=True)
class Head:
    """A system prompt with its tools, as far as its last chunk: `size` bytes are that chunk's."""

    model: str
    n_tokens: int
    size: int
    hits: int
    used: float


@dataclass(frozen=True, slots=True)
class Survey:
    """The chunks of all models, and what the models' folders tell of themselves."""

    stored: list[Stored] = field(default_factory=list)
    records: dict[str, Record] = field(default_factory=dict)

    def name(self, model: str) -> str | None:
        """How the model of a folder was called when it was last loaded, if that is known."""
        return self.records[model].model or None

    def use(self, file: Stored) -> Use:
        """Hits of the head that ends with this chunk, and the last use of either."""
        use = self.records[model_of(file)].heads.get(file.chunk.key.hex(), Use(0, 0.0))
        return Use(use.hits, max(use.used, file.used))

    def by_model(self) -> dict[str, list[Stored]]:
        """The chunks of each model, in the order of their folders' names."""
        files: dict[str, list[Stored]] = {model: [] for model in sorted(self.records)}
        for file in self.stored:
            files[model_of(file)].append(file)
        return files

    def heads(self) -> list[Head]:
        """All heads."""
        return [
            Head(
                model_of(file),
                file.chunk.positions.stop,
                file.size,
                self.use(file).hits,
                self.use(file).used,
            )
            for file in head_ends(self.stored)
        ]


def survey(folder: Path) -> Survey:
    """All there is in a cache folder; nothing if there is no such folder.

    Raises:
        OSError: it cannot be read.
    """
    stored = stored_chunks(folder)
    models = {model_of(file) for file in stored}
    return Survey(stored, {model: read_ledger(folder, model) for model in models})


def stored_chunks(folder: Path) -> list[Stored]:
    """Every chunk file of every model; none if there is no such folder.

    Raises:
        OSError: the folder cannot be read.
    """
    return ChunkFolder(folder, _NO_MODEL, Files()).scan().stored


def model_of(file: Stored) -> str:
    """The name of the model's folder: the beginning of its fingerprint."""
    return Path(file.path).parent.parent.name


def head_ends(stored: Iterable[Stored]) -> list[Stored]:
    """The last chunk of each head: the head chunks that no other head chunk goes on from."""
    heads = [file for file in stored if file.chunk.head]
    parents = {(model_of(file), file.chunk.parent) for file in heads}
    return [
        file for file in heads if (model_of(file), file.chunk.key[:PARENT_BYTES]) not in parents
    ]


def damage(file: Stored) -> str | None:
    """What is wrong with a chunk file; None if every byte of it is right, or it has gone.

    Raises:
        OSError: it cannot be read.
    """
    try:
        header, _ = decode(Path(file.path).read_bytes())
    except FileNotFoundError:
        return None
    except BadChunk as error:
        return str(error)
    if header.chunk.as_head() != file.chunk.as_head():
        return "its name belongs to other contents"
    if not model_of(file).startswith(header.fingerprint.hex()[:16]):
        return "it belongs to another model"
    return None


def clear(folder: Path, models: Collection[str] | None = None) -> tuple[int, int]:
    """Delete every chunk, or those in some models' folders: (how many, their bytes).

    Raises:
        OSError: one cannot be deleted; the others are.
    """
    chunks = ChunkFolder(folder, _NO_MODEL, Files())
    found = chunks.scan()
    victims = [file for file in found.stored if models is None or model_of(file) in models]
    leftovers = [path for path, _ in found.temporary] if models is None else []
    failed: OSError | None = None
    for path in [*(file.path for file in victims), *leftovers]:
        try:
            chunks.remove(path)
        except OSError as error:
            failed = error
    chunks.remove_empty(found.folders)
    if failed is not None:
        raise failed
    return len(victims), sum(file.size for file in victims)
