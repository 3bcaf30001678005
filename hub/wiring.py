"""The one place where parts are put together. Reads settings; nobody below does."""

import asyncio
import fcntl
import gc
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, TYPE_CHECKING

from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine

from hub.audit.entries import AuditEntry, Code
from hub.destinations.kafka import KafkaAccess, KafkaDestination
from hub.destinations.push import PushAccess, PushDestination
from hub.domain.delivery import DeliveryError
from hub.domain.trust import Directory
from hub.fhir.audit_event import Observer
from hub.governance.disclosed import as_audit_events
from hub.journey.decide import Journey
from hub.journey.normalise import Rules
from hub.journey.read import Limits
from hub.patience import leave, let_go, steadily
from hub.services.clock import ClockService
from hub.services.dispatcher import Destination, Dispatcher, DispatcherConfig
from hub.services.feeds import FeedConfig, FeedService
from hub.services.heard import Heard
from hub.services.log_keys import LogKeys, load_keys, new_keys, require_ours
from hub.services.process_name import process_name
from hub.services.sealer import Sealer, SealerConfig, to_file, to_topic
from hub.settings import HubSettings
from hub.sources.kafka_config import WorkerConfig
from hub.sources.unread import Unread
from hub.store.engine import is_sqlite, open_engine
from hub.store.exporting import newest_checkpoint
from hub.store.positions import StoredPositions
from hub.store.schema import changed, require_current
from hub.store.unit_of_work import UnitOfWork
from hub.store.write import write_audit
from hub.telemetry.log import get_log
from hub.trusts import load_books, load_clocks, load_directory

if TYPE_CHECKING:
    from fastapi import FastAPI

    from hub.facade.service import Facade
    from hub.facade.tokens import TokenOffice


_GOODBYE_S = 5.0
_SCHEMA_LOOK_S = 5.0


class SecondWorkerError(Exception):
    """SQLite has one writer and no row locks: a second worker on the same file is refused."""


class TokenKeyError(Exception):
    """The key that access tokens are signed with cannot be used."""


def now() -> datetime:
    """The hub's clock."""
    return datetime.now(UTC)


@asynccontextmanager
async def opened(
    settings: HubSettings, *, check_schema: bool = True, long_statements: bool = False
) -> AsyncIterator[AsyncEngine]:
    """The database, closed again at the end. Raises SchemaError if it is not at this program's version."""
    engine = open_engine(
        settings.database_url.get_secret_value(),
        patience_s=settings.store_patience_s,
        long_statements=long_statements,
    )
    try:
        if check_schema:
            await require_current(engine)
        yield engine
    finally:
        # Each connection says goodbye and waits for the answer, and a database that has fallen silent gives none.
        await leave(_GOODBYE_S, engine.dispose)


@asynccontextmanager
async def _serving(engine: AsyncEngine) -> AsyncIterator[None]:
    """Around a service: `hub db upgrade` under it is a SIGTERM to it, and SchemaError once it has ended. An upgrade sees who works
    at that moment, and not who waits for something to do.
    """

    async def look() -> None:
        await changed(engine, _SCHEMA_LOOK_S)
        signal.raise_signal(signal.SIGTERM)

    looking = asyncio.create_task(look())
    try:
        yield
    finally:
        await let_go(looking)
    if not looking.cancelled():
        await require_current(engine)


def directory(settings: HubSettings) -> Directory:
    """The trusts that have joined. Raises TrustsError."""
    return load_directory(settings.schemas_dir)


def journey(settings: HubSettings, trusts: Directory) -> Journey:
    """The rules all messages go by."""
    return Journey(
        trusts,
        Limits(settings.message_bytes_max, settings.message_depth_max),
        Rules(
            settings.nhs_number_check,
            timedelta(seconds=settings.clock_ahead_s),
            timedelta(seconds=settings.clock_ahead_max_s),
            timedelta(days=settings.clock_behind_max_days),
        ),
        load_books(settings.schemas_dir, trusts),
        load_clocks(settings.schemas_dir, trusts),
    )


def unit_of_work(
    settings: HubSettings, engine: AsyncEngine, trusts: Directory, service: str = "worker"
) -> UnitOfWork:
    """The one transaction; ``service`` is who works with it, for the log."""
    return UnitOfWork(
        engine,
        journey(settings, trusts),
        now,
        get_log(service=service),
        quarantine_in_a_row_max=settings.quarantine_in_a_row_max,
    )


