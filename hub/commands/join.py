"""The commands of those who join in: send a message, watch what comes, ask what the hub would make of one."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from hub import wiring
from hub.commands.terminal import (
    AsJson,
    Failure,
    Ods,
    fail,
    run_it,
    settings_now,
)
from hub.domain.ids import OdsCode
from hub.trusts import TrustsError


def send(
    file: Annotated[
        Path,
        typer.Argument(
            help="A file with one message, exactly as it should be sent.", exists=True, dir_okay=False
        ),
    ],
    ods: Ods,
    message_id: Annotated[
        str | None, typer.Option(help="x-request-id; a new one by default. Repeat it to try a duplicate.")
    ] = None,
    key: Annotated[str, typer.Option(help="The record's key: messages of one key stay in order.")] = "",
    wait_s: Annotated[
        float, typer.Option(help="How long to wait for the receipt, in seconds; 0 does not wait.")
    ] = 15,
) -> None:
    """Send a file to a trust's events topic with the right headers, and print the receipt."""
    from hub.demo.join_in import send_file

    settings = settings_now()
    _kafka(
        lambda: send_file(
            wiring.kafka_access(settings),
            wiring.directory(settings),
            file,
            ods.upper(),
            message_id,
            key,
            wait_s,
        )
    )


def tail(
    ods: Ods,
    from_start: Annotated[bool, typer.Option("--from-start", help="Also what is there already.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show a trust's inbox and receipts as they come, until Ctrl-C."""
    from hub.demo.join_in import tail_topics

    settings = settings_now()
    _kafka(
        lambda: tail_topics(
            wiring.kafka_access(settings), wiring.directory(settings), ods.upper(), from_start, as_json
        )
    )


def token(client_id: str) -> None:
    """An access token for a client, without its key: in development only (HUB_DEVELOPMENT, HUB_TOKEN_KEY_FILE)."""
    from hub.store.clients import find

    settings = settings_now()
    if not settings.development:
        fail(
            "Tokens are given out here in development only (HUB_DEVELOPMENT=true). A system asks oauth2/token."
        )
    if settings.token_key_file is None:
        fail("Set HUB_TOKEN_KEY_FILE for this command and for `hub serve`, so that it knows the token.")

    async def work() -> str:
        async with wiring.opened(settings) as engine:
            client = await find(engine, client_id)
            if client is None or client.revoked_at is not None:
                raise Failure(f"No client {client_id}: see `hub clients list`.")
            return wiring.token_office(settings).issue(client, client.scopes, wiring.now())

    try:
        print(run_it(work))
    except wiring.TokenKeyError as error:
        fail(str(error))


def explain(
    file: Annotated[Path, typer.Argument(help="A file with one message.", exists=True, dir_okay=False)],
    ods: Ods,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object, the canonical Bundle with it.")
    ] = False,
) -> None:
    """Say what the hub would make of a message, and why, without storing anything. Shows what the message holds."""
    from hub.onboarding.examples import as_text, explain_file
    from hub.onboarding.source_lines import text_of
    from hub.onboarding.telling import tell

    settings = settings_now()
    try:
        trusts = wiring.directory(settings)
        explanation = explain_file(file, OdsCode(ods.upper()), wiring.journey(settings, trusts), wiring.now())
    except TrustsError as error:
        fail(str(error))
    except KeyError:
        fail(f"No trust {ods.upper()} has joined. `hub trust list` shows those that have.")
    except OSError as error:
        fail(f"{file} cannot be read: {error.strerror}.")
    if as_json:
        sys.stdout.buffer.write(as_text(explanation))
    else:
        Console().print(tell(explanation, text_of(file.read_bytes())))


def _kafka(work: Callable[[], Awaitable[int]]) -> None:
    from aiokafka.errors import KafkaError

    async def go() -> int:
        return await work()

    try:
        code = asyncio.run(go())
    except KeyboardInterrupt:
        code = 0
    except KeyError as error:
        fail(f"No trust {error} has joined. `hub trust list` shows those that have.")
    except TrustsError as error:
        fail(str(error))
    except (KafkaError, OSError, TimeoutError) as error:
        fail(
            f"Kafka at {settings_now().kafka_bootstrap_servers} did not answer or refused ({type(error).__name__}). "
            "Check HUB_KAFKA_BOOTSTRAP_SERVERS, and `hub topics list`."
        )
    raise typer.Exit(code)
