"""What somebody else needs to check the log: an export of it, and the proof of one entry."""

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from hub.audit.entries import AuditEntry, Code
from hub.audit.export import before_nodes, checkpoint_line, entry_line, header_line
from hub.audit.leaf import FIELDS, leaf_bytes
from hub.audit.merkle import inclusion_nodes, inclusion_proof
from hub.audit.note import read_checkpoint
from hub.audit.proof import proof_text
from hub.store import acts
from hub.store.sealing import hashes_of, last_checkpoint
from hub.store.tables import audit_act, audit_checkpoint
from hub.store.write import write_audit

_PAGE = 2000
_APART = 200
"""Leaves between two checkpoints of an export: more say more exactly what was changed, and cost the verifier a signature each."""


class NothingSealedError(LookupError):
    """The log has no checkpoint yet: is a sealer running?"""


class NotSealedError(LookupError):
    """An entry that is not in the log: there is none, or it waits to be sealed."""


async def export(
    engine: AsyncEngine,
    *,
    reader: str,
    now: datetime,
    since: datetime | None = None,
    old_size: int | None = None,
) -> AsyncIterator[bytes]:
    """The log from the first entry written at ``since`` or after (all of it without) to the newest checkpoint, in lines.

    ``old_size`` is the size of a checkpoint that the reader has, so that the export can be compared with it. That somebody
    exports is itself written down, before the first line. Raises NothingSealedError, LogBrokenError.
    """
    async with engine.begin() as connection:
        newest = await last_checkpoint(connection)
        if newest is None:
            raise NothingSealedError
        first = await _first(connection, since, newest.size)
        notes = await _notes(connection, first, newest.size)
        nodes = before_nodes(first, old_size)
        hashes = await hashes_of(connection, nodes)
        detail = {"first": first, "size": newest.size, **({"since": since.isoformat()} if since else {})}
        entry = AuditEntry(Code.AUDIT_EXPORTED, now, "cli", user_id=reader, detail=detail)
        await write_audit(connection, [entry])
    origin = read_checkpoint(newest.note).origin
    yield header_line(origin, first, newest.size, [hashes[node] for node in nodes], old_size)
    at = first
    for number, (size, note) in enumerate(notes, 1):
        async for stored, leaf in _leaves(engine, at, size):
            yield entry_line(stored, leaf)
        yield checkpoint_line(number, note)
        at = size


async def prove(engine: AsyncEngine, entry: int, *, reader: str, now: datetime) -> str:
    """The proof that an entry, by its number, is in the log as the newest checkpoint has it. Raises NotSealedError, LogBrokenError,
    NoteError.

    The entry travels in its proof, so that somebody has it is written down, and also that somebody asked for one that is not there.
    """
    async with engine.begin() as connection:
        newest = await last_checkpoint(connection)
        row = await acts.numbered(connection, entry)
        read = AuditEntry(
            Code.AUDIT_EXPORTED,
            now,
            "cli",
            person_id=row["person_id"] if row else None,
            transfer_id=row["transfer_id"] if row else None,
            user_id=reader,
            detail={"parameters": ["entry"], "entries": int(row is not None)},
        )
        await write_audit(connection, [read])
    if row is None or newest is None:
        raise NotSealedError(str(entry))
    read_checkpoint(newest.note)
    async with engine.connect() as connection:
        index = row["leaf_index"]
        hashes = await hashes_of(connection, inclusion_nodes(index, newest.size))
    path = inclusion_proof(index, newest.size, hashes)
    return proof_text(index, _bytes(row), path, newest.note)


async def newest_checkpoint(engine: AsyncEngine) -> str | None:
    """The newest signed checkpoint, if anything was ever sealed."""
    async with engine.connect() as connection:
        newest = await last_checkpoint(connection)
    return str(newest.note) if newest else None


async def _first(connection: AsyncConnection, since: datetime | None, size: int) -> int:
    if since is None:
        return 0
    query = select(func.min(audit_act.c.first_leaf)).where(audit_act.c.at >= since)
    found: int | None = await connection.scalar(query)
    return size if found is None else found


async def _notes(connection: AsyncConnection, first: int, size: int) -> Sequence[tuple[int, str]]:
    """Checkpoints of the export, far enough apart, the newest last."""
    c = audit_checkpoint.c
    query = select(c.size, c.note).where(c.size > first, c.size <= size).order_by(c.size)
    kept: list[tuple[int, str]] = []
    at = first
    for each in await connection.execute(query):
        if each.size - at >= _APART or each.size == size:
            kept.append((each.size, each.note))
            at = each.size
    if not kept:  # nothing was written since then: the newest checkpoint says so
        kept = [(size, await connection.scalar(select(c.note).where(c.size == size)) or "")]
    return kept


async def _leaves(engine: AsyncEngine, first: int, last: int) -> AsyncIterator[tuple[bytes, bytes]]:
    """The leaves [first, last): the hash that was stored when each was sealed, and its bytes as they are now."""
    for at in range(first, last, _PAGE):
        async with engine.connect() as connection:
            found = await acts.leaves(connection, at, min(at + _PAGE, last))
        for each in found:
            yield each["hash"], _bytes(each)


def _bytes(entry: Mapping[str, Any]) -> bytes:
    return leaf_bytes(entry["leaf_index"], {name: entry[name] for name in FIELDS})
