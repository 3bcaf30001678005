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
OWN: Final = ("code", "counterpart", "detail")
"""What each entry of an act says for itself."""
SHARED: Final = tuple(name for name in FIELDS if name not in ("entry", *OWN))
"""What the entries of one act have in common."""

_BETWEEN = FIELDS[2:-1]
_shared_by = attrgetter(*_BETWEEN)
TIMES: Final = ("at", "occurred_at")
"""The fields that are times."""
_KNOWN = frozenset(FIELDS)
_AT = b',"at":'
_DETAIL = b',"detail":'
"""Before the time and before the detail, and nowhere before that: within a text a quotation mark is escaped."""


def leaf_bytes(index: int, fields: Mapping[str, Any]) -> bytes:
    """The entry with these ``fields`` as leaf number ``index``. A field that is None is absent.

    Times are aware datetimes; ``detail`` is what a JSON object reads back as, and its keys are sorted.
    """
    return as_leaf(index, fields.get("entry"), said_bytes(fields))


def said_bytes(fields: Mapping[str, Any]) -> bytes:
    """What an entry says, before it has a number and a place: the leaf without the beginning that `as_leaf` gives it."""
    if not fields.keys() <= _KNOWN:  # what is not written here is not protected
        raise ValueError(f"not a field of an audit entry: {sorted(fields.keys() - _KNOWN)}")
    return _said(fields.get("code"), _between(map(fields.get, _BETWEEN)), fields.get("detail"))


def said_by(entries: Iterable[AuditEntry]) -> list[bytes]:
    """`said_bytes` of entries that were written just now. What one message caused differs in code and detail, mostly."""
    found = []
    between, before = b"", None
    for entry in entries:
        if (shared := _shared_by(entry)) != before:
            between, before = _between(shared), shared
        found.append(_said(entry.code, between, entry.detail))
    return found


def _between(shared: Iterable[Any]) -> bytes:
    """What stands between the code and the detail, as members of a JSON object."""
    said = {name: given for name, given in zip(_BETWEEN, shared, strict=True) if given is not None}
    for name in TIMES:
        if name in said:
            said[name] = _time(said[name])
    return orjson.dumps(said)[1:-1]


def _said(code: str | None, between: bytes, detail: Mapping[str, Any] | None) -> bytes:
    tail = b"" if detail is None else _DETAIL + orjson.dumps(detail, option=orjson.OPT_SORT_KEYS)
    return b'{"code":%b,%b%b}' % (orjson.dumps(code), between, tail)


def apart(said: bytes) -> tuple[bytes, bytes, bytes]:
    """What an entry says (`said_bytes`) in three: its code, what stands between, its detail, each as members of a JSON object
    with the comma before it, if it is not the first. The last is empty if the entry has no detail.
    """
    code, _, rest = said.partition(_AT)
    between, mark, detail = rest.partition(_DETAIL)
    if not mark:
        between = between[:-1]
    return code[1:], _AT[1:] + between, mark + detail[:-1]


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
