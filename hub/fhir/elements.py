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
    # https://hl7.org/fhir/STU3/resourcelist.html
    name
    for line in (
        "Account ActivityDefinition AdverseEvent AllergyIntolerance Appointment AppointmentResponse",
        "AuditEvent Basic Binary BodySite Bundle CapabilityStatement CarePlan CareTeam ChargeItem Claim",
        "ClaimResponse ClinicalImpression CodeSystem Communication CommunicationRequest",
        "CompartmentDefinition Composition ConceptMap Condition Consent Contract Coverage DataElement",
        "DetectedIssue Device DeviceComponent DeviceMetric DeviceRequest DeviceUseStatement",
        "DiagnosticReport DocumentManifest DocumentReference EligibilityRequest EligibilityResponse",
        "Encounter Endpoint EnrollmentRequest EnrollmentResponse EpisodeOfCare ExpansionProfile",
        "ExplanationOfBenefit FamilyMemberHistory Flag Goal GraphDefinition Group GuidanceResponse",
        "HealthcareService ImagingManifest ImagingStudy Immunization ImmunizationRecommendation",
        "ImplementationGuide Library Linkage List Location Measure MeasureReport Media Medication",
        "MedicationAdministration MedicationDispense MedicationRequest MedicationStatement",
        "MessageDefinition MessageHeader NamingSystem NutritionOrder Observation OperationDefinition",
        "OperationOutcome Organization Parameters Patient PaymentNotice PaymentReconciliation Person",
        "PlanDefinition Practitioner PractitionerRole Procedure ProcedureRequest ProcessRequest",
        "ProcessResponse Provenance Questionnaire QuestionnaireResponse ReferralRequest RelatedPerson",
        "RequestGroup ResearchStudy ResearchSubject RiskAssessment Schedule SearchParameter Sequence",
        "ServiceDefinition Slot Specimen StructureDefinition StructureMap Subscription Substance",
        "SupplyDelivery SupplyRequest Task TestReport TestScript ValueSet VisionPrescription",
    )
    for name in line.split()
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
    order = {name: place for place, name in enumerate(model.elements_sequence())}
    found = [
        _element(field.alias or field_name, field)
        for field_name, field in model.model_fields.items()
        # fhir_comments is DSTU2's.
        if field_name != "fhir_comments" and not field_name.endswith("__ext")
    ]
    found = [
        element for element in found if element.type not in _R4B_ONLY and element.name != "resource_type"
    ]
    # value[x] of every type takes Meta (datatypes.html#open); the R4B models forgot it.
    open_choices = {e.choice for e in found if e.choice and e.name.endswith("UsageContext")}
    names = {e.name for e in found}
    found += [
        Element(f"{choice}Meta", "Meta", is_list=False, primitive=False, choice=choice)
        for choice in sorted(open_choices)
        if f"{choice}Meta" not in names
    ]
    found.sort(key=lambda element: order.get(element.name, len(order)))
    return MappingProxyType({element.name: element for element in found})


_R4B_ONLY = frozenset(("CodeableReference", "RatioRange"))
"""Data types that came with R4B, so that no element of R4 has them."""


def _model(version: FhirVersion, type_name: str) -> Any:
    """The model class of a type, or None. Only names of types reach the import: letters, no module's own."""
    if not type_name.isalnum() or not type_name[0].isupper():
        return None
    package = importlib.import_module(_MODELS[version])
    try:
        return package.get_fhir_model_class(type_name)
    except (ValueError, LookupError):
        return None


def _element(name: str, field: Any) -> Element:
    """One field of a model class, read. Raises when it is of a shape this module does not know."""
    declared, is_list = _declared(field.annotation)
    primitive = FHIR_PRIMITIVES_MAPS.get(declared)
    if primitive is None and not hasattr(declared, "get_model_klass"):
        raise TypeError(f"{name} has a type that is not known here")
    return Element(
        name=name,
        type=primitive or declared.get_model_klass().__name__,
        is_list=is_list,
        primitive=primitive is not None,
        choice=(field.json_schema_extra or {}).get("one_of_many"),
    )


def _declared(annotation: Any) -> tuple[Any, bool]:
    """The type inside ``List[X] | None``, and whether there was a list."""
    is_list = False
    while True:
        origin = typing.get_origin(annotation)
        if origin in (typing.Union, types.UnionType):
            annotation = next(each for each in typing.get_args(annotation) if each is not types.NoneType)
        elif origin is list:
            annotation, is_list = typing.get_args(annotation)[0], True
        else:
            return annotation, is_list
