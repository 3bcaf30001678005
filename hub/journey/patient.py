"""Part of step 2: the patient, as the message identifies them.

Sources: NHS Data Dictionary, NHS NUMBER and NHS NUMBER STATUS INDICATOR CODE; UK Core, NHSNumberVerificationStatus; FHIR R4,
Patient.link; PDS FHIR API, security labels; HL7 FHIR extension patient-unknownIdentity (HL7 v2 PID-31).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from hub.domain.ids import NHS_AUTHORITY, NhsNumber, PersonKey, parse_nhs_number
from hub.domain.message import Flag, FlagCode, Kind, PatientLink, PersonRef
from hub.domain.rejection import Why
from hub.fhir import headers
from hub.fhir.systems import HUB_TRANSFER, NHS_NUMBER, VERIFICATION_EXTENSIONS
from hub.fhir.tree import VALUE_MAX, Entry, Tree, code_of, identifiers
from hub.journey.draft import Draft, RefusedError
from hub.journey.repair.ids import well_formed

Described = tuple[Mapping[str, Any], str, bool]
"""What describes a person, where it stands, and whether it is a Patient."""

_UNKNOWN_IDENTITY = "/patient-unknownidentity"
_RECORD = "record"
"""The authority under which a trust's own Patient resource ids are kept: ``<ODS>|record``."""

# PDS says U, R, V, REDACTED; v3-Confidentiality has the same letters.
_SENSITIVITY = {"V": "V", "R": "R", "REDACTED": "V", "U": "U"}


def person_ref(
    draft: Draft,
    kind: Kind,
    subject: Entry,
    described: Described,
    nhs_number_check: Literal["enforce", "flag"],
) -> PersonRef:
    """The patient, by the Patient resource or by a reference that carries an identifier. Raises RefusedError."""
    source, at, is_patient = described
    national = _nhs_identifiers(source)
    number, verification = _nhs_number(national, at, draft, nhs_number_check)
    patient: Mapping[str, Any] = source if is_patient else {}
    trust, local = draft.received.trust, _local(draft, source)
    own_numbers = f"{trust}|{draft.directory[trust].identifier_systems.patient}"
    ref = PersonRef(
        nhs_number=number,
        verification=verification,
        local=local,
        numbers=tuple([key for key in local if key.authority == own_numbers]),
        birth_date=patient.get("birthDate"),
        record=_record(draft, patient.get("id")) if kind is Kind.PATIENT else None,
        superseded=_superseded(national),
        links=_links(draft, patient),
        active=patient.get("active"),
        unknown=_is_unknown(patient),
        deceased=_deceased(patient),
        sensitivity=_sensitivity(patient),
    )
    if ref.unknown:
        draft.flags.append(Flag(FlagCode.IDENTITY_UNKNOWN, at))
    if not ref.keys and not is_patient and _is_at_an_address(draft, subject) and _is_as_told(source):
        return replace(ref, told_as=_identity_in(source) or None)
    if not ref.keys:
        raise RefusedError(
            Why.PATIENT_UNIDENTIFIED,
            at,
            "The only identifier is an NHS number that is wrong or not verified; it identifies nobody."
            if number
            else "",
        )
    return ref


def _is_at_an_address(draft: Draft, subject: Entry) -> bool:
    return subject.resource["resourceType"] == "Task" and bool(draft.received.proved(headers.ABOUT))


def _is_as_told(source: Mapping[str, Any]) -> bool:
    """Whether a reference says no more of a patient than the hub tells of one who has no NHS number: ``Patient/{id}``, or nothing."""
    return not source or (not [*identifiers(source)] and bool(_identity_in(source)))


