"""A Kafka inside our own process, for the demo: librdkafka's mock cluster, which confluent-kafka brings along.

It speaks the protocol over TCP on 127.0.0.1 and keeps everything in memory. For showing and trying out only. What
was seen with librdkafka 2.16 and aiokafka 0.14:

* Transactions are accepted, not modelled: read_committed readers see open and aborted records, and a former owner of a
  transactional id is not fenced. Their markers have a wrong checksum: aiokafka and Faust stop at them unless
  `check_crcs` (Faust: `broker_check_crcs`) is off. So produce without transactions here.
* Two aiokafka consumers in one group: the second is often refused (InvalidRequest at SyncGroup). Run one worker.
* A partition forgets its oldest messages beyond about 5 MB.
* Topics cannot be created or altered: see `ensure_topics`.

`python -m hub.demo.broker` prints the address as its first line and stays until SIGTERM or SIGINT.
"""

import signal
import sys
import threading
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

from confluent_kafka import KafkaException, Producer

_PATIENCE_S = 10.0


class BrokerError(RuntimeError):
    """The embedded broker does not run, or does not do what was asked."""


class EmbeddedBroker:
    """One broker that lives as long as this object is open; with it go the topics and every message.

    Nothing runs before `start()`. The port is chosen by the system and is another one at each start.
    """

    def __init__(self) -> None:
        self._client: Any = None
        self._bootstrap_servers = ""

    @property
    def bootstrap_servers(self) -> str:
        """`host:port`. Raises BrokerError unless started."""
        if self._client is None:
            raise BrokerError("The embedded broker does not run")
        return self._bootstrap_servers

    def start(self) -> None:
        """Returns when the broker answers. Nothing happens if it runs. Raises BrokerError after 10 s."""
        if self._client is not None:
            return
        # The cluster belongs to this client and ends with it. The client itself sends nothing.
        # Its threads inherit the mask: a signal that interrupts the mock's poll would end the broker for good.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            client = Producer({"test.mock.num.brokers": 1, "log_level": 3})
            found = client.list_topics(timeout=_PATIENCE_S).brokers.values()
        except KafkaException as silent:
            raise BrokerError(f"The embedded broker does not answer: {silent}") from silent
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._bootstrap_servers = ",".join(f"{each.host}:{each.port}" for each in found)
        self._client = client

    def ensure_topics(self, names: Iterable[str]) -> None:
        """Makes each topic that is not there yet.

        The broker refuses to create topics, but makes one when asked about it. It decides on the number of
        partitions itself (four). Raises BrokerError naming the topic.
        """
        if self._client is None:
            raise BrokerError("The embedded broker does not run")
        deadline = time.monotonic() + _PATIENCE_S
        for name in names:
            while True:
                try:
                    topic = self._client.list_topics(name, timeout=_PATIENCE_S).topics[name]
                except KafkaException as silent:
                    raise BrokerError(f"Topic {name} was not made: {silent}") from silent
                if topic.error is None and topic.partitions:
                    break
                if time.monotonic() > deadline:
                    raise BrokerError(f"Topic {name} was not made: {topic.error}")
                time.sleep(0.05)

    def close(self) -> None:
        """Ends the broker and forgets everything. Nothing happens if it does not run."""
        self._client = None  # the last reference: the client's end is the cluster's

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def main() -> int:
    """Runs a broker until SIGTERM or SIGINT; returns the exit status."""
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    with EmbeddedBroker() as broker:
        print(broker.bootstrap_servers, flush=True)
        ended.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
