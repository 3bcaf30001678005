"""The audit over REST: AuditEvents, for those who may see them (`hub.facade.access.AUDIT`).

Reading is itself audited, an entry for each patient that was named, before the answer is given (`hub.store.book`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fastapi import Request, Response

from hub.audit.catalogue import CATALOGUE, Action
from hub.audit.entries import Code, Outcome
from hub.domain.transfer import HUB
from hub.facade import searching
from hub.facade.access import audit_scope
from hub.facade.answers import asked_with, fhir
from hub.facade.capability import Served
from hub.facade.errors import bad_request, forbidden, not_found
from hub.facade.searching import RESULTS, SEARCHED, token_of
from hub.facade.service import Facade
from hub.facade.tokens import Caller
from hub.fhir.audit_event import Observer, audit_event
from hub.fhir.systems import (
    HUB_AUDIT_ENTRY,
    HUB_AUDIT_EVENT,
    HUB_EVENT,
    HUB_OPERATOR,
    HUB_ORGANISATION,
    HUB_REQUEST,
    HUB_ROLE,
    HUB_TRANSFER,
    HUB_USER,
    NHS_NUMBER,
    ODS_ORGANISATION,
    PRODUCT,
    SDS_ROLE_PROFILE,
    SDS_USER,
    canonical_system,
)
from hub.fhir.tree import Tree
from hub.store import book
from hub.store.book import Asked, Asking, Is, Page, Scope, of_request
from hub.store.search import Token

_RESOURCE = "AuditEvent"
_REFERENCES = frozenset({"patient", "agent", "entity"})
_ENTRY_MAX = 2**63

_BY_AGENT: Mapping[str, tuple[str, ...]] = {
    ODS_ORGANISATION: ("trust", "counterpart"),
    SDS_USER: ("user_id",),
    HUB_USER: ("user_id",),
    HUB_OPERATOR: ("user_id",),
    SDS_ROLE_PROFILE: ("role_id",),
    HUB_ROLE: ("role_id",),
    PRODUCT: ("client_id",),
}
"""An agent's system → the columns that hold such agents, as `hub.fhir.audit_event` shows them."""
_BY_ENTITY: Mapping[str, tuple[str, ...]] = {
    HUB_TRANSFER: ("transfer_id",),
    HUB_EVENT: ("event_id",),
    HUB_REQUEST: ("request_id",),
}


@dataclass(frozen=True, slots=True)
class Question:
    """A search of the audit as it was understood."""

    wanted: Asked
    asked: tuple[tuple[str, str], ...] = ()
    ignored: tuple[str, ...] = ()
    resource: str = _RESOURCE
    total: bool = False


async def search_audit(
    facade: Facade, request: Request, caller: Caller, served: Served, body: bytes
) -> Response:
    scope = await _scope(facade, caller, served)
    said = asked_with(request, body, _RESOURCE, facade.office)
    asked = question(said.parameters, facade.observer, strict=said.strict)
    by = _asking(facade, caller, served, scope, [name for name, _ in asked.asked])
    found = await book.page(facade.engine, asked.wanted, by, counted=asked.total)
    shown = await _as_audit_events(facade, found)
    sealed = facade.office.sealed if said.in_a_form else None
    return fhir(
        searching.page(asked, shown, facade.base, after=found.after, total=found.total, sealed=sealed)
    )


async def read_audit(
    facade: Facade, request: Request, caller: Caller, served: Served, body: bytes
) -> Response:
    """By the entry's number, which never changes."""
    del body
    scope = await _scope(facade, caller, served)
    number = _number(request.path_params["id"])
    by = _asking(facade, caller, served, scope, ["_id"])
    found = await book.page(facade.engine, Asked(entries=[number] if number is not None else []), by)
    if not found.rows:
        raise not_found()
    [event] = await _as_audit_events(facade, found)
    return fhir(event)


async def _scope(facade: Facade, caller: Caller, served: Served) -> Scope:
    scope = audit_scope(caller.reader, facade.directory)
    if scope is None:
        await facade.denied(caller, served, "role")
        raise forbidden("The audit is read by governance, and by a trust's system what that trust did.")
    return scope


def _asking(
    facade: Facade, caller: Caller, served: Served, scope: Scope, parameters: Sequence[str]
) -> Asking:
    detail = {"interaction": served.name, "as": caller.role}
    return Asking("rest", facade.now(), caller.who, parameters, detail, scope)


