"""Is this parsed JSON a structurally sound FHIR resource, of R4 or of STU3? In: an orjson tree. Out: issues, none when sound.

The rules come from one source, the classes of ``fhir.resources`` (R4B, STU3). They are walked once, written as JSON
Schema and compiled by ``jsonschema_rs``, because the classes themselves take about twenty times as long (decision 0003).

 * Every resource is checked by the schema of its own type: the one given, and every resource inside it
   (``Bundle.entry.resource``, ``Bundle.entry.response.outcome``, ``Parameters.parameter.resource``, ``contained``).
 * The rules are R4's, not R4B's: see `hub.fhir.elements`. STU3 writes JSON and the primitive types as R4 does.
 * An issue says where and what was expected. It never repeats what the message said, neither a value nor a name
   that FHIR does not know, because either may be patient data.

What is not judged here: profiles, invariants (except dom-2), reference targets, terminology beyond required codes.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from typing import Any

import jsonschema_rs

from hub.fhir.elements import PRIMITIVE_SIBLING, Element, FhirVersion, elements, is_of_r4, resource_types

JsonSchema = dict[str, Any]


@dataclass(frozen=True, slots=True)
class StructureIssue:
    """One thing that is wrong, in words that hold nothing from the message."""

    path: str
    """FHIRPath-like, ``Bundle.entry[2].resource.status``. Made of FHIR's own names and of positions only."""
    code: str
    """FHIR IssueType: structure, required, value, invariant or not-supported."""
    message: str
    """What is wrong and what was expected."""


# ---------------------------------------------------------------------------------------------------------------
# Primitive types. Source: https://hl7.org/fhir/R4/datatypes.html#primitive, unless a comment says otherwise.
# ---------------------------------------------------------------------------------------------------------------

_YEAR = r"([0-9]([0-9]([0-9][1-9]|[1-9]0)|[1-9]00)|[1-9]000)"
_LEAP_YEAR = r"([0-9]{2}(0[48]|[2468][048]|[13579][26])|(0[48]|[2468][048]|[13579][26])00)"
# R4's regex allows a 31st in every month; its text does not ("Dates SHALL be valid dates"), so neither do we.
_FULL_DATE = (
    rf"({_YEAR}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)"
    rf"|02-(0[1-9]|1[0-9]|2[0-8]))|{_LEAP_YEAR}-02-29)"
)
_PARTIAL_DATE = rf"{_YEAR}(-(0[1-9]|1[0-2]))?"
_TIME = r"([01][0-9]|2[0-3]):[0-5][0-9]:([0-5][0-9]|60)(\.[0-9]+)?"
_OFFSET = r"(Z|[+-]((0[0-9]|1[0-3]):[0-5][0-9]|14:00))"
_BASE64_CHAR = r"[A-Za-z0-9+/][ \t\r\n]*"

_TEXT: JsonSchema = {"type": "string", "minLength": 1, "maxLength": 1024 * 1024}
# R4 writes \S*, which the validator knows by heart; that an element is not empty is said in
# https://hl7.org/fhir/R4/json.html#json.
_URI: JsonSchema = {"type": "string", "minLength": 1, "pattern": r"^\S*$"}

