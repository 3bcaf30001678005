"""How each EPR speaks: bytes → tree. One module a dialect; this page says which one a message is in.

Today: FHIR R4 in JSON. Others (XML, STU3, HL7 v2) are recognised and named, so that what arrives too early
is quarantined with a reason and can be run again when the hub has learned them.
"""

from enum import StrEnum


class Dialect(StrEnum):
    FHIR_R4_JSON = "fhir-r4-json"
    FHIR_XML = "fhir-xml"
    FHIR_STU3_JSON = "fhir-stu3-json"
    HL7_V2 = "hl7-v2"


SUPPORTED = frozenset({Dialect.FHIR_R4_JSON})


def detect(content_type: str, raw: bytes) -> Dialect:
    """The dialect by what the message looks like; by its header only where both looks are possible."""
    start = raw[:16].lstrip(b"\xef\xbb\xbf \t\r\n\x0b")
    if start.startswith(b"<"):
        return Dialect.FHIR_XML
    if start.startswith((b"MSH|", b"FHS|", b"BHS|")):
        return Dialect.HL7_V2
    if "fhirversion=3" in content_type.replace(" ", "").lower():
        return Dialect.FHIR_STU3_JSON
    return Dialect.FHIR_R4_JSON
