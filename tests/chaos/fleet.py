"""The hub's processes: started, hit, and started again whenever they end."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.harness.kafka_server import log_tail, spawn

ROOT = Path(__file__).resolve().parent.parent.parent
PLANTS = Path(__file__).resolve().parent / "plants"
_RESTART_S = 0.3
_OBEYS_S = 25.0
"""The hub promises an orderly end within 20 s."""


def environment(settings: Mapping[str, str], plant: str | None) -> dict[str, str]:
    """Of the hub's processes: nobody else's HUB_ settings; the planted bug, if there is one, comes by PYTHONPATH."""
    found = {name: value for name, value in os.environ.items() if not name.startswith(("HUB_", "CHAOS_"))}
    found |= {f"HUB_{name.upper()}": value for name, value in settings.items()}
    found["PYTHONPATH"] = str(ROOT)
    if plant is not None:
        found["PYTHONPATH"] = f"{PLANTS}{os.pathsep}{ROOT}"
        found["CHAOS_PLANT"] = plant
    return found


def hub_command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "hub.cli", *arguments]


async def run_once(command: Sequence[str], env: Mapping[str, str], cwd: Path) -> None:
    """A command that ends by itself. Raises RuntimeError with its output when it fails."""
    process = await asyncio.create_subprocess_exec(
        *command, env=dict(env), cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    output, _ = await asyncio.wait_for(process.communicate(), 90)
    if process.returncode != 0:
        raise RuntimeError(
            f"{' '.join(command[2:])} ended with {process.returncode}:\n{output.decode()[-3000:]}"
        )


@dataclass
class Member:
    """One process that should always run. `exits`: how it ended where nobody had hit it."""

    name: str
    kind: str
    command: Sequence[str]
    env: Mapping[str, str]
    folder: Path
    process: subprocess.Popen[bytes] | None = None
    exits: list[int] = field(default_factory=list)
    after_term: list[int] = field(default_factory=list)
    ignored: int = 0
    """How often SIGTERM did not end it within the patience."""
    stopping: bool = False
    _began: float = 0.0
    _hit: bool = False
    _asked_at: float | None = None
    _frozen: bool = False

    @property
    def log_path(self) -> Path:
        return self.folder / f"{self.name}.log"

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def age_s(self) -> float:
        return time.monotonic() - self._began

    def start(self) -> None:
        self._hit = self._frozen = False
        self._asked_at = None
        self._began = time.monotonic()
        # spawn: the kernel ends it when we die.
        self.process = spawn_in(self)

    def hit(self, number: signal.Signals) -> bool:
        """Send a signal; False if there is no process to be hit."""
        if self.process is None or not self.running:
            return False
        if number in {signal.SIGKILL, signal.SIGTERM}:
            self._hit = True
        if number is signal.SIGTERM and self._asked_at is None:
            self._asked_at = time.monotonic()
        self.process.send_signal(number)
        if self._frozen and number is signal.SIGTERM:
            self.process.send_signal(signal.SIGCONT)
        if number in {signal.SIGSTOP, signal.SIGCONT}:
            self._frozen = number is signal.SIGSTOP
        return True

    async def keep(self) -> None:
        """Start it whenever it does not run; until `stopping`."""
        while not self.stopping:
            self.start()
            await self._end()
            assert self.process is not None
            code = int(self.process.returncode or 0)
            if self._asked_at is not None and code != -signal.SIGKILL:
                self.after_term.append(code)
            if self._hit or self.stopping:
                continue
            self.exits.append(code)
            # One that cannot start must not take the whole machine.
            await asyncio.sleep(_RESTART_S if self.age_s > 2 else 1.0)

    async def _end(self) -> None:
        while self.running:
            if (
                self._asked_at is not None
                and time.monotonic() - self._asked_at > _OBEYS_S
                and not self._frozen
            ):
                self.ignored += 1
                self.hit(signal.SIGKILL)
                self._asked_at = None
            await asyncio.sleep(0.05)

    def end(self) -> None:
        """SIGTERM for good, and SIGKILL when that is not obeyed in time. `keep` comes to its end then."""
        self.stopping = True
        self.hit(signal.SIGCONT)
        self.hit(signal.SIGTERM)

    def tail(self, size: int = 1500) -> str:
        return log_tail(self.log_path, size)


def spawn_in(member: Member) -> subprocess.Popen[bytes]:
    """`spawn` takes no environment, so `env` passes it on."""
    env = ["/usr/bin/env", "-i", *(f"{name}={value}" for name, value in member.env.items())]
    return spawn(
        [*env, *member.command], log_path=member.log_path, cwd=member.folder, death_signal=signal.SIGKILL
    )


class Fleet:
    """All members; `started` keeps them alive until `end`."""

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = list(members)
        self._keepers: list[asyncio.Task[None]] = []

    def started(self) -> None:
        self._keepers = [asyncio.create_task(member.keep()) for member in self.members]

    def of(self, kind: str) -> list[Member]:
        return [member for member in self.members if member.kind == kind]

    async def end(self, but: Collection[str] = ()) -> None:
        """Orderly, and at once for those that do not obey; all ``but`` members of these kinds."""
        ending = [
            (member, keeper)
            for member, keeper in zip(self.members, self._keepers, strict=True)
            if member.kind not in but
        ]
        for member, _ in ending:
            member.end()
        await asyncio.gather(*(keeper for _, keeper in ending))
