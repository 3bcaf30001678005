"""The log: one vocabulary of events, and no personal data.

Bind ``event_id``, ``correlation_id``, ``transfer_id``, ``trust``; never a name, a number of a person or a body.
JSON when standard error is not a terminal.
"""

import logging
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, Literal, Protocol, get_args

import structlog

LogEvent = Literal[
    # A service of `hub run`, or one started alone, began or ended. Bind: service, pid, exit_code.
    "service.started",
    "service.stopped",
    # `hub run` starts a service that died again. Bind: service, exit_code, wait_s.
    "service.restarting",
    # The store cannot be used; the worker leaves, nothing acknowledged. Bind: fault.
    "store.unavailable",
    # A subscriber did not take what it was told; it is told again. Bind: subscription, receiver, fault.
    "subscription.failed",
    # Two workers met in the store; the batch is run again. Bind: fault, again.
    "store.conflict",
    # A batch was committed. Bind: messages, accepted, other, ms.
    "batch.committed",
    # One message did not become canonical. Bind: event_id, trust, why, at.
    "message.quarantined",
    "message.rejected",
    "message.duplicate",
    "message.conflict",
    # A step of our own failed on a message. Bind: event_id, trust, fault (the exception's type and place).
    "message.fault",
    # A message that came before its request was taken in after it. Bind: event_id, trust.
    "message.found-its-transfer",
    # A transfer has waited too long and both hospitals are told; the clock waits for the database. Bind: transfer_id, clock, step, unread (trusts
    # whose messages lie unread: the alarm says so); fault.
    "clock.rang",
    "clock.waits",
    # A transfer is due and cannot be rung: nobody is told that it waits, until the fault is mended. The others ring. Bind: transfer_id, fault.
    "clock.cannot-ring",
    # `schemas/clocks.yaml` has other limits than when these were last heard of: they are due at another time. Bind: transfers (how many).
    "clock.recounted",
    # A hospital was not given something for HUB_DELIVERY_LATE_S; an incident is open. Bind: receiver.
    "delivery.late",
    # A REST message whose caller was told that it takes too long was not committed after all. Bind: fault.
    "facade.late",
    # The database refused a value of a REST request that the facade let through; its caller was told. Bind: fault.
    "facade.value-refused",
    # Starting positions. Bind: topic, partition, offset.
    "position.taken_up",
    "position.below_first",
    "position.above_end",
    "topic.made_anew",
    "position.gap",
    "position.missed",
    # A trust has a profile but its topic is not on the cluster (yet), or is there now. Bind: topic.
    "topic.missing",
    "topic.found",
    # A worker died at this position: messages are tried one by one; or, after three deaths, not read. Bind: topic, partition, offset.
    "suspect.alone",
    "suspect.unread",
    # Kafka cannot be used; the worker leaves, nothing acknowledged. Bind: fault.
    "kafka.unavailable",
    # Too many quarantined in a row; the trust's partitions are paused, or run again. Bind: trust, in_a_row.
    "brake.pulled",
    "brake.released",
    # No progress while messages wait. Bind: seconds, topic, partition.
    "watchdog.stalled",
    "watchdog.blind",
    # Partitions came or went. Bind: partitions.
    "worker.assigned",
    "worker.revoked",
    "worker.leaving",
    # Partitions come and go all the time, and little is taken in between. Bind: assignments, seconds, todo.
    "worker.restless",
    # Delivery. Bind: receiver, rows, attempts, fault, wait_s.
    "delivery.sent",
    "delivery.failed",
    "delivery.recovered",
    "delivery.taken_over",
    "delivery.found_sent",
    "delivery.lease_lost",
    # Of what was sent to a partition the last does not lie there; or a topic holds what this database does not know. Bind: topic,
    # partition, offset; rows.
    "delivery.records_gone",
    "delivery.strangers",
    # Sealing the audit. Bind: fault; size; at most one of them: what is in the database is not what was signed.
    "sealer.waits",
    "sealer.broken",
    # Audit entries wait for HUB_AUDIT_LATE_S to be sealed; an incident is open. Bind: since.
    "sealing.late",
    # There was no key to sign the log with, so one was made. Bind: path.
    "key.made",
    "checkpoint.published",
    "checkpoint.not_published",
    # A feed of the audit. Bind: feed, rows, fault, wait_s.
    "feed.waits",
    "feed.failed",
    "feed.found_sent",
    "feed.records_gone",
    # Something nobody foresaw. Bind: fault.
    "fault",
]

_IDENTIFIERS = frozenset(
    {"nhs_number", "name", "family", "given", "birth_date", "address", "telecom", "raw", "body", "payload"}
)


class Log(Protocol):
    """structlog's bound logger, narrowed to our vocabulary."""

    def info(self, event: LogEvent, **bound: Any) -> None: ...
    def warning(self, event: LogEvent, **bound: Any) -> None: ...
    def error(self, event: LogEvent, **bound: Any) -> None: ...
    def bind(self, **bound: Any) -> "Log": ...


def vocabulary() -> frozenset[str]:
    """Every event name that may be logged."""
    return frozenset(get_args(LogEvent))


def hide_identifiers(_: object, __: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    """Last before the renderer. By key only, so never put a message's body in a log line."""
    return {key: "[hidden]" if key in _IDENTIFIERS else value for key, value in event.items()}


def fault_of(error: BaseException) -> str:
    """An exception's type, the database's code (SQLSTATE) if it has one, and where it was raised: its text may quote a message."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f" at {trace.tb_frame.f_code.co_filename.rsplit('/', 1)[-1]}:{trace.tb_lineno}" if trace else ""
    origin = getattr(error, "orig", None)
    state = getattr(origin, "sqlstate", None) or getattr(origin, "pgcode", None)
    return f"{type(error).__name__}{f' {state}' if state else ''}{where}"


def set_up(log_format: str = "auto", level: str = "info") -> None:
    """Configure structlog for this process. Other libraries' warnings go to standard error as they are."""
    as_json = log_format == "json" or (log_format == "auto" and not sys.stderr.isatty())
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if as_json
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            hide_identifiers,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s %(message)s")


def get_log(**bound: Any) -> Log:
    """A logger of this vocabulary."""
    log: Log = structlog.get_logger(**bound)
    return log
