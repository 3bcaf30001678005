"""`deploy/governance` names what exists: tests, code, files and commands; and what is made from something is what it makes."""

import ast
import importlib
import re
from functools import cache
from pathlib import Path

import orjson
import pytest
import typer
import yaml
from pydantic import ValidationError

from hub.cli import app
from hub.governance import data_flow, dspt, hazards, retention_schedule
from hub.governance.dspt import EvidenceMap
from hub.governance.hazards import HazardLog, Likelihood, Residual, Risk, Severity
from hub.trusts import load_directory, load_retention

REPOSITORY = Path(__file__).resolve().parents[2]
PAPERS, SCHEMAS = REPOSITORY / "deploy" / "governance", REPOSITORY / "schemas"


def tree(name):
    return yaml.safe_load((PAPERS / name).read_text(encoding="utf-8"))


LOG = HazardLog.model_validate(tree("hazard-log.yaml"))
EVIDENCE = EvidenceMap.model_validate(tree("dspt-evidence.yaml"))
BY_HAND = ("README.md", "dpia.md")


# ---------------------------------------------------------------- What exists


@cache
def names_in(file):
    """The names of the tests of a file, read and not run."""
    path = REPOSITORY / file
    if not path.is_file():
        return frozenset()
    found = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    functions = {n.name for n in found if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)}
    # A machine of hypothesis is a test by assignment: TestHub = Machine.TestCase.
    classes = {
        target.id
        for n in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(n, ast.Assign)
        for target in n.targets
        if isinstance(target, ast.Name) and target.id.startswith("Test")
    }
    return frozenset(name for name in functions if name.startswith("test_")) | classes


def is_a_test(node_id):
    file, _, name = node_id.partition("::")
    return file.startswith("tests/") and name.partition("[")[0] in names_in(file)


def code_exists(reference):
    """A file, or module:attribute."""
    if "/" in reference:
        return (REPOSITORY / reference).is_file()
    module, _, attributes = reference.partition(":")
    try:
        at = importlib.import_module(module)
        for name in attributes.split("."):
            at = getattr(at, name)
    except (ImportError, AttributeError):
        return False
    return bool(attributes)


def command_exists(text):
    """`hub transfers show TRANSFER --json`: each word names a command until one is no group; options are that command's."""
    words = text.split()
    if words[:1] != ["hub"]:
        return False
    at, rest = typer.main.get_command(app), words[1:]
    while rest and (inner := getattr(at, "commands", None)):
        if rest[0] not in inner:
            return False
        at, rest = inner[rest[0]], rest[1:]
    known = {option for parameter in at.params for option in parameter.opts}
    return not getattr(at, "commands", None) and all(w in known for w in rest if w.startswith("--"))


def unknown_of(controls):
    """What these name that does not exist."""
    for control in controls:
        yield from (code for code in getattr(control, "code", ()) if not code_exists(code))
        yield from (file for file in getattr(control, "files", ()) if not (REPOSITORY / file).is_file())
        yield from (name for name in control.tests if not is_a_test(name))
        yield from (command for command in control.commands if not command_exists(command))


# ---------------------------------------------------------------- The hazard log


@pytest.mark.parametrize("hazard", LOG.hazards, ids=lambda each: each.id)
def test_each_control_names_code_tests_and_commands_that_exist(hazard):
    assert list(unknown_of(hazard.controls)) == []


def test_there_are_hazards_enough_and_each_is_said_once():
    assert len(LOG.hazards) >= 20
    assert len({each.hazard for each in LOG.hazards}) == len(LOG.hazards)


def test_what_does_not_exist_is_found():
    """The checks themselves, broken on purpose."""
    assert is_a_test("tests/contracts/test_governance_papers.py::test_what_does_not_exist_is_found")
    assert not is_a_test("tests/contracts/test_governance_papers.py::test_nothing_of_the_kind")
    assert not is_a_test("tests/contracts/test_gone.py::test_what_does_not_exist_is_found")
    assert not is_a_test("hub/cli.py::main")
    assert code_exists("hub.store.retention:let_go")
    assert code_exists("hub.store.unit_of_work:UnitOfWork.take")
    assert code_exists("hub/store/retention.py")
    for wrong in (
        "hub.store.retention:let_stay",
        "hub.store.nothing:x",
        "hub/store/nothing.py",
        "hub.store.retention",
    ):
        assert not code_exists(wrong)
    assert command_exists("hub retention apply --yes")
    assert command_exists("hub transfers show TRANSFER")
    for wrong in ("hub retention", "hub retention forget", "hub retention apply --no-such", "transfers show"):
        assert not command_exists(wrong)
    control = LOG.hazards[0].controls[0]
    broken = control.model_copy(update={"tests": (*control.tests, "tests/live/test_hub.py::test_renamed")})
    assert list(unknown_of([control, broken])) == ["tests/live/test_hub.py::test_renamed"]


