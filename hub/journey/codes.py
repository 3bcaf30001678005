"""Part of step 2: local codes become national ones, beside what was sent. The maps are data; this only applies them.

Rules (`Change.rule`):
 * ``code-mapped``        a ConceptMap knows the code: the national coding stands first, the local one behind it
 * ``code-mapped-loosely`` the same, where the map says that the meanings are not equal
 * ``code-order``         a national coding that stood behind a local one stands first
 * ``priority-derived``   a request that has an ambulance category and no priority gets the one that the map gives the category
 * ``extension-place``    UK Core has this extension on the hospitalization, not on the Encounter
 * ``extension-url``      an extension of a retired family under its UK Core URL
 * ``extension-type``     PDS writes an address key and another kind of contact as UK Core did before 3.0: a Coding is a CodeableConcept now,
   and the kind of contact stands on its ``system``
 * ``profile-claim``      what the sender says its resource conforms to is a hint of its own, and is not passed on
 * ``contained-version``  what is contained has no version of its own: FHIR allows none there (dom-4)
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hub.codes.book import CodeBook, Translation
from hub.domain.message import Change, Flag, FlagCode
from hub.fhir.tree import Tree

_UK = "https://fhir.hl7.org.uk/CodeSystem/UKCore-"
_STRUCTURE = "https://fhir.hl7.org.uk/StructureDefinition/Extension-UKCore-"


@dataclass(frozen=True, slots=True)
class _Kind:
    """A kind of code: the national systems it may end in, those of the nation first."""

    england: tuple[str, ...]
    wales: tuple[str, ...] = ()
    open: bool = False
    """Other kinds of code stand in the same place, so one that no map knows is no doubt."""

    def systems(self, nation: str) -> tuple[str, ...]:
        return (*self.wales, *self.england) if nation == "wales" else (*self.england, *self.wales)


def _national(name: str, *more: str) -> _Kind:
    return _Kind((f"{_UK}{name}England", *more), (f"{_UK}{name}Wales",))


ENCOUNTER_CLASS = _Kind(("http://terminology.hl7.org/CodeSystem/v3-ActCode",))
SOURCE_OF_ADMISSION = _national("SourceOfAdmission")
DISCHARGE_DESTINATION = _national(
    "DischargeDestination", "https://transfer-hub.example/CodeSystem/discharge-destination-current"
)
SPECIALTY = _Kind((f"{_UK}PracticeSettingCode",))
TRANSPORT_PRIORITY = _Kind(("https://fhir.nhs.uk/CodeSystem/arp-priority-codes",), open=True)
REQUEST_PRIORITY = _Kind(("http://hl7.org/fhir/request-priority",))
VERIFICATION = _Kind((f"{_UK}NHSNumberVerificationStatusEngland",))

_HOLDS_NO_SUCH_CODE = frozenset({f"{_UK}NHSNumberVerificationStatus"})
"""Retired systems under which PDS gives the codes of the national one. Beside that the coding would say a code that there is not."""

ELEMENTS: dict[str, tuple[tuple[tuple[str, ...], _Kind], ...]] = {
    "Encounter": (
        (("class",), ENCOUNTER_CLASS),
        (("serviceType",), SPECIALTY),
        (("hospitalization", "admitSource"), SOURCE_OF_ADMISSION),
        (("hospitalization", "dischargeDisposition"), DISCHARGE_DESTINATION),
    ),
    "ServiceRequest": (
        (("performerType",), SPECIALTY),
        (("category",), TRANSPORT_PRIORITY),
        (("orderDetail",), TRANSPORT_PRIORITY),
    ),
    "PractitionerRole": ((("specialty",), SPECIALTY),),
}
"""Which element of which resource holds which kind of code."""

EXTENSIONS: dict[str, _Kind] = {
    "AdmissionMethod": _national("AdmissionMethod"),
    "DischargeMethod": _national("DischargeMethod"),
    "NHSNumberVerificationStatus": VERIFICATION,
    "LegalStatusClassification": _national("LegalStatusClassification"),
    "LegalStatusContext": _Kind((f"{_UK}LegalStatusContext",)),
}
"""Extensions with one code, by the family name in their URL, whatever host, version or project it stands under."""

_NESTED = {
    "LegalStatus": {
        "LegalStatusClassification": "legalStatusClassification",
        "LegalStatusContext": "legalStatusContext",
    }
}
"""Extensions made of others, by family: what stands within, and its URL there (UK Core, Extension-UKCore-LegalStatus)."""

_ON_HOSPITALIZATION = frozenset({"AdmissionMethod", "DischargeMethod"})

_WHERE_EXTENSIONS = {
    "Encounter": (("extension",), ("hospitalization", "extension")),
    "Patient": (("identifier", "extension"),),
}


def to_national(tree: Tree, book: CodeBook, nation: str) -> tuple[tuple[Change, ...], tuple[Flag, ...]]:
    """Change an R4 tree (a Bundle or one resource) in place; what changed, and which codes no map knew.

    ``nation`` is where the sender is: the same number can mean different things in England and Wales.
    """
    done = _Done(book, nation, [], [])
    if tree["resourceType"] == "Bundle":
        done.profile_claim(tree, "Bundle")
    for path, resource in _resources(tree):
        if "meta" in resource:
            done.profile_claim(resource, path)
        if "contained" in resource or (resource["resourceType"] == "Bundle" and "entry" in resource):
            for inside, each in _inside(resource, path):
                done.profile_claim(each, inside)
                if inside.endswith("]"):
                    done.contained_meta(each, inside)
        resource_type = resource["resourceType"]
        for steps, kind in ELEMENTS.get(resource_type, ()):
            if steps[0] in resource:
                for where, value in _at(resource, steps, path):
                    done.element(value, kind, where)
        if resource_type == "ServiceRequest" and "priority" not in resource:
            done.derived_priority(resource, path)
        if resource_type == "Encounter" and "extension" in resource:
            done.to_hospitalization(resource, path)
        if resource_type in _HAVE_CONTACTS:
            for holder, where in _holders_of_contacts(resource, path):
                done.contacts(holder, where)
        for steps in _WHERE_EXTENSIONS.get(resource_type, ()):
            if steps[0] in resource:
                for where, extension in _at(resource, steps, path):
                    done.extension(extension, where)
    return tuple(done.changes), tuple(done.flags)


def _resources(tree: Tree) -> Iterator[tuple[str, Tree]]:
    if tree["resourceType"] != "Bundle":
        yield tree["resourceType"], tree
        return
    for index, entry in enumerate(tree.get("entry", ())):
        resource = entry.get("resource")
        if resource is not None:
            yield f"Bundle.entry[{index}].resource", resource


_HAVE_CONTACTS = frozenset({"Patient", "RelatedPerson"})
_ADDRESS_KEY = f"{_STRUCTURE}AddressKey"
_OTHER_CONTACT = f"{_STRUCTURE}OtherContactSystem"


def _holders_of_contacts(person: Tree, path: str) -> Iterator[tuple[Tree, str]]:
    yield person, path
    for index, each in enumerate(person.get("contact", ())):
        yield each, f"{path}.contact[{index}]"


def _inside(resource: Tree, path: str) -> Iterator[tuple[str, Tree]]:
    """What a resource holds that is a resource too: what is contained, and a Bundle's entries (a document within a message)."""
    for index, each in enumerate(resource.get("contained", ())):
        yield f"{path}.contained[{index}]", each
    if resource["resourceType"] == "Bundle":
        for index, entry in enumerate(resource.get("entry", ())):
            if "resource" in entry:
                inside = f"{path}.entry[{index}].resource"
                yield inside, entry["resource"]
                yield from _inside(entry["resource"], inside)


