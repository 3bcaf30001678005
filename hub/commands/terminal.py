"""What the commands share: how one is run, how it fails, how it prints. Only these read the settings."""

import asyncio
import errno
import functools
import os
import sys
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, NoReturn, TypeVar

import orjson
import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from hub import wiring
from hub.domain.transfer import HUB
from hub.domain.trust import Directory
from hub.services.supervisor import end_with_the_supervisor
from hub.settings import HubSettings
from hub.store import schema
from hub.store.intake import StoreUnavailableError
from hub.store.queries import NotFoundError
from hub.store.unit_of_work import database_fault, is_refusal
from hub.telemetry.log import set_up
from hub.trusts import TrustsError

AsJson = Annotated[bool, typer.Option("--json", help="One JSON object per line.")]


def _a_reason(said: str) -> str:
    if not said.strip() or "\x00" in said:
        raise typer.BadParameter("say why: whoever reads the audit must understand it")
    return said


Because = Annotated[str, typer.Option(help="Why; it is written into the audit.", callback=_a_reason)]
Ods = Annotated[str, typer.Option("--trust", help="The trust's ODS code, for example RA9.")]


def moment(said: str | datetime) -> datetime:
    """A time as people type it and as the hub prints it: ISO 8601, a date alone is its beginning, UTC where no offset is said. In UTC."""
    try:
        found = datetime.fromisoformat(str(said))
        return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise typer.BadParameter(
            f"{said} is no time: 2026-11-23, 2026-11-23T09:00:00, or with Z or an offset."
        ) from None


Result = TypeVar("Result")


def group(text: str) -> typer.Typer:
    """A group of commands; ``text`` is its help. `hub.cli` gives it its name."""
    return typer.Typer(no_args_is_help=True, help=text, pretty_exceptions_enable=False)


class Failure(Exception):  # noqa: N818 - it is an answer to the person at the terminal
    """Ends the command with one clear line and exit code 1."""


_LET_IN_NOBODY = "The database lets nobody in with this user and password. Check both in HUB_DATABASE_URL, and pg_hba.conf."
_IN_WORDS = {
    "28000": _LET_IN_NOBODY,
    "28P01": _LET_IN_NOBODY,
    "3D000": "The server has no database of the name that HUB_DATABASE_URL gives. Check the name, or create it.",
    "42501": "The database's user may not do that. Run it as the owner of the tables (HUB_DATABASE_URL), as hub db upgrade is.",
}
"""What PostgreSQL says by its SQLSTATE: invalid_authorization_specification, invalid_password, invalid_catalog_name, insufficient_privilege.
Never in its own words, which quote the user and the address.
"""


def run_it(work: Callable[..., Coroutine[Any, Any, Result]], *arguments: Any) -> Result:
    """Run a coroutine; what the person can mend is one line, not a traceback."""
    try:
        return asyncio.run(work(*arguments))
    except (schema.SchemaError, TrustsError, wiring.SecondWorkerError, Failure) as error:
        fail(str(error))
    except (StoreUnavailableError, OSError, DBAPIError, TimeoutError) as error:
        if is_of_the_output(error):
            raise
        if isinstance(error, DBAPIError) and is_refusal(error):
            fail(
                "The database is well and refuses one of the values: is a number too large, or a word no text?"
            )
        if (said := _IN_WORDS.get(getattr(getattr(error, "orig", None), "sqlstate", ""))) is not None:
            fail(said)
        kind = database_fault(error) if isinstance(error, DBAPIError) else type(error).__name__
        fail(
            f"The database cannot be used ({kind}). Check HUB_DATABASE_URL (see `hub settings`) and that it runs."
        )


_OUTPUT = frozenset({errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})


def is_of_the_output(error: BaseException) -> bool:
    """Whether what a command printed could not be written: whoever read it has gone, the disk is full, or it was started without a standard
    output. No database says so by an errno.
    """
    wrong = _OUTPUT if sys.__stdout__ else _OUTPUT | {errno.EBADF}
    return type(error) in {OSError, BrokenPipeError} and getattr(error, "errno", None) in wrong


