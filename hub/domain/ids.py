"""Identifiers: how they are written, and when two of them mean the same thing."""

import hashlib
import re
from collections.abc import Iterable
from datetime import datetime
from functools import lru_cache
from typing import NewType

import nhs_number

from hub.domain.value import ordered_value, value

OdsCode = NewType("OdsCode", str)
"""An NHS organisation, in upper case: three characters for a trust, five for one of its sites."""

EventId = NewType("EventId", str)
TransferId = NewType("TransferId", str)
PersonId = NewType("PersonId", str)

_ODS = re.compile(r"[A-Z0-9]{3,6}")
_SPACES = re.compile(r"[\s-]+")


_UUID = re.compile(
    r"(?:urn:uuid:)?\{?([0-9a-f]{8})-?([0-9a-f]{4})-?([0-9a-f]{4})-?([0-9a-f]{4})-?([0-9a-f]{12})\}?",
    re.ASCII | re.IGNORECASE,
)


def parse_uuid(text: str) -> str | None:
    """A UUID in its one form (RFC 9562, 4), however its author writes it: in capitals, in braces, without hyphens, as a URN. None if it is none."""
    found = _UUID.fullmatch(text.strip())
    return "-".join(found.groups()).lower() if found else None


def parse_ods(text: object) -> OdsCode | None:
    """An ODS code as text in any case and with stray spaces, or None if it cannot be one."""
    return _parse_ods(text) if isinstance(text, str) else None


@lru_cache(maxsize=1024)
def _parse_ods(text: str) -> OdsCode | None:
    code = text.strip().upper()
    return OdsCode(code) if _ODS.fullmatch(code) else None


@value
class Identifier:
    """A value and the system that issued it, both already canonical."""

    system: str
    value: str


@ordered_value
class PersonKey:
    """One way of knowing a person. ``authority`` is ``nhs`` or ``<ODS>|<system>``: a hospital's own
    numbers mean nothing outside that hospital, so they are never compared across trusts.
    """

    authority: str
    value: str


NHS_AUTHORITY = "nhs"


@value
class NhsNumber:
    """Ten digits as a trust wrote them, and what is known against them.

    ``valid``: the modulus 11 check digit is right (NHS Data Dictionary, NHS NUMBER).
    ``repeated``: one digit ten times. Those pass modulus 11 but are never issued.
    """

    digits: str
    valid: bool
    repeated: bool


@lru_cache(maxsize=1024)
def parse_nhs_number(text: str) -> NhsNumber:
    """Read an NHS number in any spacing. Never fails: what is wrong is in the answer.

    Remembered for a while: one message says the same number several times.
    """
    digits = _SPACES.sub("", text)
    if len(digits) != 10:
        return NhsNumber(digits, valid=False, repeated=False)
    repeated = len(set(digits)) == 1
    is_number = digits.isascii() and digits.isdigit()
    return NhsNumber(
        digits, valid=is_number and not repeated and _has_right_check_digit(digits), repeated=repeated
    )


def _has_right_check_digit(digits: str) -> bool:
    """Whether ten digits are a number. Those up to here are Scotland's and hold a date of birth, which has to exist as well."""
    if digits < "3113":
        return bool(nhs_number.is_valid(digits))
    return bool(nhs_number.calculate_checksum(digits[:9]) == int(digits[9]))


def time_ordered_id(at: datetime, *parts: object) -> str:
    """A UUID of version 7's shape: sorts by ``at``, and is the same for the same arguments.

    The random bits are a hash of ``parts``, so that a message that is read again before it was
    committed gets the id it had, and a replay on another machine gives the same bytes (RFC 9562, 5.7).
    """
    return _uuid_7(_time_bits(at), map(str, parts))


def made_by(event_id: str, *parts: str) -> str:
    """The id of something that an event makes; ``parts`` name it, the event's id among them. Its time is the one in the event's id, so
    a message that is read from Kafka again, days later and into a database that a backup was put back into, gives the same.
    """
    return _uuid_7(event_id[:13], parts)


def _uuid_7(time_bits: str, parts: Iterable[str]) -> str:
    rest = hashlib.sha256("\x1f".join(parts).encode()).hexdigest()
    return f"{time_bits}-7{rest[:3]}-{_VARIANT[rest[3]]}{rest[4:7]}-{rest[7:19]}"


@lru_cache(maxsize=1024)
def _time_bits(at: datetime) -> str:
    """Milliseconds since 1970 as the first twelve digits of a UUID. Remembered: one message's ids have one time."""
    time = f"{int(at.timestamp() * 1000) & 0xFFFFFFFFFFFF:012x}"
    return f"{time[:8]}-{time[8:]}"


_VARIANT = {digit: "89ab"[int(digit, 16) & 0b11] for digit in "0123456789abcdef"}