_PRIMITIVES: dict[str, JsonSchema] = {
    "boolean": {"type": "boolean"},
    "integer": {"type": "integer", "minimum": -(2**31), "maximum": 2**31 - 1},
    "unsignedInt": {"type": "integer", "minimum": 0, "maximum": 2**31 - 1},
    "positiveInt": {"type": "integer", "minimum": 1, "maximum": 2**31 - 1},
    "decimal": {"type": "number"},
    "string": _TEXT,
    "markdown": _TEXT,
    "xhtml": {"type": "string", "minLength": 1},
    "code": {"type": "string", "pattern": r"^[^\s]+(\s[^\s]+)*$"},
    "id": {"type": "string", "pattern": r"^[A-Za-z0-9\-\.]{1,64}$"},
    "uri": _URI,
    "url": _URI,
    "canonical": _URI,
    "oid": {"type": "string", "pattern": r"^urn:oid:[0-2](\.(0|[1-9][0-9]*))+$"},
    "uuid": {
        "type": "string",
        "pattern": "^urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$",
    },
    "date": {"type": "string", "pattern": f"^({_PARTIAL_DATE}|{_FULL_DATE})$"},
    "dateTime": {"type": "string", "pattern": f"^({_PARTIAL_DATE}|{_FULL_DATE}(T{_TIME}{_OFFSET})?)$"},
    "instant": {"type": "string", "pattern": f"^{_FULL_DATE}T{_TIME}{_OFFSET}$"},
    "time": {"type": "string", "pattern": f"^{_TIME}$"},
    # R4's regex forgets "/" and padding rules; RFC 4648 with whitespace between characters, as R4's text means.
    "base64Binary": {
        "type": "string",
        "minLength": 1,
        "pattern": rf"^[ \t\r\n]*(({_BASE64_CHAR}){{4}})*"
        rf"(({_BASE64_CHAR}){{2}}(=[ \t\r\n]*){{2}}|({_BASE64_CHAR}){{3}}=[ \t\r\n]*)?$",
    },
}

_EXPECTED: Mapping[str, str] = {
    "boolean": "true or false",
    "integer": "a whole number of 32 bits",
    "unsignedInt": "a whole number from 0 to 2147483647",
    "positiveInt": "a whole number from 1 to 2147483647",
    "decimal": "a number",
    "string": "text that is not empty, of at most 1048576 characters",
    "markdown": "text that is not empty, of at most 1048576 characters",
    "xhtml": "text that is not empty",
    "code": "a code: not empty, no white space around it, single spaces at most within",
    "id": "an id: 1 to 64 of A-Z a-z 0-9 - .",
    "uri": "a URI, not empty and without white space",
    "url": "a URL, not empty and without white space",
    "canonical": "a canonical URL, not empty and without white space",
    "oid": "an OID written urn:oid:…",
    "uuid": "a UUID written urn:uuid:… in lower case",
    "date": "a date that exists, written YYYY, YYYY-MM or YYYY-MM-DD",
    "dateTime": "a date that exists, written YYYY, YYYY-MM, YYYY-MM-DD or YYYY-MM-DDThh:mm:ss with an offset (Z or ±hh:mm)",
    "instant": "YYYY-MM-DDThh:mm:ss with an offset (Z or ±hh:mm), on a date that exists",
    "time": "hh:mm:ss, from 00:00:00, without an offset",
    "base64Binary": "base64 text that is not empty",
}

# Generated from the models (test_structure.py holds it to them): reading it from the models would import all
# 140 of them, two seconds and 80 MB, for a constant.
TIME_PROPERTIES: frozenset[str] = frozenset(
    [
        "abatementDateTime",
        "answerDateTime",
        "authored",
        "authoredOn",
        "collectedDateTime",
        "created",
        "createdDateTime",
        "creation",
        "date",
        "dateAsserted",
        "dateTime",
        "dateWritten",
        "deceasedDateTime",
        "defaultValueDateTime",
        "defaultValueInstant",
        "detected",
        "effectiveDateTime",
        "effectiveInstant",
        "effectiveTime",
        "end",
        "enteredDate",
        "event",
        "expirationDate",
        "expiry",
        "fixedDateTime",
        "fixedInstant",
        "identifiedDateTime",
        "ifModifiedSince",
        "issued",
        "lastModified",
        "lastOccurrence",
        "lastPerformed",
        "lastUpdated",
        "manufactureDate",
        "maxValueDateTime",
        "maxValueInstant",
        "minValueDateTime",
        "minValueInstant",
        "occurredDateTime",
        "occurrenceDateTime",
        "onset",
        "onsetDateTime",
        "participantEffectiveDateTime",
        "patternDateTime",
        "patternInstant",
        "paymentDate",
        "performedDateTime",
        "presentationDate",
        "publicationDate",
        "received",
        "receivedTime",
        "recorded",
        "recordedDate",
        "recordedOn",
        "releaseDate",
        "sent",
        "start",
        "started",
        "statusDate",
        "studyEffectiveDateTime",
        "time",
        "timeDateTime",
        "timestamp",
        "timingDateTime",
        "validTo",
        "validationDate",
        "value",
        "valueDateTime",
        "valueInstant",
        "verificationDate",
        "when",
        "whenHandedOver",
        "whenPrepared",
    ]
)
"""Names of JSON properties whose type is dateTime or instant somewhere in R4.

A name can be something else elsewhere: ``value`` is a dateTime in one place only
(ImmunizationRecommendation.recommendation.dateCriterion), and text in an Identifier.
"""


