"""Repairs of one primitive value whose FHIR type is known. Each is a function that may run again and then does nothing."""

import math
import re
from collections.abc import Callable
from datetime import date, timedelta
from decimal import Decimal
from functools import cache
from typing import Any

from hub.fhir.decimals import decimal
from hub.fhir.elements import Element
from hub.journey.repair.ids import well_formed
from hub.journey.repair.rules import RuleId
from hub.journey.uk_time import with_offset

Mended = tuple[Any, str] | None
"""The new value and where the rule stands; None if there was nothing to mend."""

_TIMES = frozenset({"dateTime", "instant"})
_WHOLE = frozenset({"integer", "unsignedInt", "positiveInt"})
_TEXTS = frozenset({"string", "markdown", "code", "id", "uri", "url", "canonical", "oid", "uuid"})
_NO_SPACES = (
    _TIMES | {"date", "time", "boolean", "code", "id", "uri", "url", "canonical", "oid", "uuid", "decimal"}
) | _WHOLE

_INTEGER = re.compile(r"[+-]?[0-9]{1,15}")
_DECIMAL = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")

_DAY = r"([0-9]{4}-[0-9]{2}-[0-9]{2})"
_SEPARATOR = re.compile(_DAY + r"(?:[ \t]+|[ \t]*t[ \t]*)([0-9]{2}:[0-9]{2}.*)")
_ZONE = re.compile(_DAY + r"(T[0-9:.]+)\s*(?:(z|Z)|([+-])\s*([0-9]{1,2}):?([0-9]{2})?)")
_DAY_FIRST = re.compile(r"([0-9]{1,2})([/.-])([0-9]{1,2})\2([0-9]{4})(?:[ \tT]+([0-9]{2}:[0-9]{2}.*))?")
_MIDNIGHT = re.compile(_DAY + r"T24:00((?::00(?:\.0+)?)?(?:Z|[+-].*)?)")
_NO_SECONDS = re.compile(f"({_DAY}T[0-9]{{2}}:[0-9]{{2}})(Z|[+-].*)?")


def _spaces(value: Any, element: Element, _zone: str) -> Mended:
    if not isinstance(value, str):
        return None
    tidy = " ".join(value.split()) if element.type == "code" else value.strip()
    return (tidy, "") if tidy != value else None


def _boolean_text(value: Any, _element: Element, _zone: str) -> Mended:
    if not isinstance(value, str):
        return None
    truth = {"true": True, "false": False}.get(value.strip().lower())
    return None if truth is None else (truth, "")


def _number_text(value: Any, element: Element, _zone: str) -> Mended:
    if not isinstance(value, str):
        return None
    digits = value.strip()
    if _INTEGER.fullmatch(digits):
        return int(digits), ""
    if element.type == "decimal" and _DECIMAL.fullmatch(digits) and math.isfinite(float(digits)):
        return decimal(digits), ""
    return None


def _text_number(value: Any, _element: Element, _zone: str) -> Mended:
    if isinstance(value, bool):
        return ("true" if value else "false"), ""
    return (str(value), "") if isinstance(value, int | float | Decimal) else None


_IDS = frozenset({"versionId", "identifier"})
"""Elements of this type that name a message or a version: Meta.versionId, MessageHeader.response.identifier."""


def _id_form(value: Any, element: Element, _zone: str) -> Mended:
    if not isinstance(value, str) or not value or element.name not in _IDS:
        return None
    after = well_formed(value)
    return (after, "") if after != value else None


def _folded(code: str) -> str:
    return re.sub(r"[\s_]+", "-", code.strip().lower())


def _code_case(value: Any, element: Element, _zone: str) -> Mended:
    if not isinstance(value, str) or not element.codes or value in element.codes:
        return None
    meant = [code for code in element.codes if _folded(code) == _folded(value)]
    return (meant[0], "") if len(meant) == 1 else None


def _day_first(value: Any, element: Element, _zone: str) -> Mended:
    parts = _DAY_FIRST.fullmatch(value) if isinstance(value, str) else None
    if parts is None or (element.type == "date" and parts[5]):
        return None
    try:
        day = date(int(parts[4]), int(parts[3]), int(parts[1]))
    except ValueError:
        return None  # the month came first, or there is no such day
    return day.isoformat() + (f"T{parts[5]}" if parts[5] else ""), ""


def _time_separator(value: Any, _element: Element, _zone: str) -> Mended:
    if not isinstance(value, str):
        return None
    parts = _SEPARATOR.fullmatch(value)
    return (f"{parts[1]}T{parts[2]}", "") if parts else None


def _time_offset(value: Any, _element: Element, _zone: str) -> Mended:
    if not isinstance(value, str):
        return None
    parts = _ZONE.fullmatch(value)
    if parts is None:
        return None
    offset = "Z" if parts[3] else f"{parts[4]}{int(parts[5]):02d}:{parts[6] or '00'}"
    after = f"{parts[1]}{parts[2]}{offset}"
    return (after, "") if after != value else None


def _time_midnight(value: Any, _element: Element, _zone: str) -> Mended:
    if not isinstance(value, str):
        return None
    parts = _MIDNIGHT.fullmatch(value)
    if parts is None:
        return None
    try:
        day = date.fromisoformat(parts[1]) + timedelta(days=1)
    except (ValueError, OverflowError):
        return None
    return f"{day.isoformat()}T00:00{parts[2]}", ""


def _time_seconds(value: Any, element: Element, _zone: str) -> Mended:
    if not isinstance(value, str):
        return None
    if element.type == "time":
        return (f"{value}:00", "") if re.fullmatch(r"[0-9]{2}:[0-9]{2}", value) else None
    parts = _NO_SECONDS.fullmatch(value)
    return (f"{parts[1]}:00{parts[3] or ''}", "") if parts else None


def _tz_assumed(value: Any, _element: Element, zone: str) -> Mended:
    if not isinstance(value, str):
        return None
    placed = with_offset(value, zone)
    return (placed.text, f"{zone}: {placed.assumed}") if placed else None


Mender = Callable[[Any, Element, str], Mended]

_MENDERS: tuple[tuple[RuleId, frozenset[str], Mender], ...] = (
    (RuleId.SPACES, _NO_SPACES, _spaces),
    (RuleId.BOOLEAN_TEXT, frozenset({"boolean"}), _boolean_text),
    (RuleId.NUMBER_TEXT, _WHOLE | {"decimal"}, _number_text),
    (RuleId.TEXT_NUMBER, _TEXTS, _text_number),
    (RuleId.ID_FORM, frozenset({"id"}), _id_form),
    (RuleId.CODE_CASE, frozenset({"code"}), _code_case),
    (RuleId.DAY_FIRST, _TIMES | {"date"}, _day_first),
    (RuleId.TIME_SEPARATOR, _TIMES, _time_separator),
    (RuleId.TIME_OFFSET, _TIMES, _time_offset),
    (RuleId.TIME_MIDNIGHT, _TIMES, _time_midnight),
    (RuleId.TIME_SECONDS, _TIMES | {"time"}, _time_seconds),
    (RuleId.TZ_ASSUMED, _TIMES, _tz_assumed),
)
"""In the order in which they have to run: a time gets its T before its seconds, and those before its offset."""


@cache
def menders(primitive: str, switched_off: frozenset[str]) -> tuple[tuple[RuleId, Mender], ...]:
    """What may mend a value of a primitive type for a trust, in order."""
    return tuple(
        (rule, mend) for rule, types, mend in _MENDERS if primitive in types and rule not in switched_off
    )
