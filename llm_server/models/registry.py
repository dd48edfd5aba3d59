"""The models folder: which files can be served, and under which names.

A scan makes dictionaries, and names from clients are only ever looked up in them: they never become
part of a path. Beside models there are LoRA adapters, and chat templates that replace a model's
own. A scan looks at names and sizes of files, and once for each state of a file at its first
kilobytes, for what it is; headers are read when somebody asks for facts. What is loaded is the
pool's business.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from llm_server.errors import InvalidRequest, ModelLoadFailed, ModelNotFound
from llm_server.gguf.header import read_kind
from llm_server.gguf.parts import split_of
from llm_server.looks import Look
from llm_server.models.facts import Facts
from llm_server.models.known import FactsCache, Identity, identity

MAX_DEPTH = 4
"""Levels of subfolders that are looked into."""

RECENT_S = 2.0
"""A folder that changed less than this before a scan may have changed again without showing it: so
coarse are the times of some file systems."""

_TEMPLATE = ".jinja"


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model on disk. `path` is the file to load: the first one of a split model."""

    name: str
    """Path below the models folder with `/`, ending in `.gguf`; no part numbers."""
    path: Path
    size: int
    """Bytes, of all parts together."""
    modified: int
    """Seconds since the epoch, of the first part."""
    parts: tuple[Path, ...]
    identity: Identity
    """Differs whenever the content of a part does."""


