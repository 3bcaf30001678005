"""A clock after hours without a worker: the answer that it waits for lies in Kafka, and nobody is told that nobody answered."""

from datetime import timedelta

import pytest

from hub.demo.people import MARSHWIGGLE, QUILLFEATHER
from hub.services.clock import ClockService
from hub.services.heard import Heard
from hub.store import tables as t
from tests.stories.conftest import TRUSTS
from tests.stories.test_journeys import answer, ask

PATIENCE = timedelta(minutes=1)
EXETERS = ("epr.rh8.events", 0)
DOUBT = "The hub has not read all that RH8 sent"


class Lying:
    """What lies in the topics; a test takes it in by hand."""

    def __init__(self):
        self.end, self.next, self.is_seen = (
            {EXETERS: 0, ("epr.ra9.events", 0): 7},
            {("epr.ra9.events", 0): 7},
            True,
        )

    async def ends(self):
        return dict(self.end) if self.is_seen else None

    async def unread(self, ends):
        if not self.is_seen:
            return None
        return {key: at for key, end in ends.items() if (at := self.next.get(key, 0)) < end}


@pytest.fixture
def lying():
    return Lying()


@pytest.fixture
def clock(hub, lying):
    heard = Heard(lying, TRUSTS.trust_of_topic, PATIENCE)
    return ClockService(hub.engine, hub.journey, hub.clock, hub.log, poll_s=5, heard=heard)


async def rung(hub):
    return [row["because"] for row in await hub.rows(t.transfer_history) if row["clock"]]


async def rings(clock):
    count = 0
    while more := await clock.once():
        count += more
    return count


async def test_the_answer_that_lies_unread_is_read_before_a_clock_says_that_nobody_answered(
    hub, torbay, exeter, clock, lying
):
    """Asked in an emergency, answered after five minutes, and the hub was away for five hours. The third level was told before."""
    await ask(torbay, QUILLFEATHER, priority="stat")
    answered = hub.clock.later(minutes=5)
    hub.clock.later(hours=5)
    lying.end[EXETERS] = 900
    for read in (0, 300, 600):
        lying.next[EXETERS] = read
        assert await rings(clock) == 0
        hub.clock.later(seconds=50)
    await answer(exeter, "accepted", QUILLFEATHER, torbay, at=answered)
    lying.next[EXETERS] = 900
    assert await rings(clock) == 0
    hub.clock.later(minutes=2)
    await rings(clock)
    assert all("bed" in each for each in await rung(hub))


async def test_what_nobody_reads_is_not_waited_for_and_the_alarm_says_so(hub, torbay, exeter, clock, lying):
    """No worker comes: an alarm that may be wrong is better than none, and whoever gets it must know."""
    await ask(torbay, QUILLFEATHER, priority="stat")
    lying.end[EXETERS] = 900
    hub.clock.later(minutes=10)
    assert await rings(clock) == 0
    hub.clock.later(seconds=59)
    assert await rings(clock) == 0
    hub.clock.later(seconds=1)
    assert await rings(clock) == 1
    [said] = await rung(hub)
    assert said.startswith(
        f"{DOUBT}: it may have happened. RH8 has not looked at the request in time. Level 1"
    )
    for ods in ("RA9", "RH8"):
        assert (await hub.inbox(ods))[-1].of("Task")["note"][0]["text"] == said
    assert hub.log.lines[-1]["unread"] == ["RH8"]

    # A worker comes after all: the next alarm waits until it has read, and has no doubt.
    hub.clock.later(minutes=20)
    lying.next[EXETERS] = 100
    assert await rings(clock) == 0
    lying.next[EXETERS] = 900
    for _ in range(2):
        hub.clock.later(seconds=5)
        await rings(clock)
    assert len(await rung(hub)) > 1
    assert DOUBT not in "".join((await rung(hub))[1:])


async def test_a_worker_that_reads_for_ever_keeps_no_alarm_back_for_ever(hub, torbay, exeter, clock, lying):
    await ask(torbay, QUILLFEATHER, priority="stat")
    lying.end[EXETERS] = 100_000
    begun = hub.clock.later(minutes=10)
    for read in range(1, 100):
        lying.next[EXETERS] = read
        if await rings(clock):
            break
        hub.clock.later(seconds=30)
    assert hub.clock() - begun == 10 * PATIENCE
    assert DOUBT in (await rung(hub))[0]


async def test_without_kafka_it_is_not_known_what_was_sent(hub, torbay, clock, lying):
    await ask(torbay, QUILLFEATHER, priority="stat")
    lying.is_seen = False
    hub.clock.later(minutes=10)
    assert await rings(clock) == 0
    hub.clock.later(minutes=1)
    assert await rings(clock) == 1
    assert "all that RA9 and RH8 sent" in (await rung(hub))[0]


async def test_what_comes_all_the_time_keeps_no_clock_back(hub, torbay, clock, lying):
    """Something is always unread: what counts is what lay there when the clock ran out."""
    await ask(torbay, QUILLFEATHER, priority="stat")
    hub.clock.later(minutes=10)
    lying.end[EXETERS], lying.next[EXETERS] = 50, 40
    assert await rings(clock) == 0
    hub.clock.later(seconds=5)
    lying.end[EXETERS], lying.next[EXETERS] = 95, 90
    assert await rings(clock) == 1
    assert DOUBT not in (await rung(hub))[0]


async def test_other_hospitals_alarms_do_not_wait(hub, torbay, plymouth, clock, lying):
    await ask(torbay, QUILLFEATHER, priority="stat")
    other = await ask(torbay, MARSHWIGGLE, to="RK9", number="TR-2", priority="stat")
    lying.end[EXETERS] = 900
    hub.clock.later(minutes=10)
    assert await rings(clock) == 1
    assert [row["transfer_id"] for row in await hub.rows(t.transfer_history) if row["clock"]] == [other]
