"""`hub transfers …` and the answer to a question, as the duty team types them."""

import asyncio

import orjson
import pytest
from typer.testing import CliRunner

from hub.cli import app
from hub.commands.terminal import settings_now
from hub.demo.people import FENNIMOSS, MARSHWIGGLE
from hub.services.clock import ClockService
from tests.stories.test_journeys import admit, ask, on_the_way


@pytest.fixture
def type_(store_url, monkeypatch):
    monkeypatch.setenv("HUB_DATABASE_URL", store_url)
    monkeypatch.setenv("COLUMNS", "300")
    settings_now.cache_clear()

    async def run(*words):
        # The command line makes a loop of its own.
        return await asyncio.to_thread(CliRunner().invoke, app, list(words))

    yield run
    settings_now.cache_clear()


async def test_list_show_and_history(hub, torbay, exeter, type_):
    transfer = await on_the_way(hub, torbay, exeter, MARSHWIGGLE)
    listed = orjson.loads((await type_("transfers", "list", "--trust", "RA9", "--json")).stdout)
    assert (listed["transfer_id"], listed["state"], listed["due_clock"]) == (
        transfer,
        "in-transit",
        "arrival:1",
    )
    assert "No transfer is open." in (await type_("transfers", "list", "--trust", "RVJ")).stdout
    shown = (await type_("transfers", "show", transfer)).stdout
    assert "depart: bed-allocated → in-transit" in shown
    assert "because RA9's encounter ended with destination RH801 [event " in shown
    assert MARSHWIGGLE.family not in shown
    plain = orjson.loads((await type_("transfers", "show", transfer, "--json")).stdout)
    assert plain["fhir"] == {"Task.status": "in-progress", "ServiceRequest.status": "active"}
    assert [each["step"] for each in plain["facts"]] == [
        "request",
        "receive",
        "accept",
        "allocate-bed",
        "depart",
    ]
    history = (await type_("transfers", "history", transfer, "--json")).stdout.splitlines()
    assert [orjson.loads(line)["to_state"] for line in history][-1] == "in-transit"
    nobody = await type_("transfers", "show", "nope")
    assert (nobody.exit_code, "There is no transfer nope." in nobody.stderr) == (1, True)


async def test_due_and_expire(hub, torbay, type_):
    transfer = await ask(torbay, FENNIMOSS, priority="stat")
    due = orjson.loads((await type_("transfers", "due", "--json")).stdout)
    assert (due["transfer_id"], due["due_clock"]) == (transfer, "view:1")
    too_soon = await type_("transfers", "expire", transfer, "--because", "x")
    assert (too_soon.exit_code, "has reached level 3" in too_soon.stderr) == (1, True)
    clock = ClockService(hub.engine, hub.journey, hub.clock, hub.log, poll_s=1)
    hub.clock.later(hours=3)
    while await clock.once():
        pass
    assert (
        await type_("transfers", "expire", transfer, "--because", "both wards were phoned")
    ).exit_code == 0
    assert await hub.state(transfer) == "expired"
    assert "Nothing is due." in (await type_("transfers", "due")).stdout
    story = (await type_("audit", "trail", transfer)).stdout
    assert "Nobody acted in time." in story
    assert "The duty team closed the transfer" in story


async def test_the_answer_to_a_question(hub, torbay, exeter, type_):
    first = await ask(torbay, MARSHWIGGLE)
    second = await ask(torbay, MARSHWIGGLE, number="TR-2", specialty="150")
    hub.clock.later(hours=1)
    arrived = await admit(exeter, MARSHWIGGLE)
    assert arrived.why == "needs-confirmation"
    unanswered = await type_("quarantine", "retry", arrived.event_id)
    assert unanswered.exit_code == 1
    answered = await type_("quarantine", "retry", arrived.event_id, "--transfer", second)

    assert (answered.exit_code, answered.stdout.split()) == (0, [arrived.event_id, "accepted"])
    assert (await hub.state(first), await hub.state(second)) == ("requested", "completed")
    said = (await hub.audit(event_id=arrived.event_id, code="msg-released"))[-1]["detail"]
    assert said["chosen_transfer"] == second
