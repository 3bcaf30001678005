"""Step 1½, repair: what systems commonly get wrong is mended before FHIR's rules are applied strictly.

* Every repair is a rule with an id (`rules.RULES`), can be switched off for a trust, and is remembered: as a
  `Change` when a value was mended or dropped, as `Unmapped` when it has no place in FHIR R4. Nothing is lost.
* Nothing is guessed: a code of a required set that no map knows (but see ``code-unknown``), a resource without its required elements or two
  different resources under one URL stay as they are and are said in ``issues``; the caller quarantines.
* ``meta.profile`` is not looked at: it is a hint of the sender's, and often a wrong one.
* A clean message costs one structure check, which its caller needs anyway, and a glance (`glance.py`).
* It may run again on what it has mended, and then changes nothing.
"""

import re
from typing import Any

from hub.codes.book import CodeBook
from hub.domain.message import Change, Unmapped
from hub.domain.value import value
from hub.fhir.elements import FhirVersion
from hub.fhir.structure import StructureIssue, check
from hub.fhir.tree import Tree
from hub.journey.repair.glance import nothing_to_mend
from hub.journey.repair.rules import RULES, Rule, RuleId
from hub.journey.repair.walk import Namespaces, Walk

__all__ = ["RULES", "Namespaces", "Repaired", "Rule", "RuleId", "repair", "repair_stu3"]

_ROUNDS = 5
"""One walk mends what it can see; a second sees what the first laid bare. More than three were never needed."""


@value
class Repaired:
    """What was done to a message, and what is still wrong with it."""

    changes: tuple[Change, ...] = ()
    unmapped: tuple[Unmapped, ...] = ()
    issues: tuple[StructureIssue, ...] = ()
    """() when the message is sound. At most as many as were asked for."""

    @property
    def tz_assumed(self) -> bool:
        """Whether a time had no offset and the trust's own clock was assumed."""
        return self._did(RuleId.TZ_ASSUMED)

    @property
    def class_assumed(self) -> bool:
        """Whether an Encounter.class was inferred or is unknown."""
        return self._did(RuleId.CLASS_ASSUMED)

    def _did(self, rule: RuleId) -> bool:
        return any(change.rule == rule for change in self.changes)


_CLEAN = Repaired()
_NO_BOOK = CodeBook()


def repair(
    tree: Tree,
    switched_off: frozenset[str] = frozenset(),
    zone: str = "Europe/London",
    namespaces: Namespaces | None = None,
    book: CodeBook = _NO_BOOK,
    *,
    limit: int = 5,
) -> Repaired:
    """Mend ``tree`` in place (it was parsed for this message and nobody else holds it) and say what was done.

    In: an R4 tree as orjson parses it, at most 64 deep; ids of rules that are off for this trust; the zone its
    clocks are in; and per resource type the systems of identifiers that come without one,
    ``{"Encounter": {"FIN NBR": "urn:…", "*": "urn:…"}}``; the sender's code book.
    Out: what changed, what has no place, and at most ``limit`` things that are still wrong.
    Raises zoneinfo.ZoneInfoNotFoundError for a zone that the machine does not know, and nothing else.
    """
    namespaces = namespaces or {}
    issues = check(tree, limit=limit)
    if not issues and nothing_to_mend(tree, namespaces):
        return _CLEAN
    if not isinstance(tree, dict):
        return Repaired(issues=issues)
    walk = Walk(switched_off, zone, namespaces, _event(tree), book)
    for _ in range(_ROUNDS):
        done = len(walk.changes) + len(walk.unmapped)
        walk.message(tree)
        issues = check(tree, limit=limit)
        if done == len(walk.changes) + len(walk.unmapped) or (
            not issues and nothing_to_mend(tree, namespaces)
        ):
            break
    return Repaired(tuple(walk.changes), tuple(walk.unmapped), (issues + _ambiguous_urls(tree))[:limit])


def repair_stu3(
    tree: Tree,
    switched_off: frozenset[str] = frozenset(),
    zone: str = "Europe/London",
    book: CodeBook = _NO_BOOK,
    *,
    limit: int = 5,
) -> Repaired:
    """Mend an STU3 ``tree`` in place as far as STU3's own structure is broken, before it becomes R4.

    The same rules as in `repair`, whose arguments these are. What does not touch the structure (identifiers without a
    system, an Encounter without a class, elements that STU3 does not know) is left as it is: `repair` follows when the message is R4.
    """
    issues = check(tree, FhirVersion.STU3, limit=limit)
    if not issues:
        return _CLEAN
    walk = Walk(switched_off, zone, {}, "", book, FhirVersion.STU3)
    for _ in range(_ROUNDS):
        done = len(walk.changes) + len(walk.unmapped)
        walk.message(tree)
        issues = check(tree, FhirVersion.STU3, limit=limit)
        if not issues or done == len(walk.changes) + len(walk.unmapped):
            break
    walk.put_back()
    return Repaired(tuple(walk.changes), tuple(walk.unmapped), issues)


_V2_EVENT = re.compile(r"(?:ADT[_^])?(A[0-9]{2})")


def _event(tree: Tree) -> str:
    """The HL7 v2 event (``A01``) that the message says it tells, or ""."""
    for entry in _entries(tree):
        header = entry.get("resource")
        if isinstance(header, dict) and header.get("resourceType") == "MessageHeader":
            coding = header.get("eventCoding")
            code = coding.get("code") if isinstance(coding, dict) else None
            found = _V2_EVENT.fullmatch(code.strip().upper()) if isinstance(code, str) else None
            return found[1] if found else ""
    return ""


def _ambiguous_urls(tree: Tree) -> tuple[StructureIssue, ...]:
    """bdl-7: one URL for two different resources; a reference to it could mean either."""
    seen: set[tuple[Any, Any]] = set()
    issues: list[StructureIssue] = []
    for index, entry in enumerate(_entries(tree)):
        url, resource = entry.get("fullUrl"), entry.get("resource")
        if not isinstance(url, str) or not isinstance(resource, dict):
            continue
        meta = resource.get("meta")
        version = meta.get("versionId") if isinstance(meta, dict) else None
        known = (url, version if isinstance(version, str) else None)
        if known in seen:
            issues.append(
                StructureIssue(
                    f"Bundle.entry[{index}].fullUrl", "invariant", "given twice, for two resources (bdl-7)"
                )
            )
        seen.add(known)
    return tuple(issues)


def _entries(tree: Tree) -> list[Tree]:
    entries = tree.get("entry") if tree.get("resourceType") == "Bundle" else None
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
