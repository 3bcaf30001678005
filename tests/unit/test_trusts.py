"""Two trusts cannot claim one code: a record would go to the wrong hospital."""

import shutil
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from hub.cli import app
from hub.commands.terminal import settings_now
from hub.facade.subscribing import is_registered
from hub.trusts import PROFILE, TrustsError, check_trusts, load_books, load_directory

SCHEMAS = Path(__file__).resolve().parents[2] / "schemas"


@pytest.fixture
def schemas(tmp_path):
    shutil.copytree(SCHEMAS / "trusts", tmp_path / "trusts")
    return tmp_path


def changed(schemas, ods, change):
    file = schemas / "trusts" / ods / PROFILE
    text = file.read_text(encoding="utf-8")
    head = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    profile = yaml.safe_load(text)
    change(profile)
    file.write_text(head + yaml.safe_dump(profile, allow_unicode=True), encoding="utf-8")


def test_the_folders_as_they_are_can_be_used(schemas):
    assert check_trusts(schemas) == []


def test_a_site_that_two_trusts_claim_stops_the_hub(schemas):
    theirs = load_directory(schemas)["RH8"].sites[0].ods
    changed(schemas, "RA9", lambda profile: profile["sites"][0].update(ods=theirs))

    problems = [str(each) for each in check_trusts(schemas)]
    assert len(problems) == 1
    assert f"the code {theirs} is claimed by RA9 too" in problems[0]
    with pytest.raises(TrustsError, match="claimed by"):
        load_directory(schemas)


def test_a_system_of_numbers_that_two_trusts_claim_stops_the_hub(schemas):
    theirs = load_directory(schemas)["RH8"].identifier_systems.patient
    changed(
        schemas, "RA9", lambda profile: profile["identifier_systems"].update(patient=theirs.upper() + "/")
    )
    assert any("the system" in str(each) and "claimed by" in str(each) for each in check_trusts(schemas))


@pytest.mark.parametrize(
    ("site", "field"),
    [
        ({"ods": "RA9-01", "name": "Torbay"}, "sites.0.ods"),
        ("RA901", "sites.0"),
        ({"ods": "RA901"}, "sites.0.name"),
    ],
)
def test_a_site_that_cannot_be_used_is_one_finding(schemas, site, field):
    """Nobody is sent to look for a second fault that follows from the first."""
    changed(schemas, "RA9", lambda profile: profile.update(sites=[site]))
    assert [each.field for each in check_trusts(schemas)] == [field]
    changed(schemas, "RA9", lambda profile: profile.update(sites=[]))
    assert [each.field for each in check_trusts(schemas)] == ["sites"]


