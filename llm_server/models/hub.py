"""From what a person names (`hf:owner/repo:Q4_K_M`, a URL) to the files to fetch.

Asks the Hugging Face Hub which files a repository has; fetches none. Only `llm-server pull` uses
it: the server makes no outgoing request.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit, urlunsplit

import httpx2
from huggingface_hub import HfApi, get_token, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from llm_server.gguf.parts import split_of
from llm_server.models.connection import DownloadError, connect
from llm_server.models.download import Remote

PREFERRED = (
    *("Q4_K_M", "UD-Q4_K_XL", "Q4_K_L", "Q4_K_S", "IQ4_XS", "IQ4_NL", "Q4_0", "Q4_1", "MXFP4"),
    *("MXFP4_MOE", "Q5_K_M", "UD-Q5_K_XL", "Q5_K_S", "Q5_0", "Q6_K", "Q8_0", "Q3_K_M", "Q3_K_L"),
    *("IQ3_M", "Q3_K_S", "IQ3_XS", "IQ3_XXS", "Q2_K", "IQ2_M", "F16", "BF16", "F32"),
)
"""What is taken when none is named, first choice first.

Q4_K_M is what llama.cpp itself takes by default: about half a per cent more perplexity than the
unquantized model in a third of its size; smaller ones lose quickly, larger ones gain little.
"""

_QUANTIZATION = re.compile(
    r"(?:^|[-._])((?:UD-)?(?:I?Q\d(?:_[A-Z0-9]+)*|TQ\d_\d|MXFP4(?:_MOE)?|BF16|F16|F32))(?=$|[-._])",
    re.IGNORECASE,
)
_HUB = re.compile(r"hf:(?P<repo>[^/:@\s]+/[^/:@\s]+)(?::(?P<wanted>\S+))?")
_HUB_PAGE = re.compile(
    r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/(?P<repo>[^/]+/[^/?#]+)"
    r"(?:/(?:blob|resolve)/(?P<revision>[^/]+)/(?P<wanted>[^?#]+)|/?|/tree/[^?#]*)(?:[?#].*)?"
)


@dataclass(frozen=True, slots=True)
class Pick:
    """The files of one model, and what else could have been chosen instead."""

    files: Sequence[Remote]
    others: Sequence[str] = ()

    @property
    def model_name(self) -> str:
        """What the model is called once it is here."""
        name = self.files[0].name
        split = split_of(name)
        return split.stem if split else name.removesuffix(".gguf")


def choose(source: str, endpoint: str | None = None) -> Pick:
    """The files that `source` means.

    `hf:owner/repo`, `hf:owner/repo:QUANTIZATION`, `hf:owner/repo:FILE.gguf`, the address of a page
    on huggingface.co, or the address of a file. `endpoint` stands in for HF_ENDPOINT.

    Raises:
        DownloadError: there is no such thing, in one line.
    """
    match = _HUB.fullmatch(source) or _HUB_PAGE.fullmatch(source)
    if match is not None:
        named = match.groupdict()
        wanted = unquote(named["wanted"]) if named["wanted"] else None
        return _of_repository(named["repo"], wanted, named.get("revision"), endpoint)
    if source.lower().startswith(("http://", "https://")):
        return Pick(_of_url(source))
    raise DownloadError(
        f"{source!r} is neither hf:owner/repo nor an address that begins with https://"
    )


def quantization(name: str) -> str | None:
    """The quantization that a file's name tells, such as `Q4_K_M`."""
    found = _QUANTIZATION.findall(name.rpartition("/")[2].removesuffix(".gguf"))
    return str(found[-1]).upper() if found else None


def _of_url(url: str) -> list[Remote]:
    """The file at that address; if its name says that it is one part of several, all of them."""
    try:
        address = urlsplit(url)
    except ValueError as error:
        raise DownloadError(f"{url} is no address: {error}") from None
    folder, _, name = address.path.rpartition("/")
    if not re.fullmatch(r"[^./\\][^/\\]*\.gguf", unquote(name)) or not unquote(name).isprintable():
        raise DownloadError("the address must end in the name of a .gguf file")
    split = split_of(name)
    return [
        Remote(urlunsplit(address._replace(path=f"{folder}/{part}")), unquote(part))
        for part in (split.names if split else [name])
    ]


