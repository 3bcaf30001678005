"""`hub audit search`, `hub audit trail` and `hub audit report …`: what is in the audit, and what people ask of it. That it was read is written first."""

import getpass
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from hub import wiring
from hub.audit.catalogue import CATALOGUE, Action
from hub.audit.entries import Code, Outcome
from hub.commands.terminal import (
    AsJson,
    Failure,
    directory_now,
    fail,
    group,
    moment,
    require_joined,
    require_said,
    run_it,
    settings_now,
    show,
)
from hub.domain.ids import OdsCode
from hub.domain.transfer import HUB
from hub.governance import reports
from hub.governance.csv_text import csv_text
from hub.governance.reports import Report
from hub.settings import HubSettings
from hub.store import book, queries
from hub.store.book import Asked, Asking, Is, of_request

report = group(
    "What information governance asks of the audit: as a table, as `--csv`, or as `--json`, one object a line."
)

Since = Annotated[
    datetime | None, typer.Option(help="UTC, for example 2026-11-23T09:00:00.", parser=moment, metavar="TIME")
]
Until = Annotated[datetime | None, typer.Option(help="UTC, exclusive.", parser=moment, metavar="TIME")]
AsCsv = Annotated[bool, typer.Option("--csv", help="Comma-separated, safe for spreadsheets.")]
OfTrust = Annotated[
    str | None, typer.Option("--trust", help="Only what this trust did, or what was done to it.")
]
Most = Annotated[int, typer.Option("--limit", help="At most this many entries.", min=1, max=1_000_000)]


def add_to(audit: typer.Typer) -> None:
    """Put the commands into the group `hub audit`."""
    audit.command("search")(search)
    audit.command("trail")(trail)
    audit.add_typer(report, name="report")


# ---------------------------------------------------------------- hub audit search


def search(
    patient: Annotated[
        str | None,
        typer.Option(help="NHS number or a hospital's own, system|value or bare; merges are followed."),
    ] = None,
    transfer: Annotated[str | None, typer.Option(help="The transfer's id.")] = None,
    event: Annotated[str | None, typer.Option(help="The event's (message's) id.")] = None,
    request: Annotated[str | None, typer.Option(help="X-Request-Id of the message or the request.")] = None,
    ods: Annotated[str | None, typer.Option("--trust", help="The trust that acted, or to whom.")] = None,
    by: Annotated[str | None, typer.Option("--by", help="The trust that acted.")] = None,
    to: Annotated[str | None, typer.Option("--to", help="The trust to whom it was done.")] = None,
    user: Annotated[str | None, typer.Option(help="Who signed in, or the operator.")] = None,
    client: Annotated[str | None, typer.Option(help="Which system called.")] = None,
    role: Annotated[str | None, typer.Option(help="The role's id (selected_roleid).")] = None,
    code: Annotated[
        list[str] | None, typer.Option(help="A kind of entry, for example msg-quarantined; may be repeated.")
    ] = None,
    action: Annotated[
        str | None, typer.Option(help="C, R, U, D or E: created, read, updated, deleted, executed.")
    ] = None,
    outcome: Annotated[
        list[int] | None, typer.Option(help="0 well, 4, 8 and 12 less and less; may be repeated.")
    ] = None,
    system: Annotated[
        str | None, typer.Option(help="The part of the hub: rest, kafka, dispatcher, cli …")
    ] = None,
    since: Since = None,
    until: Until = None,
    limit: Most = 1000,
    oldest_first: Annotated[bool, typer.Option("--oldest-first", help="Else the newest first.")] = False,
    count: Annotated[bool, typer.Option("--count", help="Only how many there are.")] = False,
    as_fhir: Annotated[bool, typer.Option("--fhir", help="FHIR AuditEvents, one a line.")] = False,
    as_json: AsJson = False,
) -> None:
    """Audit entries that match all that is given, the newest first."""
    fits = {
        "transfer": [Is("transfer_id", transfer or "")], "event": [Is("event_id", event or "")],
        "request": of_request(request or ""), "trust": _of_trust(ods or ""),
        "by": [Is("trust", _code(by or ""))], "to": [Is("counterpart", _code(to or ""))],
        "user": [Is("user_id", user or "")], "client": [Is("client_id", client or "")],
        "role": [Is("role_id", role or "")], "system": [Is("system", system or "")],
    }  # fmt: skip
    given = {
        "transfer": transfer, "event": event, "request": request, "trust": ods, "by": by, "to": to, "user": user,
        "client": client, "role": role, "system": system, "patient": patient, "code": code, "action": action,
        "outcome": outcome, "since": since, "until": until,
    }  # fmt: skip
    for name, value in given.items():
        if isinstance(value, str) and not value.strip():
            fail(f"The value for {name} is empty; it would be a search of everything.")
    _require_order(since, until)
    used = [name for name, value in given.items() if value]
    asked = Asked(
        patients=_patient(patient) if patient else (),
        fits=[fits[name] for name in used if name in fits],
        codes=_codes(code, action),
        outcomes=_outcomes(outcome),
        at=[(since, until)],
        oldest_first=oldest_first,
        limit=0 if count else limit,
    )
    _search(asked, used, (ods, by, to), as_json=as_json, as_fhir=as_fhir)


