"""What both servers share: free ports, processes that die with us, signals, the tail of a log."""

import ctypes
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1
# Loaded here, not in the child: between fork and exec nothing may be imported or allocated lazily.
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


class ServerError(RuntimeError):
    """A server of the harness could not be installed, started or stopped; the message holds the log's tail."""


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on now.

    All are held open until the last is found, so that they differ. Another process can still take one
    before the server binds it; then the server's start fails with "address in use" in its log.
    """
    sockets = [socket.socket(socket.AF_INET, socket.SOCK_STREAM) for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()


def die_with_parent(death_signal: signal.Signals) -> Callable[[], None]:
    """A preexec_fn: the kernel sends `death_signal` to the child when the thread that started it ends.

    Linux only; elsewhere nothing is done. It is the *thread* that counts: start servers from a thread
    that lives as long as the server should (a pytest fixture's main thread does).
    """

    def set_death_signal() -> None:
        if _LIBC is not None:
            _LIBC.prctl(_PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)

    return set_death_signal


def spawn(
    command: Sequence[str],
    *,
    log_path: Path,
    cwd: Path,
    death_signal: signal.Signals,
    environment: Mapping[str, str] | None = None,
    user: int | None = None,
    group: int | None = None,
) -> subprocess.Popen[bytes]:
    """Starts a server in a session of its own, so that Ctrl-C in the terminal does not reach it; appends to its log."""
    with log_path.open("ab") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env=None if environment is None else dict(environment),
            user=user,
            group=group,
            extra_groups=[] if user is not None else None,
            start_new_session=True,
            preexec_fn=die_with_parent(death_signal),  # noqa: PLW1509 - only a system call happens in it
        )


def run_tool(
    command: Sequence[str],
    *,
    what: str,
    timeout: float,
    cwd: Path,
    environment: Mapping[str, str] | None = None,
    user: int | None = None,
    group: int | None = None,
) -> str:
    """Runs a tool that ends by itself and returns its output; `timeout` in seconds.

    Raises ServerError, with the end of the output, when it fails or takes too long.
    """
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env=None if environment is None else dict(environment),
            user=user,
            group=group,
            extra_groups=[] if user is not None else None,
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


def tail(log_path: Path, size: int = 4000) -> str:
    """The last `size` bytes of a log, as text; empty if there is none yet."""
    try:
        with log_path.open("rb") as log:
            log.seek(0, 2)
            log.seek(max(0, log.tell() - size))
            return log.read().decode(errors="replace")
    except FileNotFoundError:
        return ""


def wait_until_answering(
    process: subprocess.Popen[bytes],
    answers: Callable[[], bool],
    *,
    what: str,
    log_path: Path,
    timeout: float,
) -> None:
    """Waits until `answers()` is true; `timeout` in seconds. Raises ServerError with the log's tail.

    Does not end the process: that is the caller's.
    """
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServerError(
                f"{what} ended while starting (exit status {process.returncode}). End of {log_path}:\n{tail(log_path)}"
            )
        if answers():
            return
        time.sleep(0.05)
    raise ServerError(f"{what} does not answer after {timeout:.0f} s. End of {log_path}:\n{tail(log_path)}")


def port_is_open(port: int) -> bool:
    """Whether something accepts connections on this port of 127.0.0.1."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


class ServerProcess:
    """One server process: the signals are the same for every server.

    `Popen.send_signal` polls first, so no signal goes to a process that is not ours any more.
    """

    def __init__(self, what: str, log_path: Path) -> None:
        self.what = what
        self.log_path = log_path
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        """Whether the process exists; a frozen one counts as running."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        return self._require().pid

    def adopt(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def end(self, polite: signal.Signals, patience: float) -> None:
        """Sends `polite`, waits `patience` seconds, then SIGKILL. Nothing happens if it does not run."""
        if not self.running:
            return
        process = self._require()
        process.send_signal(signal.SIGCONT)  # a frozen process does not see the polite signal
        process.send_signal(polite)
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """SIGKILL, and waits until the process is gone. Nothing happens if it does not run."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(30)

    def signal(self, number: signal.Signals) -> None:
        """Raises ServerError if the process does not run."""
        if not self.running:
            raise ServerError(f"{self.what} does not run")
        self._require().send_signal(number)

    def _require(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise ServerError(f"{self.what} was never started")
        return self._process
