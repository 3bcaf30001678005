"""What FHIR defines for each type: the elements, their types and whether they repeat. In: a version and a type's name.

Read from the model classes of ``fhir.resources`` (STU3, and R4B for R4, as `hub.fhir.structure` does), when first
asked for and then remembered: importing one model costs milliseconds. Types inside a resource have the names the
models give them: the type of ``Encounter.diagnosis`` is ``EncounterDiagnosis``.
"""

import importlib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from types import MappingProxyType
from typing import Any

from fhir_core.constraints import FHIR_PRIMITIVES_MAPS

from hub.fhir.structure import resource_types as r4_resource_types


class FhirVersion(StrEnum):
    """A version of FHIR that messages are written in."""

    R4 = "R4"
    STU3 = "STU3"


@dataclass(frozen=True, slots=True)
class Element:
    """One element of a type, under the name it has in JSON and XML (``valueQuantity``, not ``value[x]``)."""

    name: str
    type: str
    """A primitive's name (``dateTime``), or a type that `elements` knows. ``Resource``: any resource."""
    is_list: bool
    primitive: bool
    choice: str | None
    """``value`` for each type of what FHIR writes ``value[x]``; None for other elements."""


_MODELS = {FhirVersion.R4: "fhir.resources.R4B", FhirVersion.STU3: "fhir.resources.STU3"}

_STU3_RESOURCE_TYPES = frozenset(
    # https://hl7.org/fhir/STU3/resourcelist.html; Binary is a model of its own.
    """
    Account ActivityDefinition AdverseEvent AllergyIntolerance Appointment AppointmentResponse AuditEvent Basic
    Binary BodySite Bundle CapabilityStatement CarePlan CareTeam ChargeItem Claim ClaimResponse
    ClinicalImpression CodeSystem Communication CommunicationRequest CompartmentDefinition Composition ConceptMap
    Condition Consent Contract Coverage DataElement DetectedIssue Device DeviceComponent DeviceMetric
    DeviceRequest DeviceUseStatement DiagnosticReport DocumentManifest DocumentReference EligibilityRequest
    EligibilityResponse Encounter Endpoint EnrollmentRequest EnrollmentResponse EpisodeOfCare ExpansionProfile
    ExplanationOfBenefit FamilyMemberHistory Flag Goal GraphDefinition Group GuidanceResponse HealthcareService
    ImagingManifest ImagingStudy Immunization ImmunizationRecommendation ImplementationGuide Library Linkage List
    Location Measure MeasureReport Media Medication MedicationAdministration MedicationDispense
    MedicationRequest MedicationStatement MessageDefinition MessageHeader NamingSystem NutritionOrder Observation
    OperationDefinition OperationOutcome Organization Parameters Patient PaymentNotice PaymentReconciliation
    Person PlanDefinition Practitioner PractitionerRole Procedure ProcedureRequest ProcessRequest
    ProcessResponse Provenance Questionnaire QuestionnaireResponse ReferralRequest RelatedPerson RequestGroup
    ResearchStudy ResearchSubject RiskAssessment Schedule SearchParameter Sequence ServiceDefinition Slot Specimen
    StructureDefinition StructureMap Subscription Substance SupplyDelivery SupplyRequest Task TestReport
    TestScript ValueSet VisionPrescription
    """.split()
)


def resource_types(version: FhirVersion) -> frozenset[str]:
    """The names of the resource types of a version that `elements` knows."""
    return r4_resource_types() if version is FhirVersion.R4 else _STU3_RESOURCE_TYPES


@cache
def elements(version: FhirVersion, type_name: str) -> Mapping[str, Element]:
    """The elements of a resource, a data type or a type inside a resource, by name and in the order of the standard.

    Out: an empty mapping when the version has no such type. ``resourceType`` and the ``_name`` siblings of primitives
    are not elements.
    """
    model = _model(version, type_name)
    if model is None:
        return MappingProxyType({})
    # The standard's order, which XML keeps; the models' fields are in the order of the alphabet.
    order = {name: place for place, name in enumerate(model.elements_sequence())}
    found = [
        _element(version, field.alias or field_name, field)
        for field_name, field in model.model_fields.items()
        if field_name not in {"fhir_comments", "resource_type"} and not field_name.endswith("__ext")
    ]
    found.sort(key=lambda element: order.get(element.name, len(order)))
    if any(element.name == "valueString" for element in found) and all(e.name != "valueMeta" for e in found):
        # value[x] of every type has Meta (datatypes.html#open); the models forgot it.
        choice = next(e.choice for e in found if e.name == "valueString")
        if choice and any(e.name == "valueSignature" for e in found):
            found.append(Element("valueMeta", "Meta", is_list=False, primitive=False, choice=choice))
            _type_of[version, "Meta"] = "Meta"
    return MappingProxyType({element.name: element for element in found})


_type_of: dict[tuple[FhirVersion, str], Any] = {}
