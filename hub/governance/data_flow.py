"""Which data goes where, drawn from what the hub says of its own doors: AsyncAPI for the topics, OpenAPI for REST."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Document = Mapping[str, Any]

_ROUTES: Mapping[str, tuple[str, str]] = {
    # Whoever a channel's description says writes and reads it.
    "events": ("trust", "hub"),
    "inbox": ("hub", "trust"),
    "receipts": ("hub", "trust"),
    "audit": ("hub", "governance"),
}
"""Who is at the other end of each channel. A channel that is not here stops the drawing."""

_RESOURCES_OF_PERSONS = frozenset(
    {"Patient", "Encounter", "ServiceRequest", "Task", "Bundle", "MessageHeader", "AuditEvent", "Provenance"}
)


def page(asyncapi: Document, openapi: Document) -> Iterator[str]:
    """The lines of `deploy/governance/data-flow.md`."""
    yield "# Data flow"
    yield ""
    yield "Made by `hub governance data-flow` from `schemas/asyncapi.yaml` and `schemas/openapi/facade.json`, which tests hold to the program; a test holds this page to them."
    yield ""
    yield "```mermaid"
    yield "flowchart LR"
    yield '    trust["A trust\'s record system"]'
    yield '    rest["A trust\'s system or clinician without Kafka"]'
    yield '    hub["Transfer hub"]'
    yield '    store[("The hub\'s database")]'
    yield '    governance["Governance: monitoring"]'
    for name, start, goal, text in _channels(asyncapi):
        yield f'    {start} -- "{asyncapi["channels"][name]["address"]}: {text}" --> {goal}'
    for resource, does in _resources(openapi).items():
        if does.isdisjoint({"gives"}):
            yield f'    rest -- "{resource}" --> hub'
        elif does.isdisjoint({"takes"}):
            yield f'    hub -- "{resource}" --> rest'
        else:
            yield f'    rest <-- "{resource}" --> hub'
    yield '    hub <-- "messages, events, transfers, outbox, audit" --> store'
    yield "```"
    yield ""
    yield "## Topics"
    yield ""
    yield "| topic | what | from | to | personal data | who may |"
    yield "|---|---|---|---|---|---|"
    for name, start, goal, text in _channels(asyncapi):
        channel = asyncapi["channels"][name]
        yield (
            f"| `{channel['address']}` | {channel['title']}: {text} | {_NAMES[start]} | {_NAMES[goal]} | {_HOLDS[name]} "
            f"| {_one_line(channel['description'])} |"
        )
    server = next(iter(asyncapi["servers"].values()))
    yield ""
    yield f"Protection on the way: {_one_line(server['description'])}"
    yield ""
    yield "## REST"
    yield ""
    yield "| address | method | what | scope | personal data |"
    yield "|---|---|---|---|---|"
    for path, method, said in _operations(openapi):
        scope = ", ".join(s for each in said.get("security", ()) for scopes in each.values() for s in scopes)
        resource = _resource(said)
        holds = "yes" if resource in _RESOURCES_OF_PERSONS else "no"
        yield f"| `{path}` | {method.upper()} | {said['summary']} | {f'`{scope}`' if scope else 'open'} | {holds} |"
    yield ""
    yield "Protection on the way: TLS at the proxy before the facade; a token for a signed assertion (SMART Backend Services) or a sign-in of a"
    yield "registered issuer; each reading is an audit entry."


_NAMES: Mapping[str, str] = {"trust": "the trust", "hub": "the hub", "governance": "governance"}
_HOLDS: Mapping[str, str] = {
    "events": "identity, stay, clinical content as the trust sends it",
    "inbox": "identity, request and stay, as far as the receiver's part in the transfer goes",
    "receipts": "none but the sender's own message number: reasons and places, never values",
    "audit": "NHS number or hospital number, who acted, what kind of act; no content",
}


def _channels(asyncapi: Document) -> Iterator[tuple[str, str, str, str]]:
    """Name, from, to, what: in the document's order. Raises KeyError for a channel that nobody has described here."""
    for name, channel in asyncapi["channels"].items():
        start, goal = _ROUTES[name]
        titles = [_message(asyncapi, each)["title"] for each in channel["messages"].values()]
        yield name, start, goal, ", ".join(titles)


def _message(asyncapi: Document, reference: Mapping[str, str]) -> Mapping[str, Any]:
    found: Any = asyncapi
    for step in reference["$ref"].removeprefix("#/").split("/"):
        found = found[step]
    return found  # type: ignore[no-any-return]


def _operations(openapi: Document) -> Iterator[tuple[str, str, Document]]:
    for path, methods in openapi["paths"].items():
        for method, said in methods.items():
            yield path, method, said


def _resources(openapi: Document) -> Mapping[str, set[str]]:
    """Resource → whether it goes in, out or both."""
    found: dict[str, set[str]] = {}
    for _, method, said in _operations(openapi):
        resource = _resource(said)
        if resource:
            found.setdefault(resource, set()).add("gives" if method == "get" else "takes")
    return dict(sorted(found.items()))


def _resource(said: Document) -> str:
    """By its scope: system/Task.r is about Task; what needs none is about nobody."""
    scopes: Sequence[str] = [
        s for each in said.get("security") or () for several in each.values() for s in several
    ]
    return scopes[0].partition("/")[2].partition(".")[0] if scopes else ""


def _one_line(text: str) -> str:
    return " ".join(text.split())
