"""Sealing: entries that wait become leaves of the Merkle log, in one transaction with the checkpoint that covers them.

One at a time seals: whoever holds the lease. Should two do it all the same, the lock on the log makes one wait for the
other, and a leaf index is given once (it is a primary key). The order of the leaves is the order in which they are
sealed; an entry that becomes visible late is sealed late, and none is passed over, because what is read is what waits.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    LargeBinary,
    bindparam,
    column,
    delete,
    func,
    insert,
    select,
    text,
)
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from hub.audit.hashes import leaf_hash
from hub.audit.leaf import leaf_bytes
from hub.audit.merkle import Frontier, Node, range_nodes
from hub.audit.note import read_checkpoint
from hub.store.book import FIELDS
from hub.store.bulk import insert_rows, is_postgresql
from hub.store.tables import audit_checkpoint, audit_entry, audit_node, audit_pending

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
        waiting = (await connection.execute(_WAITING, {"most": most})).all()
        before = await last_checkpoint(connection)
        size = before.size if before else 0
        if not waiting:
            return Sealed(0, size, before.note if before else "")
        frontier = (
            Frontier.of(size, known.nodes)
            if known is not None and known.size == size
            else await _frontier(connection, size)
        )
        if before and read_checkpoint(before.note).root != frontier.root():
            raise LogBrokenError(size)
        leaves = [
            leaf_hash(leaf_of(index, zip(FIELDS, row, strict=True)))
            for index, row in enumerate(waiting, frontier.size)
        ]
        nodes = [
            (node, hash_)
            for leaf in leaves
            for node, hash_ in frontier.append(leaf)
            if node.level >= KEPT_LEVEL
        ]
        await _move(connection, size, leaves, [row.entry for row in waiting])
        await insert_rows(
            connection,
            audit_node,
            [{"level": node.level, "number": node.index, "hash": hash_} for node, hash_ in nodes],
        )
        note = sign(frontier.size, frontier.root())
        await connection.execute(insert(audit_checkpoint).values(size=frontier.size, at=now, note=note))
    return Sealed(len(leaves), frontier.size, note, frontier)


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
    query = (
        select(audit_entry.c.hash)
        .where(audit_entry.c.leaf_index >= first, audit_entry.c.leaf_index < first + width)
        .order_by(audit_entry.c.leaf_index)
    )
    frontier = Frontier()
    for hash_ in (await connection.execute(query)).scalars():
        frontier.append(hash_)
    if frontier.size != width:
        raise LogBrokenError(first + width)
    return frontier.root()


async def _frontier(connection: AsyncConnection, size: int) -> Frontier:
    nodes = range_nodes(0, size)
    hashes = await hashes_of(connection, nodes)
    return Frontier.of(size, [hashes[node] for node in nodes])


def leaf_of(index: int, said: Iterable[tuple[str, Any]]) -> bytes:
    """What an entry says, field by field (`hub.store.book.FIELDS`), as the leaf that is hashed."""
    return leaf_bytes(index, dict(said))


async def _lock(connection: AsyncConnection) -> None:
    # SQLite has one writer at a time anyway.
    if is_postgresql(connection):
        await connection.execute(text("SELECT pg_advisory_xact_lock(:log)"), {"log": _THE_LOG})


_SPREAD = (
    func.unnest(
        bindparam("entries", type_=ARRAY(BigInteger)),
        bindparam("indexes", type_=ARRAY(BigInteger)),
        bindparam("hashes", type_=ARRAY(LargeBinary)),
    )
    .table_valued(
        column("entry", BigInteger),
        column("leaf_index", BigInteger),
        column("hash", LargeBinary),
        name="given",
    )
    .render_derived()
)
_COPIED = [name for name in FIELDS if name != "entry"]
_GONE = (
    delete(audit_pending)
    .where(audit_pending.c.entry == _SPREAD.c.entry)
    .returning(_SPREAD.c.leaf_index, _SPREAD.c.hash, *audit_pending.c)
    .cte("gone")
)
_MOVE = insert(audit_entry).from_select(
    ["leaf_index", "hash", "entry", *_COPIED],
    select(_GONE.c.leaf_index, _GONE.c.hash, _GONE.c.entry, *(_GONE.c[name] for name in _COPIED)),
)
"""On PostgreSQL an entry does not travel back: only its number, its index and its hash do."""
_WAITING = select(*audit_pending.c).order_by(audit_pending.c.entry).limit(bindparam("most"))


async def _move(
    connection: AsyncConnection, first: int, leaves: Sequence[bytes], entries: Sequence[int]
) -> None:
    """From what waits to the log. Nothing is written over: the log's tables refuse that."""
    if is_postgresql(connection):
        given = {
            "entries": list(entries),
            "indexes": list(range(first, first + len(leaves))),
            "hashes": list(leaves),
        }
        await connection.execute(_MOVE, given)
        return
    names = ", ".join(_COPIED)
    await connection.execute(
        text(
            f"INSERT INTO audit_entry (leaf_index, hash, entry, {names}) "  # noqa: S608 - names of columns
            f"SELECT :leaf_index, :hash, entry, {names} FROM audit_pending WHERE entry = :entry"
        ),
        [
            {"leaf_index": index, "hash": hash_, "entry": entry}
            for index, (hash_, entry) in enumerate(zip(leaves, entries, strict=True), first)
        ],
    )
    await connection.execute(
        text("DELETE FROM audit_pending WHERE entry = :entry"), [{"entry": entry} for entry in entries]
    )
