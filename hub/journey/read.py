"""Step 1, read: bytes → a FHIR R4 tree whose structure is sound, with what had to be mended, or why not."""

import codecs
import copy
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import orjson

from hub.codes.book import CodeBook
from hub.dialects import STU3, SUPPORTED, XML, Dialect, contradicts, detect
from hub.dialects.fhir_xml import parse_xml
from hub.dialects.stu3 import to_r4
from hub.dialects.stu3_rules import ONLY_IN_STU3
from hub.domain.message import Change, Flag, FlagCode, Received, Unmapped
from hub.domain.rejection import Rejection, Why
from hub.domain.trust import TrustProfile
from hub.domain.value import value
from hub.fhir import decimals, headers
from hub.fhir.elements import FhirVersion, resource_types
from hub.fhir.structure import StructureIssue, check
from hub.fhir.tree import Tree, deeper_than, has_many_brackets
from hub.journey.repair import RULES, Repaired, RuleId, repair, repair_stu3


@dataclass(frozen=True, slots=True)
class Limits:
    """What is too much to read."""

    bytes_max: int = 1_000_000
    depth_max: int = 64


@value
class Read:
    """A message as FHIR R4, structurally sound. ``tree`` belongs to whoever holds this."""

    tree: Tree
    dialect: Dialect
    changes: tuple[Change, ...] = ()
    unmapped: tuple[Unmapped, ...] = ()
    flags: tuple[Flag, ...] = ()


def read(
    received: Received, limits: Limits, trust: TrustProfile, book: CodeBook | None = None
) -> Read | Rejection:
    """The message as FHIR R4 in the sender's own codes, or a Rejection that names the first fault.

    Cheap questions come first, so that nothing large or deep is parsed. ``trust`` is the sender: its zone, and
    which repairs it does without; ``book`` its code book, for words where FHIR has a code.
    """
    raw = received.raw
    if received.unread:
        return Rejection(Why.PROCESS_KILLED, detail=received.unread)
    if not raw.strip():
        return Rejection(Why.MESSAGE_EMPTY)
    if len(raw) > limits.bytes_max:
        return Rejection(
            Why.MESSAGE_TOO_LARGE, detail=f"{len(raw)} bytes; at most {limits.bytes_max} are read."
        )
    content_type = received.headers.get(headers.CONTENT_TYPE, "")
    dialect = detect(content_type, raw)
    if dialect not in SUPPORTED:
        return Rejection(Why.DIALECT_NOT_SUPPORTED, detail=f"It looks like {dialect}.")
    tree = _tree(raw, dialect, limits)
    if isinstance(tree, Rejection):
        return tree
    if dialect in STU3:
        found = _sound_stu3(
            tree, lambda: _tree(raw, _IN_R4[dialect], limits), dialect, trust, book or CodeBook()
        )
    else:
        found = _sound(tree, dialect, trust, book or CodeBook())
        if found.unmapped or isinstance(found, Rejection):
            found = _in_its_own_version(found, raw, dialect, limits, trust, book or CodeBook())
    if isinstance(found, Read) and contradicts(content_type, dialect):
        return replace(found, flags=(*found.flags, Flag(FlagCode.CONTENT_TYPE_WRONG, headers.CONTENT_TYPE)))
    return found


def _tree(raw: bytes, dialect: Dialect, limits: Limits) -> Any:
    if dialect not in XML:
        return _parse(raw, limits)
    tree = parse_xml(raw, limits.depth_max, FhirVersion.STU3 if dialect in STU3 else FhirVersion.R4)
    if dialect in STU3 and isinstance(tree, Rejection) and tree.why is Why.RESOURCE_TYPE_UNKNOWN:
        return parse_xml(raw, limits.depth_max, FhirVersion.R4)
    return tree


_IN_R4 = {Dialect.FHIR_STU3_JSON: Dialect.FHIR_R4_JSON, Dialect.FHIR_STU3_XML: Dialect.FHIR_R4_XML}