class Registry:
    """The models of one folder as of the last scan. A missing folder is an empty one.

    While it is empty, the file `stand_in` is its one model, if that exists; it is not listed any
    more as soon as there is another. The file `given`, wherever it lies, is one of the models, also
    by its path as given. Each of `aliases` stands for another name of a model.
    Links that lead out of the folder, and links to folders, count only with `follow_symlinks`.
    """

    def __init__(
        self,
        folder: Path,
        stand_in: Path | None = None,
        *,
        given: str | None = None,
        aliases: Mapping[str, str] | None = None,
        follow_symlinks: bool = False,
    ) -> None:
        self.folder = folder
        self.given = Path(given).absolute() if given else None
        self._as_given = given or ""
        self._stand_in = stand_in
        self._aliases = aliases or {}
        self._follow_symlinks = follow_symlinks
        self._models: dict[str, ModelFile] = {}
        self._names: dict[str, ModelFile] = {}
        self._ambiguous: dict[str, list[str]] = {}
        self._facts = FactsCache()
        self._kinds: dict[Identity, str] = {}
        self._adapters: dict[str, ModelFile] = {}
        self._templates: dict[str, ModelFile] = {}
        self.leading_out: list[str] = []
        """Links that were passed over because they lead out of the folder, as of the last scan."""
        self.incomplete: dict[str, list[Path]] = {}
        """What is there of models whose other parts are missing, by the name they would have."""
        self._folders: dict[Path, int] = {}
        self.scanned = Look(lambda: self.scan(), None)
        self.current = Look(lambda: self.is_current(), True)

    def scan(self) -> None:
        """Look at the folder anew. Blocks for the disk; safe in a thread."""
        seen = _Seen()
        files = list(_files(self.folder, self._follow_symlinks, seen))
        self.leading_out = sorted(seen.leading_out)
        self.incomplete = _incomplete(files)
        given = list(_models(_parts(self.given))) if self.given else []
        by_kind = self._by_kind([*sorted(_models(files), key=_by_name), *given])
        models = {model.name: model for model in by_kind.get("model", ())}
        self._adapters = {adapter.name: adapter for adapter in by_kind.get("adapter", ())}
        self._templates = {
            name: _model(name, [(path, info)])
            for name, path, info in files
            if name.endswith(_TEMPLATE)
        }
        if not models and self._stand_in is not None and self._stand_in.is_file():
            name = self._stand_in.name
            models[name] = _model(name, [(self._stand_in, self._stand_in.stat())])
        meanings: dict[str, set[str]] = {}
        for model in models.values():
            for name in _spellings(model):
                meanings.setdefault(name, set()).add(model.name)
        # A file name always wins, then an alias; a short one counts only while it means one model.
        short = {name: models[min(of)] for name, of in meanings.items() if len(of) == 1}
        known = short | models
        aliased = {alias: known[name] for alias, name in self._aliases.items() if name in known}
        self._names = short | aliased | models
        self._names.update((self._as_given, models[m.name]) for m in given if m.name in models)
        self._ambiguous = {n: sorted(of) for n, of in meanings.items() if n not in self._names}
        self._models = models
        self._folders = seen.folders
        self._facts.keep_only(model.identity for model in models.values())

    def is_current(self) -> bool:
        """Whether no file has come or gone since the last scan: one `stat` for each folder."""
        return all(_changed(folder) == then for folder, then in self._folders.items())

    def _by_kind(self, files: Iterable[ModelFile]) -> dict[str, list[ModelFile]]:
        """Files by what they say they are; what is neither model nor adapter serves nobody."""
        known, self._kinds = self._kinds, {}
        by_kind: dict[str, list[ModelFile]] = {}
        for file in files:
            kind = known.get(file.identity) or read_kind(file.path)
            self._kinds[file.identity] = kind
            by_kind.setdefault(kind, []).append(file)
        return by_kind

    def models(self) -> list[ModelFile]:
        """All models by name, as of the last scan."""
        return list(self._models.values())

    def at(self, name: str) -> ModelFile | None:
        """The model of exactly that file name."""
        return self._models.get(name)

    def first(self) -> ModelFile | None:
        """The model that serves while nobody has named one: the first by name that makes text.

        By their headers; the first of all where none does. Blocks for the disk; safe in a thread.
        """
        models = self.models()
        makes_text = (model for model in models if self._makes_text(model))
        return next(makes_text, models[0] if models else None)

    def _makes_text(self, model: ModelFile) -> bool:
        facts = self._facts.of(model.identity, model.parts)
        return isinstance(facts, Facts) and facts.pooling is None

    def knows(self, name: str) -> bool:
        """Whether `find` would find a model of that name, or several."""
        return name in self._names or name in self._ambiguous

    def adapters(self) -> list[ModelFile]:
        """All LoRA adapters by name, as of the last scan."""
        return list(self._adapters.values())

    def templates(self) -> list[ModelFile]:
        """All chat templates by name, as of the last scan."""
        return sorted(self._templates.values(), key=_by_name)

    def companion(self, name: str) -> ModelFile | None:
        """The adapter or chat template of that name, as `adapter` and `template` find them."""
        by_name = self._adapters | self._templates
        return next((by_name[n] for n in _with_suffixes(name) if n in by_name), None)

    def is_stand_in(self, model: ModelFile) -> bool:
        """Whether that model is not of the folder, but serves for want of one."""
        return model.path == self._stand_in

    def aliases(self, model: ModelFile) -> list[str]:
        """The names that the configuration gives a model besides those of its file."""
        return [alias for alias in self._aliases if self._names.get(alias) == model]

    def facts(self, model: ModelFile) -> Facts:
        """What the model's header says. Blocks for the disk the first time; safe in a thread.

        Raises ModelLoadFailed when llama.cpp would not take the file, with the reason.
        """
        facts = self._facts.of(model.identity, model.parts)
        if isinstance(facts, Facts):
            return facts
        raise ModelLoadFailed(f"{model.name} cannot be loaded: {facts}.", param="model")

    def means(self, name: str, model: ModelFile) -> bool:
        """Whether `name` is one of the names of `model`, as of the last scan.

        One whose file is gone has those that nothing else has now.
        """
        found = self._names.get(name)
        gone = model.name not in self._models and not self.is_stand_in(model)
        if gone and not self.knows(name):
            return self._aliases.get(name, name) in (model.name, *_spellings(model))
        return found is not None and found.path == model.path

    def adapter(self, name: str) -> ModelFile:
        """The LoRA adapter of that name, with or without `.gguf`. Raises InvalidRequest."""
        return _of_name(name, self._adapters, ".gguf", "adapter", "load_model_configs.lora")

    def template(self, name: str) -> ModelFile:
        """The chat template of that name, with or without `.jinja`. Raises InvalidRequest."""
        param = "load_model_configs.chat_template"
        return _of_name(name, self._templates, _TEMPLATE, "chat template", param)

    def find(self, name: str) -> ModelFile:
        """The model of that exact name, with or without `.gguf` and subfolder, or of that alias.

        Raises ModelNotFound, for a malformed name as for an unknown one, with near names; for a
        short name that several models have, with those.
        """
        model = self._names.get(name)
        if model is not None:
            return model
        if near := self._ambiguous.get(name) or self._near(name):
            raise ModelNotFound(name, f" Did you mean {' or '.join(near[:3])}?")
        raise ModelNotFound(name, _listed(list(self._models)))

    def _near(self, name: str) -> list[str]:
        """Models with a name like that, however it is capitalised."""
        names = {known: [model.name] for known, model in self._names.items()} | self._ambiguous
        spelt = {known.casefold(): meant for known, meant in names.items()}
        near = get_close_matches(name[:128].casefold(), spelt, n=3, cutoff=0.7)
        return list(dict.fromkeys(model for n in near for model in spelt[n]))


def _of_name(
    name: str, files: Mapping[str, ModelFile], suffix: str, what: str, param: str
) -> ModelFile:
    """One of `files`. Raises InvalidRequest with near names."""
    found = files.get(name) or files.get(name + suffix)
    if found is not None:
        return found
    near = get_close_matches(name[:128], files, n=3, cutoff=0.6)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    message = f"There is no {what} of that name in the models folder.{hint}"
    raise InvalidRequest(message, param=param)


def _listed(names: Sequence[str]) -> str:
    """A sentence with the first few of them."""
    if not names:
        return " The models folder is empty."
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f" There {'is' if len(names) == 1 else 'are'} {', '.join(names[:3])}{more}."


def _with_suffixes(name: str) -> tuple[str, ...]:
    return name, f"{name}.gguf", name + _TEMPLATE


def _by_name(model: ModelFile) -> str:
    return model.name


