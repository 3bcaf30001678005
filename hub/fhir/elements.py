"""What FHIR defines for each type: its elements, their types, whether they repeat, and the only codes they may have.

Read from the model classes of ``fhir.resources`` (STU3, and R4B for R4), when first asked for and then remembered: importing one
model costs milliseconds. Where R4B or its models differ from R4 4.0.1, R4 is what counts: the tables under "R4, where the models
differ". The structure check, the repairs, and the parser and writer of XML all go by this. Types inside a resource have the names
the models give them: the type of ``Encounter.diagnosis`` is ``EncounterDiagnosis``.
"""

import importlib
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from types import MappingProxyType
from typing import Any

from fhir_core.constraints import FHIR_PRIMITIVES_MAPS


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
    repeats: bool = False
    primitive: bool = False
    sibling: bool = False
    """Whether ``_name`` may stand beside it."""
    required: bool = False
    codes: tuple[str, ...] = ()
    """The only codes there are, if the binding is required."""
    choice: str | None = None
    """``value`` for each type of what FHIR writes ``value[x]``; None for other elements."""
    choice_required: bool = False

    @property
    def aligned(self) -> bool:
        """A list that null may stand in, because ``_name`` beside it fills the gap."""
        return self.repeats and self.sibling


PRIMITIVE_SIBLING = "FHIRPrimitiveExtension"
"""The type of ``_name``: the id and the extensions of a primitive."""

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


# ---------------------------------------------------------------------------------------------------------------
# R4, where the models differ. Source of these tables: R4 4.0.1 (https://hl7.org/fhir/R4/fhir.schema.json and the
# value sets it was made from), compared with fhir.resources 8.3.0 element by element. STU3 stands below.
# ---------------------------------------------------------------------------------------------------------------


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_R4_RESOURCE_TYPES = _names(
    """
    Account ActivityDefinition AdverseEvent AllergyIntolerance Appointment AppointmentResponse AuditEvent
    Basic Binary BiologicallyDerivedProduct BodyStructure Bundle CapabilityStatement CarePlan CareTeam
    CatalogEntry ChargeItem ChargeItemDefinition Claim ClaimResponse ClinicalImpression CodeSystem
    Communication CommunicationRequest CompartmentDefinition Composition ConceptMap Condition Consent
    Contract Coverage CoverageEligibilityRequest CoverageEligibilityResponse DetectedIssue Device
    DeviceDefinition DeviceMetric DeviceRequest DeviceUseStatement DiagnosticReport DocumentManifest
    DocumentReference EffectEvidenceSynthesis Encounter Endpoint EnrollmentRequest EnrollmentResponse
    EpisodeOfCare EventDefinition Evidence EvidenceVariable ExampleScenario ExplanationOfBenefit
    FamilyMemberHistory Flag Goal GraphDefinition Group GuidanceResponse HealthcareService ImagingStudy
    Immunization ImmunizationEvaluation ImmunizationRecommendation ImplementationGuide InsurancePlan Invoice
    Library Linkage List Location Measure MeasureReport Media Medication MedicationAdministration
    MedicationDispense MedicationKnowledge MedicationRequest MedicationStatement MedicinalProduct
    MedicinalProductAuthorization MedicinalProductContraindication MedicinalProductIndication
    MedicinalProductIngredient MedicinalProductInteraction MedicinalProductManufactured
    MedicinalProductPackaged MedicinalProductPharmaceutical MedicinalProductUndesirableEffect
    MessageDefinition MessageHeader MolecularSequence NamingSystem NutritionOrder Observation
    ObservationDefinition OperationDefinition OperationOutcome Organization OrganizationAffiliation
    Parameters Patient PaymentNotice PaymentReconciliation Person PlanDefinition Practitioner
    PractitionerRole Procedure Provenance Questionnaire QuestionnaireResponse RelatedPerson RequestGroup
    ResearchDefinition ResearchElementDefinition ResearchStudy ResearchSubject RiskAssessment
    RiskEvidenceSynthesis Schedule SearchParameter ServiceRequest Slot Specimen SpecimenDefinition
    StructureDefinition StructureMap Subscription Substance SubstanceNucleicAcid SubstancePolymer
    SubstanceProtein SubstanceReferenceInformation SubstanceSourceMaterial SubstanceSpecification
    SupplyDelivery SupplyRequest Task TerminologyCapabilities TestReport TestScript ValueSet
    VerificationResult VisionPrescription
    """
)
_NOT_CHECKABLE = _names(
    # In R4 only: R4B dropped or replaced them, so there is no model to take the rules from.
    """
    EffectEvidenceSynthesis MedicinalProduct MedicinalProductAuthorization MedicinalProductContraindication
    MedicinalProductIndication MedicinalProductIngredient MedicinalProductInteraction
    MedicinalProductManufactured MedicinalProductPackaged MedicinalProductPharmaceutical
    MedicinalProductUndesirableEffect RiskEvidenceSynthesis SubstanceNucleicAcid SubstancePolymer
    SubstanceProtein SubstanceReferenceInformation SubstanceSourceMaterial SubstanceSpecification
    """
) | frozenset(
    # In both, but rewritten in R4B (https://hl7.org/fhir/R4B/r4b-explanation.html): the model is not R4's.
    ("Evidence", "EvidenceVariable")
)

