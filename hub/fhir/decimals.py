"""Decimals keep the digits they came with: FHIR's 1.50 says more than 1.5 (R4, 2.24.0.1: precision is significant)."""

import codecs
import json
import re
from decimal import Decimal
from typing import Any

import orjson

_JSON_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_HAS_A_FRACTION = re.compile(rb"\.\d+\s*[,}\]eE]")
"""A number with a fraction, in JSON; now and then text that looks like one, which costs time and nothing else."""


def decimal(text: str) -> float | Decimal:
    """The number that ``text`` writes: a float where that is written the same way, or where JSON may not write it so."""
    number = float(text)
    return number if repr(number) == text or not _JSON_NUMBER.fullmatch(text) else Decimal(text)


def loads(raw: bytes) -> Any:
    """A JSON tree whose decimals keep their digits. Raises orjson.JSONDecodeError, also for what is deeper than Python reads.

    A mark of UTF-8 before it, as .NET writes one, is passed over (RFC 8259, 8.1 allows that). A number without a fraction but with an exponent (``1e3``) keeps its value only.
    """
    tree = orjson.loads(raw.removeprefix(codecs.BOM_UTF8))
    if _HAS_A_FRACTION.search(raw) is None:
        return tree
    try:
        return json.loads(raw, parse_float=decimal, parse_int=_whole)
    except RecursionError:
        # Somewhat below orjson's own 1,024 levels; in its words.
        raise orjson.JSONDecodeError("Recursion limit reached", "", 0) from None


def is_too_deep(error: orjson.JSONDecodeError) -> bool:
    """Whether `loads` failed because of the levels: orjson's own limit is 1,024, and its words changed between versions."""
    return "recursion" in error.msg.lower() or "depth" in error.msg.lower()


def _whole(text: str) -> int | float | Decimal:
    """A whole number; one beyond 64 bits, which orjson does not write, as the decimal it must be."""
    if len(text) <= 20 and -(2**63) <= (number := int(text)) < 2**64:
        return number
    return decimal(text)


def dumps(tree: Any, option: int = 0) -> bytes:
    """JSON with every digit of every decimal; an exponent may move (0.00000010 is 1.0E-7). Raises orjson.JSONEncodeError."""
    return orjson.dumps(tree, default=_with_its_digits, option=option)


def _with_its_digits(value: Any) -> orjson.Fragment:
    if isinstance(value, Decimal):
        return orjson.Fragment(str(value))
    raise TypeError(type(value).__name__)
