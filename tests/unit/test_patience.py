"""Waiting for libraries that neither end when they are asked to nor keep their cancellations to themselves."""

import asyncio
import time

import pytest

from hub.patience import StrayCancellationError, steadily, within


async def deaf():
    """Work that lets being asked to end pass by, once."""
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        await asyncio.sleep(60)


async def passing_on_a_cancellation():
    """As `Fetcher.close` of aiokafka 0.14 does."""
    task = asyncio.create_task(asyncio.sleep(60))
    task.cancel()
    await task


async def test_a_limit_holds_for_work_that_does_not_listen():
    began = time.monotonic()

    with pytest.raises(TimeoutError):
        await within(0.05, deaf())

    assert time.monotonic() - began < 30


@pytest.mark.parametrize("waiting", [steadily, lambda work: within(1, work)], ids=["steadily", "within"])
async def test_somebody_elses_cancellation_is_an_error_that_is_seen(waiting):
    with pytest.raises(StrayCancellationError):
        await waiting(passing_on_a_cancellation())


@pytest.mark.parametrize("waiting", [steadily, lambda work: within(60, work)], ids=["steadily", "within"])
async def test_our_own_end_is_no_error(waiting):
    task = asyncio.create_task(waiting(asyncio.sleep(60)))
    await asyncio.sleep(0.01)

    task.cancel()
    await asyncio.wait([task])

    assert task.cancelled()


async def test_a_limit_of_our_own_is_a_timeout_and_no_stray():
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await steadily(asyncio.sleep(60))


async def test_what_is_in_time_is_given():
    assert await within(1, asyncio.sleep(0, "done")) == "done"
    with pytest.raises(ValueError, match="theirs"):
        await within(1, raising(ValueError("theirs")))


async def raising(error):
    raise error
