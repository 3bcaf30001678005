"""`hub retention`: what is older than the policy keeps it, and letting it go."""

import getpass
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any

import typer
from sqlalchemy.ext.asyncio import AsyncEngine

from hub import wiring
from hub.commands.terminal import AsJson, group, run_it, settings_now, show
from hub.domain.retention import Policy
from hub.settings import HubSettings
from hub.store import retention as store
from hub.store.retention import Aged
from hub.trusts import load_retention

retention = group(
    "What the hub keeps no longer, by `schemas/retention.yaml`. Contents age out; audit entries do not."
)


@retention.command("plan")
def plan(as_json: AsJson = False) -> None:
    """What would go today, how much of it, and why. Changes nothing."""
    rows = run_it(_with_policy, settings_now(), _planned)
    _say(rows, as_json)


@retention.command("apply")
def apply(
    yes: Annotated[bool, typer.Option("--yes", help="Let it go. There is no way back.")] = False,
    as_json: AsJson = False,
) -> None:
    """Let go of what `hub retention plan` shows; audited, with counts and the policy's digest. May be stopped and run again."""
    _say(run_it(_with_policy, settings_now(), _let_go if yes else _planned), as_json)
    if not yes:
        typer.echo("Nothing was changed. To let it go: hub retention apply --yes", err=True)
        raise typer.Exit(1)


Work = Callable[[AsyncEngine, Policy], Awaitable[list[Aged]]]


async def _with_policy(settings: HubSettings, work: Work) -> list[Aged]:
    policy = load_retention(settings.schemas_dir, wiring.directory(settings))
    async with wiring.opened(settings) as engine:
        return await work(engine, policy)


async def _planned(engine: AsyncEngine, policy: Policy) -> list[Aged]:
    return await store.plan(engine, policy, wiring.now())


async def _let_go(engine: AsyncEngine, policy: Policy) -> list[Aged]:
    return await store.let_go(engine, policy, wiring.now(), getpass.getuser())


def _say(found: Sequence[Aged], as_json: bool) -> None:
    rows: list[dict[str, Any]] = [
        {
            "kind": each.rule.kind.value,
            "rows": each.rows,
            "bytes": each.bytes,
            "oldest": each.oldest,
            "before": each.before,
            "policy": f"{each.rule.days} days after {each.rule.after}",
            "what": each.rule.what,
            "why": each.rule.why,
            "decided_by": each.rule.decided_by,
        }
        for each in found
        if each.rows or as_json
    ]
    show(rows, as_json, ("kind", "rows", "bytes", "before", "policy", "why"), "Nothing has aged out.")
