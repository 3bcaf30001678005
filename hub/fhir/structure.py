"""The structure check: is this JSON tree what FHIR R4 allows, and if not, where and why.

`fhir.resources` (R4B, the same as R4 for what the hub carries) is the only source: its model classes
are walked, turned into JSON Schema and compiled by `jsonschema_rs`, one validator per resource type.
A message is then checked by Rust on the tree that `orjson` made, without building any model. The
resources inside it (a Bundle's entries, `contained`) are each checked by the validator of their own type.

What is written here by hand is what the models keep in Python code or do not say at all: the patterns of
the primitive types, the code lists that the models cut short, and the types of R4B that R4 lacks.
Decision record: `hub/decisions/0003-structure-check.md`.

Nothing of a message is ever repeated in an issue: paths are made of names the schema knows and of
indexes, messages of what was expected.
"""

import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, Any, Union, get_args, get_origin

import jsonschema_rs
from fhir.resources.R4B import fhirtypes

_Schema = dict[str, Any]


@dataclass(frozen=True, slots=True)
class StructureIssue:
    """One thing wrong with a message, in words that are safe to log and to send back."""

    path: str
    """Where: `Bundle.entry[2].resource.status`. Element names as in JSON, so `valueString`, `_status`."""
    code: str
    """FHIR IssueType: structure, required, value, invariant or not-supported."""
    message: str
    """What was expected. Never what was found: that may be patient data."""


# --- What the models do not say -------------------------------------------------------------------

# R4B's additions. A message that uses them is not R4, and an R4 receiver refuses it.
# https://hl7.org/fhir/R4B/r4b-explanation.html
_ONLY_R4B_RESOURCES = frozenset(
    {
        "AdministrableProductDefinition", "Citation", "ClinicalUseDefinition", "EvidenceReport",
        "Ingredient", "ManufacturedItemDefinition", "MedicinalProductDefinition", "NutritionProduct",
        "PackagedProductDefinition", "RegulatedAuthorization", "SubscriptionStatus", "SubscriptionTopic",
        "SubstanceDefinition",
    }
)  # fmt: skip
_ONLY_R4B_DATATYPES = frozenset({"CodeableReference", "RatioRange"})

# The modules of fhir.resources that hold no resource. By hand, because asking the classes means importing
# all of them: two seconds and 77 MB. The unit test compares this with what the classes say.
_NO_RESOURCE = frozenset(
    {
        "Address", "Age", "Annotation", "Attachment", "BackboneElement", "CodeableConcept",
        "CodeableReference", "Coding", "ContactDetail", "ContactPoint", "Contributor", "Count",
        "DataRequirement", "Distance", "DomainResource", "Dosage", "Duration", "Element",
        "ElementDefinition", "Expression", "Extension", "FHIRPrimitiveExtension", "HumanName",
        "Identifier", "MarketingStatus", "Meta", "Money", "Narrative", "ParameterDefinition", "Period",
        "Population", "ProdCharacteristic", "ProductShelfLife", "Quantity", "Range", "Ratio", "RatioRange",
        "Reference", "RelatedArtifact", "Resource", "SampledData", "Signature", "Timing",
        "TriggerDefinition", "UsageContext",
    }
)  # fmt: skip

_OBSERVATION_STATUS = (
    "registered", "preliminary", "final", "amended", "corrected", "cancelled", "entered-in-error", "unknown",
)  # fmt: skip
_ENCOUNTER_STATUS = (
    "planned", "arrived", "triaged", "in-progress", "onleave", "finished", "cancelled", "entered-in-error",
    "unknown",
)  # fmt: skip

