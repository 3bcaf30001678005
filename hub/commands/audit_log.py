"""`hub audit export|verify|prove|verify-proof|checkpoint|key|feeds`: the log, for those who check it."""

import getpass
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from hub import wiring
from hub.audit.note import NoteError, read_checkpoint
from hub.commands.terminal import AsJson, Failure, fail, moment, run_it, settings_now, show
from hub.services import log_keys
from hub.services.log_keys import KeyFileError, LogKeys
from hub.settings import HubSettings
from hub.store.sealing import LogBrokenError
from hub.verifier.note import notes_of

Key = Annotated[
    list[Path], typer.Option("--key", help="A file with the log's public keys (hub audit key --public).")
]
_NOTHING_SEALED = "Nothing is sealed yet: start hub sealer (or hub run), and ask again a second later."


_BROKEN = "Somebody changed the log in the database: export all of it (without --since), and hub audit verify says where."

_NO_CHECKPOINT = (
    "Somebody changed the newest checkpoint in the database: it is not in form. Those that went out are in the file "
    "HUB_AUDIT_CHECKPOINT_FILE and on the topic."
)


def add_to(audit: typer.Typer) -> None:
    """Put these commands into the group `hub audit`."""
    for command in (export, verify, prove, checkpoint, key, feeds):
        audit.command()(command)
    audit.command("verify-proof")(verify_proof)


def export(
    since: Annotated[
        datetime | None,
        typer.Option(
            help="UTC, for example 2026-11-23T09:00:00; all of it without.", parser=moment, metavar="TIME"
        ),
    ] = None,
    from_checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="A checkpoint that you have, or a file of them: the export can then be compared with the last."
        ),
    ] = None,
) -> None:
    """The sealed log to standard output, in lines that `hub audit verify` checks. Holds no name and no NHS number; audited."""
    from hub.store import exporting

    old_size = None
    if from_checkpoint is not None:
        try:
            kept = notes_of(from_checkpoint.read_text(encoding="utf-8"))
            old_size = read_checkpoint(kept[-1]).size
        except (OSError, UnicodeDecodeError, NoteError) as error:
            fail(f"{from_checkpoint} is not a checkpoint: {error}")

    async def write(settings: HubSettings) -> None:
        async with wiring.opened(settings) as engine:
            lines = exporting.export(
                engine,
                reader=getpass.getuser(),
                now=wiring.now(),
                since=since,
                old_size=old_size,
            )
            try:
                async for line in lines:
                    _write(line)
            except exporting.NothingSealedError:
                raise Failure(_NOTHING_SEALED) from None
            except LogBrokenError as error:
                raise Failure(f"{error} {_BROKEN}") from None
            except NoteError:
                raise Failure(_NO_CHECKPOINT) from None

    run_it(write, settings_now())
    sys.stdout.buffer.flush()


def _write(line: bytes) -> None:
    try:
        sys.stdout.buffer.write(line)
    except OSError as error:
        raise Failure(f"The export cannot be written: {error.strerror}.") from None


def verify(
    file: Annotated[str, typer.Argument(help="An export; - for standard input.", metavar="EXPORT")],
    keys: Key,
    from_checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="A checkpoint that you kept, or the sealer's file of them: is the log still the one it was?"
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The report as one JSON object.")] = False,
) -> None:
    """Is an export intact? Exit 0: yes. 1: no, and it says which entry was altered, is missing, was added or moved. 2: it cannot be read.

    Needs nothing of the hub's but the file and the public key: `python -m hub.verifier` does the same anywhere.
    """
    from hub.verifier.__main__ import main

    arguments = [file, *(part for path in keys for part in ("--key", str(path)))]
    arguments += ["--from-checkpoint", str(from_checkpoint)] if from_checkpoint else []
    raise typer.Exit(main([*arguments, *(["--json"] if as_json else [])]))


def prove(
    entry: Annotated[
        int,
        typer.Argument(help="The entry's number, as hub audit search --json says it.", min=0, max=2**63 - 1),
    ],
) -> None:
    """The proof that one entry is in the log, to standard output (C2SP tlog-proof): `hub audit verify-proof` checks it alone. Audited."""
    from hub.store import exporting

    async def made(settings: HubSettings) -> str:
        async with wiring.opened(settings) as engine:
            try:
                return await exporting.prove(engine, entry, reader=getpass.getuser(), now=wiring.now())
            except LogBrokenError as error:
                raise Failure(f"{error} {_BROKEN}") from None
            except NoteError:
                raise Failure(_NO_CHECKPOINT) from None
            except exporting.NotSealedError:
                raise Failure(
                    f"Entry {entry} is not in the log: there is none of this number, or it is not sealed yet."
                ) from None

    sys.stdout.write(run_it(made, settings_now()))