def _of_repository(
    repo: str, wanted: str | None, revision: str | None, endpoint: str | None
) -> Pick:
    connect().close()  # The hub's own client goes by the same variables, and says less of them.
    try:
        info = HfApi(endpoint=endpoint).model_info(
            repo, revision=revision, files_metadata=True, timeout=30
        )
    except GatedRepoError:
        raise DownloadError(
            f"{repo} is gated: accept its terms on its page, then set HF_TOKEN to a token of that "
            "account"
        ) from None
    except RevisionNotFoundError:
        raise DownloadError(f"{repo} has no revision {revision}") from None
    except RepositoryNotFoundError:
        raise DownloadError(
            f"there is no repository {repo} that you may see; for a private one set HF_TOKEN"
        ) from None
    except HFValidationError:
        raise DownloadError(f"{repo!r} is no name of a repository: owner/name is") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        raise DownloadError(f"the hub answered {status} when asked for {repo}") from None
    except (httpx2.HTTPError, OfflineModeIsEnabled) as error:
        raise DownloadError(f"the hub cannot be reached: {error}") from None
    token = get_token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    files = {}
    for sibling in info.siblings or []:
        path = sibling.rfilename
        if path.lower().endswith(".gguf") and path.isprintable() and not _is_auxiliary(path):
            url = hf_hub_url(repo, path, revision=info.sha, endpoint=endpoint)
            sha256 = sibling.lfs.sha256 if sibling.lfs else None
            name = _in_folder(path).rpartition("/")[2]
            files[path] = Remote(url, name, sibling.size, sha256, headers)
    if not files:
        raise DownloadError(f"{repo} has no GGUF file; look for a repository whose name has -GGUF")
    return _pick(repo, files, wanted)


def _in_folder(path: str) -> str:
    """With the suffix of the models folder: written in capitals, it would be no model there."""
    return path[: -len(".gguf")] + ".gguf"


def _is_auxiliary(path: str) -> bool:
    """Projectors and importance matrices are GGUF files and no models."""
    return path.rpartition("/")[2].lower().startswith(("mmproj", "imatrix"))


def _pick(repo: str, files: Mapping[str, Remote], wanted: str | None) -> Pick:
    models: dict[str, list[str]] = defaultdict(list)
    for path in sorted(files):
        split = split_of(_in_folder(path))
        models[split.stem + path[-len(".gguf") :] if split else path].append(path)
    by_kind: dict[str, list[str]] = defaultdict(list)
    for name in models:
        by_kind[quantization(name) or name.rpartition("/")[2]].append(name)
    kind = _kind(repo, models, by_kind, wanted)
    if len(by_kind[kind]) > 1:
        names = ", ".join(name.rpartition("/")[2] for name in by_kind[kind])
        raise DownloadError(f"{repo} has several files of {kind}; name one of: {names}")
    (chosen,) = by_kind[kind]
    parts = models[chosen]
    split = split_of(_in_folder(parts[0]))
    if split and len(parts) != split.n_parts:
        raise DownloadError(f"{repo} has only {len(parts)} of the {split.n_parts} parts of {kind}")
    return Pick([files[path] for path in parts], sorted(set(by_kind) - {kind}))


def _kind(
    repo: str,
    models: Mapping[str, list[str]],
    by_kind: dict[str, list[str]],
    wanted: str | None,
) -> str:
    """The key of `by_kind` that `wanted` means, or the one to prefer if nothing is wanted."""
    if wanted is None:
        ranks = {kind: rank for rank, kind in enumerate(PREFERRED)}
        return min(by_kind, key=lambda kind: (ranks.get(kind, len(ranks)), kind))
    if wanted.lower().endswith(".gguf"):
        for name, parts in models.items():
            if any(wanted in (path, path.rpartition("/")[2]) for path in (name, *parts)):
                by_kind[wanted] = [name]
                return wanted
    for kind in (wanted.upper(), f"UD-{wanted.upper()}"):
        if kind in by_kind:
            return kind
    raise DownloadError(f"{repo} has no {wanted}; it has {', '.join(sorted(by_kind))}")