def _search(
    asked: Asked, used: Sequence[str], trusts: Sequence[str | None], *, as_json: bool, as_fhir: bool
) -> None:
    names = _names() if as_fhir else {}
    asking = _asking(used, exported=as_json or as_fhir)

    async def work() -> tuple[book.Page, Mapping[str, Any]]:
        async with wiring.opened(settings_now()) as engine:
            if not asked.limit:
                return await book.page(engine, asked, asking, counted=True), {}
            found = await book.entries(engine, asked, asking, most=asked.limit)
            _say_if_more(found, asked.limit)
            return found, await book.known_numbers(engine, found) if as_fhir else {}

    found, known = run_it(work)
    if not found.rows and not found.total:
        require_joined(*trusts)
    if found.total is not None:
        print(found.total)
    elif as_fhir:
        _print_fhir(found.rows, known, names)
    else:
        columns = ("at", "code", "outcome", "trust", "counterpart", "user_id", "transfer_id", "detail")
        show(found.rows, as_json, columns, "Nothing was found.")


def _print_fhir(rows: Sequence[book.Row], known: Mapping[str, Any], names: Mapping[str, str]) -> None:
    from hub.fhir import decimals
    from hub.fhir.audit_event import audit_event

    observer = wiring.audit_observer(settings_now())
    for row in rows:
        print(decimals.dumps(audit_event(row, known.get(row["person_id"]), names, observer)).decode())


def _codes(said: Sequence[str] | None, action: str | None) -> frozenset[Code] | None:
    if said and (strange := set(said) - set(Code)):
        fail(f"There is no code {min(strange)}: see schemas/codesystems/transfer-audit-event.json.")
    if action and action.upper() not in set(Action):
        fail("The action is C, R, U, D or E.")
    if not said and not action:
        return None
    return frozenset(
        each
        for each in Code
        if (not said or each in said) and (not action or CATALOGUE[each].action == action.upper())
    )


def _outcomes(said: Sequence[int] | None) -> frozenset[int] | None:
    if said and not set(said) <= set(Outcome):
        fail("The outcome is 0, 4, 8 or 12.")
    return frozenset(said) if said else None


# ---------------------------------------------------------------- hub audit trail


def trail(
    transfer: Annotated[str, typer.Argument(help="The transfer's id.")], as_json: AsJson = False
) -> None:
    """One transfer's story, from the first request to the last delivery, in words a ward manager can read."""
    from hub.governance.trail import tell

    names = _names()

    async def load(settings: HubSettings) -> tuple[queries.Row, list[queries.Row]]:
        async with wiring.opened(settings) as engine:
            try:
                row = await queries.transfer_row(engine, transfer)
            except queries.NotFoundError:
                raise Failure(f"There is no transfer {transfer}.") from None
            asked = book.Asked(fits=[[book.Is("transfer_id", transfer)]], oldest_first=True)
            by = book.Asking("cli", wiring.now(), {"user_id": getpass.getuser()}, ["transfer"])
            return row, (await book.entries(engine, asked, by)).rows

    found, entries = run_it(load, settings_now())
    if as_json:
        show(entries, True, (), "")
        return
    for line in tell(found, entries, names):
        print(line)


# ---------------------------------------------------------------- hub audit report


