"""The duty team's commands: what is stuck, why, and how it goes on."""

import getpass
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from hub import wiring
from hub.commands.terminal import (
    AsJson,
    Because,
    Failure,
    Ods,
    cell,
    change,
    directory_now,
    fail,
    group,
    moment,
    require_joined,
    require_said,
    run_it,
    say_if_more,
    settings_now,
    show,
)
from hub.domain.delivery import DeliveryError
from hub.domain.ids import PersonId, TransferId
from hub.domain.message import Received
from hub.domain.rejection import Why
from hub.journey.decide import Choice
from hub.settings import HubSettings
from hub.store import outbox, queries, resending
from hub.store.intake import NotWritableError
from hub.store.unit_of_work import NotQuarantinedError
from hub.trusts import TrustsError, book_beside, load_profile

glass = group("Who saw a patient whose hospital is not theirs, and why.")
quarantine = group("Messages that wait for somebody to mend their cause.")
incidents = group("What is wrong and not yet acknowledged.")
brake = group("Trusts that are paused because everything they sent was quarantined.")
positions = group("How far each partition has been taken in.")


@glass.command("list")
def glass_list(
    open_only: Annotated[bool, typer.Option("--open", help="Only what nobody has looked at.")] = False,
    as_json: AsJson = False,
) -> None:
    """Who broke the glass, for whom (the hub's id), why, and who looked at it."""
    from hub.store.break_glass import grants

    async def work() -> list[dict[str, Any]]:
        async with wiring.opened(settings_now()) as engine:
            return await grants(engine, open_only=open_only)

    columns = ["grant_id", "granted_at", "trust", "user_id", "role_id", "person_id", "reason", "verdict"]
    show(run_it(work), as_json, columns, "Nobody broke the glass.")


@glass.command("review")
def glass_review(
    grant_id: str,
    verdict: Annotated[str, typer.Argument(help="justified or not-justified")],
) -> None:
    """Somebody looked at it: closes its incidents; audited."""
    from hub.store.break_glass import review

    if verdict not in {"justified", "not-justified"}:
        fail("The verdict is justified or not-justified.")
    change(
        lambda engine: review(engine, grant_id, getpass.getuser(), verdict, wiring.now()),
        f"No grant {grant_id} that waits to be looked at.",
    )