def with_whole_output(command: Callable[[], None]) -> None:
    """Run ``command`` to its `SystemExit`. An answer that could not be written whole ends with 1 and one line; nobody is told that who read it has gone."""
    code: str | int | None = 0
    if sys.__stdout__ is None:
        # Started with it closed (>&-). A service writes nothing there; what does is to fail as on a full disk.
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_RDONLY), "w")
    try:
        try:
            command()
        except SystemExit as ended:
            code = ended.code
        sys.stdout.flush()
    except OSError as error:
        if not is_of_the_output(error):
            raise
        # What is left in the buffer would be tried again, and fail again, as Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno != errno.EPIPE:
            why = error.strerror if sys.__stdout__ else "standard output is closed"
            print(f"hub: The answer could not be written: {why}. It is not whole.", file=sys.stderr)
        code = code or 1
    raise SystemExit(code)


def change(work: Callable[[AsyncEngine], Awaitable[None]], missing: str) -> None:
    """Change something in the store and say that it is done; ``missing`` says what there is not, where `NotFoundError` is raised."""

    async def changed(settings: HubSettings) -> None:
        async with wiring.opened(settings) as engine:
            try:
                await work(engine)
            except NotFoundError:
                raise Failure(missing) from None
        print("done")

    run_it(changed, settings_now())


def directory_now() -> Directory:
    """The trusts that have joined; a folder that cannot be used is said, and ends the command."""
    try:
        return wiring.directory(settings_now())
    except TrustsError as error:
        fail(str(error))


def require_said(**said: str | None) -> None:
    """For options and arguments that narrow a question or answer one, by name: an empty one is a variable that was not set, and would ask for
    everything, or answer nothing.
    """
    for name, value in said.items():
        if value is not None and not value.strip():
            fail(f"The value for {name.replace('_', '-')} is empty.")


def require_joined(*said: str | None) -> None:
    """For an answer that is empty: a code that nobody has would get the same. A trust that has left is still found by what it did."""
    trusts = directory_now()
    for ods in said:
        if ods and ods.lower() != HUB and ods.upper() not in trusts:
            fail(f"No trust {ods.upper()} has joined. `hub trust list` shows those that have.")


def say_if_more(found: int, limit: int, how: str) -> None:
    """A list that is cut short must not look whole; on standard error, where no file takes it for a row."""
    if found > limit:
        print(
            f"hub: These are {limit}, and there are more: raise --limit, or narrow with {how}.",
            file=sys.stderr,
        )


def fail(line: str) -> NoReturn:
    """End the command with one line that says what is wrong."""
    Console(stderr=True, highlight=False).print(f"hub: {line}", style="red", markup=False, soft_wrap=True)
    raise typer.Exit(1)


def show(rows: Sequence[dict[str, Any]], as_json: bool, columns: Sequence[str], empty: str) -> None:
    """Rows as a table of these columns, or whole and one JSON object a line."""
    if as_json:
        for row in rows:
            print(orjson.dumps(row, default=str).decode())
        return
    if not rows:
        print(empty)
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column.replace("_", " "), overflow="fold")
    for row in rows:
        # As it is: what a table shows comes from others, and [brackets] are markup to it.
        table.add_row(*(Text(cell(row.get(column))) for column in columns))
    Console(highlight=False).print(table)


def cell(value: Any) -> str:
    """A value as a table shows it."""
    if isinstance(value, datetime):
        return f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z"
    return (
        ""
        if value is None
        else orjson.dumps(value, default=str).decode()
        if isinstance(value, dict | list)
        else str(value)
    )


@functools.cache
def settings_now() -> HubSettings:
    """The settings, read once. What one cannot be is one line, without the value, which may be a secret."""
    try:
        return HubSettings()
    except ValidationError as error:
        wrong = (
            f"HUB_{'_'.join(map(str, each['loc'])).upper()}: {each['msg'].removeprefix('Value error, ')}"
            for each in error.errors(include_url=False, include_context=False, include_input=False)
        )
        fail(f"{'; '.join(wrong)}. See `hub settings` without it.")


def logging_settings() -> HubSettings:
    """The settings, for a service: it logs, and it ends when its supervisor does."""
    found = settings_now()
    set_up(found.log_format, found.log_level)
    end_with_the_supervisor()
    return found
