"""The clock: looks every few seconds which transfers have waited too long, and tells both hospitals.

Several may run: each rings under the person's lock, and what was rung is rung once. All it knows is in the database, so that it
survives restarts; after an outage it tells the level that is reached by then.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from hub.domain.clocks import Clocks
from hub.domain.trust import Directory
from hub.store.clocks import ring_due
from hub.telemetry.log import Log, fault_of


class ClockService:
    """Rings until told to stop."""

    def __init__(
        self,
        engine: AsyncEngine,
        clocks: Clocks,
        directory: Directory,
        now: Callable[[], datetime],
        log: Log,
        *,
        poll_s: float,
    ) -> None:
        self._engine = engine
        self._clocks = clocks
        self._directory = directory
        self._now = now
        self._log = log
        self._poll_s = poll_s

    async def run(self, stop: asyncio.Event) -> None:
        """Until ``stop``. A database that is away is waited for: nothing is lost, it only rings later."""
        while not stop.is_set():
            rung = 0
            try:
                rung = await self.once()
            except (OSError, TimeoutError, SQLAlchemyError) as error:
                self._log.warning("clock.waits", fault=fault_of(error))
            if not rung:
                with suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), self._poll_s)

    async def once(self) -> int:
        """Ring what is due now; how many transfers that were."""
        rung = await ring_due(self._engine, self._clocks, self._directory, self._now())
        for each in rung:
            self._log.warning(
                "clock.rang",
                transfer_id=each.taken.transfer.id,
                clock=each.taken.fact.clock,
                step=each.taken.fact.step,
            )
        return len(rung)
