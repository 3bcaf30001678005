"""Two trusts cannot claim one code: a record would go to the wrong hospital."""

import shutil
from pathlib import Path

import pytest
import yaml

from hub.trusts import PROFILE, TrustsError, check_trusts, load_directory

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