# ---------------------------------------------------------------------------------------------------------------
# Writing the schema
# ---------------------------------------------------------------------------------------------------------------


def _ref(name: str) -> JsonSchema:
    return {"$ref": f"#/$defs/{name}"}


def _nullable(schema: JsonSchema) -> JsonSchema:
    """The schema, or null. An if, not an anyOf, so that an error says what is wrong with the value."""
    return {"if": {"type": "null"}, "else": schema}


def _repeated(schema: JsonSchema) -> JsonSchema:
    return {"type": "array", "minItems": 1, "items": schema}


def _value_schema(element: Element) -> JsonSchema:
    """What one value of this element must look like."""
    if element.codes:
        return {"enum": list(element.codes)}
    if element.type == "Resource":
        return {"type": "object"}  # checked by its own validator, see resources_within
    return _ref(element.type)


def _property_schemas(element: Element) -> dict[str, JsonSchema]:
    """The JSON properties of one element: ``name`` and, for a primitive, ``_name``."""
    value = _value_schema(element)
    if not element.sibling:
        return {element.name: _repeated(value) if element.repeats else value}
    sibling = _ref(PRIMITIVE_SIBLING)
    if element.repeats:
        # null fills the gaps between the two lists: https://hl7.org/fhir/R4/json.html#primitive
        return {element.name: _repeated(_nullable(value)), f"_{element.name}": _repeated(_nullable(sibling))}
    return {element.name: value, f"_{element.name}": sibling}


def _presence_rule(element: Element) -> JsonSchema:
    """A required primitive: itself, or its sibling with an extension that says why it is not there."""
    sibling = f"_{element.name}"
    explained: JsonSchema = {"required": [sibling]}
    if not element.repeats:
        explained["properties"] = {sibling: {"required": ["extension"]}}
    return {"anyOf": [{"required": [element.name]}, explained]}


def _null_rules(element: Element) -> list[JsonSchema]:
    """In a list of primitives null is allowed only where the sibling list has something."""
    name, sibling = element.name, f"_{element.name}"
    no_nulls = {"properties": {name: {"items": {"not": {"type": "null"}}}}}
    return [
        {"if": {"required": [sibling]}, "then": {"alignedLists": [name, sibling]}, "else": no_nulls},
    ]


def _choice_rules(type_name: str, choice: str, of_choice: list[Element]) -> list[JsonSchema]:
    """At most one type of ``value[x]``, exactly one if it is required. https://hl7.org/fhir/R4/formats.html#choice"""
    names = {
        name: element.name
        for element in of_choice
        for name in ([element.name, f"_{element.name}"] if element.sibling else [element.name])
    }
    rules: list[JsonSchema] = []
    if of_choice[0].choice_required:
        rules.append({"$comment": f"{choice}[x]", "anyOf": [{"required": [name]} for name in names]})
    at_most_one: JsonSchema = {"oneChoice": [choice, names]}
    # The keyword is Python's, so it is asked only where there can be two values: nearly every extension is a url and
    # one more property, and nearly every object has none of what it may choose from.
    if type_name == "Extension":
        rules.append({"if": {"maxProperties": 2}, "else": at_most_one})
    else:
        rules.append({"if": {"anyOf": [{"required": [name]} for name in names]}, "then": at_most_one})
    return rules


