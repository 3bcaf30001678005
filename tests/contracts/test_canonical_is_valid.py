"""What the hub makes of every worked example is valid FHIR R4, as HAPI's validator judges it with UK Core loaded.

Where the validator is and what happens without it: `tests.harness.validator`.
"""

import pytest

from hub.journey.decide import Journey
from hub.onboarding.coverage import coverage
from hub.onboarding.examples import RECEIVED_AT, examples_of, explain_file, explained
from hub.trusts import load_books, load_directory
from tests.harness.validator import ROOT, judge, needs_validator

TRUSTS = load_directory(ROOT / "schemas")
JOURNEY = Journey(TRUSTS, books=load_books(ROOT / "schemas", TRUSTS))


@pytest.mark.validator
@pytest.mark.timeout(300)
@needs_validator
def test_the_canonical_form_of_every_worked_example_is_valid():
    canonical = {}
    for profile in TRUSTS:
        for example in examples_of(ROOT / "schemas", profile.ods):
            told = explain_file(example.given, example.ods, JOURNEY, RECEIVED_AT)
            if told.canonical is not None:
                canonical[f"{profile.ods}-{example.given.name}"] = told.canonical
    verdict = judge(canonical.values(), names=list(canonical))
    assert verdict.judged == len(canonical) >= 110
    assert verdict.errors == ()


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
