"""Whether messages move: what a health check asks. A process that is there and does nothing is not well."""

from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncEngine

from hub.domain.trust import Directory
from hub.store import outbox


async def untried(engine: AsyncEngine, directory: Directory, patience: timedelta, now: datetime) -> list[str]:
    """The hospitals (ODS) to whom something is owed for longer than ``patience`` and nothing was even tried: no dispatcher runs.

    What a hospital fetches by itself is its own affair. Raises what the database raises.
    """
    fetches = {each.ods for each in directory if each.doors.outward == "polled"}
    return [
        row.receiver
        for row in await outbox.waiting(engine)
        if row.receiver not in fetches and row.attempts == 0 and now - row.oldest > patience
    ]
