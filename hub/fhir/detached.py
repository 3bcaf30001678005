"""A resource taken out of the message that it came in: what it referred to there is named by identifiers."""

from collections.abc import Mapping, Sequence
from typing import Any

from hub.fhir.tree import Entry, Resources, Tree, identifiers

Addresses = Mapping[str, str]

_GONE = object()
"""A reference that says nothing any more. Not None: null has a place of its own in a list that `_name` stands beside."""


def detached(resource: Mapping[str, Any], entries: Sequence[Mapping[str, Any]], addresses: Addresses) -> Tree:
    """The resource with each reference into its message (``entries``: ``{"fullUrl", "resource"}``) made to stand alone.

    ``addresses`` are where resources of some types can be read here (``Patient`` → ``Patient/…``). Others are named by their
    first identifier and their display; a reference that then says nothing is left out, because it leads nowhere.
    References to what is contained stay.
    """
    inside = Resources([Entry(each.get("fullUrl", ""), each["resource"], "") for each in entries])
    return _kept(resource, inside, addresses)


def _kept(tree: Mapping[str, Any], inside: Resources, addresses: Addresses) -> Tree:
    alone = {name: _alone(each, inside, addresses) for name, each in tree.items()}
    return {name: each for name, each in alone.items() if each is not _GONE}


def _alone(value: Any, inside: Resources, addresses: Addresses) -> Any:
    if isinstance(value, list):
        items = [_alone(each, inside, addresses) for each in value]
        return [each for each in items if each is not _GONE] or _GONE
    if not isinstance(value, dict):
        return value
    if isinstance(value.get("reference"), str) and not value["reference"].startswith("#"):
        return _reference(value, inside, addresses)
    return _kept(value, inside, addresses) or _GONE


def _reference(value: Tree, inside: Resources, addresses: Addresses) -> Any:
    meant = inside.resolve(value)
    said = {name: each for name, each in value.items() if name != "reference"}
    kind = str(meant["resourceType"] if meant else said.get("type", ""))
    if kind in addresses:
        return {"reference": addresses[kind], **said}
    if meant is not None:
        said.setdefault("type", kind)
        first = next(identifiers(meant), None)
        if first is not None:
            said.setdefault("identifier", {"system": first.system, "value": first.value})
    elif value["reference"].startswith(("http://", "https://")):
        return value
    return said if said.keys() - {"type", "id"} else _GONE
