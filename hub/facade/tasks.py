"""Transfers as FHIR Tasks: how one is shown to a party, and what a search asks for."""

import base64
import binascii
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from urllib.parse import urlencode

from hub.domain.ids import OdsCode
from hub.domain.transfer import TASK_STATUS, Party, State, Transfer, final_state, fold
from hub.facade.errors import bad_request
from hub.fhir.outgoing import instant, request_reference, task_of
from hub.fhir.systems import HUB_STATE, NHS_NUMBER, ODS_ORGANISATION, canonical_system
from hub.fhir.tree import Tree
from hub.store.search import Token, Wanted

COUNT, COUNT_MAX = 50, 200

PARAMETERS: Mapping[str, tuple[str, str]] = {
    "_id": ("token", "The transfer's id"),
    "_lastUpdated": ("date", "When it last changed; prefixes eq, gt, ge, lt, le"),
    "identifier": ("token", "The transfer's id, or the identifier of the request"),
    "status": ("token", "Task.status"),
    "business-status": ("token", "The state of the transfer"),
    "patient": ("reference", "patient:identifier=system|value: an NHS number, or your own hospital's number"),
    "subject": ("reference", "As patient"),
    "requester": ("reference", "requester:identifier=system|ODS code: the sending trust"),
    "owner": ("reference", "owner:identifier=system|ODS code: the receiving trust"),
}
RESULTS = frozenset({"_count", "_sort", "_summary", "_total", "_page", "_format"})
"""Parameters that say how the answer should look."""

_IDENTIFIER_OF = {
    f"{name}{mark}": name
    for name in ("patient", "subject", "requester", "owner")
    for mark in (":identifier", ".identifier")
}
_PLAIN = frozenset({"_id", "_lastUpdated", "identifier", "status", "business-status"})


@dataclass(frozen=True, slots=True)
class Question:
    """A search as it was understood: ``asked`` are the parameters that were used, for the self link."""

    wanted: Wanted
    asked: tuple[tuple[str, str], ...]
    ignored: tuple[str, ...]
    count_only: bool = False
    total: bool = False


def shown(transfer: Transfer, nhs_number: str | None) -> Tree:
    """A transfer as one of its parties sees it. ``nhs_number`` is the patient's, where it is known."""
    moved = [move for move in fold(transfer.facts) if move.after is not None]
    last = moved[-1].fact if moved else None
    changed_at = transfer.changed_at or transfer.requested_at
    task = task_of(transfer, request_reference(transfer), last.occurred_at if last else changed_at)
    task["id"] = transfer.id
    task["meta"]["lastUpdated"] = instant(changed_at)
    task["identifier"] += [{"system": each.system, "value": each.value} for each in transfer.requests]
    if nhs_number:
        task["for"] = {"type": "Patient", "identifier": {"system": NHS_NUMBER, "value": nhs_number}}
    if transfer.priority in {"routine", "urgent", "asap", "stat"}:
        task["priority"] = transfer.priority
    if last is not None and last.because:
        task["note"] = [{"time": instant(last.occurred_at), "text": last.because}]
    return task


def versions(transfer: Transfer, trust: OdsCode) -> list[Transfer]:
    """The transfer as it stood after each fact that it learned, oldest first, as far as ``trust`` was a party then."""
    found = []
    for number, fact in enumerate(transfer.facts, 1):
        facts = transfer.facts[:number]
        state = final_state(fold(facts)) or transfer.state
        then = replace(transfer, facts=facts, state=state, version=number, changed_at=fact.received_at)
        if then.party(trust) is not None:
            found.append(then)
    return found


def may_see(transfer: Transfer, trust: OdsCode) -> bool:
    """Whether this trust is party to it. A third trust has no part in it, and is told that there is nothing."""
    return transfer.party(trust) in {Party.SENDER, Party.RECEIVER}


