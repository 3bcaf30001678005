"""What the hub makes of every worked example is valid FHIR R4, as HAPI's validator judges it with UK Core loaded.

The validator and UK Core lie outside the repository, in ``shared`` beside it; without them this is skipped, and `.ci/run` says so
and fails.
"""

import json
import subprocess
from pathlib import Path

import pytest

from hub.journey.decide import Journey
from hub.onboarding.coverage import coverage
from hub.onboarding.examples import RECEIVED_AT, examples_of, explain_file, explained
from hub.trusts import load_books, load_directory

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"
VALIDATE = SHARED / "tools" / "fhir-validate" / "validate"
TRUSTS = load_directory(ROOT / "schemas")
JOURNEY = Journey(TRUSTS, books=load_books(ROOT / "schemas", TRUSTS))


@pytest.mark.validator
@pytest.mark.timeout(300)
@pytest.mark.skipif(
    not VALIDATE.exists(), reason="the FHIR validator (shared/tools beside the repository) is not here"
)
def test_the_canonical_form_of_every_worked_example_is_valid(tmp_path):
    written = 0
    for profile in TRUSTS:
        for example in examples_of(ROOT / "schemas", profile.ods):
            canonical = explain_file(example.given, example.ods, JOURNEY, RECEIVED_AT).canonical
            if canonical is not None:
                name = example.given.name.split(".in.")[0]
                (tmp_path / f"{profile.ods}-{name}.json").write_text(json.dumps(canonical))
                written += 1
    judged = subprocess.run(
        [VALIDATE, "--ig", SHARED / "ukcore", "--json", tmp_path], capture_output=True, text=True, check=False
    )
    assert judged.returncode in {0, 1}, judged.stderr
    totals = json.loads(judged.stdout.splitlines()[-1])
    assert totals["files"] == written >= 110
    assert totals["errors"] == 0, "\n".join(line for line in judged.stdout.splitlines() if " error " in line)


def test_every_line_of_a_trusts_own_maps_is_seen_at_work():
    """A translation that no example needs is one that nobody has signed off."""
    for profile in TRUSTS:
        ods = profile.ods
        found = coverage(explained(ROOT / "schemas", ods, JOURNEY), JOURNEY.books[ods], ods)
        own = {name: use.unused for name, use in found.maps.items() if name.startswith("trusts/")}
        assert not any(own.values()), own
        assert found.unmapped == (), ods


def test_every_trust_has_six_worked_examples_and_each_is_signed_off():
    for profile in TRUSTS:
        examples = list(examples_of(ROOT / "schemas", profile.ods))
        assert len(examples) >= 6, profile.ods
        assert all(example.expected.exists() for example in examples)
