"""National identifier systems in every spelling that was seen, and practitioners' numbers by their shape."""

import pytest

from hub.fhir.systems import (
    GMC_NUMBER,
    GMP_NUMBER,
    NHS_NUMBER,
    ODS_ORGANISATION,
    SDS_USER,
    canonical_system,
    practitioner_system,
)


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        ("http://fhir.nhs.net/Id/nhs-number", NHS_NUMBER),
        ("https://fhir.nhs.uk/id/NHS-Number/", NHS_NUMBER),
        ("urn:oid:2.16.840.1.113883.2.1.4.1", NHS_NUMBER),
        ("2.16.840.1.113883.2.1.4.1", NHS_NUMBER),
        ("2.16.840.1.113883.2.1.3.2.4.18.34", "urn:oid:2.16.840.1.113883.2.1.3.2.4.18.34"),
        ("10.20.1.4", "10.20.1.4"),
        ("https://fhir.nhs.uk/id/ods-organization-code", ODS_ORGANISATION),
        ("http://fhir.nhs.net/Id/sds-user-id", SDS_USER),
        ("http://fhir.nhs.uk/Id/dos-service-id", "https://fhir.nhs.uk/Id/dos-service-id"),
        ("https://fhir.hospital.example/id/nhs-number", "https://fhir.hospital.example/id/nhs-number"),
        ("https://fhir.nhs.uk.example/Id/nhs-number", "https://fhir.nhs.uk.example/Id/nhs-number"),
    ],
)
def test_a_system_has_one_spelling(sent, said):
    assert canonical_system(sent) == said
    assert canonical_system(said) == said


@pytest.mark.parametrize(
    ("system", "value", "said"),
    [
        (SDS_USER, "C4617570", GMC_NUMBER),
        (SDS_USER, "G1234567", GMP_NUMBER),
        (GMC_NUMBER, "123456789012", SDS_USER),
        (SDS_USER, "999999999999", SDS_USER),
        (SDS_USER, "12345", SDS_USER),
        ("urn:ours", "C4617570", "urn:ours"),
    ],
)
def test_a_practitioner_is_known_by_the_shape_of_the_number(system, value, said):
    assert practitioner_system(system, value) == said
