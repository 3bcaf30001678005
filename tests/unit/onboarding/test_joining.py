"""Joining a trust: a folder is begun, filled, signed off, and from then on proved."""

import shutil
from pathlib import Path

import orjson
import pytest
import yaml
from typer.testing import CliRunner

from hub.cli import app
from hub.commands.terminal import settings_now
from hub.domain.trust import TrustProfile
from hub.onboarding.replay import differences

ROOT = Path(__file__).resolve().parents[3]
REQUEST = ROOT / "schemas" / "examples" / "transfer-request-RA9-to-RH8.json"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The command line over a copy of the shipped schemas."""
    shutil.copytree(ROOT / "schemas", tmp_path / "schemas")
    monkeypatch.setenv("HUB_SCHEMAS_DIR", str(tmp_path / "schemas"))
    settings_now.cache_clear()
    yield lambda *arguments: CliRunner().invoke(app, arguments)
    settings_now.cache_clear()


def test_an_example_is_proved_once_it_is_signed_off(hub, tmp_path):
    folder = tmp_path / "schemas" / "trusts" / "RA9" / "examples"
    folder.mkdir(exist_ok=True)
    shutil.copy(folder / "asked.in.json", folder / "once-more.in.json")

    assert "nobody has signed off what becomes of once-more.in.json" in hub(
        "trust", "check", "RA9"
    ).stdout.replace("\n", " ")
    assert hub("trust", "check", "RA9", "--sign-off").exit_code == 0
    assert hub("trust", "check", "RA9").exit_code == 0

    expected = folder / "once-more.expected.json"
    signed = orjson.loads(expected.read_bytes())
    signed["event_type"] = "transfer-update"
    expected.write_bytes(orjson.dumps(signed))
    found = hub("trust", "check", "RA9")
    assert found.exit_code == 1
    assert "once-more.expected.json, event_type: is not what the hub makes of it" in found.stdout.replace(
        "\n", " "
    )


def test_what_lies_among_the_examples_and_is_tried_by_nothing_is_found(hub, tmp_path):
    """It would be taken for proved."""
    folder = tmp_path / "schemas" / "trusts" / "RA9" / "examples"
    (folder / "asked.in.json").rename(folder / "asked.json")
    (folder / "of-yesterday.in.json").mkdir()
    shutil.copy(folder / "admitted.in.json", folder / "admitted.in.xml")

    found = hub("trust", "check", "RA9")
    assert found.exit_code == 1
    told = found.stdout.splitlines()
    at = "trusts/RA9/examples"
    for said in (
        f"{at}/asked.expected.json: there is no input beside it, so nothing is tried (the hub team can mend it)",
        f"{at}/asked.json: is no example: call it NAME.in.json or NAME.in.xml (the hub team can mend it)",
        f"{at}/of-yesterday.in.json: is no example: call it NAME.in.json or NAME.in.xml (the hub team can mend it)",
        f"{at}/admitted.expected.json: two inputs have this name: each needs its own (the hub team can mend it)",
    ):
        assert said in told


def test_a_new_folder_is_complete_but_for_what_only_the_trust_knows(hub, tmp_path):
    assert hub("trust", "new", "ryj", "--name", "A new trust").exit_code == 0
    found = hub("trust", "check", "RYJ")
    assert found.exit_code == 1
    assert found.stdout.count("is still the placeholder") == len(found.stdout.splitlines()) == 3
    assert (tmp_path / "schemas" / "trusts" / "RYJ" / "examples" / "README.md").exists()
    assert hub("trust", "new", "RYJ").exit_code == 1


def filled_in(folder):
    profile = folder / "profile.yaml"
    profile.write_text(profile.read_text().replace("replace.me", "fhir.ryj.nhs.uk"))


def test_a_folder_that_was_looked_at_alone_says_nothing_of_the_others(hub):
    assert "The folder of RX1 is sound; 8 worked examples give" in hub("trust", "check", "rx1").stdout
    assert "Every folder is sound" in hub("trust", "check").stdout


def test_a_folder_without_examples_can_be_checked_and_is_not_called_proved(hub, tmp_path):
    hub("trust", "new", "RYJ")
    filled_in(tmp_path / "schemas" / "trusts" / "RYJ")
    found = hub("trust", "check", "RYJ")
    assert found.exit_code == 0
    assert (
        "RYJ has no worked examples, and what none shows was not tried. Wanted are 6 at least" in found.stdout
    )
    assert "RYJ has no worked examples" in hub("trust", "check").stdout
    assert "Wanted are" not in hub("trust", "check", "RX1").stdout


def test_who_signs_off_a_refusal_is_told_so(hub, tmp_path):
    """The hospital had changed its message, and the file that is committed then says that the hub turns its patients away."""
    folder = tmp_path / "schemas" / "trusts" / "RA9" / "examples"
    asked = folder / "asked.in.json"
    well = asked.read_text()
    shutil.copy(asked, folder / "more.in.json")
    spoilt = well.replace('"resourceType": "ServiceRequest"', '"resourceType": "ServiceRequests"')
    assert spoilt != well
    asked.write_text(spoilt)

    [more, told] = sorted(
        (
            line
            for line in hub("trust", "check", "RA9", "--sign-off").stdout.splitlines()
            if "written: " in line
        ),
        key=len,
    )
    assert more.endswith("more.expected.json")
    assert (
        "asked.expected.json - the hub does not take this message: quarantined, resource-type-unknown at "
        in told
    )
    assert told.endswith("until now it was canonical.")
    assert (
        "10 worked examples give what was signed off, 1 of them a refusal."
        in hub("trust", "check", "RA9").stdout
    )

    asked.write_text(well)
    told = hub("trust", "check", "RA9", "--sign-off").stdout
    assert "asked.expected.json - the hub takes this message; until now it was quarantined." in told


@pytest.mark.parametrize("name", [r"St Luke\s", 'The "Royal" & {Co}: #1', "'", "É – ✓", "a\nb"])
def test_a_new_folder_has_the_name_as_it_was_given(hub, tmp_path, name):
    assert hub("trust", "new", "RYJ", "--name", name).exit_code == 0
    text = (tmp_path / "schemas" / "trusts" / "RYJ" / "profile.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(text)["name"] == name
    assert hub("trust", "check", "RYJ").stdout.count("is still the placeholder") == 3


def test_a_message_is_explained_the_same_way_every_time(hub):
    def explained():
        return hub("explain", str(REQUEST), "--trust", "RA9", "--json").stdout

    told = orjson.loads(explained())
    assert (told["outcome"], told["dialect"], told["event_type"]) == (
        "canonical",
        "fhir-r4-json",
        "transfer-request",
    )
    assert {"to": "RH8", "topic": "hub.rh8.inbox", "what": "news"} in told["routes"]
    assert all(change.keys() >= {"path", "before", "after", "rule"} for change in told["changes"])
    assert explained() == explained()


def test_a_refused_message_is_shown_with_its_line(hub):
    told = hub("explain", str(REQUEST.with_name("wrong-sender.json")), "--trust", "RA9")
    assert told.exit_code == 0
    assert "sender-not-topic-owner MessageHeader.sender" in told.stdout
    assert '"sender": {' in told.stdout.partition("❱")[2].splitlines()[0]


def test_a_refused_message_is_shown_with_what_was_done_to_it_before(hub, tmp_path):
    """Mended and translated, and then it named nobody's patient; in XML, so the line is XML's."""
    given = ROOT / "schemas" / "trusts" / "RFS" / "examples" / "discharged-as-transaction.in.xml"
    spoilt = given.read_text().replace("9990000069", "9999999999")
    assert spoilt != given.read_text()
    file = tmp_path / "spoilt.xml"
    file.write_text(spoilt)

    told = orjson.loads(hub("explain", str(file), "--trust", "RFS", "--json").stdout)
    assert (told["outcome"], told["canonical"], told["routes"]) == ("quarantined", None, [])
    assert [issue["code"] for issue in told["issues"]] == ["nhs-number-repeated-digits"]
    assert {"full-url", "reference"} <= {change["rule"] for change in told["changes"]}

    said = hub("explain", str(file), "--trust", "RFS").stdout
    assert "<identifier>" in said.partition("❱")[2].splitlines()[0]
    assert "Changed" in said
    assert "by full-url" in said


def test_a_message_of_a_wrong_structure_is_shown_with_its_repairs(hub, tmp_path):
    message = orjson.loads(REQUEST.read_bytes())
    request, patient = (message["entry"][at]["resource"] for at in (1, 2))
    request["status"], patient["gender"] = "in the post", "F"
    file = tmp_path / "spoilt.json"
    file.write_bytes(orjson.dumps(message))
    told = orjson.loads(hub("explain", str(file), "--trust", "RA9", "--json").stdout)
    assert [issue["code"] for issue in told["issues"]] == ["structure-invalid"]
    assert [(change["before"], change["after"]) for change in told["changes"]] == [("F", "female")]


def test_a_message_in_one_line_is_laid_out_to_show_the_place(hub, tmp_path):
    file = tmp_path / "short.json"
    file.write_bytes(orjson.dumps(orjson.loads(REQUEST.with_name("wrong-sender.json").read_bytes())))
    said = hub("explain", str(file), "--trust", "RA9").stdout
    assert "is shown laid out" in said
    assert '"sender": {' in said.partition("❱")[2].splitlines()[0]


def test_what_is_not_even_xml_is_shown_where_it_ceases_to_be(hub, tmp_path):
    file = tmp_path / "spoilt.xml"
    file.write_text(
        '<Bundle xmlns="http://hl7.org/fhir">\n  <type value="message"/>\n  <entry>\n  </entri>\n</Bundle>'
    )
    said = hub("explain", str(file), "--trust", "RA9").stdout
    assert "not-xml line 4" in said
    assert "</entri>" in said.partition("❱")[2].splitlines()[0]


def test_the_schema_that_editors_use_is_that_of_the_code():
    shipped = orjson.loads((ROOT / "schemas" / "trusts" / "profile.schema.json").read_bytes())
    assert shipped == TrustProfile.model_json_schema(), (
        "hub trust schema > schemas/trusts/profile.schema.json"
    )


@pytest.mark.parametrize(
    ("before", "after", "paths"),
    [
        ({"a": [1, {"b": 2}], "c": 1}, {"a": [1, {"b": 3}], "c": 2}, ["a[1].b", "c"]),
        ({"a": 1}, {"a": 1, "b": 2}, ["b"]),
        ({"a": [1]}, {"a": [1, 2]}, ["a[1]"]),
        ({"a": 1}, {"a": True}, ["a"]),
        ({"a": [1, {"b": 2}]}, {"a": [1, {"b": 2}]}, []),
    ],
)
def test_differences_are_named(before, after, paths):
    assert [each.path for each in differences(before, after)] == paths


def test_a_profile_is_tried_on_its_own_trust_only(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HUB_DATABASE_URL", f"sqlite+aiosqlite:///{tmp_path / 'hub.db'}")
    assert hub("db", "upgrade").exit_code == 0
    ours = tmp_path / "schemas" / "trusts" / "RA9" / "profile.yaml"

    def replay(ods):
        return hub("replay", "--trust", ods, "--since", "2026-01-01", "--profile", str(ours))

    assert "0 of 0 messages would differ." in replay("RA9").stdout
    assert replay("RH8").exit_code == 1
    assert replay("ZZZ").exit_code == 1
