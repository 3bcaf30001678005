"""`hub db restored`: what hospitals say of the lost time, in numbers that this database is about to give again."""

import pytest

from hub.demo.people import MARSHWIGGLE, QUILLFEATHER
from hub.store import tables as t
from hub.store.engine import open_engine
from hub.store.restored import ahead, give_new_numbers
from tests.harness.log import exported, seal_all, verified
from tests.stories.rest import System
from tests.stories.test_facade import asked, polled  # noqa: F401 - a fixture
from tests.stories.test_subscriptions import board, facade, notifier, subscribes, wish  # noqa: F401 - fixtures


@pytest.fixture(autouse=True)
def _on_postgresql(hub):
    if hub.engine.dialect.name != "postgresql":
        pytest.skip("A backup of SQLite is its file")


async def goes_on_at(hub):
    """As who owns the database, who put the backup back."""
    owner = open_engine(hub.owner_url)
    try:
        return await give_new_numbers(owner, "the disk was lost", hub.clock())
    finally:
        await owner.dispose()


async def test_a_late_acknowledgement_meets_no_other_patients_message(hub, torbay, polled):  # noqa: F811
    """Before the disk was lost Exeter was given a message under the next number. It acknowledges that now, while another patient's waits."""
    at_torbay = await (await System.join(polled, "RA9")).signed_in()
    at_exeter = await (await System.join(polled, "RH8")).signed_in()
    await asked(hub, torbay, at_torbay)
    [first] = (await at_exeter.get("/$inbox")).json()["entry"]
    last = int(first["resource"]["id"])
    first = await goes_on_at(hub)
    assert first == last + ahead(hub.clock()) + 1

    await asked(hub, torbay, at_torbay, patient=QUILLFEATHER, number="TR-2", stay="V-2")
    for number in range(last + 1, last + 4):
        assert (await at_exeter.ack(str(number))).status_code == 404
    waiting = [int(each["resource"]["id"]) for each in (await at_exeter.get("/$inbox")).json()["entry"]]
    assert waiting == [last, first]


async def test_no_audit_entry_has_the_number_of_another_act(hub, torbay, exeter):
    """A repository that keeps AuditEvents by their ids was given those of the lost time, under the numbers that come next."""
    await torbay.asks_to_transfer(MARSHWIGGLE, to="RH8", request_number="TR-1", encounter_number="V-1")
    await seal_all(hub.engine)
    await torbay.asks_to_transfer(QUILLFEATHER, to="RH8", request_number="TR-2", encounter_number="V-2")
    before = {row["entry"] for table in (t.audit_entry, t.audit_pending) for row in await hub.rows(table)}
    await goes_on_at(hub)
    await exeter.answers(MARSHWIGGLE, "accepted", request_number="TR-1", requester=torbay.profile)
    after = {row["entry"] for row in await hub.rows(t.audit_pending)} - before
    assert min(after) > max(before) + ahead(hub.clock())
    assert max(after) < 2**53  # a number that JavaScript can hold
    await seal_all(hub.engine)
    assert verified(await exported(hub.engine)).intact


async def test_a_subscriber_sees_that_something_is_missing(
    hub,
    torbay,
    at_torbay,
    at_exeter,
    board,  # noqa: F811
    notifier,  # noqa: F811
):
    assert (await subscribes(at_exeter, wish(board.url))).status_code == 201
    await notifier.once()
    await asked(hub, torbay, at_torbay)
    await notifier.once()
    await goes_on_at(hub)
    await asked(hub, torbay, at_torbay, patient=QUILLFEATHER, number="TR-2", stay="V-2")
    await notifier.once()
    assert board.numbers() == [1, 1 + ahead(hub.clock()) + 1]


async def test_what_a_subscriber_was_not_told_yet_it_is_told_under_a_new_number(
    hub,
    torbay,
    at_torbay,
    at_exeter,
    board,  # noqa: F811
    notifier,  # noqa: F811
):
    """The bed board was away when the backup was made."""
    assert (await subscribes(at_exeter, wish(board.url))).status_code == 201
    await notifier.once()
    board.answers = [503]
    await asked(hub, torbay, at_torbay)
    await notifier.once()
    assert board.numbers() == []
    await goes_on_at(hub)
    hub.clock.later(minutes=5)
    await notifier.once()
    [number] = board.numbers()
    assert number > 1
    hub.clock.later(minutes=5)
    await notifier.once()
    assert board.numbers() == [number]
