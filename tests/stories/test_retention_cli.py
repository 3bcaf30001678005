"""`hub retention`, as a steward types it."""

from datetime import timedelta

import orjson
import pytest

from hub import wiring
from hub.demo.people import MARSHWIGGLE
from tests.stories.test_retention import contents, deliver_all, moved
from tests.stories.test_transfers_cli import type_  # noqa: F401 - a fixture


@pytest.fixture
def much_later(hub, monkeypatch):
    monkeypatch.setattr(wiring, "now", lambda: hub.clock() + timedelta(days=91))


async def test_plan_and_apply(hub, torbay, exeter, type_, much_later):  # noqa: F811
    transfer = await moved(hub, torbay, exeter)
    await deliver_all(hub)

    planned = [
        orjson.loads(line) for line in (await type_("retention", "plan", "--json")).stdout.splitlines()
    ]
    of_messages = planned[0]
    assert (of_messages["kind"], of_messages["rows"]) == ("message-of-a-transfer", 6)
    assert of_messages["policy"] == "90 days after the transfer is over"
    assert {"why", "what", "decided_by", "bytes", "before", "oldest"} <= of_messages.keys()
    shown = (await type_("retention", "plan")).stdout
    assert "message-of-a-transfer" in shown
    assert MARSHWIGGLE.family not in shown

    asked = await type_("retention", "apply")
    assert (asked.exit_code, "Nothing was changed" in asked.stderr) == (1, True)
    assert await contents(hub, transfer) == (6, 6)
    done = await type_("retention", "apply", "--yes", "--json")
    assert done.exit_code == 0, done.stderr
    assert [orjson.loads(line)["rows"] for line in done.stdout.splitlines()] == [p["rows"] for p in planned]
    assert await contents(hub, transfer) == (0, 0)
    assert "Nothing has aged out." in (await type_("retention", "plan")).stdout

    trail = await type_("audit", "trail", transfer)
    assert trail.exit_code == 0
    assert "Torbay" in trail.stdout
    [event, *_] = [e["event_id"] for e in await hub.audit(transfer_id=transfer, code="msg-received")] or [
        row["event_id"] for row in await hub.audit(code="msg-received")
    ]
    seen = await type_("quarantine", "show", event)
    assert "aged out" in seen.stdout
    raw = await type_("quarantine", "show", event, "--raw")
    assert (raw.exit_code, "aged out" in raw.stderr) == (1, True)


async def test_an_unusable_policy_lets_nothing_go(hub, type_, monkeypatch, tmp_path):  # noqa: F811
    monkeypatch.setattr("hub.commands.retention.load_retention", _broken)
    said = await type_("retention", "apply", "--yes")
    assert (said.exit_code, "retention.yaml" in said.stderr) == (1, True)
    assert await hub.audit(code="retention-applied") == []


def _broken(*_):
    from hub.trusts import Finding, TrustsError

    raise TrustsError([Finding("retention.yaml", "", "cannot be used", "the hub team")])
