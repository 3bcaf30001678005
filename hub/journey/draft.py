"""One message while it is being understood: what the parts of step 2 share."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hub.domain.message import Flag, Received
from hub.domain.rejection import Rejection, Why
from hub.domain.trust import Directory
from hub.fhir.tree import Entry, Resources, Tree, ods_code


class RefusedError(Exception):
    """Leaves a helper with the answer; never leaves `hub.journey.normalise`."""

    def __init__(self, why: Why, at: str = "", detail: str = "", *, claimed: str = "") -> None:
        self.rejection = Rejection(why, at, detail, claimed=claimed)


_NONE = Resources(())
_FOLLOWED_MAX = 4
"""References from one to an organisation: role, place, organisation, and one to spare. One may lead to itself."""


@dataclass(slots=True)
class Draft:
    """A message, what it holds, and the doubts so far. ``header`` and ``resources`` are known once it is spread."""

    received: Received
    tree: Tree
    directory: Directory
    flags: list[Flag]
    header: Tree | None = None
    resources: Resources = _NONE

    def first(self, resource_type: str) -> Entry | None:
        found = self.resources.of_type(resource_type)
        return found[0] if found else None

    def told(self, resource_type: str) -> Entry | None:
        """The first of a type that the message is about, not what a search brought along."""
        for each in self.resources.of_type(resource_type):
            if not each.included:
                return each
        return None

    def organisation_codes(
        self, reference: Mapping[str, Any] | None, *, inside: Tree | None = None
    ) -> list[str]:
        """The ODS code a reference means: written on it, or on the Organization or PractitionerRole it leads to.

        ``inside`` is the resource that the reference stands in: what it contains can be meant.
        """
        for _ in range(_FOLLOWED_MAX):
            if not reference:
                return []
            direct = ods_code(reference)
            if direct:
                return [direct]
            target = self.resources.resolve(reference, inside=inside)
            if target is None:
                return []
            found = ods_code(target)
            if found:
                return [found]
            reference = target.get("organization") or target.get("managingOrganization")
            # What is contained refers to what is contained beside it.
            inside = inside if inside is not None and target in inside.get("contained", ()) else target
        return []

    @property
    def event_code(self) -> str:
        """MessageHeader.event as a code in small letters, "" where there is none."""
        header = self.header or {}
        return str(
            header.get("eventCoding", {}).get("code") or str(header.get("eventUri", "")).rpartition("#")[2]
        ).lower()
