"""Whether messages move: what a health check asks. A process that is there and does nothing is not well."""

from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncEngine

from hub.domain.trust import Directory
from hub.store import outbox


async def untried(engine: AsyncEngine, directory: Directory, patience: timedelta, now: datetime) -> list[str]:
    """The hospitals (ODS) whose next message has been due for longer than ``patience`` and nobody tries: no dispatcher runs.

    Whoever was sent something just now is being served: after an outage what waits behind has been due for hours until its turn comes. What
    a hospital fetches by itself is its own affair. Raises what the database raises.
    """
    fetches = {each.ods for each in directory if each.doors.outward == "polled"}
    overdue = [
        receiver
        for receiver, due_at in await outbox.next_due(engine)
        if receiver not in fetches and now - due_at > patience
    ]
    served = await outbox.sent_to(engine, overdue, now - patience) if overdue else set()
    return [each for each in overdue if each not in served]
