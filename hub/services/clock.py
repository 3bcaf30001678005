"""The clock: looks every few seconds which transfers have waited too long, and tells both hospitals; whether a message
that came before its request can be taken in by now; which hospital was not given its messages in time; whose broken
glass is whole again; and whether the audit is sealed in time.

Several may run: each rings under the person's lock, and what was rung is rung once. All it knows is in the database, so that it
survives restarts; after an outage it tells the level that is reached by then.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from itertools import takewhile

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from hub.domain.rejection import Why
from hub.journey.decide import Journey
from hub.services.heard import Heard
from hub.store.break_glass import close_ended
from hub.store.clocks import is_anything_due, recount, ring_due, watch_deliveries, watch_sealing
from hub.store.intake import NotWritableError, StoreUnavailableError
from hub.store.queries import quarantined
from hub.store.unit_of_work import NotQuarantinedError, UnitOfWork
from hub.telemetry.log import Log, fault_of

_EARLY_WHY = (Why.TRANSFER_UNKNOWN, Why.RECEIVER_UNKNOWN)
_EARLY = timedelta(days=1)
"""So long the hub looks by itself for the request of a message that came before it; then a human has to."""
_ASIDE = timedelta(minutes=10)
"""So long a transfer that cannot be rung is passed over, before it is tried, and said, again."""


class ClockService:
    """Rings until told to stop."""

    def __init__(
        self,
        engine: AsyncEngine,
        journey: Journey,
        now: Callable[[], datetime],
        log: Log,
        *,
        poll_s: float,
        delivery_late_s: float = 60,
        sealing_late_s: float = 60,
        heard: Heard | None = None,
    ) -> None:
        self._engine = engine
        self._journey = journey
        self._unit = UnitOfWork(engine, journey, now, log)
        self._looked: datetime | None = None
        self._now = now
        self._log = log
        self._poll_s = poll_s
        self._delivery_late = timedelta(seconds=delivery_late_s)
        self._sealing_late = timedelta(seconds=sealing_late_s)
        self._heard = heard
        self._recounted: str | None = ""
        """The open transfer up to which it was counted anew when they are due; None: that is done."""
        self._aside: dict[str, datetime] = {}
        """Transfers that could not be rung, and until when they are passed over."""

    async def run(self, stop: asyncio.Event) -> None:
        """Until ``stop``. A database that is away is waited for: nothing is lost, it only rings later."""
        while not stop.is_set():
            goes_on = False
            try:
                rung = await self.once()
                await self.look_for_requests()
                await self.look_at_deliveries()
                await close_ended(self._engine, self._now())
                await self.look_at_the_log()
                # The last: it waits for whoever holds a patient's record, and nothing else may.
                await self.look_at_limits()
                goes_on = rung > 0 or self._recounted is not None
            except (OSError, TimeoutError, SQLAlchemyError, StoreUnavailableError) as error:
                self._log.warning("clock.waits", fault=fault_of(error))
            if not goes_on:
                with suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), self._poll_s)

    async def once(self) -> int:
        """Ring what is due now, and what the hub has heard enough for (`hub.services.heard`); how many transfers that were."""
        now, hearing = self._now(), None
        if self._heard is not None and await is_anything_due(self._engine, now):
            hearing = await self._heard.look(now)
        self._aside = {each: until for each, until in self._aside.items() if now < until}
        rang = await ring_due(
            self._engine, self._journey.clocks, self._journey.directory, now, hearing, self._aside
        )
        for transfer_id, error in rang.failed.items():
            self._aside[transfer_id] = now + _ASIDE
            self._log.error("clock.cannot-ring", transfer_id=transfer_id, fault=fault_of(error))
        for each in rang.rung:
            self._log.warning(
                "clock.rang",
                transfer_id=each.taken.transfer.id,
                clock=each.taken.fact.clock,
                step=each.taken.fact.step,
                unread=sorted(
                    {each.taken.transfer.sender, each.taken.transfer.receiver} & hearing.unread
                    if hearing
                    else ()
                ),
            )
        return len(rang.rung)

    async def look_at_limits(self) -> None:
        """After the start, look at a hundred open transfers more whether they are due at another time by the limits as they are now."""
        if self._recounted is None:
            return
        found = await recount(self._engine, self._journey.clocks, self._recounted)
        for transfer_id, error in found.failed.items():
            self._log.error("clock.cannot-ring", transfer_id=transfer_id, fault=fault_of(error))
        if found.changed:
            self._log.info("clock.recounted", transfers=found.changed)
        self._recounted = found.last

    async def look_at_deliveries(self) -> list[str]:
        """Open an incident for each hospital that was not given something for too long, close it when it was."""
        late = await watch_deliveries(self._engine, self._delivery_late, self._now())
        for receiver in late:
            self._log.error("delivery.late", receiver=receiver)
        return late

    async def look_at_the_log(self) -> None:
        """Open an incident while audit entries wait too long to be sealed, close it when they are."""
        since = await watch_sealing(self._engine, self._sealing_late, self._now())
        if since is not None:
            self._log.error("sealing.late", since=since.isoformat())

    async def look_for_requests(self) -> int:
        """Run again what came before its request, or before the process that read it knew the trust that it is for, and is due to be
        looked at; how many were taken in.

        Topics of different trusts, and partitions of one, are not read in the order in which hospitals act; and while a trust joins, a worker
        that began before works beside one that began after.
        """
        now, taken = self._now(), 0
        early = await quarantined(self._engine, why=_EARLY_WHY, after=now - _EARLY, limit=None)
        for row in early:
            event_id = row["event_id"]
            if row["trust"] not in self._journey.directory:
                continue  # it has left, or joined after this process began: whoever knows it looks
            if not is_due(row["received_at"], self._looked, now, timedelta(seconds=self._poll_s)):
                continue
            try:
                effects = await self._unit.retry_early(event_id)
            except NotQuarantinedError:
                continue
            except NotWritableError as error:
                self._log.error("fault", event_id=event_id, fault=str(error))
                continue
            except (OSError, TimeoutError, SQLAlchemyError, StoreUnavailableError):
                raise
            except Exception as error:  # noqa: BLE001 - one message must not keep the clock from all that it looks at
                self._log.error("fault", event_id=event_id, fault=fault_of(error))
                continue
            if effects is not None:
                taken += 1
                self._log.info("message.found-its-transfer", event_id=event_id, trust=effects.received.trust)
        self._looked = now
        return taken


def is_due(received_at: datetime, looked: datetime | None, now: datetime, first: timedelta) -> bool:
    """Whether one of the moments ``first``, twice ``first``, four times … after ``received_at`` lies between the last
    look and now; at the first look of a process everything is due.
    """
    if looked is None:
        return True
    passed = takewhile(lambda age: received_at + age <= now, (first * 2**n for n in range(64)))
    return any(received_at + age > looked for age in passed)