def _type_schema(version: FhirVersion, type_name: str) -> JsonSchema:
    """The JSON Schema of one FHIR type, with references to the types of its elements."""
    properties: dict[str, JsonSchema] = {}
    known = elements(version, type_name).values()
    required = [e.name for e in known if e.required and not e.sibling]
    rules = [_presence_rule(e) for e in known if e.required and e.sibling]
    if type_name in resource_types(version):
        properties["resourceType"] = {"const": type_name}
        required.append("resourceType")
    choices: dict[str, list[Element]] = {}
    for element in known:
        properties |= _property_schemas(element)
        if element.choice:
            choices.setdefault(element.choice, []).append(element)
        if element.aligned:
            rules += _null_rules(element)
    for choice, of_choice in choices.items():
        rules += _choice_rules(type_name, choice, of_choice)
    schema: JsonSchema = {
        "type": "object",
        "minProperties": 1,
        "properties": properties,
        "additionalProperties": False,
    }
    if required:
        schema["required"] = required
    if rules:
        schema["allOf"] = rules
    return schema


@cache
def _type_schema_and_parts(version: FhirVersion, type_name: str) -> tuple[JsonSchema, tuple[str, ...]]:
    """A type's schema and every type it refers to. Cached: data types are shared by all."""
    known = elements(version, type_name).values()
    parts = {e.type: None for e in known if not e.primitive and e.type != "Resource"}
    return _type_schema(version, type_name), (*parts, PRIMITIVE_SIBLING)


@cache
def _schema(version: FhirVersion, resource_type: str) -> JsonSchema:
    """One self-contained JSON Schema for a resource type, with a definition for every type within reach."""
    definitions: dict[str, JsonSchema] = dict(_PRIMITIVES)
    waiting = [resource_type]
    while waiting:
        type_name = waiting.pop()
        if type_name not in definitions:
            definitions[type_name], parts = _type_schema_and_parts(version, type_name)
            waiting += parts
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **_ref(resource_type),
        "$defs": definitions,
    }


# ---------------------------------------------------------------------------------------------------------------
# Two rules JSON Schema has no words for. They run only where they can matter.
# ---------------------------------------------------------------------------------------------------------------


class _OneChoice:
    """Keyword ``oneChoice``: [choice, {property: the element it belongs to}]; of those elements, one at most."""

    def __init__(self, _parent: JsonSchema, value: Any, _path: list[str | int]) -> None:
        self._element_of: dict[str, str] = value[1]

    def validate(self, instance: Any) -> None:
        """Raises when the object has more than one of the elements. What is no object is another rule's."""
        if not isinstance(instance, dict):
            return
        found = {self._element_of[name] for name in instance if name in self._element_of}
        if len(found) > 1:
            raise ValueError("more than one")


class _AlignedLists:
    """Keyword ``alignedLists``: [name, sibling]; at no position may both lists have nothing."""

    def __init__(self, _parent: JsonSchema, value: Any, _path: list[str | int]) -> None:
        self._names: list[str] = value

    def validate(self, instance: Any) -> None:
        """Raises when a position is null, or missing, in both lists. What is no list is another rule's."""
        if not isinstance(instance, dict):
            return
        lists = [instance.get(name, []) for name in self._names]
        if not all(isinstance(one, list) for one in lists):
            return
        values, siblings = lists
        for position in range(max(len(values), len(siblings))):
            if _nothing_at(values, position) and _nothing_at(siblings, position):
                raise ValueError("nothing at a position")


def _nothing_at(values: list[Any], position: int) -> bool:
    return position >= len(values) or values[position] is None


@cache
def _validator(version: FhirVersion, resource_type: str) -> Any:
    """The compiled validator of a resource type in ``resource_types(version)``. Compiled when first needed."""
    return jsonschema_rs.Draft202012Validator(
        _schema(version, resource_type),
        # The linear-time engine: no pattern here can be made slow by a message.
        pattern_options=jsonschema_rs.RegexOptions(),
        keywords={"oneChoice": _OneChoice, "alignedLists": _AlignedLists},
        offline=True,
    )


# ---------------------------------------------------------------------------------------------------------------
# Checking
# ---------------------------------------------------------------------------------------------------------------