def described_by(draft: Draft, subject: Entry) -> Described:
    """What describes the person: the Patient or the reference, where it stands, and whether it is a Patient. Raises RefusedError."""
    if subject.resource["resourceType"] == "Patient":
        return subject.resource, f"{subject.path}.identifier", True
    name = "for" if subject.resource["resourceType"] == "Task" else "subject"
    reference = subject.resource.get(name)
    patient = draft.resources.resolve(reference, inside=subject.resource)
    if patient is None:
        # A Task's transfer says whom it is about, and may refer to a server of its own.
        patient = _described(draft, reference, f"{subject.path}.{name}", is_strict=name == "subject")
    if patient is not None:
        return patient, "Patient.identifier", True
    if reference is None and not _is_at_an_address(draft, subject):
        raise RefusedError(Why.PATIENT_MISSING, "Patient")
    return reference or {}, f"{subject.path}.{name}.identifier", False


def _described(draft: Draft, reference: Mapping[str, Any] | None, at: str, *, is_strict: bool) -> Tree | None:
    """The Patient that is meant where no reference leads to one: who has the number that the reference says, else the only one.

    A number or a resource id that no Patient of the message has is somebody else's, a mother's beside her child's: then nobody here is described.
    """
    patients = [each.resource for each in draft.resources.of_type("Patient")]
    said = set(identifiers(reference))
    if said:
        return next((each for each in patients if not said.isdisjoint(identifiers(each))), None)
    if len(patients) > 1:
        raise RefusedError(
            Why.PATIENT_MISSING,
            at,
            "The message holds more than one Patient, and this leads to none of them.",
        )
    only = next(iter(patients), None)
    identity = _identity_in(reference)
    is_another = is_strict and only is not None and identity and only.get("id", identity) != identity
    return None if is_another else only


def _identity_in(reference: Mapping[str, Any] | None) -> str:
    """The id of a resource on somebody's server, where a reference says one."""
    url = str((reference or {}).get("reference", "")).partition("/_history/")[0]
    return "" if url.startswith(("urn:", "#")) or "/" not in url else url.rpartition("/")[2]


def _local(draft: Draft, source: Mapping[str, Any]) -> tuple[PersonKey, ...]:
    """The hospital's own numbers. What it shares with another trust's is the text only. One digit ten times stands for no number, in whatever
    system.
    """
    return tuple(
        [
            PersonKey(f"{draft.received.trust}|{each.system}", each.value)
            for each in identifiers(source)
            if each.system not in _NOT_LOCAL and not parse_nhs_number(each.value).repeated
        ]
    )


_NOT_LOCAL = frozenset({NHS_NUMBER, HUB_TRANSFER})


def _record(draft: Draft, identity: object) -> PersonKey | None:
    if not isinstance(identity, str) or not identity or len(identity) > VALUE_MAX:
        return None
    # A link can name a record that is not in the message, by the id that its trust writes; its own message had that mended.
    return PersonKey(f"{draft.received.trust}|{_RECORD}", well_formed(identity))


def is_record(key: PersonKey) -> bool:
    """Whether a key is the id of a resource on a trust's server."""
    return key.authority.endswith(f"|{_RECORD}")


