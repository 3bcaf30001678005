"""Waiting for what need not end, and for what is ended by somebody who had no right to.

`asyncio.timeout` and `Task.cancel` ask a task to end, once. Two things that aiokafka 0.14 does make that too little for what has to go on
for months:

* it lets a cancellation pass by (`AIOKafkaClient.close`): then a wait that has a limit has none;
* it passes on a cancellation of its own (`Fetcher.close` awaits tasks that it has just cancelled): then whoever awaited it is cancelled
  too, no ``except Exception`` sees it, and a TaskGroup takes it for what was wanted. What ended so was never heard of again.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")

_LET_GO_S = 1.0
"""So long a task that was asked to end is waited for."""


class StrayCancellationError(Exception):
    """What was awaited was cancelled, and nobody had asked us to end."""


async def steadily(work: Awaitable[T]) -> T:
    """What ``work`` gives. Its cancellation is an error like others, StrayCancellationError, unless it is this task that is to end."""
    try:
        return await work
    except asyncio.CancelledError:
        if _is_to_end():
            raise
        raise StrayCancellationError from None


async def within(seconds: float, work: Awaitable[T]) -> T:
    """What ``work`` gives, if it does so in time. Work that does not end when it is asked to is left alone.

    Raises TimeoutError; StrayCancellationError as `steadily` does.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait([task], timeout=seconds)
        if task.done():
            return outcome_of(task)
    finally:
        await let_go(task)
    raise TimeoutError


def outcome_of(task: "asyncio.Future[T]") -> T:
    """What a finished task gave. Raises what it raised; StrayCancellationError if it was cancelled."""
    if task.cancelled():
        raise StrayCancellationError
    return task.result()


async def leave(seconds: float, *leaving: Callable[[], Awaitable[object]]) -> None:
    """Let go of connections, one after the other, each within so many seconds. However it goes, it is no failure of what was done with them."""
    for each in leaving:
        with suppress(Exception):
            await within(seconds, each())


async def let_go(task: "asyncio.Future[T]") -> None:
    """Ask a task to end, and wait for that a moment; what it says then interests nobody."""
    if not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=_LET_GO_S)
    task.add_done_callback(looked_at)


def _is_to_end() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def looked_at(task: "asyncio.Future[T]") -> None:
    """Whatever it ended with is known: asyncio would report an exception that nobody has asked for."""
    if not task.cancelled():
        task.exception()
