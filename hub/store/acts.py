"""Sealed audit entries as they are stored: what one act wrote is one row of `audit_act`.

The entries that one message causes say the same of who, when, through which system and about whom; their code, to whom
and the detail are each one's own. So the first is said once, in columns with their indexes, and the second in a line for
each. Whoever reads the log reads the view `audit_entry`, which shows the entries one by one.

No column says anything that is not hashed: an entry is made of its row whenever it is read or checked, so a column that
was changed shows as entries that were.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import ColumnElement, Connection, RowMapping, Table, and_, event, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from hub.audit.leaf import FIELDS, OWN, SHARED, TIMES, apart
from hub.store.bulk import is_postgresql
from hub.store.tables import NOTABLE, audit_act, audit_entry
from hub.store.waiting import BATCH_MAX, Waiting

COLUMNS = ("first_leaf", "first_entry", "hashes", *SHARED, "entries")
_HASH = 32
_BETWEEN = b",\n"

Record = tuple[Any, ...]


class _Act:
    """An act whose entries are being read: leaves and numbers one after the other that share what is ``shared``."""

    def __init__(self, leaf: int, entry: int, shared: dict[str, Any]) -> None:
        self.leaf, self.entry, self.shared = leaf, entry, shared
        self.hashes: list[bytes] = []
        self.lines: list[bytes] = []

    def goes_on(self, entry: int) -> bool:
        """Whether this number is the next. An act is of one batch, so that it shows which batches are sealed."""
        return entry == self.entry + len(self.lines) and entry % BATCH_MAX != 0

    def record(self) -> Record:
        fields = _ABSENT | self.shared
        for name in TIMES:
            if (at := fields[name]) is not None:
                fields[name] = datetime.fromisoformat(at)
        text = f"[{_BETWEEN.join(self.lines).decode()}]"
        return (self.leaf, self.entry, b"".join(self.hashes), *fields.values(), text)


_ABSENT: dict[str, Any] = dict.fromkeys(SHARED)


def records(first_leaf: int, waiting: Sequence[Waiting], hashes: Sequence[bytes]) -> Iterator[Record]:
    """Entries that are sealed, the first as leaf ``first_leaf``, as rows of `audit_act` (`COLUMNS`). ``hashes`` are the leaves'."""
    act: _Act | None = None
    before, shared, to = b"", _ABSENT, b""
    for leaf, (each, hash_) in enumerate(zip(waiting, hashes, strict=True), first_leaf):
        code, head, detail = apart(each.said)
        if head != before:
            before, (read, to) = head, _read(head)
            shared = shared if shared == read else read
        if act is None or shared is not act.shared or not act.goes_on(each.entry):
            if act is not None:
                yield act.record()
            act = _Act(leaf, each.entry, shared)
        act.hashes.append(hash_)
        act.lines.append(b"{%b%b%b}" % (code, to, detail))
    if act is not None:
        yield act.record()


def _read(head: bytes) -> tuple[dict[str, Any], bytes]:
    """What an entry shares with its act, and to whom, which is its own, as it stands in its line."""
    shared: dict[str, Any] = orjson.loads(b"{%b}" % head)
    to = shared.pop("counterpart", None)
    return shared, b"" if to is None else b',"counterpart":' + orjson.dumps(to)


