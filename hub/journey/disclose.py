"""Part of step 5: who may see what of a message.

The receiver gets the whole of what the sender says once the request is addressed to it. The sender gets decisions and the
arrival: enough to know who decided and where the patient is, nothing clinical from the receiver's record. Nobody gets
anything of a third trust's message, and whoever has no part in the transfer gets nothing of anybody's (DOMAIN, 5.4). What a
restricted patient could be found by goes nowhere: addresses, telecom, GP, narratives (PDS, sensitive patients).
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from hub.domain.ids import NHS_AUTHORITY, OdsCode, PersonKey, parse_nhs_number
from hub.domain.transfer import Fact, Party, Step
from hub.fhir.systems import NHS_NUMBER
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

_DIRECTORY = frozenset(
    {"Organization", "Practitioner", "PractitionerRole", "HealthcareService", "Location", "Endpoint"}
)

KEPT_BACK = ("address", "telecom", "GP", "contacts", "position", "birthplace", "narratives")
"""For the audit: what `kept_back` means."""


def resources_for(
    resources: Sequence[Resource], author: Party, reader: Party, *, sensitive: bool
) -> tuple[Resource, ...]:
    """The Bundle entries (``{"fullUrl", "resource"}``) of one party's message that another may see."""
    if author is reader or not {author, reader} <= _ENDS:
        return ()
    found: Sequence[Resource] = kept_back(resources) if sensitive else resources
    if reader is Party.SENDER:
        found = [
            {**entry, "resource": _reduced(entry["resource"])}
            for entry in found
            if entry["resource"]["resourceType"] in _FOR_SENDER
        ]
    return tuple(found)


def kept_back(resources: Sequence[Resource]) -> tuple[Resource, ...]:
    """The entries without what a sensitive patient could be found by, and without those that only this led to: the surgery is an
    entry of its own, with its address.
    """
    shown = tuple({**entry, "resource": hide(entry["resource"])} for entry in resources)
    alone = _led_to_by_what_is_hidden(resources, shown)
    return tuple(each for each in shown if each["fullUrl"] not in alone)


def _led_to_by_what_is_hidden(said: Sequence[Resource], shown: Sequence[Resource]) -> set[str]:
    """Full URLs of people and places to which references led that are hidden, and no other does; of those, too, that nothing leads to and that
    say who is meant: a GP's role, with the practice.
    """
    urls = {name: entry["fullUrl"] for entry in said for name in _names(entry)}
    led = {entry["fullUrl"]: _leads(entry, urls) for entry in said}
    leads = {entry["fullUrl"]: _leads(entry, urls) for entry in shown}
    directory = {e["fullUrl"] for e in said if e["resource"]["resourceType"] in _DIRECTORY}
    hidden = {url for entry in said for url in led[entry["fullUrl"]] - leads[entry["fullUrl"]]} & directory
    seen = _reached(led.keys() - directory, leads)
    hidden |= {url for url in directory - seen if not (hidden - seen).isdisjoint(led[url])}
    behind = _reached(hidden, led) & directory
    return behind - _reached(led.keys() - behind, leads)


def _reached(urls: AbstractSet[str], leads: Mapping[str, AbstractSet[str]]) -> set[str]:
    reached: set[str] = set()
    ahead = set(urls)
    while ahead:
        reached |= ahead
        ahead = {url for each in ahead for url in leads[each]} - reached
    return reached


def _names(entry: Resource) -> Iterator[str]:
    """What references call an entry."""
    resource = entry["resource"]
    yield entry["fullUrl"]
    if "id" in resource:
        yield f"{resource['resourceType']}/{resource['id']}"


def _leads(entry: Resource, urls: Mapping[str, str]) -> set[str]:
    return {urls[name] for name in _references(entry["resource"]) if name in urls}


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, list):
        for each in node:
            yield from _references(each)
    elif isinstance(node, dict):
        if isinstance(reference := node.get("reference"), str):
            plain = reference.partition("/_history/")[0]
            yield from (plain, "/".join(plain.rsplit("/", 2)[-2:]))
        for each in node.values():
            yield from _references(each)


def is_shown(fact: Fact) -> bool:
    """Whether the other end may see the fact's message. When records are merged or parted, the hospitals of all of them are told,
    and the message shows one patient: not theirs, for some. Who does not get the patient need know no more than that.
    """
    if fact.step is Step.DIVERGE:
        return False
    return fact.step is not Step.IDENTIFY or fact.because.endswith("nhs-number-superseded")


def without_numbers(
    resources: Sequence[Resource], patient_url: str | None, author: OdsCode, numbers: Collection[PersonKey]
) -> tuple[Resource, ...]:
    """The entries of ``author``'s message without numbers of which a human has said that they are not its patient's: not passed on, though the message
    says them still. Somebody else in it may have them, a mother beside her child.
    """

    def changed(entry: Resource) -> Resource:
        one = without if entry["fullUrl"] == patient_url else without_in
        return {**entry, "resource": one(entry["resource"], author, numbers)}

    return tuple(map(changed, resources))


def without_in(resource: Tree, author: OdsCode, numbers: Collection[PersonKey]) -> Tree:
    """A resource of ``author``'s about a patient, without these numbers where it says who that is, and in a Patient that it contains for that."""
    named = {name: resource[name] for name in ("subject", "for") if isinstance(resource.get(name), dict)}
    changed: Tree = {name: without(each, author, numbers) for name, each in named.items()}
    meant = {each.get("reference") for each in named.values()}
    if contained := resource.get("contained"):
        changed["contained"] = [
            without(each, author, numbers) if f"#{each.get('id', '')}" in meant else each
            for each in contained
        ]
    return {**resource, **changed}


def without(named: Tree, author: OdsCode, numbers: Collection[PersonKey]) -> Tree:
    """A Patient, or a reference to one, of ``author``'s without these numbers."""

    def is_among(identifier: Mapping[str, Any]) -> bool:
        system, value = str(identifier.get("system", "")), str(identifier.get("value", ""))
        if system == NHS_NUMBER:
            return PersonKey(NHS_AUTHORITY, parse_nhs_number(value).digits) in numbers
        return PersonKey(f"{author}|{system}", value) in numbers

    said = named.get("identifier", [])
    if isinstance(said, dict):
        kept: Any = {} if is_among(said) else said
    else:
        kept = [each for each in said if not is_among(each)]
    rest = {name: value for name, value in named.items() if name != "identifier"}
    return {**rest, "identifier": kept} if kept else rest


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
    if contained := shown.pop("contained", None):
        itself = {"fullUrl": "", "resource": {**resource, "contained": []}}
        inner = [{"fullUrl": f"#{each.get('id', '')}", "resource": each} for each in contained]
        shown["contained"] = [each["resource"] for each in kept_back([itself, *inner])[1:]]
    return {name: value for name, value in shown.items() if value != []}