_OBSERVATION_STATUS = (
    "registered",
    "preliminary",
    "final",
    "amended",
    "corrected",
    "cancelled",
    "entered-in-error",
    "unknown",
)
_COMPARATOR = ("<", "<=", ">=", ">")

_CODES: Mapping[tuple[str, str], tuple[str, ...] | None] = {
    # The models' list is cut short where FHIR's one-line summary of the element ends in "+".
    # http://hl7.org/fhir/ValueSet/encounter-status|4.0.1, for both elements:
    **dict.fromkeys(
        [("Encounter", "status"), ("EncounterStatusHistory", "status")],
        ("planned", "arrived", "triaged", "in-progress", "onleave", "finished", "cancelled", "entered-in-error", "unknown"),
    ),
    # http://hl7.org/fhir/ValueSet/task-status|4.0.1:
    ("Task", "status"): (
        "draft", "requested", "received", "accepted", "rejected", "ready", "cancelled", "in-progress",
        "on-hold", "failed", "completed", "entered-in-error",
    ),
    # http://hl7.org/fhir/ValueSet/observation-status|4.0.1, for all three:
    ("Observation", "status"): _OBSERVATION_STATUS,
    ("DetectedIssue", "status"): _OBSERVATION_STATUS,
    ("RiskAssessment", "status"): _OBSERVATION_STATUS,
    # http://hl7.org/fhir/ValueSet/diagnostic-report-status|4.0.1:
    ("DiagnosticReport", "status"): (
        "registered", "partial", "preliminary", "final", "amended", "corrected", "appended", "cancelled",
        "entered-in-error", "unknown",
    ),
    # http://hl7.org/fhir/ValueSet/udi-entry-type|4.0.1:
    ("DeviceUdiCarrier", "entryType"): ("barcode", "rfid", "manual", "card", "self-reported", "unknown"),
    # http://hl7.org/fhir/ValueSet/device-statement-status|4.0.1:
    ("DeviceUseStatement", "status"): ("active", "completed", "entered-in-error", "intended", "stopped", "on-hold"),
    # http://hl7.org/fhir/ValueSet/supplyrequest-status|4.0.1:
    ("SupplyRequest", "status"): ("draft", "active", "suspended", "cancelled", "completed", "entered-in-error", "unknown"),
    # http://hl7.org/fhir/ValueSet/item-type|4.0.1 ("question" is abstract):
    ("QuestionnaireItem", "type"): (
        "group", "display", "boolean", "decimal", "integer", "date", "dateTime", "time", "string", "text", "url",
        "choice", "open-choice", "attachment", "reference", "quantity",
    ),
    # http://hl7.org/fhir/ValueSet/map-transform|4.0.1:
    ("StructureMapGroupRuleTarget", "transform"): (
        "create", "copy", "truncate", "escape", "cast", "append", "translate", "reference", "dateOp", "uuid",
        "pointer", "evaluate", "cc", "c", "qty", "id", "cp",
    ),
    # Required in R4, but the models have no list at all.
    **dict.fromkeys([(quantity, "comparator") for quantity in ("Quantity", "Age", "Count", "Distance", "Duration")], _COMPARATOR),
    ("AuditEvent", "action"): ("C", "R", "U", "D", "E"),
    ("AuditEvent", "outcome"): ("0", "4", "8", "12"),
    ("AuditEventAgentNetwork", "type"): ("1", "2", "3", "4", "5"),
    # http://hl7.org/fhir/ValueSet/issue-type|4.0.1:
    ("OperationOutcomeIssue", "code"): (
        "invalid", "structure", "required", "value", "invariant", "security", "login", "unknown", "expired",
        "forbidden", "suppressed", "processing", "not-supported", "duplicate", "multiple-matches", "not-found",
        "deleted", "too-long", "code-invalid", "extension", "too-costly", "business-rule", "conflict",
        "transient", "lock-error", "no-store", "exception", "timeout", "incomplete", "throttled", "informational",
    ),
    # http://hl7.org/fhir/ValueSet/event-timing|4.0.1:
    ("TimingRepeat", "when"): (
        "MORN", "MORN.early", "MORN.late", "NOON", "AFT", "AFT.early", "AFT.late", "EVE", "EVE.early", "EVE.late",
        "NIGHT", "PHS", "HS", "WAKE", "C", "CM", "CD", "CV", "AC", "ACM", "ACD", "ACV", "PC", "PCM", "PCD", "PCV",
    ),
    # Not closed lists in R4: the first is extensible, the second is any MIME type.
    ("Expression", "language"): None,
    ("CapabilityStatement", "format"): None,
}  # fmt: skip