# Code lists that the models cut short with a '+'. Source: the value sets of FHIR R4 4.0.1, each at
# https://hl7.org/fhir/R4/valueset-<name>.html, the name behind each line.
# StructureMap.group.rule.target.transform is cut short too and not checked: the hub carries no maps.
_CODES: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("Encounter", "status"): _ENCOUNTER_STATUS,  # encounter-status
    ("EncounterStatusHistory", "status"): _ENCOUNTER_STATUS,  # encounter-status
    ("Task", "status"): (  # task-status
        "draft", "requested", "received", "accepted", "rejected", "ready", "cancelled", "in-progress",
        "on-hold", "failed", "completed", "entered-in-error",
    ),
    ("Observation", "status"): _OBSERVATION_STATUS,  # observation-status
    ("DetectedIssue", "status"): _OBSERVATION_STATUS,  # observation-status
    ("RiskAssessment", "status"): _OBSERVATION_STATUS,  # observation-status
    ("DiagnosticReport", "status"): (  # diagnostic-report-status
        "registered", "partial", "preliminary", "final", "amended", "corrected", "appended", "cancelled",
        "entered-in-error", "unknown",
    ),
    ("DeviceUseStatement", "status"): (  # device-statement-status
        "active", "completed", "entered-in-error", "intended", "stopped", "on-hold",
    ),
    ("DeviceUdiCarrier", "entryType"): (  # udi-entry-type
        "barcode", "rfid", "manual", "card", "self-reported", "unknown",
    ),
    ("QuestionnaireItem", "type"): (  # item-type
        "group", "display", "question", "boolean", "decimal", "integer", "date", "dateTime", "time",
        "string", "text", "url", "choice", "open-choice", "attachment", "reference", "quantity",
    ),
    ("SupplyRequest", "status"): (  # supplyrequest-status
        "draft", "active", "suspended", "cancelled", "completed", "entered-in-error", "unknown",
    ),
}  # fmt: skip

# Marks of a list that is not whole: '+' (cut short by the generator), 'etc.' (an extensible binding).
_NOT_WHOLE = frozenset({"+", "etc."})

# R4's own patterns (https://hl7.org/fhir/R4/datatypes.html#primitive), with the sentence beside them,
# "Dates SHALL be valid dates", made part of the pattern: 30 days in November, 29 in February of leap years.
_YEAR = "(?:[0-9](?:[0-9](?:[0-9][1-9]|[1-9]0)|[1-9]00)|[1-9]000)"
_FOURTH = "(?:0[48]|[2468][048]|[13579][26])"
_DAY = (
    f"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])"
    "|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))"
    f"|(?:[0-9][0-9]{_FOURTH}|{_FOURTH}00)-02-29)"
)
_CLOCK = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:(?:[0-5][0-9]|60)(?:\.[0-9]+)?"
_OFFSET = r"(?:Z|[+\-](?:(?:0[0-9]|1[0-3]):[0-5][0-9]|14:00))"
_PARTIAL = f"{_YEAR}(?:-(?:0[1-9]|1[0-2]))?"
_TEXT: _Schema = {"type": "string", "pattern": r"[ \r\n\t\S]"}
_NO_SPACE: _Schema = {"type": "string", "pattern": r"^\S+$"}

_PRIMITIVES: Mapping[str, _Schema] = {
    "boolean": {"type": "boolean"},
    "decimal": {"type": "number"},
    "integer": {"type": "integer", "minimum": -2147483648, "maximum": 2147483647},
    "unsignedInt": {"type": "integer", "minimum": 0, "maximum": 2147483647},
    "positiveInt": {"type": "integer", "minimum": 1, "maximum": 2147483647},
    "string": _TEXT,
    "markdown": _TEXT,
    "xhtml": _TEXT,
    "uri": _NO_SPACE,
    "url": _NO_SPACE,
    "canonical": _NO_SPACE,
    "code": {"type": "string", "pattern": r"^\S+(?:\s\S+)*$"},
    "id": {"type": "string", "pattern": r"^[A-Za-z0-9\-.]{1,64}$"},
    "oid": {"type": "string", "pattern": r"^urn:oid:[0-2](?:\.(?:0|[1-9][0-9]*))+$"},
    "uuid": {
        "type": "string",
        "pattern": "^urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$",
    },
    "base64Binary": {"type": "string", "pattern": r"^(?:\s*(?:[0-9a-zA-Z+/=]){4}\s*)+$"},
    "date": {"type": "string", "pattern": f"^(?:{_PARTIAL}|{_DAY})$"},
    "dateTime": {"type": "string", "pattern": f"^(?:{_PARTIAL}|{_DAY}(?:T{_CLOCK}{_OFFSET})?)$"},
    "instant": {"type": "string", "pattern": f"^{_DAY}T{_CLOCK}{_OFFSET}$"},
    "time": {"type": "string", "pattern": f"^{_CLOCK}$"},
}

