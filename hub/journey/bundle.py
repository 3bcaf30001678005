"""Part of step 2: a Bundle spread into what it tells, whatever it was exchanged for.

A system that saves (transaction, batch), one that was asked (searchset) and one that only says (collection) tell the same with
the same resources. So all four are understood alike, and their canonical form is a collection:

Rules (`Change.rule`):
 * ``bundle-type``      transaction, batch and searchset become collection
 * ``bundle-exchange``  what only steers the exchange is taken out: ``request``, ``response``, ``search``, ``total``, ``link``,
   entries that hold nothing else, and what a search says about itself (an entry with ``search.mode`` outcome)

Sources: FHIR R4, Bundle and its invariants bdl-1 to bdl-4; FHIR R4, http#transaction and search#mode.
"""

from collections.abc import Iterator
from typing import Any

from hub.domain.ids import Identifier, time_ordered_id
from hub.domain.message import Change, Received
from hub.domain.rejection import Why
from hub.fhir.tree import Entry, Resources, Tree, identifiers
from hub.journey.draft import Draft, RefusedError

_EXCHANGED = frozenset({"transaction", "batch", "searchset"})
_TYPES = _EXCHANGED | {"message", "collection"}
_NOT_CONTENT = frozenset({"MessageHeader", "OperationOutcome"})
"""Resources about the message; a searchset may hold an OperationOutcome about the search."""
_ONE_EVENT = frozenset({"Encounter", "ServiceRequest", "Task"})
_ABOUT = ("ServiceRequest", "Task", "Encounter", "Patient")
"""What a message can be about."""
_PEOPLE = frozenset(
    {"Patient", "RelatedPerson", "Person", "Practitioner", "PractitionerRole", "Organization", "Location"}
)
"""What news of a patient can be about: who they are, and who looks after them."""
_CANNOT_BE_DONE = {
    "DELETE": "Nothing is deleted here: say what happened (cancelled, entered-in-error).",
    "PATCH": "A patch changes a record that is not in the message: send the whole resource.",
}


def url_of(received: Received, index: int) -> str:
    """The URL of the message's resource at ``index``: the same each time the message is read."""
    return "urn:uuid:" + time_ordered_id(received.received_at, received.event_id, index)


def spread(draft: Draft) -> None:
    """Spread a message into its resources; a bare resource is a message of one. Raises RefusedError."""
    tree, received = draft.tree, draft.received
    if tree["resourceType"] != "Bundle":
        draft.resources = Resources([Entry(url_of(received, 0), tree, tree["resourceType"])])
        return
    kind = tree.get("type")
    if kind not in _TYPES:
        raise RefusedError(
            Why.MESSAGE_NOT_SUPPORTED,
            "Bundle.type",
            "A Bundle must be of type message, collection, transaction, batch or searchset.",
        )
    _must_be_doable(tree)
    entries = [
        Entry(
            each.get("fullUrl") or url_of(received, index),
            each["resource"],
            f"Bundle.entry[{index}].resource",
            kind == "searchset" and _mode(each) == "include",
        )
        for index, each in enumerate(tree.get("entry", ()))
        if "resource" in each
    ]
    draft.header = _header(tree, entries)
    content = [entry for entry in entries if entry.resource["resourceType"] not in _NOT_CONTENT]
    if kind == "searchset":
        _must_tell_one_event(content)
        # What was asked for comes before what came with it.
        content.sort(key=lambda entry: entry.included)
    draft.resources = Resources(content)
    if draft.header is not None:
        _begin_with_its_focus(draft, draft.header)


def _begin_with_its_focus(draft: Draft, header: Tree) -> None:
    """What the header says that the message is about comes before what came with it (FHIR R4, MessageHeader.focus). Raises RefusedError.

    A message about an appointment or a dispensed medicine often has the patient's stay with it; that does not make it news of the stay. Nor is
    a prescription news of the patient, though it names both as what it is about.
    """
    focus = [
        found
        for each in header.get("focus", ())
        if (found := draft.resources.resolve(each, inside=header)) is not None
    ]
    types = {each["resourceType"] for each in focus}
    if types and types.isdisjoint(_ONE_EVENT) and ("Patient" not in types or not types <= _PEOPLE):
        raise RefusedError(
            Why.MESSAGE_NOT_SUPPORTED,
            "MessageHeader.focus",
            f"The message is about {' and '.join(sorted(types))}; the hub is told of {', '.join(_ABOUT)}.",
        )
    if any(len(draft.resources.of_type(each)) > 1 for each in types):
        first = {id(each) for each in focus}
        draft.resources = Resources(
            sorted(draft.resources.entries, key=lambda entry: id(entry.resource) not in first)
        )