async def _as_audit_events(facade: Facade, page: Page) -> list[Tree]:
    known = await book.known_numbers(facade.engine, page)
    names = {each.ods: each.name for each in facade.directory}
    return [audit_event(row, known.get(row["person_id"]), names, facade.observer) for row in page.rows]


# -- what is asked ----------------------------------------------------------------------------------------------


def question(parameters: Sequence[tuple[str, str]], hub: Observer, *, strict: bool) -> Question:
    """Read a search. ``hub`` is the hub itself, the source of every event and the agent of some. Raises FacadeError (400)."""
    found, ignored = Question(Asked(limit=searching.COUNT)), []
    for name, value in parameters:
        if not value:
            searching.must_hold_something(_RESOURCE, name)
            continue
        known = _meaning(name)
        if known is None:
            ignored.append(name)
            continue
        if known != "_page":
            found = replace(found, asked=(*found.asked, (name, value)))
        found = _understood(found, known, name, value, hub)
    if ignored and strict:
        raise searching.not_known(_RESOURCE, ignored)
    return replace(found, ignored=tuple(ignored))


def _meaning(name: str) -> str | None:
    """A parameter without `:identifier`, which references need; a source may be without, as a part of the hub. Raises FacadeError (400)."""
    plain = searching.plain_name(name)
    if plain in RESULTS - {"_include"}:
        return plain if plain == name else None
    by_identifier = name in {f"{plain}:identifier", f"{plain}.identifier"}
    if plain in SEARCHED[_RESOURCE] and (
        by_identifier if plain in _REFERENCES else name == plain or (by_identifier and plain == "source")
    ):
        return plain
    searching.must_not_be_meant(_RESOURCE, name)
    return None


def _understood(found: Question, known: str, name: str, value: str, hub: Observer) -> Question:
    wanted = found.wanted
    if known == "_summary" or searching.is_none_wanted(known, value):
        # _count=0 asks for the same (R4, search, 3.1.1.5.4).
        is_count = value == "count" or known == "_count"
        return replace(found, wanted=replace(wanted, limit=0), total=True) if is_count else found
    if known == "_total":
        return replace(found, total=found.total or value in {"accurate", "estimate"})
    if known == "_format":
        return found
    if known == "_count":
        limit = searching.count_of(value)
        return replace(found, wanted=replace(wanted, limit=limit if wanted.limit else 0))
    return replace(found, wanted=_narrowed(wanted, known, name, value, hub))


def _narrowed(wanted: Asked, known: str, name: str, value: str, hub: Observer) -> Asked:
    match known:
        case "_page":
            at, entry = searching.place_after(value)
            if (number := _number(entry)) is None:
                raise searching.not_ours()
            return replace(wanted, after=(at, number))
        case "_sort":
            if value not in {"date", "-date", "_lastUpdated", "-_lastUpdated"}:
                raise bad_request("_sort must be date or -date (the default).", "_sort", "not-supported")
            return replace(wanted, oldest_first=not value.startswith("-"))
        case "date" | "_lastUpdated":
            return replace(wanted, at=(*wanted.at, searching.range_of(known, value)))
        case "_id":
            return _of_entries(wanted, [_number(each) for each in value.split(",")])
        case "patient":
            return _of_patients(wanted, value, name)
        case "agent":
            return _fitting(
                wanted, [each for part in value.split(",") for each in _agent(_agent_token(part), hub)]
            )
        case "entity":
            return _about(wanted, [token_of(part) for part in value.split(",")])
        case "outcome":
            return _with_outcomes(wanted, {_plain(part) for part in value.split(",")})
        case "source":
            return _from_source(wanted, [token_of(part) for part in value.split(",")], hub.product)
        case _:
            codes = frozenset(code for part in value.split(",") for code in _codes(known, token_of(part)))
            return replace(wanted, codes=codes if wanted.codes is None else wanted.codes & codes)


def _of_patients(wanted: Asked, value: str, name: str) -> Asked:
    if wanted.patients:
        raise bad_request(f"Give {name} once; several numbers with commas between.", name, "not-supported")
    return replace(wanted, patients=tuple(token_of(part) for part in value.split(",")))


def _fitting(wanted: Asked, group: Sequence[Is]) -> Asked:
    if not group:
        return replace(wanted, entries=[])
    return replace(wanted, fits=(*wanted.fits, group))


