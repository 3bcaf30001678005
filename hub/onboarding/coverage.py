"""What a trust's worked examples show of its codes: which codes came out, which lines of which maps were used, what no map knew.

A code that no example holds is a code that nobody has seen translated; the lists say where the next example is wanted.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hub.codes.book import CodeBook
from hub.domain.message import FlagCode
from hub.journey.explain import Explanation
from hub.journey.repair import RuleId

_LINE = re.compile(r"(?P<map>.+), line (?P<line>[0-9]+)(, .*)?")
_STEP = re.compile(r"[^.\[\]]+")
_BARE = {
    "gender": "http://hl7.org/fhir/administrative-gender",
    "priority": "http://hl7.org/fhir/request-priority",
    "Encounter.status": "http://hl7.org/fhir/encounter-status",
    "ServiceRequest.status": "http://hl7.org/fhir/request-status",
    "Task.status": "http://hl7.org/fhir/task-status",
}
"""Codes that FHIR writes without their system, by element or by one type's element."""

Explained = Sequence[tuple[str, Explanation]]
"""Each example's name and what the hub makes of it."""


@dataclass(frozen=True, slots=True)
class MapUse:
    """One ConceptMap: the local codes that an example holds, and those that none does."""

    used: tuple[str, ...]
    unused: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Coverage:
    """What the examples of one trust show."""

    examples: int
    code_sets: Mapping[str, tuple[tuple[str, ...], int]]
    """A code set's system → the codes of it that came out, and how many it has."""
    maps: Mapping[str, MapUse]
    """The trust's own maps, and the shared ones that were used, by file."""
    unmapped: tuple[tuple[str, str, str], ...]
    """Example, path and code of what no map knew."""

    def as_json(self) -> dict[str, Any]:
        return {
            "examples": self.examples,
            "code_sets": {
                system: {"seen": list(seen), "of": size} for system, (seen, size) in self.code_sets.items()
            },
            "maps": {
                name: {"used": list(each.used), "unused": list(each.unused)}
                for name, each in self.maps.items()
            },
            "unmapped": [
                {"example": example, "path": path, "code": code} for example, path, code in self.unmapped
            ],
        }


def coverage(explained: Explained, book: CodeBook, ods: str) -> Coverage:
    """Count what the examples of the trust ``ods`` show."""
    seen: dict[str, set[str]] = defaultdict(set)
    for _, explanation in explained:
        for system, code in _codes(explanation.canonical):
            if book.has(system, code):
                seen[system].add(code)
    return Coverage(
        examples=len(explained),
        code_sets={
            system: (tuple(sorted(seen[system])), len(book.systems[system])) for system in sorted(seen)
        },
        maps=dict(_map_use(explained, book, f"trusts/{ods}/")),
        unmapped=tuple(each for name, explanation in explained for each in _unmapped(name, explanation)),
    )


def _codes(node: Any, resource_type: str = "") -> Iterator[tuple[str, str]]:
    """Every (system, code) of a canonical message."""
    if isinstance(node, Mapping):
        resource_type = node.get("resourceType", resource_type)
        if isinstance(node.get("system"), str) and isinstance(node.get("code"), str):
            yield node["system"], node["code"]
        for name, value in node.items():
            system = _BARE.get(f"{resource_type}.{name}") or _BARE.get(name)
            if system is not None and isinstance(value, str):
                yield system, value
            yield from _codes(value, resource_type)
    elif isinstance(node, Sequence) and not isinstance(node, str):
        for each in node:
            yield from _codes(each, resource_type)


def _map_use(explained: Explained, book: CodeBook, own: str) -> Iterator[tuple[str, MapUse]]:
    used: dict[str, set[int]] = defaultdict(set)
    for _, explanation in explained:
        for change in explanation.changes:
            found = _LINE.fullmatch(change.source)
            if found:
                used[found["map"]].add(int(found["line"]))
    lines: dict[str, dict[int, str]] = defaultdict(dict)
    for code, translation in book.elements():
        found = _LINE.fullmatch(translation.source)
        if found:
            lines[found["map"]][int(found["line"])] = code
    for name in sorted(lines, key=lambda each: (not each.startswith(own), each)):
        if name.startswith(own) or used[name]:
            mine = sorted(lines[name].items())
            yield (
                name,
                MapUse(
                    tuple(code for line, code in mine if line in used[name]),
                    tuple(code for line, code in mine if line not in used[name]),
                ),
            )


def _unmapped(name: str, explanation: Explanation) -> Iterator[tuple[str, str, str]]:
    set_aside = {each.path: each.value for each in explanation.unmapped if each.why == RuleId.CODE_UNKNOWN}
    for issue in explanation.issues:
        if issue["code"] == FlagCode.CODE_UNMAPPED:
            path = issue["path"]
            yield name, path, _said(set_aside.get(path) or _at(explanation.canonical, path))


def _said(value: Any) -> str:
    """The codes of a Coding or a CodeableConcept."""
    if not isinstance(value, Mapping):
        return str(value or "")
    codings = value.get("coding", (value,))
    return " ".join(f"{each.get('system', '')}|{each.get('code', '')}" for each in codings)


def _at(tree: Any, path: str) -> Any:
    for step in _STEP.findall(path)[1:]:
        if isinstance(tree, Mapping):
            tree = tree.get(step)
        elif isinstance(tree, Sequence) and not isinstance(tree, str) and int(step) < len(tree):
            tree = tree[int(step)]
        else:
            return None
    return tree
