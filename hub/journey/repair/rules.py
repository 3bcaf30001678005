"""The register of repairs: what each rule does, and why it may.

All are on. A trust switches one off by its id, in its profile; then what the rule would have mended stays as
it was sent, and the structure check refuses it if FHIR does not have it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class RuleId(StrEnum):
    """What a `Change` or an `Unmapped` names as its reason."""

    EMPTY = "empty-dropped"
    LIST_TO_SINGLE = "list-to-single"
    SINGLE_TO_LIST = "single-to-list"
    UNKNOWN_ELEMENT = "unknown-element"
    SPACES = "spaces"
    BOOLEAN_TEXT = "boolean-text"
    NUMBER_TEXT = "number-text"
    TEXT_NUMBER = "text-number"
    CODE_CASE = "code-case"
    CODE_MAP = "code-map"
    CODE_UNKNOWN = "code-unknown"
    DAY_FIRST = "date-day-first"
    TIME_SEPARATOR = "time-separator"
    TIME_OFFSET = "time-offset"
    TIME_MIDNIGHT = "time-midnight"
    TIME_SECONDS = "time-seconds"
    TZ_ASSUMED = "tz-assumed"
    CLASS_TEXT = "class-text"
    CONCEPT_TO_CODING = "concept-to-coding"
    CLASS_ASSUMED = "class-assumed"
    PLACEHOLDER = "placeholder"
    ID_FORM = "id-form"
    UUID_URN = "uuid-urn"
    REFERENCE_EMPTY = "reference-empty"
    EXTENSION_URL = "extension-without-url"
    EXTENSION_US = "extension-us-only"
    NARRATIVE = "narrative-incomplete"
    IDENTIFIER_NAMESPACE = "identifier-namespace"
    ENTRY_EMPTY = "entry-without-resource"
    ENTRY_TWICE = "entry-twice"


@dataclass(frozen=True, slots=True)
class Rule:
    """One repair, for whoever asks why a field is not what was sent."""

    does: str
    because: str
    """The clause of FHIR that the message broke, or where such messages were seen."""


_JSON = "https://hl7.org/fhir/R4/json.html"
_TYPES = "https://hl7.org/fhir/R4/datatypes.html"

RULES: Mapping[RuleId, Rule] = {
    RuleId.EMPTY: Rule(
        "Drops empty text, null, empty objects and empty lists; lists that belong together stay aligned.",
        f"{_JSON}: properties are never empty, and null stands only in lists of primitives.",
    ),
    RuleId.LIST_TO_SINGLE: Rule(
        "Takes the one value of a list where FHIR has no list; of several only in Reference.identifier, the first.",
        "Seen: Reference.identifier as a list in a regional record, managingOrganization in BaRS examples.",
    ),
    RuleId.SINGLE_TO_LIST: Rule(
        "Makes a list of one where FHIR has a list.",
        f"{_JSON}#primitive: what may repeat is an array, even if there is one.",
    ),
    RuleId.UNKNOWN_ELEMENT: Rule(
        "Keeps an element that FHIR R4 does not have there as unmapped.",
        f"{_JSON}: no properties but those FHIR defines. Most systems add some.",
    ),
    RuleId.SPACES: Rule(
        "Takes white space off the ends of codes, ids, URIs, times and the like; inside a code one blank is left.",
        f"{_TYPES}#code: no white space around a code, single spaces within.",
    ),
    RuleId.BOOLEAN_TEXT: Rule('Reads "true" and "false" as true and false.', f"{_JSON}#primitive."),
    RuleId.NUMBER_TEXT: Rule("Reads a number written as text.", f"{_JSON}#primitive."),
    RuleId.TEXT_NUMBER: Rule(
        "Writes a number, or true and false, as text where FHIR has text.", f"{_JSON}#primitive."
    ),
    RuleId.CODE_CASE: Rule(
        "Writes a code of a required code set as that set writes it (In_Progress → in-progress).",
        f"{_TYPES}#code: codes are case sensitive unless said otherwise.",
    ),
    RuleId.CODE_MAP: Rule(
        "Says a code of a required code set that came as a local word, a Coding or a concept, as a ConceptMap translates it; "
        "R4's word in an STU3 message as STU3 has it.",
        "Seen: gender as M, as 1 (NHS Data Dictionary) and as a Coding; the Change names map and line.",
    ),
    RuleId.CODE_UNKNOWN: Rule(
        "Keeps a gender, a kind of telecom or of address that no map knows as unmapped; the message is flagged.",
        "Nothing is routed or decided by these; any other unknown code of a required set stops the message.",
    ),
    RuleId.DAY_FIRST: Rule(
        "Reads 23/11/2026, 23-11-2026 and 23.11.2026, with or without a time of day, as 2026-11-23.",
        f"{_TYPES}#date: YYYY-MM-DD. In the United Kingdom the day comes first; switch it off for a system that does not.",
    ),
    RuleId.TIME_SEPARATOR: Rule(
        "Puts a T between date and time of day.", f"{_TYPES}#dateTime: the format of XML Schema."
    ),
    RuleId.TIME_OFFSET: Rule(
        "Writes an offset as ±hh:mm (+0215, +2, + 02:00) and z as Z.", "Seen: +0215 in public ADT samples."
    ),
    RuleId.TIME_MIDNIGHT: Rule(
        "Says 24:00 as 00:00 of the next day.", f'{_TYPES}#dateTime: "24:00" is not allowed.'
    ),
    RuleId.TIME_SECONDS: Rule(
        "Fills missing seconds with zeros.",
        f"{_TYPES}#dateTime: seconds have to be there and may be filled with zeros.",
    ),
    RuleId.TZ_ASSUMED: Rule(
        "Adds the offset that the trust's clocks had; see hub.journey.uk_time for the two odd nights of the year.",
        "Seen in CareConnect bundles and in every HL7 v2 time; FHIR wants an offset.",
    ),
    RuleId.CLASS_TEXT: Rule("Reads Encounter.class given as text as a code.", "DSTU2 had it so."),
    RuleId.CONCEPT_TO_CODING: Rule(
        "Takes one coding of a concept where FHIR has a single coding; HL7 v3's before others, else the first.",
        "Seen: Encounter.class with several codings, as R5 has it.",
    ),
    RuleId.CLASS_ASSUMED: Rule(
        "Infers a missing Encounter.class from the event: A01 is inpatient, A04 an attendance; else UNK.",
        "Encounter.class is 1..1 in R4 and was optional in STU3.",
    ),
    RuleId.PLACEHOLDER: Rule(
        "Keeps references, ids and identifier values that were never filled in as unmapped.",
        "Seen: Patient/[PatientResourceId], Schedule/{ScheduleItem}, $nhs-number, :uuid:.",
    ),
    RuleId.ID_FORM: Rule(
        "Says the id of a resource, and its version, with FHIR's letters (pat_1 → pat-1-… and a part of its hash); "
        "references to it in the message follow.",
        f"{_TYPES}#id: 1 to 64 of A-Z a-z 0-9 - . Seen: underscores, colons and more than 64 characters.",
    ),
    RuleId.UUID_URN: Rule(
        "Writes a UUID in a reference or fullUrl as urn:uuid: and lower case.",
        f"{_TYPES}#uuid; RFC 4122, 3: lower case on output.",
    ),
    RuleId.REFERENCE_EMPTY: Rule(
        "Keeps an optional Reference that names nothing as unmapped.",
        "https://hl7.org/fhir/R4/references.html#Reference: one of reference, identifier and display.",
    ),
    RuleId.EXTENSION_URL: Rule(
        "Keeps an extension without url as unmapped; a modifierExtension is not touched.",
        "https://hl7.org/fhir/R4/extensibility.html#Extension: url is 1..1.",
    ),
    RuleId.EXTENSION_US: Rule(
        "Keeps US Core extensions as unmapped.",
        "They have no meaning in UK Core; MEDITECH and Oracle send them.",
    ),
    RuleId.NARRATIVE: Rule(
        "Keeps a narrative without div or status as unmapped.",
        "https://hl7.org/fhir/R4/narrative.html: both are 1..1.",
    ),
    RuleId.IDENTIFIER_NAMESPACE: Rule(
        "Gives an identifier without system the namespace that the trust's profile has for its kind.",
        "Seen: Oracle Health's FIN NBR with data-absent-reason in place of the system.",
    ),
    RuleId.ENTRY_EMPTY: Rule(
        "Keeps a Bundle.entry without resource, request and response as unmapped.",
        "https://hl7.org/fhir/R4/bundle.html, bdl-5.",
    ),
    RuleId.ENTRY_TWICE: Rule(
        "Keeps the second of two equal resources under one fullUrl as unmapped.",
        "https://hl7.org/fhir/R4/bundle.html, bdl-7.",
    ),
}