def kafka_access(settings: HubSettings) -> KafkaAccess:
    """How to reach Kafka."""
    password = settings.kafka_password.get_secret_value() if settings.kafka_password else None
    return KafkaAccess(
        settings.kafka_bootstrap_servers,
        settings.kafka_security_protocol,
        settings.kafka_username,
        password,
        settings.kafka_ca_file,
    )


def push_access(settings: HubSettings) -> PushAccess:
    """How the hub shows itself to receivers that it posts to."""
    return PushAccess(
        settings.push_ca_file, settings.push_certificate_file, settings.push_key_file, settings.push_answer_s
    )


def _settle() -> None:
    """What was loaded so far stays until the end: the garbage collector need not walk over it again. It is most
    of the heap, and a full collection of it stops everything for tens of milliseconds.
    """
    gc.collect()
    gc.freeze()
    # A batch makes some ten thousand objects that all live until its commit: no use to look at them in between.
    gc.set_threshold(50_000, 20, 20)


def _stopped_by_a_signal() -> asyncio.Event:
    """Set by SIGTERM and SIGINT. Call it in the main thread."""
    stop = asyncio.Event()
    for each in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(each, stop.set)
    return stop


async def run_dispatcher(settings: HubSettings) -> None:
    """`hub dispatcher`: until SIGTERM or SIGINT."""
    stop = _stopped_by_a_signal()
    access, log = kafka_access(settings), get_log(service="dispatcher")
    config = DispatcherConfig(
        batch_max=settings.dispatch_batch_max,
        poll_s=settings.dispatch_poll_s,
        gather_s=settings.dispatch_gather_s,
        backoff_s=settings.dispatch_backoff_s,
        backoff_max_s=settings.dispatch_backoff_max_s,
        lease_s=settings.dispatch_lease_s,
    )
    trusts, push = directory(settings), push_access(settings)

    def destination(ods: str) -> Destination:
        doors = trusts[ods].doors
        if doors.outward == "push" and doors.url is not None:
            return PushDestination(doors.url, push)
        return KafkaDestination(ods, access, transactions=settings.kafka_transactions)

    async with opened(settings) as engine, _serving(engine):
        dispatcher = Dispatcher(
            engine,
            trusts,
            destination,
            log,
            config,
        )
        _settle()
        await dispatcher.run(stop)


async def run_clock(settings: HubSettings) -> None:
    """`hub clock`: until SIGTERM or SIGINT. Raises TrustsError."""
    stop = _stopped_by_a_signal()
    trusts = directory(settings)
    rules, topics = journey(settings, trusts), trusts.trust_of_topic
    async with (
        opened(settings) as engine,
        _serving(engine),
        Unread(_clock_config(settings), topics, StoredPositions(engine, now)) as unread,
    ):
        clock = ClockService(
            engine,
            rules,
            now,
            get_log(service="clock"),
            poll_s=settings.clock_poll_s,
            delivery_late_s=settings.delivery_late_s,
            sealing_late_s=settings.audit_late_s,
            heard=Heard(unread, topics, max(rules.clocks.settle, _HEARD_AT_LEAST)),
        )
        _settle()
        await clock.run(stop)


_HEARD_AT_LEAST = timedelta(seconds=30)
"""So long a clock waits for a worker that starts beside it, whatever `Clocks.settle` says."""


def _clock_config(settings: HubSettings) -> WorkerConfig:
    """How the clock looks what of the trusts' topics was not taken in. It has other things to do than to wait for Kafka."""
    access = kafka_access(settings)
    return WorkerConfig(
        bootstrap_servers=settings.kafka_bootstrap_servers,
        security_protocol=settings.kafka_security_protocol,
        read_committed=settings.kafka_transactions,
        username=access.username,
        password=access.password,
        ca_file=access.ca_file,
        patience_s=5,
    )


def audit_keys(settings: HubSettings, newest: str | None) -> LogKeys:
    """The keys that sign the log; made where nothing was ever signed (``newest`` is the log's newest checkpoint). Raises KeyFileError."""
    if newest is None and not settings.audit_key_file.exists():
        new_keys(settings.audit_key_file, settings.audit_origin)
        get_log(service="sealer").warning("key.made", path=str(settings.audit_key_file))
    return load_keys(settings.audit_key_file)


async def audit_key_changed(
    settings: HubSettings, what: str, operator: str, change: Callable[[], LogKeys]
) -> LogKeys:
    """Change the keys which sign the log, by ``change``, and write that down; nothing is changed while the database is away.

    Raises KeyFileError.
    """
    async with opened(settings) as engine, engine.begin() as connection:
        keys = change()
        detail = {"change": f"audit-key-{what}", "keys": [vkey.split("+")[1] for vkey in keys.public]}
        entry = AuditEntry(Code.CONFIG_CHANGED, now(), "cli", user_id=operator, detail=detail)
        await write_audit(connection, [entry])
    return keys