def _of_entries(wanted: Asked, numbers: Sequence[int | None]) -> Asked:
    named = {each for each in numbers if each is not None}
    kept = named if wanted.entries is None else named & set(wanted.entries)
    return replace(wanted, entries=sorted(kept))


def _agent_token(text: str) -> Token:
    """As `token_of`, for values that hold a bar themselves: a person's client is their trust, a bar, and what they signed in with."""
    system, bar, value = text.partition("|")
    return (
        Token(canonical_system(system), value.strip()) if bar and ":" in system else Token(None, text.strip())
    )


def _agent(token: Token, hub: Observer) -> list[Is]:
    """Who it may be; of a system that holds none of the hub's agents, nobody. Without a system an ODS code is a trust's."""
    itself = [Is("trust", None), Is("trust", HUB), Is("counterpart", HUB)] if _is_the_hub(token, hub) else []
    columns = _BY_AGENT.get(token.system) if token.system else None
    if columns is None and token.system:
        return itself
    value = token.value.upper() if columns == _BY_AGENT[ODS_ORGANISATION] else token.value
    if columns is not None:
        return [*itself, *(Is(column, value) for column in columns)]  # type: ignore[arg-type]
    return [
        *itself,
        Is("trust", token.value.upper()),
        Is("counterpart", token.value.upper()),
        Is("user_id", token.value),
        Is("role_id", token.value),
        Is("client_id", token.value),
    ]


def _is_the_hub(token: Token, hub: Observer) -> bool:
    """Whether the hub itself is meant, by the organisation that its events show (`hub.fhir.audit_event`) or as ``hub``."""
    if token.system == HUB_ORGANISATION:
        return hub.organisation is None and token.value == hub.site
    if token.system not in {None, ODS_ORGANISATION}:
        return False
    is_word = token.system is None and token.value.lower() == HUB
    return is_word or (hub.organisation is not None and token.value.upper() == hub.organisation.upper())


def _about(wanted: Asked, tokens: Sequence[Token]) -> Asked:
    if any(each.system == NHS_NUMBER for each in tokens):
        raise bad_request("Ask for a patient by patient:identifier.", "entity:identifier", "not-supported")
    if all(each.system == HUB_AUDIT_ENTRY for each in tokens):
        return _of_entries(wanted, [_number(each.value) for each in tokens])
    everything = tuple(column for columns in _BY_ENTITY.values() for column in columns)
    return _fitting(
        wanted,
        [
            fit
            for each in tokens
            for column in (_BY_ENTITY.get(each.system, ()) if each.system else everything)
            for fit in (of_request(each.value) if column == "request_id" else [Is(column, each.value)])  # type: ignore[arg-type]
        ],
    )


def _with_outcomes(wanted: Asked, said: set[str]) -> Asked:
    if not said <= {str(int(each)) for each in Outcome}:
        raise bad_request("outcome must be of: 0, 4, 8, 12.", "outcome", "value")
    outcomes = frozenset(map(int, said))
    return replace(wanted, outcomes=outcomes if wanted.outcomes is None else wanted.outcomes & outcomes)


def _from_source(wanted: Asked, tokens: Sequence[Token], product: str) -> Asked:
    """Every event has the hub as its source; a word of its own is a part of it."""
    if any(each.value == product and each.system in {None, PRODUCT} for each in tokens):
        return wanted
    return _fitting(wanted, [Is("system", each.value) for each in tokens if each.system is None])


def _codes(known: str, token: Token) -> list[Code]:
    """The codes of the catalogue that mean this."""
    if known == "action" and token.value not in set(Action):
        raise bad_request("action must be of: C, R, U, D, E.", "action", "value")
    return [code for code in CATALOGUE if _means(known, code, token)]


def _means(known: str, code: Code, token: Token) -> bool:
    meaning = CATALOGUE[code]
    if known == "action":
        return meaning.action == token.value
    said = {(meaning.kind.system, meaning.kind.value)}
    if known == "subtype":
        said = {(HUB_AUDIT_EVENT, code.value), *((each.system, each.value) for each in meaning.also)}
    return any(value == token.value and token.system in {None, system} for system, value in said)


def _plain(text: str) -> str:
    return token_of(text).value


def _number(text: str) -> int | None:
    """An entry's number, which is a bigint."""
    found = int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None
    return found if found is None or found < _ENTRY_MAX else None
