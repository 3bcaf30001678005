"""The URIs that FHIR identifiers and codes are written under, and the spellings of them that mean the same.

Sources: UK Core naming systems; the DSTU2 and v2 forms are those seen in NHS sample messages.
"""

NHS_NUMBER = "https://fhir.nhs.uk/Id/nhs-number"
ODS_ORGANISATION = "https://fhir.nhs.uk/Id/ods-organization-code"
ODS_SITE = "https://fhir.nhs.uk/Id/ods-site-code"
ODS_SYSTEMS = frozenset({ODS_ORGANISATION, ODS_SITE})

VERIFICATION_EXTENSIONS = "nhsnumberverificationstatus"
"""How every published URL of the NHS number verification extension ends, give or take a version."""

BARS_EVENTS = "https://fhir.nhs.uk/CodeSystem/message-events-bars"
BARS_REASONS = "https://fhir.nhs.uk/CodeSystem/message-reason-bars"
TASK_CODE = "http://hl7.org/fhir/CodeSystem/task-code"

HUB = "https://transfer-hub.example"
"""Where the hub's own names live. `.example` is reserved (RFC 2606): a deployment sets its own when it has one."""
HUB_TRANSFER = f"{HUB}/Id/transfer"
HUB_EVENT = f"{HUB}/Id/event"
HUB_EVENT_TYPE = f"{HUB}/CodeSystem/transfer-event"
HUB_STATE = f"{HUB}/CodeSystem/transfer-state"
HUB_REASON = f"{HUB}/CodeSystem/reason"

_CANONICAL = {
    system.lower(): system
    for system in (NHS_NUMBER, ODS_ORGANISATION, ODS_SITE, BARS_EVENTS, BARS_REASONS, HUB_TRANSFER)
} | {
    "urn:oid:2.16.840.1.113883.2.1.4.1": NHS_NUMBER,
    "urn:oid:2.16.840.1.113883.2.1.4.3": ODS_ORGANISATION,
    "urn:oid:1.2.826.0.1285.0.1.10": ODS_ORGANISATION,
}


def canonical_system(system: str) -> str:
    """The one spelling of a national system; any other system comes back as it is."""
    folded = system.strip().lower().rstrip("/")
    for old in ("http://fhir.nhs.net/", "https://fhir.nhs.net/", "http://fhir.nhs.uk/"):
        if folded.startswith(old):
            folded = "https://fhir.nhs.uk/" + folded[len(old) :]
    return _CANONICAL.get(folded, system)