# Data types that came with R4B, so a value[x] of them is no R4 (https://hl7.org/fhir/R4B/r4b-explanation.html).
_R4B_DATA_TYPES = frozenset(("CodeableReference", "RatioRange"))
# R4B lets these be a canonical as well.
_R4B_CHOICES = frozenset(("subjectCanonical",))


_CHECKABLE = _R4_RESOURCE_TYPES - _NOT_CHECKABLE


# ---------------------------------------------------------------------------------------------------------------
# STU3, where the models differ. Source of this table: the StructureDefinitions and ValueSets of STU3 3.0.1, compared
# with fhir.resources 8.3.0 element by element: names, types, numbers and what is required are the same in all 485 types.
# ---------------------------------------------------------------------------------------------------------------

_REQUEST_STATUS = ("draft", "active", "suspended", "cancelled", "completed", "entered-in-error", "unknown")
_REQUEST_INTENT = (
    "proposal", "plan", "order", "original-order", "reflex-order", "filler-order", "instance-order", "option",
)  # fmt: skip
_REQUEST_PRIORITY = ("routine", "urgent", "asap", "stat")

_STU3_CODES: Mapping[tuple[str, str], tuple[str, ...] | None] = {
    # Cut short in the models: their lists come from FHIR's one-line summary of an element, which ends in "+" at best.
    **{key: _CODES[key] for key in [
        # The same codes in both versions.
        ("Encounter", "status"), ("EncounterStatusHistory", "status"), ("Task", "status"), ("Observation", "status"),
        ("RiskAssessment", "status"), ("DiagnosticReport", "status"), ("DeviceUseStatement", "status"),
        ("SupplyRequest", "status"), ("QuestionnaireItem", "type"), ("StructureMapGroupRuleTarget", "transform"),
    ]},
    ("DetectedIssue", "status"): _OBSERVATION_STATUS,
    ("DeviceUdi", "entryType"): _CODES["DeviceUdiCarrier", "entryType"],
    ("DeviceComponent", "measurementPrinciple"): (
        "other", "chemical", "electrical", "impedance", "nuclear", "optical", "thermal", "biological", "mechanical",
        "acoustical", "manual",
    ),
    # http://hl7.org/fhir/ValueSet/event-status|3.0.1:
    ("Communication", "status"): (
        "preparation", "in-progress", "suspended", "aborted", "completed", "entered-in-error", "unknown",
    ),
    # http://hl7.org/fhir/ValueSet/request-status|3.0.1:
    **dict.fromkeys([("DeviceRequest", "status"), ("ProcedureRequest", "status")], _REQUEST_STATUS),
    # http://hl7.org/fhir/ValueSet/request-intent|3.0.1:
    **dict.fromkeys(
        [(request, "intent") for request in ("ProcedureRequest", "ReferralRequest", "RequestGroup", "Task")], _REQUEST_INTENT
    ),
    # http://hl7.org/fhir/ValueSet/request-priority|3.0.1; the summary of Task's says "normal" in place of "routine":
    ("Task", "priority"): (*_REQUEST_PRIORITY, "normal"),
    # Required in STU3, but the models have no list at all.
    **dict.fromkeys(
        [(request, "priority") for request in ("CommunicationRequest", "DeviceRequest", "ReferralRequest")], _REQUEST_PRIORITY
    ),
    **dict.fromkeys(
        [(quantity, "comparator") for quantity in ("Quantity", "Age", "Count", "Distance", "Duration", "Money")], _COMPARATOR
    ),
    **{key: _CODES[key] for key in [("AuditEvent", "action"), ("AuditEvent", "outcome"), ("AuditEventAgentNetwork", "type")]},
    # http://hl7.org/fhir/ValueSet/v3-ConfidentialityClassification|3.0.1:
    ("Composition", "confidentiality"): ("U", "L", "M", "N", "R", "V"),
    # http://hl7.org/fhir/ValueSet/issue-type|3.0.1:
    ("OperationOutcomeIssue", "code"): (
        "invalid", "structure", "required", "value", "invariant", "security", "login", "unknown", "expired",
        "forbidden", "suppressed", "processing", "not-supported", "duplicate", "not-found", "too-long",
        "code-invalid", "extension", "too-costly", "business-rule", "conflict", "incomplete", "transient",
        "lock-error", "no-store", "exception", "timeout", "throttled", "informational",
    ),
    # http://hl7.org/fhir/ValueSet/event-timing|3.0.1:
    ("TimingRepeat", "when"): (
        "MORN", "AFT", "EVE", "NIGHT", "PHS", "HS", "WAKE", "C", "CM", "CD", "CV", "AC", "ACM", "ACD", "ACV", "PC",
        "PCM", "PCD", "PCV",
    ),
    # http://hl7.org/fhir/ValueSet/filter-operator|3.0.1:
    ("CodeSystemFilter", "operator"): (
        "=", "is-a", "descendent-of", "is-not-a", "regex", "in", "not-in", "generalizes", "exists",
    ),
    # http://hl7.org/fhir/ValueSet/compartment-type|3.0.1:
    ("GraphDefinitionLinkTargetCompartment", "code"): ("Patient", "Encounter", "RelatedPerson", "Practitioner", "Device"),
    # Not closed lists in STU3: any MIME type, and an example.
    ("CapabilityStatement", "format"): None,
    ("Sequence", "type"): None,
}  # fmt: skip

