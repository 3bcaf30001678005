"""Part of step 2: the same tree with identifiers and times in their one form. Each change is remembered.

Rules (`Change.rule`):
 * ``identifier-system``    national systems in their UK Core spelling, OIDs as URIs
 * ``practitioner-shape``   a practitioner's number under the system that its shape says
 * ``nhs-number-spaces``    ten digits without spaces
 * ``ods-case``             ODS codes in upper case
 * ``time-to-utc``          an instant with an offset is said in UTC; its fraction is kept as it was
 * ``full-url``             every entry has a ``urn:uuid:`` URL of its own, whatever server it came from
 * ``reference``            a reference to a resource of the same Bundle is that resource's URL
 * ``reference-question``   a search in place of a reference, for what is not in the Bundle, is the identifier it searches by
"""

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cached_property, lru_cache
from typing import Any
from urllib.parse import unquote

from hub.domain.ids import Identifier, parse_nhs_number, parse_ods
from hub.domain.message import Change
from hub.fhir.structure import TIME_PROPERTIES
from hub.fhir.systems import (
    NHS_NUMBER,
    ODS_SYSTEMS,
    PRACTITIONER_SYSTEMS,
    canonical_system,
    practitioner_system,
)
from hub.fhir.tree import Tree, identifiers

Path = tuple[Any, str | int]
"""Where a value stands: (where its holder stands, the step from there). Most paths are never said, so none is spelt out before."""

_LOOKED_AT = (TIME_PROPERTIES - {"value"}) | {"reference"}
"""Names of text that may change: times, and references. `value` is an instant in one place of FHIR and plain text in Identifier."""


_VERSION = "/_history/"
_QUESTION = "?identifier="


def canonicalise(tree: Tree, url_of: Callable[[int], str]) -> tuple[Change, ...]:
    """Change ``tree`` in place (it was parsed for this message and nobody else holds it) and say what changed.

    ``url_of`` gives the URL of the entry at an index, for those that have none or a server's.
    """
    changes: list[Change] = []
    references: list[tuple[Tree, Path]] = []
    _walk(tree, (None, tree["resourceType"]), changes, references)
    urls = _full_urls(tree, url_of, changes) if tree["resourceType"] == "Bundle" else {}
    answers = _Answers(tree)
    for node, path in references:
        said = node["reference"]
        target = urls.get(said)
        if target is not None:
            if target != said:
                _set(node, "reference", target, "reference", path, changes)
        elif _VERSION in said or _QUESTION in said:
            _refer_otherwise(node, path, answers, urls, changes)
    return tuple(changes)


def _full_urls(bundle: Tree, url_of: Callable[[int], str], changes: list[Change]) -> dict[str, str]:
    """Gives every entry its URL. What references in the Bundle call an entry → that URL."""
    urls: dict[str, str] = {}
    for index, entry in enumerate(bundle.get("entry", ())):
        resource = entry.get("resource")
        if resource is None:
            continue
        given = entry.get("fullUrl")
        if given is None or not given.startswith("urn:uuid:"):
            entry["fullUrl"] = url_of(index)
            if given is not None:
                changes.append(Change(f"Bundle.entry[{index}].fullUrl", given, entry["fullUrl"], "full-url"))
                urls[given] = entry["fullUrl"]
                # A relative reference is meant from the server that the entries come from.
                urls.setdefault("/".join(given.rsplit("/", 2)[-2:]), entry["fullUrl"])
        if "id" in resource:
            urls.setdefault(f"{resource['resourceType']}/{resource['id']}", entry["fullUrl"])
    return urls


def _refer_otherwise(
    node: Tree, path: Path, answers: "_Answers", urls: Mapping[str, str], changes: list[Change]
) -> None:
    """A reference by version, or a question, leads to the entry that it means; else a question becomes the number it asks for.

    A question (``Patient?identifier=…``) is how a transaction refers to what its writer knows by number only (FHIR R4, http#trules).
    """
    said = node["reference"]
    target = urls.get(said.partition(_VERSION)[0])
    question = None if target else _question(said)
    if question is not None:
        target = answers.to(*question)
    if target is not None:
        _set(node, "reference", target, "reference", path, changes)
    elif question is not None and question[1] and _says(node, question[1], question[2]):
        node["identifier"] = node.get("identifier") or {"system": question[1], "value": question[2]}
        del node["reference"]
        changes.append(Change(_said((path, "reference")), said, None, "reference-question"))


def _says(reference: Tree, system: str, value: str) -> bool:
    """Whether a reference has no identifier, or that one: then the question says nothing more."""
    return "identifier" not in reference or Identifier(system, value) in identifiers(reference)


def _question(reference: str) -> tuple[str, str, str] | None:
    """Resource type, system ("" if it is not said) and value of what is asked for by one identifier."""
    resource_type, asked, token = reference.partition(_QUESTION)
    if not asked or "&" in token:
        return None
    system, _, value = unquote(token).rpartition("|")
    system = canonical_system(system)
    return (resource_type.rpartition("/")[2], system, _plain_value(system, value)) if value else None