def _at(node: Any, steps: tuple[str, ...], path: str) -> Iterator[tuple[str, Tree]]:
    """Every object that the steps lead to; lists are walked through."""
    for depth, step in enumerate(steps):
        node = node.get(step)
        path = f"{path}.{step}"
        if node is None:
            return
        if type(node) is list:
            for index, child in enumerate(node):
                if type(child) is dict:
                    yield from _at(child, steps[depth + 1 :], f"{path}[{index}]")
            return
    if type(node) is dict:
        yield path, node


@dataclass(slots=True)
class _Done:
    book: CodeBook
    nation: str
    changes: list[Change]
    flags: list[Flag]

    def profile_claim(self, resource: Tree, path: str) -> None:
        meta = resource.get("meta")
        if meta and "profile" in meta:
            self.changes.append(Change(f"{path}.meta.profile", meta.pop("profile"), None, "profile-claim"))
            if not meta:
                del resource["meta"]

    def contained_meta(self, resource: Tree, path: str) -> None:
        for name in ("versionId", "lastUpdated"):
            if name in resource.get("meta", ()):
                before = resource["meta"].pop(name)
                self.changes.append(Change(f"{path}.meta.{name}", before, None, "contained-version"))
        if not resource.get("meta", True):
            del resource["meta"]

    def contacts(self, holder: Tree, path: str) -> None:
        address = holder.get("address", ())
        for index, each in enumerate((address,) if isinstance(address, dict) else address):
            for at, key in enumerate(each.get("extension", ())):
                if key.get("url") == _ADDRESS_KEY:
                    place = f"{path}.address" if isinstance(address, dict) else f"{path}.address[{index}]"
                    for step, part in enumerate(key.get("extension", ())):
                        self.as_concept(part, f"{place}.extension[{at}].extension[{step}]")
        for index, each in enumerate(holder.get("telecom", ())):
            for at, kind in reversed(list(enumerate(each.get("extension", ())))):
                if kind.get("url") == _OTHER_CONTACT:
                    place = f"{path}.telecom[{index}]"
                    self.as_concept(kind, f"{place}.extension[{at}]")
                    each.setdefault("_system", {}).setdefault("extension", []).insert(
                        0, each["extension"].pop(at)
                    )
                    self.changes.append(
                        Change(
                            f"{place}.extension[{at}]", _OTHER_CONTACT, f"{place}.system", "extension-place"
                        )
                    )
                    if not each["extension"]:
                        del each["extension"]

    def as_concept(self, extension: Tree, path: str) -> None:
        if "valueCoding" in extension:
            coding = extension.pop("valueCoding")
            extension["valueCodeableConcept"] = {"coding": [coding]}
            self.changes.append(Change(path, "valueCoding", "valueCodeableConcept", "extension-type"))

    def to_hospitalization(self, encounter: Tree, path: str) -> None:
        """Moves what CareConnect had on the Encounter itself (UK Core, Extension-UKCore-AdmissionMethod, context)."""
        for index, extension in reversed(list(enumerate(encounter["extension"]))):
            if _family(extension.get("url", "")) not in _ON_HOSPITALIZATION:
                continue
            hospitalization = encounter.setdefault("hospitalization", {})
            hospitalization.setdefault("extension", []).insert(0, encounter["extension"].pop(index))
            after = f"{path}.hospitalization.extension"
            self.changes.append(
                Change(f"{path}.extension[{index}]", extension["url"], after, "extension-place")
            )
        if not encounter["extension"]:
            del encounter["extension"]

    def extension(self, extension: Tree, path: str) -> None:
        family = _family(extension.get("url", ""))
        if family in _NESTED:
            self.url(extension, f"{_STRUCTURE}{family}", path)
            for index, part in enumerate(extension.get("extension", ())):
                where = f"{path}.extension[{index}]"
                kind = _family(part.get("url", ""))
                if kind in _NESTED[family]:
                    self.url(part, _NESTED[family][kind], where)
                    self.concept_of(part, EXTENSIONS[kind], where)
        elif family is not None and "valueCodeableConcept" in extension:
            # UK Core has no LegalStatusClassification by itself, so there is no URL to give it.
            if family not in _NESTED["LegalStatus"]:
                self.url(extension, f"{_STRUCTURE}{family}", path)
            self.concept_of(extension, EXTENSIONS[family], path)

    def concept_of(self, extension: Tree, kind: _Kind, path: str) -> None:
        if "valueCodeableConcept" in extension:
            self.element(extension["valueCodeableConcept"], kind, f"{path}.valueCodeableConcept")

    def url(self, extension: Tree, url: str, path: str) -> None:
        if extension["url"] != url:
            self.changes.append(Change(f"{path}.url", extension["url"], url, "extension-url"))
            extension["url"] = url

    def derived_priority(self, request: Tree, path: str) -> None:
        """Hospitals sort by FHIR's priority and ambulance services by theirs; whoever sends only theirs is understood by both."""
        for name in ("category", "orderDetail"):
            for concept in request.get(name, ()):
                for coding in concept.get("coding", ()):
                    found = self._translation(coding, REQUEST_PRIORITY.england)
                    if found is not None and coding.get("system") in TRANSPORT_PRIORITY.england:
                        request["priority"] = found.code
                        self.changes.append(
                            Change(f"{path}.priority", None, found.code, "priority-derived", found.source)
                        )
                        return

    def element(self, value: Tree, kind: _Kind, path: str) -> None:
        """A CodeableConcept gets the national coding in front; a Coding becomes it."""
        wanted = kind.systems(self.nation)
        is_concept = "code" not in value
        codings: list[Tree] = value.get("coding", []) if is_concept else [value]
        if not codings or self._leads_with_national(codings, wanted, path):
            return
        for index, coding in enumerate(codings):
            found = self._translation(coding, wanted)
            if found is None:
                continue
            national = {"system": found.system, "code": found.code}
            if found.display:
                national["display"] = found.display
            loosely = found.equivalence not in {"equal", "equivalent"}
            rule = "code-mapped-loosely" if loosely else "code-mapped"
            where = f"{path}.coding[{index}]" if is_concept else path
            self.changes.append(Change(where, dict(coding), national, rule, found.source))
            if is_concept and found.equivalence == "equal" and coding.get("system") in _HOLDS_NO_SUCH_CODE:
                codings[index] = national
                codings.insert(0, codings.pop(index))
            elif is_concept:
                codings.insert(0, national)
            else:
                value.clear()
                value.update(national)
            return
        if not kind.open:
            self.flags.append(Flag(FlagCode.CODE_UNMAPPED, path))

    def _leads_with_national(self, codings: list[Tree], wanted: tuple[str, ...], path: str) -> bool:
        """Whether a national coding is there; it is moved to the front."""
        for index, coding in enumerate(codings):
            if coding.get("system") in wanted and self.book.has(coding["system"], coding.get("code", "")):
                if index:
                    before = list(codings)
                    codings.insert(0, codings.pop(index))
                    self.changes.append(Change(f"{path}.coding", before, list(codings), "code-order"))
                return True
        return False

    def _translation(self, coding: Tree, wanted: tuple[str, ...]) -> Translation | None:
        """The first translation into the nation's own system, else into another's."""
        possible = self.book.translations(coding.get("system", ""), coding.get("code", ""))
        return next((each for system in wanted for each in possible if each.system == system), None)


def _family(url: str) -> str | None:
    if (
        "dmission" not in url
        and "ischarge" not in url
        and "erification" not in url
        and "egalStatus" not in url
    ):
        return None
    name = url.rpartition("/")[2].removeprefix("Extension-")
    for prefix in ("CareConnect-", "UKCore-"):
        name = name.removeprefix(prefix)
    name = name.removesuffix("-1")
    name = name[:1].upper() + name[1:]
    return name if name in EXTENSIONS or name in _NESTED else None