def must_be_one(draft: Draft, subject: Entry) -> None:
    """A message with two answers, requests or stays, of which none is its focus nor part of another, is about both: acting on the
    first would lose the second. Raises RefusedError.
    """
    resource_type = subject.resource["resourceType"]
    alike = [each for each in draft.resources.of_type(resource_type) if not each.included]
    if len(alike) < 2 or resource_type not in _ONE_EVENT:
        return
    header = draft.header or {}
    focus = {id(draft.resources.resolve(each, inside=draft.header)) for each in header.get("focus", ())}
    events = [each for each in alike if id(each.resource) in focus] or _independent(draft, alike)
    if len(events) > 1:
        raise RefusedError(
            Why.MESSAGE_NOT_SUPPORTED,
            events[1].path,
            f"The message tells of more than one {resource_type}: send each in a message of its own.",
        )


def _independent(draft: Draft, alike: list[Entry]) -> list[Entry]:
    """Those that no other of them refers to: as the stay it is a part of, the request it stands in for or is based on, an order beside it."""
    context: set[int] = set()
    named: set[Identifier] = set()
    for each in alike:
        for name in ("partOf", "replaces", "basedOn", "supportingInfo"):
            said = each.resource.get(name, ())
            for reference in (said,) if isinstance(said, dict) else said:
                context.add(id(draft.resources.resolve(reference, inside=each.resource)))
                named.update(identifiers(reference))
    return [
        each
        for each in alike
        if id(each.resource) not in context and named.isdisjoint(identifiers(each.resource))
    ]


def _mode(entry: Tree) -> Any:
    return (entry.get("search") or {}).get("mode")


def _header(tree: Tree, entries: list[Entry]) -> Tree | None:
    """The MessageHeader: first in a message, as FHIR demands; anywhere in what was not sent as a message."""
    is_message = tree["type"] == "message"
    for entry in entries[:1] if is_message else entries:
        if entry.resource["resourceType"] == "MessageHeader":
            return entry.resource
    if is_message:
        raise RefusedError(Why.MESSAGE_HEADER_MISSING, "Bundle.entry[0]")
    return None


def _must_be_doable(tree: Tree) -> None:
    for index, each in enumerate(tree.get("entry", ())):
        if "request" in each and each["request"].get("method") in _CANNOT_BE_DONE:
            advice = _CANNOT_BE_DONE[each["request"]["method"]]
            raise RefusedError(Why.MESSAGE_NOT_SUPPORTED, f"Bundle.entry[{index}].request.method", advice)


def _must_tell_one_event(content: list[Entry]) -> None:
    """A list of stays is an answer to a question, not an event; acting on the first would lose the others."""
    seen: set[str] = set()
    for entry in content:
        resource_type = entry.resource["resourceType"]
        if entry.included or resource_type not in _ONE_EVENT:
            continue
        if resource_type in seen:
            raise RefusedError(
                Why.MESSAGE_NOT_SUPPORTED,
                entry.path,
                f"The search found more than one {resource_type}: send each in a message of its own.",
            )
        seen.add(resource_type)


def as_collection(tree: Tree) -> Iterator[Change]:
    """Change ``tree`` in place, if it was exchanged, to what it says. Last of all: entries may go, and paths with them."""
    if tree["resourceType"] != "Bundle" or tree.get("type") not in _EXCHANGED:
        return
    yield Change("Bundle.type", tree["type"], "collection", "bundle-type")
    tree["type"] = "collection"
    yield from _without(tree, ("total", "link"), "Bundle")
    kept: list[Tree] = []
    for index, entry in enumerate(tree.get("entry", ())):
        path = f"Bundle.entry[{index}]"
        if "resource" not in entry or _mode(entry) == "outcome":
            yield Change(path, entry, None, "bundle-exchange")
            continue
        yield from _without(entry, ("request", "response", "search"), path)
        kept.append(entry)
    if kept:
        tree["entry"] = kept
    else:
        tree.pop("entry", None)


def _without(node: Tree, names: tuple[str, ...], path: str) -> Iterator[Change]:
    for name in (*names, *(f"_{each}" for each in names)):
        if name in node:
            yield Change(f"{path}.{name}", node.pop(name), None, "bundle-exchange")
