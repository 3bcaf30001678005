"""The walk over a message that has something to mend: every value beside what its version of FHIR has in its place.

Children are mended before the object they are in, so that what is empty afterwards can go as well. Paths are
those of the message as it was when the walk began.
"""

import copy
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

from hub.codes.book import CodeBook, Translation
from hub.dialects.stu3_rules import RESOURCE_TYPES, code_in_stu3
from hub.domain.message import Change, Unmapped
from hub.fhir.elements import Element, FhirVersion, properties, resource_types
from hub.fhir.tree import Tree
from hub.journey.canonicalise import instant
from hub.journey.repair.ids import mend_ids
from hub.journey.repair.rules import RuleId
from hub.journey.repair.values import menders
from hub.journey.uk_time import Assumed, with_offset

_GONE: Final = object()
"""Takes the place of a value that was dropped or set aside."""

Namespaces = Mapping[str, Mapping[str, str]]
"""Resource type → kind of identifier → system. The kind is ``type.text`` or a code of ``type``; ``*`` is any."""

_ACT_CODE = "http://terminology.hl7.org/CodeSystem/v3-ActCode"
_NULL_FLAVOR = "http://terminology.hl7.org/CodeSystem/v3-NullFlavor"
_US_CORE = "http://hl7.org/fhir/us/core/"
_EMERGENCY_DEPARTMENT = "E04"
"""UK Core, EncounterLocationType."""

_UUID = re.compile(
    r"(?:(?:urn)?:uuid:|urn:|uuid:)?([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})", re.IGNORECASE
)
_BLANK_REFERENCE = re.compile(r".*[][{}<>].*|\$.*|(?:urn)?:uuid:", re.IGNORECASE | re.DOTALL)
_BLANK_VALUE = re.compile(r"\$\{?[A-Za-z][\w.-]*\}?|\{.*\}|\[.*\]|<.*>|:uuid:", re.DOTALL)


_SPARE = frozenset(
    [
        (holder, "gender")
        for holder in ("Patient", "PatientContact", "Person", "Practitioner", "RelatedPerson")
    ]
    + [("ContactPoint", "system"), ("Address", "type")]
)
"""Codes of required sets by which nothing is routed or decided: an unknown one need not stop the message."""

_ROOT: Final = Element("", "Resource", required=True)


@dataclass(slots=True)
class _Place:
    """Where the walk is: in a resource of a type, in a type, at one of its elements."""

    resource_type: str
    type: str
    name: str = ""
    element: Element = _ROOT

    def at(self, name: str, element: Element) -> "_Place":
        return _Place(self.resource_type, self.type, name, element)

    def within(self) -> "_Place":
        return _Place(self.resource_type, self.element.type)


