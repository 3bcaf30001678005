"""Finding one's way in a parsed FHIR message: entries, references, identifiers, codes.

Works on plain dicts whose structure was checked (`hub.fhir.structure`), so that nothing is parsed twice.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hub.domain.ids import Identifier, parse_ods
from hub.domain.value import value
from hub.fhir.systems import ODS_SYSTEMS

Tree = dict[str, Any]

SYSTEM_MAX = 300
VALUE_MAX = 255
"""Characters of an identifier that the store can index. Longer ones stay in the message and name nothing."""


def has_many_brackets(raw: bytes, levels: int) -> bool:
    """Whether a JSON text could be that deep: each level opens with a bracket, and most messages have few."""
    return raw.count(b"{") + raw.count(b"[") > levels


def deeper_than(tree: Any, levels: int) -> bool:
    """Whether a parsed JSON text has more levels; not by recursion."""
    layer = [tree]
    for _ in range(levels + 1):
        layer = (
            [
                child
                for node in layer
                for child in (node.values() if type(node) is dict else node)
                if type(child) is dict or type(child) is list
            ]
            if layer and type(layer[0]) in {dict, list}
            else []
        )
        if not layer:
            return False
    return True


@value
class Entry:
    """One resource and the URL that references in the same Bundle use for it.

    ``included``: it came along with what a search was for (FHIR R4, Bundle.entry.search.mode include).
    """

    full_url: str
    resource: Tree
    path: str
    included: bool = False


class Resources:
    """The resources of one message, found by type or by reference."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries = tuple(entries)
        self._by_url = {entry.full_url: entry for entry in entries}
        self._by_type: dict[str, list[Entry]] = {}
        for entry in entries:
            resource_type, identity = entry.resource["resourceType"], entry.resource.get("id")
            self._by_type.setdefault(resource_type, []).append(entry)
            if identity is not None:
                self._by_url.setdefault(f"{resource_type}/{identity}", entry)

    def of_type(self, resource_type: str) -> Sequence[Entry]:
        """All resources of a type, in the order they came."""
        return self._by_type.get(resource_type, ())

    def resolve(self, reference: Mapping[str, Any] | None, *, inside: Tree | None = None) -> Tree | None:
        """The resource a Reference leads to inside this message (contained ones of ``inside`` too), or None."""
        url = (reference or {}).get("reference")
        if not isinstance(url, str):
            return None
        if url.startswith("#") and inside is not None:
            contained = inside.get("contained", ())
            return next((each for each in contained if each.get("id") == url[1:]), None)
        entry = self._by_url.get(url) or self._by_url.get("/".join(url.rsplit("/", 2)[-2:]))
        return entry.resource if entry else None


def identifiers(resource: Mapping[str, Any] | None) -> Iterator[Identifier]:
    """The identifiers that have a system and a value of sane length; one without a system names nothing."""
    found = resource.get("identifier") if resource else None
    if not found:
        return
    for each in (found,) if isinstance(found, dict) else found:
        if not isinstance(each, dict):
            continue
        system, value = each.get("system"), each.get("value")
        if system and value and len(system) <= SYSTEM_MAX and len(value) <= VALUE_MAX:
            yield Identifier(system, value)


def ods_code(resource: Mapping[str, Any] | None) -> str | None:
    """The first ODS code among the identifiers of an Organization, a Location or a logical Reference."""
    for each in identifiers(resource):
        if each.system in ODS_SYSTEMS:
            return parse_ods(each.value)
    return None


def codes(concept: Mapping[str, Any] | None) -> tuple[Identifier, ...]:
    """The codings of a CodeableConcept as (system, code)."""
    if not concept:
        return ()
    return tuple(
        [
            Identifier(coding.get("system", ""), coding["code"])
            for coding in concept.get("coding", ())
            if coding.get("code")
        ]
    )


def code_of(concept: Mapping[str, Any] | None) -> str | None:
    """The first code of a CodeableConcept, whatever its system."""
    for coding in concept.get("coding", ()) if concept else ():
        code: str | None = coding.get("code")
        if code:
            return code
    return None
