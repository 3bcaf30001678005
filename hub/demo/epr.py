"""The record system of one trust, as far as the hub can see it: it writes messages.

Nothing here reads a clock, draws a random number or sends anything. Times are handed in, and every id is a
hash of what it stands for, so the same call gives the same bytes on every machine. The messages follow the patterns
of BaRS (Booking and Referral Standard), not the standard itself: it has no hospital to hospital use case, and so no
`MessageHeader.definition` is claimed.

What is what:
 * `Epr.asks_to_transfer`, `updates_request`, `cancels_request`  by the sender
 * `Epr.answers`                                                 by the receiver, a Task
 * `Epr.answers_bars`                                            by the receiver, its own Encounter (BaRS REFRESP02, 03)
 * `Epr.admits`, `moves`, `discharges`                           by either: what happens in its own stays

Ids: `x-request-id` is a hash of the body, so a message that says the same is a retry and one that says anything else is
new. `Bundle.id` is one per request and kept by its updates, as BaRS's own example chain does, so that nobody can
come to rely on it being new.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any, Literal
from uuid import UUID

import orjson

from hub.domain.trust import TrustProfile
from hub.fhir import headers
from hub.fhir.systems import (
    BARS_EVENTS,
    BARS_REASONS,
    HUB_STATE,
    HUB_TRANSFER,
    HUB_TRANSFER_TYPE,
    NHS_NUMBER,
    ODS_ORGANISATION,
    ODS_SITE,
    TASK_CODE,
)

Form = Literal["collection", "message", "bare"]
"""How an Encounter is sent: with its Patient in a collection Bundle, with a MessageHeader, or alone with the Patient contained."""

TaskStatus = Literal[
    "requested",
    "received",
    "on-hold",
    "accepted",
    "rejected",
    "ready",
    "in-progress",
    "completed",
    "cancelled",
    "failed",
    "entered-in-error",
]
BarsEncounterStatus = Literal["planned", "cancelled", "in-progress", "finished"]
Priority = Literal["routine", "urgent", "asap", "stat"]

_Json = dict[str, Any]

_SNOMED = "http://snomed.info/sct"
_ACT = "http://terminology.hl7.org/CodeSystem/v3-ActCode"
_V2_EVENT = "http://terminology.hl7.org/CodeSystem/v2-0003"
_UKCORE = "https://fhir.hl7.org.uk"
_VERIFICATION = f"{_UKCORE}/StructureDefinition/Extension-UKCore-NHSNumberVerificationStatus"
_VERIFICATION_CODES = f"{_UKCORE}/CodeSystem/UKCore-NHSNumberVerificationStatusEngland"
_ADMISSION_METHOD = f"{_UKCORE}/StructureDefinition/Extension-UKCore-AdmissionMethod"
_ADMISSION_METHOD_CODES = f"{_UKCORE}/CodeSystem/UKCore-AdmissionMethodEngland"
_ADMISSION_SOURCE_CODES = f"{_UKCORE}/CodeSystem/UKCore-SourceOfAdmissionEngland"
_DISCHARGE_CODES = f"{_UKCORE}/CodeSystem/UKCore-DischargeDestinationEngland"
_SPECIALTY_CODES = f"{_UKCORE}/CodeSystem/UKCore-PracticeSettingCode"
_CATEGORY_CODES = "https://fhir.nhs.uk/CodeSystem/message-category-servicerequest"
_REFUSAL_CODES = "https://fhir.nhs.uk/CodeSystem/rejected-reasons-bars"

_REFUSALS = {"RRNA": "Requested resource not available within timescale", "OTH": "Other"}
_SPECIALTIES = {
    "110": "Trauma and Orthopaedics",
    "150": "Neurosurgery",
    "192": "Intensive Care Medicine",
    "320": "Cardiology",
    "340": "Respiratory Medicine",
}


@dataclass(frozen=True, slots=True)
class Patient:
    """A synthetic person. ``local`` is the hospital number at each trust that knows them (trust's ODS → number)."""

    family: str
    given: str
    birth_date: date
    nhs_number: str
    local: Mapping[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class Message:
    """One Kafka record for `epr.<ods>.events`."""

    headers: dict[str, str]
    key: bytes
    body: bytes


def correlation_of(requester: str, request_number: str) -> str:
    """The conversation's id: chosen by the trust that asks, kept by everyone who answers."""
    return _id(requester, "conversation", request_number)


def bundle_of(requester: str, request_number: str) -> str:
    """`Bundle.id` of a request and of its updates; an answer repeats it in `MessageHeader.response`."""
    return _id(requester, "bundle", request_number)


class Epr:
    """One trust's record system. Times must have an offset; any offset will do and is kept."""

    def __init__(self, profile: TrustProfile) -> None:
        self.profile = profile

    # ----------------------------------------------------------------------------------------------------------
    # The trust that asks
    # ----------------------------------------------------------------------------------------------------------

    def asks_to_transfer(
        self,
        patient: Patient,
        *,
        to: str,
        to_site: str | None = None,
        request_number: str,
        encounter_number: str,
        at: datetime,
        site: str | None = None,
        ward: str = "Acute Medical Unit",
        admitted_at: datetime | None = None,
        specialty: str = "320",
        reason: str = "Needs a specialty that this hospital does not have",
        priority: Priority = "urgent",
        kind: str | None = None,
        draft: bool = False,
        replaces: str | None = None,
    ) -> Message:
        """Ask trust ``to`` to take the patient over. ``site`` is where the patient is, the trust's first one if not said.

        ``kind`` is a transfer type (repatriation, treat-and-return, …), ``replaces`` the number of the request that this one
        stands in for.
        """
        more: _Json = {}
        if kind is not None:
            referral = _coded(_CATEGORY_CODES, "referral", "Transfer of Care")
            more["category"] = [referral, _coded(HUB_TRANSFER_TYPE, kind)]
        if replaces is not None:
            replaced = _identifier(self.profile.identifier_systems.request, replaces)
            more["replaces"] = [_logical("ServiceRequest", replaced)]
        return self._requests(
            "new",
            patient,
            to=to,
            request_number=request_number,
            at=at,
            request={
                "status": "draft" if draft else "active",
                "authoredOn": _time(at),
                **self._wish(to_site, encounter_number, specialty, reason, priority),
                **more,
            },
            encounter=self._stay(
                patient,
                encounter_number,
                status="in-progress",
                period=_period(admitted_at),
                location=[self._location(site, ward)],
                serviceProvider={"reference": _urn(self.profile.ods, "Organization", self.profile.ods)},
            ),
        )

    def updates_request(
        self,
        patient: Patient,
        *,
        to: str,
        to_site: str | None = None,
        request_number: str,
        encounter_number: str,
        at: datetime,
        requested_at: datetime | None = None,
        version: int = 2,
        on_hold: bool = False,
        site: str | None = None,
        ward: str = "Acute Medical Unit",
        admitted_at: datetime | None = None,
        specialty: str = "320",
        reason: str = "Needs a specialty that this hospital does not have",
        priority: Priority = "urgent",
    ) -> Message:
        """Say the whole request again, as it is now. ``version`` counts the request's versions from 1."""
        return self._requests(
            "update",
            patient,
            to=to,
            request_number=request_number,
            at=at,
            version=version,
            request={
                "status": "on-hold" if on_hold else "active",
                "authoredOn": _time(requested_at or at),
                **self._wish(to_site, encounter_number, specialty, reason, priority),
            },
            encounter=self._stay(
                patient,
                encounter_number,
                status="in-progress",
                period=_period(admitted_at),
                location=[self._location(site, ward)],
                serviceProvider={"reference": _urn(self.profile.ods, "Organization", self.profile.ods)},
            ),
        )

    def cancels_request(
        self,
        patient: Patient,
        *,
        to: str,
        request_number: str,
        at: datetime,
        version: int = 2,
        in_error: bool = False,
        reason: str = "The transfer is no longer needed",
    ) -> Message:
        """Withdraw the request (BaRS SERVREQ01), or say that it should never have been sent (SERVREQ02)."""
        return self._requests(
            "delete" if in_error else "update",
            patient,
            to=to,
            request_number=request_number,
            at=at,
            version=version,
            request={
                "status": "entered-in-error" if in_error else "revoked",
                "reasonCode": [{"text": reason}],
            },
        )

    # ----------------------------------------------------------------------------------------------------------
    # The trust that answers
    # ----------------------------------------------------------------------------------------------------------

    def answers(
        self,
        patient: Patient,
        status: TaskStatus,
        *,
        requester: TrustProfile,
        at: datetime,
        request_number: str | None = None,
        transfer_id: str | None = None,
        reason: str | None = None,
        reason_text: str | None = None,
        bed: str | None = None,
        correlation_id: str | None = None,
        business_status: str | None = None,
        until: datetime | None = None,
        version: int | None = None,
    ) -> Message:
        """Answer with a Task. The request is named by its number, by the hub's transfer id, or by both.

        ``reason`` is a code of BaRS's refusals (RRNA, OTH). ``correlation_id`` is the request's if not said; where only
        the hub's id is known it is a new one. ``business_status`` is the hub's own state, where it says more; ``until`` how
        long a bed is held; ``version`` the transfer's version that this was decided on.
        """
        if request_number is None and transfer_id is None:
            raise ValueError("an answer names the request: request_number, transfer_id or both")
        subject = request_number or transfer_id or ""
        url = _urn(self.profile.ods, "Task", requester.ods, subject, patient.nhs_number)
        named = [
            _logical("ServiceRequest", identifier)
            for identifier in _names(requester, request_number, transfer_id)
        ]
        task: _Json = {
            "resourceType": "Task",
            "meta": {"lastUpdated": _time(at)},
            "basedOn": named[1:],
            "status": status,
            "statusReason": _refusal(reason, reason_text),
            "businessStatus": _coded(HUB_STATE, business_status or status),
            "restriction": {"period": {"end": _time(until)}} if until else None,
            "intent": "order",
            "code": _coded(TASK_CODE, "fulfill"),
            "focus": named[0],
            "for": _logical("Patient", _identifier(NHS_NUMBER, patient.nhs_number)),
            "lastModified": _time(at),
            "requester": _trust(requester.ods),
            "owner": _trust(self.profile.ods, self.profile.name),
            "output": [{"type": {"text": "bed"}, "valueString": bed}] if bed else None,
        }
        message = self._response(
            patient,
            requester,
            focus=url,
            at=at,
            request_number=request_number,
            bundle_id=_id(self.profile.ods, "answer", requester.ods, subject, status, _time(at)),
            correlation_id=correlation_id or correlation_of(requester.ods, subject),
            entries=[(url, task)],
        )
        if version is not None:
            message.headers[headers.IF_MATCH] = f'W/"{version}"'
        return message

    def answers_bars(
        self,
        patient: Patient,
        encounter_status: BarsEncounterStatus,
        *,
        requester: TrustProfile,
        request_number: str,
        at: datetime,
        encounter_number: str | None = None,
        reason_code: str | None = "RRNA",
        reason_text: str | None = None,
        correlation_id: str | None = None,
    ) -> Message:
        """Answer with an Encounter of one's own: planned is yes, cancelled is no (then ``reason_code`` says why)."""
        ods = self.profile.ods
        request_url = _urn(requester.ods, "ServiceRequest", request_number)
        patient_url = _urn(ods, "Patient", patient.nhs_number)
        started = at if encounter_status in {"in-progress", "finished"} else None
        encounter = self._stay(
            patient,
            encounter_number,
            status=encounter_status,
            basedOn=[{"reference": request_url}],
            period=_period(started, at if encounter_status == "finished" else None),
            reasonCode=_some(_refusal(reason_code, reason_text)) if encounter_status == "cancelled" else None,
        )
        request = {
            "resourceType": "ServiceRequest",
            "identifier": list(_names(requester, request_number, None)),
            "status": "active",
            "intent": "order",
            "category": [_coded(_CATEGORY_CODES, "referral")],
            "subject": {"reference": patient_url},
            "requester": _trust(requester.ods),
            "performer": [_trust(ods)],
        }
        return self._response(
            patient,
            requester,
            focus=request_url,
            at=at,
            request_number=request_number,
            bundle_id=_id(ods, "answer", requester.ods, request_number, encounter_status, _time(at)),
            correlation_id=correlation_id or correlation_of(requester.ods, request_number),
            entries=[
                (request_url, request),
                (_urn(ods, "Encounter", requester.ods, request_number), encounter),
                (patient_url, self._person(patient)),
            ],
        )

    # ----------------------------------------------------------------------------------------------------------
    # What happens in a trust's own stays
    # ----------------------------------------------------------------------------------------------------------

    def admits(
        self,
        patient: Patient,
        *,
        encounter_number: str,
        ward: str,
        at: datetime,
        site: str | None = None,
        method: str = "81",
        source: str = "51",
        form: Form = "collection",
    ) -> Message:
        """The stay begins. Method 81 and source 51: transferred from another NHS hospital, not in an emergency."""
        hospitalization = {
            "extension": [
                {"url": _ADMISSION_METHOD, "valueCodeableConcept": _coded(_ADMISSION_METHOD_CODES, method)}
            ],
            "admitSource": _coded(_ADMISSION_SOURCE_CODES, source),
        }
        encounter = self._stay(
            patient,
            encounter_number,
            at=at,
            status="in-progress",
            period=_period(at),
            hospitalization=hospitalization,
            location=[self._location(site, ward, since=at)],
        )
        return self._reports("A01", patient, encounter, encounter_number=encounter_number, at=at, form=form)

    def moves(
        self,
        patient: Patient,
        *,
        encounter_number: str,
        from_ward: str,
        to_ward: str,
        at: datetime,
        admitted_at: datetime | None = None,
        site: str | None = None,
        form: Form = "collection",
    ) -> Message:
        """From one ward to another of the same trust, in the same stay."""
        encounter = self._stay(
            patient,
            encounter_number,
            at=at,
            status="in-progress",
            period=_period(admitted_at),
            location=[
                self._location(site, from_ward, since=admitted_at, until=at),
                self._location(site, to_ward, since=at),
            ],
        )
        return self._reports("A02", patient, encounter, encounter_number=encounter_number, at=at, form=form)

    def discharges(
        self,
        patient: Patient,
        *,
        encounter_number: str,
        at: datetime,
        to_site: str | None = None,
        disposition: str = "51",
        admitted_at: datetime | None = None,
        form: Form = "collection",
    ) -> Message:
        """The stay ends. ``to_site`` is the site the patient goes to; home is no site and disposition 19."""
        hospitalization = {
            "destination": _logical("Location", _identifier(ODS_SITE, to_site)) if to_site else None,
            "dischargeDisposition": _coded(_DISCHARGE_CODES, disposition),
        }
        encounter = self._stay(
            patient,
            encounter_number,
            at=at,
            status="finished",
            period=_period(admitted_at, at),
            hospitalization=hospitalization,
        )
        return self._reports("A03", patient, encounter, encounter_number=encounter_number, at=at, form=form)

    def reports(
        self,
        trigger: str,
        patient: Patient,
        *,
        encounter_number: str,
        at: datetime,
        status: str,
        encounter_class: str = "IMP",
        form: Form = "message",
        **elements: Any,
    ) -> Message:
        """Any ADT event: ``trigger`` is its HL7 v2 name, ``elements`` what else the Encounter says."""
        encounter = self._stay(patient, encounter_number, at=at, status=status, **elements)
        encounter["class"] = {"system": _ACT, "code": encounter_class}
        return self._reports(trigger, patient, encounter, encounter_number=encounter_number, at=at, form=form)

    def tells_of_patient(
        self, trigger: str, patient: Patient, *, at: datetime, others: tuple[_Json, ...] = (), **elements: Any
    ) -> Message:
        """A patient event (A28, A31, A40, A37): the Patient as it is now, and other Patients that it speaks of."""
        ods = self.profile.ods
        person = {**self._person(patient), **elements}
        url = _urn(ods, "Patient", orjson.dumps(person["identifier"]).decode())
        bundle_id = _id(ods, "patient", trigger, url, _time(at))
        header = self._header(
            trigger, url, bundle_id, system=_V2_EVENT, sender=_trust(ods, self.profile.name)
        )
        entries = [header, (url, person)]
        entries += [(_urn(ods, "Patient", str(number)), each) for number, each in enumerate(others)]
        return self._message(
            patient, _bundle("message", bundle_id, at, entries), correlation_id=_id(ods, "patient", bundle_id)
        )

    # ----------------------------------------------------------------------------------------------------------
    # Messages
    # ----------------------------------------------------------------------------------------------------------

    def _requests(
        self,
        reason: Literal["new", "update", "delete"],
        patient: Patient,
        *,
        to: str,
        request_number: str,
        at: datetime,
        request: _Json,
        version: int = 1,
        encounter: _Json | None = None,
    ) -> Message:
        """A servicerequest-request. The Organizations are entries, so that receivers must follow references."""
        ods = self.profile.ods
        url = _urn(ods, "ServiceRequest", request_number)
        patient_url, own_url, other_url = (
            _urn(ods, "Patient", patient.nhs_number),
            _urn(ods, "Organization", ods),
            _urn(ods, "Organization", to),
        )
        whole_request = {
            "resourceType": "ServiceRequest",
            "meta": {"versionId": str(version), "lastUpdated": _time(at)},
            "identifier": list(_names(self.profile, request_number, None)),
            "intent": "order",
            "category": [_coded(_CATEGORY_CODES, "referral", "Transfer of Care")],
            "code": _coded(_SNOMED, "19712007", "Patient transfer, to another health care facility"),
            "subject": {"reference": patient_url},
            "requester": {"reference": own_url},
            "performer": [{"reference": other_url}],
            **request,
        }
        header = self._header(
            "servicerequest-request",
            url,
            f"{reason} {version} {_time(at)}",
            reason=_coded(BARS_REASONS, reason),
            sender={"reference": own_url},
            destination=[{"endpoint": _endpoint(to), "receiver": {"reference": other_url}}],
        )
        entries = [(url, whole_request), (patient_url, self._person(patient))]
        if encounter is not None:
            entries.append((whole_request["encounter"]["reference"], encounter))
        entries += [(own_url, _organization(ods, self.profile.name)), (other_url, _organization(to))]
        return self._message(
            patient,
            _bundle("message", bundle_of(ods, request_number), at, [header, *entries]),
            correlation_id=correlation_of(ods, request_number),
        )

    def _response(
        self,
        patient: Patient,
        requester: TrustProfile,
        *,
        focus: str,
        at: datetime,
        request_number: str | None,
        bundle_id: str,
        correlation_id: str,
        entries: list[tuple[str, _Json]],
    ) -> Message:
        """A servicerequest-response. The organisations are named by logical references, which needs no entries."""
        header = self._header(
            "servicerequest-response",
            focus,
            bundle_id,
            reason=_coded(BARS_REASONS, "new"),
            sender=_trust(self.profile.ods, self.profile.name),
            destination=[{"endpoint": _endpoint(requester.ods), "receiver": _trust(requester.ods)}],
            response={"identifier": bundle_of(requester.ods, request_number), "code": "ok"}
            if request_number
            else None,
        )
        return self._message(
            patient, _bundle("message", bundle_id, at, [header, *entries]), correlation_id=correlation_id
        )

    def _reports(
        self,
        trigger: str,
        patient: Patient,
        encounter: _Json,
        *,
        encounter_number: str,
        at: datetime,
        form: Form,
    ) -> Message:
        """An Encounter as it is now. ``trigger`` is the HL7 v2 event that the MessageHeader names, if there is one."""
        ods = self.profile.ods
        url, patient_url = _urn(ods, "Encounter", encounter_number), _urn(ods, "Patient", patient.nhs_number)
        correlation_id = _id(ods, "stay", encounter_number)
        if form == "bare":
            alone = {
                **encounter,
                "contained": [{"id": "patient", **self._person(patient)}],
                "subject": {"reference": "#patient"},
            }
            return self._message(patient, alone, correlation_id=correlation_id)
        entries = [(url, encounter), (patient_url, self._person(patient))]
        bundle_id = _id(ods, "report", trigger, encounter_number, _time(at))
        if form == "message":
            header = self._header(
                trigger, url, bundle_id, system=_V2_EVENT, sender=_trust(ods, self.profile.name)
            )
            entries.insert(0, header)
        return self._message(patient, _bundle(form, bundle_id, at, entries), correlation_id=correlation_id)

    def _header(
        self, event: str, focus: str, seed: str, *, system: str = BARS_EVENTS, **elements: Any
    ) -> tuple[str, _Json]:
        """``seed`` tells this message from all others with the same event and focus."""
        identity = _id(self.profile.ods, "header", event, focus, seed)
        return f"urn:uuid:{identity}", {
            "resourceType": "MessageHeader",
            "id": identity,
            "eventCoding": {"system": system, "code": event},
            "source": {"name": f"{self.profile.ods} simulated EPR", "endpoint": _endpoint(self.profile.ods)},
            "focus": [{"reference": focus}],
            **elements,
        }

    def _message(self, patient: Patient, resource: _Json, *, correlation_id: str) -> Message:
        body = orjson.dumps(_without_empty(resource))
        return Message(
            headers={
                headers.REQUEST_ID: _id(self.profile.ods, "message", hashlib.sha256(body).hexdigest()),
                headers.CORRELATION_ID: correlation_id,
                headers.CONTENT_TYPE: headers.CONTENT_TYPE_FHIR,
            },
            key=self._key(patient),
            body=body,
        )

    def _key(self, patient: Patient) -> bytes:
        """One patient, one partition: the hospital number. Without one, a pseudonym, because Kafka's tools show keys."""
        local = patient.local.get(self.profile.ods)
        return (local or _id(self.profile.ods, "unregistered", patient.nhs_number)).encode()

    # ----------------------------------------------------------------------------------------------------------
    # Resources in this trust's words
    # ----------------------------------------------------------------------------------------------------------

    def _wish(
        self, to_site: str | None, encounter_number: str, specialty: str, reason: str, priority: Priority
    ) -> _Json:
        """What a request asks for: the part a cancellation does not repeat."""
        return {
            "priority": priority,
            "encounter": {"reference": _urn(self.profile.ods, "Encounter", encounter_number)},
            "performerType": _coded(_SPECIALTY_CODES, specialty, _SPECIALTIES.get(specialty)),
            "locationReference": _some(
                _logical("Location", _identifier(ODS_SITE, to_site)) if to_site else None
            ),
            "reasonCode": [{"text": reason}],
        }

    def _person(self, patient: Patient) -> _Json:
        verified = {
            "url": _VERIFICATION,
            "valueCodeableConcept": _coded(_VERIFICATION_CODES, "01", "Number present and verified"),
        }
        local = patient.local.get(self.profile.ods)
        return {
            "resourceType": "Patient",
            "identifier": [
                {"extension": [verified], **_identifier(NHS_NUMBER, patient.nhs_number)},
                *([_identifier(self.profile.identifier_systems.patient, local)] if local else []),
            ],
            "name": [{"use": "official", "family": patient.family, "given": [patient.given]}],
            "birthDate": patient.birth_date.isoformat(),
        }

    def _stay(
        self, patient: Patient, encounter_number: str | None, *, at: datetime | None = None, **elements: Any
    ) -> _Json:
        """An inpatient Encounter of this trust. ``at`` is when the record changed."""
        system = self.profile.identifier_systems.encounter
        return {
            "resourceType": "Encounter",
            "meta": {"lastUpdated": _time(at)} if at else None,
            "identifier": [_identifier(system, encounter_number)] if encounter_number else None,
            "class": {"system": _ACT, "code": "IMP", "display": "inpatient encounter"},
            "subject": {"reference": _urn(self.profile.ods, "Patient", patient.nhs_number)},
            "serviceProvider": _trust(self.profile.ods, self.profile.name),
            **elements,
        }

    def _location(
        self, site: str | None, ward: str, *, since: datetime | None = None, until: datetime | None = None
    ) -> _Json:
        """A ward, named in words, of a site named by its code."""
        place = _logical("Location", _identifier(ODS_SITE, site or self.profile.sites[0].ods))
        return {
            "location": {**place, "display": ward},
            "status": "completed" if until else "active",
            "period": _period(since, until),
        }


# --------------------------------------------------------------------------------------------------------------
# FHIR's small change
# --------------------------------------------------------------------------------------------------------------


def _id(*parts: str) -> str:
    """A UUID that is the same for the same parts, in the shape of version 5."""
    digest = hashlib.sha256("\x1f".join(parts).encode()).digest()
    return str(UUID(bytes=digest[:16], version=5))


def _urn(*parts: str) -> str:
    return f"urn:uuid:{_id(*parts)}"


def _time(at: datetime) -> str:
    """A FHIR instant. FHIR knows no time of day without an offset."""
    if at.utcoffset() is None:
        raise ValueError("the time has no offset; FHIR wants one")
    return at.isoformat()


def _period(start: datetime | None, end: datetime | None = None) -> _Json:
    return {"start": _time(start) if start else None, "end": _time(end) if end else None}


def _identifier(system: str, value: str) -> _Json:
    return {"system": system, "value": value}


def _names(requester: TrustProfile, request_number: str | None, transfer_id: str | None) -> tuple[_Json, ...]:
    """The identifiers a request is known by, the trust's own first."""
    own = (_identifier(requester.identifier_systems.request, request_number),) if request_number else ()
    return (*own, _identifier(HUB_TRANSFER, transfer_id)) if transfer_id else own


def _logical(resource_type: str, identifier: _Json) -> _Json:
    """A reference by identifier, to something that is not in the message."""
    return {"type": resource_type, "identifier": identifier}


def _trust(ods: str, name: str | None = None) -> _Json:
    return {**_logical("Organization", _identifier(ODS_ORGANISATION, ods)), "display": name}


def _organization(ods: str, name: str | None = None) -> _Json:
    return {"resourceType": "Organization", "identifier": [_identifier(ODS_ORGANISATION, ods)], "name": name}


def _endpoint(ods: str) -> str:
    """The address of a trust in BaRS's way, ``system|code``."""
    return f"{ODS_ORGANISATION}|{ods}"


def _coded(system: str, code: str, display: str | None = None) -> _Json:
    return {"coding": [{"system": system, "code": code, "display": display}]}


def _refusal(code: str | None, text: str | None) -> _Json | None:
    if code is None:
        return {"text": text} if text else None
    return {**_coded(_REFUSAL_CODES, code, _REFUSALS.get(code)), "text": text}


def _some(value: _Json | None) -> list[_Json] | None:
    return [value] if value is not None else None


def _bundle(
    kind: Literal["message", "collection"], identity: str, at: datetime, entries: list[tuple[str, _Json]]
) -> _Json:
    return {
        "resourceType": "Bundle",
        "id": identity,
        "type": kind,
        "timestamp": _time(at),
        "entry": [{"fullUrl": url, "resource": resource} for url, resource in entries],
    }


def _without_empty(node: Any) -> Any:
    """The same tree without what has no value: FHIR allows neither null nor empty objects and lists."""
    if isinstance(node, dict):
        kept = ((name, _without_empty(value)) for name, value in node.items())
        return {name: value for name, value in kept if value not in (None, {}, [])}
    if isinstance(node, list):
        return [_without_empty(each) for each in node]
    return node
