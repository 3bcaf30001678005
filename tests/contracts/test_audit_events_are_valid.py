"""Every audit entry as FHIR meets the profiles that it claims, as HAPI's validator judges it."""

import pytest

from hub.audit.entries import Code
from hub.fhir.audit_event import BALP_DISCLOSURE, PARS, audit_event
from tests.harness.audit_samples import HUB, NAMES, every_sample
from tests.harness.validator import judge, needs_validator

KNOWN_TO_BE_OUTSIDE = (
    "BasicAuditEntityType#XrequestId",
    "transfer-audit-event#",
    "iso-21089-lifecycle#disclose",
)
"""Codes that PARS, BALP and DOMAIN 5.3 want, and that R4's extensible value sets do not hold."""


@pytest.mark.validator
@pytest.mark.timeout(300)
@needs_validator
def test_every_code_in_every_guise_meets_the_profiles_it_claims():
    samples = list(every_sample())
    events = [audit_event(each.entry, each.person, NAMES, HUB) for each in samples]
    disclosures = [each for each in events if BALP_DISCLOSURE in each["meta"]["profile"]]
    assert {each["subtype"][0]["code"] for each in events} == {code.value for code in Code}
    assert {each["subtype"][0]["code"] for each in disclosures} == {Code.DISCLOSURE_SENT.value}

    verdict = judge(events, names=[each.name for each in samples], profiles=[PARS])

    assert verdict.judged == len(samples) >= 300
    assert verdict.errors == ()
    unforeseen = [w for w in verdict.warnings if not any(code in w for code in KNOWN_TO_BE_OUTSIDE)]
    assert unforeseen == []


@pytest.mark.validator
@pytest.mark.timeout(120)
@needs_validator
def test_the_validator_would_have_found_what_is_not_so():
    """Else "no errors" could mean that nothing was looked at."""
    sample = next(each for each in every_sample() if each.name == "disclosure-sent: to another hospital")

    def broken():
        return audit_event(sample.entry, sample.person, NAMES, HUB)

    without_patient, without_network, another_code, right = broken(), broken(), broken(), broken()
    del without_patient["entity"][0]
    del without_network["agent"][1]["network"]
    another_code["subtype"][0]["code"] = "no-such-code"
    verdict = judge([without_patient, without_network, another_code, right], profiles=[PARS])
    assert {each.partition(":")[0] for each in verdict.errors} == {"1", "2", "3"}