@report.command("who-has-seen")
def who_has_seen(
    number: Annotated[str, typer.Argument(help="NHS number, or system|value of a hospital's own number.")],
    since: Since = None,
    until: Until = None,
    page: Annotated[
        Path | None,
        typer.Option(help="Write a page for the patient (HTML, to be printed): no staff are named."),
    ] = None,
    contact: Annotated[str, typer.Option(help="On the page: whom the patient can ask.")] = "",
    limit: Most = 100_000,
    as_csv: AsCsv = False,
    as_json: AsJson = False,
) -> None:
    """Everybody to whom something of a patient was disclosed, who read or searched it, or who broke the glass."""
    from hub.governance import access_page

    _require_one_form(as_csv, as_json, page is not None)
    names = _names()
    asked = Asked(patients=_patient(number), codes=reports.SEEN, at=[(since, until)], oldest_first=True)
    asking = _asking(
        _given(patient=number, since=since, until=until),
        "who-has-seen",
        as_csv or as_json or page is not None,
    )

    async def work() -> list[book.Row]:
        async with wiring.opened(settings_now()) as engine:
            known = await book.patients(engine, asked.patients)
            if len(known) > 1:
                raise Failure(
                    "This number stands for more than one patient: give the NHS number, or system|value."
                )
            found = await book.entries(engine, asked, asking, most=limit)
            if not known:
                # "Nothing was shown to anybody" would be true of a mistyped number too.
                raise Failure("The hub knows no patient by this number: is it the right one?")
            if found.after and page is not None:
                raise Failure(
                    f"There are more than {limit} entries, and the page would leave some out: raise --limit."
                )
            _say_if_more(found, limit)
            return found.rows

    entries = run_it(work)
    if page is None:
        _print(reports.WHO_HAS_SEEN, reports.who_has_seen(entries, names), as_csv, as_json)
        return
    text = access_page.page(
        entries,
        names,
        number=number,
        made_at=asking.at,
        since=since,
        until=until,
        contact=contact,
    )
    try:
        page.write_text(text, encoding="utf-8")
    except OSError as error:
        fail(f"{page} cannot be written: {error.strerror}.")
    print(f"written: {page}")


@report.command("user")
def user_did(
    user: Annotated[
        str, typer.Argument(help="What they signed in with (SDS user id), or an operator's name.")
    ],
    ods: OfTrust = None,
    since: Since = None,
    until: Until = None,
    limit: Most = 100_000,
    as_csv: AsCsv = False,
    as_json: AsJson = False,
) -> None:
    """Everything this user did, the newest first."""
    asked = Asked(fits=[[Is("user_id", user)], *_only(ods)], at=[(since, until)])
    used = _given(user=user, trust=ods, since=since, until=until)
    _report(reports.DONE, asked, used, limit, as_csv, as_json, _made(reports.done), ods)


@report.command("refused")
def refused(
    ods: OfTrust = None,
    since: Since = None,
    until: Until = None,
    limit: Most = 100_000,
    as_csv: AsCsv = False,
    as_json: AsJson = False,
) -> None:
    """All refused access: failed sign-ins, what was asked for in vain, steps that were not theirs, senders who were not who they said."""
    asked = Asked(
        fits=_only(ods),
        codes=reports.REFUSED,
        outcomes=frozenset(each for each in Outcome if each),
        at=[(since, until)],
    )
    used = _given(trust=ods, since=since, until=until)
    _report(reports.REFUSALS, asked, used, limit, as_csv, as_json, _made(reports.refusals), ods)


@report.command("break-glass")
def break_glass(
    ods: OfTrust = None,
    since: Since = None,
    until: Until = None,
    limit: Most = 100_000,
    as_csv: AsCsv = False,
    as_json: AsJson = False,
) -> None:
    """All breakings of the glass and what was thought of each; those that nobody looked at in five working days are overdue."""
    # A review comes later than what it is about, so the period is that of the breaking.
    asked = Asked(codes=reports.GLASS, at=[(since, None)])
    used = _given(trust=ods, since=since, until=until)

    async def make(engine: Any, entries: Sequence[book.Row]) -> list[reports.Row]:
        del engine
        return reports.broken(entries, wiring.now(), until=until, trust=ods and ods.upper())

    _report(reports.BROKEN, asked, used, limit, as_csv, as_json, make, ods)


@report.command("without-acceptance")
def without_acceptance(
    ods: OfTrust = None,
    since: Since = None,
    until: Until = None,
    limit: Most = 100_000,
    as_csv: AsCsv = False,
    as_json: AsJson = False,
) -> None:
    """Transfers in which the patient moved before anybody had accepted, and how they stand now."""
    from hub.store.queries import transfers_named

    # The entry names who moved; the other end has as much to do with it.
    asked = Asked(
        outcomes=frozenset({Outcome.MINOR_FAILURE}),
        flag="without_acceptance",
        at=[(since, until)],
    )
    used = _given(trust=ods, since=since, until=until)

    async def make(engine: Any, entries: Sequence[book.Row]) -> list[reports.Row]:
        found = reports.moved(
            entries, await transfers_named(engine, {each["transfer_id"] for each in entries})
        )
        return [each for each in found if not ods or ods.upper() in (each["sender"], each["receiver"])]

    _report(reports.MOVED, asked, used, limit, as_csv, as_json, make, ods)


