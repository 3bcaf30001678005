"""`hub demo`: a patient goes from Torbay to Exeter, in one terminal, without Java or Docker.

Broker, database and the hub itself (`hub run`, a process of its own) are real; the hospitals are simulated. A step is
told as seen only if its receipt and its news were read back from the receivers' topics.
"""

import asyncio
import itertools
import os
import shlex
import signal
import socket
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
from aiokafka.errors import KafkaError
from pydantic import SecretStr, ValidationError
from rich.console import Console
from rich.table import Table
from sqlalchemy.exc import DBAPIError

from hub import wiring
from hub.demo.broker import BrokerError, EmbeddedBroker
from hub.demo.epr import Epr, Message, Patient, TaskStatus
from hub.demo.join_in import Record, encoded, explain, reading, record_of, writing
from hub.demo.people import PATIENTS_MAX, QUILLFEATHER, SNOWCROFT, THISTLEWICK, patient_number
from hub.demo.rest_client import RestClient
from hub.domain.delivery import SEQ_HEADER
from hub.domain.rejection import Disposition
from hub.domain.transfer import State
from hub.domain.trust import Directory
from hub.fhir import headers
from hub.governance.trail import tell as tell_trail
from hub.services.log_keys import load_keys
from hub.settings import HubSettings
from hub.store import book, exporting, outbox, queries, schema
from hub.trusts import TrustsError
from hub.verifier import read_keys, verify_export

TORBAY, EXETER, PLYMOUTH = "RA9", "RH8", "RK9"
_TOWNS = {TORBAY: "Torbay", EXETER: "Exeter", PLYMOUTH: "Plymouth"}

_STEP_S = 20.0
_FIRST_STEP_S = 60.0
"""The first step also waits for the hub to start."""
_SILENT_STEP_S = 5.0
_QUIET_S = 1.0
"""How long to listen at the end for what should not have come."""
_DELIVERED_S = 5.0
_SEALED_S = 10.0
_DRAIN_S = 35.0
_PAUSE_S = 2.0
"""Between two steps of the slow trickle."""
_REMEMBERED = 1000


class DemoError(Exception):
    """The demo cannot go on. The text is for the person at the terminal."""


# ---------------------------------------------------------------- The story, as data


@dataclass(slots=True)
class Case:
    """One patient's transfer as the two hospitals know it. What Exeter learns it learns from its inbox."""

    patient: Patient
    asks: str
    asked: str
    to_site: str
    number: str
    transfer_id: str | None = None
    first: Message | None = None


Eprs = Mapping[str, Epr]
Say = Callable[[Eprs, Case, datetime], Message]