async def run_sealer(settings: HubSettings) -> None:
    """`hub sealer`: until SIGTERM or SIGINT. Raises KeyFileError."""
    stop, access = _stopped_by_a_signal(), kafka_access(settings)

    def destination() -> Destination:
        return KafkaDestination("audit", access, transactions=False)

    publish = [to_file(settings.audit_checkpoint_file), to_topic(settings.audit_topic, destination)]
    async with opened(settings) as engine, _serving(engine):
        newest = await newest_checkpoint(engine)
        keys = audit_keys(settings, newest)
        require_ours(keys, settings.audit_origin, newest)
        sealer = Sealer(
            engine,
            settings.audit_origin,
            keys.signers,
            publish,
            now,
            get_log(service="sealer"),
            holder=process_name(),
            config=SealerConfig(settings.audit_seal_s, settings.audit_checkpoint_s),
        )
        _settle()
        await sealer.run(stop)


def audit_observer(settings: HubSettings) -> Observer:
    """The hub, as its AuditEvents name it."""
    return Observer(organisation=settings.audit_organisation, address=settings.facade_url)


async def lying_in(settings: HubSettings, ods: str, topics: Sequence[str]) -> set[tuple[int, str]]:
    """The hub's records that lie in a receiver's topics, as number and event id. Raises DeliveryError. Fences nobody."""
    door = KafkaDestination(ods, kafka_access(settings), transactions=False)
    try:
        await door.start()
        back = await door.read_back(topics, ())
    finally:
        await door.close()
    for fault in back.closed.values():
        raise DeliveryError(fault)
    return {(each.seq, each.event_id) for each in back.found}


async def run_feeds(settings: HubSettings) -> None:
    """`hub feeds`: until SIGTERM or SIGINT. Raises TrustsError."""
    stop, access, push = _stopped_by_a_signal(), kafka_access(settings), push_access(settings)
    names = {each.ods: each.name for each in directory(settings)}
    observer, url = audit_observer(settings), settings.audit_repository_url
    doors: dict[str, tuple[str, Callable[[], Destination]]] = {}
    if settings.audit_topic_feed:
        doors["topic"] = (
            settings.audit_topic,
            lambda: KafkaDestination("audit", access, transactions=settings.kafka_transactions),
        )
    if url is not None:
        doors["repository"] = (url, lambda: PushDestination(url, push))
    config = FeedConfig(
        backoff_s=settings.dispatch_backoff_s,
        backoff_max_s=settings.dispatch_backoff_max_s,
    )
    async with opened(settings) as engine, _serving(engine):
        feeds = [
            FeedService(
                engine,
                name,
                to,
                open_destination,
                as_audit_events(engine, to, names, observer),
                now,
                get_log(service="feeds"),
                holder=process_name(),
                config=config,
            )
            for name, (to, open_destination) in doors.items()
        ]
        _settle()
        await asyncio.gather(stop.wait(), *(each.run(stop) for each in feeds))


def token_office(settings: HubSettings) -> "TokenOffice":
    """Who makes access tokens. Raises TokenKeyError."""
    from joserfc.errors import JoseError  # noqa: PLC0415 - only the facade needs it
    from joserfc.jwk import ECKey  # noqa: PLC0415

    from hub.facade.tokens import TokenOffice  # noqa: PLC0415

    life = timedelta(seconds=settings.token_life_s)
    if settings.token_key_file is None:
        return TokenOffice(settings.facade_url, ECKey.generate_key("P-384"), life)
    try:
        key = ECKey.import_key(settings.token_key_file.read_bytes())
    except (OSError, ValueError, JoseError) as error:
        raise TokenKeyError(f"HUB_TOKEN_KEY_FILE cannot be read ({type(error).__name__}).") from error
    if not key.is_private or key.curve_name != "P-384":
        raise TokenKeyError("HUB_TOKEN_KEY_FILE must hold a private P-384 key.")
    return TokenOffice(settings.facade_url, key, life)


def facade_app(settings: HubSettings, engine: AsyncEngine) -> "FastAPI":
    """The facade as an ASGI application. Raises TokenKeyError, TrustsError."""
    from hub.facade.app import make_app  # noqa: PLC0415 - only the facade needs it

    return make_app(facade_of(settings, engine))


