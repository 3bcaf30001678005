"""`hub run`: all services on one machine, each a process of its own; what dies is started again, and it is said."""

import asyncio
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hub.telemetry.log import Log

_WELL_AFTER_S = 30.0
"""A service that ran this long was well: its next death starts again with the shortest wait."""
_DRAIN_S = 30.0
_SUPERVISED = "HUB_SUPERVISED"


def end_with_the_supervisor() -> None:
    """In a service that `hub run` started: drain and leave when the supervisor is gone, killed ones included."""
    if os.environ.get(_SUPERVISED):
        threading.Thread(target=_until_alone, name="supervised", daemon=True).start()


def _until_alone() -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 1):
            pass
    os.kill(os.getpid(), signal.SIGTERM)


@dataclass(frozen=True, slots=True)
class Service:
    """``hub <name>``, and what its environment says beside the supervisor's."""

    name: str
    environment: Mapping[str, str] = field(default_factory=dict)


class Supervisor:
    """Runs each service until told to stop; several may be of one name."""

    def __init__(
        self,
        services: Sequence[Service],
        log: Log,
        *,
        backoff_s: float,
        backoff_max_s: float,
    ) -> None:
        self._services = services
        self._log = log
        self._backoff_s = backoff_s
        self._backoff_max_s = backoff_max_s
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Until SIGTERM or SIGINT; then every service is asked to drain, and killed if it does not end in time."""
        loop = asyncio.get_running_loop()
        for each in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(each, self._stopping.set)
        async with asyncio.TaskGroup() as tasks:
            for service in self._services:
                tasks.create_task(self._keep(service))

    async def _keep(self, service: Service) -> None:
        wait_s = self._backoff_s
        while not self._stopping.is_set():
            began = time.monotonic()
            exit_code = await self._once(service)
            if self._stopping.is_set():
                return
            if time.monotonic() - began > _WELL_AFTER_S:
                wait_s = self._backoff_s
            self._log.error("service.restarting", service=service.name, exit_code=exit_code, wait_s=wait_s)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), wait_s)
            wait_s = min(wait_s * 2, self._backoff_max_s)

    async def _once(self, service: Service) -> int:
        # A session of its own: Ctrl-C reaches only the supervisor, which then stops them in order. Its standard input ends
        # when the supervisor does, however that dies.
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "hub.cli",
            service.name,
            env={**os.environ, **service.environment, _SUPERVISED: "1"},
            stdin=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        self._log.info("service.started", service=service.name, pid=process.pid)
        ended = asyncio.create_task(process.wait())
        stopping = asyncio.create_task(self._stopping.wait())
        await asyncio.wait({ended, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not ended.done():
            process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(asyncio.shield(ended), _DRAIN_S)
            except TimeoutError:
                process.kill()
        exit_code = await ended
        self._log.info("service.stopped", service=service.name, pid=process.pid, exit_code=exit_code)
        return exit_code
