"""What every interaction works with: who calls, what they may see, and the way into the journey."""

import asyncio
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from fastapi import Request
from sqlalchemy.ext.asyncio import AsyncEngine

from hub.audit.entries import AuditEntry, Code, Outcome
from hub.domain.ids import parse_uuid
from hub.domain.transfer import Transfer
from hub.domain.trust import Directory
from hub.facade import clinical, tasks
from hub.facade.access import MAY_BREAK_THE_GLASS, Reader, Sees, sees
from hub.facade.capability import Served
from hub.facade.clinical import View
from hub.facade.errors import FacadeError, forbidden, gone, not_found, unauthorised
from hub.facade.issuers import ASSURANCE_TO_WRITE, Issuers
from hub.facade.send import received
from hub.facade.together import Together, UnderWayError
from hub.facade.tokens import Caller, TokenError, TokenOffice, Who, claimed_issuer
from hub.fhir.audit_event import Observer
from hub.fhir.headers import REQUEST_ID
from hub.fhir.tree import Tree
from hub.journey.decide import message_id_of
from hub.journey.effects import Effects
from hub.store import break_glass, clients, queries, search
from hub.store.clients import Client
from hub.store.search import Said
from hub.store.unit_of_work import UnitOfWork
from hub.telemetry.log import Log, fault_of


@dataclass(frozen=True, slots=True)
class Limits:
    """What one client may ask for: units as the settings ``facade_*`` and ``message_*_max`` of `hub.settings`."""

    body_bytes: int = 1_000_000
    answer_s: float = 5
    requests_per_s: float = 500
    untried_s: float = 60
    client_s: float = 1
    body_s: float = 15
    depth_max: int = 64
    refusals_per_s: float = 50
    """Of those who could not prove who they are: so many are written down one by one. What is written is kept for ever, and anybody can be refused."""


@dataclass(slots=True)
class _Bucket:
    """An allowance: it fills at the rate, a second, and holds one second of it."""

    left: float
    at: float

    def take(self, rate: float) -> bool:
        """Whether there was one left, and take it."""
        at = time.monotonic()
        self.left = min(rate, self.left + (at - self.at) * rate)
        self.at = at
        if self.left < 1:
            return False
        self.left -= 1
        return True


