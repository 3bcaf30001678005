"""A real Apache Kafka on 127.0.0.1, installed on demand: one KRaft node that tests may stop, kill and freeze."""

import base64
import fcntl
import os
import shutil
import signal
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, NewTopic

from tests.harness.processes import (
    ServerError,
    ServerProcess,
    free_ports,
    port_is_open,
    run_tool,
    spawn,
    wait_until_answering,
)

KAFKA_VERSION: Final = "4.1.0"
_INSTALL_PATIENCE_S: Final = 600.0
_START_PATIENCE_S: Final = 60.0
_STOP_PATIENCE_S: Final = 30.0

# log4j-slf4j-impl: without a binding Kafka logs nothing, and a start that fails could not say why.
_POM: Final = f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>transfer-hub</groupId><artifactId>kafka-for-tests</artifactId><version>1</version><packaging>pom</packaging>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{KAFKA_VERSION}</version>
    </dependency>
    <dependency>
      <groupId>org.apache.logging.log4j</groupId><artifactId>log4j-slf4j-impl</artifactId><version>2.24.3</version>
    </dependency>
  </dependencies>
  <build><plugins><plugin>
    <groupId>org.apache.maven.plugins</groupId><artifactId>maven-dependency-plugin</artifactId><version>3.8.1</version>
  </plugin></plugins></build>
</project>
"""

_LOG4J: Final = """status = error
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d{ISO8601} %p %c{1} %m%n
rootLogger.level = warn
rootLogger.appenderRef.out.ref = out
"""

# Why each: KAFKA.md, section 1.
_PROPERTIES: Final[Mapping[str, str]] = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "inter.broker.listener.name": "PLAINTEXT",
    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "4",
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
    "auto.create.topics.enable": "false",
    "log.cleaner.dedupe.buffer.size": "2097152",
    # A killed broker is let in again only when its former session has ended: the default makes every restart 9 s.
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
}


def installation() -> Path:
    """Where Kafka's jars are, or would be: below $XDG_CACHE_HOME, else ~/.cache. Nothing is created."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "transfer-hub" / f"kafka-{KAFKA_VERSION}"


def java_executable() -> str | None:
    """The `java` of JAVA_HOME, else that of PATH; None if neither is there. Its version is not looked at."""
    home = os.environ.get("JAVA_HOME")
    if home and os.access(Path(home) / "bin" / "java", os.X_OK):
        return str(Path(home) / "bin" / "java")
    return shutil.which("java")


def install() -> Path:
    """Gets Kafka's jars through Maven, once, and returns their directory.

    Several processes may ask at the same time: a lock file lets one work and the others wait. The directory
    appears under its final name only when it is complete, so an interrupted download is never taken for Kafka.
    Raises ServerError, with the end of Maven's output, if Maven is missing, fails, or needs more than ten minutes.
    """
    target = installation()
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target.with_name(target.name + ".lock")):
        if target.is_dir():
            return target
        with tempfile.TemporaryDirectory(prefix=target.name + ".partial-", dir=target.parent) as partial:
            work = Path(partial)
            (work / "pom.xml").write_text(_POM, encoding="utf-8")
            jars = work / "libs"
            run_tool(
                ["mvn", "-q", "-B", "dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={jars}"],
                what=f"Installing Apache Kafka {KAFKA_VERSION} through Maven",
                timeout=_INSTALL_PATIENCE_S,
                cwd=work,
            )
            if not list(jars.glob("kafka_2.13-*.jar")):
                raise ServerError(f"Maven succeeded but left no Kafka in {jars}")
            jars.rename(target)
    return target


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    # flock, not the file's existence: the kernel releases it when its owner dies. So the file is left there.
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def create_topics(
    bootstrap_servers: str,
    names: Iterable[str],
    *,
    partitions: int = 1,
    config: Mapping[str, str] | None = None,
    timeout: float = 30,
) -> None:
    """Creates topics with replication 1 and returns when a producer can use them; `timeout` in seconds.

    A topic that is there already is an error, not a success: it may have other partitions and old messages.
    Raises ServerError naming the topic.
    """
    wanted = [NewTopic(name, partitions, 1, config=dict(config or {})) for name in names]
    if not wanted:
        return
    admin = AdminClient({"bootstrap.servers": bootstrap_servers, "log_level": 0})
    try:
        for name, done in admin.create_topics(wanted, operation_timeout=timeout, request_timeout=timeout).items():
            try:
                done.result()
            except KafkaException as refused:
                raise ServerError(f"Topic {name} was not created: {refused.args[0]}") from refused
    finally:
        admin.poll(0)


class GivenKafka:
    """A Kafka somebody else runs: tests use it, and skip whatever would stop or kill it (`controllable` is False)."""

    controllable = False

    def __init__(self, bootstrap_servers: str) -> None:
        self.bootstrap_servers = bootstrap_servers

    def create_topics(
        self, names: Iterable[str], partitions: int = 1, config: Mapping[str, str] | None = None
    ) -> None:
        create_topics(self.bootstrap_servers, names, partitions=partitions, config=config)


