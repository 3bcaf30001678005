"""`hub people`: by which numbers and which date of birth patients are known, and the mend of what is wrong in it."""

import getpass
import re
from datetime import date
from typing import Annotated

import typer

from hub import wiring
from hub.commands.terminal import (
    AsJson,
    Because,
    Failure,
    directory_now,
    fail,
    group,
    require_said,
    run_it,
    settings_now,
    show,
)
from hub.domain.ids import NHS_AUTHORITY, PersonKey, parse_nhs_number
from hub.domain.transfer import Transfer
from hub.settings import HubSettings
from hub.store import people as store
from hub.store.people import Born, Case, Row
from hub.store.queries import NotFoundError
from hub.trusts import load_clocks

people = group("By which numbers and which date of birth patients are known, and the mend of a wrong one.")


@people.command("show")
def people_show(
    number: Annotated[
        str, typer.Argument(help="An NHS number, a hospital's own number, or the hub's id of a person.")
    ],
    as_json: AsJson = False,
) -> None:
    """Who is known by this number: their records, their dates of birth, numbers and transfers, open ones first to be phoned about. Personal data; audited."""
    require_said(number=number)

    async def load(settings: HubSettings) -> list[Row]:
        async with wiring.opened(settings) as engine:
            return await store.known_by(engine, number.strip(), getpass.getuser(), wiring.now())

    rows = run_it(load, settings_now())
    if not rows:
        fail("Nobody is known by this number.")
    if as_json:
        show(rows, True, (), "")
        return
    for row in rows:
        for line in _lines(row):
            print(line)


def _lines(row: Row) -> list[str]:
    into = f", merged into {row['merged_into']}" if row["merged_into"] else ""
    return [
        f"Record {row['person_id']}{into}",
        f"  born        {row['birth_date'] or 'not known'}",
        *(f"  number      {each['of']}  {each['number']}" for each in row["numbers"]),
        *(f"  not theirs  {each['of']}  {each['number']}" for each in row["not_theirs"]),
        *(
            f"  transfer    {each['transfer_id']}  {each['sender']} → {each['receiver']}  {each['state']}{', open' if each['open'] else ''}"
            for each in sorted(row["transfers"], key=lambda each: not each["open"])
        ),
    ]


@people.command("not-theirs")
def people_not_theirs(
    person: Annotated[
        str,
        typer.Argument(
            help="The hub's id of the person who does not have this number: see `hub people show`."
        ),
    ],
    number: Annotated[
        str, typer.Argument(help="The NHS number, or with --trust that hospital's own number.")
    ],
    because: Because,
    trust: Annotated[
        str | None, typer.Option("--trust", help="It is a number of this trust's, and no NHS number.")
    ] = None,
    system: Annotated[
        str | None,
        typer.Option(help="With --trust: the number's system, where it is not the trust's for its patients."),
    ] = None,
    take_back: Annotated[
        bool,
        typer.Option("--take-back", help="It was said by mistake: it may be theirs after all."),
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Do it; without it only what would be done is said.")
    ] = False,
) -> None:
    """Say that a number is not this person's: a hospital registered them under somebody else's. It is taken from their record; who gives it for them
    again is asked (`needs-confirmation`), and its true holder is somebody else. Hospitals of open transfers are told; audited.
    """
    require_said(person=person, number=number, trust=trust, system=system)
    settings = settings_now()
    directory = directory_now()
    key = _key(number, trust, system)
    if key.value.replace(" ", "") in because.replace(" ", "").replace("-", ""):
        fail("The reason is written into the audit, which holds no patient's number: say it without.")

    async def work(settings: HubSettings) -> Case:
        async with wiring.opened(settings) as engine:
            now, by = wiring.now(), getpass.getuser()
            try:
                if not yes:
                    return await store.case_of(engine, person, key, back=take_back)
                if take_back:
                    return await store.take_back(engine, person, key, because, now, by)
                clocks = load_clocks(settings.schemas_dir, directory)
                return await store.take_number(engine, person, key, because, directory, clocks, now, by)
            except NotFoundError:
                missing = "Nobody has said this of person" if take_back else "This number is not with person"
                raise Failure(f"{missing} {person}: see `hub people show`.") from None

    case = run_it(work, settings)
    for line in _would(case, key, back=take_back, done=yes):
        print(line)


def _key(number: str, trust: str | None, system: str | None) -> PersonKey:
    if trust is None:
        if system:
            fail("A --system is that of a trust's own number: give --trust too.")
        return PersonKey(NHS_AUTHORITY, parse_nhs_number(number).digits)
    directory = directory_now()
    if trust.upper() not in directory:
        fail(f"No trust {trust.upper()} has joined. `hub trust list` shows those that have.")
    profile = directory[trust.upper()]
    return PersonKey(f"{profile.ods}|{system or profile.identifier_systems.patient}", number.strip())


