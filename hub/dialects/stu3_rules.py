"""What R4 calls what STU3 called otherwise: one row a rule, applied by `hub.dialects.stu3`.

Sources: the STU3 and R4 definitions, compared element by element, and R4's pages "R3 Diff"
(https://hl7.org/fhir/R4/diff.html); CareConnect and UK Core for extensions and code systems.
What has the same name and meaning in both needs no row, nor has an element that may now repeat, a Coding that became a
CodeableConcept, text that became one, a Reference that became a canonical. What has no row and no place in R4 is kept
as unmapped.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class As(StrEnum):
    """In what form a value goes to its new place."""

    IS = "as it is"
    CONCEPT = "the code of a CodeableConcept"
    TEXT = "the text of an Annotation or a CodeableConcept"
    IDENTIFIER = "the identifier of a Reference"
    REFERENCE = "the reference of a Reference"


@dataclass(frozen=True, slots=True)
class Move:
    """To another place under the same parent: ``a.b`` is made where it is missing, ``a[]`` is one more of a list,
    ``a[].b`` in the first of a list. A place that is taken stays as it is, and the value is unmapped.
    """

    to: str
    form: As = As.IS
    system: str = ""
    codes: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Codes:
    """Stays, but a code is another one now."""

    codes: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Implies:
    """True means that ``name`` has this code; false says nothing."""

    name: str
    code: str


@dataclass(frozen=True, slots=True)
class Pick:
    """Of an object, one child is what R4 keeps; it goes to ``to``. The others are unmapped."""

    child: str
    to: str


@dataclass(frozen=True, slots=True)
class Context:
    """An Encounter goes to ``encounter``. R4 has no place for an EpisodeOfCare here."""


How = Move | Codes | Implies | Pick | Context


@dataclass(frozen=True, slots=True)
class Row:
    """One rule: what becomes of an element of an STU3 type."""

    type: str
    element: str
    how: How

    @property
    def rule(self) -> str:
        """``stu3-encounter-reason``."""
        return f"stu3-{_kebab(self.type)}-{_kebab(self.element)}"


def _kebab(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower()


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_REQUEST_STATUS = {"suspended": "on-hold", "cancelled": "revoked"}
_EVENT_STATUS = {"suspended": "on-hold", "aborted": "stopped"}
_CLINICAL = "http://terminology.hl7.org/CodeSystem"

RESOURCE_TYPES: Mapping[str, str] = {
    "ReferralRequest": "ServiceRequest",
    "ProcedureRequest": "ServiceRequest",
}
"""STU3 resource type → R4's name for it. Rule ``stu3-resource-type``."""

INNER_TYPES: Mapping[str, str] = {
    "ImmunizationPractitioner": "ImmunizationPerformer",
    "ImmunizationVaccinationProtocol": "ImmunizationProtocolApplied",
    "QuestionnaireItemOption": "QuestionnaireItemAnswerOption",
    "ConsentActor": "ConsentProvisionActor",
    "ConsentData": "ConsentProvisionData",
    "ConsentExcept": "ConsentProvision",
    "ConsentExceptActor": "ConsentProvisionActor",
    "ConsentExceptData": "ConsentProvisionData",
    "MedicationPackageBatch": "MedicationBatch",
    "DeviceUdi": "DeviceUdiCarrier",
}
"""The same for types inside resources."""