class KafkaServer:
    """One node, broker and controller at once, on 127.0.0.1; its ports stay the same across restarts.

    `directory` holds data, properties and log (`server.log`), and is kept; without it a temporary directory is
    made and `close()` deletes it. `heap` is Java's -Xmx. `properties` are added to, or replace, ours.
    Dies with the thread that called `start()`, by SIGKILL: even a frozen broker does not outlive the tests.
    Nothing is installed or started before `start()`.
    """

    controllable = True

    def __init__(
        self,
        directory: Path | None = None,
        *,
        heap: str = "384m",
        properties: Mapping[str, str] | None = None,
    ) -> None:
        self._temporary = directory is None
        self.directory = directory or Path(tempfile.mkdtemp(prefix="hub-kafka-"))
        self.directory.mkdir(parents=True, exist_ok=True)
        self._heap = heap
        self._extra = dict(properties or {})
        self._port, self._controller_port = free_ports(2)
        self._process = ServerProcess("Kafka", self.directory / "server.log")

    @property
    def bootstrap_servers(self) -> str:
        return f"127.0.0.1:{self._port}"

    @property
    def running(self) -> bool:
        """Whether the process exists; a frozen one counts."""
        return self._process.running

    @property
    def log_path(self) -> Path:
        return self._process.log_path

    def start(self) -> None:
        """Starts the broker, installing and formatting first if need be, and returns when it answers.

        Nothing happens if it runs. Raises ServerError with the log's tail if it ends or does not answer in 60 s;
        no process is left then.
        """
        if self.running:
            return
        java = java_executable()
        if java is None:
            raise ServerError("Kafka needs Java 17, and there is no java: apt-get install openjdk-17-jre-headless")
        class_path = f"{install()}/*"
        properties = self._write_configuration()
        if not (self.directory / "data" / "meta.properties").exists():
            cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()
            run_tool(
                # The id joined with "=": one that begins with "-" would be taken for an option.
                [java, "-Xmx128m", "-cp", class_path, "kafka.tools.StorageTool", "format", f"--cluster-id={cluster_id}", "-c", str(properties)],
                what="Formatting Kafka's data directory",
                timeout=_START_PATIENCE_S,
                cwd=self.directory,
            )
        process = spawn(
            [
                java,
                f"-Xmx{self._heap}",
                "-XX:+UseSerialGC",
                "-XX:TieredStopAtLevel=1",
                "-XX:-UsePerfData",
                "-Djava.awt.headless=true",
                f"-Dlog4j2.configurationFile={self.directory / 'log4j2.properties'}",
                "-cp",
                class_path,
                "kafka.Kafka",
                str(properties),
            ],
            log_path=self.log_path,
            cwd=self.directory,
            death_signal=signal.SIGKILL,
        )
        self._process.adopt(process)
        try:
            wait_until_answering(
                process, self._answers, what="Kafka", log_path=self.log_path, timeout=_START_PATIENCE_S
            )
        except BaseException:
            self._process.kill()
            raise

    def stop(self) -> None:
        """SIGTERM: Kafka's orderly end; SIGKILL if that takes more than 30 s. Nothing happens if it does not run."""
        self._process.end(signal.SIGTERM, _STOP_PATIENCE_S)

    def kill(self) -> None:
        """SIGKILL, as a crash. `start()` brings it back with the data that Kafka had given to the kernel."""
        self._process.kill()

    def freeze(self) -> None:
        """SIGSTOP: connections stay open and nothing answers. Raises ServerError if it does not run."""
        self._process.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT. Raises ServerError if it does not run."""
        self._process.signal(signal.SIGCONT)

    def close(self) -> None:
        """Stops, and deletes the directory if it was a temporary one."""
        self.stop()
        if self._temporary:
            shutil.rmtree(self.directory, ignore_errors=True)

    def create_topics(
        self, names: Iterable[str], partitions: int = 1, config: Mapping[str, str] | None = None
    ) -> None:
        """See the function of the same name."""
        create_topics(self.bootstrap_servers, names, partitions=partitions, config=config)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _answers(self) -> bool:
        # A client made while the port is closed would wait out its reconnect backoff.
        if not port_is_open(self._port):
            return False
        try:
            found = AdminClient({"bootstrap.servers": self.bootstrap_servers, "log_level": 0}).list_topics(timeout=2)
        except KafkaException:
            return False
        return 1 in found.brokers and found.controller_id == 1

    def _write_configuration(self) -> Path:
        (self.directory / "log4j2.properties").write_text(_LOG4J, encoding="utf-8")
        settings = {
            **_PROPERTIES,
            "listeners": f"PLAINTEXT://127.0.0.1:{self._port},CONTROLLER://127.0.0.1:{self._controller_port}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{self._port}",
            "controller.quorum.voters": f"1@127.0.0.1:{self._controller_port}",
            "log.dirs": str(self.directory / "data"),
            **self._extra,
        }
        path = self.directory / "server.properties"
        path.write_text("".join(f"{key}={value}\n" for key, value in settings.items()), encoding="utf-8")
        return path
