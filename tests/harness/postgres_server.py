"""A private PostgreSQL cluster on 127.0.0.1 that tests may stop, kill and freeze."""

import asyncio
import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import asyncpg  # type: ignore[import-untyped]
import psutil
from sqlalchemy import make_url

from tests.harness.kafka_server import ServerError, ServerProcess, free_ports, run_tool, spawn

_START_PATIENCE_S: Final = 60.0
_STOP_PATIENCE_S: Final = 30.0
_QUERY_PATIENCE_S: Final = 30.0


def binaries() -> Path | None:
    """The directory with `initdb` and `postgres` side by side: Debian's newest version, else what PATH leads to.

    None if there is none. Links are followed, because PostgreSQL finds its other files from where it really is.
    """
    debian = sorted(
        Path("/usr/lib/postgresql").glob("*/bin"),
        key=lambda each: int(each.parent.name) if each.parent.name.isdigit() else 0,
        reverse=True,
    )
    on_path = [Path(found).resolve().parent for found in [shutil.which("postgres")] if found]
    for candidate in [*debian, *on_path]:
        if all(os.access(candidate / name, os.X_OK) for name in ("initdb", "postgres")):
            return candidate
    return None


def execute(url: str, statement: str) -> None:
    """Runs one statement outside any transaction, as `create database` wants it; `url` as SQLAlchemy's.

    In a thread with its own event loop, so that it can also be called where a loop is running already.
    Raises ServerError if the server refuses, is not there, or takes more than 30 s.
    """
    parsed = make_url(url).set(drivername="postgresql")
    failures: list[BaseException] = []

    async def work() -> None:
        async with asyncio.timeout(_QUERY_PATIENCE_S):
            connection = await asyncpg.connect(parsed.render_as_string(hide_password=False))
            try:
                await connection.execute(statement)
            finally:
                await connection.close()

    def in_thread() -> None:
        try:
            asyncio.run(work())
        except BaseException as failure:
            failures.append(failure)

    thread = threading.Thread(target=in_thread)
    thread.start()
    thread.join()
    if failures:
        raise ServerError(f"{statement}: {failures[0]!r}") from failures[0]


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


class GivenPostgres:
    """A PostgreSQL somebody else runs, known by the URL of one of its databases; the user must be allowed to
    create databases. Tests skip whatever would stop or kill it (`controllable` is False)."""

    controllable = False

    def __init__(self, url: str) -> None:
        self._url = make_url(url).set(drivername="postgresql+asyncpg")

    def url(self, database: str) -> str:
        return self._url.set(database=database).render_as_string(hide_password=False)

    def create_database(self, name: str) -> None:
        execute(self._url.render_as_string(hide_password=False), f"create database {_quoted(name)}")

    def drop_database(self, name: str) -> None:
        execute(
            self._url.render_as_string(hide_password=False),
            f"drop database if exists {_quoted(name)} with (force)",
        )


