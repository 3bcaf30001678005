"""The `hub` command: all its commands, in the order and under the headings of `hub --help`. What each does is in `hub.commands`."""

from typing import Any

import typer

from hub.commands import audit_log, audit_reports, join, prepare, run, untangle
from hub.commands.clients import clients
from hub.commands.governance import governance
from hub.commands.people import people
from hub.commands.retention import retention
from hub.commands.terminal import group, with_whole_output
from hub.commands.transfers import transfers
from hub.commands.trust import trust

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="""
Carries patient transfers between hospitals of different NHS trusts.

Each trust's record system writes FHIR events to its topic `epr.<ods>.events`; the hub works out which transfer they belong to,
tells the other hospital at `hub.<ods>.inbox`, answers the sender at `hub.<ods>.receipts`, and writes an audit trail.

**See it work:** `hub demo`.
**Run it:** `hub db upgrade`, `hub topics apply`, then `hub run` (or `hub worker`, `hub dispatcher` and `hub clock` apart).
**Join in:** `hub send FILE --trust ODS`, `hub tail --trust ODS`.
**Ask:** `hub transfers list`, `hub transfers show TRANSFER`, `hub audit search`, `hub audit trail TRANSFER`.
**Untangle:** `hub quarantine list`, `hub outbox`, `hub incidents list`, `hub brake list`.

Every setting is an environment variable `HUB_…`; `hub settings` explains each.
""",
)

audit = group("Who sent what to whom, when, and what became of it. Reading is itself audited.")
audit_log.add_to(audit)
audit_reports.add_to(audit)

_COMMANDS: dict[str, dict[str, Any]] = {
    "Run": {
        "worker": run.worker,
        "dispatcher": run.dispatcher,
        "clock": run.clock,
        "serve": run.serve,
        "sealer": run.sealer,
        "feeds": run.feeds,
        "run": run.run,
        "health": run.health,
        "demo": run.demo,
    },
    "Join in": {"send": join.send, "tail": join.tail, "explain": join.explain, "token": join.token},
    "Prepare": {"settings": prepare.settings_, "openapi": prepare.openapi},
    "Untangle": {"replay": untangle.replay, "outbox": untangle.outbox_, "resend": untangle.resend},
}
_GROUPS: dict[str, dict[str, typer.Typer]] = {
    "Prepare": {
        "db": prepare.db,
        "topics": prepare.topics,
        "trust": trust,
        "clients": clients,
        "governance": governance,
        "retention": retention,
    },
    "Ask": {"transfers": transfers, "audit": audit},
    "Untangle": {
        "break-glass": untangle.glass,
        "quarantine": untangle.quarantine,
        "people": people,
        "incidents": untangle.incidents,
        "brake": untangle.brake,
        "positions": untangle.positions,
    },
}
for _panel, _commands in _COMMANDS.items():
    for _name, _command in _commands.items():
        app.command(_name, rich_help_panel=_panel)(_command)
for _panel, _groups in _GROUPS.items():
    for _name, _group in _groups.items():
        app.add_typer(_group, name=_name, rich_help_panel=_panel)


def main() -> None:
    """The `hub` command."""
    with_whole_output(app)


if __name__ == "__main__":
    main()