@dataclass(frozen=True, slots=True)
class Step:
    """``told`` is who must hear of it and as which event, None if nobody must."""

    title: str
    sender: str
    say: Say
    told: tuple[str, str] | None = None
    receipt: Disposition = Disposition.ACCEPTED


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was really seen of a step."""

    step: str
    sent_to: str
    receipt: str | None
    arrived_at: str | None
    seen: bool

    def as_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("step", "sent_to", "receipt", "arrived_at", "seen")}


def _ask(eprs: Eprs, case: Case, at: datetime) -> Message:
    case.first = eprs[case.asks].asks_to_transfer(
        case.patient,
        to=case.asked,
        to_site=case.to_site,
        request_number=f"TR-{case.number}",
        encounter_number=f"{case.asks}-V-{case.number}",
        at=at,
        admitted_at=at - timedelta(days=1),
    )
    return case.first


def _answer(status: TaskStatus, **more: Any) -> Say:
    def say(eprs: Eprs, case: Case, at: datetime) -> Message:
        return eprs[case.asked].answers(
            case.patient,
            status,
            requester=eprs[case.asks].profile,
            request_number=f"TR-{case.number}",
            transfer_id=case.transfer_id,
            at=at,
            **more,
        )

    return say


def _depart(eprs: Eprs, case: Case, at: datetime) -> Message:
    return eprs[case.asks].discharges(
        case.patient,
        encounter_number=f"{case.asks}-V-{case.number}",
        at=at,
        to_site=case.to_site,
        admitted_at=at - timedelta(days=1),
    )


def _admit(eprs: Eprs, case: Case, at: datetime) -> Message:
    return eprs[case.asked].admits(
        case.patient,
        encounter_number=f"{case.asked}-V-{case.number}",
        ward="Taw Ward",
        at=at,
        site=case.to_site,
    )


def _cancel(eprs: Eprs, case: Case, at: datetime) -> Message:
    return eprs[case.asks].cancels_request(
        case.patient,
        to=case.asked,
        request_number=f"TR-{case.number}",
        at=at,
        reason="Treated here; the transfer is no longer needed",
    )


def _ask_for_nobody(eprs: Eprs, case: Case, at: datetime) -> Message:
    """A request whose patient has a name and no number."""
    message = _ask(eprs, case, at)
    bundle = orjson.loads(message.body)
    for entry in bundle["entry"]:
        if entry["resource"]["resourceType"] == "Patient":
            del entry["resource"]["identifier"]
    return Message(message.headers, message.key, orjson.dumps(bundle))


def _again(_: Eprs, case: Case, __: datetime) -> Message:
    """The same bytes under the same id, as a system sends them that did not hear the answer."""
    if case.first is None:
        raise DemoError("The story is out of order: nothing was sent that could be sent again.")
    return case.first


def _story() -> tuple[Case, Sequence[tuple[Case, Step]]]:
    """The transfer whose trail is shown at the end, and every step in order with the transfer it belongs to."""
    main = Case(QUILLFEATHER, TORBAY, EXETER, "RH801", "800001")
    refused = Case(THISTLEWICK, TORBAY, PLYMOUTH, "RK950", "800002")
    nobody = Case(SNOWCROFT, TORBAY, EXETER, "RH801", "800003")
    no_bed = _answer("rejected", reason="RRNA", reason_text="No neurosurgical bed before tomorrow")
    quarantined, duplicate = Disposition.QUARANTINED, Disposition.DUPLICATE
    return main, (
        (main, Step("Torbay asks Exeter to take a patient", TORBAY, _ask, (EXETER, "transfer.requested"))),
        (
            main,
            Step("Exeter has seen the request", EXETER, _answer("received"), (TORBAY, "transfer.received")),
        ),
        (main, Step("Exeter accepts", EXETER, _answer("accepted"), (TORBAY, "transfer.accepted"))),
        (
            main,
            Step(
                "Exeter has a bed ready",
                EXETER,
                _answer("ready", bed="Taw Ward, bed 12"),
                (TORBAY, "transfer.bed.allocated"),
            ),
        ),
        (main, Step("The patient leaves Torbay for Exeter", TORBAY, _depart, (EXETER, "transfer.departed"))),
        (main, Step("Exeter admits the patient: complete", EXETER, _admit, (TORBAY, "transfer.completed"))),
        (
            refused,
            Step(
                "Torbay asks Plymouth to take another patient", TORBAY, _ask, (PLYMOUTH, "transfer.requested")
            ),
        ),
        (refused, Step("Plymouth refuses and says why", PLYMOUTH, no_bed, (TORBAY, "transfer.rejected"))),
        (refused, Step("Torbay withdraws the request", TORBAY, _cancel, (PLYMOUTH, "transfer.cancelled"))),
        (
            nobody,
            Step("Torbay names a patient without any number", TORBAY, _ask_for_nobody, None, quarantined),
        ),
        (main, Step("Torbay sends its first message once more", TORBAY, _again, None, duplicate)),
    )


def _crowd(number: int) -> Sequence[tuple[Case, Step]]:
    """One more transfer of the trickle; every third is refused."""
    asks, asked, site = ((TORBAY, EXETER, "RH801"), (EXETER, PLYMOUTH, "RK950"), (PLYMOUTH, TORBAY, "RA901"))[
        number % 3
    ]
    case = Case(patient_number(number % PATIENTS_MAX), asks, asked, site, f"{900_000 + number}")
    a, b, who = _TOWNS[asks], _TOWNS[asked], f"patient {number}"
    ask = Step(f"{a} asks {b} to take {who}", asks, _ask, (asked, "transfer.requested"))
    if number % 3 == 2:
        no = _answer("rejected", reason="RRNA")
        refuse = Step(f"{b} refuses {who}", asked, no, (asks, "transfer.rejected"))
        cancel = Step(f"{a} withdraws the request for {who}", asks, _cancel, (asked, "transfer.cancelled"))
        return ((case, ask), (case, refuse), (case, cancel))
    accept = Step(f"{b} accepts {who}", asked, _answer("accepted"), (asks, "transfer.accepted"))
    depart = Step(f"{who} leaves {a} for {b}", asks, _depart, (asked, "transfer.departed"))
    admit = Step(f"{b} admits {who}", asked, _admit, (asks, "transfer.completed"))
    return ((case, ask), (case, accept), (case, depart), (case, admit))


# ---------------------------------------------------------------- Seeing


class Watch:
    """What the three hospitals have read from their inboxes and receipts, and nobody has claimed yet."""

    def __init__(self, hub: asyncio.subprocess.Process) -> None:
        self._hub = hub
        self._came = asyncio.Condition()
        self.unclaimed: deque[Record] = deque(maxlen=_REMEMBERED)
        self.dispositions: Counter[str] = Counter()
        self.delivered = 0

    async def read(self, consumer: Any) -> None:
        """Until cancelled."""
        async for raw in consumer:
            record = record_of(raw)
            async with self._came:
                self.unclaimed.append(record)
                if headers.DISPOSITION in record.headers:
                    self.dispositions[record.headers[headers.DISPOSITION]] += 1
                else:
                    self.delivered += 1
                self._came.notify_all()

    async def claim(self, topic: str, wanted: Mapping[str, str | None], until: float) -> Record | None:
        """The first record of the topic with these headers (None: any value), or None when time is up.

        Raises DemoError if the hub ends meanwhile.
        """
        while True:
            async with self._came:
                for record in self.unclaimed:
                    if record.topic == topic and _has(record.headers, wanted):
                        self.unclaimed.remove(record)
                        return record
                left = until - time.monotonic()
                if left <= 0:
                    return None
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._came.wait(), min(left, 0.5))
            if self._hub.returncode is not None:
                raise DemoError(f"The hub has ended (exit code {self._hub.returncode}).")


def _has(found: Mapping[str, str], wanted: Mapping[str, str | None]) -> bool:
    return all(name in found and value in {None, found[name]} for name, value in wanted.items())


# ---------------------------------------------------------------- Telling


@dataclass(slots=True)
class Stage:
    """Everything a step needs."""

    settings: HubSettings
    console: Console
    directory: Directory
    watch: Watch
    producer: Any
    stderr: Path
    eprs: Eprs = field(default_factory=dict)
    faults_told: list[str] = field(default_factory=list)

    def say(self, line: str, style: str = "") -> None:
        self.console.print(line, style=style, markup=False, soft_wrap=True)

    async def play(self, case: Case, step: Step, within_s: float) -> Outcome:
        """Send, then wait for the receipt and the news; told as it happens."""
        profile = self.directory[step.sender]
        message = step.say(self.eprs, case, datetime.now(UTC))
        self.say(f"\n{step.title}", "bold")
        began = time.monotonic()
        if not await self._send(profile.events_topic, message):
            return Outcome(step.title, profile.events_topic, None, None, seen=False)
        until = began + within_s
        request_id = {headers.REQUEST_ID: message.headers[headers.REQUEST_ID]}
        receipt = await self.watch.claim(profile.receipts_topic, request_id, until)
        self._tell_receipt(profile.receipts_topic, receipt, within_s)
        arrived = await self._arrival(case, step, receipt, until)
        if step.told:
            self._tell_arrival(step.told, arrived, time.monotonic() - began, within_s)
        disposition = receipt.header(headers.DISPOSITION) if receipt else None
        seen = disposition == step.receipt and (step.told is None or arrived is not None)
        if receipt and disposition != step.receipt:
            self.say(f"  ✗ NOT AS EXPECTED: the receipt should say {step.receipt}", "red")
        return Outcome(
            step.title, profile.events_topic, disposition, arrived.topic if arrived else None, seen
        )

    async def _send(self, topic: str, message: Message) -> bool:
        try:
            async with asyncio.timeout(_STEP_S):
                await self.producer.send_and_wait(
                    topic, value=message.body, key=message.key, headers=encoded(message.headers)
                )
        except (KafkaError, OSError, TimeoutError) as error:
            self.say(f"  ✗ NOT SENT to {topic} ({type(error).__name__})", "red")
            return False
        self.say(f"  → {topic:20} {len(message.body)} bytes, message {message.headers[headers.REQUEST_ID]}")
        return True

    async def _arrival(self, case: Case, step: Step, receipt: Record | None, until: float) -> Record | None:
        if step.told is None or receipt is None:
            return None
        ods, event_type = step.told
        wanted = {
            headers.EVENT_TYPE: event_type,
            headers.EVENT_ID: receipt.headers.get(headers.EVENT_ID),
            headers.TRANSFER_ID: case.transfer_id,
        }
        arrived = await self.watch.claim(self.directory[ods].inbox_topic, wanted, until)
        if arrived is not None:
            case.transfer_id = arrived.headers[headers.TRANSFER_ID]
        return arrived

    def _tell_receipt(self, topic: str, receipt: Record | None, within_s: float) -> None:
        if receipt is None:
            self.say(f"  ✗ NOT SEEN: no receipt on {topic} within {within_s:g} s", "red")
            return
        lines = dict(explain(receipt))
        colour = "green" if lines["receipt"] == Disposition.ACCEPTED else "yellow"
        reason = f": {lines['reason']}" if "reason" in lines else ""
        self.say(f"  ← {topic:20} {lines['receipt']}{reason}", colour)
        if "to do" in lines:
            self.say(f"    {'':20} {lines['to do']}", colour)

    def _tell_arrival(
        self, told: tuple[str, str], arrived: Record | None, took_s: float, within_s: float
    ) -> None:
        ods, event_type = told
        topic = self.directory[ods].inbox_topic
        if arrived is None:
            self.say(f"  ✗ NOT SEEN: no {event_type} on {topic} within {within_s:g} s", "red")
            return
        transfer_id = arrived.header(headers.TRANSFER_ID)
        self.say(
            f"  ✓ {topic:20} {_TOWNS[ods]} is told: {event_type}, transfer {transfer_id}, {took_s:.2f} s",
            "green",
        )

    def tell_faults(self) -> None:
        """What the hub itself complained of, unless that was told before."""
        lines = _last_lines(self.stderr)
        if lines != self.faults_told:
            self.faults_told = lines
            for line in lines:
                self.say(f"    the hub said: {line}", "dim")


def _last_lines(file: Path) -> list[str]:
    try:
        lines = file.read_text(errors="replace").splitlines()
    except OSError:
        return []
    return [line for line in lines if line and not line.startswith((" ", "Traceback"))][-3:]


async def _tell_story(stage: Stage) -> list[Outcome]:
    main, story = _story()
    stage.say("The hub starts; the first step waits for it.", "dim")
    outcomes: list[Outcome] = []
    for case, step in story:
        outcomes.append(await stage.play(case, step, _patience_s(outcomes)))
        if not outcomes[-1].seen:
            stage.tell_faults()
    outcomes += await _tell_surprises(stage)
    if main.transfer_id:
        outcomes.append(await _tell_over_rest(stage, main.transfer_id))
        await _tell_trail(stage, main.transfer_id)
        outcomes.append(await _tell_the_log(stage))
    _tell_summary(stage, outcomes)
    return outcomes


def _patience_s(before: Sequence[Outcome]) -> float:
    """Long for the first step, short after one that was not answered at all: the hub is probably not there."""
    if not before:
        return _FIRST_STEP_S
    return _STEP_S if before[-1].receipt else _SILENT_STEP_S


async def _tell_surprises(stage: Stage) -> list[Outcome]:
    """Something that came and that no step explains is a step that went wrong."""
    await asyncio.sleep(_QUIET_S)
    surprises = list(stage.watch.unclaimed)
    for record in surprises:
        what = record.header(headers.EVENT_TYPE) or record.header(headers.DISPOSITION)
        stage.say(f"\n✗ NOT EXPECTED: {what} on {record.topic} (number {record.header(SEQ_HEADER)})", "red")
    return [
        Outcome(
            f"Nothing that no step explains ({each.topic})",
            "",
            each.headers.get(headers.DISPOSITION),
            each.topic,
            seen=False,
        )
        for each in surprises
    ]


async def _tell_over_rest(stage: Stage, transfer_id: str) -> Outcome:
    """A system without Kafka signs in at the facade and reads the transfer that has just been completed."""
    path = f"/fhir/Task/{transfer_id}"
    async with wiring.opened(stage.settings) as engine:
        client = await RestClient.join(engine, stage.settings.facade_url, EXETER, wiring.now())
    status, task = await asyncio.to_thread(client.get, path)
    state = task.get("businessStatus", {}).get("coding", [{}])[0].get("code", "nothing")
    seen = status == 200 and state == State.COMPLETED
    stage.say("\nA system without Kafka reads the same transfer over REST", "bold")
    stage.say(f"  GET {stage.settings.facade_url}{path}")
    stage.say(f"  {status}: Task, {state}", "green" if seen else "red")
    return Outcome("The transfer is read over REST", f"GET {path}", None, None, seen=seen)


async def _tell_trail(stage: Stage, transfer_id: str) -> None:
    stage.say(f"\nThe audit trail of the first transfer (hub audit trail {transfer_id})", "bold")
    async with wiring.opened(stage.settings) as engine:
        # A message is seen at its topic a moment before the hub has written down that it was delivered.
        until = time.monotonic() + _DELIVERED_S
        while await outbox.waiting(engine) and time.monotonic() < until:  # noqa: ASYNC110 - another process writes it
            await asyncio.sleep(0.1)
        row = await queries.transfer_row(engine, transfer_id)
        asked = book.Asked(fits=[[book.Is("transfer_id", transfer_id)]], oldest_first=True)
        by = book.Asking("cli", wiring.now(), {"user_id": "demo"}, ["transfer"])
        entries = (await book.entries(engine, asked, by)).rows
    for line in tell_trail(row, entries, {each.ods: each.name for each in stage.directory}):
        stage.say(f"  {line}")


async def _tell_the_log(stage: Stage) -> Outcome:
    """Somebody else checks the audit with the public key alone; then one letter of it is changed."""
    async with wiring.opened(stage.settings) as engine:
        until = time.monotonic() + _SEALED_S
        lines: list[bytes] = []
        while not lines and time.monotonic() < until:
            with suppress(exporting.NothingSealedError):
                lines = [line async for line in exporting.export(engine, reader="demo", now=wiring.now())]
            await asyncio.sleep(0.2)
    stage.say(
        "\nAnybody can check the audit, with an export and the public key (hub audit export, verify)", "bold"
    )
    if not lines:
        stage.say("  nothing was sealed", "red")
        return Outcome("The audit is checked by its public key", "hub audit verify", None, None, seen=False)
    keys = read_keys("\n".join(load_keys(stage.settings.audit_key_file).public))
    report = verify_export(lines, keys)
    changed = [line.replace(TORBAY.encode(), b"RVJ") for line in lines]
    found = verify_export(changed, keys).findings
    seen = report.intact and bool(found)
    stage.say(
        f"  {'intact' if report.intact else 'NOT INTACT'}: {report.size} entries",
        "green" if report.intact else "red",
    )
    stage.say(
        f"  with {TORBAY} changed to RVJ: {len(found)} entries are found altered", "green" if found else "red"
    )
    return Outcome("The audit is checked by its public key", "hub audit verify", None, None, seen=seen)


def _tell_summary(stage: Stage, outcomes: Iterable[Outcome]) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("", "step", "sent to", "receipt", "arrived at"):
        table.add_column(column)
    for each in outcomes:
        mark = "[green]✓[/]" if each.seen else "[red]✗[/]"
        table.add_row(mark, each.step, each.sent_to, each.receipt or "none seen", each.arrived_at or "")
    stage.console.print()
    stage.console.print(table)
    watch = stage.watch
    stage.say(
        f"\n{watch.delivered} delivered, {watch.dispositions[Disposition.QUARANTINED]} quarantined, "
        f"{watch.dispositions[Disposition.DUPLICATE]} duplicate, as read from the hospitals' topics."
    )


def _tell_how_to_join(stage: Stage) -> None:
    servers = stage.settings.kafka_bootstrap_servers
    url = stage.settings.database_url.get_secret_value()
    example = "schemas/examples/transfer-request-RA9-to-RH8.json"
    stage.say(f"\nJoin in from another terminal. Kafka answers at {servers}", "bold")
    for line in (
        f"HUB_KAFKA_BOOTSTRAP_SERVERS={servers} hub tail --trust {EXETER}",
        f"HUB_KAFKA_BOOTSTRAP_SERVERS={servers} hub send {example} --trust {TORBAY}",
        f"HUB_DATABASE_URL={shlex.quote(url)} hub audit search --trust {TORBAY}",
    ):
        stage.say(f"  {line}")
    stage.say("The same with kcat, without anything of ours:")
    content_type = shlex.quote(f"{headers.CONTENT_TYPE}={headers.CONTENT_TYPE_FHIR}")
    inbox, events = stage.directory[EXETER].inbox_topic, stage.directory[TORBAY].events_topic
    stage.say(f"  kcat -b {servers} -C -t {inbox} -o end -f '%T %h\\n%s\\n'")
    stage.say(
        f'  kcat -b {servers} -P -t {events} -k 4100000 -H "{headers.REQUEST_ID}=$(uuidgen)" '
        f'-H "{headers.CORRELATION_ID}=$(uuidgen)" -H {content_type} {example}'
    )
    stage.say("\nTransfers go on, slowly, until Ctrl-C.", "dim")


async def _trickle(stage: Stage, stop: asyncio.Event) -> None:
    """One transfer after the other until told to stop; a step under way is waited for."""
    for number in itertools.count():
        for case, step in _crowd(number):
            if stop.is_set():
                return
            outcome = await stage.play(case, step, _STEP_S)
            if not outcome.seen:
                stage.tell_faults()
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), _PAUSE_S)


# ---------------------------------------------------------------- Setting up, clearing away


def _settings(folder: Path, bootstrap_servers: str) -> HubSettings:
    """Nothing that is set for a real hub applies here, but for where the trusts are described."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        facade_port = free.getsockname()[1]
    return HubSettings(
        database_url=SecretStr(f"sqlite+aiosqlite:///{folder / 'hub.db'}"),
        kafka_bootstrap_servers=bootstrap_servers,
        kafka_security_protocol="PLAINTEXT",
        kafka_username=None,
        kafka_password=None,
        kafka_ca_file=None,
        kafka_transactions=False,
        log_level="error",
        facade_port=facade_port,
        facade_url=f"http://127.0.0.1:{facade_port}",
        audit_key_file=folder / "hub-audit.key",
        audit_checkpoint_file=folder / "hub-checkpoints.txt",
    )