@report.command("left")
def left(
    ods: Annotated[str, typer.Argument(help="The trust's ODS code.")],
    month: Annotated[
        datetime | None,
        typer.Option(help="A calendar month, as 2026-10; else the last one.", formats=["%Y-%m"]),
    ] = None,
    since: Since = None,
    until: Until = None,
    limit: Most = 1_000_000,
    as_csv: AsCsv = False,
    as_json: AsJson = False,
) -> None:
    """What left the trust in a month: each disclosure and each reading by another trust, to whom and of which transfer."""
    if month and (since or until):
        fail("Give a month, or --since and --until.")
    if month and not 1900 <= month.year < 9999:
        fail(f"{month:%Y-%m} is no month of the hub's.")
    names = _names()
    begin, end = reports.month(month.year, month.month) if month else reports.last_month(wiring.now())
    if since or until:
        begin, end = since, until  # type: ignore[assignment]
    asked = Asked(
        codes=reports.LEAVES,
        left=OdsCode(ods.upper()),
        at=[(begin, end)],
        oldest_first=True,
    )
    used = _given(trust=ods, month=month, since=since, until=until)
    make = _made(lambda rows: reports.left(rows, names, ods.upper()))
    _report(reports.LEFT, asked, used, limit, as_csv, as_json, make, ods)


# ---------------------------------------------------------------- what they share

Make = Callable[[Any, Sequence[book.Row]], Awaitable[list[reports.Row]]]


def _made(pure: Callable[[Sequence[book.Row]], list[reports.Row]]) -> Make:
    async def make(engine: Any, entries: Sequence[book.Row]) -> list[reports.Row]:
        del engine
        return pure(entries)

    return make


def _report(
    what: Report,
    asked: Asked,
    used: Sequence[str],
    limit: int,
    as_csv: bool,
    as_json: bool,
    make: Make,
    trust: str | None,
) -> None:
    _require_one_form(as_csv, as_json)
    asking = _asking(used, what.title, as_csv or as_json)

    async def work() -> list[reports.Row]:
        async with wiring.opened(settings_now()) as engine:
            found = await book.entries(engine, asked, asking, most=limit)
            _say_if_more(found, limit)
            return await make(engine, found.rows)

    rows = run_it(work)
    if not rows:
        require_joined(trust)
    _print(what, rows, as_csv, as_json)


def _require_one_form(*forms: bool) -> None:
    if sum(forms) > 1:
        fail("Give one of --csv, --json and --page: an answer has one form.")


def _say_if_more(found: book.Page, limit: int) -> None:
    """An answer that is cut short must not look whole; on standard error, where no file takes it for a row."""
    if found.after:
        print(
            f"hub: Made from {limit} entries, and there are more: raise --limit, or narrow with --since and --until.",
            file=sys.stderr,
        )


def _print(what: Report, rows: Sequence[reports.Row], as_csv: bool, as_json: bool) -> None:
    if as_csv:
        print(csv_text(what.columns, rows), end="")
        return
    show([dict(row) for row in rows], as_json, what.columns, what.empty)


def _asking(used: Sequence[str], title: str = "", exported: bool = False) -> Asking:
    detail = {"report": title} if title else {}
    return Asking("cli", wiring.now(), {"user_id": getpass.getuser()}, used, detail, exported=exported)


def _given(**said: Any) -> list[str]:
    """The names of what was asked by, for the audit: never the values. What cannot be asked ends the command: its empty answer would look like a
    true one.
    """
    require_said(**{name: value for name, value in said.items() if isinstance(value, str)})
    _require_order(said.get("since"), said.get("until"))
    return [name for name, value in said.items() if value]


def _patient(text: str) -> list[Any]:
    from hub.facade.searching import token_of

    return [token_of(text)]


def _of_trust(ods: str) -> list[Is]:
    return [Is("trust", _code(ods)), Is("counterpart", _code(ods))]


def _code(said: str) -> str:
    """An ODS code, or the hub's own name, as entries have them."""
    return HUB if said.lower() == HUB else said.upper()


def _only(ods: str | None) -> list[list[Is]]:
    return [_of_trust(ods)] if ods else []


def _require_order(since: datetime | None, until: datetime | None) -> None:
    if since and until and until <= since:
        fail("--until must be later than --since: nothing happened in between.")


def _names() -> dict[str, str]:
    return {each.ods: each.name for each in directory_now()}
