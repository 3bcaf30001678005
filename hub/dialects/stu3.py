"""FHIR STU3 and CareConnect → FHIR R4. In: a tree as FHIR JSON has it. Out: a new tree, and what became of the rest.

The rules are rows of `hub.dialects.stu3_rules`; this module walks and applies them. These rules have no row:

 * ``stu3-resource-type``             a resource R4 calls otherwise, in references and URLs too
 * ``stu3-message-header-timestamp``  when a message was sent is the Bundle's to say
 * ``stu3-observation-related``       members and sources have elements of their own
 * ``stu3-admission-method``          UK Core has it on Encounter.hospitalization, CareConnect on the Encounter
 * ``stu3-question-enabled``          R4 wants an operator: ``exists`` or ``=``
 * ``stu3-not-taken``                 MedicationStatement.taken ``n`` is a status
 * ``stu3-dicom-uid``                 the UIDs of an ImagingStudy: what was an OID is a number or a Coding
 * ``stu3-required``                  R4 requires what STU3 did not: said to be unknown, an order an order
 * ``stu3-list``, ``stu3-single``     an element that may now repeat, or no longer
 * ``stu3-concept``                   a Coding or text where R4 has a CodeableConcept
 * ``stu3-canonical``                 a Reference where R4 has a canonical URL
 * ``stu3-profile``                   a claim to a profile of STU3 is not kept: an R4 resource cannot meet it
 * ``stu3-extension``, ``stu3-code-system``  CareConnect's URLs in UK Core's spelling, FHIR's own moved ones in R4's

Paths are those of the message as it was sent. The ``before`` and ``after`` of a move are names of elements, those of
any other change are values. Nothing is lost: every value is in the tree, in a change or unmapped. What neither STU3 nor
R4 knows stays where it is, for the repairs to judge.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from hub.dialects.stu3_rules import (
    INNER_TYPES,
    RESOURCE_TYPES,
    ROWS,
    As,
    Codes,
    Context,
    Implies,
    Move,
    Pick,
    Row,
    code_system,
    extension_url,
)
from hub.domain.message import Change, Unmapped
from hub.fhir.elements import Element, FhirVersion, elements, resource_types
from hub.fhir.tree import Tree


@dataclass(frozen=True, slots=True)
class Converted:
    """A message in R4, and what was changed or had no place on the way."""

    tree: Tree
    changes: tuple[Change, ...]
    unmapped: tuple[Unmapped, ...]


def to_r4(tree: Tree) -> Converted:
    """An STU3 message in R4. ``tree`` is left as it was, and is at most 64 deep.

    Never fails: what is not as STU3 has it is unmapped or stays for the structure check. A resource type that R4 does
    not have (or the hub cannot check) keeps its name and content.
    """
    turn = _Turn(_types_by_url(tree))
    converted = turn.resource(tree, str(tree.get("resourceType", "Resource")))
    return Converted(converted, tuple(turn.changes), tuple(turn.unmapped))


_ROWS_OF: dict[str, list[Row]] = {}
for _row in ROWS:
    _ROWS_OF.setdefault(_row.type, []).append(_row)

_ABSENT = "http://hl7.org/fhir/StructureDefinition/data-absent-reason"
_REQUIRED: Mapping[str, tuple[tuple[str, frozenset[str]], ...]] = {
    "Consent": (("scope", frozenset(("scope",))), ("category", frozenset(("category",)))),
    "Immunization": (("_occurrenceString", frozenset(("occurrenceDateTime", "_occurrenceDateTime"))),),
    "Goal": (("subject", frozenset(("subject",))),),
    "RiskAssessment": (("subject", frozenset(("subject",))),),
}
"""R4 type → what it cannot be without and STU3 can, each with the elements any of which will do."""
_REQUIRED_CODES = {
    "NutritionOrder": ("intent", "order"),
    "Media": ("status", "unknown"),
    "ImagingStudy": ("status", "unknown"),
}
"""The same where R4 requires a code, and what that is: in STU3 a NutritionOrder is an order."""
_OLD_NAME = re.compile(rf"(?<![A-Za-z])({'|'.join(RESOURCE_TYPES)})(?=/|\?|$)")
_OLD_PROFILE = re.compile(r"/STU3/|/CareConnect-|^http://fhir\.nhs\.net/StructureDefinition/")
_ADMISSION_METHOD = extension_url(
    "https://fhir.hl7.org.uk/STU3/StructureDefinition/Extension-CareConnect-AdmissionMethod-1"
)
_NO_PLACE = "STU3 has this element and R4 has no place for it"


@dataclass(slots=True)
class _Turn:
    """One message while it is being converted."""

    types_by_url: Mapping[str, str]
    changes: list[Change] = field(default_factory=list)
    unmapped: list[Unmapped] = field(default_factory=list)

    def resource(self, node: Tree, path: str) -> Tree:
        """A resource under its R4 name, with all it holds. One that R4 does not have is copied."""
        old = node.get("resourceType")
        if not isinstance(old, str) or old not in resource_types(FhirVersion.STU3):
            return node
        new = RESOURCE_TYPES.get(old, old)
        if new not in resource_types(FhirVersion.R4):
            return node
        tree = self.node(node, old, new, path)
        if new != old:
            tree["resourceType"] = new
            self._changed(f"{path}.resourceType", old, new, "stu3-resource-type")
        return tree

    def node(self, node: Tree, old_type: str, new_type: str, path: str) -> Tree:
        """An object of ``old_type`` as ``new_type``: first what is in it, then its own elements."""
        known = elements(FhirVersion.STU3, old_type)
        tree = {}
        for name, value in node.items():
            converted = self._value(value, known.get(name), f"{path}.{name}")
            if not _emptied(value, converted):
                tree[name] = converted
        special = _SPECIAL.get(old_type)
        if special is not None:
            special(self, tree, path)
        came_from: dict[str, str] = {}
        for row in _ROWS_OF.get(old_type, ()):
            if row.element in tree or f"_{row.element}" in tree:
                self._apply(row, tree, path)
                if isinstance(row.how, Move | Pick) and row.element not in tree:
                    came_from[row.how.to.split(".")[0].removesuffix("[]")] = row.element
        new = elements(FhirVersion.R4, new_type)
        if new:
            self._fit(tree, known, new, path, came_from)
            self._require(tree, new_type, path)
        return tree

    def _value(self, value: Any, element: Element | None, path: str) -> Any:
        """A value with all that is in it. ``element`` is None for what STU3 does not know and for ``_name``."""
        if isinstance(value, list):
            return [self._value(each, element, f"{path}[{index}]") for index, each in enumerate(value)]
        if not isinstance(value, dict) or (element is not None and element.primitive):
            return value
        if element is None:
            # Beside a primitive there are extensions; whatever else this is, is none of ours.
            return self._beside(value, path) if path.rpartition(".")[2].startswith("_") else value
        if element.type == "Resource":
            return self.resource(value, path)
        return self.node(value, element.type, INNER_TYPES.get(element.type, element.type), path)

    def _beside(self, value: Tree, path: str) -> Tree:
        extension = elements(FhirVersion.STU3, "Element")["extension"]
        return {
            name: self._value(each, extension, f"{path}.{name}") if name == "extension" else each
            for name, each in value.items()
        }

    # --- rows ------------------------------------------------------------------------------------------------------

    def _apply(self, row: Row, tree: Tree, path: str) -> None:
        place = f"{path}.{row.element}"
        match row.how:
            case Move():
                self._move(row, row.how, tree, place)
            case Context():
                self._context(row, tree, place)
            case Codes(codes):
                before = tree.get(row.element)
                if isinstance(before, str) and before in codes:
                    tree[row.element] = codes[before]
                    self._changed(place, before, codes[before], row.rule)
            case Implies(name, code):
                self._implied(row, name, code, tree, path)
            case Pick(child, to):
                self._pick(row, child, to, tree, place)

    def _move(self, row: Row, how: Move, tree: Tree, place: str) -> None:
        value = tree.get(row.element)
        if value is None:
            sibling = tree.get(f"_{row.element}")
            if sibling is not None and how.to.isalnum() and how.form is As.IS and f"_{how.to}" not in tree:
                tree[f"_{how.to}"] = tree.pop(f"_{row.element}")
                self._changed(place, row.element, how.to, row.rule)
            return
        if how.codes is not None and isinstance(value, str) and value in how.codes:
            self._changed(place, value, how.codes[value], row.rule)
            value = how.codes[value]
        formed = _formed(value, how)
        if formed is None:
            return
        del tree[row.element]
        if not _put(tree, how.to.split("."), formed):
            tree[row.element] = value
            return
        sibling = tree.get(f"_{row.element}")
        if sibling is not None and how.to.isalnum() and how.to != row.element and how.form is As.IS:
            tree[f"_{how.to}"] = tree.pop(f"_{row.element}")
        self._changed(place, row.element, how.to, row.rule)

    def _context(self, row: Row, tree: Tree, place: str) -> None:
        reference = tree.get(row.element)
        if (
            not isinstance(reference, dict)
            or "encounter" in tree
            or self._target(reference) == "EpisodeOfCare"
        ):
            return
        tree["encounter"] = tree.pop(row.element)
        self._changed(place, row.element, "encounter", row.rule)

    def _target(self, reference: Tree) -> str | None:
        """The type of resource a Reference leads to, as far as the message says."""
        url = reference.get("reference")
        if not isinstance(url, str):
            return None
        return self.types_by_url.get(url) or next(iter(re.findall(r"([A-Z][A-Za-z]+)/[^/]+$", url)), None)

    def _implied(self, row: Row, name: str, code: str, tree: Tree, path: str) -> None:
        value = tree.get(row.element)
        if not isinstance(value, bool):
            return
        self._changed(f"{path}.{row.element}", tree.pop(row.element), None, row.rule)
        if value and tree.get(name) != code and isinstance(tree.get(name), str | None):
            self._changed(f"{path}.{name}", tree.get(name), code, row.rule)
            tree[name] = code

    def _pick(self, row: Row, child: str, to: str, tree: Tree, place: str) -> None:
        value = tree.get(row.element)
        objects: list[Any] = value if isinstance(value, list) else [value]
        if not objects or not all(isinstance(each, dict) and child in each for each in objects):
            return
        picked = [each[child] for each in objects]
        flat = [one for each in picked for one in (each if isinstance(each, list) else [each])]
        del tree[row.element]
        if not _put(tree, [to], flat if isinstance(value, list) or isinstance(picked[0], list) else flat[0]):
            tree[row.element] = value
            return
        self._changed(place, f"{row.element}.{child}", to, row.rule)
        for index, each in enumerate(objects):
            where = f"{place}[{index}]" if isinstance(value, list) else place
            for name, other in each.items():
                if name != child:
                    self.unmapped.append(Unmapped(f"{where}.{name}", other, _NO_PLACE))

    # --- what needs no row -----------------------------------------------------------------------------------------

    def _fit(
        self,
        tree: Tree,
        old: Mapping[str, Element],
        new: Mapping[str, Element],
        path: str,
        came_from: Mapping[str, str],
    ) -> None:
        """What R4 does not have goes; what has another type or number there is made so."""
        for name in list(tree):
            base = name.removeprefix("_")
            was, now = old.get(base), new.get(base)
            if now is None:
                if was is not None:
                    self.unmapped.append(Unmapped(f"{path}.{name}", tree.pop(name), _NO_PLACE))
            elif name != base:
                if not now.primitive:
                    self.unmapped.append(Unmapped(f"{path}.{name}", tree.pop(name), _NO_PLACE))
            else:
                sent_as = base if was is not None else came_from.get(base, base)
                was = was or old.get(sent_as)
                if was is not None:
                    self._retype(tree, name, was, now, f"{path}.{sent_as}")
                    self._count(tree, name, was, now, f"{path}.{sent_as}")

    def _retype(self, tree: Tree, name: str, was: Element, now: Element, place: str) -> None:
        make = _MAKE.get((was.type, now.type))
        if make is None:
            return
        value, (rule, formed) = tree[name], make
        values = value if isinstance(value, list) else [value]
        made = [formed(each) for each in values]
        if any(each is None for each in made):
            # Already of R4's type (a rule put it there), or of no type that STU3 has here.
            return
        tree[name] = made if isinstance(value, list) else made[0]
        self._changed(place, value, tree[name], rule)

    def _count(self, tree: Tree, name: str, was: Element, now: Element, place: str) -> None:
        value = tree[name]
        if now.repeats and not was.repeats and not isinstance(value, list):
            tree[name] = [value]
            if f"_{name}" in tree and not isinstance(tree[f"_{name}"], list):
                tree[f"_{name}"] = [tree[f"_{name}"]]
            self._changed(place, "one", "a list of one", "stu3-list")
        elif was.repeats and not now.repeats and isinstance(value, list) and value:
            tree[name] = value[0]
            self._changed(place, "a list", "its first", "stu3-single")
            self.unmapped += [
                Unmapped(f"{place}[{index}]", each, "R4 has one of these; the first was kept")
                for index, each in enumerate(value)
                if index
            ]

    def _require(self, tree: Tree, new_type: str, path: str) -> None:
        for name, any_of in _REQUIRED.get(new_type, ()):
            self._unknown_unless(tree, name, any_of, path)
        if new_type in _REQUIRED_CODES:
            name, code = _REQUIRED_CODES[new_type]
            if name not in tree:
                tree[name] = code
                self._changed(f"{path}.{name}", None, code, "stu3-required")
        if new_type == "MessageHeader":
            for each in _objects(tree.get("destination")):
                self._unknown_unless(
                    each, "_endpoint", frozenset(("endpoint", "_endpoint")), f"{path}.destination"
                )

    def _unknown_unless(self, tree: Tree, name: str, any_of: frozenset[str], path: str) -> None:
        if not any_of & tree.keys():
            absent = {"extension": [{"url": _ABSENT, "valueCode": "unknown"}]}
            tree[name] = [absent] if name == "category" else absent
            self._changed(f"{path}.{name.removeprefix('_')}", None, "unknown", "stu3-required")

    def _changed(self, path: str, before: Any, after: Any, rule: str) -> None:
        self.changes.append(Change(path, before, after, rule))

    def said_otherwise(self, tree: Tree, name: str, path: str, rule: str, say: Callable[[str], str]) -> None:
        """A text that R4 spells otherwise."""
        before = tree.get(name)
        if isinstance(before, str) and (after := say(before)) != before:
            tree[name] = after
            self._changed(f"{path}.{name}", before, after, rule)

    def moved(self, path: str, before: Any, after: Any, rule: str) -> None:
        """Says a change, for the rules below."""
        self._changed(path, before, after, rule)


def _types_by_url(tree: Tree) -> dict[str, str]:
    """What an entry is called (fullUrl) → its resource type, for the entries of a Bundle."""
    return {
        entry["fullUrl"]: entry["resource"]["resourceType"]
        for entry in _objects(tree.get("entry"))
        if isinstance(entry.get("fullUrl"), str)
        and isinstance(entry.get("resource"), dict)
        and isinstance(entry["resource"].get("resourceType"), str)
    }


def _emptied(before: Any, after: Any) -> bool:
    """Whether all that was in an object, or in a list of them, went elsewhere: FHIR has no empty objects."""
    if isinstance(after, list):
        return bool(after) and all(map(_emptied, before, after))
    return bool(after == {} and before != {})


def _objects(value: Any) -> Iterator[Tree]:
    yield from (each for each in value if isinstance(each, dict)) if isinstance(value, list) else ()


def _formed(value: Any, how: Move) -> Any:
    """The value in the form its place has, or None when it is not what STU3 has here."""
    if isinstance(value, list):
        formed = [_formed(each, how) for each in value]
        return None if not formed or any(each is None for each in formed) else formed
    match how.form:
        case As.IS:
            return value
        case As.CONCEPT:
            return {"coding": [{"system": how.system, "code": value}]} if isinstance(value, str) else None
        case As.TEXT:
            return {"text": value} if isinstance(value, str) else None
        case As.REFERENCE:
            return {"reference": value} if isinstance(value, str) else None
        case As.IDENTIFIER:
            return {"identifier": value} if isinstance(value, dict) else None


def _put(tree: Tree, steps: list[str], value: Any) -> bool:
    """Puts ``value`` where the steps lead; False, and nothing changed, when something else is there."""
    name, last = steps[0].removesuffix("[]"), len(steps) == 1
    listed = steps[0].endswith("[]")
    there = tree.get(name)
    if last and listed:
        if not isinstance(there, list | None):
            return False
        tree[name] = [*(there or ()), *(value if isinstance(value, list) else (value,))]
        return True
    if last:
        if isinstance(there, list) and isinstance(value, list):
            tree[name] = [*there, *value]
            return True
        if there is not None:
            return False
        tree[name] = value
        return True
    if listed:
        if there is None or there == []:
            there = [{}]
        inner = there[0] if isinstance(there, list) else None
    else:
        there = {} if there is None else there
        inner = there
    if not isinstance(inner, dict) or not _put(inner, steps[1:], value):
        return False
    tree[name] = there
    return True


def _concept_of_coding(value: Any) -> Tree | None:
    return {"coding": [value]} if isinstance(value, dict) and not value.keys() & {"coding", "text"} else None


def _concept_of_text(value: Any) -> Tree | None:
    return {"text": value} if isinstance(value, str) else None


def _canonical(value: Any) -> str | None:
    url = value.get("reference") if isinstance(value, dict) else None
    return url if isinstance(url, str) else None


_MAKE: Mapping[tuple[str, str], tuple[str, Callable[[Any], Any]]] = {
    ("Coding", "CodeableConcept"): ("stu3-concept", _concept_of_coding),
    ("string", "CodeableConcept"): ("stu3-concept", _concept_of_text),
    ("uri", "CodeableConcept"): ("stu3-concept", _concept_of_text),
    ("Reference", "canonical"): ("stu3-canonical", _canonical),
}


# ---------------------------------------------------------------------------------------------------------------
# Rules that look at more than one element. Each gets an object whose content is converted, under its STU3 names.
# ---------------------------------------------------------------------------------------------------------------


def _bundle(turn: _Turn, tree: Tree, path: str) -> None:
    """A MessageHeader's timestamp had no place; the Bundle has one."""
    for each in [each for each in turn.unmapped if each.path.startswith(f"{path}.entry[")]:
        if not _HEADER_TIMESTAMP.fullmatch(each.path.removeprefix(f"{path}.entry[")):
            continue
        if tree.get("timestamp", each.value) == each.value:
            tree["timestamp"] = each.value
            turn.unmapped.remove(each)
            turn.moved(each.path, each.value, "Bundle.timestamp", "stu3-message-header-timestamp")


