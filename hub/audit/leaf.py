"""One entry of the log as the bytes that are hashed. Pure.

A JSON object in one form only: UTF-8, no spaces, the keys in the order below, absent values left out, times in
UTC with six digits and Z. An entry that is read back from a database gives the same bytes, and no two entries
give the same. The index is in it, so that a leaf also proves its place.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from operator import attrgetter
from typing import Any, Final

import orjson

from hub.audit.entries import AuditEntry

VERSION: Final = 1
"""Of this form. A leaf that is sealed keeps the form in which it was sealed."""

FIELDS: Final = (
    "entry", "code", "at", "occurred_at", "outcome", "trust", "system", "counterpart", "event_id", "person_id",
    "transfer_id", "request_id", "user_id", "role_id", "client_id", "detail",
)  # fmt: skip
"""The entry's fields, in the order in which they are written."""

_HEAD = FIELDS[1:-1]
_head_of = attrgetter(*_HEAD)
TIMES: Final = ("at", "occurred_at")
"""The fields that are times."""
_KNOWN = frozenset(FIELDS)
_DETAIL = b',"detail":'
"""Before the detail, and nowhere before that: within a text a quotation mark is escaped."""


def leaf_bytes(index: int, fields: Mapping[str, Any]) -> bytes:
    """The entry with these ``fields`` as leaf number ``index``. A field that is None is absent.

    Times are aware datetimes; ``detail`` is what a JSON object reads back as, and its keys are sorted.
    """
    return as_leaf(index, fields.get("entry"), said_bytes(fields))


def said_bytes(fields: Mapping[str, Any]) -> bytes:
    """What an entry says, before it has a number and a place: the leaf without the beginning that `as_leaf` gives it."""
    if not fields.keys() <= _KNOWN:  # what is not written here is not protected
        raise ValueError(f"not a field of an audit entry: {sorted(fields.keys() - _KNOWN)}")
    return _said(map(fields.get, _HEAD), fields.get("detail"))


def said_by(entry: AuditEntry) -> bytes:
    """`said_bytes` of an entry that was written just now."""
    return _said(_head_of(entry), entry.detail)


def _said(head: Iterable[Any], detail: Mapping[str, Any] | None) -> bytes:
    said = {name: given for name, given in zip(_HEAD, head, strict=True) if given is not None}
    for name in TIMES:
        if name in said:
            said[name] = _time(said[name])
    begun = orjson.dumps(said)
    if detail is None:
        return begun
    return b"%b%b%b}" % (begun[:-1], _DETAIL, orjson.dumps(detail, option=orjson.OPT_SORT_KEYS))


def apart(said: bytes) -> tuple[bytes, bytes | None]:
    """What an entry says (`said_bytes`) without its detail, and the detail: JSON objects both. None if it has no detail."""
    head, mark, rest = said.partition(_DETAIL)
    return (head + b"}", rest[:-1]) if mark else (head, None)


def as_leaf(index: int, entry: int | None, said: bytes) -> bytes:
    """What an entry says (`said_bytes`) as leaf number ``index``."""
    number = b"" if entry is None else b',"entry":%d' % entry
    return b'{"leaf":%d,"v":%d%b,%b' % (index, VERSION, number, said[1:])


@lru_cache(maxsize=4096)
def _time(at: datetime) -> str:
    """``2026-03-01T09:10:00.000000Z``. The entries of one message, and of one batch, share their times."""
    if at.tzinfo is not UTC:
        if at.tzinfo is None:
            raise ValueError("a time without a zone does not say when")
        at = at.astimezone(UTC)
    return at.isoformat(timespec="microseconds")[:-6] + "Z"