@dataclass(slots=True)
class Walk:
    """One walk, and what it did. ``event`` is the code of the event that the message tells, or "".

    What STU3 does not know may be known to R4, which the message becomes: from an STU3 message it is only lifted out,
    and `put_back` leaves it to the walk in R4.
    """

    switched_off: frozenset[str]
    zone: str
    namespaces: Namespaces
    event: str
    book: CodeBook
    version: FhirVersion = FhirVersion.R4
    changes: list[Change] = field(default_factory=list)
    unmapped: list[Unmapped] = field(default_factory=list)
    lifted: list[tuple[Tree, str, Any, str]] = field(default_factory=list)
    """(object, name, value, path of the object)."""

    def put_back(self) -> None:
        """What was lifted out stands where it stood again. What stood alone in its object, which is gone, is set aside."""
        for node, name, value, path in self.lifted:
            if node:
                node[name] = value
            else:
                self._set_aside(f"{path}.{name}", value, RuleId.UNKNOWN_ELEMENT)
        self.lifted.clear()

    def message(self, tree: Tree) -> None:
        """Mend a message, in place: a Bundle or a resource by itself."""
        if self._on(RuleId.ID_FORM):
            mend_ids(tree, self.version, self._is_id, partial(self._changed, rule=RuleId.ID_FORM))
        self._resource(tree, str(tree.get("resourceType")))
        if tree.get("resourceType") == "Bundle":
            self._entries(tree)
        for path, each in resources_of(tree):
            self._identifiers(each, path)

    def _is_id(self, identity: str) -> bool:
        """Whether what stands where an id should is one: filled in, and without blanks that another rule takes away."""
        if _BLANK_VALUE.fullmatch(identity):
            return False
        return bool(identity) and (identity == identity.strip() or not self._on(RuleId.SPACES))

    def _resource(self, node: Tree, path: str) -> None:
        """Mend a resource and all within it. One of a type that cannot be checked is left alone."""
        resource_type = node.get("resourceType")
        if not isinstance(resource_type, str) or resource_type not in resource_types(self.version):
            return
        self._fields(node, _Place(resource_type, resource_type), path)
        self._placeholder(node, "id", _BLANK_VALUE, path)
        if resource_type == "Encounter" and self.version is FhirVersion.R4:  # STU3 can do without
            self._class_assumed(node, path)

    # What is done is remembered ------------------------------------------------------------------------------

    def _on(self, rule: RuleId) -> bool:
        return rule not in self.switched_off

    def _changed(self, path: str, before: Any, after: Any, rule: RuleId, source: str = "") -> None:
        # Copies, because what is inside may be mended later.
        self.changes.append(Change(path, copy.deepcopy(before), copy.deepcopy(after), rule.value, source))

    def _set_aside(self, path: str, value: Any, rule: RuleId) -> None:
        self.unmapped.append(Unmapped(path, value, rule.value))

    def _take(self, node: Tree, name: str, rule: RuleId, path: str) -> None:
        self._set_aside(f"{path}.{name}", node.pop(name), rule)

    def _unknown(self, node: Tree, name: str, path: str) -> None:
        if self.version is FhirVersion.R4:
            self._take(node, name, RuleId.UNKNOWN_ELEMENT, path)
        else:
            self.lifted.append((node, name, node.pop(name), path))

    # Every place ---------------------------------------------------------------------------------------------

    def _fields(self, node: Tree, place: _Place, path: str) -> None:
        elements = properties(place.type, self.version)
        is_resource = place.resource_type == place.type
        aligned: set[str] = set()
        for name in list(node):
            if is_resource and name == "resourceType":
                continue
            element = elements.get(name)
            if element is None:
                if self._on(RuleId.UNKNOWN_ELEMENT):
                    self._unknown(node, name, path)
                continue
            if element.aligned:
                aligned.add(name.removeprefix("_"))
            after = self._element(node[name], place.at(name, element), f"{path}.{name}")
            if after is _GONE:
                del node[name]
            else:
                node[name] = after
        for name in sorted(aligned):
            self._align(node, name, path)

    def _element(self, value: Any, place: _Place, path: str) -> Any:
        if place.element.repeats:
            if not isinstance(value, list):
                if _is_empty(value) or not self._on(RuleId.SINGLE_TO_LIST):
                    return self._empty(value, path)
                self._changed(path, value, [value], RuleId.SINGLE_TO_LIST)
                value = [value]
            return self._list(value, place, path)
        if isinstance(value, list):
            value = self._first(value, place, path)
        return self._value(value, place, path)

    def _list(self, values: list[Any], place: _Place, path: str) -> Any:
        if not values:
            return self._empty(values, path)
        after = [
            value if value is None else self._value(value, place, f"{path}[{index}]")
            for index, value in enumerate(values)
        ]
        if place.element.aligned:
            return after  # what is nothing stays until its sibling was seen
        if self._on(RuleId.EMPTY):
            after = [
                self._empty(value, f"{path}[{index}]") if value is None else value
                for index, value in enumerate(after)
            ]
        return [value for value in after if value is not _GONE] or _GONE

    def _first(self, values: list[Any], place: _Place, path: str) -> Any:
        """The one value of a list where FHIR has no list. Of several only in Reference.identifier: all of them
        name the same thing, while two subjects are two patients.
        """
        said = [index for index, value in enumerate(values) if not _is_empty(value)]
        if values and not said and self._on(RuleId.EMPTY):
            self._changed(path, values, [], RuleId.EMPTY)
            return []
        may_choose = (place.type, place.name) == ("Reference", "identifier")
        if not said or (len(said) > 1 and not may_choose) or not self._on(RuleId.LIST_TO_SINGLE):
            return values
        found = said[0]
        self._changed(path, values, values[found], RuleId.LIST_TO_SINGLE)
        for index in said[1:]:
            self._set_aside(f"{path}[{index}]", values[index], RuleId.LIST_TO_SINGLE)
        return values[found]

    def _value(self, value: Any, place: _Place, path: str) -> Any:
        if _is_empty(value):
            return self._empty(value, path)
        if place.element.primitive:
            return self._primitive(value, place, path)
        if place.element.type == "Coding":
            value = self._coding(value, place, path)
        if not isinstance(value, dict):
            return value
        if place.element.type == "Resource":
            self._resource(value, path)
            return self._empty(value, path)
        before = len(self.changes)
        self._fields(value, place.within(), path)
        return self._empty(self._of_type(value, place, path, before), path)

    def _primitive(self, value: Any, place: _Place, path: str) -> Any:
        for rule, mend in menders(place.element.type, self.switched_off):
            mended = mend(value, place.element, self.zone)
            if mended is not None:
                self._changed(path, value, mended[0], rule, mended[1])
                value = mended[0]
        if place.element.codes and value not in place.element.codes and not _is_empty(value):
            return self._code(value, place, path)
        return self._empty(value, path)

    def _code(self, value: Any, place: _Place, path: str) -> Any:
        """What should be one of the element's codes and is not."""
        found = _translated(value, place, self.book) if self._on(RuleId.CODE_MAP) else None
        if found is not None:
            loosely = "" if found.equivalence in {"equal", "equivalent"} else f", {found.equivalence}"
            self._changed(path, value, found.code, RuleId.CODE_MAP, found.source + loosely)
            return found.code
        if (place.type, place.name) in _SPARE and self._on(RuleId.CODE_UNKNOWN):
            self._set_aside(path, value, RuleId.CODE_UNKNOWN)
            return _GONE
        return value

    def _empty(self, value: Any, path: str) -> Any:
        """The value, or _GONE if it says nothing and may be dropped."""
        if not _is_empty(value) or not self._on(RuleId.EMPTY):
            return value
        self._changed(path, value, None, RuleId.EMPTY)
        return _GONE

    def _align(self, node: Tree, name: str, path: str) -> None:
        """Two lists that belong together, ``given`` and ``_given``: positions where both have nothing go from both."""
        both = [one for one in (name, f"_{name}") if isinstance(node.get(one), list)]
        keep: list[int] = []
        for index in range(max((len(node[one]) for one in both), default=0)):
            there = {one: node[one][index] for one in both if index < len(node[one])}
            if not self._on(RuleId.EMPTY) or any(
                value is not None and value is not _GONE for value in there.values()
            ):
                keep.append(index)
                continue
            for one, value in there.items():
                if value is None:
                    self._changed(f"{path}.{one}[{index}]", None, None, RuleId.EMPTY)
        for one in both:
            kept = [node[one][index] for index in keep if index < len(node[one])]
            if _GONE in kept and all(value is None or value is _GONE for value in kept):
                dropped, kept = kept, []
                for value in dropped:
                    if value is None:
                        self._changed(f"{path}.{one}", None, None, RuleId.EMPTY)
            if kept or not self._on(RuleId.EMPTY):
                node[one] = [None if value is _GONE else value for value in kept]
            else:
                del node[one]

    # Some types ----------------------------------------------------------------------------------------------

    def _of_type(self, node: Tree, place: _Place, path: str, before: int) -> Any:
        """What is done to an object as a whole. ``before``: how many changes there were before those to what is in it."""
        match place.element.type:
            case "Extension":
                return self._extension(node, place, path)
            case "Period":
                self._period(node, path, before)
            case "Reference":
                return self._reference(node, place, path)
            case "Narrative":
                return self._narrative(node, path)
            case "Identifier":
                self._placeholder(node, "value", _BLANK_VALUE, path)
            case "BundleEntry":
                self._uuid(node, "fullUrl", path)
        return node

    def _coding(self, value: Any, place: _Place, path: str) -> Any:
        if isinstance(value, str) and (place.type, place.name) == ("Encounter", "class"):
            if not self._on(RuleId.CLASS_TEXT):
                return value
            self._changed(path, value, {"code": value}, RuleId.CLASS_TEXT)
            return {"code": value}
        if not isinstance(value, dict) or "coding" not in value or "code" in value:
            return value
        codings = value["coding"] if isinstance(value["coding"], list) else [value["coding"]]
        found = [coding for coding in codings if isinstance(coding, dict) and coding.get("code")]
        if not found or not self._on(RuleId.CONCEPT_TO_CODING):
            return value
        chosen = next((coding for coding in found if "v3" in str(coding.get("system"))), found[0])
        others = {"coding": [coding for coding in codings if coding is not chosen]}
        others |= {name: left for name, left in value.items() if name not in {"coding", "text"}}
        after = dict(chosen)
        if "text" in value and "display" not in after:
            after["display"] = value["text"]
        elif "text" in value:
            others["text"] = value["text"]
        self._changed(path, value, after, RuleId.CONCEPT_TO_CODING)
        for name, left in others.items():
            if not _is_empty(left):
                self._set_aside(f"{path}.{name}", left, RuleId.CONCEPT_TO_CODING)
        return after

    def _extension(self, node: Tree, place: _Place, path: str) -> Any:
        if place.name == "modifierExtension":
            return node  # it may turn the meaning round, so it is mended by its sender or not at all
        url = node.get("url")
        if node and url is None and self._on(RuleId.EXTENSION_URL):
            self._set_aside(path, node, RuleId.EXTENSION_URL)
            return _GONE
        if isinstance(url, str) and url.startswith(_US_CORE) and self._on(RuleId.EXTENSION_US):
            self._set_aside(path, node, RuleId.EXTENSION_US)
            return _GONE
        return node

    def _period(self, node: Tree, path: str, before: int) -> None:
        """An end in the hour that comes twice was taken as the earlier; it is the later if the period would end before it began."""
        start, end = instant(node.get("start")), instant(node.get("end"))
        if start is None or end is None or start <= end:
            return
        for at, change in enumerate(self.changes[before:], before):
            if change.path != f"{path}.end" or not change.source.endswith(Assumed.EARLIER):
                continue
            placed = with_offset(change.before, self.zone, later=True)
            if placed is not None and (instant(placed.text) or end) >= start:
                node["end"] = placed.text
                source = f"{self.zone}: {placed.assumed}"
                self.changes[at] = replace(change, after=placed.text, source=source)

    def _reference(self, node: Tree, place: _Place, path: str) -> Any:
        self._uuid(node, "reference", path)
        self._placeholder(node, "reference", _BLANK_REFERENCE, path)
        if (
            node.keys() == {"type"}
            and not (place.element.required or place.element.choice_required)
            and self._on(RuleId.REFERENCE_EMPTY)
        ):
            self._set_aside(path, node, RuleId.REFERENCE_EMPTY)
            return _GONE
        return node

    def _narrative(self, node: Tree, path: str) -> Any:
        whole = all(name in node or f"_{name}" in node for name in ("div", "status"))
        if whole or not node or not self._on(RuleId.NARRATIVE):
            return node
        self._set_aside(path, node, RuleId.NARRATIVE)
        return _GONE

    def _uuid(self, node: Tree, name: str, path: str) -> None:
        value = node.get(name)
        found = _UUID.fullmatch(value) if isinstance(value, str) else None
        if found is None or not self._on(RuleId.UUID_URN):
            return
        after = f"urn:uuid:{found[1].lower()}"
        if after != value:
            self._changed(f"{path}.{name}", value, after, RuleId.UUID_URN)
            node[name] = after

    def _placeholder(self, node: Tree, name: str, blank: re.Pattern[str], path: str) -> None:
        value = node.get(name)
        if isinstance(value, str) and blank.fullmatch(value) and self._on(RuleId.PLACEHOLDER):
            self._take(node, name, RuleId.PLACEHOLDER, path)

    # Some resources ------------------------------------------------------------------------------------------

    def _class_assumed(self, encounter: Tree, path: str) -> None:
        if "class" in encounter or not self._on(RuleId.CLASS_ASSUMED):
            return
        code = {"A01": "IMP", "A04": "EMER" if _in_emergency_department(encounter) else "AMB"}.get(self.event)
        after = {"system": _ACT_CODE, "code": code} if code else {"system": _NULL_FLAVOR, "code": "UNK"}
        encounter["class"] = after
        source = f"event {self.event}" if code else "nothing in the message says it"
        self._changed(f"{path}.class", None, after, RuleId.CLASS_ASSUMED, source)

    def _identifiers(self, node: Tree, path: str) -> None:
        systems = self.namespaces.get(str(node.get("resourceType")))
        if not systems or not self._on(RuleId.IDENTIFIER_NAMESPACE):
            return
        identifiers = node.get("identifier")
        single = isinstance(identifiers, dict)
        several = identifiers if isinstance(identifiers, list) else []
        for index, each in enumerate([identifiers] if single else several):
            if not isinstance(each, dict) or "system" in each or "value" not in each:
                continue
            system = namespace_of(each, systems)
            if system is None:
                continue
            where = f"{path}.identifier" if single else f"{path}.identifier[{index}]"
            if "_system" in each:  # it says why there is none, and now there is
                self._take(each, "_system", RuleId.IDENTIFIER_NAMESPACE, where)
            each["system"] = system
            self._changed(f"{where}.system", None, system, RuleId.IDENTIFIER_NAMESPACE)

    def _entries(self, bundle: Tree) -> None:
        entries = bundle.get("entry")
        if not isinstance(entries, list):
            return
        kept: list[Any] = []
        seen: dict[str, Any] = {}
        for index, entry in enumerate(entries):
            rule = _why_no_entry(entry, seen) if isinstance(entry, dict) else None
            if rule is not None and self._on(rule):
                self._set_aside(f"Bundle.entry[{index}]", entry, rule)
            else:
                kept.append(entry)
                if isinstance(entry, dict) and isinstance(entry.get("fullUrl"), str):
                    seen.setdefault(entry["fullUrl"], entry.get("resource"))
        if not kept and entries:
            del bundle["entry"]
        else:
            bundle["entry"] = kept


