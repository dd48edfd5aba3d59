"""Grammars in llguidance's dialect of Lark, compiled for one vocabulary and kept.

It knows tokens' spellings and how to write text, markers and JSON schemas as grammar; what a call
or an answer looks like is told by `plan` and `syntax/call_grammar`.
"""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from typing import Protocol

from llguidance import LLMatcher, LLTokenizer
from llguidance._lib import LLParserLimits
from llguidance._tokenizer import TokenizerWrapper

from llm_server.chat.endless import is_endless
from llm_server.chat.schemas import (
    MAX_MULTIPLE,
    MAX_MULTIPLE_DIGITS,
    enforceable,
    ignored_words,
    is_beyond_multiples,
)
from llm_server.chat.slow import why_slow
from llm_server.chat.syntax.literal import loose_regex, marker_regex
from llm_server.errors import InvalidSchema, printable
from llm_server.worker.messages import JsonObject

MAX_GRAMMAR_BYTES = 512 * 1024
"""Longest grammar that is compiled; a request's tools and schemas together."""

MAX_PROPERTIES = 1000
"""Most properties of one object: compiling takes time by their square, 0.1 s for this many."""

CACHE_BYTES = 4 * 1024 * 1024
"""Budget of the compiled grammars that are kept, in bytes of their sources."""

ANYTHING = "/(?s:.*)/"
"""An expression for any text."""

_LIMITS = LLParserLimits(
    initial_lexer_fuel=1_000_000,  # llguidance's default: about 20 ms
    step_lexer_fuel=200_000,  # llguidance's default: about 15 ms for a mask
    max_grammar_size=200_000,
    verbose_errors=False,
)

_MARKER = re.compile(r"<\[\d+\]>")
_PLACE = re.compile(r"^at \d+\(\d+\): (failed to compile JSON schema: )?")

_SLICES = [r'[^"\\\x00-\x1F\x7F]+']
"""Text inside a JSON string, for which llguidance keeps a second table, so that a mask takes 0.01
ms there instead of 2.6. Its default are four: 35 MB more for 150,000 tokens, and twice the time."""


class Spelling(Protocol):
    """What grammars need of a vocabulary (`llama.vocab.Vocab`)."""

    @property
    def n_tokens(self) -> int: ...
    @property
    def bos(self) -> int: ...
    @property
    def eos(self) -> int: ...
    @property
    def eog(self) -> Collection[int]: ...
    @property
    def control(self) -> Collection[int]: ...
    @property
    def spellings(self) -> Sequence[bytes]: ...
    def piece(self, token: int, *, special: bool) -> bytes: ...
    def tokenize(self, text: str, *, parse_special: bool) -> list[int]: ...


class Lark:
    """A grammar being written. `markers` are tokens that stand for their whole spelling."""

    def __init__(self, markers: Mapping[str, int]) -> None:
        self._markers = markers
        self._split = marker_regex(markers)
        self._rules: list[str] = []

    def rule(self, body: str, options: str = "") -> str:
        """A new rule; its name."""
        name = f"r{len(self._rules)}"
        self._rules.append(f"{name}{options}: {body}")
        return name

    def define(self, name: str, body: str) -> None:
        """Give the body of a rule that was named before."""
        self._rules.append(f"{name}: {body}")

    def name(self) -> str:
        """A name for a rule that `define` will give a body."""
        self._rules.append("")
        return f"r{len(self._rules) - 1}"

    def text(self, text: str) -> str:
        """An expression for exactly this text; empty for no text."""
        return self._written(text, _quoted)

    def loose_text(self, text: str) -> str:
        """As `text`, but with any blanks where the parser does not mind them."""
        return self._written(text, _regex)

    def _written(self, text: str, write: Callable[[str], str]) -> str:
        """An expression for a text with its markers, the parts between them as `write` has them."""
        parts = (
            f"<[{self._markers[part]}]>" if part in self._markers else write(part)
            for part in self._split.split(text)
        )
        return " ".join(part for part in parts if part)

    def leading(self, text: str) -> tuple[str, str]:
        """`text` up to its first marker, and the rest."""
        match = self._split.search(text)
        at = len(text) if match is None else match.start()
        return text[:at], text[at:]

    def terminal(self, body: str) -> str:
        """A new regular expression, of parts joined by `&` and `~`; its name."""
        name = f"T{len(self._rules)}"
        self._rules.append(f"{name}: {body}")
        return name

    def any_text_until(self, text: str, body: str = ANYTHING) -> str:
        """An expression for text that fits `body`, without `text`, and then `text`."""
        lead, rest = self.leading(text)
        options = f"[suffix={_quoted(lead)}]" if lead else ""
        return f"{self.rule(body, options)} {self.text(rest)}".strip()

    def json(self, schema: JsonObject | bool, *, spaced: bool, lenient: bool) -> str:
        """An expression for JSON that fits `schema`, with fixed blanks."""
        options: JsonObject = {
            "whitespace_flexible": False,
            "item_separator": ", " if spaced else ",",
            "key_separator": ": " if spaced else ":",
            # Where llguidance cannot prove that no two options fit the same value.
            "coerce_one_of": lenient,
            "lenient": lenient,
        }
        boolean: JsonObject = {} if schema else {"not": {}}
        whole = enforceable(schema) if isinstance(schema, dict) else boolean
        return self.rule(f"%json {json.dumps({**whole, 'x-guidance': options})}")

    def source(self, start: str) -> str:
        """The grammar's text."""
        return "\n".join([f"start: {start or _quoted('')}", *filter(None, self._rules)])