def question(parameters: Sequence[tuple[str, str]], *, strict: bool) -> Question:
    """Read a search. ``strict``: `Prefer: handling=strict`, what is not known is an error. Raises FacadeError (400)."""
    wanted, ignored, asked = Wanted(), [], []
    count_only = total = False
    for name, value in parameters:
        known = _IDENTIFIER_OF.get(name)
        if known is None and name not in _PLAIN | RESULTS:
            ignored.append(name)
            continue
        if name != "_page":
            asked.append((name, value))
        if known is not None:
            wanted = _referring(wanted, known, name, value)
        elif name == "_summary" or (name == "_count" and value == "0"):
            # _count=0 asks for the same (R4, search, 3.1.1.5.4).
            count_only = value in {"count", "0"}
        elif name == "_total":
            total = value in {"accurate", "estimate"}
        elif name != "_format":
            wanted = _narrowed(wanted, name, value)
    if ignored and strict:
        raise bad_request(
            f"These parameters are not known here: {_names(ignored)}. Task is searched by {', '.join(sorted(PARAMETERS))}; leave "
            "them out, or send Prefer: handling=lenient to have them ignored.",
            "",
            "not-supported",
        )
    return Question(wanted, tuple(asked), tuple(ignored), count_only, total)


def page(
    question: Question, tasks: Sequence[Tree], base: str, *, after: Transfer | None, total: int | None
) -> Tree:
    """A searchset. ``after`` is the last of this page if there are more; links hold for as long as the server does."""
    address = f"{base}/Task"
    links = [
        {"relation": "self", "url": f"{address}?{urlencode(question.asked)}" if question.asked else address}
    ]
    if after is not None:
        following = (*question.asked, ("_page", _token(after)))
        links.append({"relation": "next", "url": f"{address}?{urlencode(following)}"})
    bundle: Tree = {"resourceType": "Bundle", "type": "searchset", "link": links}
    if total is not None:
        bundle["total"] = total
    entries: list[Tree] = [
        {"fullUrl": f"{address}/{task['id']}", "resource": task, "search": {"mode": "match"}}
        for task in tasks
    ]
    if question.ignored:
        issue = {
            "severity": "warning",
            "code": "not-supported",
            "diagnostics": f"Ignored, because they are not known here: {_names(question.ignored)}.",
        }
        entries.append(
            {
                "fullUrl": f"urn:uuid:{uuid.uuid4()}",
                "resource": {"resourceType": "OperationOutcome", "issue": [issue]},
                "search": {"mode": "outcome"},
            }
        )
    if entries:
        bundle["entry"] = entries
    return bundle


def _names(names: Iterable[str]) -> str:
    """What a caller called its parameters, cut to what a parameter's name can be: it may have put a value there."""
    return ", ".join(
        sorted({name if name.replace(":", "").replace("-", "").replace("_", "").isalpha() and len(name) < 40 else "?" for name in names})
    )  # fmt: skip


def _narrowed(wanted: Wanted, name: str, value: str) -> Wanted:
    if name == "_id":
        return replace(wanted, ids=(*wanted.ids, *value.split(",")))
    if name == "identifier":
        return replace(wanted, identifiers=(*wanted.identifiers, *map(_token_of, value.split(","))))
    if name in {"status", "business-status"}:
        return replace(wanted, states=_states(wanted.states, name, value))
    if name == "_lastUpdated":
        return replace(wanted, changed=(*wanted.changed, _range(value)))
    if name == "_count":
        if not value.isascii() or not value.isdigit():
            raise bad_request("_count must be a whole number.", "_count", "value")
        return replace(wanted, limit=min(max(int(value[:9]), 1), COUNT_MAX))
    if name == "_sort":
        if value not in {"_lastUpdated", "-_lastUpdated"}:
            raise bad_request(
                "_sort must be _lastUpdated or -_lastUpdated (the default).", "_sort", "not-supported"
            )
        return replace(wanted, oldest_first=value == "_lastUpdated")
    return replace(wanted, after=_after(value))