_HEADER_TIMESTAMP = re.compile(r"[0-9]+\]\.resource\.timestamp")


def _entry(turn: _Turn, tree: Tree, path: str) -> None:
    for name in ("fullUrl", "url", "location"):
        turn.said_otherwise(tree, name, path, "stu3-resource-type", _new_name)


def _new_name(url: str) -> str:
    return _OLD_NAME.sub(lambda found: RESOURCE_TYPES[found[1]], url)


def _reference(turn: _Turn, tree: Tree, path: str) -> None:
    turn.said_otherwise(tree, "reference", path, "stu3-resource-type", _new_name)


def _extension(turn: _Turn, tree: Tree, path: str) -> None:
    turn.said_otherwise(tree, "url", path, "stu3-extension", extension_url)


def _coding(turn: _Turn, tree: Tree, path: str) -> None:
    turn.said_otherwise(tree, "system", path, "stu3-code-system", code_system)


def _meta(turn: _Turn, tree: Tree, path: str) -> None:
    profiles = tree.get("profile")
    if not isinstance(profiles, list) or "_profile" in tree:
        return
    kept = [each for each in profiles if not (isinstance(each, str) and _OLD_PROFILE.search(each))]
    if len(kept) == len(profiles):
        return
    for index, each in enumerate(profiles):
        if each not in kept:
            turn.moved(f"{path}.profile[{index}]", each, None, "stu3-profile")
    tree["profile"] = kept
    if not kept:
        del tree["profile"]