ROWS: tuple[Row, ...] = (
    Row("MessageHeader", "event", Move("eventCoding")),
    Row("MessageHeader", "receiver", Move("destination[].receiver")),
    # MessageHeader.timestamp goes to the Bundle: rule stu3-message-header-timestamp, in stu3.py.
    Row("ReferralRequest", "status", Codes(_REQUEST_STATUS)),
    Row("ReferralRequest", "groupIdentifier", Move("requisition")),
    Row("ReferralRequest", "type", Move("category[]")),
    Row("ReferralRequest", "serviceRequested", Move("code")),
    Row("ReferralRequest", "context", Context()),
    Row("ReferralRequest", "requester", Pick("agent", "requester")),
    Row("ReferralRequest", "specialty", Move("performerType")),
    Row("ReferralRequest", "recipient", Move("performer")),
    Row("ReferralRequest", "description", Move("note[]", As.TEXT)),
    Row("ProcedureRequest", "status", Codes(_REQUEST_STATUS)),
    Row("ProcedureRequest", "context", Context()),
    Row("ProcedureRequest", "requester", Pick("agent", "requester")),
    Row("Encounter", "incomingReferral", Move("basedOn")),
    Row("Encounter", "reason", Move("reasonCode")),
    Row("EncounterDiagnosis", "role", Move("use")),
    Row("HealthcareService", "eligibility", Move("eligibility[].code")),
    Row("HealthcareService", "eligibilityNote", Move("eligibility[].comment")),
    Row("HealthcareService", "programName", Move("program", As.TEXT)),
    Row("Condition", "clinicalStatus", Move("clinicalStatus", As.CONCEPT, f"{_CLINICAL}/condition-clinical")),
    Row(
        "Condition", "verificationStatus", Move("verificationStatus", As.CONCEPT, f"{_CLINICAL}/condition-ver-status")
    ),
    Row("Condition", "context", Context()),
    Row("Condition", "assertedDate", Move("recordedDate")),
    Row("Procedure", "status", Codes(_EVENT_STATUS)),
    Row("Procedure", "notDone", Implies("status", "not-done")),
    Row("Procedure", "notDoneReason", Move("statusReason")),
    Row("Procedure", "context", Context()),
    Row("ProcedurePerformer", "role", Move("function")),
    Row("Observation", "context", Context()),
    Row("Observation", "comment", Move("note[]", As.TEXT)),
    # Observation.related: rule stu3-observation-related, in stu3.py.
    Row(
        "AllergyIntolerance",
        "clinicalStatus",
        Move("clinicalStatus", As.CONCEPT, f"{_CLINICAL}/allergyintolerance-clinical"),
    ),
    Row(
        "AllergyIntolerance",
        "verificationStatus",
        Move("verificationStatus", As.CONCEPT, f"{_CLINICAL}/allergyintolerance-verification"),
    ),
    Row("AllergyIntolerance", "assertedDate", Move("recordedDate")),
    Row("MedicationStatement", "reasonNotTaken", Move("statusReason")),
    Row("MedicationRequest", "context", Context()),
    Row("MedicationRequest", "requester", Pick("agent", "requester")),
    Row("MedicationRequestSubstitution", "allowed", Move("allowedBoolean")),
    Row("MedicationIngredient", "amount", Move("strength")),
    Row("Medication", "package", Pick("batch", "batch")),
    Row("MedicationAdministration", "notGiven", Implies("status", "not-done")),
    Row("MedicationAdministration", "reasonNotGiven", Move("statusReason")),
    Row("MedicationAdministration", "prescription", Move("request")),
    Row("CarePlan", "status", Codes(_REQUEST_STATUS)),
    Row("CarePlan", "context", Context()),
    Row("CarePlanActivityDetail", "prohibited", Move("doNotPerform")),
    Row("CareTeam", "context", Context()),
    Row("Composition", "class", Move("category[]")),
    Row("DocumentReference", "class", Move("category[]")),
    Row("DocumentReference", "indexed", Move("date")),
    Row("DocumentReferenceContext", "related", Pick("ref", "related")),
    Row("Appointment", "reason", Move("reasonCode")),
    Row("Appointment", "indication", Move("reasonReference")),
    Row("Appointment", "incomingReferral", Move("basedOn")),
    Row("Task", "definitionUri", Move("instantiatesUri")),
    Row("Task", "context", Move("encounter")),
    Row("Task", "requester", Pick("agent", "requester")),
    Row("Task", "reason", Move("reasonCode")),
    Row("QuestionnaireResponse", "parent", Move("partOf")),
    Row("QuestionnaireResponse", "context", Context()),
    Row("QuestionnaireItem", "option", Move("answerOption")),
    Row("QuestionnaireItem", "options", Move("answerValueSet")),
    *(
        Row("QuestionnaireItem", f"initial{kind}", Move(f"initial[].value{kind}"))
        for kind in ("Boolean", "Decimal", "Integer", "Date", "DateTime", "Time", "String", "Uri", "Attachment",
                     "Coding", "Quantity", "Reference")
    ),
    Row("QuestionnaireItemEnableWhen", "hasAnswer", Move("answerBoolean")),
    Row("Immunization", "notGiven", Implies("status", "not-done")),
    Row("Immunization", "date", Move("occurrenceDateTime")),
    Row("Immunization", "practitioner", Move("performer")),
    Row("ImmunizationPractitioner", "role", Move("function")),
    Row("Immunization", "explanation", Pick("reason", "reasonCode")),
    Row("Immunization", "vaccinationProtocol", Move("protocolApplied")),
    Row("ImmunizationVaccinationProtocol", "doseSequence", Move("doseNumberPositiveInt")),
    Row("ImmunizationVaccinationProtocol", "seriesDoses", Move("seriesDosesPositiveInt")),
    Row("Consent", "period", Move("provision.period")),
    Row("Consent", "actor", Move("provision.actor")),
    Row("Consent", "action", Move("provision.action")),
    Row("Consent", "securityLabel", Move("provision.securityLabel")),
    Row("Consent", "purpose", Move("provision.purpose")),
    Row("Consent", "dataPeriod", Move("provision.dataPeriod")),
    Row("Consent", "data", Move("provision.data")),
    Row("Consent", "except", Move("provision.provision")),
    Row("Consent", "consentingParty", Move("performer")),
    Row("Consent", "sourceIdentifier", Move("sourceReference", As.IDENTIFIER)),
    Row("Provenance", "period", Move("occurredPeriod")),
    *(
        row
        for parent, child in (("Signature", "who"), ("Signature", "onBehalfOf"), ("ProvenanceAgent", "who"),
                              ("ProvenanceAgent", "onBehalfOf"), ("ProvenanceEntity", "what"))
        for row in (Row(parent, f"{child}Reference", Move(child)), Row(parent, f"{child}Uri", Move(child, As.REFERENCE)))
    ),
    Row("ProvenanceAgent", "relatedAgentType", Move("type")),
    Row("ProvenanceEntity", "whatIdentifier", Move("what", As.IDENTIFIER)),
    Row("Signature", "contentType", Move("sigFormat")),
    Row("Signature", "blob", Move("data")),
    Row("Communication", "status", Codes(_EVENT_STATUS)),
    Row("Communication", "notDone", Implies("status", "not-done")),
    Row("Communication", "notDoneReason", Move("statusReason")),
    Row("Communication", "topic", Move("about")),
    Row("Communication", "context", Context()),
    Row("CommunicationRequest", "status", Codes(_REQUEST_STATUS)),
    Row("CommunicationRequest", "topic", Move("about")),
    Row("CommunicationRequest", "context", Context()),
    Row("CommunicationRequest", "requester", Pick("agent", "requester")),
    Row("DiagnosticReport", "context", Context()),
    Row("DiagnosticReport", "performer", Pick("actor", "performer")),
    Row("DiagnosticReport", "image", Move("media")),
    Row("DiagnosticReport", "codedDiagnosis", Move("conclusionCode")),
    Row("AuditEventAgent", "reference", Move("who")),
    Row("AuditEventAgent", "userId", Move("who.identifier")),
    Row("AuditEventSource", "identifier", Move("observer", As.IDENTIFIER)),
    Row("AuditEventEntity", "reference", Move("what")),
    Row("AuditEventEntity", "identifier", Move("what.identifier")),
    Row("AuditEventEntityDetail", "value", Move("valueBase64Binary")),
    Row("Binary", "content", Move("data")),
    Row("ClinicalImpression", "context", Context()),
    Row("RiskAssessment", "context", Context()),
    Row("RiskAssessment", "comment", Move("note[]", As.TEXT)),
    Row("RiskAssessment", "reasonCodeableConcept", Move("reasonCode[]")),
    Row("FamilyMemberHistory", "notDoneReason", Move("dataAbsentReason")),
    Row("DeviceRequest", "context", Context()),
    Row("DeviceRequest", "requester", Pick("agent", "requester")),
    Row("Device", "version", Move("version[].value")),
    Row("Device", "model", Move("modelNumber")),
    Row("Device", "udi", Move("udiCarrier")),
    Row("NutritionOrder", "status", Codes({
        "proposed": "draft", "planned": "draft", "requested": "active", "cancelled": "revoked",
    })),
    Row("Media", "type", Move("type", As.CONCEPT, f"{_CLINICAL}/media-type", {"photo": "image"})),
    Row("Media", "subtype", Move("modality")),
    Row("Media", "context", Context()),
    Row("Media", "occurrenceDateTime", Move("createdDateTime")),
    Row("Media", "occurrencePeriod", Move("createdPeriod")),
    Row("ImagingStudy", "patient", Move("subject")),
    Row("ImagingStudy", "context", Context()),
    Row("ImagingStudy", "modalityList", Move("modality")),
    # The UIDs of an ImagingStudy: rule stu3-dicom-uid, in stu3.py.
    Row("Goal", "status", Move("lifecycleStatus", codes={
        "in-progress": "active", "on-target": "active", "ahead-of-target": "active", "behind-target": "active",
        "sustaining": "active", "achieved": "completed",
    })),
    *(
        Row("Dosage", element, Move(f"doseAndRate[].{element}"))
        for element in ("doseRange", "doseQuantity", "rateRatio", "rateRange", "rateQuantity")
    ),
)  # fmt: skip

