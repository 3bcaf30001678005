"""Ids of resources that FHIR does not take, said as it does; and what refers to them in the same message.

* The new id says the old one, as far as FHIR's letters go, with a part of its hash behind: always the same for one id,
  in whatever message, and another for another id. Patients 12_3 and 12-3 stay two.
* What refers to the resource follows: ``Type/id``, with a version or a server before it, as `Resources.resolve` reads
  them; ``#id`` for what is contained. A URL that is some entry's fullUrl stays: it leads there still.
* An id that was never filled in is no id (``placeholder``). Where the new id is another resource's, both stay.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from hub.fhir.elements import FhirVersion, properties, resource_types
from hub.fhir.structure import resources_within
from hub.fhir.tree import Tree

_ID = re.compile(r"[A-Za-z0-9.-]{1,64}")
_FOREIGN = re.compile(r"[^A-Za-z0-9.-]+")
_PLAIN_MAX = 47
"""With a hyphen and `_DIGEST` behind it, an id of FHIR's 64 characters."""
_DIGEST = 16
_VERSION = "/_history/"
_URIS = frozenset({"uri", "url", "canonical"})
_NO_NAMES: Final[Mapping[str, str]] = {}

Told = Callable[[str, str, str], None]
"""Path, before, after."""


def well_formed(identity: str) -> str:
    """The id, if FHIR takes it; else the one that stands for it."""
    if _ID.fullmatch(identity):
        return identity
    plain = _FOREIGN.sub("-", identity).strip("-")[:_PLAIN_MAX]
    digest = hashlib.sha256(identity.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{plain or 'id'}-{digest[:_DIGEST]}"


def mend_ids(tree: Tree, version: FhirVersion, may_mend: Callable[[str], bool], told: Told) -> None:
    """Mend the ids of a message's resources, in place. ``may_mend``: whether an id that FHIR does not take is one to mend.

    Without such an id this looks at the resources and at nothing in them.
    """
    resources = list(_resources(tree))
    if not any(_is_wrong(each, may_mend) for _, each, _ in resources):
        return
    taken = {_name(each, holder) for _, each, holder in resources}
    renamed: dict[str, str] = {}
    inside: dict[int, dict[str, str]] = {}
    for path, each, holder in resources:
        if not _is_wrong(each, may_mend):
            continue
        before = each["id"]
        after = well_formed(before)
        name = _name(each, holder)
        if (*name[:-1], after) in taken:
            continue
        if holder is None:
            renamed[f"{each.get('resourceType')}/{before}"] = f"{each.get('resourceType')}/{after}"
        else:
            names = inside.setdefault(id(holder), {})
            names[f"#{before}"] = f"#{after}"
            if before.startswith("#") and (*name[:-1], before[1:]) not in taken:
                names.setdefault(before, f"#{after}")
        each["id"] = after
        told(f"{path}.id", before, after)
    _References(version, renamed, inside, _full_urls(tree), told).follow(
        tree, "", str(tree.get("resourceType")), _NO_NAMES
    )


def _resources(tree: Tree) -> Iterator[tuple[str, Tree, Tree | None]]:
    """(path, resource, what contains it) of every resource in a message."""
    waiting: list[tuple[str, Any, Tree | None]] = [(str(tree.get("resourceType")), tree, None)]
    for path, each, holder in waiting:  # grows while it is walked
        if not isinstance(each, dict):
            continue
        yield path, each, holder
        for within, found, is_contained in resources_within(path, str(each.get("resourceType")), each):
            waiting.append((within, found, (holder or each) if is_contained else None))


def _is_wrong(resource: Tree, may_mend: Callable[[str], bool]) -> bool:
    identity = resource.get("id")
    return isinstance(identity, str) and not _ID.fullmatch(identity) and may_mend(identity)


def _name(resource: Tree, holder: Tree | None) -> tuple[Any, ...]:
    """By what a resource is told from others: its type and id in a message, its id in what contains it."""
    where = str(resource.get("resourceType")) if holder is None else id(holder)
    identity = resource.get("id")
    return where, identity if isinstance(identity, str) else None


def _full_urls(tree: Tree) -> frozenset[str]:
    entries = tree.get("entry")
    urls = (
        [each.get("fullUrl") for each in entries if isinstance(each, dict)]
        if isinstance(entries, list)
        else []
    )
    return frozenset(url for url in urls if isinstance(url, str))


class _References:
    """What refers to the resources of one message whose ids were mended."""

    def __init__(
        self,
        version: FhirVersion,
        renamed: Mapping[str, str],
        inside: Mapping[int, Mapping[str, str]],
        full_urls: frozenset[str],
        told: Told,
    ) -> None:
        self._version = version
        self._renamed = renamed
        self._inside = inside
        """By the identity of what contains them."""
        self._full_urls = full_urls
        self._told = told

    def follow(self, node: Tree, type_name: str, path: str, contained: Mapping[str, str]) -> None:
        """Let all references in an object follow. ``type_name`` is "" where FHIR has none."""
        said = node.get("resourceType")
        if isinstance(said, str):
            type_name = said if said in resource_types(self._version) else ""
        contained = self._inside.get(id(node), contained)
        known = properties(type_name, self._version)
        for name, value in node.items():
            element = known.get(name)
            type_within = element.type if element else ""
            for index, each in enumerate(value) if isinstance(value, list) else ((None, value),):
                where = f"{path}.{name}" if index is None else f"{path}.{name}[{index}]"
                if isinstance(each, dict):
                    self.follow(each, type_within, where, contained)
                    continue
                if not isinstance(each, str) or (name != "reference" and type_within not in _URIS):
                    continue
                after = contained.get(each) or (self._elsewhere(each) if name == "reference" else None)
                if after is not None:
                    self._told(where, each, after)
                    if index is None:
                        node[name] = after
                    else:
                        value[index] = after

    def _elsewhere(self, reference: str) -> str | None:
        """The reference with the id that its resource has now, or None if it leads to none of those, or by its URL."""
        plain, slash, version = reference.partition(_VERSION)
        if reference in self._full_urls or plain in self._full_urls:
            return None
        after = self._renamed.get(plain)
        if after is None:
            server, *named = plain.rsplit("/", 2)
            found = self._renamed.get("/".join(named))
            after = f"{server}/{found}" if found else None
        return after and f"{after}{slash}{version}"