def facade_of(settings: HubSettings, engine: AsyncEngine) -> "Facade":
    """What the facade's interactions work with. Raises TokenKeyError, TrustsError."""
    from hub.facade.service import Facade, Limits  # noqa: PLC0415 - only the facade needs it

    trusts, office = directory(settings), token_office(settings)
    limits = Limits(
        settings.message_bytes_max,
        settings.facade_answer_s,
        settings.facade_requests_per_s,
        settings.watchdog_s,
        body_s=settings.facade_body_s,
        depth_max=settings.message_depth_max,
    )
    unit = unit_of_work(settings, engine, trusts, "serve")
    return Facade(
        engine, unit, trusts, office, now, get_log(service="serve"), limits, audit_observer(settings)
    )


async def run_facade(settings: HubSettings) -> None:
    """`hub serve`: until SIGTERM or SIGINT. Raises TokenKeyError, TrustsError."""
    import uvicorn  # noqa: PLC0415 - only the facade needs it

    from hub.facade.app import make_app  # noqa: PLC0415
    from hub.facade.notifier import Notifier  # noqa: PLC0415

    async with opened(settings) as engine, _serving(engine):
        facade = facade_of(settings, engine)
        config = uvicorn.Config(
            make_app(facade),
            host=settings.facade_host,
            port=settings.facade_port or 8080,
            access_log=False,
            log_level="warning",
            lifespan="off",
            server_header=False,
            timeout_graceful_shutdown=10,
        )
        _settle()
        stopped, server = _stopped_by_a_signal(), uvicorn.Server(config)
        stop = asyncio.create_task(stopped.wait())
        notifier = Notifier(facade, push_access(settings), max_s=settings.dispatch_backoff_max_s)
        telling = asyncio.create_task(steadily(notifier.run(stopped)))
        # By its own way of serving it takes the signals itself, and ends with them although all went well.
        serving = asyncio.create_task(server._serve())  # noqa: SLF001
        # Whatever of them ends first ends the process: without its notifier the facade would look well and tell nobody.
        await asyncio.wait({stop, serving, telling}, return_when=asyncio.FIRST_COMPLETED)
        server.should_exit = True
        stopped.set()
        await asyncio.gather(serving, telling)


def on_sqlite(settings: HubSettings) -> bool:
    """Whether the database is one of a single machine and a single worker."""
    return make_url(settings.database_url.get_secret_value()).get_backend_name() == "sqlite"


def hold_sqlite_alone(engine: AsyncEngine) -> IO[bytes] | None:
    """With SQLite, hold a lock file beside the database for as long as the returned file is open (a dead process
    lets go of it). None with PostgreSQL. Raises SecondWorkerError.
    """
    if not is_sqlite(engine):
        return None
    database = make_url(str(engine.url)).database or "hub.db"
    lock = Path(f"{database}.worker.lock").open("wb")  # noqa: SIM115 - held open on purpose, for the life of the process
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise SecondWorkerError(
            "Another worker already works on this SQLite database. SQLite allows exactly one: stop the other, "
            "or set HUB_DATABASE_URL to PostgreSQL to run several."
        ) from error
    return lock


def run_worker(settings: HubSettings) -> int:
    """`hub worker`: until SIGTERM or SIGINT. Returns the exit code. Raises SchemaError, SecondWorkerError, TrustsError."""
    # Faust takes long to load, and only the worker needs it.
    from hub.sources.kafka import serve  # noqa: PLC0415

    trusts = directory(settings)
    access = kafka_access(settings)
    engine = open_engine(
        settings.database_url.get_secret_value(),
        patience_s=settings.store_patience_s,
        # A worker that freezes within a batch must not keep the others from its patients for longer than from its partitions.
        idle_in_transaction_s=settings.store_patience_s * 2,
    )
    lock = hold_sqlite_alone(engine)
    config = WorkerConfig(
        bootstrap_servers=settings.kafka_bootstrap_servers,
        security_protocol=settings.kafka_security_protocol,
        group=settings.worker_group,
        instance=settings.worker_instance,
        batch_messages_max=settings.batch_messages_max,
        batch_wait_s=settings.batch_wait_s,
        session_timeout_s=settings.session_timeout_s,
        watchdog_s=settings.watchdog_s,
        read_committed=settings.kafka_transactions,
        username=access.username,
        password=access.password,
        ca_file=access.ca_file,
    )
    work, positions = unit_of_work(settings, engine, trusts), StoredPositions(engine, now)

    async def until_told_to_stop() -> int:
        async with _serving(engine):
            return int(await serve(config, trusts, work, positions, get_log(service="worker")))

    _settle()
    try:
        return asyncio.run(until_told_to_stop())
    finally:
        if lock is not None:
            lock.close()
