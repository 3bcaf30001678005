"""Sealing: entries that wait become leaves of the Merkle log, in one transaction with the checkpoint that covers them.

One at a time seals: whoever holds the lease. Should two do it all the same, the lock on the log makes one wait for the
other, and a leaf index is given once (it is a primary key). The order of the leaves is the order in which they are
sealed; an entry that becomes visible late is sealed late, and none is passed over, because what is read is what waits.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, delete, func, insert, select, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from hub.audit.hashes import leaf_hash
from hub.audit.leaf import as_leaf
from hub.audit.merkle import Frontier, Node, range_nodes
from hub.audit.note import NoteError, read_checkpoint
from hub.store import acts
from hub.store.bulk import insert_records, insert_rows, is_postgresql, numbered
from hub.store.tables import audit_act, audit_batch, audit_checkpoint, audit_node
from hub.store.waiting import entries

KEPT_LEVEL = 8
"""Subtrees of 256 leaves and more are stored; what is below is folded again from the leaves when it is asked for."""
_THE_LOG = 0x48554C4F47
"""The advisory lock of whoever writes the log."""

Sign = Callable[[int, bytes], str]
"""Size and root → the signed checkpoint."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """What one run did. ``note`` is the checkpoint after it, empty if there never was anything to seal; ``frontier`` is the tree's
    edge after it, to go on from, if anything was sealed.
    """

    entries: int
    size: int
    note: str
    frontier: Frontier | None = field(default=None, compare=False, repr=False)


class LogBrokenError(Exception):
    """The leaves in the database are not those that the newest checkpoint was signed for: nothing is added to such a log.

    Entries wait. `hub audit export` and `hub audit verify` say what was done to it.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        super().__init__(f"The log's {size} entries do not have the root that was signed for them.")


async def seal(
    engine: AsyncEngine, sign: Sign, now: datetime, *, most: int = 5000, known: Frontier | None = None
) -> Sealed:
    """Seal what waits, at most so many entries, and sign the log as it is then. Raises LogBrokenError.

    ``known`` is the edge after the caller's last run: where the log is still that long it need not be read from the database,
    which takes a query for each subtree.
    """
    async with engine.begin() as connection:
        await _lock(connection)
        batches = (await connection.execute(_WAITING, {"most": most})).all()
        before = await last_checkpoint(connection)
        size = before.size if before else 0
        if not batches:
            return Sealed(0, size, before.note if before else "")
        frontier = (
            Frontier.of(size, known.nodes)
            if known is not None and known.size == size
            else await _frontier(connection, size)
        )
        if not await _is_as_signed(connection, before, frontier):
            raise LogBrokenError(size)
        waiting = [entry for row in batches for entry in entries(row.batch, row.entries)]
        leaves = [leaf_hash(as_leaf(size + at, *each)) for at, each in enumerate(waiting)]
        nodes = frontier.extend(leaves, KEPT_LEVEL)
        sealed = list(acts.records(size, waiting, leaves))
        await insert_records(connection, audit_act, acts.COLUMNS, sealed)
        await _let_go(connection, [row.batch for row in batches])
        await insert_rows(
            connection,
            audit_node,
            [{"level": node.level, "number": node.index, "hash": hash_} for node, hash_ in nodes],
        )
        note = sign(frontier.size, frontier.root())
        await connection.execute(insert(audit_checkpoint).values(size=frontier.size, at=now, note=note))
    return Sealed(len(leaves), frontier.size, note, frontier)


async def _is_as_signed(connection: AsyncConnection, newest: Any | None, frontier: Frontier) -> bool:
    """Whether the log is the one that its newest checkpoint, if there is one, was signed for: that long, and not longer, with this root."""
    try:
        signed = newest is None or read_checkpoint(newest.note).root == frontier.root()
    except NoteError:
        return False
    return signed and await acts.size(connection) == frontier.size


async def last_checkpoint(connection: AsyncConnection) -> Any | None:
    """``size``, ``at`` and ``note`` of the newest; None if nothing was ever sealed."""
    newest = select(audit_checkpoint).order_by(audit_checkpoint.c.size.desc()).limit(1)
    return (await connection.execute(newest)).one_or_none()


async def hashes_of(connection: AsyncConnection, nodes: Sequence[Node]) -> dict[Node, bytes]:
    """The hashes of complete subtrees: stored ones as they are, smaller ones folded from the leaves' stored hashes."""
    found: dict[Node, bytes] = {}
    stored = [node for node in nodes if node.level >= KEPT_LEVEL]
    for node in stored:
        query = select(audit_node.c.hash).where(
            audit_node.c.level == node.level, audit_node.c.number == node.index
        )
        hash_: bytes | None = await connection.scalar(query)
        if hash_ is None:
            raise LogBrokenError((node.index + 1) << node.level)
        found[node] = hash_
    for node in nodes:
        if node.level < KEPT_LEVEL:
            found[node] = await _folded(connection, node)
    return found


async def _folded(connection: AsyncConnection, node: Node) -> bytes:
    first, width = node.index << node.level, 1 << node.level
    frontier = Frontier()
    frontier.extend([each["hash"] for each in await acts.leaves(connection, first, first + width)])
    if frontier.size != width:
        raise LogBrokenError(first + width)
    return frontier.root()


async def _frontier(connection: AsyncConnection, size: int) -> Frontier:
    nodes = range_nodes(0, size)
    hashes = await hashes_of(connection, nodes)
    return Frontier.of(size, [hashes[node] for node in nodes])


async def _lock(connection: AsyncConnection) -> None:
    # SQLite has one writer at a time anyway.
    if is_postgresql(connection):
        await connection.execute(text("SELECT pg_advisory_xact_lock(:log)"), {"log": _THE_LOG})


_BEFORE = func.sum(audit_batch.c.size).over(order_by=audit_batch.c.batch) - audit_batch.c.size
_NUMBERED = select(*audit_batch.c, _BEFORE.label("before")).subquery()
_WAITING = (
    select(_NUMBERED.c.batch, _NUMBERED.c.entries)
    .where(_NUMBERED.c.before < bindparam("most"))
    .order_by(_NUMBERED.c.batch)
)
"""Whole batches, until there are as many entries as are wanted."""


async def _let_go(connection: AsyncConnection, batches: Sequence[int]) -> None:
    """What is sealed does not wait any more. Only that may be deleted: the table's trigger refuses the rest."""
    await connection.execute(delete(audit_batch).where(numbered(audit_batch.c.batch, batches, connection)))