ONLY_IN_STU3 = frozenset(row.element for row in ROWS if not isinstance(row.how, Codes))
"""Elements that R4 does not have under that name where STU3 has them: a message with others that R4 does not know is not in STU3."""

_IN_STU3: Mapping[tuple[str, str], Mapping[str, str]] = {
    (row.type, row.element): {after: before for before, after in row.how.codes.items()}
    for row in ROWS
    if isinstance(row.how, Codes)
}


def code_in_stu3(type_name: str, element: str, code: str) -> str:
    """STU3's word for a code of R4 (ReferralRequest.status: revoked → cancelled); most are the same in both."""
    return _IN_STU3.get((type_name, element), {}).get(code, code)


_CARE_CONNECT_EXTENSION = re.compile(
    r"https://fhir\.hl7\.org\.uk/(?:STU3/)?StructureDefinition/Extension-CareConnect-([A-Za-z]+)-1"
)
_IN_UK_CORE = _names(
    # Extensions of CareConnect that UK Core took over under the same name.
    """
    AdmissionMethod DischargeMethod EmergencyCareDischargeStatus OutcomeOfAttendance LegalStatus EthnicCategory
    NHSNumberVerificationStatus DeathNotificationStatus NominatedPharmacy ResidentialStatus TreatmentCategory
    ReligiousAffiliation NHSCommunication MainLocation ActualProblem ProblemSignificance RelatedProblemHeader
    RelatedClinicalContent AllergyIntoleranceEnd ListWarningCode PrescriptionType MedicationPrescribingAgency
    MedicationRepeatInformation MedicationStatementLastIssueDate MedicationQuantityText
    """
)
_UK_CORE = "https://fhir.hl7.org.uk"


