"""`hub transfers`: how transfers stand, and why."""

import getpass
from datetime import timedelta
from typing import Annotated

import typer

from hub import wiring
from hub.commands.terminal import (
    AsJson,
    Because,
    Failure,
    fail,
    group,
    require_joined,
    require_said,
    run_it,
    say_if_more,
    settings_now,
    show,
)
from hub.domain.transfer import REQUEST_STATUS, TASK_STATUS, State, Transfer
from hub.settings import HubSettings
from hub.store import queries
from hub.store.clocks import NotExpiredError, expire_transfer
from hub.trusts import load_clocks

transfers = group("Transfers as they stand, what they wait for, and why they are where they are.")


@transfers.command("list")
def transfers_list(
    ods: Annotated[str | None, typer.Option("--trust", help="Sent or received by this trust.")] = None,
    state: Annotated[str | None, typer.Option(help="Only in this state, for example awaiting-bed.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Also those that are over.")] = False,
    limit: Annotated[
        int, typer.Option(help="At most this many, the last changed first.", min=1, max=1_000_000)
    ] = 100,
    as_json: AsJson = False,
) -> None:
    """Open transfers: from whom, to whom, how they stand. No patient is named."""
    require_said(trust=ods, state=state)
    if state and state not in set(State):
        fail(f"There is no state {state}: they are {', '.join(State)}.")

    async def load(settings: HubSettings) -> list[queries.Row]:
        async with wiring.opened(settings) as engine:
            return await queries.transfers(
                engine, trust=ods.upper() if ods else None, state=state, ended=all_, limit=limit + 1
            )

    columns = (
        "transfer_id",
        "sender",
        "receiver",
        "state",
        "priority",
        "kind",
        "inferred",
        "changed_at",
        "due_at",
    )
    rows = run_it(load, settings_now())
    if not rows:
        require_joined(ods)
    say_if_more(len(rows), limit, "--trust or --state")
    show(rows[:limit], as_json, columns, "No such transfer." if state or all_ else "No transfer is open.")


@transfers.command("due")
def transfers_due(
    within: Annotated[float, typer.Option(help="Hours to look ahead.", min=0, max=100_000)] = 24,
    as_json: AsJson = False,
) -> None:
    """What is waited for, the most urgent first: the daily chase list."""

    async def load(settings: HubSettings) -> list[queries.Row]:
        async with wiring.opened(settings) as engine:
            return await queries.transfers_due(engine, wiring.now() + timedelta(hours=within))

    columns = ("due_at", "due_clock", "transfer_id", "sender", "receiver", "state", "priority", "kind")
    show(run_it(load, settings_now()), as_json, columns, "Nothing is due.")


@transfers.command("show")
def transfers_show(
    transfer: Annotated[str, typer.Argument(help="The transfer's id.")], as_json: AsJson = False
) -> None:
    """One transfer: how it stands, and its facts in the order in which they happened, each with its source and effect."""
    from hub.governance.timeline import facts, timeline

    async def load(settings: HubSettings) -> tuple[queries.Row, Transfer]:
        async with wiring.opened(settings) as engine:
            try:
                return await queries.transfer_row(engine, transfer), await queries.transfer(engine, transfer)
            except queries.NotFoundError:
                raise Failure(f"There is no transfer {transfer}.") from None

    row, found = run_it(load, settings_now())
    if as_json:
        fhir = {"Task.status": TASK_STATUS[found.state], "ServiceRequest.status": REQUEST_STATUS[found.state]}
        show([row | {"fhir": fhir, "facts": list(facts(found))}], True, (), "")
        return
    for line in timeline(found, row["due_at"], row["due_clock"]):
        print(line)


@transfers.command("history")
def transfers_history(
    transfer: Annotated[str, typer.Argument(help="The transfer's id.")], as_json: AsJson = False
) -> None:
    """The states a transfer had, in the order in which the hub learned of them."""

    async def load(settings: HubSettings) -> list[queries.Row]:
        async with wiring.opened(settings) as engine:
            return await queries.transfer_history(engine, transfer)

    columns = ("version", "received_at", "by", "step", "from_state", "to_state", "because")
    rows = run_it(load, settings_now())
    if not rows:
        fail(f"There is no transfer {transfer}.")
    show(rows, as_json, columns, "")


@transfers.command("lifecycle")
def transfers_lifecycle() -> None:
    """The states, the steps and who may take them, as a page (Markdown, with a Mermaid diagram)."""
    from hub.governance.lifecycle import page

    for line in page():
        print(line)


@transfers.command("expire")
def transfers_expire(
    transfer: Annotated[str, typer.Argument(help="The transfer's id.")], because: Because
) -> None:
    """Close a transfer that nobody acts on. Possible when a clock of its present state has reached level 3; of a draft, a refusal or a question,
    where no clock runs, when nothing was heard for as long as a decision takes to level 3. Audited, and both trusts are told.
    """

    async def expire(settings: HubSettings) -> None:
        trusts = wiring.directory(settings)
        async with wiring.opened(settings) as engine:
            try:
                await expire_transfer(
                    engine,
                    transfer,
                    because,
                    load_clocks(settings.schemas_dir, trusts),
                    trusts,
                    wiring.now(),
                    getpass.getuser(),
                )
            except queries.NotFoundError:
                raise Failure(f"There is no transfer {transfer}.") from None
            except NotExpiredError:
                raise Failure(
                    f"Transfer {transfer} may not be closed: it is over, or no clock that runs in its present state has reached level 3. Where none "
                    "runs it must have lain for as long as a decision may take to level 3. "
                    "`hub transfers show` says how it stands."
                ) from None

    run_it(expire, settings_now())