def entries(act: RowMapping) -> Iterator[dict[str, Any]]:
    """The entries of a row of `audit_act`, as the view `audit_entry` shows them.

    Of a row whose text cannot be read any more, as many as it has hashes, which say nothing of their own: no such leaf was hashed.
    """
    hashes = act["hashes"]
    shared = {name: act[name] for name in SHARED}
    for nr, own in enumerate(_own(act["entries"], len(hashes) // _HASH)):
        yield {
            "leaf_index": act["first_leaf"] + nr,
            "hash": hashes[nr * _HASH : (nr + 1) * _HASH],
            "entry": act["first_entry"] + nr,
            **shared,
            **_SILENT,
            **own,
        }


_SILENT: Mapping[str, Any] = dict.fromkeys(OWN)


def _own(text: str, size: int) -> Sequence[Mapping[str, Any]]:
    try:
        lines = orjson.loads(text)
    except orjson.JSONDecodeError:
        lines = None
    if isinstance(lines, list) and all(
        isinstance(each, dict) and each.keys() <= _SILENT.keys() for each in lines
    ):
        return lines
    return [_SILENT] * size


async def leaves(connection: AsyncConnection, first: int, before: int) -> list[dict[str, Any]]:
    """The entries that are the leaves [first, before), as far as there are such, in their order."""
    a = audit_act.c
    begins = select(func.max(a.first_leaf)).where(a.first_leaf <= first).scalar_subquery()
    acts = select(audit_act).where(a.first_leaf >= begins, a.first_leaf < before).order_by(a.first_leaf)
    rows = (await connection.execute(acts)).mappings()
    return [each for row in rows for each in entries(row) if first <= each["leaf_index"] < before]


async def size(connection: AsyncConnection) -> Any:
    """How many leaves there are, by where the last act ends; no whole number if a hash of its is cut."""
    last = select(audit_act.c.first_leaf + func.length(audit_act.c.hashes) / _HASH)
    return await connection.scalar(last.order_by(audit_act.c.first_leaf.desc()).limit(1)) or 0


async def numbered(connection: AsyncConnection, entry: int) -> dict[str, Any] | None:
    """The entry of this number; None if none is sealed."""
    a = audit_act.c
    act = select(audit_act).where(a.first_entry <= entry).order_by(a.first_entry.desc()).limit(1)
    row = (await connection.execute(act)).mappings().one_or_none()
    found = (each for each in entries(row) if each["entry"] == entry) if row else iter(())
    return next(found, None)


def may_be_of(entry: int) -> ColumnElement[bool]:
    """That an act's entries may have this number. The acts have an index by number."""
    a = audit_entry.c
    return and_(a.first_entry >= entry - entry % BATCH_MAX, a.first_entry <= entry)


def may_say(connection: AsyncConnection, name: str, value: str) -> ColumnElement[bool]:
    """That one of the act's entries may say this: its text has the words. That costs a tenth of taking the act apart."""
    found = func.strpos if is_postgresql(connection) else func.instr
    return found(audit_entry.c.act_entries, f'"{name}":{orjson.dumps(value).decode()}') > 0


# -- the view ---------------------------------------------------------------------------------------------------


def view(dialect: str) -> str:
    """What makes `audit_entry`. ``dialect``: postgresql or sqlite."""
    own, said, nr, hash_ = _POSTGRESQL if dialect == "postgresql" else _SQLITE
    shown = ", ".join(own.get(name, f"act.{name}") for name in FIELDS[1:])
    return f"""
    CREATE VIEW audit_entry AS
    SELECT act.first_leaf + {nr} AS leaf_index, {hash_} AS hash, act.first_entry + {nr} AS entry, {shown},
      act.first_leaf, act.first_entry, act.entries AS act_entries, {NOTABLE.text} AS notable
    FROM audit_act AS act, {said}
    """  # noqa: S608 - names of ours


_POSTGRESQL = (
    {name: f"said.{name}" for name in OWN},
    (
        "ROWS FROM (json_to_recordset(act.entries::json) AS (code text, counterpart text, detail json))"
        " WITH ORDINALITY AS said(code, counterpart, detail, nr)"
    ),
    "said.nr - 1",
    f"substring(act.hashes FROM (said.nr - 1)::integer * {_HASH} + 1 FOR {_HASH})",
)
_SQLITE = (
    {name: f"json_extract(said.value, '$.{name}') AS {name}" for name in OWN},
    "json_each(act.entries) AS said",
    "said.key",
    f"substr(act.hashes, said.key * {_HASH} + 1, {_HASH})",
)


@event.listens_for(audit_act, "after_create")
def _with_its_view(_: Table, connection: Connection, **_more: Any) -> None:
    connection.exec_driver_sql(view(connection.dialect.name))
