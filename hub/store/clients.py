"""Systems that speak for a trust over REST: their keys, what they may, and which assertions they have used."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from hub.audit.entries import AuditEntry, Code
from hub.domain.ids import OdsCode
from hub.store import subscriptions
from hub.store.bulk import insert_ignoring
from hub.store.queries import NotFoundError
from hub.store.tables import client as table
from hub.store.tables import used_assertion
from hub.store.write import write_audit

ISSUER_MARK = "|"
"""In the id of a client of a trust's own issuer: ``<ODS>|<client>``."""

_c = table.c
_u = used_assertion.c


@dataclass(frozen=True, slots=True)
class Client:
    """One system. ``keys`` is its public JSON Web Key Set; ``scopes`` are SMART system scopes, with spaces between."""

    id: str
    trust: OdsCode
    name: str
    keys: Mapping[str, Any]
    scopes: str
    created_at: datetime
    revoked_at: datetime | None = None


async def find(engine: AsyncEngine, client_id: str) -> Client | None:
    """A client, revoked ones too."""
    async with engine.connect() as connection:
        row = (await connection.execute(select(table).where(_c.client_id == client_id))).one_or_none()
    return _client(row) if row else None


async def all_of(engine: AsyncEngine) -> list[Client]:
    """Every client, by trust."""
    async with engine.connect() as connection:
        return [_client(row) for row in await connection.execute(select(table).order_by(_c.trust, _c.name))]


async def add(engine: AsyncEngine, client: Client, by: str | None = None) -> None:
    """Let a system in; audited. ``by`` is the operator."""
    async with engine.begin() as connection:
        await connection.execute(
            insert(table).values(
                client_id=client.id,
                trust=client.trust,
                name=client.name,
                keys=client.keys,
                scopes=client.scopes,
                created_at=client.created_at,
            )
        )
        await _changed(connection, client.id, client.trust, "client-added", client.created_at, by)


async def rotate(
    engine: AsyncEngine, client_id: str, keys: Mapping[str, Any], now: datetime, by: str | None = None
) -> None:
    """Replace a client's keys; audited. Put the old key into the new set for as long as both are in use.

    Raises NotFoundError if no client that is not revoked has this id.
    """
    async with engine.begin() as connection:
        await _update(connection, client_id, {"keys": keys}, "client-keys-rotated", now, by)


async def revoke(engine: AsyncEngine, client_id: str, now: datetime, by: str | None = None) -> None:
    """Shut a client out, tokens it holds and subscriptions it made included; audited. A facade hears of it within a second.

    A client of a trust's own issuer is shut out there, which the hub does not hear of: here its subscriptions end.
    Raises NotFoundError.
    """
    async with engine.begin() as connection:
        is_ours = True
        try:
            await _update(connection, client_id, {"revoked_at": now}, "client-revoked", now, by)
        except NotFoundError:
            is_ours = False
        ended = await subscriptions.end_of_client(connection, client_id, now)
        if is_ours:
            return
        if not ended or ISSUER_MARK not in client_id:
            raise NotFoundError(client_id)
        trust = client_id.partition(ISSUER_MARK)[0]
        await _changed(connection, client_id, trust, "client-revoked", now, by)


async def use_assertion(
    engine: AsyncEngine, client_id: str, jti: str, expires_at: datetime, now: datetime
) -> bool:
    """Write down that an assertion was exchanged; False if it was before. Expired ones are forgotten."""
    async with engine.begin() as connection:
        await connection.execute(delete(used_assertion).where(_u.expires_at < now))
        row = {"client_id": client_id, "jti": jti, "expires_at": expires_at}
        done = await connection.execute(insert_ignoring(connection, used_assertion).values(row))
        return bool(done.rowcount)


async def _update(
    connection: AsyncConnection,
    client_id: str,
    values: Mapping[str, Any],
    what: str,
    now: datetime,
    by: str | None,
) -> None:
    trust = await connection.scalar(
        update(table)
        .where(_c.client_id == client_id, _c.revoked_at.is_(None))
        .values(**values)
        .returning(_c.trust)
    )
    if trust is None:
        raise NotFoundError(client_id)
    await _changed(connection, client_id, trust, what, now, by)


async def _changed(
    connection: AsyncConnection, client_id: str, trust: str, what: str, now: datetime, by: str | None
) -> None:
    detail = {"change": what, "client": client_id}
    entry = AuditEntry(Code.CONFIG_CHANGED, now, "cli", trust=trust, user_id=by, detail=detail)
    await write_audit(connection, [entry])


def _client(row: Any) -> Client:
    return Client(
        row.client_id, OdsCode(row.trust), row.name, row.keys, row.scopes, row.created_at, row.revoked_at
    )