# What is said of a value that breaks its type's pattern.
_EXPECTED: Mapping[str, str] = {
    "string": "must be text that is not empty",
    "markdown": "must be text that is not empty",
    "xhtml": "must be text that is not empty",
    "uri": "must be a URI: not empty, no spaces",
    "url": "must be a URL: not empty, no spaces",
    "canonical": "must be a canonical URL: not empty, no spaces",
    "code": "must be a code: not empty, no space before or after, no two spaces together",
    "id": "must be an id: 1 to 64 letters, digits, '-' and '.'",
    "oid": "must be an OID: urn:oid: and numbers with dots between",
    "uuid": "must be a UUID: urn:uuid: and lower-case hexadecimal digits",
    "base64Binary": "must be base64",
    "date": "must be a date that exists: YYYY, YYYY-MM or YYYY-MM-DD",
    "dateTime": (
        "must be a date that exists (YYYY, YYYY-MM, YYYY-MM-DD) or "
        "YYYY-MM-DDThh:mm:ss with an offset (Z or +hh:mm)"
    ),
    "instant": "must be YYYY-MM-DDThh:mm:ss with an offset (Z or +hh:mm), on a date that exists",
    "time": "must be a time of day: hh:mm:ss, no offset",
}

TIME_PROPERTIES: frozenset[str] = frozenset(
    {
        "abatementDateTime", "answerDateTime", "authored", "authoredOn", "collectedDateTime", "created",
        "createdDateTime", "creation", "date", "dateAsserted", "dateTime", "dateWritten",
        "deceasedDateTime", "defaultValueDateTime", "defaultValueInstant", "detected",
        "effectiveDateTime", "effectiveInstant", "effectiveTime", "end", "enteredDate", "event",
        "expirationDate", "expiry", "fixedDateTime", "fixedInstant", "identifiedDateTime",
        "ifModifiedSince", "issued", "lastModified", "lastOccurrence", "lastPerformed", "lastUpdated",
        "manufactureDate", "maxValueDateTime", "maxValueInstant", "minValueDateTime", "minValueInstant",
        "occurredDateTime", "occurrenceDateTime", "onset", "onsetDateTime",
        "participantEffectiveDateTime", "patternDateTime", "patternInstant", "paymentDate",
        "performedDateTime", "presentationDate", "publicationDate", "received", "receivedTime",
        "recorded", "recordedDate", "recordedOn", "releaseDate", "restoreDate", "sent", "start",
        "started", "statusDate", "studyEffectiveDateTime", "time", "timeDateTime", "timestamp",
        "timingDateTime", "validTo", "validationDate", "value", "valueDateTime", "valueInstant",
        "verificationDate", "when", "whenHandedOver", "whenPrepared",
    }
)  # fmt: skip
"""JSON property names whose FHIR type is dateTime or instant somewhere in R4.

Written out because finding them means importing every model (two seconds, 77 MB); the unit test compares.
*Somewhere*: `value`, `event`, `start` or `date` are times in one type and something else in another, so a
name found here says where to look, and the form of the value decides.
"""


# --- From model classes to JSON Schema ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Rule:
    """What a condition over several elements means; it stands at `allOf[index]` of its type's schema."""

    element: str
    members: tuple[tuple[str, ...], ...]
    """The alternatives, each by the JSON names it may have (`valueString`, `_valueString`)."""


@dataclass(frozen=True, slots=True)
class _Type:
    """One type, walked: its schema, its conditions, and what it leads to."""

    schema: _Schema
    rules: tuple[_Rule, ...]
    children: tuple[tuple[str, bool, Any], ...]
    """(property, is it an array, model class) of the elements that are not primitive."""


