"""The commands that run the hub's services, and `hub demo`."""

from datetime import timedelta
from typing import Annotated

import typer
from sqlalchemy.exc import SQLAlchemyError

from hub import wiring
from hub.commands.terminal import (
    Failure,
    fail,
    logging_settings,
    run_it,
    settings_now,
)
from hub.services.health import untried
from hub.services.log_keys import KeyFileError
from hub.settings import HubSettings
from hub.store import schema
from hub.store.engine import room_for_locks
from hub.telemetry.log import get_log
from hub.trusts import TrustsError


def worker() -> None:
    """Read the trusts' events and take them in. Start as many as there are partitions; SQLite allows one."""
    settings = logging_settings()

    async def check() -> None:
        async with wiring.opened(settings):
            wiring.directory(settings)

    run_it(check)
    try:
        raise typer.Exit(wiring.run_worker(settings))
    except (schema.SchemaError, TrustsError, wiring.SecondWorkerError) as error:
        fail(str(error))


def dispatcher() -> None:
    """Deliver what the outbox holds to the trusts' inboxes and receipts."""
    run_it(wiring.run_dispatcher, logging_settings())


def clock() -> None:
    """Tell both hospitals when a transfer has waited too long (`schemas/clocks.yaml`)."""
    try:
        run_it(wiring.run_clock, logging_settings())
    except TrustsError as error:
        fail(str(error))


def serve() -> None:
    """The FHIR REST facade, for systems without Kafka: `hub/facade/README.md` shows how to use it."""
    try:
        run_it(wiring.run_facade, logging_settings())
    except (TrustsError, wiring.TokenKeyError) as error:
        fail(str(error))


def sealer() -> None:
    """Seal the audit: entries become leaves of a log that shows every change, and signed checkpoints go out."""
    try:
        run_it(wiring.run_sealer, logging_settings())
    except KeyFileError as error:
        fail(str(error))


def feeds() -> None:
    """Pass the sealed audit on as AuditEvents: to the topic `hub.audit`, and to a repository (HUB_AUDIT_REPOSITORY_URL)."""
    try:
        run_it(wiring.run_feeds, logging_settings())
    except TrustsError as error:
        fail(str(error))


OTHER_SERVICES = ("dispatcher", "clock", "sealer", "feeds")
"""That `hub run` starts once each, beside its workers."""


def run() -> None:
    """All services on this machine under one supervisor, which restarts what dies and says so; HUB_WORKERS workers."""
    from hub.services.supervisor import Service, Supervisor

    settings = logging_settings()
    if settings.workers > 1 and wiring.on_sqlite(settings):
        fail("SQLite allows one worker: HUB_WORKERS=1, or PostgreSQL (HUB_DATABASE_URL).")
    run_it(_check_room_for_locks, settings)
    others = (*OTHER_SERVICES, "serve") if settings.facade_port else OTHER_SERVICES
    workers = (Service("worker", _membership(settings, number)) for number in range(1, settings.workers + 1))
    supervisor = Supervisor(
        [*workers, *map(Service, others)],
        get_log(service="run"),
        backoff_s=settings.restart_backoff_s,
        backoff_max_s=settings.restart_backoff_max_s,
    )
    run_it(supervisor.run)


_LOCKS_A_MESSAGE = 5
"""At most, as a rule: its id, two numbers of the patient, the record, the request (decision 0002)."""


async def _check_room_for_locks(settings: HubSettings) -> None:
    """Without room PostgreSQL refuses a lock in the middle of a batch, to whoever asks last. A database that is away says nothing."""
    if settings.workers == 1:
        return
    wanted = settings.workers * settings.batch_messages_max * _LOCKS_A_MESSAGE
    try:
        async with wiring.opened(settings, check_schema=False) as engine:
            room = await room_for_locks(engine)
    except (OSError, TimeoutError, SQLAlchemyError):
        return
    if room is not None and wanted > room:
        raise Failure(
            f"{settings.workers} workers with {settings.batch_messages_max} messages each may want {wanted} locks at once, and PostgreSQL has "
            f"room for {room}: raise its max_locks_per_transaction, or lower HUB_WORKERS or HUB_BATCH_MESSAGES_MAX."
        )


def _membership(settings: HubSettings, number: int) -> dict[str, str]:
    """A name in the consumer group is one worker's: the first has the one that is set, the others have it with their number."""
    name = settings.worker_instance
    return {"HUB_WORKER_INSTANCE": f"{name}-{number}"} if name and number > 1 else {}


def health() -> None:
    """Exit 0 if the database answers, its schema fits, and no message has waited longer than the watchdog allows."""

    async def check(settings: HubSettings) -> None:
        async with wiring.opened(settings) as engine:
            patience = timedelta(seconds=settings.watchdog_s)
            stuck = await untried(engine, wiring.directory(settings), patience, wiring.now())
            if stuck:
                raise Failure(
                    f"Nothing was even tried for {', '.join(stuck)} in {settings.watchdog_s:.0f} s: is a dispatcher running?"
                )
        print("well")

    run_it(check, settings_now())


def demo(
    once: Annotated[
        bool, typer.Option("--once", help="Tell the story, then leave; exit 0 only if every step was seen.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The last line is one JSON object.")] = False,
) -> None:
    """Watch a patient move from Torbay to Exeter: broker, database, three simulated hospitals, all in this terminal."""
    from hub.demo.story import tell

    raise typer.Exit(tell(once=once, as_json=as_json))
