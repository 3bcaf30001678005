"""`hub clients`: who may speak for a trust over REST."""

import getpass
import uuid
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from hub import wiring
from hub.commands.terminal import (
    AsJson,
    Failure,
    Ods,
    change,
    fail,
    group,
    run_it,
    settings_now,
    show,
)
from hub.domain.ids import parse_ods

clients = group("Systems that speak for a trust over REST: their keys and what they may.")


Jwks = Annotated[
    Path,
    typer.Option("--jwks", help="Its public keys: a JSON Web Key Set, each key with a kid.", exists=True),
]


def _keys(path: Path) -> dict[str, Any]:
    from hub.facade.tokens import key_set

    try:
        keys: dict[str, Any] = orjson.loads(path.read_bytes())
        key_set(keys)
    except ValueError as error:
        fail(f"{path.name}: {error}.")
    return keys


@clients.command("add")
def clients_add(
    ods: Ods,
    name: Annotated[str, typer.Option(help="What the system is, for example its product and site.")],
    jwks: Jwks,
    scopes: Annotated[str, typer.Option(help="SMART system scopes, with spaces between.")] = "system/*.cruds",
) -> None:
    """Let a system in. Prints its client id, which it gives as iss and sub of its assertions."""
    from hub.facade.tokens import is_scopes
    from hub.store.clients import Client, add

    settings, keys = settings_now(), _keys(jwks)
    if not is_scopes(scopes):
        fail("--scopes are SMART system scopes: system/Task.ru, system/Bundle.cs or system/*.cruds.")

    async def work() -> str:
        profiles = wiring.directory(settings)
        if (trust_code := parse_ods(ods)) is None or trust_code not in profiles:
            raise Failure(f"No trust {ods} has joined: see `hub trust list`.")
        async with wiring.opened(settings) as engine:
            client = Client(str(uuid.uuid4()), trust_code, name, keys, scopes, wiring.now())
            await add(engine, client, getpass.getuser())
            return client.id

    print(run_it(work))


@clients.command("list")
def clients_list(as_json: AsJson = False) -> None:
    """Every client, revoked ones too."""
    from hub.store.clients import all_of

    async def work() -> list[dict[str, Any]]:
        async with wiring.opened(settings_now()) as engine:
            return [
                {
                    "client_id": each.id,
                    "trust": each.trust,
                    "name": each.name,
                    "scopes": each.scopes,
                    "keys": ", ".join(str(key.get("kid")) for key in each.keys["keys"]),
                    "created_at": each.created_at,
                    "revoked_at": each.revoked_at,
                }
                for each in await all_of(engine)
            ]

    columns = ["client_id", "trust", "name", "scopes", "keys", "revoked_at"]
    show(run_it(work), as_json, columns, "No client yet: `hub clients add`.")


@clients.command("rotate")
def clients_rotate(client_id: str, jwks: Jwks) -> None:
    """Replace a client's keys. While it changes over, put the old key and the new one into the set."""
    from hub.store.clients import rotate

    keys = _keys(jwks)
    change(
        lambda engine: rotate(engine, client_id, keys, wiring.now(), getpass.getuser()),
        f"No client {client_id}.",
    )


@clients.command("revoke")
def clients_revoke(client_id: str) -> None:
    """Shut a client out for good, within a second; tokens that it holds are refused too, and what it subscribed to ends.

    A client of a trust's own issuer (ODS|client, as the audit has it) is shut out there first; here its subscriptions end.
    """
    from hub.store.clients import revoke

    change(
        lambda engine: revoke(engine, client_id, wiring.now(), getpass.getuser()), f"No client {client_id}."
    )
