"""A real Apache Kafka for tests: one KRaft node on 127.0.0.1 that can be killed, frozen and restarted.

Kafka itself comes from Maven Central once and stays in the user's cache folder. The first half of this file
(ports, processes, signals) serves `postgres_server` too.
"""

import base64
import contextlib
import ctypes
import fcntl
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, NewTopic

KAFKA_VERSION = "4.1.0"

# -- ports and processes, for every server of the harness ----------------------------------------------------

_PR_SET_PDEATHSIG = 1
# Loaded here and not in the child: between fork and exec as little as possible should happen.
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


class ServerError(RuntimeError):
    """A server could not be installed, started or stopped; the message ends with the log's tail if there is one."""


def free_ports(count: int) -> list[int]:
    """Different ports of 127.0.0.1 that nobody uses now.

    They lie below the range from which the kernel takes the ports of outgoing connections (32768 and up).
    Otherwise, while a server is killed, a client's own attempt to reconnect can be given the server's port,
    connect to itself and keep the server from coming back.
    """
    found: list[int] = []
    for port in random.sample(range(20000, 32000), 200):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise ServerError(f"no {count} free ports between 20000 and 31999 on 127.0.0.1")


def port_is_open(port: int) -> bool:
    """Whether something accepts connections on this port of 127.0.0.1."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _new_spawner() -> None:
    """(Re)makes the thread that starts servers; a forked child does not inherit threads and needs its own.

    PR_SET_PDEATHSIG takes the end of the *thread* that forked for the parent's death. A server started
    from a short-lived thread would die with it; this thread ends only with the process.
    """
    global _spawner
    _spawner = ThreadPoolExecutor(max_workers=1, thread_name_prefix="harness-spawner")


_spawner: ThreadPoolExecutor
_new_spawner()
os.register_at_fork(after_in_child=_new_spawner)


def spawn(
    command: Sequence[str],
    *,
    log_path: Path,
    cwd: Path,
    death_signal: signal.Signals,
    user: int | None = None,
    group: int | None = None,
) -> subprocess.Popen[bytes]:
    """Starts a process whose output is appended to `log_path`.

    The kernel sends it `death_signal` when this Python process dies, however that dies (Linux only).
    It has a session of its own, so that Ctrl-C in the terminal does not reach it. Raises OSError.
    """

    def ask_for_death_signal() -> None:
        if _LIBC is not None:
            _LIBC.prctl(_PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)

    def start() -> subprocess.Popen[bytes]:
        with log_path.open("ab") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                user=user,
                group=group,
                extra_groups=None if user is None else [],
                start_new_session=True,
                # It runs after the change of user, which would clear the setting.
                preexec_fn=ask_for_death_signal,  # noqa: PLW1509 - nothing but one system call
            )

    return _spawner.submit(start).result()


def run_tool(
    command: Sequence[str],
    *,
    what: str,
    timeout: float,
    cwd: Path,
    user: int | None = None,
    group: int | None = None,
) -> str:
    """Runs a tool that ends by itself and returns its output; `timeout` in seconds.

    Raises ServerError with the end of the output when the tool is absent, fails or takes too long.
    """
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            user=user,
            group=group,
            extra_groups=None if user is None else [],
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        output = (late.stdout or b"").decode(errors="replace")
        raise ServerError(f"{what}: not done after {timeout:.0f} s\n{output[-3000:]}") from late
    except OSError as impossible:
        raise ServerError(f"{what}: {impossible}") from impossible
    output = done.stdout.decode(errors="replace")
    if done.returncode != 0:
        raise ServerError(f"{what}: exit status {done.returncode}\n{output[-3000:]}")
    return output


def log_tail(log_path: Path, size: int = 4000) -> str:
    """The last `size` bytes of a log as text; empty if there is none yet."""
    try:
        with log_path.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - size))
            return log.read().decode(errors="replace")
    except FileNotFoundError:
        return ""


class ServerProcess:
    """The one process of a server and the signals it gets.

    `Popen` never signals a process it has already waited for, so no stranger with a reused id is hit.
    """

    def __init__(self, what: str, log_path: Path) -> None:
        self.what = what
        self.log_path = log_path
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        """Whether the process exists; a frozen one does."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The process id, also of a process that has ended; 0 if none was ever started."""
        return 0 if self._process is None else self._process.pid

    def adopt(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def wait_until(self, answers: Callable[[], bool], timeout: float) -> None:
        """Waits until `answers()` is true; `timeout` in seconds.

        Otherwise ends the process and raises ServerError with the log's tail.
        """
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if not self.running:
                raise ServerError(f"{self.what} ended while starting{self._told_by_log()}")
            if answers():
                return
            time.sleep(0.05)
        self.kill()
        raise ServerError(f"{self.what} did not answer within {timeout:.0f} s{self._told_by_log()}")

    def end(self, polite: signal.Signals, patience: float) -> None:
        """Sends `polite`, waits `patience` seconds, then SIGKILL. Does nothing if it is not running."""
        if self._process is None or not self.running:
            return
        self._process.send_signal(polite)
        self._process.send_signal(signal.SIGCONT)  # a frozen process acts on the first signal only now
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """SIGKILL, then waits until the process is gone. Does nothing if it is not running."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(30)

    def send(self, number: signal.Signals) -> None:
        """Raises ServerError if the process is not running."""
        if self._process is None or not self.running:
            raise ServerError(f"{self.what} is not running")
        self._process.send_signal(number)

    def _told_by_log(self) -> str:
        return f"; end of {self.log_path}:\n{log_tail(self.log_path)}"


# -- installation --------------------------------------------------------------------------------------------

# slf4j-simple: without a binding Kafka logs nothing at all and a failed start could not be explained.
_POM = f"""\
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>transfer-hub</groupId>
  <artifactId>kafka-for-tests</artifactId>
  <version>1</version>
  <packaging>pom</packaging>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId>
      <artifactId>kafka_2.13</artifactId>
      <version>{KAFKA_VERSION}</version>
    </dependency>
    <dependency>
      <groupId>org.slf4j</groupId>
      <artifactId>slf4j-simple</artifactId>
      <version>1.7.36</version>
    </dependency>
  </dependencies>
</project>
"""


def kafka_home() -> Path:
    """The folder that holds (or will hold) Kafka: libs/, and the class archive."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "transfer-hub" / f"kafka-{KAFKA_VERSION}"


def kafka_is_installed() -> bool:
    """Whether Kafka is in the cache; then Maven and the network are not needed."""
    return (kafka_home() / "libs").is_dir()


def install_kafka(timeout: float = 600) -> Path:
    """Brings Kafka into the cache unless it is there, and returns its folder; `timeout` of Maven in seconds.

    Two processes may do this at once: one waits for the other. Raises ServerError.
    """
    home = kafka_home()
    home.mkdir(parents=True, exist_ok=True)
    with _locked(home / "install.lock"):
        if not kafka_is_installed():
            _download(home, timeout)
        _make_class_archive_once(home)
    return home


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock on the file; the kernel frees it when the process dies."""
    with path.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _download(home: Path, timeout: float) -> None:
    """Fetches the jars into a temporary folder and renames: libs/ is complete or absent."""
    with tempfile.TemporaryDirectory(dir=home, prefix="download-") as temporary:
        folder = Path(temporary)
        (folder / "pom.xml").write_text(_POM)
        run_tool(
            ["mvn", "-q", "-B", "dependency:copy-dependencies", f"-DoutputDirectory={folder / 'libs'}"],
            what="Download of Apache Kafka with Maven",
            timeout=timeout,
            cwd=folder,
        )
        (folder / "libs").rename(home / "libs")


def _class_archive(home: Path) -> Path:
    return home / "classes.jsa"


def _make_class_archive_once(home: Path) -> None:
    """Lets a throw-away broker write an AppCDS archive, which makes every later start faster.

    Best effort, tried once: without it everything works, only slower. A JVM that finds that the archive
    does not fit (another Java) goes on without it.
    """
    tried = home / "classes.tried"
    if tried.exists():
        return
    tried.touch()
    fresh = home / "classes.new"
    with contextlib.suppress(ServerError, OSError):
        with KafkaServer(_jvm_options=[f"-XX:ArchiveClassesAtExit={fresh}"], _home=home) as server:
            server.start()
        fresh.rename(_class_archive(home))


# -- the server ----------------------------------------------------------------------------------------------

# The C1 compiler alone and the serial collector: a quick start and little memory, at the price of throughput.
_QUICK_START = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")


class KafkaServer:
    """One Kafka node, broker and controller in one process, on 127.0.0.1 without security.

    `folder`: where data and log lie; a temporary one if not given, which `close()` removes.
    `heap_mb`: the Java heap in MiB. `quick_start=False` is for benchmarks: Java's full compiler and G1.
    `properties`: more lines for server.properties, or other values than the ones here.

        with KafkaServer() as kafka:      # starts it; close() at the end
            kafka.create_topics(["a"], partitions=4)
            kafka.kill(); kafka.start()   # same ports, same data

    Every method blocks; call it with `asyncio.to_thread` from a coroutine.
    """

    controllable = True

    def __init__(
        self,
        folder: Path | None = None,
        *,
        heap_mb: int = 384,
        quick_start: bool = True,
        properties: Mapping[str, str] | None = None,
        _jvm_options: Sequence[str] | None = None,
        _home: Path | None = None,
    ) -> None:
        self._temporary = folder is None
        self.folder = folder or Path(tempfile.mkdtemp(prefix="hub-kafka-"))
        self.folder.mkdir(parents=True, exist_ok=True)
        self._heap_mb = heap_mb
        self._quick_start = quick_start
        self._more_properties = dict(properties or {})
        self._own_jvm_options = _jvm_options
        self._home = _home
        self._port, self._controller_port = free_ports(2)
        self._process = ServerProcess(f"Apache Kafka {KAFKA_VERSION}", self.folder / "kafka.log")

    @property
    def bootstrap_servers(self) -> str:
        """host:port, the same for the whole life of this object."""
        return f"127.0.0.1:{self._port}"

    @property
    def log_path(self) -> Path:
        return self._process.log_path

    @property
    def pid(self) -> int:
        """Of the Java process, for measurements; 0 before the first start."""
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.running

    def start(self, timeout: float = 60) -> None:
        """Starts the node and waits until it answers and every partition has its leader; `timeout` in seconds.

        Does nothing if it is running. Raises ServerError with the log's tail. The first call on a machine
        also downloads Kafka, which `timeout` does not cover.
        """
        if self.running:
            return
        if self._home is None:
            self._home = install_kafka()
        self._write_properties()
        if not (self.folder / "data" / "meta.properties").exists():
            self._format()
        self._process.adopt(
            spawn(
                self._java("kafka.Kafka", str(self._properties_path)),
                log_path=self.log_path,
                cwd=self.folder,
                death_signal=signal.SIGKILL,
            )
        )
        self._process.wait_until(self._answers, timeout)

    def stop(self, patience: float = 30) -> None:
        """SIGTERM: an orderly shutdown; SIGKILL after `patience` seconds."""
        self._process.end(signal.SIGTERM, patience)

    def kill(self) -> None:
        """SIGKILL, as the kernel's out-of-memory killer would."""
        self._process.kill()

    def freeze(self) -> None:
        """SIGSTOP: connections stay open and nothing answers."""
        self._process.send(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT after freeze()."""
        self._process.send(signal.SIGCONT)

    def create_topics(
        self, names: Iterable[str], partitions: int = 1, config: Mapping[str, str] | None = None
    ) -> None:
        """See the function of the same name."""
        create_topics(self.bootstrap_servers, names, partitions, config)

    def close(self) -> None:
        """Stops the node and removes its folder if it was made here."""
        self.stop()
        if self._temporary:
            shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def _properties_path(self) -> Path:
        return self.folder / "server.properties"

    def _write_properties(self) -> None:
        properties = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@127.0.0.1:{self._controller_port}",
            "controller.listener.names": "CONTROLLER",
            "listeners": f"PLAINTEXT://127.0.0.1:{self._port},CONTROLLER://127.0.0.1:{self._controller_port}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{self._port}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "inter.broker.listener.name": "PLAINTEXT",
            "log.dirs": str(self.folder / "data"),
            "auto.create.topics.enable": "false",
            # Two sparse files of 10 MiB a partition otherwise, which the kernel zeroes page by page while they are new:
            # a third of a young broker's processor time, and nothing an old broker does.
            "log.index.size.max.bytes": str(512 * 1024),
            "offsets.topic.num.partitions": "4",
            "offsets.topic.replication.factor": "1",
            "transaction.state.log.num.partitions": "4",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "group.initial.rebalance.delay.ms": "0",  # else every start of a group takes 3 s
            "group.min.session.timeout.ms": "1000",
            "log.cleaner.dedupe.buffer.size": "2097152",  # else 128 MB of the heap
            # After SIGKILL the node's old registration must run out before it may come back.
            "broker.session.timeout.ms": "3000",
            "broker.heartbeat.interval.ms": "500",
            **self._more_properties,
        }
        self._properties_path.write_text("".join(f"{name}={value}\n" for name, value in properties.items()))

    def _format(self) -> None:
        """Gives the data folder its cluster id, which Kafka does not start without."""
        cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        run_tool(
            self._java(
                "kafka.tools.StorageTool",
                "format",
                f"--cluster-id={cluster_id}",
                "-c",
                str(self._properties_path),
            ),
            what="Formatting of Kafka's data folder",
            timeout=60,
            cwd=self.folder,
        )

    def _java(self, main_class: str, *arguments: str) -> list[str]:
        home = self._home or kafka_home()
        # In a fixed order, because the class archive is refused if the class path differs.
        jars = ":".join(sorted(str(jar) for jar in (home / "libs").glob("*.jar")))
        return ["java", *self._jvm_options(home, main_class), "-cp", jars, main_class, *arguments]

    def _jvm_options(self, home: Path, main_class: str) -> list[str]:
        options = [
            f"-Xmx{self._heap_mb}m",
            "-XX:-UsePerfData",  # no shared files in the machine's temporary folder
            "-Xshare:auto",
            "-Xlog:disable",  # an archive that does not fit is no news
            "-Dorg.slf4j.simpleLogger.showDateTime=true",
            "-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS",
        ]
        if self._quick_start:
            options += _QUICK_START
        if self._own_jvm_options is not None:
            return options + (list(self._own_jvm_options) if main_class == "kafka.Kafka" else [])
        if _class_archive(home).exists():
            options.append(f"-XX:SharedArchiveFile={_class_archive(home)}")
        return options

    def _answers(self) -> bool:
        """Whether clients can work: the broker is registered and each partition has a leader."""
        if not port_is_open(self._port):
            return False
        try:
            metadata = _admin(self.bootstrap_servers).list_topics(timeout=2)
        except KafkaException:
            return False
        partitions = [each for topic in metadata.topics.values() for each in topic.partitions.values()]
        return bool(metadata.brokers) and all(each.leader >= 0 for each in partitions)


def create_topics(
    bootstrap_servers: str,
    names: Iterable[str],
    partitions: int = 1,
    config: Mapping[str, str] | None = None,
    timeout: float = 30,
) -> None:
    """Makes topics with one replica each and waits until they can be used; existing ones are left as they are.

    `config`: topic settings such as {"retention.ms": "60000"}. `timeout` in seconds.
    Raises confluent_kafka.KafkaException, or ServerError when leaders are not there in time.
    """
    wanted = list(names)
    if not wanted:
        return
    admin = _admin(bootstrap_servers)
    topics = [
        NewTopic(name, num_partitions=partitions, replication_factor=1, config=dict(config or {}))
        for name in wanted
    ]
    for future in admin.create_topics(topics, operation_timeout=timeout, request_timeout=timeout).values():
        try:
            future.result()
        except KafkaException as refused:
            if refused.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise
    deadline = time.monotonic() + timeout
    while not all(_has_leaders(admin, name) for name in wanted):
        if time.monotonic() > deadline:
            raise ServerError(f"topics without leaders after {timeout:.0f} s: {', '.join(wanted)}")
        time.sleep(0.05)


def _has_leaders(admin: AdminClient, name: str) -> bool:
    topic = admin.list_topics(name, timeout=10).topics[name]
    return bool(topic.partitions) and all(each.leader >= 0 for each in topic.partitions.values())


def _admin(bootstrap_servers: str) -> AdminClient:
    # Quiet: a server that does not answer yet is expected here.
    return AdminClient({"bootstrap.servers": bootstrap_servers, "log_level": 0, "socket.timeout.ms": 10000})