class Grammars:
    """The compiled grammars of one vocabulary. Threads may share it.

    Building the tokenizer takes up to a second for 150,000 tokens, on the first use.
    """

    def __init__(self, vocabulary: Spelling, markers: Collection[str]) -> None:
        self._vocabulary = vocabulary
        self._lock = threading.RLock()
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()
        self._size = 0
        self._tokenizer: LLTokenizer | None = None
        self.tokenize = _Pieces(vocabulary)
        """Tokens of a text in the middle of an answer; markers in it are text."""
        self.markers = {
            spelled: token
            for spelled in markers
            if (token := single_token(vocabulary, spelled)) is not None
        }
        self._split = marker_regex(self.markers)

    def tokens(self, text: str) -> list[int]:
        """Tokens of a text in the middle of an answer, markers recognised."""
        tokens: list[int] = []
        for part in self._split.split(text):
            marker = self.markers.get(part)
            tokens += self.tokenize(part.encode()) if marker is None else [marker]
        return tokens

    def compile(self, source: str, param: str, *, probe: bool = False) -> LLMatcher:
        """A matcher at the start of the grammar.

        Raises InvalidSchema for `param` if the grammar cannot be compiled within the limits or,
        looked at with `probe`, admits nothing.
        """
        if len(source) > MAX_GRAMMAR_BYTES:
            raise InvalidSchema("The schema is too large.", param)
        with self._lock:
            matcher = self._compiled.get(source)
        if matcher is None:
            # Without the lock: nobody waits for somebody else's slow grammar.
            matcher = LLMatcher(self.tokenizer, source, log_level=0, limits=_LIMITS)
            _check(matcher, param, probe)
        with self._lock:
            self._keep(source, matcher)
            return matcher.deep_copy()

    def check(self, source: str, param: str, *, probe: bool = False) -> None:
        """Raise what `compile` would, without waiting for the vocabulary's tables.

        What a grammar admits does not depend on how the vocabulary cuts it.
        """
        if self._tokenizer is not None:
            self.compile(source, param, probe=probe)
            return
        if len(source) > MAX_GRAMMAR_BYTES:
            raise InvalidSchema("The schema is too large.", param)
        small, ids = self._bytes_alone
        source = _MARKER.sub(lambda marker: ids.get(marker[0], marker[0]), source)
        _check(LLMatcher(small, source, log_level=0, limits=_LIMITS), param, probe)

    @property
    def tokenizer(self) -> LLTokenizer:
        """The vocabulary as llguidance has it. Whoever comes while it is built waits for it."""
        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = self._build_tokenizer()
            return self._tokenizer

    def _build_tokenizer(self) -> LLTokenizer:
        vocabulary = self._vocabulary
        tokens = _Tokens(
            vocabulary.spellings,
            set(self.markers.values()) | set(vocabulary.control),
            self.tokenize,
            eos=vocabulary.eos,
            bos=vocabulary.bos,
        )
        return LLTokenizer(
            TokenizerWrapper(tokens),
            n_vocab=vocabulary.n_tokens,
            eos_token=sorted(vocabulary.eog) or [vocabulary.eos],
            slices=_SLICES,
        )

    @cached_property
    def _bytes_alone(self) -> tuple[LLTokenizer, dict[str, str]]:
        """A vocabulary of bytes and markers, and how the markers are written there: their ids."""
        spellings = [bytes([byte]) for byte in range(255)]
        ids: dict[str, str] = {}
        for spelled, token in [*self.markers.items(), ("", -1)]:  # the last one ends a generation
            ids[f"<[{token}]>"] = f"<[{len(spellings)}]>"
            spellings.append(spelled.encode())
        special = set(range(255, len(spellings)))
        tokens = _Tokens(spellings, special, list, eos=len(spellings) - 1)
        return LLTokenizer(TokenizerWrapper(tokens), slices=[]), ids

    def _keep(self, source: str, matcher: LLMatcher) -> None:
        if source not in self._compiled:
            self._compiled[source] = matcher
            self._size += len(source)
        self._compiled.move_to_end(source)
        while self._size > CACHE_BYTES:
            oldest, _ = self._compiled.popitem(last=False)
            self._size -= len(oldest)


