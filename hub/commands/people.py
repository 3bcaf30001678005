"""`hub people`: by which numbers patients are known, and the mend of a wrong one."""

import getpass
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
from hub.store.people import Case, Row
from hub.store.queries import NotFoundError
from hub.trusts import load_clocks

people = group("By which numbers patients are known, and the mend of a wrong one.")


@people.command("show")
def people_show(
    number: Annotated[
        str, typer.Argument(help="An NHS number, a hospital's own number, or the hub's id of a person.")
    ],
    as_json: AsJson = False,
) -> None:
    """Who is known by this number: their records, their numbers, their transfers, open ones first to be phoned about. Personal data; audited."""
    require_said(number=number)

    async def load(settings: HubSettings) -> list[Row]:
        async with wiring.opened(settings) as engine:
            return await store.known_by(engine, number.strip(), getpass.getuser(), wiring.now())

    rows = run_it(load, settings_now())
    if as_json or not rows:
        show(rows, as_json, (), "Nobody is known by this number.")
        return
    for row in rows:
        for line in _lines(row):
            print(line)


def _lines(row: Row) -> list[str]:
    into = f", merged into {row['merged_into']}" if row["merged_into"] else ""
    return [
        f"Record {row['person_id']}{into}",
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