def check(
    resource: Mapping[str, Any], version: FhirVersion = FhirVersion.R4, *, limit: int = 20
) -> tuple[StructureIssue, ...]:
    """What is structurally wrong with a resource and all resources inside it; () when nothing is.

    In: a tree as orjson parses it (dict, list, str, int, float or Decimal, bool, None), at most 64 deep, and the
    version that it is written in. The compiled validators recurse with the tree; orjson's own limit of 1024 is within what they can take.
    Out: at most `limit` issues, outer resources first.
    """
    limit = max(limit, 1)  # () has to mean that all is well
    checkable = resource_types(version)
    issues: list[StructureIssue] = []
    waiting: list[tuple[str, Any, bool]] = [("", resource, False)]
    for path, one, is_contained in waiting:  # grows while it is walked: resources found inside are appended
        if not isinstance(one, dict):
            # Inside another resource this is that resource's own issue, already said by its validator.
            if not path:
                issues.append(StructureIssue("Resource", "structure", "a resource has to be a JSON object"))
            continue
        resource_type = one.get("resourceType")
        if isinstance(resource_type, str) and resource_type in checkable:
            path = path or resource_type  # noqa: PLW2901
            validator = _validator(version, resource_type)
            if not validator.is_valid(one):
                schema = _schema(version, resource_type)
                issues += _explained(path, version, schema, validator, one, limit - len(issues))
            if is_contained and "contained" in one:
                issues.append(StructureIssue(f"{path}.contained", "invariant", _DOM_2))
            if resource_type in _HOLDERS or "contained" in one:
                waiting += resources_within(path, resource_type, one)
        else:
            issues.append(_unknown_type(path or "Resource", version, one))
        if len(issues) >= limit:
            break
    return tuple(issues[:limit])


_HOLDERS = frozenset({"Bundle", "Parameters"})
"""Resources that hold others elsewhere than in `contained`."""

_DOM_2 = "a contained resource must not contain resources itself (dom-2)"


def _unknown_type(path: str, version: FhirVersion, resource: Mapping[str, Any]) -> StructureIssue:
    """The issue of a resource whose type does not say which rules to use."""
    if "resourceType" not in resource:
        return StructureIssue(f"{path}.resourceType", "required", "resourceType is required and missing")
    resource_type = resource["resourceType"]
    if not isinstance(resource_type, str):
        expected = f"expected the name of a resource type, found {_found(resource_type)}"
        return StructureIssue(f"{path}.resourceType", "structure", expected)
    # Names out of our own lists can be repeated.
    if version is FhirVersion.R4 and is_of_r4(resource_type):
        why = f"{resource_type} is a resource type of R4 that this hub cannot check"
    elif is_of_r4(resource_type):
        why = f"{resource_type} is a resource type of FHIR R4, not of FHIR {version}"
    else:
        why = f"not the name of a resource type of FHIR {version}"
    return StructureIssue(f"{path}.resourceType", "not-supported", why)


def resources_within(
    path: str, resource_type: str, resource: Mapping[str, Any]
) -> Iterator[tuple[str, Any, bool]]:
    """(path, resource, whether it is contained) of the resources directly inside one. The walk is flat, not recursive.

    These are all the places FHIR has for a resource inside another; a test holds this to the models. Whatever is
    not of the shape expected is passed over: the validator of the outer resource has said so.
    """
    if resource_type == "Bundle":
        for position, entry in _objects(resource.get("entry")):
            if "resource" in entry:
                yield f"{path}.entry[{position}].resource", entry["resource"], False
            response = entry.get("response")
            if isinstance(response, dict) and "outcome" in response:
                yield f"{path}.entry[{position}].response.outcome", response["outcome"], False
    elif resource_type == "Parameters":
        waiting = [(f"{path}.parameter", resource.get("parameter"))]
        for list_path, parameters in waiting:  # grows while it is walked: parameters have parts
            for position, parameter in _objects(parameters):
                if "resource" in parameter:
                    yield f"{list_path}[{position}].resource", parameter["resource"], False
                waiting.append((f"{list_path}[{position}].part", parameter.get("part")))
    elif "contained" in resource and isinstance(resource["contained"], list):
        for position, contained in enumerate(resource["contained"]):
            yield f"{path}.contained[{position}]", contained, True


