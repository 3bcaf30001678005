"""The sealer: every moment it makes what was written in the audit leaves of the log, signs the log as it is then, and
hands the signed checkpoints out.

One seals at a time (a lease); another takes over when it dies. A checkpoint in the database is worth little, since who
could change the log could change it too: what counts are the ones that went out, to the topic and to a file that
somebody else keeps.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from hub.audit.merkle import Frontier
from hub.audit.note import Signer, sign
from hub.domain.delivery import DeliveryError, Outgoing
from hub.domain.incident import IncidentKind
from hub.fhir.headers import CHECKPOINT_TYPE, CONTENT_TYPE
from hub.services.dispatcher import Destination
from hub.services.feeds import CHECKPOINT
from hub.store.incidents import open_incident
from hub.store.outbox import hold_lease, release_lease
from hub.store.sealing import LogBrokenError, Sealed, seal
from hub.telemetry.log import Log, fault_of

LEASE = "sealer"
_LEASE = timedelta(seconds=10)
_BATCH = 5000

Publish = Callable[[Sealed], Awaitable[None]]
"""Hands a signed checkpoint to somebody else. Raises DeliveryError, OSError."""


@dataclass(frozen=True, slots=True)
class SealerConfig:
    """``poll_s``: how long an entry may wait; ``checkpoint_s``: how often the newest checkpoint goes out, changed or not."""

    poll_s: float = 0.5
    checkpoint_s: float = 30


class Sealer:
    """Seals until told to stop; then it seals once more and hands the last checkpoint out."""

    def __init__(
        self,
        engine: AsyncEngine,
        origin: str,
        signers: Sequence[Signer],
        publish: Sequence[Publish],
        now: Callable[[], datetime],
        log: Log,
        *,
        holder: str,
        config: SealerConfig | None = None,
    ) -> None:
        self._engine = engine
        self._origin, self._signers = origin, signers
        self._publish = publish
        self._now, self._log = now, log
        self._holder = holder
        self._config = config or SealerConfig()
        self._out_at: datetime | None = None
        self._leased_at: datetime | None = None
        self._known: Frontier | None = None
        self._broken_at: set[int] = set()

    async def run(self, stop: asyncio.Event) -> None:
        """Until ``stop``. A database that is away is waited for: entries wait too, none is lost."""
        while not stop.is_set():
            try:
                await self.once()
            except (OSError, TimeoutError, SQLAlchemyError) as error:
                self._log.warning("sealer.waits", fault=fault_of(error))
            except LogBrokenError as error:
                self._known = None
                await self._broken(error)
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), self._config.poll_s)
        with suppress(OSError, TimeoutError, SQLAlchemyError, LogBrokenError):
            await self.once(last=True)
            await release_lease(self._engine, LEASE, self._holder)

    async def once(self, *, last: bool = False) -> Sealed | None:
        """Seal all that waits; None if somebody else does. ``last``: the checkpoint goes out at once."""
        now = self._now()
        if not await self._has_lease(now):
            return None
        sealed = await self._seal(now)
        due = self._out_at is None or now - self._out_at >= timedelta(seconds=self._config.checkpoint_s)
        if sealed.note and (due or last):
            await self._hand_out(sealed)
            self._out_at = now
            # Looked at anew after each: whether the log in the database is still the one that was signed.
            self._known = None
        return sealed

    async def _has_lease(self, now: datetime) -> bool:
        """Renewed when a third of it is over. It keeps two from working at once; what keeps the log right is its lock."""
        if self._leased_at is not None and timedelta() <= now - self._leased_at < _LEASE / 3:
            return True
        held = await hold_lease(self._engine, LEASE, self._holder, now + _LEASE, now)
        self._leased_at = now if held else None
        return held

    async def _broken(self, error: LogBrokenError) -> None:
        """Nothing is added to a log that was changed; said once, until somebody looks. What is written goes on waiting."""
        if error.size in self._broken_at:
            return
        self._broken_at.add(error.size)
        self._log.error("sealer.broken", size=error.size)
        with suppress(OSError, TimeoutError, SQLAlchemyError):
            async with self._engine.begin() as connection:
                detail = {"size": error.size, "fault": str(error)}
                await open_incident(
                    connection, IncidentKind.AUDIT_LOG_BROKEN, self._origin, detail, "sealer", self._now()
                )

    async def _seal(self, now: datetime) -> Sealed:
        total = 0
        while True:
            sealed = await seal(self._engine, self._sign, now, most=_BATCH, known=self._known)
            self._known = sealed.frontier or self._known
            total += sealed.entries
            if sealed.entries < _BATCH:
                return Sealed(total, sealed.size, sealed.note)

    def _sign(self, size: int, root: bytes) -> str:
        return sign(self._origin, size, root, self._signers)

    async def _hand_out(self, sealed: Sealed) -> None:
        """To everybody that is to have it; one that cannot be reached gets the next one."""
        for publish in self._publish:
            try:
                await publish(sealed)
            except (DeliveryError, OSError) as error:
                self._log.error("checkpoint.not_published", fault=str(error))
            else:
                self._log.info("checkpoint.published", size=sealed.size)


def to_topic(topic: str, open_destination: Callable[[], Destination]) -> Publish:
    """Puts the newest checkpoint on the topic each time, also when nothing happened: who watches sees that the log lives."""

    async def publish(sealed: Sealed) -> None:
        record = Outgoing(
            seq=sealed.size,
            receiver="audit",
            topic=topic,
            key=CHECKPOINT,
            headers={CONTENT_TYPE: CHECKPOINT_TYPE},
            payload=sealed.note.encode(),
            event_id=CHECKPOINT,
        )
        destination = open_destination()
        try:
            await destination.start()
            await destination.send([record])
        finally:
            await destination.close()

    return publish


def to_file(path: Path) -> Publish:
    """Appends each checkpoint that is new to a file, to be kept where the hub's administrators cannot write."""
    newest = ""

    async def publish(sealed: Sealed) -> None:
        nonlocal newest
        if sealed.note == newest:
            return
        await asyncio.to_thread(_append, path, sealed.note + "\n")
        newest = sealed.note

    return publish


def _append(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