def _translated(value: Any, place: _Place, book: CodeBook) -> Translation | None:
    """A local word, a Coding or a CodeableConcept as one of the element's codes; a word's system is its element's."""
    codings = value.get("coding") if isinstance(value, dict) and "coding" in value else [value]
    for coding in codings if isinstance(codings, list) else [codings]:
        said = coding if isinstance(coding, dict) else {"code": coding}
        system, code = said.get("system"), said.get("code")
        if not isinstance(code, str):
            continue
        if not isinstance(system, str):
            found = book.words(RESOURCE_TYPES.get(place.type, place.type), place.name, code)
        else:
            found = book.translations(system, code)
        for each in (*found, _itself(code)):
            for word in (each.code, code_in_stu3(place.type, place.name, each.code)):
                if word in place.element.codes:
                    return replace(each, code=word)
    return None


def _itself(code: str) -> Translation:
    """FHIR's own code, in a Coding where FHIR has a code, or R4's word in an STU3 message."""
    return Translation("", code, None, "equal", "")


def resources_of(tree: Tree) -> Iterator[tuple[str, Tree]]:
    """(path, resource) of what a message holds and of what is contained in that; whatever is no object is left out."""
    outer = [(str(tree.get("resourceType")), tree)]
    if tree.get("resourceType") == "Bundle":
        outer = [
            (f"Bundle.entry[{index}].resource", entry["resource"])
            for index, entry in _objects(tree.get("entry"))
            if isinstance(entry.get("resource"), dict)
        ]
    for path, resource in outer:
        yield path, resource
        for index, contained in _objects(resource.get("contained")):
            yield f"{path}.contained[{index}]", contained