def _objects(values: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    """(position, object) for the objects of a list; nothing when it is no list."""
    if isinstance(values, list):
        for position, value in enumerate(values):
            if isinstance(value, dict):
                yield position, value


# ---------------------------------------------------------------------------------------------------------------
# Saying what is wrong
# ---------------------------------------------------------------------------------------------------------------


def _explained(
    path: str, version: FhirVersion, schema: JsonSchema, validator: Any, resource: Any, limit: int
) -> list[StructureIssue]:
    """At least one and at most `limit` issues for a resource its validator refuses."""
    issues: list[StructureIssue] = []
    for error in validator.iter_errors(resource):
        if len(issues) >= limit:
            break
        where = path + "".join(
            f"[{step}]" if isinstance(step, int) else f".{step}" for step in error.instance_path
        )
        issues.append(_issue(where, version, error, schema))
    # Should it refuse without saying why, then still not "sound".
    return issues or [StructureIssue(path, "structure", f"not of the structure that FHIR {version} gives it")]


def _issue(where: str, version: FhirVersion, error: Any, schema: JsonSchema) -> StructureIssue:
    """One error of the validator in our words. Its own message is not used: it quotes the value."""
    keyword, kind, rule_path = error.kind.name, error.kind, error.schema_path
    match keyword:
        case "required":
            return _missing(where, kind.property)
        case "anyOf":  # _presence_rule or a required choice: what is missing stands first
            rule = _at(schema, rule_path[:-1])
            return _missing(where, rule.get("$comment") or rule["anyOf"][0]["required"][0])
        case "additionalProperties":
            return StructureIssue(where, "structure", _unknown_elements(kind.unexpected, version, schema))
        case "oneChoice":
            choice = _at(schema, rule_path)[0]
            return StructureIssue(where, "structure", f"{choice}[x] may be given once, as one type only")
        case "alignedLists":
            name, sibling = _at(schema, rule_path)
            return StructureIssue(
                where, "structure", f"at no position may {name} and {sibling} both have nothing"
            )
        case "not":
            return StructureIssue(
                where, "structure", "null is allowed here only beside an extension for that position"
            )
        case "enum":
            return StructureIssue(where, "value", f"expected one of: {', '.join(_at(schema, rule_path))}")
        case "minItems":
            return StructureIssue(where, "structure", "a list must not be empty")
        case "minProperties":
            return StructureIssue(where, "structure", "an object must not be empty")
        case "type":
            expected = _EXPECTED.get(rule_path[1], "") if len(rule_path) == 3 else ""
            expected = expected or {"array": "a list", "object": "an object"}[_at(schema, rule_path)]
            return StructureIssue(where, "structure", f"expected {expected}, found {_found(error.instance)}")
        case _:  # pattern and the limits of the primitives
            return StructureIssue(where, "value", f"expected {_EXPECTED.get(rule_path[1], 'another value')}")


def _missing(where: str, name: str) -> StructureIssue:
    return StructureIssue(f"{where}.{name}", "required", f"{name} is required and missing")


def _at(schema: JsonSchema, path: list[str | int]) -> Any:
    """The part of a schema a path leads to."""
    part: Any = schema
    for step in path:
        part = part[step]
    return part


def _unknown_elements(names: list[str], version: FhirVersion, schema: JsonSchema) -> str:
    """Names FHIR uses elsewhere in this resource are said; others are the sender's own words, and are not."""
    known = {name for definition in schema["$defs"].values() for name in definition.get("properties", ())}
    said = sorted(name for name in names if name in known)
    if len(said) == len(names):
        return f"not an element that FHIR {version} has here: {', '.join(said)}"
    others = len(names) - len(said)
    also = f", and {', '.join(said)}" if said else ""
    return f"{others} {'element' if others == 1 else 'elements'} that FHIR {version} does not have here{also}"


def _found(value: Any) -> str:
    """The kind of a JSON value, never the value."""
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case str():
            return "text"
        case int() | float() | Decimal():
            return "a number"
        case list():
            return "a list"
        case _:
            return "an object"
