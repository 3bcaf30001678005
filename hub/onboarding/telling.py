"""An explanation for a person at a terminal: what is wrong, with the line; what was changed, and by which rule."""

from collections.abc import Iterator
from typing import Any

from rich.console import Group, RenderableType
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from hub.fhir import decimals
from hub.journey.explain import Explanation
from hub.onboarding.source_lines import line_of

_OUTCOME_STYLE = {"canonical": "bold green", "quarantined": "bold red", "rejected": "bold red"}
_AROUND = 2
"""Lines shown before and after the one that is meant."""


def tell(explanation: Explanation, text: str) -> RenderableType:
    """The explanation beside ``text``, the message as it was sent."""
    return Group(*_parts(explanation, text))


def _parts(explanation: Explanation, text: str) -> Iterator[RenderableType]:
    event = f", {explanation.event_type}" if explanation.event_type else ""
    yield Text.assemble(
        (explanation.outcome, _OUTCOME_STYLE[explanation.outcome]), f"  {explanation.dialect}{event}\n"
    )
    for issue in explanation.issues:
        style = "red" if issue["severity"] == "error" else "yellow"
        yield Text.assemble((f"{issue['code']} ", f"bold {style}"), (issue["path"], "cyan"))
        if issue["message"]:
            yield Text(f"  {issue['message']}")
        line = line_of(text, issue["path"]) if issue["path"] else None
        if line is not None:
            yield Syntax(
                text,
                "json",
                line_numbers=True,
                line_range=(max(1, line - _AROUND), line + _AROUND),
                highlight_lines={line},
                background_color="default",
            )
        yield Text("")
    if explanation.changes:
        yield Text("Changed", style="italic")
        for change in explanation.changes:
            yield Text.assemble(
                (change.path, "cyan"), f"  {_said(change.before)} → ", (_said(change.after), "green")
            )
            yield Text(f"  by {change.rule} {change.source}".rstrip(), style="dim")
        yield Text("")
    if explanation.unmapped:
        yield _table(
            "Kept, without a place in the canonical form",
            ("where", "value", "why"),
            [(each.path, _said(each.value), each.why) for each in explanation.unmapped],
        )
    if explanation.routes:
        yield _table(
            "Goes to",
            ("trust", "topic", "what"),
            [(each["to"] or "–", each["topic"] or "–", each["what"]) for each in explanation.routes],
        )
    if explanation.canonical is not None:
        yield Text("The canonical Bundle: --json shows it.", style="dim")


def _table(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> Table:
    table = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _said(value: Any) -> str:
    return value if isinstance(value, str) else decimals.dumps(value).decode()