_CODES_OF = {FhirVersion.R4: _CODES, FhirVersion.STU3: _STU3_CODES}

# ---------------------------------------------------------------------------------------------------------------
# Walking the models
# ---------------------------------------------------------------------------------------------------------------


def resource_types(version: FhirVersion = FhirVersion.R4) -> frozenset[str]:
    """The names of the resource types of a version that `elements` knows. A few of R4's it cannot: see ``_NOT_CHECKABLE``."""
    return _CHECKABLE if version is FhirVersion.R4 else _STU3_RESOURCE_TYPES


def is_of_r4(resource_type: str) -> bool:
    """Whether R4 has a resource type, checkable or not."""
    return resource_type in _R4_RESOURCE_TYPES


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
    found = list(_read(version, type_name, model))
    found.sort(key=lambda element: order.get(element.name, len(order)))
    return MappingProxyType({element.name: element for element in found})


@cache
def properties(type_name: str, version: FhirVersion = FhirVersion.R4) -> Mapping[str, Element]:
    """The JSON properties of a type: its elements, and the ``_name`` that may stand beside a primitive."""
    found: dict[str, Element] = {}
    for name, element in elements(version, type_name).items():
        found[name] = element
        if element.sibling:
            found[f"_{name}"] = Element(f"_{name}", PRIMITIVE_SIBLING, element.repeats, sibling=True)
    return MappingProxyType(found)