def _encounter(turn: _Turn, tree: Tree, path: str) -> None:
    extensions, stay = tree.get("extension"), tree.get("hospitalization", {})
    if not isinstance(extensions, list) or not isinstance(stay, dict):
        return
    found = [each for each in extensions if isinstance(each, dict) and each.get("url") == _ADMISSION_METHOD]
    if not found or not isinstance(stay.get("extension", []), list):
        return
    stay["extension"] = [*stay.get("extension", ()), *found]
    tree["hospitalization"] = stay
    tree["extension"] = [each for each in extensions if each not in found]
    if not tree["extension"]:
        del tree["extension"]
    turn.moved(f"{path}.extension", "extension", "hospitalization.extension", "stu3-admission-method")


_RELATED = {"has-member": "hasMember", "derived-from": "derivedFrom"}


def _observation(turn: _Turn, tree: Tree, path: str) -> None:
    related = tree.get("related")
    if not isinstance(related, list):
        return
    left = []
    for index, each in enumerate(related):
        kind = each.get("type") if isinstance(each, dict) else None
        name = _RELATED.get(kind) if isinstance(kind, str) else None
        if name is None or set(each) != {"type", "target"} or not isinstance(tree.get(name, []), list):
            left.append(each)
            continue
        tree.setdefault(name, []).append(each["target"])
        turn.moved(f"{path}.related[{index}]", kind, name, "stu3-observation-related")
    tree["related"] = left
    if not left:
        del tree["related"]