@dataclass
class Facade:
    """What the interactions work with."""

    engine: AsyncEngine
    unit: UnitOfWork
    directory: Directory
    office: TokenOffice
    now: Callable[[], datetime]
    log: Log
    limits: Limits = field(default_factory=Limits)
    observer: Observer = field(default_factory=Observer)
    """The hub, as its AuditEvents name it."""
    _buckets: dict[str, _Bucket] = field(default_factory=dict)
    _late: set[asyncio.Task[Effects]] = field(default_factory=set)
    _known: dict[str, tuple[float, Client | None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._together = Together(self.unit)
        self._refusals = _Bucket(self.limits.refusals_per_s, time.monotonic())
        self._unwritten = 0
        self.issuers = Issuers(self.directory, self.base)

    @property
    def base(self) -> str:
        return f"{self.office.url}/fhir"

    # -- who calls ------------------------------------------------------------------------------------------

    async def caller(self, request: Request) -> Caller:
        """Who calls, proved. Raises FacadeError (401, 429); each refusal is audited."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise unauthorised("Send Authorization: Bearer and an access token from oauth2/token.", "login")
        try:
            caller = await self._proved(token.strip())
        except TokenError as error:
            await self.refused(error.reason)
            issue = "expired" if error.reason == "expired" else "security"
            raise unauthorised(f"The access token is not good. {error}", issue) from error
        self._spend(caller.client_id)
        said = request.headers.get(REQUEST_ID, "").strip()[:255]
        return replace(caller, request_id=parse_uuid(said) or said or None)

    async def _proved(self, token: str) -> Caller:
        """By the hub's own token, or by one of an issuer that a trust has registered. Raises TokenError, FacadeError (401, 503)."""
        issuer = claimed_issuer(token)
        if issuer == self.office.url:
            caller = self.office.caller(token, self.now())
            client = await self._client(caller.client_id)
            if client is None or client.revoked_at is not None or client.trust not in self.directory:
                await self.refused("revoked", caller)
                raise unauthorised("The client that this token is for was revoked.", "security")
            return caller
        caller = await self.issuers.caller(token, issuer, self.now())
        if caller.person is None or caller.role not in MAY_BREAK_THE_GLASS:
            return caller
        broken = await break_glass.open_for(self.engine, caller.trust, caller.person.id, self.now())
        return replace(caller, broken=broken)

    async def _client(self, client_id: str) -> Client | None:
        """Looked up again after ``client_s``: so long a client that was revoked may go on."""
        looked_at, found = self._known.get(client_id, (-math.inf, None))
        if time.monotonic() - looked_at >= self.limits.client_s:
            found = await clients.find(self.engine, client_id)
            self._known[client_id] = (time.monotonic(), found)
        return found

    def _spend(self, client_id: str) -> None:
        rate = self.limits.requests_per_s
        bucket = self._buckets.setdefault(client_id, _Bucket(rate, time.monotonic()))
        if not bucket.take(rate):
            raise FacadeError(
                429,
                "SEND_TOO_MANY_REQUESTS",
                "throttled",
                f"Your client may send {rate:.0f} requests a second. Wait, then send the same request again.",
                headers={"Retry-After": "1"},
            )

    async def must(self, caller: Caller, served: Served, resource_type: str, verb: str) -> None:
        """That the token holds this scope. Raises FacadeError (403); audited."""
        try:
            caller.must(resource_type, verb)
        except FacadeError:
            await self.denied(caller, served, "scope")
            raise

    async def refused(self, why: str, caller: Caller | None = None) -> None:
        """Audit that somebody was not let in. A client's name is written only where a signature has proved it.

        Of a flood only so many a second (`Limits`) have an entry each; how many had none is said in the next one.
        """
        if not self._refusals.take(self.limits.refusals_per_s):
            self._unwritten += 1
            return
        unwritten, self._unwritten = self._unwritten, 0
        await self._write(
            [
                AuditEntry(
                    Code.AUTHENTICATION_FAILED,
                    self.now(),
                    "rest",
                    Outcome.SERIOUS_FAILURE,
                    detail={"why": why, **({"refused_besides": unwritten} if unwritten else {})},
                    **(caller.who if caller else Who()),
                )
            ]
        )

    async def denied(
        self, caller: Caller, served: Served, why: str, transfer: Transfer | None = None
    ) -> None:
        """Audit that a client asked for what it may not have."""
        await self._write(
            [
                AuditEntry(
                    Code.ACCESS_DENIED,
                    self.now(),
                    "rest",
                    Outcome.SERIOUS_FAILURE,
                    person_id=transfer.person_id if transfer else None,
                    transfer_id=transfer.id if transfer else None,
                    detail={"interaction": served.name, "as": caller.role, "why": why},
                    **caller.who,
                )
            ]
        )

    async def seen(self, caller: Caller, served: Served, transfer: Transfer, **said: Any) -> None:
        """Audit that a client has read something of one transfer."""
        await self._write([self._looked(Code.RECORD_READ, caller, served, transfer, said)])

    async def missing(self, caller: Caller, served: Served, transfer: Transfer, why: str) -> FacadeError:
        """The answer where a transfer may be read and what was asked for is not in it: 410 if that has aged out, else 404; audited."""
        if await search.aged_out(self.engine, [transfer.id]):
            await self.seen(caller, served, transfer, aged_out=True)
            return gone()
        await self.denied(caller, served, why, transfer)
        return not_found()

    async def searched(
        self, caller: Caller, served: Served, found: Sequence[Transfer] = (), **said: Any
    ) -> None:
        """Audit that a client has searched: an entry for each patient that it found (BALP), one if it found nobody."""
        told = {each.person_id: each for each in found}.values()
        await self._write(
            [
                self._looked(Code.RECORD_SEARCHED, caller, served, each, said | {"found": len(found)})
                for each in told or [None]
            ]
        )

    async def handed_out(self, caller: Caller, served: Served, rows: Iterable[Any]) -> None:
        """Audit that a system was given messages of its trust's: an entry for each transfer they tell of, and so for each patient.
        ``rows`` have ``seq``, ``person_id`` and ``transfer_id``. Nothing is written where nothing was given.
        """
        told: dict[tuple[str | None, str | None], list[int]] = {}
        for row in rows:
            told.setdefault((row.person_id, row.transfer_id), []).append(row.seq)
        entries = [
            self._seen(Code.RECORD_READ, caller, served, person_id, transfer_id, {"messages": seqs})
            for (person_id, transfer_id), seqs in told.items()
        ]
        if entries:
            await self._write(entries)

    def _looked(
        self,
        code: Code,
        caller: Caller,
        served: Served,
        transfer: Transfer | None,
        said: Mapping[str, Any],
    ) -> AuditEntry:
        person_id, transfer_id = (transfer.person_id, transfer.id) if transfer else (None, None)
        seen = {**said, **self._glass(caller, transfer)}
        return self._seen(code, caller, served, person_id, transfer_id, seen)

    def _seen(
        self,
        code: Code,
        caller: Caller,
        served: Served,
        person_id: str | None,
        transfer_id: str | None,
        said: Mapping[str, Any],
    ) -> AuditEntry:
        return AuditEntry(
            code,
            self.now(),
            "rest",
            person_id=person_id,
            transfer_id=transfer_id,
            detail={"interaction": served.name, "as": caller.role, **said},
            **caller.who,
        )

    @staticmethod
    def _glass(caller: Caller, transfer: Transfer | None) -> dict[str, bool]:
        """Whether it was seen only because the glass was broken."""
        return {"glass_broken": True} if transfer and transfer.person_id in caller.broken else {}

    async def _write(self, entries: Sequence[AuditEntry]) -> None:
        await search.write_down(self.engine, entries)

    # -- what is read ---------------------------------------------------------------------------------------

    async def transfer(self, transfer_id: str, caller: Caller, served: Served) -> Transfer:
        """A transfer that the caller's trust is party to. Raises FacadeError (404), the same whether it is not there or not theirs."""
        try:
            found = await queries.transfer(self.engine, transfer_id)
        except queries.NotFoundError:
            await self.denied(caller, served, "unknown")
            raise not_found() from None
        if sees(found, caller.reader, self.now()) is Sees.NOTHING:
            await self.denied(caller, served, "no-relationship", found)
            raise not_found()
        return found

    async def as_tasks(self, transfers: Sequence[Transfer], reader: Reader) -> list[Tree]:
        """Transfers as Tasks."""
        numbers = await search.nhs_numbers(self.engine, {each.person_id for each in transfers})
        return [
            tasks.shown(
                each, numbers.get(each.person_id), clinical=sees(each, reader, self.now()) >= Sees.MINIMUM
            )
            for each in transfers
        ]

    async def as_requests(self, transfers: Sequence[Transfer], reader: Reader) -> list[Tree]:
        """The requests of those transfers of which this reader may see them and that were asked for."""
        found = [clinical.service_request(each) for each in await self._views(transfers, reader)]
        return [each for each in found if each is not None]

    async def as_requests_then(self, transfer: Transfer, reader: Reader) -> list[Tree]:
        """The request as it stood at each version of its transfer, oldest first."""
        then = [v for v in tasks.versions(transfer, reader) if sees(v, reader, self.now()) >= Sees.MINIMUM]
        found = [
            clinical.service_request(
                replace(
                    view,
                    transfer=each,
                    said=[
                        s for s in view.said if each.changed_at is None or s.received_at <= each.changed_at
                    ],
                )
            )
            for view in await self._views([transfer], reader)
            for each in then
        ]
        return [each for each in found if each is not None]

    async def as_patients(self, transfers: Sequence[Transfer], reader: Reader) -> list[Tree]:
        """The patients of those transfers of which this reader may see them, each once, by the transfer that comes first."""
        first = {each.person_id: each for each in reversed(self._readable(transfers, reader))}
        then = await self.as_patients_then(list(first.values())[::-1], reader)
        return [each[-1] for each in then if each]

    async def as_patients_then(self, transfers: Sequence[Transfer], reader: Reader) -> list[list[Tree]]:
        """The patients as each message of their transfer told of them, oldest first."""
        views = await self._views(transfers, reader)
        numbers = await search.nhs_numbers(self.engine, {each.transfer.person_id for each in views})
        return [clinical.patient_then(each, numbers.get(each.transfer.person_id)) for each in views]

    async def as_encounters(self, transfers: Sequence[Transfer], reader: Reader) -> list[Tree]:
        """The stays of those transfers of which this reader may see them: at the sender's, at the receiver's."""
        return [each[-1] for each in await self.as_encounters_then(transfers, reader) if each]

    async def as_encounters_then(self, transfers: Sequence[Transfer], reader: Reader) -> list[list[Tree]]:
        """The stays as each message told them, oldest first."""
        views = await self._views(transfers, reader)
        return [clinical.encounter_then(each, end) for each in views for end in ("sender", "receiver")]

    async def as_provenance(self, transfers: Sequence[Transfer], reader: Reader) -> list[Tree]:
        """Who made each version of these transfers that this trust may see."""
        return [
            clinical.provenance(each, version.version)
            for each in transfers
            for version in tasks.versions(each, reader)
        ]

    async def _views(self, transfers: Sequence[Transfer], reader: Reader) -> list[View]:
        """Those of the transfers that are more than a state for this reader, with what was told of them."""
        readable = self._readable(transfers, reader)
        said: dict[str, list[Said]] = {each.id: [] for each in readable}
        for each in await search.said_of(self.engine, readable):
            said[each.transfer_id].append(each)
        persons = {each.person_id for each in readable}
        secret = await search.restricted(self.engine, persons)
        others = await search.not_theirs(self.engine, persons)
        return [
            View(
                each,
                reader.trust,
                sees(each, reader, self.now()),
                said[each.id],
                sensitive=each.person_id in secret,
                not_theirs=others.get(each.person_id, ()),
            )
            for each in readable
        ]

    def _readable(self, transfers: Sequence[Transfer], reader: Reader) -> list[Transfer]:
        return [each for each in transfers if sees(each, reader, self.now()) >= Sees.MINIMUM]

    # -- what is sent ---------------------------------------------------------------------------------------

    async def take(
        self, request: Request, body: bytes, caller: Caller, more: Mapping[str, str] | None = None
    ) -> Effects:
        """One message through the journey and the transaction. Raises FacadeError."""
        if caller.person is not None and not caller.person.may_write:
            raise forbidden(f"To send and decide, sign in with assurance level {ASSURANCE_TO_WRITE}.")
        # A header that comes twice is one header with both values (RFC 9110, 5.3).
        said = {name: ", ".join(dict.fromkeys(request.headers.getlist(name))) for name in request.headers}
        message = received(said, body, caller, self.now(), more)
        taking = asyncio.create_task(self._together.take(message, message_id_of(message, "")))
        done, _ = await asyncio.wait({taking}, timeout=self.limits.answer_s)
        if not done:
            # It goes on: half a transaction is never left, and the same id says later what became of it.
            self._late.add(taking)
            taking.add_done_callback(self._late_is_done)
            raise FacadeError(
                408,
                "REC_TIMEOUT",
                "timeout",
                "The message was not committed in time. It may still be: send it again with the same X-Request-Id, which "
                "either takes it in or says that it was.",
            )
        try:
            return taking.result()
        except UnderWayError:
            raise FacadeError(
                425,
                "REC_TOO_EARLY",
                "duplicate",
                "The first attempt at this message is still being processed. Send it again in a moment, with the same id.",
                "X-Request-Id",
                headers={"Retry-After": "1"},
            ) from None

    def _late_is_done(self, task: asyncio.Task[Effects]) -> None:
        self._late.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.log.warning("facade.late", fault=fault_of(error))
