"""Kafka as a door in: the worker. Faust does the group, the batches and the lifecycle; the rules are in `kafka_source`.

`hub.sources.kafka_consumer` is what of Faust had to be changed, `kafka_reader` and `kafka_watchdog` check it.
"""

import asyncio
import logging
import signal
from contextlib import suppress
from typing import Any

import faust

from hub.domain.trust import Directory
from hub.sources.kafka_config import ExitCode, WorkerConfig, leave
from hub.sources.kafka_consumer import HubApp, HubConsumer
from hub.sources.kafka_reader import KafkaUnavailableError, Reader
from hub.sources.kafka_source import KafkaSource
from hub.sources.kafka_watchdog import Watchdog
from hub.sources.positions import Positions
from hub.store.intake import Intake
from hub.telemetry.log import Log, fault_of

__all__ = ["ExitCode", "WorkerConfig", "serve"]


async def serve(
    config: WorkerConfig, directory: Directory, intake: Intake, positions: Positions, log: Log
) -> ExitCode:
    """Take in the messages of all trusts until SIGTERM or SIGINT. Call it in the main thread.

    Returns STOPPED after an orderly end, or KAFKA_UNAVAILABLE if Kafka cannot be reached at the start.
    In every other case the process ends here and now with an ExitCode: an exception that went through Faust
    would acknowledge what was not done. Raises ValueError if there is no trust, OSError if the CA file is absent.
    """
    if not len(directory):
        raise ValueError("No trust has joined: there is nothing to read")
    _quiet_libraries()
    stop = asyncio.Event()
    for each in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(each, stop.set)
    try:
        async with Reader(config) as reader:
            source = KafkaSource(config, directory.trust_of_topic, intake, positions, reader, log, leave)
            await _run(_app(config, source, sorted(directory.trust_of_topic)), source, stop, config, log)
    except KafkaUnavailableError as error:
        log.error("kafka.unavailable", fault=str(error))  # noqa: TRY400 - a trace can quote a message
        return ExitCode.KAFKA_UNAVAILABLE
    return ExitCode.STOPPED


async def _run(app: HubApp, source: KafkaSource, stop: asyncio.Event, config: WorkerConfig, log: Log) -> None:
    watchdog = Watchdog(config, source.vitals, log, leave)
    watchdog.start()
    tending = asyncio.create_task(source.tend())
    starting = asyncio.create_task(app.start())  # it returns only when partitions are assigned
    stopping = asyncio.create_task(stop.wait())
    crashing = asyncio.create_task(app.wait_until_stopped())
    await asyncio.wait({stopping, crashing, _failure_of(starting)}, return_when=asyncio.FIRST_COMPLETED)
    if not stopping.done():
        error = app.crash_reason or (
            starting.exception() if starting.done() and not starting.cancelled() else None
        )
        log.error("fault", fault=fault_of(error) if error else "the consumer stopped by itself")
        leave(ExitCode.UNFORESEEN)
    log.info("worker.leaving")
    watchdog.stop()
    tending.cancel()
    try:
        async with asyncio.timeout(config.drain_s):
            await app.stop()
            await source.stopped()
    except TimeoutError:
        log.error("fault", fault=f"not drained within {config.drain_s:g} s")  # noqa: TRY400
        leave(ExitCode.NOT_DRAINED)
    except Exception as error:  # noqa: BLE001 - the supervisor must hear of it
        log.error("fault", fault=fault_of(error))  # noqa: TRY400
        leave(ExitCode.UNFORESEEN)
    for task in (starting, crashing, tending):
        task.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await task


def _failure_of(task: "asyncio.Task[Any]") -> "asyncio.Future[None]":
    """Done when the task fails; never when it succeeds."""
    failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def look(done: "asyncio.Task[Any]") -> None:
        if not done.cancelled() and done.exception() is not None and not failed.done():
            failed.set_result(None)

    task.add_done_callback(look)
    return failed


def _app(config: WorkerConfig, source: KafkaSource, topics: list[str]) -> HubApp:
    security: dict[str, Any] = {}
    if config.security_protocol == "SASL_SSL":
        security["broker_credentials"] = faust.SASLCredentials(
            username=config.username,
            password=config.password,
            mechanism="SCRAM-SHA-512",
            ssl_context=config.ssl_context(),
        )
    app = HubApp(
        config.group,
        loop=asyncio.get_running_loop(),
        broker=[f"kafka://{server.strip()}" for server in config.bootstrap_servers.split(",")],
        processing_guarantee="at_least_once",
        store="memory://",
        web_enabled=False,
        topic_allow_declare=False,
        topic_disable_leader=True,
        consumer_group_instance_id=config.instance,
        consumer_auto_offset_reset="earliest",
        consumer_metadata_max_age_ms=int(config.metadata_s * 1000),
        broker_session_timeout=config.session_timeout_s,
        broker_heartbeat_interval=config.session_timeout_s / 4,
        broker_rebalance_timeout=max(20, config.session_timeout_s),
        broker_commit_interval=0.5,
        stream_wait_empty=True,
        broker_max_poll_records=config.batch_messages_max,
        autodiscover=False,
        **security,
    )
    app.steering = source
    app.read_committed = config.read_committed
    app.fetch_wait_ms = int(config.batch_wait_s * 1000)
    app.transport.Consumer = HubConsumer
    channel = app.topic(
        *topics, key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw"
    )

    # concurrency=1: more loses messages on a crash (faust issue 606). Scale by partitions and workers.
    @app.agent(channel, concurrency=1, name="intake")  # type: ignore[untyped-decorator]
    async def take_in(stream: Any) -> None:
        async for event in stream.events():
            await source.handle(event.message.messages)
            event.message.handled.set()

    return app


def _quiet_libraries() -> None:
    """What Faust and its like log can quote a message's key and value; what matters is said in our words."""
    for name in ("faust", "mode", "aiokafka"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