class _Answers:
    """Which entries of a Bundle have which numbers; looked up once, when the first question is asked."""

    def __init__(self, bundle: Tree) -> None:
        self._bundle = bundle

    def to(self, resource_type: str, system: str, value: str) -> str | None:
        """The URL of the only entry with that identifier."""
        found = [
            url
            for url, of in self._urls.get((resource_type, value), {}).items()
            if not system or system in of
        ]
        return found[0] if len(found) == 1 else None

    @cached_property
    def _urls(self) -> dict[tuple[str, str], dict[str, set[str]]]:
        """Resource type and number → the URLs of the entries that have it, each with the number's systems there."""
        urls: dict[tuple[str, str], dict[str, set[str]]] = {}
        for entry in self._bundle.get("entry", ()):
            resource = entry.get("resource") or {}
            for each in identifiers(resource):
                of = urls.setdefault((resource["resourceType"], each.value), {})
                of.setdefault(entry["fullUrl"], set()).add(each.system)
        return urls


def _plain_value(system: str, value: str) -> str:
    if system == NHS_NUMBER:
        return parse_nhs_number(value).digits or value
    return (parse_ods(value) or value) if system in ODS_SYSTEMS else value


_NATIONAL = ODS_SYSTEMS | PRACTITIONER_SYSTEMS | {NHS_NUMBER}
"""Systems whose values have a form of their own."""


def _walk(node: Tree, path: Path, changes: list[Change], references: list[tuple[Tree, Path]]) -> None:
    for name, value in node.items():
        kind = type(value)
        if kind is str:
            if name not in _LOOKED_AT:
                continue
            if name == "reference":
                references.append((node, path))
            elif len(value) > 10 and value[-1] != "Z" and (said := to_utc(value)) != value:
                _set(node, name, said, "time-to-utc", path, changes)
        elif kind is dict:
            within = (path, name)
            if name == "identifier":
                _identifier(value, within, changes)
            _walk(value, within, changes, references)
        elif kind is list:
            within = (path, name)
            for index, child in enumerate(value):
                if type(child) is dict:
                    if name == "identifier":
                        _identifier(child, (within, index), changes)
                    _walk(child, (within, index), changes, references)


def _identifier(identifier: Tree, path: Path, changes: list[Change]) -> None:
    system, value = identifier.get("system"), identifier.get("value")
    if not isinstance(system, str):
        return
    canonical = canonical_system(system)
    if canonical != system:
        _set(identifier, "system", canonical, "identifier-system", path, changes)
        system = canonical
    if system not in _NATIONAL or not isinstance(value, str):
        return
    plain = _plain_value(system, value)
    if plain != value:
        rule = "nhs-number-spaces" if system == NHS_NUMBER else "ods-case"
        _set(identifier, "value", plain, rule, path, changes)
    shaped = practitioner_system(system, value)
    if shaped != system:
        _set(identifier, "system", shaped, "practitioner-shape", path, changes)


def _set(node: Tree, name: str, after: str, rule: str, path: Path, changes: list[Change]) -> None:
    changes.append(Change(_said((path, name)), node[name], after, rule))
    node[name] = after


@lru_cache(maxsize=4096)
def _said(path: Path | None) -> str:
    """``((((None, "Bundle"), "entry"), 0), "fullUrl")`` → ``Bundle.entry[0].fullUrl``.

    Remembered for a while: a trust's messages are alike, and what changes stands in the same places.
    """
    steps: list[str] = []
    while path is not None:
        path, step = path
        steps.append(f".{step}" if type(step) is str else f"[{step}]")
    return "".join(reversed(steps))[1:]


_TO_THE_SECOND = re.compile(r"[1-9][0-9]{3}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}")


@lru_cache(maxsize=1024)
def to_utc(text: str) -> str:
    """A FHIR dateTime with an offset in UTC; text that is not one (a date, say) comes back as it is.

    Remembered for a while: one message says the same time several times.
    """
    head, fraction, offset = _split(text)
    if not offset:
        return text
    try:
        moment = datetime.fromisoformat(head + offset)
        if not moment.utcoffset() and _TO_THE_SECOND.fullmatch(head):
            return f"{head}{fraction}Z"
        moment = moment.astimezone(UTC)
    except (ValueError, OverflowError):
        return text
    return f"{moment.isoformat()[:19]}{fraction}Z" if moment.year >= 1000 else text


def _split(text: str) -> tuple[str, str, str]:
    """``2026-01-02T03:04:05.6789+01:00`` → (``2026-01-02T03:04:05``, ``.6789``, ``+01:00``)."""
    head, tail = text[:19], text[19:]
    cut = max(tail.find("+"), tail.find("-"))
    return (head, tail[:cut], tail[cut:]) if cut >= 0 else (head, tail, "")


def instant(text: object) -> datetime | None:
    """A FHIR instant or dateTime with a time of day as UTC; None for a bare date or anything else."""
    if not isinstance(text, str) or len(text) < 20:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    try:
        return moment.astimezone(UTC) if moment.tzinfo else None
    except OverflowError:
        # Hours from the calendar's first or last day: no clock can mean that, so the offset does not matter.
        return moment.replace(tzinfo=UTC)
