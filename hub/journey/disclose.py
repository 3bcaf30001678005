"""Part of step 5: who may see what of a message.

The receiver gets the whole of what the sender says once the request is addressed to it. The sender gets decisions and the
arrival: enough to know who decided and where the patient is, nothing clinical from the receiver's record. Nobody gets
anything of a third trust's message, and whoever has no part in the transfer gets nothing of anybody's (DOMAIN, 5.4). What a
restricted patient could be found by goes nowhere: addresses, telecom, GP, narratives (PDS, sensitive patients).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from hub.domain.transfer import Fact, Party, Step
from hub.fhir.tree import Tree

Resource = Mapping[str, Any]

_ENDS = frozenset({Party.SENDER, Party.RECEIVER})
_FOR_SENDER = frozenset(
    {
        "Task",
        "ServiceRequest",
        "Encounter",
        "Patient",
        "Organization",
        "Location",
        "Practitioner",
        "PractitionerRole",
        "HealthcareService",
        "Communication",
        "EpisodeOfCare",
    }
)
_ENCOUNTER = frozenset(
    {"resourceType", "id", "identifier", "status", "class", "subject", "basedOn", "period", "serviceProvider",
     "location", "partOf", "contained", "participant", "reasonCode", "meta"}
)  # fmt: skip
_PATIENT = frozenset(
    {
        "resourceType",
        "id",
        "identifier",
        "birthDate",
        "active",
        "deceasedBoolean",
        "deceasedDateTime",
        "link",
        "meta",
    }
)

_HIDDEN: Mapping[str, tuple[str, ...]] = {
    "Patient": ("address", "telecom", "generalPractitioner", "contact"),
    "RelatedPerson": ("address", "telecom"),
    "Person": ("address", "telecom"),
    "Location": ("address", "telecom", "position"),
}
"""What a sensitive patient's whereabouts could be read from; the contacts' addresses are often the patient's own, and a place can be
their home. A narrative repeats what the resource says, wherever it is.
"""


def resources_for(
    resources: Sequence[Resource], author: Party, reader: Party, *, sensitive: bool
) -> tuple[Resource, ...]:
    """The Bundle entries (``{"fullUrl", "resource"}``) of one party's message that another may see."""
    if author is reader or not {author, reader} <= _ENDS:
        return ()
    found: Sequence[Resource] = resources
    if reader is Party.SENDER:
        found = [
            {**entry, "resource": _reduced(entry["resource"])}
            for entry in resources
            if entry["resource"]["resourceType"] in _FOR_SENDER
        ]
    return kept_back(found) if sensitive else tuple(found)


def kept_back(resources: Sequence[Resource]) -> tuple[Resource, ...]:
    """The entries without what a sensitive patient could be found by."""
    return tuple({**entry, "resource": hide(entry["resource"])} for entry in resources)


def shows_its_patient(fact: Fact) -> bool:
    """Whether the patient whom the fact's message shows is the transfer's. When records are merged or parted, the hospitals
    of all of them are told, and the message shows one: not theirs, for some.
    """
    return fact.step is not Step.IDENTIFY or fact.because.endswith("nhs-number-superseded")


def _reduced(resource: Tree) -> Tree:
    keep = {"Encounter": _ENCOUNTER, "Patient": _PATIENT}.get(resource["resourceType"])
    if keep is None:
        return resource
    reduced = {name: value for name, value in resource.items() if name.removeprefix("_") in keep}
    if "contained" in reduced:
        inner = [_reduced(each) for each in reduced["contained"] if each.get("resourceType") in _FOR_SENDER]
        reduced["contained"] = inner
    return {name: value for name, value in reduced.items() if value != []}


def hide(resource: Tree) -> Tree:
    """The resource without what a sensitive patient could be found by; contained resources too."""
    hidden = (*_HIDDEN.get(resource.get("resourceType", ""), ()), "text")
    shown = {name: value for name, value in resource.items() if name.removeprefix("_") not in hidden}
    if "extension" in shown:
        # Where they were born, or lived before.
        shown["extension"] = [each for each in shown["extension"] if "valueAddress" not in each]
    if "contained" in shown:
        shown["contained"] = [hide(each) for each in shown["contained"]]
    return {name: value for name, value in shown.items() if value != []}
