"""The runbook names commands, settings, incidents and files that exist."""

import re

from hub.domain.incident import IncidentKind
from hub.settings import HubSettings
from tests.contracts.test_governance_papers import REPOSITORY, command_exists

RUNBOOK = REPOSITORY / "deploy" / "RUNBOOK.md"
TEXT = RUNBOOK.read_text(encoding="utf-8")
QUOTED = re.findall(r"`([^`\n]+)`", TEXT)


def test_every_command_exists():
    named = [each for each in QUOTED if each.startswith("hub ")]
    assert len(named) > 20
    assert [each for each in named if not command_exists(each)] == []


def test_every_setting_exists():
    named = {each for each in QUOTED if each.startswith("HUB_")}
    assert named
    assert named <= {f"HUB_{name.upper()}" for name in HubSettings.model_fields}


def test_every_incident_exists():
    kinds = {str(each) for each in IncidentKind}
    named = {each for each in QUOTED if re.fullmatch(r"[a-z]+(-[a-z]+)+", each)}
    assert named
    assert named <= kinds


def test_every_link_leads_somewhere():
    links = re.findall(r"\]\(([^)#]+)", TEXT)
    assert links
    assert [each for each in links if not (RUNBOOK.parent / each).exists()] == []