def _split(annotation: Any) -> tuple[bool, Any]:
    """Take `Optional[List[X | None]]` apart: is it a list, and what is X."""
    many = False
    while True:
        origin = get_origin(annotation)
        if origin is list:
            many = True
            annotation = get_args(annotation)[0]
        elif origin in (Union, types.UnionType):
            # Only Optional occurs at this place; Url's union stands inside Annotated.
            (annotation,) = (arg for arg in get_args(annotation) if arg is not type(None))
        else:
            return many, annotation


def _primitive(leaf: Any) -> str | None:
    """The FHIR name of a primitive type, None for anything else."""
    if leaf is bool:
        return "boolean"
    if get_origin(leaf) is not Annotated:
        return None
    for marker in leaf.__metadata__:
        name = getattr(type(marker), "__visit_name__", None)
        if isinstance(name, str):
            return name
    return "uuid"  # the only one that fhir.resources takes from pydantic, without a marker of its own


@cache
def _walk(model: Any) -> _Type:
    """Turn one model class into a schema. Cached: Extension and its like serve all resource types."""
    name: str = model.__name__
    properties: _Schema = {}
    required: list[str] = []
    conditions: list[_Schema] = []
    rules: list[_Rule] = []
    children: list[tuple[str, bool, Any]] = []
    choices: dict[str, list[tuple[str, ...]]] = {}
    choices_required: set[str] = set()
    fields = model.model_fields
    is_resource = model.has_resource_base()
    if is_resource:
        properties["resourceType"] = True  # read by check() itself

    for field_name, info in fields.items():
        alias: str = info.alias or field_name
        if alias == "fhir_comments":  # fhir.resources' own; FHIR JSON has had no comments since DSTU2
            continue
        many, leaf = _split(info.annotation)
        extra: Mapping[str, Any] = info.json_schema_extra or {}
        kind = _primitive(leaf)
        sibling = "_" + alias
        names: tuple[str, ...] = (alias,)
        if field_name.endswith("__ext"):
            node, nested = _sibling(many=many), leaf.get_model_klass()
            children.append((alias, many, nested))
            properties[alias] = node
            continue
        if kind is None:
            nested = leaf.get_model_klass()
            if nested.__name__ in _ONLY_R4B_DATATYPES:
                continue
            children.append((alias, many, nested))
            # A resource inside is only required to be an object here; check() goes into it by its type.
            node = {"type": "object"} if nested.__name__ == "Resource" else _ref(nested.__name__)
        else:
            node = _code(name, alias, extra) if kind == "code" else _ref(kind)
            if field_name + "__ext" in fields:
                names = (alias, sibling)
            elif extra.get("one_of_many"):
                # Extension's values: FHIR lets them have extensions, the models forgot.
                names = (alias, sibling)
                properties[sibling] = _sibling(many=False)
                children.append((sibling, False, fhirtypes.FHIRPrimitiveExtensionType.get_model_klass()))
        properties[alias] = {"type": "array", "minItems": 1, "items": node} if many else node

        if group := extra.get("one_of_many"):
            choices.setdefault(group, []).append(names)
            if extra.get("one_of_many_required"):
                choices_required.add(group)
        elif info.is_required() or extra.get("element_required"):
            if len(names) == 1:
                required.append(alias)
            else:
                # The value itself, or extensions that say why there is none.
                why = {} if many else {"properties": {sibling: {"required": ["extension"]}}}
                conditions.append({"anyOf": [{"required": [alias]}, {"required": [sibling], **why}]})
                rules.append(_Rule(alias, (names,)))

    for group, members in choices.items():
        conditions.append(_only_one(members, required=group in choices_required, others=len(required)))
        rules.append(_Rule(f"{group}[x]", tuple(members)))

    schema: _Schema = {"type": "object", "properties": properties, "additionalProperties": False}
    if not is_resource:
        schema["minProperties"] = 1
    if required:
        schema["required"] = required
    if conditions:
        schema["allOf"] = conditions
    return _Type(schema, tuple(rules), tuple(children))