def extension_url(url: str) -> str:
    """The UK Core URL of a CareConnect extension; any other URL comes back as it is. Rule ``stu3-extension``."""
    found = _CARE_CONNECT_EXTENSION.fullmatch(url)
    if found is None:
        return url
    return f"{_UK_CORE}/StructureDefinition/Extension-UKCore-{found[1]}" if found[1] in _IN_UK_CORE else url


_CARE_CONNECT_SYSTEM = re.compile(
    r"https://fhir\.hl7\.org\.uk/(?:STU3/)?(?:CodeSystem/)?CareConnect-([A-Za-z]+)-1"
)
_SAME_CODES = {
    "AdmissionMethod": "AdmissionMethodEngland",
    "DischargeMethod": "DischargeMethodEngland",
    "DischargeDestination": "DischargeDestinationEngland",
    "SourceOfAdmission": "SourceOfAdmissionEngland",
    "NHSNumberVerificationStatus": "NHSNumberVerificationStatusEngland",
    "EthnicCategory": "EthnicCategoryEngland",
    "DeathNotificationStatus": "DeathNotificationStatus",
}
"""Code systems of CareConnect → those of UK Core with the same codes under another URI."""
_V3 = re.compile(r"http://hl7\.org/fhir/v3/([A-Za-z]+)")
_V2 = re.compile(r"http://hl7\.org/fhir/v2/(\d{4})")
_MOVED = _names(
    # Systems of FHIR itself, http://hl7.org/fhir/NAME in STU3, that R4 keeps with the terminologies.
    """
    observation-category condition-category condition-clinical allergy-intolerance-criticality diagnosis-role
    encounter-diet special-arrangements discharge-disposition admit-source encounter-special-arrangements
    participant-type referencerange-meaning data-absent-reason organization-type contactentity-type list-order
    location-physical-type service-category service-type flag-category medication-statement-category
    appointment-cancellation-reason provenance-participant-type goal-category message-reasons-encounter
    """
)


def code_system(system: str) -> str:
    """R4's URI of a code system; any other comes back as it is. Rule ``stu3-code-system``."""
    if found := _V3.fullmatch(system):
        return f"{_CLINICAL}/v3-{found[1]}"
    if found := _V2.fullmatch(system):
        return f"{_CLINICAL}/v2-{found[1]}"
    if found := _CARE_CONNECT_SYSTEM.fullmatch(system):
        return f"{_UK_CORE}/CodeSystem/UKCore-{_SAME_CODES[found[1]]}" if found[1] in _SAME_CODES else system
    name = system.removeprefix("http://hl7.org/fhir/")
    return f"{_CLINICAL}/{name}" if name in _MOVED and name != system else system