def _referring(wanted: Wanted, known: str, name: str, value: str) -> Wanted:
    tokens = tuple(map(_token_of, value.split(",")))
    if known in {"patient", "subject"}:
        return replace(wanted, patients=(*wanted.patients, *tokens))
    for each in tokens:
        if each.system not in {None, ODS_ORGANISATION}:
            raise bad_request(f"{name} is an ODS code, of {ODS_ORGANISATION}.", name, "value")
    codes = tuple(each.value.upper() for each in tokens)
    if known == "requester":
        return replace(wanted, senders=(*wanted.senders, *codes))
    return replace(wanted, receivers=(*wanted.receivers, *codes))


def _states(before: Sequence[State] | None, name: str, value: str) -> tuple[State, ...]:
    values = {_token_of(each).value for each in value.split(",")}
    states = {state for state in State if (TASK_STATUS[state] if name == "status" else state.value) in values}
    known = set(TASK_STATUS.values()) if name == "status" else {each.value for each in State}
    if values - known:
        raise bad_request(f"{name} must be of: {', '.join(sorted(known))}.", name, "value")
    return tuple(sorted(states if before is None else states & set(before)))


def _token_of(text: str) -> Token:
    system, bar, value = text.rpartition("|")
    if not bar:
        return Token(None, text.strip())
    return Token(system if system == HUB_STATE else canonical_system(system), value.strip())


_PREFIXES = ("eq", "gt", "ge", "lt", "le")


def _range(value: str) -> tuple[datetime | None, datetime | None]:
    """A FHIR date with a prefix as a half-open range: 2026-11-24 is that whole day, 2026-11-24T09:00Z that minute (R4, search, date)."""
    prefix, text = (value[:2], value[2:]) if value[:2] in _PREFIXES else ("eq", value)
    try:
        begin, width = _begin_and_width(text.replace(" ", "+"))
    except ValueError:
        raise bad_request(
            "_lastUpdated must be a FHIR date or time, for example ge2026-11-24 or lt2026-11-24T09:30:00Z.",
            "_lastUpdated",
            "value",
        ) from None
    end = begin + width
    return {
        "eq": (begin, end),
        "gt": (end, None),
        "ge": (begin, None),
        "lt": (None, begin),
        "le": (None, end),
    }[prefix]


def _begin_and_width(text: str) -> tuple[datetime, timedelta]:
    if len(text) == 4:
        begin = datetime(int(text), 1, 1, tzinfo=UTC)
        return begin, datetime(int(text) + 1, 1, 1, tzinfo=UTC) - begin
    if len(text) == 7:
        year, month = int(text[:4]), int(text[5:])
        begin = datetime(year, month, 1, tzinfo=UTC)
        return begin, datetime(year + month // 12, month % 12 + 1, 1, tzinfo=UTC) - begin
    begin = datetime.fromisoformat(text)
    begin = (begin if begin.tzinfo else begin.replace(tzinfo=UTC)).astimezone(UTC)
    if len(text) == 10:
        return begin, timedelta(days=1)
    if "." in text:
        return begin, timedelta(microseconds=1000)
    has_seconds = text[11:19].count(":") == 2
    return begin, timedelta(seconds=1) if has_seconds else timedelta(minutes=1)


def _token(transfer: Transfer) -> str:
    at = (transfer.changed_at or transfer.requested_at).astimezone(UTC).isoformat()
    return base64.urlsafe_b64encode(f"{at} {transfer.id}".encode()).decode().rstrip("=")


def _after(token: str) -> tuple[datetime, str]:
    try:
        text = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)).decode()
        at, _, transfer_id = text.partition(" ")
        return datetime.fromisoformat(at).astimezone(UTC), transfer_id
    except (binascii.Error, ValueError):
        raise bad_request(
            "_page is not one of this server's: follow the link `next` of a page as it is.", "_page", "value"
        ) from None
