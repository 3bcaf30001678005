"""The evidence map (`deploy/governance/dspt-evidence.yaml`): what of the hub supports which theme of the toolkit, and whose duty the rest is."""

from collections.abc import Iterator
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Text = Annotated[str, Field(min_length=1)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Evidence(_Part):
    """``files`` and ``commands`` are where it can be seen, ``tests`` what holds it."""

    what: Text
    files: tuple[Text, ...] = ()
    commands: tuple[Text, ...] = ()
    tests: tuple[Text, ...] = ()


class Theme(_Part):
    id: Text
    theme: Text
    supported_by: Annotated[tuple[Evidence, ...], Field(min_length=1)]
    own_duty: Annotated[tuple[Text, ...], Field(min_length=1)]


class EvidenceMap(_Part):
    status: Text
    themes: Annotated[tuple[Theme, ...], Field(min_length=1)]


def page(found: EvidenceMap) -> Iterator[str]:
    """The lines of `deploy/governance/dspt-evidence.md`."""
    yield "# Evidence for the Data Security and Protection Toolkit"
    yield ""
    yield "Made by `hub governance dspt-evidence` from `dspt-evidence.yaml`; a test holds it to that file, and each file, command and test to what is there."
    yield found.status.strip()
    for theme in found.themes:
        yield ""
        yield f"## {theme.id} {theme.theme}"
        yield ""
        yield "| what the hub gives | seen in | held by |"
        yield "|---|---|---|"
        for each in theme.supported_by:
            seen = ", ".join(f"`{name}`" for name in (*each.commands, *each.files))
            tests = "<br>".join(f"`{name.removeprefix('tests/')}`" for name in each.tests)
            yield f"| {each.what} | {seen} | {tests} |"
        yield ""
        yield "The organisation's own duty:"
        yield ""
        yield from (f"* {duty}" for duty in theme.own_duty)
