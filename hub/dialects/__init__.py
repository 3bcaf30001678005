"""How each EPR speaks: bytes → tree. One module a dialect; this page says which one a message is in.

FHIR R4 and STU3 (CareConnect), each in JSON and XML. HL7 v2, CDA and other versions of FHIR are recognised and named, so that what
arrives too early is quarantined with a reason and can be run again when the hub has learned it.
"""

import re
from enum import StrEnum
from functools import lru_cache


class Dialect(StrEnum):
    FHIR_R4_JSON = "fhir-r4-json"
    FHIR_R4_XML = "fhir-r4-xml"
    FHIR_STU3_JSON = "fhir-stu3-json"
    FHIR_STU3_XML = "fhir-stu3-xml"
    HL7_V2 = "hl7-v2"
    CDA = "cda"
    FHIR_DSTU2 = "fhir-dstu2"
    FHIR_R5 = "fhir-r5"


SUPPORTED = frozenset(each for each in Dialect if each.value.startswith(("fhir-r4-", "fhir-stu3-")))
STU3 = frozenset({Dialect.FHIR_STU3_JSON, Dialect.FHIR_STU3_XML})
XML = frozenset({Dialect.FHIR_R4_XML, Dialect.FHIR_STU3_XML})

_STU3_XML = re.compile(rb"""<profile\s+value=["'][^"']*/STU3/|<(ReferralRequest|ProcedureRequest)[\s/>]""")
"""What only STU3 has: a claim to one of its profiles, and resources that R4 renamed. Its code systems live on in R4 messages."""
_STU3_JSON = re.compile(
    rb'''"profile"\s*:\s*\[\s*"[^"]*/STU3/|"resourceType"\s*:\s*"(ReferralRequest|ProcedureRequest)"'''
)


def detect(content_type: str, raw: bytes) -> Dialect:
    """The dialect by what the message looks like; by its header only where both looks are possible."""
    start = raw[:64].lstrip(b"\xef\xbb\xbf\xff\xfe \t\r\n\x0b\x00")
    version = _says_version(content_type)
    if version in _NOT_READ:
        return _NOT_READ[version]
    says_stu3 = version == "3"
    if start.startswith(b"<"):
        if _CDA.search(raw, 0, 2000):
            return Dialect.CDA
        # UTF-16 has a NUL beside every ASCII letter.
        is_stu3 = says_stu3 or _STU3_XML.search(raw.replace(b"\x00", b"") if b"\x00" in raw[:64] else raw)
        return Dialect.FHIR_STU3_XML if is_stu3 else Dialect.FHIR_R4_XML
    if start.startswith((b"MSH|", b"FHS|", b"BHS|")):
        return Dialect.HL7_V2
    # Looked for by plain searches first, which are quicker: most messages hold none of these.
    hinted = b"/STU3/" in raw or b"ReferralRequest" in raw or b"ProcedureRequest" in raw
    if says_stu3 or (hinted and _STU3_JSON.search(raw)):
        return Dialect.FHIR_STU3_JSON
    return Dialect.FHIR_R4_JSON


_CDA = re.compile(rb"<(?:[A-Za-z]\w*:)?ClinicalDocument[\s>]")
_VERSION = re.compile(r"fhirversion\s*=\s*[\"']?(\d+)", re.IGNORECASE)
_NOT_READ = {"1": Dialect.FHIR_DSTU2, "5": Dialect.FHIR_R5}


@lru_cache(maxsize=64)
def _says_version(content_type: str) -> str:
    """The first number of the version of FHIR that a header names, or ""."""
    found = _VERSION.search(content_type)
    return found[1] if found else ""


@lru_cache(maxsize=64)
def contradicts(content_type: str, dialect: Dialect) -> bool:
    """Whether a header that names a format names another one than the message is in."""
    said = content_type.lower()
    return ("xml" in said and dialect.value.endswith("json")) or (
        "json" in said and dialect.value.endswith("xml")
    )
