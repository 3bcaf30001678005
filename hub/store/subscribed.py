"""What subscriptions must be told, written down in the transaction that causes it.

Without a number: a lower number could become visible after a higher one (`hub.store.subscriptions` gives them).
"""

from collections.abc import Mapping, Sequence

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from hub.domain.ids import OdsCode
from hub.domain.transfer import Transfer
from hub.store.bulk import among, insert_rows
from hub.store.tables import subscription as table
from hub.store.tables import subscription_event

_s = table.c


async def record(connection: AsyncConnection, changed: Sequence[Transfer]) -> None:
    """Write down, in the caller's transaction, what each subscription must be told of these changes."""
    trusts = {end for each in changed for end in (each.sender, each.receiver)}
    if not trusts:
        return
    query = select(_s.subscription_id, _s.trust, _s.wanted).where(
        among(_s.trust, trusts, connection), _s.status != "off"
    )
    rows = [
        {
            "subscription_id": each.subscription_id,
            "transfer_id": transfer.id,
            "version": transfer.version,
            "at": transfer.changed_at or transfer.requested_at,
        }
        for each in (await connection.execute(query)).all()
        for transfer in changed
        if transfer.party(OdsCode(each.trust)) is not None and is_wanted(transfer, each.wanted)
    ]
    await insert_rows(connection, subscription_event, rows)


def is_wanted(transfer: Transfer, wanted: Mapping[str, Sequence[str] | None]) -> bool:
    """Whether a change passes a subscription's filters; an empty filter lets everything pass."""
    states, senders, receivers = wanted.get("states"), wanted.get("senders"), wanted.get("receivers")
    return (
        (states is None or transfer.state in states)
        and (not senders or transfer.sender in senders)
        and (not receivers or transfer.receiver in receivers)
    )