def _ref(name: str) -> _Schema:
    return {"$ref": f"#/$defs/{name}"}


def _sibling(*, many: bool) -> _Schema:
    """The schema of `_status`: the extensions of a primitive value, in an array with null as a filler."""
    one = _ref("FHIRPrimitiveExtension")
    if not many:
        return one
    return {
        "type": "array",
        "items": {"anyOf": [{"type": "null"}, one]},
        "contains": {"type": "object"},
    }


def _code(type_name: str, alias: str, extra: Mapping[str, Any]) -> _Schema:
    """A code: from its list, where R4 binds the element to one and the whole list is known."""
    codes = _CODES.get((type_name, alias)) or extra.get("enum_values")
    if not codes or not _NOT_WHOLE.isdisjoint(codes):
        return _ref("code")
    return {"enum": list(codes)}


def _only_one(members: list[tuple[str, ...]], *, required: bool, others: int) -> _Schema:
    """The condition that at most one (or exactly one) of the types of a value[x] is present.

    `others` is the number of elements that must be present besides. An object with no more than one
    element beyond them cannot hold two values: that short cut spares the usual Extension (url and value)
    the look at fifty names.
    """
    branches: list[_Schema] = [
        {"required": [names[0]]} if len(names) == 1 else {"anyOf": [{"required": [n]} for n in names]}
        for names in members
    ]
    if required:
        return {"oneOf": branches}
    exact: _Schema = {"oneOf": [{"not": {"anyOf": branches}}, *branches]}
    return {"anyOf": [{"maxProperties": others + 1}, exact]}


# --- Compiled validators --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Compiled:
    """The check of one resource type."""

    validator: Any
    types: Mapping[str, _Type]
    carriers: Mapping[str, tuple[tuple[str, bool, str], ...]] = field(default_factory=dict)
    """Type name to (property, is it an array, type name): the ways that lead to resources inside."""


@cache
def _modules() -> Mapping[str, Any]:
    """Resource type name to fhir.resources' lazy handle on its class; nothing is imported by this."""
    found = {}
    for handle_name, handle in vars(fhirtypes).items():
        path = getattr(handle, "_model_klass", None)
        if not isinstance(path, str):
            continue
        _, module, name = path.rsplit(".", 2)
        # A class named like its module is a type of its own; the others are parts of it (PatientContact).
        if module == name.lower() and name not in _NO_RESOURCE and name not in _ONLY_R4B_RESOURCES:
            found[name] = getattr(fhirtypes, handle_name)
    return found


def resource_types() -> frozenset[str]:
    """The resource types that can be checked: those of R4 that R4B kept."""
    return frozenset(_modules())


@cache
def _compile(resource_type: str) -> _Compiled:
    """Walk a resource type and everything it is made of, and compile the validator."""
    root = _modules()[resource_type].get_model_klass()
    walked: dict[str, _Type] = {}
    waiting = [root]
    while waiting:
        model = waiting.pop()
        if model.__name__ in walked or model.__name__ == "Resource":
            continue
        walked[model.__name__] = _walk(model)
        waiting.extend(nested for _, _, nested in walked[model.__name__].children)
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$defs": {**_PRIMITIVES, **{name: one.schema for name, one in walked.items()}},
        **_ref(resource_type),
    }
    # RegexOptions: the engine without backtracking, so that no message can make a pattern slow.
    validator = jsonschema_rs.Draft202012Validator(schema, pattern_options=jsonschema_rs.RegexOptions())
    return _Compiled(validator, walked, _carriers(walked))


def _carriers(walked: Mapping[str, _Type]) -> dict[str, tuple[tuple[str, bool, str], ...]]:
    """Which elements lead to a resource inside, however deep: entry → resource, part → part → resource."""
    leading = {"Resource"}
    while True:
        more = {
            name
            for name, one in walked.items()
            if name not in leading and any(nested.__name__ in leading for _, _, nested in one.children)
        }
        if not more:
            break
        leading |= more
    return {
        name: tuple(
            (prop, many, nested.__name__)
            for prop, many, nested in one.children
            if nested.__name__ in leading
        )
        for name, one in walked.items()
        if name in leading
    }


