"""The Jinja environment of chat templates: Hugging Face's conventions, in a sandbox with limits.

A template comes with a model file and may be hostile: besides Jinja's own sandbox, loops, string
sizes and formatting are bounded, so that a render ends within its deadline and a few hundred
megabytes. It knows nothing of messages, tools or tokens.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from functools import wraps
from operator import contains, eq, ge, gt, le, lt, ne
from typing import Any, NoReturn

from jinja2 import Undefined
from jinja2.exceptions import SecurityError, TemplateRuntimeError
from jinja2.ext import loopcontrols
from jinja2.filters import do_replace, make_attrgetter
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import pass_context

from llm_server.chat.compile import CheckingGenerator, GenerationTag

RENDER_SECONDS = 2.0
"""Limit of one render, in processor time: a busy machine makes no template slow."""

MAX_CHARS = 16 * 1024 * 1024
"""Longest string a template may make, and so the longest output."""

MAX_TOTAL_CHARS = 512 * 1024 * 1024
"""Characters that all string operations of one render may make together."""

MAX_ITEMS = 1_000_000
"""Longest list a template may make, and the most nodes of a value turned into text."""

MAX_INT_BITS = 65_536
MAX_WIDTH = 10_000

_REMOVED_FILTERS = (
    "batch center filesizeformat format groupby pprint random slice urlize wordwrap xmlattr"
).split()
_SHALLOW_FILTERS = frozenset(
    "attr count d default first items last length list map reject rejectattr reverse select "
    "selectattr string tojson".split()
)
"""Filters that look at no more than the items of a value, or weigh it themselves."""

_SHALLOW_TESTS = frozenset(
    "boolean callable defined divisibleby escaped even false filter float integer iterable mapping "
    "none number odd sameas sequence string test true undefined".split()
)
_COMPARISONS: Mapping[str, Callable[[Any, Any], Any]] = {
    "eq": eq,
    "ne": ne,
    "gt": gt,
    "gteq": ge,
    "lt": lt,
    "lteq": le,
    "in": lambda left, right: contains(right, left),
    "notin": lambda left, right: not contains(right, left),
}
_REMOVED_METHODS = frozenset({"translate", "maketrans", "format_map", "to_bytes", "encode"})
_LIST_MUTATIONS = frozenset({"append", "extend", "insert", "pop", "remove", "reverse", "clear"})
_DICT_MUTATIONS = frozenset({"update", "setdefault", "pop", "popitem", "clear"})
_WIDE_FORMAT = re.compile(r"\d{5,}|\{[^{}]*\{|\*")

_NOT_ASCII = re.compile("[^\x00-\x7f\U0001d000-\U0001d01f\U0010f000-\U0010ffff]")
"""What ASCII JSON escapes; not the characters that may be marks (`segments`)."""


class Refused(TemplateRuntimeError):
    """The template called `raise_exception`: its own words about why these messages are wrong."""


class LimitExceeded(TemplateRuntimeError):
    """The template wants more time or memory than a render may have."""


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """One template's environment. Not for use by two threads at once: it holds one budget."""

    code_generator_class = CheckingGenerator
    intercepted_binops = frozenset({"*", "**", "%", "+"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[loopcontrols, GenerationTag],
            finalize=self._finalize,
            cache_size=0,
        )
        self._ticks = 0
        self._deadline = 0.0
        self._chars_left = 0
        for name in _REMOVED_FILTERS:
            del self.filters[name]
        del self.globals["lipsum"]
        self.filters |= {
            "tojson": self._tojson,
            "string": self._string,
            "join": self._join,
            "replace": self._replace,
            "indent": self._indent,
            "sum": self._sum,
        }
        for named, shallow in ((self.filters, _SHALLOW_FILTERS), (self.tests, _SHALLOW_TESTS)):
            for name, function in list[tuple[str, Any]](named.items()):
                named[name] = self._watched(function, deep=name not in shallow)
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
        # Jinja's generated code joins every buffer with this attribute.
        self.concat = self._concat  # type: ignore[method-assign]

    def start(self, seconds: float = RENDER_SECONDS) -> None:
        """Give the next render its budget."""
        self._deadline = time.thread_time() + seconds
        self._chars_left = MAX_TOTAL_CHARS

    def tick(self) -> None:
        """Called by the compiled template wherever a block begins; raises LimitExceeded."""
        self._ticks += 1
        if not self._ticks & 31:
            self._look_at_clock()

    def _look_at_clock(self) -> None:
        if time.thread_time() > self._deadline:
            raise LimitExceeded("the chat template takes too long")

    # ---- sizes ---------------------------------------------------------------------------------

    def _charge(self, n_chars: int) -> None:
        self._chars_left -= n_chars
        if n_chars > MAX_CHARS or self._chars_left < 0:
            raise LimitExceeded("the chat template makes too much text")

    def weighed(self, value: Any) -> Any:
        """`value`, which is about to be compared, hashed or turned into text in one go.

        Lists that hold each other many times over are small until something walks through them,
        and then nothing interrupts Python. Raises LimitExceeded.
        """
        if isinstance(value, (list, tuple, dict)):
            self._look_at_clock()
            self._charge(_count_nodes(value))
        return value

    def _watched(self, function: Callable[..., Any], *, deep: bool) -> Callable[..., Any]:
        """A filter or a test that looks at the clock and, if `deep`, weighs what it is given."""

        @wraps(function)
        def watched(*args: Any, **kwargs: Any) -> Any:
            self._look_at_clock()
            if deep:
                for arg in (*args, *kwargs.values()):
                    self.weighed(arg)
            return function(*args, **kwargs)

        return watched

    def compare(self, left: Any, *rest: Any) -> Any:
        """Jinja's comparisons, `a < b` as `left, "lt", right`, also in a row."""
        result: Any = True
        for name, right in zip(rest[::2], rest[1::2], strict=True):
            if not isinstance(left, str) or not isinstance(right, str):
                self.weighed(left)
                self.weighed(right)
            result = _COMPARISONS[name](left, right)
            if not result:
                break
            left = right
        return result

    def _text(self, value: Any) -> str:
        """`str(value)`, after a look at how big that would be."""
        if isinstance(value, str):
            return value
        if isinstance(value, (list, tuple, dict)):
            self._charge(_count_nodes(value))
        return str(value)

    def _finalize(self, value: Any) -> Any:
        return self._text(value) if isinstance(value, (list, tuple, dict)) else value

    def _concat(self, parts: Iterable[str]) -> str:
        pieces = parts if isinstance(parts, list) else list(parts)
        self._charge(sum(map(len, pieces)))
        return "".join(pieces)

    def join_text(self, values: Iterable[Any]) -> str:
        """Jinja's `~` operator."""
        return self._concat([self._text(value) for value in values])

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Subscript an object; a key is hashed."""
        return super().getitem(obj, self.weighed(argument))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Run an operator whose result could be huge."""
        if isinstance(left, (str, list, tuple)) or isinstance(right, (str, list, tuple)):
            self._check_sequence_operator(operator, left, right)
        elif isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * (right if operator == "**" else 1)
            if operator in ("*", "**") and bits + right.bit_length() > MAX_INT_BITS:
                raise LimitExceeded("the chat template makes a huge number")
        return super().call_binop(context, operator, left, right)

    def _check_sequence_operator(self, operator: str, left: Any, right: Any) -> None:
        if operator == "%" and isinstance(left, str):
            self._check_format(left, right)
            return
        if operator == "*":
            sequence, factor = (right, left) if isinstance(left, int) else (left, right)
            size = len(sequence) * max(factor, 0) if isinstance(factor, int) else 0
        else:
            size = sum(len(x) for x in (left, right) if isinstance(x, (str, list, tuple)))
        if isinstance(left, str) or isinstance(right, str):
            self._charge(size)
        elif size > MAX_ITEMS:
            raise LimitExceeded("the chat template makes a huge list")

    def _check_format(self, template: str, values: Any) -> None:
        if _WIDE_FORMAT.search(template):
            raise LimitExceeded("the chat template formats too widely")
        items = values if isinstance(values, (tuple, list, dict)) else (values,)
        longest = max((len(x) for x in items if isinstance(x, str)), default=0)
        self._charge((longest + MAX_WIDTH) * (template.count("%") + template.count("{")))
        self._charge(_count_nodes(items))

    # ---- calls ---------------------------------------------------------------------------------

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Lists and dictionaries may change: each render works on its own copies."""
        if isinstance(obj, list) and attr in _LIST_MUTATIONS:
            return True
        if isinstance(obj, dict) and attr in _DICT_MUTATIONS:
            return True
        return super().is_safe_attribute(obj, attr, value) and attr not in _REMOVED_METHODS

    def wrap_str_format(self, value: Any) -> Any:
        """`str.format` in the sandbox, with bounded widths; None when `value` is not that."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        template: str = value.__self__

        def checked(*args: Any, **kwargs: Any) -> str:
            self._check_format(template, {**dict(enumerate(args)), **kwargs})
            return str(wrapped(*args, **kwargs))

        return checked

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call from a template; methods of built-in values are checked for size first."""
        owner = getattr(__obj, "__self__", None)
        __self._look_at_clock()
        if not isinstance(__obj, Macro):
            for arg in (*args, *kwargs.values()):
                __self.weighed(arg)
        if isinstance(owner, (str, bytes, list, tuple, int)):
            args = __self._check_method(owner, __obj.__name__, args)
            for arg in (*args, *kwargs.values()):
                if isinstance(arg, int) and abs(arg) > MAX_ITEMS:
                    raise LimitExceeded("the chat template uses a huge number")
        return super().call(__context, __obj, *args, **kwargs)

    def _check_method(self, owner: Any, name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if isinstance(owner, (list, tuple)):
            if name in ("index", "count", "remove"):
                self.weighed(owner)
            elif name == "extend" and args:
                args = (list(args[0]),)
                self._check_sequence_operator("+", owner, args[0])
        elif isinstance(owner, str):
            if name == "join" and args:
                args = (list(args[0]),)
                self._charge(_joined_size(owner, args[0]))
            elif name == "replace" and len(args) >= 2:
                self._charge(_replaced_size(owner, args[0], args[1]))
            elif name == "expandtabs":
                self._charge(len(owner) * (args[0] if args and isinstance(args[0], int) else 8))
            else:
                self._charge(len(owner))
        return args

    # ---- filters; `pass_context` keeps Jinja from folding them when it compiles ----------------

    def _tojson(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | str | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        if isinstance(value, Undefined):
            value._fail_with_undefined_error()
        width = indent if isinstance(indent, int) else len(indent or "")
        if width > 64 or len("".join(separators or ())) > 64:
            raise LimitExceeded("the chat template formats too widely")
        if isinstance(value, Iterator):  # what `map` and its like return
            value = list(value)
        self._charge(_count_nodes(value))
        text = json.dumps(
            value,
            ensure_ascii=False,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )
        self._charge(len(text))
        return _NOT_ASCII.sub(_escape, text) if ensure_ascii else text

    def _string(self, value: Any) -> str:
        return self._text(value)

    @staticmethod
    @pass_context
    def _join(context: Context, value: Any, d: str = "", attribute: Any = None) -> str:
        env: ChatEnvironment = context.environment  # type: ignore[assignment]
        if attribute is not None:
            value = map(make_attrgetter(env, attribute), value)
        items = [env._text(item) for item in value]
        env._charge(_joined_size(str(d), items))
        return str(d).join(items)

    @staticmethod
    @pass_context
    def _replace(context: Context, s: Any, old: str, new: str, count: int | None = None) -> str:
        env: ChatEnvironment = context.environment  # type: ignore[assignment]
        text = env._text(s)
        env._charge(_replaced_size(text, str(old), str(new)))
        return str(do_replace(context.eval_ctx, s, old, new, count))

    @staticmethod
    @pass_context
    def _indent(
        context: Context, s: str, width: int | str = 4, first: bool = False, blank: bool = False
    ) -> str:
        env: ChatEnvironment = context.environment  # type: ignore[assignment]
        size = width if isinstance(width, int) else len(width)
        env._charge(len(s) + (s.count("\n") + 1) * size)
        margin = " " * width if isinstance(width, int) else width
        # Only "\n" ends a line here: Jinja's own also cuts JSON texts at U+2028 and its like.
        lines = s.split("\n")
        indented = [margin + line if line or blank else line for line in lines]
        return "\n".join(indented if first else [lines[0], *indented[1:]])

    @staticmethod
    def _sum(iterable: Iterable[Any], attribute: Any = None, start: Any = 0) -> Any:
        if attribute is not None or not isinstance(start, (int, float)):
            raise SecurityError("`sum` adds numbers only")
        return sum(iterable, start)


def _joined_size(separator: str, items: list[Any]) -> int:
    return sum(len(x) for x in items if isinstance(x, str)) + len(separator) * len(items)


def _replaced_size(text: str, old: Any, new: Any) -> int:
    if not (isinstance(old, str) and isinstance(new, str)):
        return len(text)
    return len(text) + text.count(old) * len(new)


def _count_nodes(value: Any) -> int:
    """How many values lie in `value`; a shared or cyclic one counts each time it is reached."""
    count = 0
    stack = [value]
    while stack:
        item = stack.pop()
        count += 1
        if isinstance(item, dict):
            stack.extend(item)
            stack.extend(item.values())
        elif isinstance(item, (list, tuple)):
            stack.extend(item)
        if count + len(stack) > MAX_ITEMS:
            raise LimitExceeded("the chat template makes a huge value")
    return count


def _escape(match: re.Match[str]) -> str:
    return json.dumps(match.group())[1:-1]


def _raise_exception(message: object = "") -> NoReturn:
    raise Refused(str(message))


def _strftime_now(format: str) -> str:
    if len(format) > 256 or _WIDE_FORMAT.search(format):
        raise LimitExceeded("the chat template formats too widely")
    return datetime.now().strftime(format)