def broken(schemas, file, old, new):
    text = (schemas / file).read_text(encoding="utf-8")
    assert old in text
    (schemas / file).write_text(text.replace(old, new, 1), encoding="utf-8")


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("trusts/RA9/profile.yaml", "sites:", "sites: [", "profile.yaml: line 12: not YAML"),
        ("trusts/RA9/profile.yaml", "sites:", f"x: {'[' * 5000}\nsites:", "profile.yaml: not YAML"),
        ("trusts/RA9/profile.yaml", "sites:", "sitess:", "profile.yaml, sitess: Extra"),
        ("trusts/RH8/profile.yaml", "ods: RH8", "ods: RA9", "RH8/profile.yaml, ods: the code RA9 is claimed by RA9 too (the hub team with both"),
        ("trusts/RVJ/conceptmaps/specialty.json", "{", "{,", "specialty.json, line 1: not JSON (the trust can mend it)"),
        ("trusts/RVJ/conceptmaps/specialty.json", '"target": [{', '"targets": [{', "specialty.json, line 7: not a ConceptMap that can be used: 'target' is missing (the trust"),
        ("trusts/RVJ/conceptmaps/specialty.json", '"code": "', '"code": 5, "was": "', "not a ConceptMap that can be used: something in it is of the wrong kind (the trust"),
        ("conceptmaps/request-priority.json", "{", "{,", "request-priority.json, line 1: not JSON (the hub team can mend it)"),
        ("codesystems/task-status.json", '"concept"', '"concepts"', "task-status.json: not a CodeSystem that can be used: 'concept' is missing (the hub team"),
        ("trusts/RVJ/conceptmaps/specialty.json", '"code": "320"', '"code": "032"', "032 is not in https://"),
        ("retention.yaml", "days: 90", "days: ninety", "retention.yaml, ages_out.0.days: "),
        ("retention.yaml", "holds: []", "holds: [{ since: 2026-11-25, because: Inquiry, trusts: [ZZ9] }]", "retention.yaml, holds: ZZ9: no such trust has joined"),
        ("clocks.yaml", "limits:", "limits: [", "clocks.yaml: line 10: not YAML"),
        ("clocks.yaml", "  stat:", "  stat: { view: PT99H }\n  stat:", "clocks.yaml: line 9: not YAML that can be used: 'stat' is there twice (the hub team"),
        ("clocks.yaml", "PT10M", "10 minutes", "clocks.yaml, limits.stat.view: "),
        ("clocks.yaml", "[1.0, 1.5, 2.0]", "[1.0, 2.0, 1.5]", "clocks.yaml, ladder: each level must be later"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_place_and_who_can_mend_it(schemas, monkeypatch, file, old, new, said):
    """`hub trust check` is where it is mended: never a traceback, and one finding a line."""
    for folder in ("conceptmaps", "codesystems"):
        shutil.copytree(SCHEMAS / folder, schemas / folder)
    for own in ("clocks.yaml", "retention.yaml"):
        shutil.copy(SCHEMAS / own, schemas)
    broken(schemas, file, old, new)
    monkeypatch.setenv("HUB_SCHEMAS_DIR", str(schemas))
    settings_now.cache_clear()
    whose = next((part for part in file.split("/") if part.isupper()), "RA9")
    for words in (["check", whose], ["check", "RK9"], ["check"]):
        found = CliRunner().invoke(app, ["trust", *words])
        assert isinstance(found.exception, SystemExit), found.exception
        assert found.exit_code == 1
        assert said in found.stdout
        assert all(line.endswith("can mend it)") for line in found.stdout.splitlines())
    settings_now.cache_clear()


def test_a_map_to_a_code_that_there_is_not_stops_the_hub(schemas):
    """Else a patient would be sent on with it, and a discharge by it would send nobody."""
    for folder in ("conceptmaps", "codesystems"):
        shutil.copytree(SCHEMAS / folder, schemas / folder)
    directory = load_directory(schemas)
    assert load_books(schemas, directory).keys() == {each.ods for each in directory}
    broken(schemas, "trusts/RVJ/conceptmaps/specialty.json", '"code": "320"', '"code": "032"')
    with pytest.raises(TrustsError, match=r"RVJ/conceptmaps/specialty.json, line 7: 032 is not in"):
        load_books(schemas, directory)


@pytest.mark.parametrize(
    "host", ["bedboard.ra9.example", "bedboard.ra9.example:8443", "127.0.0.1", "127.0.0.1:8443", "2001:db8::1", "münster.example"]
)  # fmt: skip
def test_a_host_that_a_profile_may_name_is_one_that_is_posted_to(schemas, host):
    changed(schemas, "RA9", lambda profile: profile.update(callback_hosts=[host]))
    profile = load_directory(schemas)["RA9"]
    url = f"https://[{host}]/told" if host.count(":") > 1 else f"https://{host}/told"
    assert is_registered(url, profile)


@pytest.mark.parametrize(
    "host",
    [
        "https://bedboard.ra9.example/told", "https://bedboard.ra9.example", "bedboard.ra9.example/told", "Bedboard.ra9.example", "[2001:db8::1]", "",
        "bedboard.ra9.example:", "bedboard.ra9.example:https", "bedboard.ra9.example:08443", "bedboard.ra9.example:70000", "me@bedboard.ra9.example", " ",
    ],
)  # fmt: skip
def test_what_no_address_would_ever_match_is_no_host(schemas, host):
    """Each subscription would be refused, and the trust told to register what it has registered."""
    changed(schemas, "RA9", lambda profile: profile.update(callback_hosts=["board.ra9.example", host]))
    [found] = check_trusts(schemas)
    assert found.field == "callback_hosts.1"
    assert found.problem.startswith("must be host or host:port")