def _inside(node: Mapping[str, Any], type_name: str, compiled: _Compiled) -> Iterator[tuple[str, Any]]:
    """The resources inside a resource, each with its path from there. A stack, not recursion: `part`
    may be nested as deep as the sender likes."""
    waiting: list[tuple[str, str, Any]] = [("", type_name, node)]
    while waiting:
        path, name, value = waiting.pop()
        if name == "Resource":
            yield path, value
            continue
        found: list[tuple[str, str, Any]] = []
        for prop, many, nested in compiled.carriers.get(name, ()):
            inner = value.get(prop)
            if isinstance(inner, dict):
                found.append((f"{path}.{prop}", nested, inner))
            elif many and isinstance(inner, list):
                found.extend(
                    (f"{path}.{prop}[{index}]", nested, one)
                    for index, one in enumerate(inner)
                    if isinstance(one, dict)
                )
        waiting.extend(reversed(found))


# --- The check ------------------------------------------------------------------------------------


def check(resource: Mapping[str, Any], *, limit: int = 20) -> tuple[StructureIssue, ...]:
    """Everything wrong with the structure of a resource and of the resources inside it; () when sound.

    At most `limit` issues, in the order of the document's resources. Takes what `orjson.loads` returns.
    """
    tree = resource if isinstance(resource, dict) else dict(resource)
    issues: list[StructureIssue] = []
    root = tree.get("resourceType")
    waiting: list[tuple[str, dict[str, Any]]] = [
        (root if isinstance(root, str) and root in _modules() else "Resource", tree)
    ]
    while waiting and len(issues) < limit:
        path, node = waiting.pop()
        resource_type = node.get("resourceType")
        if not isinstance(resource_type, str) or resource_type not in _modules():
            issues.append(_no_type(path, resource_type))
            continue
        compiled = _compile(resource_type)
        if not _is_valid(compiled, node):
            for issue in _explain(compiled, node, path):
                issues.append(issue)
                if len(issues) >= limit:
                    break
        if compiled.carriers:
            inside = [(path + way, one) for way, one in _inside(node, resource_type, compiled)]
            waiting.extend(reversed(inside))
    return tuple(issues)


def _is_valid(compiled: _Compiled, node: dict[str, Any]) -> bool:
    sound: bool = compiled.validator.is_valid(node)
    return sound


def _no_type(path: str, resource_type: Any) -> StructureIssue:
    at = f"{path}.resourceType"
    if resource_type is None:
        return StructureIssue(at, "required", "resourceType is required and is absent")
    if not isinstance(resource_type, str):
        return StructureIssue(at, "structure", "resourceType must be text")
    return StructureIssue(at, "not-supported", "this is not a resource type of FHIR R4")


def _explain(compiled: _Compiled, node: dict[str, Any], base: str) -> Iterator[StructureIssue]:
    """What is wrong with one resource, without the resources inside it."""
    for error in compiled.validator.iter_errors(node):
        steps: list[str | int] = error.instance_path
        if _is_filler(node, steps, error.instance):
            continue
        issue = _issue(compiled, error, base + _join(steps))
        if issue is not None:
            yield issue