def _nhs_identifiers(source: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The identifiers that are NHS numbers, those of former times too."""
    found = source.get("identifier", ())
    return [
        each
        for each in ((found,) if isinstance(found, dict) else found)
        if isinstance(each, dict) and each.get("system") == NHS_NUMBER and each.get("value")
    ]


def _nhs_number(
    national: Sequence[Mapping[str, Any]], at: str, draft: Draft, check: Literal["enforce", "flag"]
) -> tuple[NhsNumber | None, str | None]:
    """The NHS number that is the person's now, and its status: one that can be used before one that cannot. Raises RefusedError."""
    found = [
        (parse_nhs_number(each["value"]), _verification(each))
        for each in national
        if _is_current(each, draft)
    ]
    usable = [(number, said) for number, said in found if number.valid and said in _USABLE]
    if len({number.digits for number, _ in usable}) > 1:
        raise RefusedError(
            Why.PATIENT_UNIDENTIFIED,
            at,
            "It holds two NHS numbers, and says of neither that it is an old one.",
        )
    for number, verification in usable[:1] or found[:1]:
        if number.repeated:
            raise RefusedError(Why.NHS_NUMBER_REPEATED_DIGITS, at)
        if not number.valid:
            if check == "enforce":
                raise RefusedError(Why.NHS_NUMBER_INVALID, at)
            draft.flags.append(Flag(FlagCode.NHS_NUMBER_INVALID, at))
        elif verification not in _USABLE:
            draft.flags.append(Flag(FlagCode.NHS_NUMBER_UNVERIFIED, at))
        return number, verification
    return None, None


_USABLE = frozenset({None, "01"})


def _is_current(identifier: Mapping[str, Any], draft: Draft) -> bool:
    """Neither called old nor out of its period: the day it ends is its last. FHIR dates may be a year or a month."""
    if identifier.get("use") == "old":
        return False
    ended = str((identifier.get("period") or {}).get("end", ""))[:10]
    return not ended or ended >= draft.received.received_at.date().isoformat()[: len(ended)]


def _superseded(national: Sequence[Mapping[str, Any]]) -> tuple[PersonKey, ...]:
    """NHS numbers that the record says are this person's no longer."""
    old = [parse_nhs_number(each["value"]) for each in national if each.get("use") == "old"]
    return tuple([PersonKey(NHS_AUTHORITY, number.digits) for number in old if number.valid])


# The retired slugs still dominate what is sent (UK Core, NHSNumberVerificationStatus).
_VERIFIED = {"01", "number-present-and-verified"}


def _verification(identifier: Mapping[str, Any]) -> str | None:
    for extension in identifier.get("extension", ()):
        url = str(extension.get("url", "")).lower().replace("-", "")
        if VERIFICATION_EXTENSIONS in url:
            code = code_of(extension.get("valueCodeableConcept"))
            return "01" if code in _VERIFIED else code
    return None


def _links(draft: Draft, patient: Mapping[str, Any]) -> tuple[PatientLink, ...]:
    """Which other records are this person's. A reference to nothing in the message names a record by its id alone."""
    found: list[PatientLink] = []
    for link in patient.get("link", ()):
        other = link.get("other") or {}
        target = draft.resources.resolve(other)
        keys = [*_keys_of(draft, other), *(_keys_of(draft, target) if target else ())]
        url = str(other.get("reference", ""))
        identity = target.get("id") if target else "" if url.startswith("urn:") else url.rpartition("/")[2]
        record = _record(draft, identity)
        if record is not None:
            keys.append(record)
        found.append(PatientLink(str(link.get("type")), tuple(dict.fromkeys(keys))))
    return tuple(found)


def _keys_of(draft: Draft, source: Mapping[str, Any]) -> tuple[PersonKey, ...]:
    """What another record is known by. Its NHS number counts if nothing is said against it."""
    numbers = (
        parse_nhs_number(each["value"])
        for each in _nhs_identifiers(source)
        if _is_current(each, draft) and _verification(each) in _USABLE
    )
    return (
        *(PersonKey(NHS_AUTHORITY, number.digits) for number in numbers if number.valid),
        *_local(draft, source),
    )


def _is_unknown(patient: Mapping[str, Any]) -> bool:
    """Present means unknown, unless it says otherwise: seen as a boolean and as a CodeableConcept."""
    return any(
        str(extension.get("url", "")).lower().endswith(_UNKNOWN_IDENTITY)
        and extension.get("valueBoolean") is not False
        for extension in patient.get("extension", ())
    )


def _deceased(patient: Mapping[str, Any]) -> bool | None:
    if "deceasedDateTime" in patient:
        return True
    found = patient.get("deceasedBoolean")
    return found if isinstance(found, bool) else None


def _sensitivity(patient: Mapping[str, Any]) -> str | None:
    """The strictest of the labels that PDS gives; None where there is none."""
    labels = (patient.get("meta") or {}).get("security")
    if not labels:
        return None
    found = {_SENSITIVITY[code] for label in labels if (code := str(label.get("code", ""))) in _SENSITIVITY}
    return next((each for each in ("V", "R", "U") if each in found), None)