def verify_proof(
    file: Annotated[Path, typer.Argument(help="A proof.", exists=True, dir_okay=False)], keys: Key
) -> None:
    """Does a proof hold? Exit 0: yes, and the entry is printed. 1: no. 2: it cannot be read."""
    from hub.verifier import KeyFormatError, read_keys
    from hub.verifier import verify_proof as verified

    try:
        known = read_keys("\n".join(path.read_text(encoding="utf-8") for path in keys))
        # As it is: every byte of it counts, the line ends too.
        report = verified(file.read_bytes().decode(), known)
    except (OSError, UnicodeDecodeError, KeyFormatError) as error:
        print(f"cannot be read: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    if report.intact:
        print(f"proved: leaf {report.index} of {report.origin}, {report.size} entries long, is")
        print(report.entry.decode())
    for finding in report.findings:
        print(f"{finding.kind}: {finding.message}")
    raise typer.Exit(0 if report.intact else 1)


def checkpoint() -> None:
    """The newest signed checkpoint: keep it where the hub's administrators cannot write, and compare later."""
    from hub.store import exporting

    async def newest(settings: HubSettings) -> str:
        async with wiring.opened(settings) as engine:
            found = await exporting.newest_checkpoint(engine)
            if found is None:
                raise Failure(_NOTHING_SEALED)
            return found

    sys.stdout.write(run_it(newest, settings_now()))


def key(
    public: Annotated[
        bool, typer.Option("--public", help="Print the public keys, the newest first.")
    ] = False,
    new: Annotated[bool, typer.Option("--new", help="Make the key file, where there is none.")] = False,
    rotate: Annotated[
        bool, typer.Option("--rotate", help="A new key beside the old one: from then on both sign.")
    ] = False,
    retire: Annotated[
        str | None,
        typer.Option(help="The id of a key that is to sign no more; its public key is kept.", metavar="ID"),
    ] = None,
) -> None:
    """The keys that sign the log (HUB_AUDIT_KEY_FILE). After a change restart `hub sealer`, and give the public keys out again."""
    settings = settings_now()
    path = settings.audit_key_file
    ways: list[tuple[bool, str, Callable[[], LogKeys]]] = [
        (new, "new", lambda: log_keys.new_keys(path, settings.audit_origin)),
        (rotate, "rotate", lambda: log_keys.rotate(path)),
        (retire is not None, "retire", lambda: log_keys.retire(path, retire or "")),
    ]
    wanted = [(what, change) for asked, what, change in ways if asked]
    if len(wanted) > 1 or not (wanted or public):
        fail("Say what: --public, --new, --rotate or --retire ID.")
    try:
        if wanted:
            [(what, change)] = wanted
            keys = run_it(wiring.audit_key_changed, settings, what, getpass.getuser(), change)
        else:
            keys = log_keys.load_keys(path)
    except KeyFileError as error:
        fail(str(error))
    for line in keys.public:
        print(line)


def feeds(as_json: AsJson = False) -> None:
    """How far the audit has been passed on, and why not further."""
    from hub.store import feeds as store
    from hub.store.exporting import newest_checkpoint

    async def load(settings: HubSettings) -> list[dict[str, object]]:
        async with wiring.opened(settings) as engine:
            newest = await newest_checkpoint(engine)
            size = read_checkpoint(newest).size if newest else 0
            return [
                {
                    "feed": each.name,
                    "passed_on": each.next_leaf,
                    "waiting": size - each.next_leaf,
                    "moved_at": each.moved_at,
                    "failures": each.failures,
                    "last_error": each.last_error,
                    "next_attempt_at": each.next_attempt_at,
                }
                for each in await store.feeds(engine)
            ]

    columns = ("feed", "passed_on", "waiting", "moved_at", "failures", "last_error")
    show(run_it(load, settings_now()), as_json, columns, "No feed has run yet.")