def _join(steps: list[str | int]) -> str:
    """The path as text. Its names are all the schema's: an unknown one is reported at its parent."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)


def _is_filler(node: Any, steps: list[str | int], found: Any) -> bool:
    """Is this a null that FHIR allows: one in an array of primitives, with extensions at its place?

    JSON Schema cannot say so across two arrays, hence here. A message that uses such nulls costs the
    slow way; they are rare.
    """
    if found is not None or len(steps) < 2:
        return False
    *parents, name, index = steps
    if not isinstance(name, str) or not isinstance(index, int):
        return False
    for step in parents:
        node = node[step]
    beside = node.get("_" + name)
    return isinstance(beside, list) and index < len(beside) and isinstance(beside[index], dict)


_JSON_NAMES = {
    "object": "a JSON object", "array": "a JSON array", "string": "a JSON string", "number": "a JSON number",
    "integer": "a whole JSON number", "boolean": "true or false, without quotes",
}  # fmt: skip


def _issue(compiled: _Compiled, error: Any, path: str) -> StructureIssue | None:
    """Say one error of the validator in our words. Its own are never used: they repeat the value."""
    kind: str = error.kind.name
    found: Any = error.instance
    if kind in ("anyOf", "oneOf"):
        return _rule_issue(compiled, error, path)
    if kind == "required":
        # A name that the schema demands, so nothing of the message.
        return StructureIssue(f"{path}.{error.kind.property}", "required", "is required and is absent")
    if found is None and kind in ("type", "enum"):
        return StructureIssue(path, "structure", "null is not allowed: leave the element out")
    if kind == "type":
        expected = " or ".join(_JSON_NAMES.get(one, one) for one in error.kind.types)
        return StructureIssue(path, "structure", f"must be {expected}")
    if kind == "enum":
        if not isinstance(found, str):
            return StructureIssue(path, "structure", "must be a JSON string")
        codes = ", ".join(str(code) for code in error.kind.options)
        return StructureIssue(path, "value", f"must be one of the codes of FHIR R4: {codes}")
    if kind == "additionalProperties":
        return _unknown_elements(compiled, error, path)
    if kind == "pattern":
        name = _definition(error)
        return StructureIssue(path, "value", _EXPECTED.get(name, f"must be of the FHIR type {name}"))
    if kind in ("minimum", "maximum"):
        bounds = _PRIMITIVES[_definition(error)]
        return StructureIssue(path, "value", f"must be from {bounds['minimum']} to {bounds['maximum']}")
    if kind == "minItems":
        return StructureIssue(path, "structure", "an empty array is not allowed: leave the element out")
    if kind == "minProperties":
        return StructureIssue(path, "invariant", "an empty object is not allowed: leave the element out")
    if kind == "contains":
        return StructureIssue(path, "structure", "must hold at least one object")
    # Nothing above left out today; a later jsonschema_rs must not turn a refusal into an exception.
    return StructureIssue(path, "structure", "is not what FHIR R4 allows here")


def _definition(error: Any) -> str:
    """The `$defs` name the error stands under: the FHIR type whose rule is broken."""
    steps = error.schema_path
    return str(steps[1]) if len(steps) > 1 and steps[0] == "$defs" else ""


def _unknown_elements(compiled: _Compiled, error: Any, path: str) -> StructureIssue:
    """Unknown elements, by name only where the name is one of R4's: a key can carry patient data too."""
    unexpected: list[str] = error.kind.unexpected
    known = sorted(name for name in unexpected if any(name in t.schema["properties"] for t in compiled.types.values()))
    said = f"{len(unexpected)} element(s) that FHIR R4 does not have in {_definition(error)}"
    if known:
        said += " (among them " + ", ".join(known) + ")"
    return StructureIssue(path, "structure", said)


def _rule_issue(compiled: _Compiled, error: Any, path: str) -> StructureIssue | None:
    """A condition over several elements: a required primitive, or a value[x]."""
    steps = error.schema_path
    walked = compiled.types.get(_definition(error))
    if walked is None or "allOf" not in steps:
        # The arrays beside primitive arrays: each place is null or an object with extensions.
        return StructureIssue(path, "structure", "must be null or an object with id or extensions")
    if not isinstance(error.instance, dict):
        return None  # its type is wrong, which is another error's to say
    rule = walked.rules[steps[steps.index("allOf") + 1]]
    present = sum(any(name in error.instance for name in names) for names in rule.members)
    at = f"{path}.{rule.element}"
    if present > 1:
        return StructureIssue(at, "structure", "only one of its types may be present")
    if present == 1:
        return StructureIssue(at, "required", "without a value, it needs extensions that say why")
    return StructureIssue(at, "required", "is required and is absent")