def test_a_risk_is_rated_by_the_matrix():
    assert Risk(severity=Severity.CATASTROPHIC, likelihood=Likelihood.VERY_HIGH).rating == 5
    assert Risk(severity=Severity.MINOR, likelihood=Likelihood.VERY_LOW).rating == 1
    assert Risk(severity=Severity.MAJOR, likelihood=Likelihood.MEDIUM).rating == 3
    for severity in Severity:
        ratings = [Risk(severity=severity, likelihood=each).rating for each in Likelihood]
        assert ratings == sorted(ratings)


def test_a_log_that_contradicts_itself_is_refused():
    twice = tree("hazard-log.yaml")
    twice["hazards"].append(twice["hazards"][0])
    worse = tree("hazard-log.yaml")
    worse["hazards"][0]["residual"] |= {"severity": "catastrophic", "likelihood": "very high"}
    bare = tree("hazard-log.yaml")
    bare["hazards"][0]["controls"][0]["tests"] = []
    for each in (twice, worse, bare):
        with pytest.raises(ValidationError):
            HazardLog.model_validate(each)


def test_what_is_left_says_why():
    assert all(isinstance(each.residual, Residual) and each.residual.why for each in LOG.hazards)


# ---------------------------------------------------------------- The evidence map


@pytest.mark.parametrize("theme", EVIDENCE.themes, ids=lambda each: each.id)
def test_each_piece_of_evidence_exists(theme):
    assert list(unknown_of(theme.supported_by)) == []
    assert all(each.files or each.commands or each.tests for each in theme.supported_by)


# ---------------------------------------------------------------- Made from something


def generated():
    asyncapi = yaml.safe_load((SCHEMAS / "asyncapi.yaml").read_text(encoding="utf-8"))
    openapi = orjson.loads((SCHEMAS / "openapi" / "facade.json").read_bytes())
    return {
        "hazard-log": hazards.page(LOG),
        "dspt-evidence": dspt.page(EVIDENCE),
        "retention-schedule": retention_schedule.page(load_retention(SCHEMAS, load_directory(SCHEMAS))),
        "data-flow": data_flow.page(asyncapi, openapi),
    }


@pytest.mark.parametrize("name", generated())
def test_a_generated_paper_is_what_its_source_makes(name):
    """If not: `hub governance NAME > deploy/governance/NAME.md`."""
    assert (PAPERS / f"{name}.md").read_text(encoding="utf-8") == "\n".join(generated()[name]) + "\n"
    assert command_exists(f"hub governance {name}")


def test_every_door_is_in_the_data_flow():
    page = (PAPERS / "data-flow.md").read_text(encoding="utf-8")
    asyncapi = yaml.safe_load((SCHEMAS / "asyncapi.yaml").read_text(encoding="utf-8"))
    openapi = orjson.loads((SCHEMAS / "openapi" / "facade.json").read_bytes())
    assert all(f"`{channel['address']}`" in page for channel in asyncapi["channels"].values())
    assert all(f"| `{path}` | {m.upper()} |" in page for path, ms in openapi["paths"].items() for m in ms)


def test_a_channel_that_nobody_has_described_stops_the_drawing():
    asyncapi = yaml.safe_load((SCHEMAS / "asyncapi.yaml").read_text(encoding="utf-8"))
    asyncapi["channels"]["new"] = asyncapi["channels"]["audit"]
    with pytest.raises(KeyError):
        list(data_flow.page(asyncapi, {"paths": {}}))


# ---------------------------------------------------------------- Written by hand


@pytest.mark.parametrize("name", BY_HAND)
def test_what_is_named_by_hand_exists(name):
    text = (PAPERS / name).read_text(encoding="utf-8")
    quoted = re.findall(r"`([^`]+)`", text)
    commands = [each.partition(" > ")[0] for each in quoted if each.startswith("hub ")]
    files = [each for each in quoted if "/" in each and not each.startswith("hub ")]
    links = re.findall(r"\]\(([^)#]+)\)", text)
    assert commands
    assert [each for each in commands if not command_exists(each)] == []
    assert [each for each in files if not (REPOSITORY / each).exists()] == []
    assert [each for each in links if not (PAPERS / each).exists()] == []


def test_hazards_that_the_assessment_names_are_about_that():
    """By number, so a hazard that moves is noticed by its words."""
    text = (PAPERS / "dpia.md").read_text(encoding="utf-8")
    about = {each.id: each.hazard for each in LOG.hazards}
    named = set(re.findall(r"HUB-\d\d", text))
    assert named <= set(about)
    words = {"HUB-03": "no part", "HUB-04": "for one", "HUB-18": "whereabouts", "HUB-19": "reads a record",
             "HUB-20": "glass", "HUB-22": "account", "HUB-25": "longer"}  # fmt: skip
    assert named == set(words)
    assert [each for each, word in words.items() if word not in about[each].lower()] == []


def test_nobody_is_said_to_have_signed():
    for name in (*BY_HAND, *(f"{each}.md" for each in generated())):
        text = (PAPERS / name).read_text(encoding="utf-8").lower()
        assert not re.search(r"signed (off )?by|approved by [a-z]+ [a-z]+ on|date of signature", text), name


def test_every_paper_is_in_the_readme():
    text = (PAPERS / "README.md").read_text(encoding="utf-8")
    assert all(f"({path.name})" in text for path in PAPERS.iterdir() if path.name != "README.md")