def _read(version: FhirVersion, type_name: str, model: Any) -> Iterator[Element]:
    found = [
        _element(version, type_name, field.alias or field_name, field)
        for field_name, field in model.model_fields.items()
        # fhir_comments is DSTU2's; neither STU3 nor R4 has comments in JSON.
        if field_name not in {"fhir_comments", "resource_type"} and not field_name.endswith("__ext")
    ]
    if version is FhirVersion.R4:
        found = [each for each in found if each.type not in _R4B_DATA_TYPES and each.name not in _R4B_CHOICES]
    yield from found
    names = {each.name for each in found}
    for each in found:
        # A choice that takes every type takes Meta (datatypes.html#open); the models forgot it.
        if each.choice and each.name.endswith("UsageContext") and f"{each.choice}Meta" not in names:
            yield Element(
                f"{each.choice}Meta", "Meta", choice=each.choice, choice_required=each.choice_required
            )


def _model(version: FhirVersion, type_name: str) -> Any:
    """The model class of a type, or None. Only names of types reach the import: letters, no module's own."""
    if not type_name.isalnum() or not type_name[0].isupper():
        return None
    package = importlib.import_module(_MODELS[version])
    try:
        return package.get_fhir_model_class(type_name)
    except (ValueError, LookupError):
        return None


def _element(version: FhirVersion, type_name: str, name: str, field: Any) -> Element:
    """One field of a model class, read. Raises when it is of a shape this module does not know."""
    extra = field.json_schema_extra or {}
    declared, repeats = _declared(field.annotation)
    primitive = FHIR_PRIMITIVES_MAPS.get(declared)
    if primitive is None and not hasattr(declared, "get_model_klass"):
        raise TypeError(f"{type_name}.{name} has a type that is not known here")
    choice = extra.get("one_of_many")
    return Element(
        name=name,
        type=primitive or declared.get_model_klass().__name__,
        repeats=repeats,
        primitive=primitive is not None,
        sibling=primitive is not None and _may_have_sibling(type_name, name),
        required=field.is_required() or bool(extra.get("element_required")),
        codes=_codes(version, type_name, name, extra),
        choice=choice,
        choice_required=bool(choice and extra.get("one_of_many_required")),
    )


def _may_have_sibling(type_name: str, name: str) -> bool:
    """Every primitive may have one, except those that are plain strings and no FHIR primitives: ids and Extension.url
    (https://hl7.org/fhir/R4/extensibility.html). The models leave it out in Extension.value[x].
    """
    return name != "id" and (type_name, name) != ("Extension", "url")


def _codes(version: FhirVersion, type_name: str, name: str, extra: Mapping[str, Any]) -> tuple[str, ...]:
    """The required codes of an element, () when any code will do."""
    by_hand = _CODES_OF[version]
    if (type_name, name) in by_hand:
        return by_hand[type_name, name] or ()
    codes = tuple(extra.get("enum_values", ()))
    if "+" in codes:
        raise LookupError(
            f"{type_name}.{name}: the models' list of codes is cut short, _CODES_OF has to say it"
        )
    return codes


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
