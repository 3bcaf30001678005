"""`hub replay`: a changed profile is tried on what the trust sent, as its integrator types it."""

import asyncio
import shutil
from datetime import UTC, datetime

import orjson
import pytest
from sqlalchemy import update
from typer.testing import CliRunner

from hub.cli import app
from hub.commands.terminal import settings_now
from hub.demo.people import FENNIMOSS, MARSHWIGGLE
from hub.store import tables as t
from tests.stories.conftest import SCHEMAS, edited, resources
from tests.stories.test_journeys import ask

EPIC = "urn:oid:1.2.840.114350.1.72.1.7.7.10.696784.13260"
BEGAN = datetime(2026, 7, 1, 9, 5, tzinfo=UTC)


@pytest.fixture
def type_(store_url, monkeypatch):
    monkeypatch.setenv("HUB_DATABASE_URL", store_url)
    monkeypatch.setenv("COLUMNS", "300")
    settings_now.cache_clear()

    async def run(*words):
        # The command line makes a loop of its own.
        return await asyncio.to_thread(CliRunner().invoke, app, ["replay", *words])

    yield run
    settings_now.cache_clear()


@pytest.fixture
def new(tmp_path):
    """Torbay's folder, to be changed."""
    shutil.copytree(SCHEMAS / "trusts" / "RA9", tmp_path / "RA9")
    return tmp_path / "RA9" / "profile.yaml"


@pytest.fixture
async def sloppy(hub, torbay):
    """Two requests; in the second a time without an offset, and a gender in a word of Torbay's own."""
    hub.clock.now = BEGAN

    def change(tree):
        resources(tree, "Encounter")[0]["class"] = {"system": EPIC, "code": "101"}
        resources(tree, "ServiceRequest")[0]["authoredOn"] = "2026-07-01T10:00:00"
        resources(tree, "Patient")[0]["gender"] = "Fem."

    await ask(torbay, MARSHWIGGLE)
    asked = torbay.epr.asks_to_transfer(
        FENNIMOSS, to="RH8", request_number="TR-2", encounter_number="V-2", at=BEGAN
    )
    sent = await torbay.send(edited(asked, change))
    assert str(sent) == "accepted"
    return sent


def since(new, *more):
    return ("--trust", "ra9", "--since", "2026-07-01T09:00:00", "--profile", str(new), *more)


async def test_nothing_changed_nothing_differs(hub, sloppy, new, type_):
    before = await hub.counts()
    said = await type_(*since(new))
    assert (said.exit_code, said.stdout) == (0, "Nothing would differ.\n0 of 2 messages would differ.\n")
    after = await hub.counts()
    assert {table for table in after if after[table] != before[table]} == {"audit_batch"}
    [read] = await hub.audit(code="msg-read")
    assert (read["trust"], read["detail"]["messages"]) == ("RA9", 2)


async def test_what_a_stricter_profile_would_refuse(hub, sloppy, new, type_):
    new.write_text(new.read_text() + "repairs_off: [tz-assumed]\n")
    said = await type_(*since(new))
    assert said.exit_code == 0
    assert said.stdout.endswith("1 of 2 messages would differ.\n")
    assert "outcome" in said.stdout
    assert FENNIMOSS.family not in said.stdout

    rows = [
        orjson.loads(line) for line in (await type_(*since(new, "--values", "--json"))).stdout.splitlines()
    ]
    assert {row["event_id"] for row in rows} == {sloppy.event_id}
    outcome = next(row for row in rows if row["path"] == "outcome")
    assert (outcome["before"], outcome["after"]) == ("canonical", "quarantined")


async def test_what_a_new_map_would_say(hub, sloppy, new, type_):
    """The maps beside the new profile are tried with it."""
    own = new.parent / "conceptmaps" / "gender.json"
    own.write_text(
        '{"resourceType": "ConceptMap", "group": [\n'
        '{"source": "https://transfer-hub.example/element/gender", "target": "http://hl7.org/fhir/administrative-gender", "element": [\n'
        '{"code": "FEM.", "target": [{"code": "female"}]}\n]}]}'
    )
    rows = [
        orjson.loads(line) for line in (await type_(*since(new, "--values", "--json"))).stdout.splitlines()
    ]
    gender = next(row for row in rows if row["path"].endswith("gender"))
    assert (gender["before"], gender["after"]) == (None, "female")


async def test_a_map_that_only_looks_different_changes_nothing(hub, sloppy, new, type_):
    own = new.parent / "conceptmaps" / "encounter-class.json"
    own.write_text("\n\n" + own.read_text())
    assert (await type_(*since(new))).stdout.startswith("Nothing would differ.")
    own.write_text(own.read_text().replace('"IMP"', '"ACUTE"'))
    assert "canonical.entry[3].resource.class.code" in (await type_(*since(new))).stdout


async def test_what_is_too_old_or_anothers_is_not_read(hub, sloppy, new, type_):
    said = await type_("--trust", "RA9", "--since", "2026-07-01T09:06:00", "--profile", str(new))
    assert "0 of 0 messages" in said.stdout
    said = await type_("--trust", "RH8", "--since", "2026-07-01T09:00:00", "--profile", str(new))
    assert (said.exit_code, "is a profile of RA9, not of RH8" in said.stderr) == (1, True)
    said = await type_("--trust", "ZZ9", "--since", "2026-07-01T09:00:00", "--profile", str(new))
    assert (said.exit_code, "No trust ZZ9 has joined" in said.stderr) == (1, True)
    new.write_text("ods: RA9\n")
    assert (await type_(*since(new))).exit_code == 1
    assert [entry["trust"] for entry in await hub.audit(code="msg-read")] == ["RA9"]


async def test_what_cannot_be_tried_is_said(hub, sloppy, type_, new):
    """Nothing would differ: true of messages whose content has aged out, and of those behind the ten thousandth."""
    async with hub.engine.begin() as connection:
        await connection.execute(
            update(t.message).where(t.message.c.event_id == sloppy.event_id).values(raw=None)
        )
    said = await type_("--trust", "RA9", "--since", "2026-06-01", "--profile", str(new))
    assert said.exit_code == 0
    assert "0 of 1 messages would differ." in said.stdout
    assert "Of 2 messages that RA9 sent since then, 1 are tried" in said.stderr
