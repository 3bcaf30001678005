"""What a worker is told, how it ends, and how its clients reach Kafka."""

import os
import ssl
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any, Literal, NoReturn


class ExitCode(IntEnum):
    """How a worker ended, for its supervisor. Anything but STOPPED: start it again; nothing was acknowledged."""

    STOPPED = 0
    """SIGTERM or SIGINT: drained, and left the group."""
    KAFKA_UNAVAILABLE = 69
    """Kafka cannot be reached, or did not answer a question that had to be answered."""
    UNFORESEEN = 70
    """A fault of the hub's own, or of a library's."""
    STORE_UNAVAILABLE = 75
    """A transaction could not be written."""
    MISSED = 76
    """A message was on the topic and had not come with its batch. Reading again from the position brings it."""
    STALLED = 77
    """The watchdog: a message waits and nothing moves, or the event loop is blocked."""
    BLIND = 78
    """The watchdog could not see Kafka for too long."""
    NOT_DRAINED = 79
    """Asked to stop, but did not come to an end in time. Nothing is lost; the batch in hand comes again."""


Leave = Callable[[ExitCode], NoReturn]


def leave(code: ExitCode) -> NoReturn:
    """End the process at once, from any thread. No cleaning up: that is where Faust acknowledges what was not done."""
    sys.stderr.flush()
    os._exit(code)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """Everything `run_worker` must be told. Times are in seconds."""

    bootstrap_servers: str
    group: str = "hub.worker"
    instance: str | None = None
    """Static membership: a stable name, different for each worker."""
    security_protocol: Literal["PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    ca_file: Path | None = None
    batch_messages_max: int = 200
    batch_wait_s: float = 0.1
    session_timeout_s: float = 10
    watchdog_s: float = 60
    read_committed: bool = True
    """Off only for the embedded broker, which does not model transactions."""
    poll_s: float = 2
    """How often brakes, positions and missing topics are looked at."""
    metadata_s: float = 10
    """A topic or partition that was made meanwhile is read after this long."""
    patience_s: float = 15
    """The longest one question to Kafka may take."""
    drain_s: float = 20
    """The longest an orderly end may take."""

    def ssl_context(self) -> ssl.SSLContext:
        """Raises OSError if the CA file cannot be read."""
        return ssl.create_default_context(cafile=self.ca_file)

    def client_options(self) -> dict[str, Any]:
        """Keyword arguments for an aiokafka client of our own. Raises OSError if the CA file cannot be read."""
        options: dict[str, Any] = {
            "bootstrap_servers": self.bootstrap_servers,
            "security_protocol": self.security_protocol,
        }
        if self.security_protocol == "SASL_SSL":
            options |= {
                "sasl_mechanism": "SCRAM-SHA-512",
                "sasl_plain_username": self.username,
                "sasl_plain_password": self.password,
                "ssl_context": self.ssl_context(),
            }
        return options
