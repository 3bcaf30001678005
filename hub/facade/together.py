"""Requests that come while a transaction is under way share the next one.

Alone, a request is a transaction of its own and waits for nobody. Under load the database commits once for many, as it does for
a batch from Kafka; that is where most of a message's cost is.
"""

import asyncio
from collections.abc import Sequence

from hub.domain.message import Received
from hub.journey.effects import Effects
from hub.store.intake import StoreUnavailableError
from hub.store.unit_of_work import UnitOfWork

_AT_ONCE = 100
"""Messages of one transaction at most, so that the last of them does not wait for long."""


class UnderWayError(Exception):
    """The first attempt at this message is not finished yet."""


class Together:
    """The way into the transaction for all requests of this process."""

    def __init__(self, unit: UnitOfWork) -> None:
        self._unit = unit
        self._waiting: list[tuple[Received, asyncio.Future[Effects]]] = []
        self._under_way: set[tuple[str, str]] = set()
        self._running: asyncio.Task[None] | None = None

    async def take(self, received: Received, message_id: str) -> Effects:
        """Take in one message; when this returns it is committed. To be cancelled only with the process.

        Raises UnderWayError, StoreUnavailableError.
        """
        name = (received.trust, message_id)
        if name in self._under_way:
            raise UnderWayError
        self._under_way.add(name)
        try:
            outcome: asyncio.Future[Effects] = asyncio.get_running_loop().create_future()
            self._waiting.append((received, outcome))
            if self._running is None or self._running.done():
                self._running = asyncio.create_task(self._run())
            return await outcome
        finally:
            self._under_way.discard(name)

    async def _run(self) -> None:
        while self._waiting:
            some, self._waiting = self._waiting[:_AT_ONCE], self._waiting[_AT_ONCE:]
            try:
                await self._commit(some)
            except StoreUnavailableError:
                # One of them may be what the store does not take: the others must not suffer for it.
                for each in some:
                    await self._alone(each)
            except BaseException as error:  # noqa: BLE001 - whoever waits must hear of it
                _tell(some, error)

    async def _alone(self, one: tuple[Received, asyncio.Future[Effects]]) -> None:
        try:
            await self._commit([one])
        except BaseException as error:  # noqa: BLE001 - as above
            _tell([one], error)

    async def _commit(self, some: Sequence[tuple[Received, asyncio.Future[Effects]]]) -> None:
        taken = await self._unit.take_together([received for received, _ in some])
        for (_, outcome), effects in zip(some, taken, strict=True):
            if outcome.done():
                continue
            if effects is None:
                outcome.set_exception(UnderWayError())
            else:
                outcome.set_result(effects)


def _tell(some: Sequence[tuple[Received, asyncio.Future[Effects]]], error: BaseException) -> None:
    for _, outcome in some:
        if not outcome.done():
            outcome.set_exception(error)
