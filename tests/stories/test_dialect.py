"""What a record system writes in its own way is understood, explained and not lost; a changed profile is tried before it is used."""

from dataclasses import replace
from datetime import UTC, datetime

import orjson

from hub.demo.people import MARSHWIGGLE
from hub.domain.trust import TrustProfile
from hub.onboarding.replay import compare, with_profile
from hub.store import queries
from hub.store import tables as t
from tests.stories.conftest import TRUSTS, edited, resources


def _ask(torbay):
    return torbay.epr.asks_to_transfer(
        MARSHWIGGLE, to="RH8", request_number="TR-1", encounter_number="V-1", at=torbay.hub.clock()
    )


def _sloppy(tree):
    """Summer time without an offset, a vendor's own element, a list where FHIR has one."""
    request, patient = resources(tree, "ServiceRequest")[0], resources(tree, "Patient")[0]
    request["authoredOn"] = "2026-07-01T10:00:00"
    patient["gender"] = "Female"
    patient["vendorWardColour"] = "blue"


async def test_a_sloppy_record_system_is_understood_and_every_repair_is_kept(hub, torbay):
    hub.clock.now = datetime(2026, 7, 1, 9, 5, tzinfo=UTC)
    outcome = await torbay.send(edited(_ask(torbay), _sloppy))

    assert str(outcome) == "accepted"
    assert "tz-assumed" in outcome.flags
    event = (await hub.rows(t.event))[0]
    changed = {change["path"].rpartition(".")[2]: change for change in event["changes"]}
    assert (changed["gender"]["before"], changed["gender"]["after"]) == ("Female", "female")
    assumed = [change for change in event["changes"] if change["rule"] == "tz-assumed"]
    assert [(each["before"], each["after"]) for each in assumed] == [
        ("2026-07-01T10:00:00", "2026-07-01T10:00:00+01:00")
    ]
    assert [(each["value"], each["why"]) for each in event["unmapped"]] == [("blue", "unknown-element")]


async def test_a_measured_value_arrives_with_the_digits_it_was_written_with(hub, torbay):
    """A potassium of 4.10 was measured to a hundredth; 4.1 was not."""
    message = _ask(torbay)
    marker = b'"resourceType":"ServiceRequest",'
    assert marker in message.body
    await torbay.send(
        replace(message, body=message.body.replace(marker, marker + b'"quantityQuantity":{"value":4.10},'))
    )

    [told] = [row for row in await hub.rows(t.outbox) if row["topic"] == TRUSTS["RH8"].inbox_topic]
    assert b'"quantityQuantity":{"value":4.10}' in told["payload"]


async def test_a_profile_is_tried_on_what_was_sent_before_it_is_used(hub, torbay):
    """The trust would rather be told than have a zone assumed. Which messages would that hit?"""
    hub.clock.now = datetime(2026, 7, 1, 9, 5, tzinfo=UTC)
    await torbay.send(_ask(torbay))
    sloppy = await torbay.send(edited(_ask(torbay), _sloppy))
    strict = TrustProfile.model_validate(torbay.profile.model_dump() | {"repairs_off": ["tz-assumed"]})
    messages = await queries.messages_for_replay(
        hub.engine, "RA9", since=datetime(2026, 7, 1, tzinfo=UTC), reader="ig-1", now=hub.clock()
    )
    found = {m.event_id: d for m, d in compare(messages, hub.journey, with_profile(hub.journey, strict))}

    assert len(messages) == 2
    hit = [event_id for event_id, differing in found.items() if differing]
    assert hit == [sloppy.event_id]
    assert ("outcome", "canonical", "quarantined") in [
        (each.path, each.before, each.after) for each in found[sloppy.event_id]
    ]
    assert len(await hub.rows(t.event)) == 2
    read = (await hub.audit(code="msg-read"))[0]
    assert orjson.loads(orjson.dumps(read["detail"]))["messages"] == 2