class PostgresServer:
    """A cluster of its own in a temporary directory, on a loopback port that stays the same across restarts.

    The superuser `postgres` enters without a password, from loopback only; there is no Unix socket. When we are
    root the server runs as `postgres`, else `nobody`, for PostgreSQL refuses root. `directory` must not exist or
    be empty, and that user must be able to reach it (not so below pytest's tmp_path, when root). `fsync` off is
    only for speed; a SIGKILL loses nothing either way, but timings mislead. `settings` are added to ours.
    Dies with this Python process, by SIGKILL: then the backends see it and leave by themselves.
    """

    controllable = True

    def __init__(
        self, directory: Path | None = None, *, fsync: bool = True, settings: Mapping[str, str] | None = None
    ) -> None:
        self._temporary = directory is None
        self.directory = directory or Path(tempfile.mkdtemp(prefix="hub-postgres-"))
        self.directory.mkdir(parents=True, exist_ok=True)
        (self._port,) = free_ports(1)
        self._settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self._port),
            "unix_socket_directories": "",
            "fsync": "on" if fsync else "off",
            "shared_buffers": "128MB",
            **(settings or {}),
        }
        self._account = _unprivileged_account()
        self._process = ServerProcess("PostgreSQL", self.directory / "server.log")
        self._watch: subprocess.Popen[bytes] | None = None

    @property
    def port(self) -> int:
        return self._port

    @property
    def running(self) -> bool:
        """Whether the process exists; a frozen one counts."""
        return self._process.running

    @property
    def log_path(self) -> Path:
        return self._process.log_path

    def url(self, database: str = "postgres") -> str:
        """For SQLAlchemy with asyncpg. The database need not exist."""
        return f"postgresql+asyncpg://postgres@127.0.0.1:{self._port}/{database}"

    def start(self) -> None:
        """Starts the server, creating the cluster first if need be; returns when it has answered a query, so after
        recovery. Nothing happens if it runs. Raises ServerError with the log's tail if it ends or does not answer
        in 60 s; no process is left then.
        """
        if self.running:
            return
        tools = binaries()
        if tools is None:
            raise ServerError("There is no PostgreSQL: apt-get install postgresql")
        data = self.directory / "data"
        user, group = self._account or (None, None)
        if not (data / "PG_VERSION").exists():
            if self._account is not None:
                os.chown(self.directory, *self._account)
            run_tool(
                # --no-sync is about creating the cluster only. C with UTF-8: the same order on every machine.
                [
                    str(tools / "initdb"),
                    "-D",
                    str(data),
                    "-U",
                    "postgres",
                    "-A",
                    "trust",
                    "-E",
                    "UTF8",
                    "--locale=C",
                    "--no-sync",
                ],
                what="Creating the PostgreSQL cluster",
                timeout=_START_PATIENCE_S,
                cwd=self.directory,
                user=user,
                group=group,
            )
        options = [part for key, value in self._settings.items() for part in ("-c", f"{key}={value}")]
        self._process.adopt(
            spawn(
                [str(tools / "postgres"), "-D", str(data), *options],
                log_path=self.log_path,
                cwd=self.directory,
                death_signal=signal.SIGKILL,
                user=user,
                group=group,
            )
        )
        try:
            self._process.wait_until(self._answers, _START_PATIENCE_S)
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """SIGINT, PostgreSQL's fast shutdown: clients are cut off, their transactions rolled back, the data written.

        Not SIGTERM, which here means to wait until the last client has left. SIGKILL if it takes more than 30 s.
        """
        if not self.running:
            return
        family = self._children()
        self._continue(family)
        self._process.end(signal.SIGINT, _STOP_PATIENCE_S)
        _kill_all(family)

    def kill(self) -> None:
        """SIGKILL to the server and every process of it, as a loss of power without losing the kernel's memory.

        All of them: a backend that lived on could finish its commit, and would keep the next start from beginning.
        """
        if not self.running:
            return
        self._process.send(signal.SIGSTOP)  # so that it starts no further process while we look
        family = self._children()
        self._process.kill()
        _kill_all(family)
        self._end_watch()

    def freeze(self) -> None:
        """SIGSTOP to every process: connections stay open and nothing answers. Raises ServerError if it does not run."""
        self._process.send(signal.SIGSTOP)
        family = self._children()
        for each in family:
            _signal(each, signal.SIGSTOP)
        self._end_watch()
        # If we die now, the kernel ends the server, but its frozen backends would sleep for ever. This shell sees
        # our end of the pipe close and wakes them; they find the server gone and leave.
        pids = " ".join(str(each.pid) for each in family)
        if pids:
            self._watch = subprocess.Popen(
                ["/bin/sh", "-c", f"read nothing; kill -CONT {pids} 2>/dev/null"],
                stdin=subprocess.PIPE,
                start_new_session=True,
            )

    def thaw(self) -> None:
        """SIGCONT to every process. Raises ServerError if it does not run."""
        if not self.running:
            raise ServerError("PostgreSQL does not run")
        self._continue(self._children())

    def create_database(self, name: str) -> None:
        """Raises ServerError if it exists."""
        execute(self.url(), f"create database {_quoted(name)}")

    def drop_database(self, name: str) -> None:
        """Cuts off whoever uses it. Nothing happens if it does not exist."""
        execute(self.url(), f"drop database if exists {_quoted(name)} with (force)")

    def close(self) -> None:
        """Stops, and deletes the directory if it was a temporary one."""
        self.stop()
        if self._temporary:
            shutil.rmtree(self.directory, ignore_errors=True)

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
        # A query, not the port: the port is open while recovery still turns clients away.
        try:
            execute(self.url(), "select 1")
        except ServerError:
            return False
        return True

    def _children(self) -> list[psutil.Process]:
        # PostgreSQL gives each backend a session of its own: no process group holds them all.
        try:
            return psutil.Process(self._process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def _continue(self, family: list[psutil.Process]) -> None:
        for each in family:
            _signal(each, signal.SIGCONT)
        self._process.send(signal.SIGCONT)
        self._end_watch()

    def _end_watch(self) -> None:
        if self._watch is not None:
            self._watch.kill()
            self._watch.communicate()
            self._watch = None


def _unprivileged_account() -> tuple[int, int] | None:
    """User and group to run as; None to stay who we are."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return entry.pw_uid, entry.pw_gid
    raise ServerError("PostgreSQL does not run as root, and there is neither a user postgres nor nobody")


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)  # psutil compares the start time: never somebody else's process


def _kill_all(family: list[psutil.Process]) -> None:
    for each in family:
        _signal(each, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while left := [each.pid for each in family if _lives(each)]:
        if time.monotonic() > deadline:
            raise ServerError(f"Processes of PostgreSQL survived SIGKILL: {left}")
        time.sleep(0.01)


def _lives(process: psutil.Process) -> bool:
    # They are not our children: one that init has not collected yet (a zombie) has ended all the same.
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