def _objects(values: Any) -> Iterator[tuple[int, Tree]]:
    if isinstance(values, list):
        yield from ((index, value) for index, value in enumerate(values) if isinstance(value, dict))


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str | list | dict) and not value)


def namespace_of(identifier: Tree, systems: Mapping[str, str]) -> str | None:
    """The system that a trust's profile has for an identifier without one, by the identifier's type."""
    concept = identifier.get("type")
    kinds: list[Any] = []
    if isinstance(concept, dict):
        codings = concept.get("coding")
        kinds = [c.get("code") for c in codings if isinstance(c, dict)] if isinstance(codings, list) else []
        kinds.append(concept.get("text"))
    named = (systems[kind] for kind in kinds if isinstance(kind, str) and kind in systems)
    return next(named, systems.get("*"))


def _why_no_entry(entry: Tree, seen: Mapping[str, Any]) -> RuleId | None:
    if not entry.keys() & {"resource", "request", "response"}:
        return RuleId.ENTRY_EMPTY
    url = entry.get("fullUrl")
    if isinstance(url, str) and url in seen and "resource" in entry and seen[url] == entry["resource"]:
        return RuleId.ENTRY_TWICE
    return None


def _in_emergency_department(encounter: Tree) -> bool:
    """Whether a place of this stay is one, by UK Core's type of place."""
    return any(
        coding.get("code") == _EMERGENCY_DEPARTMENT
        for _, location in _objects(encounter.get("location"))
        if isinstance(location.get("physicalType"), dict)
        for _, coding in _objects(location["physicalType"].get("coding"))
    )