class _Tokens:
    """A vocabulary in the form that llguidance reads."""

    def __init__(
        self,
        spellings: Sequence[bytes],
        special: set[int],
        tokenize: Callable[[bytes], list[int]],
        *,
        eos: int,
        bos: int = -1,
    ) -> None:
        self._tokenize = tokenize
        self.eos_token_id = eos
        self.bos_token_id = bos if bos >= 0 else None
        self.special_token_ids: list[int] = []
        # llguidance takes a token whose bytes begin with 0xFF for a marker, not for text.
        self.tokens = [
            b"\xff" + spelled if token in special else spelled
            for token, spelled in enumerate(spellings)
        ]

    def __call__(self, text: bytes) -> list[int]:
        return self._tokenize(text)


class _Pieces:
    """Makes tokens of texts that stand in the middle of an answer."""

    def __init__(self, vocabulary: Spelling) -> None:
        self._vocabulary = vocabulary

    def __call__(self, text: bytes) -> list[int]:
        """The vocabulary's own tokens where these say `text`, else one for each byte."""
        decoded = text.decode("utf-8", "replace")
        for prefix in ("", "\x02"):  # SentencePiece puts a blank before a text's first word
            tokens = self._vocabulary.tokenize(prefix + decoded, parse_special=False)
            joined = self._joined(tokens)
            if prefix:
                tokens, joined = self._without(prefix.encode(), tokens)
            if joined == text:
                return tokens
        return [self._byte_tokens[byte] for byte in text if byte in self._byte_tokens]

    def _joined(self, tokens: Sequence[int]) -> bytes:
        return b"".join(self._vocabulary.piece(token, special=True) for token in tokens)

    def _without(self, prefix: bytes, tokens: Sequence[int]) -> tuple[list[int], bytes]:
        for n in range(1, len(tokens)):
            if self._joined(tokens[:n]).lstrip(b" ") == prefix:
                return list(tokens[n:]), self._joined(tokens[n:])
        return [], b""

    @cached_property
    def _byte_tokens(self) -> dict[int, int]:
        spellings = self._vocabulary.spellings
        return {spelled[0]: i for i, spelled in enumerate(spellings) if len(spelled) == 1}


def single_token(vocabulary: Spelling, text: str) -> int | None:
    """The one token that `text` becomes where markers are recognised, if it is one."""
    tokens = vocabulary.tokenize(text, parse_special=True)
    if tokens and vocabulary.piece(tokens[0], special=True).strip() == b"" and len(tokens) == 2:
        tokens = tokens[1:]  # the blank that SentencePiece adds
    return tokens[0] if len(tokens) == 1 and len(text) > 1 else None


def check_schema(grammars: Grammars, schema: JsonObject, *, lenient: bool, param: str) -> None:
    """Refuse a schema that cannot be forced or that nothing fits. Raises InvalidSchema."""
    whole = enforceable(schema) if lenient else schema
    stack: list[object] = [whole]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            if len(item) > MAX_PROPERTIES:
                raise InvalidSchema("The schema has too many properties in one object.", param)
            if is_beyond_multiples(item.get("multipleOf")):
                raise InvalidSchema(
                    f"A multipleOf is more than {MAX_MULTIPLE}, or its digits are more than "
                    f"{MAX_MULTIPLE_DIGITS}.",
                    param,
                )
            stack.extend(item.values())
        elif isinstance(item, list):
            stack += [part for part in item if isinstance(part, (dict, list))]
    if not lenient and (words := ignored_words(schema)):
        raise InvalidSchema(f"{', '.join(words)} cannot be enforced; leave it out.", param)
    if slow := why_slow(whole):
        raise InvalidSchema(slow, param)
    lark = Lark({})
    source = lark.source(lark.json(schema, spaced=False, lenient=lenient))
    grammars.check(source, param, probe=True)
    if is_endless(schema):
        raise InvalidSchema(
            "Only values without end can satisfy this schema: what must hold another of its own "
            "kind needs a way to stop, such as null.",
            param,
        )


def _regex(text: str) -> str:
    return f"/{loose_regex(text)}/" if text else ""


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if text else ""


def _check(matcher: LLMatcher, param: str, probe: bool) -> None:
    """Refuse a grammar that failed to compile or, on a closer look, lets nothing come first."""
    if matcher.is_error():
        reason = _first_line(matcher.get_error())
        if "coerce_one_of" in reason:
            raise InvalidSchema(
                "oneOf can be enforced only where no value fits two of its options: tell them "
                "apart by type, or by a required property with a const, or use anyOf.",
                param,
            )
        raise InvalidSchema(f"This schema is not supported: {reason}", param)
    if probe:
        matcher = matcher.deep_copy()
        mask = matcher.compute_bitmask()
        if matcher.is_error() or not any(mask):
            raise InvalidSchema("No value can satisfy this schema.", param)


def _first_line(text: str) -> str:
    """What llguidance says is wrong, without the place in our grammar that it quotes below.
    Of a pattern that does not parse it tells the pattern in the next line, and further down why.
    """
    lines = [part.strip() for part in text.splitlines() if part.strip()]
    line = _PLACE.sub("", lines[0]) if lines else ""
    why = next((part for part in lines if part.startswith("error: ")), "")
    if line == "regex parse error:" and why:
        line = f"the pattern `{lines[1][:100]}` has an {why}"
    return printable(line, 200)
