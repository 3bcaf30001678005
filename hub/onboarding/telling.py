"""An explanation for a person at a terminal: what is wrong, with the line; what was changed, and by which rule."""

from collections.abc import Iterator, Sequence
from typing import Any

import orjson
from rich.console import Group, RenderableType
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from hub.fhir import decimals
from hub.journey.explain import Explanation
from hub.onboarding.coverage import Coverage
from hub.onboarding.source_lines import is_xml, line_of

_OUTCOME_STYLE = {"canonical": "bold green", "quarantined": "bold red", "rejected": "bold red"}
_AROUND = 2
"""Lines shown before and after the one that is meant."""
_LINE_MAX = 400
"""Characters of a line that a person can still look along."""


def tell(explanation: Explanation, text: str) -> RenderableType:
    """The explanation beside ``text``, the message as it was sent."""
    shown = _laid_out(text)
    aside = (
        () if shown == text else (Text("The message is one long line; it is shown laid out.", style="dim"),)
    )
    return Group(*aside, *_parts(explanation, shown))


def _laid_out(text: str) -> str:
    """JSON that was written for machines, with its lines; anything else as it is."""
    if all(len(line) <= _LINE_MAX for line in text.splitlines()):
        return text
    try:
        return decimals.dumps(decimals.loads(text.encode()), option=orjson.OPT_INDENT_2).decode()
    except (ValueError, UnicodeError):
        return text


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
                "xml" if is_xml(text) else "json",
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


def tell_coverage(ods: str, found: Coverage) -> RenderableType:
    """Everything that a trust's examples show of its codes."""
    sets = [
        (system.rpartition("/")[2], f"{len(seen)} of {size}", " ".join(seen))
        for system, (seen, size) in found.code_sets.items()
    ]
    maps = [
        (
            name,
            f"{len(use.used)} of {len(use.used) + len(use.unused)}",
            " ".join(use.unused) if _own(name) else "",
        )
        for name, use in found.maps.items()
    ]
    return Group(
        _table(f"{ods}: codes seen in {found.examples} examples", ("code set", "codes", "which"), sets),
        Text(""),
        _table("Maps used", ("map", "elements", "in no example"), maps),
        Text(""),
        _table("Known to no map", ("example", "where", "code"), found.unmapped)
        if found.unmapped
        else Text("Known to no map: none."),
    )


def sum_up_coverage(ods: str, found: Coverage) -> str:
    """The same in a line."""
    own = [use for name, use in found.maps.items() if _own(name)]
    used = sum(len(use.used) for use in own)
    codes = sum(len(seen) for seen, _ in found.code_sets.values())
    return (
        f"{ods}: {found.examples} examples, {codes} codes of {len(found.code_sets)} code sets seen, "
        f"{used} of {used + sum(len(use.unused) for use in own)} elements of its own maps used, "
        f"{len(found.unmapped)} codes known to no map"
    )


def _own(name: str) -> bool:
    """Whether a map is a trust's. What a shared one has and this trust does not need is no gap."""
    return name.startswith("trusts/")


def _table(title: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Table:
    table = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _said(value: Any) -> str:
    return value if isinstance(value, str) else decimals.dumps(value).decode()
