"""Rows for somebody whom the directory does not have: said once, and not of those who fetch by themselves."""

import asyncio

from hub.domain.trust import Directory
from hub.services.dispatcher import Dispatcher, DispatcherConfig
from tests.unit.test_beat import directory, engine, write  # noqa: F401 - a fixture


class Lines:
    def __init__(self):
        self.errors = []

    def error(self, event, **said):
        self.errors.append((event, said["receiver"]))

    def info(self, event, **said):
        pass

    warning = info


async def test_who_fetches_is_no_stranger(engine):  # noqa: F811
    first, *_ = directory()
    fetches = first.model_copy(update={"doors": first.doors.model_copy(update={"outward": "polled"})})
    await write(engine, fetches.ods)
    await write(engine, "ZZ9")
    log, stop = Lines(), asyncio.Event()
    dispatcher = Dispatcher(engine, Directory([fetches]), None, log, DispatcherConfig(poll_s=0.01))
    task = asyncio.create_task(dispatcher.run(stop))
    await asyncio.sleep(0.5)
    stop.set()
    await asyncio.wait_for(task, 30)

    assert log.errors == [("delivery.failed", "ZZ9")]
