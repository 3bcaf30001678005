"""What the worked examples show of a trust's codes, and what they do not."""

import shutil
from pathlib import Path

import orjson
import pytest
from typer.testing import CliRunner

from hub.cli import app
from hub.commands.terminal import settings_now
from hub.onboarding.coverage import coverage
from hub.onboarding.examples import explained
from tests.corpus.test_corpus import JOURNEY

ROOT = Path(__file__).resolve().parents[3]
UK = "https://fhir.hl7.org.uk/CodeSystem/UKCore-"
OWN = "trusts/RTG/conceptmaps/encounter-status.json"


@pytest.fixture
def schemas(tmp_path, monkeypatch):
    """A copy of the shipped schemas that the command line looks at."""
    shutil.copytree(ROOT / "schemas", tmp_path / "schemas")
    monkeypatch.setenv("HUB_SCHEMAS_DIR", str(tmp_path / "schemas"))
    settings_now.cache_clear()
    yield tmp_path / "schemas"
    settings_now.cache_clear()


def of(schemas, ods="RTG"):
    return coverage(explained(schemas, ods, JOURNEY), JOURNEY.books[ods], ods)


def _without_leave(schemas):
    for kind in ("in", "expected"):
        (schemas / "trusts" / "RTG" / "examples" / f"on-leave-in-its-own-words.{kind}.json").unlink()


def test_codes_that_came_out_are_counted_by_code_set(schemas):
    found = of(schemas)
    assert found.code_sets[f"{UK}LegalStatusClassificationEngland"][0] == ("01", "02", "03", "04")
    seen, size = found.code_sets["http://hl7.org/fhir/encounter-status"]
    assert seen == ("finished", "in-progress", "onleave", "planned")
    assert size == 9
    assert "320" in found.code_sets[f"{UK}PracticeSettingCode"][0]


def test_a_line_of_the_trusts_map_that_no_example_needs_is_named(schemas):
    assert of(schemas).maps[OWN].unused == ()
    _without_leave(schemas)
    use = of(schemas).maps[OWN]
    assert (use.used, use.unused) == (("PRE-ADMITTED", "ADMITTED", "DISCHARGED"), ("HOME LEAVE",))


def test_another_trusts_map_is_not_this_ones(schemas):
    assert not [name for name in of(schemas).maps if name.startswith("trusts/") and "/RTG/" not in name]


def test_a_code_that_no_map_knows_is_named_with_its_place(schemas):
    assert of(schemas).unmapped == ()
    folder = schemas / "trusts" / "RTG" / "examples"
    message = orjson.loads((folder / "admitted.in.json").read_bytes())
    stay, patient = (entry["resource"] for entry in message["entry"])
    stay["serviceType"] = {"coding": [{"system": "urn:ours", "code": "XYZ"}]}
    patient["gender"] = "Q"
    (folder / "strange.in.json").write_bytes(orjson.dumps(message))
    assert of(schemas).unmapped == (
        ("strange.in.json", "Bundle.entry[1].resource.gender", "Q"),
        ("strange.in.json", "Bundle.entry[0].resource.serviceType", "urn:ours|XYZ"),
    )


def test_the_check_says_it_in_a_line_for_all_and_in_full_for_one(schemas):
    said = CliRunner().invoke(app, ["trust", "check"])
    assert said.exit_code == 0
    assert len([line for line in said.stdout.splitlines() if "code sets seen" in line]) == len(
        JOURNEY.directory
    )

    _without_leave(schemas)
    said = CliRunner().invoke(app, ["trust", "check", "rtg"], env={"COLUMNS": "200"})
    assert any("3 of 4" in line and line.rstrip().endswith("HOME LEAVE") for line in said.stdout.splitlines())
    assert "Known to no map: none." in said.stdout

    told = orjson.loads(CliRunner().invoke(app, ["trust", "check", "RTG", "--json"]).stdout)
    assert told["findings"] == []
    assert told["trusts"]["RTG"]["maps"][OWN]["unused"] == ["HOME LEAVE"]

    (schemas / "trusts" / "RTG" / "examples" / "asked.expected.json").write_text("{}")
    failed = CliRunner().invoke(app, ["trust", "check", "RTG", "--json"])
    assert failed.exit_code == 1
    assert [each["file"] for each in orjson.loads(failed.stdout)["findings"]] == [
        "trusts/RTG/examples/asked.expected.json"
    ]