def _sound_stu3(
    tree: Any, in_r4: Callable[[], Any], dialect: Dialect, trust: TrustProfile, book: CodeBook
) -> Read | Rejection:
    """What is wrong in STU3 is mended or said in STU3's terms; then the message becomes R4, and R4's rules judge it too.

    ``in_r4`` reads the message as if it were R4: in XML only the version says what is a list and which resources there are.
    """
    if not isinstance(tree, dict) or not isinstance(tree.get("resourceType"), str):
        return Rejection(Why.NOT_FHIR, at="resourceType")
    if tree["resourceType"] not in resource_types(FhirVersion.STU3) | resource_types():
        return Rejection(Why.RESOURCE_TYPE_UNKNOWN, at="resourceType")
    mended = Repaired()
    if check(tree, FhirVersion.STU3, limit=1):
        mended = repair_stu3(tree, trust.repairs_off, trust.time_zone, book)
        if mended.issues:
            sent = in_r4()
            if isinstance(sent, Rejection) or not _is_r4(sent, trust, book):
                return _refused(mended)
            tree, mended, dialect = sent, Repaired(), _IN_R4[dialect]
    converted = to_r4(tree)
    found = _sound(converted.tree, dialect, trust, book)
    changes = (*mended.changes, *converted.changes, *found.changes)
    unmapped = (*mended.unmapped, *converted.unmapped, *found.unmapped)
    if isinstance(found, Rejection):
        return replace(found, changes=changes, unmapped=unmapped)
    return replace(found, changes=changes, unmapped=unmapped, flags=(*_doubts(mended), *found.flags))


def _in_its_own_version(
    found: Read | Rejection, raw: bytes, dialect: Dialect, limits: Limits, trust: TrustProfile, book: CodeBook
) -> Read | Rejection:
    """What is no R4, or became R4 only without some of its elements, may be in another version of FHIR, whatever its header says, and those
    elements its period, its reason, the transfer it names. STU3 throughout is read as STU3; R5 is not read.
    """
    unknown = [each for each in found.unmapped if each.why == RuleId.UNKNOWN_ELEMENT]
    of_r5 = next((each for each in unknown if _is_of_r5(each)), None)
    if of_r5 is not None:
        return Rejection(
            Why.DIALECT_NOT_SUPPORTED,
            of_r5.path,
            f"It looks like {Dialect.FHIR_R5}: R4 has no such element.",
            changes=found.changes,
            unmapped=found.unmapped,
        )
    may_be_stu3 = bool(unknown) or isinstance(found, Rejection)
    if may_be_stu3 and all(each.path.rpartition(".")[2] in ONLY_IN_STU3 for each in unknown):
        sent = _tree(raw, _IN_STU3[dialect], limits)
        if isinstance(sent, dict) and _is_stu3(sent, trust):
            in_stu3 = _sound_stu3(sent, lambda: sent, _IN_STU3[dialect], trust, book)
            return in_stu3 if isinstance(in_stu3, Read) else found
    return found


_IN_STU3 = {r4: stu3 for stu3, r4 in _IN_R4.items()}
_R5_ENCOUNTER = frozenset({"actualPeriod", "plannedStartDate", "plannedEndDate"})
_R5_ADMISSION = frozenset(
    {"origin", "admitSource", "reAdmission", "destination", "dischargeDisposition", "preAdmissionIdentifier"}
)


def _is_of_r5(unknown: Unmapped) -> bool:
    """Whether an element that R4 does not know is R5's: of its Encounter, or a CodeableReference, which has a concept."""
    name, said = unknown.path.rpartition(".")[2], unknown.value
    if name == "admission":
        return isinstance(said, dict) and not _R5_ADMISSION.isdisjoint(said)
    if name == "concept":
        return isinstance(said, dict) and not said.keys().isdisjoint({"coding", "text"})
    if name == "reason" and isinstance(said, list):
        return any(
            isinstance(each, dict) and not each.keys().isdisjoint({"concept", "value"}) for each in said
        )
    return name in _R5_ENCOUNTER


def _is_stu3(tree: Tree, trust: TrustProfile) -> bool:
    """Whether a message is STU3 throughout, but for ids: those are as wrong in one version as in the other."""
    if not check(tree, FhirVersion.STU3, limit=1):
        return True
    switched_off = trust.repairs_off | (RULES.keys() - {RuleId.ID_FORM})
    return not repair_stu3(copy.deepcopy(tree), switched_off, limit=1).issues


def _is_r4(tree: Tree, trust: TrustProfile, book: CodeBook) -> bool:
    """Whether a message is R4 throughout, whatever its header or its profiles claim."""
    switched_off = trust.repairs_off | {RuleId.UNKNOWN_ELEMENT}
    return not repair(copy.deepcopy(tree), switched_off, trust.time_zone, book=book, limit=1).issues


