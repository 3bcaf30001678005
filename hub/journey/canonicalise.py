"""Part of step 2: the same tree with identifiers and times in their one form. Each change is remembered.

Rules (`Change.rule`):
 * ``identifier-system``    national systems in their UK Core spelling
 * ``practitioner-shape``   a practitioner's number under the system that its shape says
 * ``nhs-number-spaces``    ten digits without spaces
 * ``ods-case``             ODS codes in upper case
 * ``time-to-utc``          an instant with an offset is said in UTC; its fraction is kept as it was
 * ``full-url``             every entry has a ``urn:uuid:`` URL of its own, whatever server it came from
 * ``reference``            a reference to a resource of the same Bundle is that resource's URL
"""

from collections.abc import Callable
from datetime import UTC, datetime

from hub.domain.ids import parse_nhs_number, parse_ods
from hub.domain.message import Change
from hub.fhir.structure import TIME_PROPERTIES
from hub.fhir.systems import NHS_NUMBER, ODS_SYSTEMS, canonical_system, practitioner_system
from hub.fhir.tree import Tree

Path = tuple[str | int, ...]

_TIMES = TIME_PROPERTIES - {"value"}
"""`value` is an instant in one place of FHIR and plain text in Identifier."""


def canonicalise(tree: Tree, url_of: Callable[[int], str]) -> tuple[Change, ...]:
    """Change ``tree`` in place (it was parsed for this message and nobody else holds it) and say what changed.

    ``url_of`` gives the URL of the entry at an index, for those that have none or a server's.
    """
    changes: list[Change] = []
    references: list[tuple[Tree, Path]] = []
    _walk(tree, (tree["resourceType"],), changes, references)
    if tree["resourceType"] == "Bundle":
        urls = _full_urls(tree, url_of, changes)
        for node, path in references:
            target = urls.get(node["reference"])
            if target is not None:
                _set(node, "reference", target, "reference", path, changes)
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
        if "id" in resource:
            urls.setdefault(f"{resource['resourceType']}/{resource['id']}", entry["fullUrl"])
    return urls


def _walk(node: Tree, path: Path, changes: list[Change], references: list[tuple[Tree, Path]]) -> None:
    for name, value in node.items():
        kind = type(value)
        if kind is str:
            if name in _TIMES and len(value) > 10 and value[-1] != "Z":
                _set(node, name, to_utc(value), "time-to-utc", path, changes)
            elif name == "reference":
                references.append((node, path))
        elif kind is dict:
            if name == "identifier":
                _identifier(value, (*path, name), changes)
            _walk(value, (*path, name), changes, references)
        elif kind is list:
            for index, child in enumerate(value):
                if type(child) is dict:
                    if name == "identifier":
                        _identifier(child, (*path, name, index), changes)
                    _walk(child, (*path, name, index), changes, references)


def _identifier(identifier: Tree, path: Path, changes: list[Change]) -> None:
    system, value = identifier.get("system"), identifier.get("value")
    if isinstance(system, str):
        system = canonical_system(system)
        _set(identifier, "system", system, "identifier-system", path, changes)
    if not isinstance(value, str):
        return
    if system == NHS_NUMBER:
        _set(identifier, "value", parse_nhs_number(value).digits or value, "nhs-number-spaces", path, changes)
    elif system in ODS_SYSTEMS:
        _set(identifier, "value", parse_ods(value) or value, "ods-case", path, changes)
    elif isinstance(system, str):
        shaped = practitioner_system(system, value)
        _set(identifier, "system", shaped, "practitioner-shape", path, changes)


def _set(node: Tree, name: str, after: str, rule: str, path: Path, changes: list[Change]) -> None:
    before = node[name]
    if after != before:
        node[name] = after
        changes.append(Change(_said((*path, name)), before, after, rule))


def _said(path: Path) -> str:
    """``("Bundle", "entry", 0, "fullUrl")`` → ``Bundle.entry[0].fullUrl``."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)[1:]


def to_utc(text: str) -> str:
    """A FHIR dateTime with an offset in UTC; text that is not one (a date, say) comes back as it is."""
    head, fraction, offset = _split(text)
    if not offset:
        return text
    try:
        moment = datetime.fromisoformat(head + offset).astimezone(UTC)
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
