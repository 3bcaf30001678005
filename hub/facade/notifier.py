"""Tells subscribers what changed, each by itself: a handshake first, then events in the order of their numbers, heartbeats between.

An event that was not taken is offered again until it is; after some failures the subscription is in error, an incident opens, and it
goes on being offered more and more seldom. What was told and not written down is told again under the same number.
"""

import asyncio
import random
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta

import httpx
from sqlalchemy.exc import SQLAlchemyError

from hub.destinations import push
from hub.destinations.push import PushAccess
from hub.domain.delivery import backoff_s
from hub.domain.transfer import Transfer
from hub.facade import subscribing, tasks
from hub.facade.access import Reader
from hub.facade.issuers import can_come
from hub.facade.service import Facade
from hub.fhir import decimals
from hub.fhir.tree import Tree
from hub.store import outbox, search, subscriptions
from hub.store.search import Wanted
from hub.store.subscriptions import Event, Subscription
from hub.telemetry.log import fault_of

_LEASE, _LEASE_S = "notifier", 30.0
_BAD_AFTER = 3


class Notifier:
    """One process tells at a time. ``poll_s``: how soon a change is seen; ``first_s`` and ``max_s``: the waits after failures."""

    def __init__(
        self,
        facade: Facade,
        access: PushAccess,
        *,
        poll_s: float = 0.5,
        first_s: float = 1,
        max_s: float = 60,
    ) -> None:
        self._facade, self._access = facade, access
        self._poll_s, self._first_s, self._max_s = poll_s, first_s, max_s
        self._holder = uuid.uuid4().hex
        self._telling: dict[str, asyncio.Task[None]] = {}
        self._http: httpx.AsyncClient | None = None
        self._written: tuple[object, ...] = ()
        self._former: list[httpx.AsyncClient] = []

    async def run(self, stop: asyncio.Event) -> None:
        """Until ``stop``. A database that is away is waited for."""
        try:
            while not stop.is_set():
                try:
                    await self._begin()
                except (OSError, TimeoutError, SQLAlchemyError) as error:
                    self._facade.log.warning("store.unavailable", fault=fault_of(error))
                with suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), self._poll_s)
        finally:
            await self.close()

    async def once(self) -> None:
        """Tell whoever is to be told now, and wait until that is done."""
        await self._begin()
        await asyncio.gather(*self._telling.values())

    async def close(self) -> None:
        """End what is under way, and let another process tell."""
        for each in self._telling.values():
            each.cancel()
        await asyncio.gather(*self._telling.values(), return_exceptions=True)
        for client in [*self._former, *([self._http] if self._http else [])]:
            await client.aclose()
        with suppress(OSError, TimeoutError, SQLAlchemyError):
            await outbox.release_lease(self._facade.engine, _LEASE, self._holder)

    async def _begin(self) -> None:
        """Start telling those that are not being told already: a slow receiver holds nobody else up."""
        now = self._facade.now()
        until = now + timedelta(seconds=_LEASE_S)
        if not await outbox.hold_lease(self._facade.engine, _LEASE, self._holder, until, now):
            return
        self._telling = {id_: task for id_, task in self._telling.items() if not task.done()}
        for wish, waits in await subscriptions.to_tell(self._facade.engine, now):
            is_over = wish.ends_at is not None and wish.ends_at <= now
            is_due = waits or not wish.met or is_over or _wants_heartbeat(wish, now)
            if is_due and wish.id not in self._telling:
                self._telling[wish.id] = asyncio.create_task(self._tell(wish))

    async def _tell(self, wish: Subscription) -> None:
        try:
            await self._tell_all(wish)
        except (OSError, TimeoutError, SQLAlchemyError) as error:
            # The database is away, and that is no fault of the receiver's.
            self._facade.log.warning("store.unavailable", fault=fault_of(error))
        except _NotTakenError as error:
            await self._wait_after(wish, str(error))
        except _EndedError:
            return
        except Exception as error:  # noqa: BLE001 - a fault of ours must not end the telling of others
            self._facade.log.error("fault", fault=fault_of(error))  # noqa: TRY400 - a trace can quote a message
            await self._wait_after(wish, "a fault in the hub")

    async def _wait_after(self, wish: Subscription, said: str) -> None:
        """Leave a receiver alone for a while, the longer the more often it has failed."""
        now = self._facade.now()
        self._facade.log.warning("subscription.failed", subscription=wish.id, receiver=wish.trust, fault=said)
        with suppress(OSError, SQLAlchemyError):
            await subscriptions.failed(self._facade.engine, wish, said, now, self._wait, bad_after=_BAD_AFTER)

    def _wait(self, failures: int) -> timedelta:
        jitter = random.random()
        return timedelta(seconds=backoff_s(failures, first_s=self._first_s, max_s=self._max_s, jitter=jitter))

    async def _tell_all(self, wish: Subscription) -> None:
        engine, now, base = self._facade.engine, self._facade.now(), self._facade.base
        if wish.ends_at is not None and wish.ends_at <= now:
            await subscriptions.end(engine, wish, now)
            return
        if not wish.met:
            await self._post(wish, subscribing.notification(wish, "handshake", base, now))
            await subscriptions.took(engine, wish, now)
            wish = replace(wish, met=True, status="active", failures=0, error=None, heard_at=now)
        content, told = subscribing.content_of(wish.resource), wish.told_number
        last = await subscriptions.number_events(engine, wish.id)
        while told < last:
            events = await subscriptions.events(
                engine, wish.id, told + 1, last, subscribing.max_count(wish.resource)
            )
            transfers = await shown_with(self._facade, wish, events, content)
            bundle = await notification_of(
                self._facade, wish, "event-notification", events, content, transfers
            )
            await self._post(wish, bundle)
            await subscriptions.took(engine, wish, self._facade.now(), events, content=content)
            told = events[-1].number
        if told == wish.told_number and _wants_heartbeat(wish, now):
            await self._post(wish, subscribing.notification(wish, "heartbeat", base, now))
            await subscriptions.took(engine, wish, now)

    async def _post(self, wish: Subscription, bundle: Tree) -> None:
        """Raises _NotTakenError, _EndedError."""
        if not await subscriptions.may_be_told(self._facade.engine, wish):
            raise _EndedError
        url = wish.resource["channel"]["endpoint"]
        # Looked at again each time: a host can have been taken out of the profile since.
        trusts = self._facade.directory
        if wish.trust not in trusts or not subscribing.is_registered(url, trusts[wish.trust]):
            raise _NotTakenError("the endpoint's host is not registered in the trust's profile")
        if not can_come(wish.client_id, trusts[wish.trust]):
            raise _NotTakenError(
                "the issuer of the client that asked for it is not registered in the trust's profile"
            )
        said = {
            **subscribing.headers_of(wish.resource),
            "content-type": "application/fhir+json",
            "accept-encoding": "identity",
        }
        timeout = subscribing.timeout_s(wish.resource)
        try:
            answer = await push.post(self._client(), url, decimals.dumps(bundle), said, timeout)
        except (httpx.HTTPError, OSError) as error:
            raise _NotTakenError(type(error).__name__) from error
        if not answer.is_success:
            raise _NotTakenError(f"the endpoint answered HTTP {answer.status}")

    def _client(self) -> httpx.AsyncClient:
        """Whose certificates are those on the disk: they are renewed while it runs. Raises OSError."""
        written = self._access.written()
        if self._http is not None and written == self._written:
            return self._http
        try:
            verify = self._access.context()
        except OSError:
            if self._http is None:
                raise
            return self._http  # one of the files is new and the other not yet
        if self._http is not None:
            self._former.append(self._http)  # others may be telling with it
        self._written = written
        # One connection a subscription at most; with fewer, those that do not answer would have them all.
        self._http = httpx.AsyncClient(
            verify=verify,
            follow_redirects=False,
            trust_env=False,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=20),
        )
        return self._http


