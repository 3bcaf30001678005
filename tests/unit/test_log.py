"""The log's vocabulary: nothing else is said, and nothing that is in it is never said."""

import ast
import json
from pathlib import Path

import pytest
import structlog

import hub
from hub.telemetry.log import fault_of, get_log, hide_identifiers, set_up, vocabulary

_LEVELS = {"info", "warning", "error"}


def _calls():
    """(where, first argument) of every ``….log.info(…)``, ``log.error(…)`` and so on in hub/."""
    root = Path(hub.__file__).parent
    for path in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in _LEVELS
            ):
                continue
            owner = node.func.value
            name = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")
            if name.strip("_") == "log":
                yield f"{path.relative_to(root)}:{node.lineno}", node


CALLS = list(_calls())


def test_the_calls_are_found():
    assert len(CALLS) >= 20


@pytest.mark.parametrize(("where", "call"), CALLS, ids=[where for where, _ in CALLS])
def test_every_event_is_in_the_vocabulary(where, call):
    event = call.args[0]
    if isinstance(event, ast.Name):  # typed as LogEvent: mypy's business, and checked where it is made, below
        assert where.startswith("store/unit_of_work.py")
        return
    choices = [event.body, event.orelse] if isinstance(event, ast.IfExp) else [event]
    assert {each.value for each in choices} <= vocabulary(), where


def test_the_events_of_dispositions_are_in_the_vocabulary():
    from hub.store.unit_of_work import _LOG_EVENT

    assert set(_LOG_EVENT.values()) <= vocabulary()


def test_identifiers_are_hidden_by_their_key():
    line = hide_identifiers(
        None, "info", {"event": "fault", "family": "Marshwiggle", "nhs_number": "1", "trust": "RA9"}
    )

    assert line == {"event": "fault", "family": "[hidden]", "nhs_number": "[hidden]", "trust": "RA9"}


def test_a_fault_is_named_by_type_and_place_and_never_by_its_text():
    try:
        raise ValueError("Marshwiggle")
    except ValueError as error:
        said = fault_of(error)
    assert said.startswith("ValueError at test_log.py:")
    assert "Marshwiggle" not in said


def test_lines_are_json_away_from_a_terminal(capsys):
    before = structlog.get_config()
    try:
        set_up("json", "info")
        get_log(service="worker").warning("message.rejected", trust="RA9", name="Marshwiggle")
        line = json.loads(capsys.readouterr().err.splitlines()[-1])
    finally:
        structlog.configure(**before)
    assert (line["event"], line["level"], line["service"], line["trust"]) == (
        "message.rejected",
        "warning",
        "worker",
        "RA9",
    )
    assert line["name"] == "[hidden]"