def _environment(settings: HubSettings) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith("HUB_")}
    return kept | {
        "HUB_DATABASE_URL": settings.database_url.get_secret_value(),
        "HUB_KAFKA_BOOTSTRAP_SERVERS": settings.kafka_bootstrap_servers,
        "HUB_KAFKA_TRANSACTIONS": "false",
        "HUB_LOG_LEVEL": settings.log_level,
        "HUB_SCHEMAS_DIR": str(settings.schemas_dir.resolve()),
        "HUB_FACADE_PORT": str(settings.facade_port),
        "HUB_FACADE_URL": settings.facade_url,
        "HUB_AUDIT_KEY_FILE": str(settings.audit_key_file),
        "HUB_AUDIT_CHECKPOINT_FILE": str(settings.audit_checkpoint_file),
    }


@asynccontextmanager
async def _hub_run(settings: HubSettings, stderr: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """`hub run` as a process of its own, asked to drain at the end and killed if it does not."""
    with stderr.open("wb") as log:
        # A session of its own: Ctrl-C reaches us only, and we stop it in order.
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "hub.cli",
            "run",
            env=_environment(settings),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), _DRAIN_S)
        except TimeoutError:
            process.kill()
            await process.wait()


@asynccontextmanager
async def _stage(console: Console) -> AsyncIterator[Stage]:
    """Folder, database, broker, hub and hospitals; all gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="hub-demo-") as name, EmbeddedBroker() as broker:
        folder = Path(name)
        settings = _settings(folder, broker.bootstrap_servers)
        directory = wiring.directory(settings)
        trusts = [directory[ods] for ods in _TOWNS]
        await asyncio.to_thread(
            broker.ensure_topics,
            [
                settings.audit_topic,
                *(
                    topic
                    for each in directory
                    for topic in (each.events_topic, each.inbox_topic, each.receipts_topic)
                ),
            ],
        )
        async with wiring.opened(settings, check_schema=False) as engine:
            await schema.upgrade(engine)
        access = wiring.kafka_access(settings)
        topics = tuple(topic for each in trusts for topic in (each.inbox_topic, each.receipts_topic))
        async with (
            reading(access, topics, from_start=True) as consumer,
            writing(access) as producer,
            _hub_run(settings, folder / "hub.log") as hub,
        ):
            watch = Watch(hub)
            reader = asyncio.create_task(watch.read(consumer))
            eprs = {each.ods: Epr(each) for each in trusts}
            try:
                yield Stage(settings, console, directory, watch, producer, folder / "hub.log", eprs)
            except DemoError as error:
                said = " ".join(_last_lines(folder / "hub.log")[-1:])
                raise DemoError(f"{error} It said: {said}" if said else str(error)) from error
            finally:
                reader.cancel()
                await asyncio.gather(reader, return_exceptions=True)


class _Ending:
    """The first signal ends the story at once, or the trickle after the step under way; later ones are ignored, so
    that clearing away is never cut short.
    """

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.patient = False
        self._story = asyncio.current_task()
        for each in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(each, self._ask)

    def _ask(self) -> None:
        if self.asked.is_set():
            return
        self.asked.set()
        if not self.patient and self._story is not None:
            self._story.cancel()


async def _demo(console: Console, once: bool) -> tuple[bool, Mapping[str, Any]]:
    ending = _Ending()
    async with _stage(console) as stage:
        outcomes = await _tell_story(stage)
        ok = all(each.seen for each in outcomes)
        if not once and any(each.receipt for each in outcomes):
            ending.patient = True
            _tell_how_to_join(stage)
            await _trickle(stage, ending.asked)
            stage.say("\nClearing away.", "dim")
        watch = stage.watch
        return ok, {
            "ok": ok,
            "steps": [each.as_dict() for each in outcomes],
            "delivered": watch.delivered,
            "quarantined": watch.dispositions[Disposition.QUARANTINED],
            "duplicates": watch.dispositions[Disposition.DUPLICATE],
        }


def tell(*, once: bool, as_json: bool) -> int:
    """Tell the story, then, unless ``once``, go on until Ctrl-C or SIGTERM; the exit code.

    0 if every step was seen, 1 if not or if the demo could not run, 130 if it was cut short.
    """
    console = Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=120)
    try:
        ok, told = asyncio.run(_demo(console, once))
    except asyncio.CancelledError:
        console.print("\nCut short.")
        return 130
    except (DemoError, BrokerError, TrustsError, schema.SchemaError) as error:
        return _complain(str(error))
    except (KafkaError, OSError, TimeoutError, DBAPIError, ValidationError) as error:
        return _complain(f"The demo could not run here ({type(error).__name__}).")
    if as_json:
        print(orjson.dumps(told).decode())
    return 0 if ok else 1


def _complain(line: str) -> int:
    Console(stderr=True, highlight=False).print(f"hub: {line}", style="red", markup=False, soft_wrap=True)
    return 1