def _enable_when(turn: _Turn, tree: Tree, path: str) -> None:
    if "operator" not in tree:
        tree["operator"] = "exists" if "hasAnswer" in tree else "="
        turn.moved(f"{path}.operator", None, tree["operator"], "stu3-question-enabled")


def _medication_statement(turn: _Turn, tree: Tree, path: str) -> None:
    taken = tree.get("taken")
    if taken != "n" or not isinstance(tree.get("status"), str):
        return
    turn.moved(f"{path}.taken", tree.pop("taken"), None, "stu3-not-taken")
    turn.moved(f"{path}.status", tree["status"], "not-taken", "stu3-not-taken")
    tree["status"] = "not-taken"


def _care_plan(turn: _Turn, tree: Tree, path: str) -> None:
    """R4 has one author; the others contributed."""
    authors = tree.get("author")
    if isinstance(authors, list) and len(authors) > 1 and "contributor" not in tree:
        tree["author"], tree["contributor"] = authors[:1], authors[1:]
        turn.moved(f"{path}.author", "author", "contributor", "stu3-care-plan-author")


_OID = "urn:oid:"


def _imaging_study(turn: _Turn, tree: Tree, path: str) -> None:
    uid, identifiers = tree.get("uid"), tree.get("identifier", [])
    if isinstance(uid, str) and isinstance(identifiers, list) and "_uid" not in tree:
        said = {"system": "urn:dicom:uid", "value": tree.pop("uid")}
        tree["identifier"] = [*identifiers, said]
        turn.moved(f"{path}.uid", "uid", "identifier", "stu3-dicom-uid")


def _image(turn: _Turn, tree: Tree, path: str) -> None:
    """A series or an instance of an ImagingStudy."""
    turn.said_otherwise(tree, "uid", path, "stu3-dicom-uid", lambda uid: uid.removeprefix(_OID))
    kind = tree.get("sopClass")
    if isinstance(kind, str):
        tree["sopClass"] = {"system": "urn:ietf:rfc3986", "code": kind}
        turn.moved(f"{path}.sopClass", kind, tree["sopClass"], "stu3-dicom-uid")


_Special = Callable[[_Turn, Tree, str], None]
_SPECIAL: Mapping[str, _Special] = {
    "Bundle": _bundle,
    "BundleEntry": _entry,
    "BundleEntryRequest": _entry,
    "BundleEntryResponse": _entry,
    "Reference": _reference,
    "Extension": _extension,
    "Coding": _coding,
    "Meta": _meta,
    "Encounter": _encounter,
    "Observation": _observation,
    "QuestionnaireItemEnableWhen": _enable_when,
    "MedicationStatement": _medication_statement,
    "CarePlan": _care_plan,
    "ImagingStudy": _imaging_study,
    "ImagingStudySeries": _image,
    "ImagingStudySeriesInstance": _image,
}