def _would(case: Case, key: PersonKey, *, back: bool, done: bool) -> list[str]:
    record, what = case.record, store.whose(key)
    if back:
        first = f"That {what} is not theirs {'is' if done else 'would be'} taken back of record {record.id}: the next message with it brings it back."
        return [first, *([] if done else ["Nothing was changed. To do it: --yes"])]
    left = ", ".join(sorted(each.authority for each in record.keys - {key})) or "nothing"
    told = {each.id for each in case.told}
    return [
        f"From record {record.id} {what} {'was' if done else 'would be'} taken; it {'is' if done else 'would be'} known by: {left}.",
        *(
            f"  transfer {each.id}  {each.sender} → {each.receiver}  {each.state}: "
            + (
                f"{_parties(each)} {'told' if done else 'would be told'}"
                if each.id in told
                else "over, nobody is told"
            )
            for each in case.transfers
        ),
        "Phone these hospitals: what they were told before still shows the number, and they may have kept it."
        if case.transfers
        else "It has no transfers.",
        *([] if done else ["Nothing was changed. To do it: --yes"]),
    ]


def _parties(transfer: Transfer) -> str:
    """Who has a part in it: the receiver has none in what it was never asked."""
    return " and ".join(each for each in (transfer.sender, transfer.receiver) if transfer.party(each))


_ANY_DATE = re.compile(
    r"\b(\d{4}([-/. ])\d{1,2}\2\d{1,2}|\d{1,2}([-/. ])\d{1,2}\3\d{2,4}"
    r"|\d{1,2}(st|nd|rd|th)?\s+(of\s+)?(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?,?\s+\d{2,4})\b",
    re.IGNORECASE,
)
"""The right date or the wrong one, as people write them. A day on which somebody phoned is refused too: the audit knows the day."""


@people.command("born")
def people_born(
    person: Annotated[str, typer.Argument(help="The hub's id of the person: see `hub people show`.")],
    birth_date: Annotated[
        str, typer.Argument(metavar="DATE", help="YYYY-MM-DD; YYYY-MM or YYYY where no more is known.")
    ],
    because: Because,
    yes: Annotated[
        bool, typer.Option("--yes", help="Do it; without it only what would be done is said.")
    ] = False,
) -> None:
    """Say when somebody was born, where the hub holds another date: a hospital mistyped it, and every message with the right one is a question
    (`needs-confirmation`). All their records hold this one then; audited. Run again what waited: `hub quarantine retry`.
    """
    require_said(person=person, date=birth_date)
    if not _is_a_birth_date(birth_date, wiring.now().date()):
        fail(
            "A date of birth is YYYY-MM-DD, or YYYY-MM or YYYY where no more is known, and not in the future."
        )
    if _ANY_DATE.search(because) or (len(birth_date) > len("YYYY") and birth_date in because):
        fail("The reason is written into the audit, which holds no patient's date of birth: say it without.")

    async def work(settings: HubSettings) -> Born:
        async with wiring.opened(settings) as engine:
            try:
                if not yes:
                    return await store.born_of(engine, person, birth_date)
                return await store.set_birth_date(
                    engine, person, birth_date, because, wiring.now(), getpass.getuser()
                )
            except NotFoundError:
                raise Failure(f"There is no person {person}: see `hub people show`.") from None

    born = run_it(work, settings_now())
    if not born.otherwise:
        print("Every record of this person holds this date already.")
        return
    for record in born.otherwise:
        held = "another date" if record.birth_date else "none"
        print(
            f"Record {record.id} {'held' if yes else 'holds'} {held}{'' if yes else ' and would hold this one'}."
        )
    for transfer in born.open_transfers:
        print(f"  transfer {transfer.id}  {transfer.sender} → {transfer.receiver}  {transfer.state}, open")
    print(
        "Have it mended where it was mistyped, and run again what waited: `hub quarantine list --why needs-confirmation`."
        if yes
        else "Nothing was changed. To do it: --yes"
    )


def _is_a_birth_date(text: str, today: date) -> bool:
    """Whether it is a FHIR date of a day, a month or a year that has begun."""
    if not re.fullmatch(r"[0-9]{4}(-[0-9]{2}(-[0-9]{2})?)?", text):
        return False
    try:
        return date.fromisoformat(f"{text}-01-01"[: len("YYYY-MM-DD")]) <= today
    except ValueError:
        return False
