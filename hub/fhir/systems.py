"""The URIs that FHIR identifiers and codes are written under, and the spellings of them that mean the same.

Sources: UK Core naming systems; the DSTU2 and v2 forms are those seen in NHS sample messages.
"""

import re
from functools import lru_cache

NHS_NUMBER = "https://fhir.nhs.uk/Id/nhs-number"
ODS_ORGANISATION = "https://fhir.nhs.uk/Id/ods-organization-code"
ODS_SITE = "https://fhir.nhs.uk/Id/ods-site-code"
ODS_SYSTEMS = frozenset({ODS_ORGANISATION, ODS_SITE})

VERIFICATION_EXTENSIONS = "nhsnumberverificationstatus"
"""How every published URL of the NHS number verification extension ends, give or take a version."""

BARS_EVENTS = "https://fhir.nhs.uk/CodeSystem/message-events-bars"
BARS_REASONS = "https://fhir.nhs.uk/CodeSystem/message-reason-bars"
TASK_CODE = "http://hl7.org/fhir/CodeSystem/task-code"
HTTP_ERROR = "https://fhir.nhs.uk/CodeSystem/http-error-codes"

HUB = "https://transfer-hub.example"
"""Where the hub's own names live. `.example` is reserved (RFC 2606): a deployment sets its own when it has one."""
HUB_TRANSFER = f"{HUB}/Id/transfer"
HUB_EVENT = f"{HUB}/Id/event"
HUB_EVENT_TYPE = f"{HUB}/CodeSystem/transfer-event"
HUB_STATE = f"{HUB}/CodeSystem/transfer-state"
HUB_TRANSFER_TYPE = f"{HUB}/CodeSystem/transfer-type"
HUB_REASON = f"{HUB}/CodeSystem/reason"
HUB_AUDIT_EVENT = f"{HUB}/CodeSystem/transfer-audit-event"
HUB_AUDIT_ENTRY = f"{HUB}/Id/audit-entry"
HUB_REQUEST = f"{HUB}/Id/request"
HUB_ORGANISATION = f"{HUB}/Id/organisation"
HUB_USER = f"{HUB}/Id/user"
HUB_OPERATOR = f"{HUB}/Id/operator"
HUB_ROLE = f"{HUB}/Id/role"

SDS_USER = "https://fhir.nhs.uk/Id/sds-user-id"
SDS_ROLE_PROFILE = "https://fhir.nhs.uk/Id/sds-role-profile-id"
PRODUCT = "https://fhir.nhs.uk/Id/product-id"
GMC_NUMBER = "https://fhir.hl7.org.uk/Id/gmc-number"
GMP_NUMBER = "https://fhir.hl7.org.uk/Id/gmp-number"
PRACTITIONER_SYSTEMS = frozenset({SDS_USER, GMC_NUMBER, GMP_NUMBER})

_CANONICAL = {
    system.lower(): system
    for system in (
        NHS_NUMBER,
        ODS_ORGANISATION,
        ODS_SITE,
        BARS_EVENTS,
        BARS_REASONS,
        HUB_TRANSFER,
        SDS_USER,
        GMC_NUMBER,
        GMP_NUMBER,
        SDS_ROLE_PROFILE,
    )
} | {
    "urn:oid:2.16.840.1.113883.2.1.4.1": NHS_NUMBER,
    "urn:oid:2.16.840.1.113883.2.1.4.3": ODS_ORGANISATION,
    "urn:oid:1.2.826.0.1285.0.1.10": ODS_ORGANISATION,
}
_NATIONAL = re.compile(r"https?://fhir\.nhs\.(?:net|uk)/id/(.+)", re.IGNORECASE)
"""A national identifier system in any spelling of host and path: DSTU2's fhir.nhs.net, http, /id/."""
_BARE_OID = re.compile(r"[0-2](?:\.(?:0|[1-9][0-9]*)){3,}")
"""An OID as HL7 v2 and CDA write it, without the scheme that makes it a URI."""


@lru_cache(maxsize=4096)
def canonical_system(system: str) -> str:
    """The one spelling of a national system, and the URI of a bare OID; any other system comes back as it is."""
    stripped = system.strip().rstrip("/")
    if _BARE_OID.fullmatch(stripped):
        system = stripped = f"urn:oid:{stripped}"
    national = _NATIONAL.fullmatch(stripped)
    if national:
        stripped = f"https://fhir.nhs.uk/Id/{national[1]}"
    return _CANONICAL.get(stripped.lower()) or (stripped if national else system)


def practitioner_system(system: str, value: str) -> str:
    """The system that a practitioner's number is of by its shape: senders put consultant codes under sds-user-id.

    C and seven digits: a consultant, by their GMC number. G and seven digits: a GP, by their GMP number. Twelve digits: an SDS
    user. A number of another shape stays where the sender put it.
    """
    if system not in PRACTITIONER_SYSTEMS:
        return system
    letter, digits = value[:1].upper(), value[1:]
    if len(digits) == 7 and digits.isdigit() and letter in "CG":
        return GMC_NUMBER if letter == "C" else GMP_NUMBER
    return SDS_USER if len(value) == 12 and value.isdigit() else system
