"""JSON Schema's `format`, as expressions that match whole texts: those that llguidance knows too.

They are for raw texts, which no grammar of JSON sees. Each matches only texts that the format's
RFC allows; of URIs, mail addresses and years not all of them.
"""

from __future__ import annotations

_YEAR = "[1-9][0-9]{3}"
_LEAP = "(?:[1-9][0-9](?:0[48]|[2468][048]|[13579][26])|(?:[2468][048]|[13579][26])00)"
_DAYS = (
    "(?:0[1-9]|1[0-2])-(?:0[1-9]|1[0-9]|2[0-8])|(?:0[13-9]|1[0-2])-(?:29|30)|(?:0[13578]|1[02])-31"
)
_DATE = f"(?:{_YEAR}-(?:{_DAYS})|{_LEAP}-02-29)"
_CLOCK = "(?:[01][0-9]|2[0-3]):[0-5][0-9]"
_TIME = rf"{_CLOCK}:[0-5][0-9](?:\.[0-9]{{1,9}})?(?:Z|[+-]{_CLOCK})"
_N = "[0-9]{1,9}"
_SPAN_OF_DAY = f"T(?:{_N}H(?:{_N}M(?:{_N}S)?)?|{_N}M(?:{_N}S)?|{_N}S)"
_SPAN_OF_DAYS = f"(?:{_N}Y(?:{_N}M(?:{_N}D)?)?|{_N}M(?:{_N}D)?|{_N}D)"
_LABEL = "[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
_HOST = rf"{_LABEL}(?:\.{_LABEL}){{0,3}}"
_ATOM = "[a-zA-Z0-9_+-]{1,16}"
_BYTE = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_HEX = "[0-9a-fA-F]"
_GROUP = f"{_HEX}{{1,4}}"
_SHORT_IPV6 = "|".join(f"(?:{_GROUP}:){{1,{n}}}(?::{_GROUP}){{1,{7 - n}}}" for n in range(1, 7))
_URI_SIGN = "(?:[a-zA-Z0-9._~!$'()*+,;=:@-]|%[0-9a-fA-F]{2})"
_URI_END = rf"(?:\?{_URI_SIGN}*)?(?:#{_URI_SIGN}*)?"
_URI_PATH = rf"(?:\/{_URI_SIGN}*)*"

FORMATS: dict[str, str] = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "duration": f"P(?:{_N}W|{_SPAN_OF_DAYS}(?:{_SPAN_OF_DAY})?|{_SPAN_OF_DAY})",
    "email": rf"{_ATOM}(?:\.{_ATOM}){{0,3}}@{_HOST}",
    "hostname": _HOST,
    "ipv4": rf"(?:{_BYTE}\.){{3}}{_BYTE}",
    "ipv6": f"(?:(?:{_GROUP}:){{7}}{_GROUP}|{_SHORT_IPV6}|(?:{_GROUP}:){{1,7}}:"
    f"|::(?:{_GROUP}:){{0,6}}{_GROUP}|::)",
    "uuid": f"{_HEX}{{8}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{12}}",
    "uri": rf"[a-zA-Z][a-zA-Z0-9+.-]{{1,15}}:(?:\/\/{_HOST}(?::[0-9]{{1,5}})?{_URI_PATH}"
    rf"|{_URI_SIGN}+{_URI_PATH}){_URI_END}",
}
"""Formats by name, ready to stand between slashes."""


def is_free(schema: object) -> bool:
    """Whether any text fits a schema."""
    if not isinstance(schema, dict):
        return True
    bounds = {"const", "enum", "pattern", "minLength", "maxLength", "allOf"}
    return not bounds & schema.keys() and schema.get("format") not in FORMATS