def replay(
    ods: Ods,
    since: Annotated[
        datetime,
        typer.Option(help="From when (UTC), for example 2026-01-31T08:00:00.", parser=moment, metavar="TIME"),
    ],
    profile: Annotated[
        Path,
        typer.Option(
            help="The new profile.yaml to try, with the conceptmaps/ beside it if there are any.",
            exists=True,
            dir_okay=False,
        ),
    ],
    values: Annotated[
        bool, typer.Option("--values", help="Also the values, which are patients' data; else paths only.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Try a new version of a trust's profile on the messages it sent: what would differ, field by field. Changes nothing; audited."""
    from hub.onboarding.replay import compare, with_profile

    settings = settings_now()

    async def load(settings: HubSettings) -> tuple[list[Received], int]:
        async with wiring.opened(settings) as engine:
            found = await queries.messages_for_replay(
                engine, ods.upper(), since=since, reader=getpass.getuser(), now=wiring.now()
            )
            return found, await queries.sent_since(engine, ods.upper(), since)

    try:
        rules = wiring.journey(settings, wiring.directory(settings))
        new = load_profile(profile)
        book = book_beside(settings.schemas_dir, profile)
    except TrustsError as error:
        fail(str(error))
    if ods.upper() not in rules.directory:
        fail(f"No trust {ods.upper()} has joined. `hub trust list` shows those that have.")
    if new.ods != ods.upper():
        fail(f"{profile} is a profile of {new.ods}, not of {ods.upper()}.")
    messages, sent = run_it(load, settings)
    if sent > len(messages):
        print(
            f"hub: Of {sent} messages that {new.ods} sent since then, {len(messages)} are tried: of the others the content has aged out, or they "
            "are too many for once. Go on with a later --since.",
            file=sys.stderr,
        )
    rows = [
        {"event_id": received.event_id, "path": each.path}
        | ({"before": each.before, "after": each.after} if values else {})
        for received, differing in compare(messages, rules, with_profile(rules, new, book))
        for each in differing
    ]
    columns = ("event_id", "path", "before", "after") if values else ("event_id", "path")
    show(rows, as_json, columns, "Nothing would differ.")
    if not as_json:
        print(f"{len({row['event_id'] for row in rows})} of {len(messages)} messages would differ.")


@quarantine.command("list")
def quarantine_list(
    ods: Annotated[str | None, typer.Option("--trust", help="Only this trust's.")] = None,
    why: Annotated[str | None, typer.Option(help="Only this reason code.")] = None,
    limit: Annotated[
        int, typer.Option(help="At most this many, the oldest first.", min=1, max=1_000_000)
    ] = 200,
    as_json: AsJson = False,
) -> None:
    """What waits, why, where in the message, and who can mend it. No content is shown."""
    require_said(trust=ods, why=why)
    if why and why not in set(Why):
        fail(f"There is no reason {why}: schemas/asyncapi.yaml lists them.")

    async def load(settings: HubSettings) -> list[queries.Row]:
        async with wiring.opened(settings) as engine:
            return await queries.quarantined(
                engine, trust=ods.upper() if ods else None, why=[why] if why else (), limit=limit + 1
            )

    rows = run_it(load, settings_now())
    if not rows:
        require_joined(ods)
    say_if_more(len(rows), limit, "--trust or --why")
    show(
        rows[:limit],
        as_json,
        ("event_id", "trust", "received_at", "why", "at", "owner", "retries"),
        "Nothing is quarantined.",
    )


@quarantine.command("show")
def quarantine_show(
    event_id: str,
    raw: Annotated[
        bool,
        typer.Option(
            "--raw", help="Write the bytes as received to standard output. They hold personal data; audited."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """One message: why it waits and what to do."""

    async def load(settings: HubSettings) -> tuple[queries.Row, bytes | None]:
        async with wiring.opened(settings) as engine:
            try:
                if raw:
                    content = await queries.content_read(engine, event_id, getpass.getuser(), wiring.now())
                    return (await queries.message(engine, event_id))[0], content
                return (await queries.message(engine, event_id))[0], None
            except queries.NotFoundError:
                raise Failure(f"There is no message {event_id}.") from None

    row, content = run_it(load, settings_now())
    if raw:
        if content is None:
            fail(f"The bytes of message {event_id} are not here: {row['content']}.")
        sys.stdout.buffer.write(content)
        return
    if as_json:
        show([row], True, (), "")
        return
    for name, value in row.items():
        print(f"{name:>16}  {cell(value)}")


@quarantine.command("retry")
def quarantine_retry(
    event_ids: Annotated[list[str], typer.Argument(help="One or more messages.")],
    transfer: Annotated[
        str | None, typer.Option(help="The answer to needs-confirmation: this transfer is meant.")
    ] = None,
    person: Annotated[str | None, typer.Option(help="Or: this person (the hub's id) is meant.")] = None,
    new_person: Annotated[
        bool, typer.Option("--new-person", help="Or: it is none of those whom its identifiers lead to.")
    ] = False,
) -> None:
    """Run the same bytes again, after a mend or with a human's answer. Audited. Exit 1 if one is still quarantined, or was not."""
    require_said(transfer=transfer, person=person)
    choice = Choice(
        TransferId(transfer) if transfer else None, PersonId(person) if person else None, new_person
    )
    if person and new_person:
        fail("It is either this person or a new one.")
    if (transfer or person or new_person) and len(event_ids) > 1:
        fail("An answer is for one message: give one event id with --transfer, --person or --new-person.")

    async def retry(settings: HubSettings) -> bool:
        async with wiring.opened(settings) as engine:
            work = wiring.unit_of_work(settings, engine, wiring.directory(settings))
            well = True
            for event_id in event_ids:
                try:
                    effects = await work.retry(event_id, operator=getpass.getuser(), choice=choice)
                except NotQuarantinedError:
                    # Somebody else, or the clock, was faster with this one; the others still wait.
                    print(f"hub: There is no quarantined message {event_id}.", file=sys.stderr)
                    well = False
                    continue
                except NotWritableError as error:
                    raise Failure(f"The database refuses what becomes of {event_id}: {error}.") from None
                said = effects.rejection
                why = f": {said.why} at {said.at}{f'. {said.detail}' if said.detail else ''}" if said else ""
                print(f"{event_id}  {effects.disposition}{why}")
                well = well and said is None
            return well

    if not run_it(retry, settings_now()):
        raise typer.Exit(1)


def outbox_(as_json: AsJson = False) -> None:
    """What waits for each receiver, since when, and why it was not delivered."""

    async def load(settings: HubSettings) -> list[queries.Row]:
        async with wiring.opened(settings) as engine:
            waiting = await outbox.waiting(engine)
        names = ("receiver", "rows", "oldest", "attempts", "next_attempt_at", "last_error")
        return [{name: getattr(each, name) for name in names} for each in waiting]

    rows = run_it(load, settings_now())
    if rows:
        _say_who_is_not_sent_to(rows)
    show(
        rows,
        as_json,
        ("receiver", "rows", "oldest", "attempts", "next_attempt_at", "last_error"),
        "Nothing waits.",
    )


def _say_who_is_not_sent_to(rows: list[queries.Row]) -> None:
    """What nobody tries has no error of its own. Folders that cannot be used are `hub trust check`'s to tell: what waits is shown all the same."""
    try:
        trusts = wiring.directory(settings_now())
    except TrustsError:
        return
    for row in rows:
        if row["receiver"] not in trusts:
            row["last_error"] = _NO_FOLDER
        elif trusts[row["receiver"]].doors.outward == "polled":
            row["last_error"] = (
                "it waits until the trust fetches and acknowledges it over REST ($inbox, $ack)"
            )


_NO_FOLDER = "no trust with this code has joined: with its folder in HUB_SCHEMAS_DIR, and the services started again, it is delivered"


def resend(
    ods: Ods,
    after: Annotated[
        int,
        typer.Option(
            min=0,
            max=2**63 - 1,
            help="The outbox-seq that the receiver says it read last (of several partitions, the one that was sent first); 0 for everything "
            "that its topics would hold.",
        ),
    ],
    because: Because,
    yes: Annotated[
        bool, typer.Option("--yes", help="Do it; without it only how many there are is said.")
    ] = False,
) -> None:
    """Send again what a receiver's topics hold no longer, because they were made anew or lost their end. What still lies there is left alone.

    What was sent since lies there already: the receiver meets the older messages behind it, under the same event ids and numbers.
    """
    settings = settings_now()
    require_said(trust=ods)
    require_joined(ods)
    profile = directory_now()[ods.upper()]
    if profile.doors.outward != "kafka":
        fail(f"{profile.ods} reads no topics: over REST it can look up what it was told at any time.")
    topics = (profile.inbox_topic, profile.receipts_topic)

    async def work(settings: HubSettings) -> None:
        async with wiring.opened(settings) as engine:
            since = wiring.now() - timedelta(days=settings.topic_retention_days)
            try:
                sent = await resending.sent_after(engine, profile.ods, topics, after, since)
            except queries.NotFoundError:
                raise Failure(f"No message {after} was sent to {profile.ods}.") from None
            try:
                lying = await wiring.lying_in(settings, profile.ods, topics)
            except DeliveryError as error:
                raise Failure(str(error)) from None
            gone = [each for each in sent if (each.seq, each.event_id) not in lying]
            kept = [each for each in gone if each.is_kept]
            print(
                f"After number {after}, {len(sent)} messages were sent to {profile.ods}: {len(sent) - len(gone)} lie in its topics, {len(gone)} do "
                f"not, and of those {len(gone) - len(kept)} cannot be sent again, because their content has aged out."
            )
            if not yes:
                print(f"With --yes {len(kept)} are sent again.")
                return
            by = getpass.getuser()
            again = await resending.send_again(engine, profile.ods, topics, kept, because, wiring.now(), by)
            print(
                f"{again} wait to be sent again."
                if again
                else "Nothing is sent again; no incident was closed."
            )

    run_it(work, settings)


@incidents.command("list")
def incidents_list(
    closed: Annotated[bool, typer.Option("--closed", help="Also those acknowledged.")] = False,
    as_json: AsJson = False,
) -> None:
    """Incidents nobody has acknowledged yet."""

    async def load(settings: HubSettings) -> list[queries.Row]:
        async with wiring.opened(settings) as engine:
            return await queries.incidents(engine, closed=closed)

    rows = run_it(load, settings_now())
    show(
        rows,
        as_json,
        ("incident_id", "kind", "subject", "opened_at", "detail", "to_do", "closed_at"),
        "No incident is open.",
    )


@incidents.command("acknowledge")
def incidents_acknowledge(incident_id: str, because: Because) -> None:
    """Say that somebody has dealt with it."""
    change(
        lambda engine: queries.close_incident(engine, incident_id, because, wiring.now(), getpass.getuser()),
        f"No incident {incident_id} is open.",
    )


@brake.command("list")
def brake_list(as_json: AsJson = False) -> None:
    """Trusts with messages quarantined in a row, and those that are paused."""

    async def load(settings: HubSettings) -> list[queries.Row]:
        async with wiring.opened(settings) as engine:
            return await queries.brakes(engine)

    show(
        run_it(load, settings_now()),
        as_json,
        ("trust", "pulled", "in_a_row", "pulled_at", "why"),
        "No brake is on.",
    )


@brake.command("release")
def brake_release(ods: Annotated[str, typer.Argument(help="The paused trust.")], because: Because) -> None:
    """Let a paused trust's messages run again; a worker takes it up within seconds."""
    change(
        lambda engine: queries.release_brake(engine, ods.upper(), because, wiring.now(), getpass.getuser()),
        f"{ods.upper()} is not paused.",
    )


@positions.command("list")
def positions_list(as_json: AsJson = False) -> None:
    """The next offset of every partition, and when it last moved."""

    async def load(settings: HubSettings) -> list[queries.Row]:
        async with wiring.opened(settings) as engine:
            return await queries.positions(engine)

    show(
        run_it(load, settings_now()),
        as_json,
        ("topic", "partition", "next_offset", "moved_at"),
        "Nothing was read yet.",
    )


@positions.command("set")
def positions_set(
    topic: str,
    partition: Annotated[int, typer.Argument(min=0, max=2**31 - 1)],
    offset: Annotated[int, typer.Argument(min=0, max=2**63 - 1)],
    because: Because,
) -> None:
    """Read a partition from this offset on: the mend when a topic was made anew.

    Workers take up one that they refuse by themselves, within seconds. Before you set one that is being read, stop them.
    """
    change(
        lambda engine: queries.set_position(
            engine, topic, partition, offset, because, wiring.now(), getpass.getuser()
        ),
        f"No position is known for {topic}/{partition}.",
    )