def _parse(raw: bytes, limits: Limits) -> Any:
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\x00" in raw[:2]:
        return Rejection(Why.NOT_JSON, at="line 1, column 1", detail="It is in UTF-16 or UTF-32.")
    if b"\x00" in raw or (b"\\" in raw and b"\\u0000" in raw):  # one byte is found much sooner than six
        return Rejection(Why.NUL_CHARACTER)
    try:
        tree = decimals.loads(raw)
    except orjson.JSONDecodeError as error:
        if decimals.is_too_deep(error):
            return Rejection(Why.MESSAGE_TOO_DEEP, detail=f"At most {limits.depth_max} levels are read.")
        return Rejection(
            Why.NOT_JSON, at=f"line {error.lineno}, column {error.colno}", detail=_plain(error.msg)
        )
    if has_many_brackets(raw, limits.depth_max) and deeper_than(tree, limits.depth_max):
        return Rejection(Why.MESSAGE_TOO_DEEP, detail=f"At most {limits.depth_max} levels are read.")
    if _lost_something(raw, tree) and (name := _named_twice(raw)) is not None:
        return Rejection(
            Why.STRUCTURE_INVALID,
            at=name if _NAME.fullmatch(name) else "",
            detail="One object has this property twice, and nobody can tell which counts.",
        )
    return tree


_NAME = re.compile(r"_?[A-Za-z]{1,64}")


def _lost_something(raw: bytes, tree: Any) -> bool:
    """Whether the tree could lack something that the text says. Written again it has as many quotation marks, unless the text
    writes some of them by their number.
    """
    if b"\\" in raw and b"\\u" in raw:  # one byte is found much sooner than two
        return True
    return decimals.dumps(tree).count(b'"') != raw.count(b'"')


def _named_twice(raw: bytes) -> str | None:
    """The first property that one object has twice: parsers keep the last, and what the first says would be lost without a word (RFC
    8259, 4: what becomes of such an object is unpredictable).
    """
    found: list[str] = []

    def look(pairs: list[tuple[str, Any]]) -> None:
        names = [name for name, _ in pairs]
        if len(set(names)) < len(names):
            found.extend(name for at, name in enumerate(names) if name in names[:at])

    json.loads(raw, object_pairs_hook=look, parse_int=str, parse_float=str)
    return found[0] if found else None


def _plain(message: str) -> str:
    """The parser's complaint without its position, which is said elsewhere."""
    return message.split(": line", 1)[0]


def _sound(tree: Any, dialect: Dialect, trust: TrustProfile, book: CodeBook) -> Read | Rejection:
    if not isinstance(tree, dict) or not isinstance(tree.get("resourceType"), str):
        return Rejection(Why.NOT_FHIR, at="resourceType")
    if tree["resourceType"] not in resource_types():
        return Rejection(Why.RESOURCE_TYPE_UNKNOWN, at="resourceType")
    repaired = repair(tree, trust.repairs_off, trust.time_zone, trust.identifier_namespaces, book)
    if repaired.issues:
        return _refused(repaired)
    if not repaired.changes and not repaired.unmapped:
        return Read(tree, dialect)
    return Read(tree, dialect, repaired.changes, repaired.unmapped, tuple(_doubts(repaired)))


def _refused(repaired: Repaired) -> Rejection:
    first = repaired.issues[0]
    why = Why.RESOURCE_TYPE_UNKNOWN if first.code == "not-supported" else Why.STRUCTURE_INVALID
    return Rejection(
        why,
        at=first.path,
        detail=" ".join(map(_sentence, repaired.issues)),
        changes=repaired.changes,
        unmapped=repaired.unmapped,
    )


def _doubts(repaired: Repaired) -> Iterator[Flag]:
    for rule, code in _DOUBTFUL.items():
        change = next((each for each in repaired.changes if each.rule == rule), None)
        if change is not None:
            yield Flag(code, change.path)
    for each in repaired.unmapped:
        if each.why == RuleId.CODE_UNKNOWN:
            yield Flag(FlagCode.CODE_UNMAPPED, each.path)


_DOUBTFUL = {
    RuleId.TZ_ASSUMED: FlagCode.TIME_ZONE_ASSUMED,
    RuleId.CLASS_ASSUMED: FlagCode.ENCOUNTER_CLASS_ASSUMED,
}
"""Repairs that assumed something about the event itself, not only about how it was written."""


def _sentence(issue: StructureIssue) -> str:
    return f"{issue.path}: {issue.message.rstrip('.')}."