def _wants_heartbeat(wish: Subscription, now: datetime) -> bool:
    """Whether nothing was said for as long as the subscriber wants to wait at most."""
    period = subscribing.heartbeat_s(wish.resource)
    if not period or not wish.met or wish.heard_at is None:
        return False
    return wish.heard_at + timedelta(seconds=period) <= now


class _NotTakenError(Exception):
    """The receiver said no, or may not be asked. The text holds nothing of a message."""


class _EndedError(Exception):
    """It was switched off or put anew, or its client was revoked, while it was being told."""


async def shown_with(
    facade: Facade, wish: Subscription, events: Sequence[Event], content: str
) -> Sequence[Transfer]:
    """The transfers of these events that the trust may still read, where they are shown: for ``full-resource``."""
    wanted = {each.transfer_id for each in events} if content == "full-resource" else set()
    if not wanted:
        return []
    found, _ = await search.search(facade.engine, wish.trust, Wanted(ids=tuple(wanted), limit=len(wanted)))
    return found


async def notification_of(
    facade: Facade,
    wish: Subscription,
    kind: str,
    events: Sequence[Event],
    content: str,
    transfers: Sequence[Transfer],
) -> Tree:
    """What these events are told with, and each Task of ``transfers`` (`shown_with`) as it stood then."""
    reader = Reader(wish.trust)
    then: dict[tuple[str, int], Transfer] = {
        (t.id, v.version): v for t in transfers for v in tasks.versions(t, reader)
    }
    visible = [each for each in events if (each.transfer_id, each.version) in then]
    shown = (
        await facade.as_tasks([then[each.transfer_id, each.version] for each in visible], reader)
        if visible
        else []
    )
    resources = {each.number: task for each, task in zip(visible, shown, strict=True)}
    return subscribing.notification(wish, kind, facade.base, facade.now(), events, resources, content)