def _spellings(model: ModelFile) -> Iterator[str]:
    """What else a model may be called: without suffix, without folder, by its first part."""
    base = model.name.rpartition("/")[2]
    yield model.name.removesuffix(".gguf")
    yield base
    yield base.removesuffix(".gguf")
    yield model.path.name


def _model(name: str, files: list[tuple[Path, os.stat_result]]) -> ModelFile:
    infos = [info for _, info in files]
    return ModelFile(
        name,
        path=files[0][0],
        size=sum(info.st_size for info in infos),
        modified=int(infos[0].st_mtime),
        parts=tuple(path for path, _ in files),
        identity=identity(infos),
    )


def _models(found: Iterable[tuple[str, Path, os.stat_result]]) -> Iterator[ModelFile]:
    files = {name: (path, info) for name, path, info in found if name.endswith(".gguf")}
    for name, (path, info) in files.items():
        if path.name.startswith("mmproj"):
            continue  # A projector belongs to a model and cannot answer by itself.
        if not name.isprintable():
            continue  # Such a name could not be written into JSON, or would spoil the log.
        split = split_of(name)
        if split is None:
            yield _model(name, [(path, info)])
        elif split.part == 1 and all(part in files for part in split.names):
            yield _model(f"{split.stem}.gguf", [files[part] for part in split.names])


def _incomplete(found: Iterable[tuple[str, Path, os.stat_result]]) -> dict[str, list[Path]]:
    """The parts of split models that are not whole, by the name of the model."""
    files = {name: path for name, path, _ in found if name.isprintable()}
    torn: dict[str, list[Path]] = {}
    for name in sorted(files):
        split = split_of(name)
        if split is not None and not all(part in files for part in split.names):
            torn.setdefault(f"{split.stem}.gguf", []).append(files[name])
    return torn


@dataclass(slots=True)
class _Seen:
    """What a scan sees beside the files it yields."""

    leading_out: list[str] = field(default_factory=list)
    folders: dict[Path, int] = field(default_factory=dict)
    """When each folder had last changed; -1 where that was too recent to be told apart."""


def _files(folder: Path, follow: bool, seen: _Seen) -> Iterator[tuple[str, Path, os.stat_result]]:
    """(name, path, status) of readable, regular, non-empty `*.gguf` and `*.jinja` files.

    Links to files inside the folder are as good as files; others only if `follow`.
    """
    # Not by resolve(), which a folder that is a link to itself makes fail.
    root = None if follow else Path(os.path.realpath(folder))
    pending = [(folder, "", 0)]
    while pending:
        current, prefix, depth = pending.pop()
        changed = _changed(current)
        recent = time.time_ns() - changed < RECENT_S * 1e9
        seen.folders[current] = -1 if recent else changed
        for entry in _entries(current):
            # The depth ends loops of links.
            if _is_folder(entry, follow):
                if depth < MAX_DEPTH:
                    pending.append((Path(entry.path), f"{prefix}{entry.name}/", depth + 1))
            elif entry.name.endswith((".gguf", _TEMPLATE)):
                info = _status(entry)
                if info is None:
                    continue
                if root is not None and _leads_out(entry, root):
                    seen.leading_out.append(prefix + entry.name)
                else:
                    yield prefix + entry.name, Path(entry.path), info
            elif root is not None and _is_folder(entry, follow=True) and _leads_out(entry, root):
                seen.leading_out.append(prefix + entry.name)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What lies in a folder, but for what is hidden, as the `._x.gguf` that macOS writes beside
    x.gguf on disks of other systems. Nothing if the folder is missing or not ours to read."""
    try:
        return [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    except OSError:
        return []


def _parts(path: Path) -> Iterator[tuple[str, Path, os.stat_result]]:
    """The same of one file, and of its other parts if it is split."""
    split = split_of(path.name)
    for part in map(path.with_name, split.names if split else (path.name,)):
        if info := _status(part):
            yield part.name, part, info


def _changed(folder: Path) -> int:
    """When an entry of the folder has last come or gone, in ns; 0 if there is no such folder."""
    try:
        return folder.stat().st_mtime_ns
    except OSError:
        return 0


def _is_folder(entry: os.DirEntry[str], follow: bool) -> bool:
    try:
        return entry.is_dir(follow_symlinks=follow)
    except OSError:
        return False  # A link to itself, or into a folder that is not ours to read.


def _leads_out(entry: os.DirEntry[str], root: Path) -> bool:
    """Whether this is a link that leads out of `root`; one that leads nowhere does, too."""
    try:
        return entry.is_symlink() and not (
            Path(entry.path).resolve(strict=True).is_relative_to(root)
        )
    except (OSError, RuntimeError):
        return True  # Gone in the meantime, or a loop of links.


def _status(file: os.DirEntry[str] | Path) -> os.stat_result | None:
    """The status of a file that can be served; None for others."""
    try:
        info = file.stat()
        readable = os.access(file, os.R_OK)
    except OSError:
        return None  # Gone in the meantime, or a link to nothing.
    return info if stat.S_ISREG(info.st_mode) and info.st_size > 0 and readable else None
