"""One command line for everything. Each command is a thin wrapper: it reads settings, calls, prints."""

import asyncio
import getpass
import sys
import uuid
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console

from hub import wiring
from hub.commands import audit_log, audit_reports
from hub.commands.governance import governance
from hub.commands.retention import retention
from hub.commands.terminal import (
    AsJson,
    Because,
    Failure,
    Ods,
    cell,
    fail,
    logging_settings,
    run_it,
    settings_now,
    show,
)
from hub.domain.ids import OdsCode, PersonId, TransferId, parse_ods
from hub.domain.message import Received
from hub.domain.transfer import REQUEST_STATUS, TASK_STATUS, Transfer
from hub.domain.trust import TrustProfile
from hub.journey.decide import Choice
from hub.services.health import untried
from hub.services.log_keys import KeyFileError
from hub.settings import HubSettings
from hub.store import book, outbox, queries, schema
from hub.store.clocks import NotExpiredError, expire_transfer
from hub.store.unit_of_work import NotQuarantinedError
from hub.telemetry.log import get_log
from hub.trusts import Finding, TrustsError, book_beside, check_codes, check_trusts, load_clocks, load_profile

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
_PANELS = {"run": "Run", "join": "Join in", "ask": "Ask", "untangle": "Untangle", "prepare": "Prepare"}


def _group(name: str, text: str, panel: str) -> typer.Typer:
    group = typer.Typer(no_args_is_help=True, help=text, pretty_exceptions_enable=False)
    app.add_typer(group, name=name, rich_help_panel=_PANELS[panel])
    return group


db = _group("db", "The database's schema.", "prepare")
topics = _group("topics", "Kafka's topics and their settings.", "prepare")
trust = _group("trust", "The trusts that have joined: folders in `schemas/trusts/`.", "prepare")
transfers = _group(
    "transfers", "Transfers as they stand, what they wait for, and why they are where they are.", "ask"
)
clients = _group(
    "clients", "Systems that speak for a trust over REST: their keys and what they may.", "prepare"
)
audit = _group(
    "audit", "Who sent what to whom, when, and what became of it. Reading is itself audited.", "ask"
)
audit_log.add_to(audit)
audit_reports.add_to(audit)
glass = _group("break-glass", "Who saw a patient whose hospital is not theirs, and why.", "untangle")
quarantine = _group("quarantine", "Messages that wait for somebody to mend their cause.", "untangle")
incidents = _group("incidents", "What is wrong and not yet acknowledged.", "untangle")
brake = _group("brake", "Trusts that are paused because everything they sent was quarantined.", "untangle")
positions = _group("positions", "How far each partition has been taken in.", "untangle")
app.add_typer(governance, name="governance", rich_help_panel=_PANELS["prepare"])
app.add_typer(retention, name="retention", rich_help_panel=_PANELS["prepare"])

# ---------------------------------------------------------------- Run


@app.command(rich_help_panel=_PANELS["run"])
def worker() -> None:
    """Read the trusts' events and take them in. Start as many as there are partitions; SQLite allows one."""
    settings = logging_settings()

    async def check() -> None:
        async with wiring.opened(settings):
            wiring.directory(settings)

    run_it(check)
    try:
        raise typer.Exit(wiring.run_worker(settings))
    except (schema.SchemaError, TrustsError, wiring.SecondWorkerError) as error:
        fail(str(error))


@app.command(rich_help_panel=_PANELS["run"])
def dispatcher() -> None:
    """Deliver what the outbox holds to the trusts' inboxes and receipts."""
    run_it(wiring.run_dispatcher, logging_settings())


@app.command(rich_help_panel=_PANELS["run"])
def clock() -> None:
    """Tell both hospitals when a transfer has waited too long (`schemas/clocks.yaml`)."""
    try:
        run_it(wiring.run_clock, logging_settings())
    except TrustsError as error:
        fail(str(error))


@app.command(rich_help_panel=_PANELS["run"])
def serve() -> None:
    """The FHIR REST facade, for systems without Kafka: `hub/facade/README.md` shows how to use it."""
    try:
        run_it(wiring.run_facade, logging_settings())
    except (TrustsError, wiring.TokenKeyError) as error:
        fail(str(error))


@app.command(rich_help_panel=_PANELS["run"])
def sealer() -> None:
    """Seal the audit: entries become leaves of a log that shows every change, and signed checkpoints go out."""
    try:
        run_it(wiring.run_sealer, logging_settings())
    except KeyFileError as error:
        fail(str(error))


@app.command(rich_help_panel=_PANELS["run"])
def feeds() -> None:
    """Pass the sealed audit on as AuditEvents: to the topic `hub.audit`, and to a repository (HUB_AUDIT_REPOSITORY_URL)."""
    try:
        run_it(wiring.run_feeds, logging_settings())
    except TrustsError as error:
        fail(str(error))


SERVICES = ("worker", "dispatcher", "clock", "sealer", "feeds")


@app.command(rich_help_panel=_PANELS["run"])
def run() -> None:
    """All services on this machine under one supervisor, which restarts what dies and says so."""
    from hub.services.supervisor import Supervisor

    settings = logging_settings()
    supervisor = Supervisor(
        (*SERVICES, "serve") if settings.facade_port else SERVICES,
        get_log(service="run"),
        backoff_s=settings.restart_backoff_s,
        backoff_max_s=settings.restart_backoff_max_s,
    )
    run_it(supervisor.run)


@app.command(rich_help_panel=_PANELS["run"])
def health() -> None:
    """Exit 0 if the database answers, its schema fits, and no message has waited longer than the watchdog allows."""

    async def check(settings: HubSettings) -> None:
        async with wiring.opened(settings) as engine:
            patience = timedelta(seconds=settings.watchdog_s)
            stuck = await untried(engine, wiring.directory(settings), patience, wiring.now())
            if stuck:
                raise Failure(
                    f"Nothing was even tried for {', '.join(stuck)} in {settings.watchdog_s:.0f} s: is a dispatcher running?"
                )
        print("well")

    run_it(check, settings_now())


@app.command(rich_help_panel=_PANELS["run"])
def demo(
    once: Annotated[
        bool, typer.Option("--once", help="Tell the story, then leave; exit 0 only if every step was seen.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The last line is one JSON object.")] = False,
) -> None:
    """Watch a patient move from Torbay to Exeter: broker, database, three simulated hospitals, all in this terminal."""
    from hub.demo.story import tell

    raise typer.Exit(tell(once=once, as_json=as_json))


# ---------------------------------------------------------------- Join in


@app.command(rich_help_panel=_PANELS["join"])
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


@app.command(rich_help_panel=_PANELS["join"])
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


# ---------------------------------------------------------------- Prepare


@app.command("settings", rich_help_panel=_PANELS["prepare"])
def settings_(as_json: AsJson = False) -> None:
    """Every setting with its value, unit, reason and source; secrets are masked."""
    found = settings_now()
    rows = []
    for name, field in HubSettings.model_fields.items():
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        source = "environment" if name in found.model_fields_set else "default"
        rows.append(
            {
                "setting": f"HUB_{name.upper()}",
                "value": _masked(name, getattr(found, name)),
                "unit": extra.get("unit"),
                "source": source,
                "reason": field.description,
            }
        )
    show(rows, as_json, ("setting", "value", "unit", "source", "reason"), "")


def _masked(name: str, value: Any) -> str:
    if value is None:
        return ""
    if name == "database_url":
        from sqlalchemy.engine import make_url

        return make_url(value.get_secret_value()).render_as_string(hide_password=True)
    return str(value)


@db.command("upgrade")
def db_upgrade() -> None:
    """Bring the database to this program's version."""

    async def upgrade(settings: HubSettings) -> None:
        async with wiring.opened(settings, check_schema=False) as engine:
            before, after = await schema.upgrade(engine)
        print(
            f"The database is at version {after}."
            if before == after
            else f"The database went from version {before or 'none'} to {after}."
        )

    run_it(upgrade, settings_now())


@db.command("current")
def db_current() -> None:
    """The version the database is at, and the one this program needs."""

    async def found(settings: HubSettings) -> None:
        async with wiring.opened(settings, check_schema=False) as engine:
            print(f"database: {await schema.current(engine) or 'none'}, program: {schema.head()}")

    run_it(found, settings_now())


@topics.command("list")
def topics_list(as_json: AsJson = False) -> None:
    """Each topic there must be, and whether it is there with the right settings. Exit 1 if one is not."""
    _topics(as_json, apply=False)


@topics.command("apply")
def topics_apply(as_json: AsJson = False) -> None:
    """Create the topics that are missing. Nothing is deleted or changed."""
    _topics(as_json, apply=True)


def _topics(as_json: bool, *, apply: bool) -> None:
    from hub.destinations import topics as kafka_topics

    settings = settings_now()
    access = wiring.kafka_access(settings)
    try:
        wanted = kafka_topics.wanted_topics(
            wiring.directory(settings),
            settings.topic_partitions,
            settings.topic_replication,
            settings.topic_retention_days,
            partitions_out=settings.topic_partitions_out,
            audit_topic=settings.audit_topic,
        )
        admin = kafka_topics.open_admin(
            access.bootstrap_servers,
            security_protocol=access.security_protocol,
            username=access.username,
            password=access.password,
            ca_file=access.ca_file,
        )
        rows = kafka_topics.apply(admin, wanted) if apply else kafka_topics.compare(admin, wanted)
    except (kafka_topics.KafkaUnavailableError, TrustsError) as error:
        fail(str(error))
    show(
        [row._asdict() for row in rows],
        as_json,
        ("topic", "state", "detail"),
        "No trust has joined, so there are no topics.",
    )
    if any(row.state in kafka_topics.BAD for row in rows):
        raise typer.Exit(1)


@trust.command("list")
def trust_list(as_json: AsJson = False) -> None:
    """The trusts that have joined."""
    try:
        found = wiring.directory(settings_now())
    except TrustsError as error:
        fail(str(error))
    rows = [
        {
            "ods": each.ods,
            "name": each.name + (" (illustration)" if each.illustration else ""),
            "sites": ", ".join(site.ods for site in each.sites),
            "dialect": each.dialect,
            "events_topic": each.events_topic,
        }
        for each in found
    ]
    show(rows, as_json, ("ods", "name", "sites", "dialect", "events_topic"), "No trust has joined.")


@trust.command("check")
def trust_check(
    ods: Annotated[str | None, typer.Argument(help="Only this trust's folder.")] = None,
    sign_off: Annotated[
        bool,
        typer.Option(
            "--sign-off", help="Write the expected files that are missing or differ. Read them, then commit."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object: findings and coverage.")] = False,
) -> None:
    """Prove the trusts' folders: profile, codes claimed once, maps, worked examples; and say which codes the examples hold.

    Exit 1 and say what is wrong, where, and who can mend it.
    """
    from hub.onboarding import examples
    from hub.onboarding.coverage import coverage
    from hub.onboarding.telling import sum_up_coverage, tell_coverage

    settings = settings_now()
    schemas = settings.schemas_dir
    findings = _of_trust(check_trusts(schemas), ods)
    if not findings:
        trusts = wiring.directory(settings)
        findings = _of_trust(check_codes(schemas, trusts), ods)
    shown = {}
    if not findings:
        rules = wiring.journey(settings, trusts)
        for each in [ods.upper()] if ods else [profile.ods for profile in trusts]:
            if each not in trusts:
                fail(f"No trust {each} has joined. `hub trust list` shows those that have.")
            for file in examples.sign_off(schemas, each, rules) if sign_off else ():
                print(f"written: {file}", file=sys.stderr if as_json else sys.stdout)
            findings += examples.check_examples(schemas, each, rules)
            shown[each] = coverage(examples.explained(schemas, each, rules), rules.books[each], each)
    if as_json:
        told = {
            "findings": [asdict(finding) for finding in findings],
            "trusts": {each: found.as_json() for each, found in shown.items()},
        }
        print(orjson.dumps(told, option=orjson.OPT_INDENT_2).decode())
    else:
        for finding in findings:
            print(finding)
        for each, found in shown.items() if not findings else ():
            if ods:
                Console(highlight=False).print(tell_coverage(each, found))
            else:
                print(sum_up_coverage(each, found))
    if findings:
        raise typer.Exit(1)
    if not as_json:
        proved = sum(found.examples for found in shown.values())
        print(f"Every trust's folder is sound; {proved} worked examples give what was signed off.")


def _of_trust(findings: Iterable[Finding], ods: str | None) -> list[Finding]:
    return [each for each in findings if ods is None or f"/{ods.upper()}/" in f"/{each.file}"]


@trust.command("new")
def trust_new(
    ods: Annotated[str, typer.Argument(help="The trust's ODS code.")],
    name: Annotated[str, typer.Option(help="The trust's full name.")] = "Name of the trust",
) -> None:
    """Begin a trust's folder: a profile to fill in, and a place for worked examples."""
    from hub.onboarding.new_trust import new_trust

    code = parse_ods(ods)
    if code is None:
        fail(f"{ods} is no ODS code: three to six letters and digits.")
    try:
        made = new_trust(settings_now().schemas_dir, code, name)
    except FileExistsError:
        fail(f"{code} has a folder already.")
    for file in made:
        print(f"made: {file}")
    print(f"Fill in the profile, add examples, then: hub trust check {code}")


@trust.command("repairs")
def trust_repairs(as_json: AsJson = False) -> None:
    """What the hub mends in messages before it judges them; a profile's `repairs_off` does without."""
    from hub.journey.repair import RULES

    rows = [{"rule": rule.value, "does": each.does, "because": each.because} for rule, each in RULES.items()]
    show(rows, as_json, ("rule", "does", "because"), "")


@trust.command("schema")
def trust_schema() -> None:
    """Print the JSON Schema of profile.yaml; schemas/trusts/profile.schema.json is this, for editors."""
    print(orjson.dumps(TrustProfile.model_json_schema(), option=orjson.OPT_INDENT_2).decode())


# ---------------------------------------------------------------- REST clients


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
            await add(engine, client)
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
    _change(lambda engine: rotate(engine, client_id, keys, wiring.now()), f"No client {client_id}.")


@clients.command("revoke")
def clients_revoke(client_id: str) -> None:
    """Shut a client out for good, within a second; tokens that it holds are refused too."""
    from hub.store.clients import revoke

    _change(lambda engine: revoke(engine, client_id, wiring.now()), f"No client {client_id}.")


@glass.command("list")
def glass_list(
    open_only: Annotated[bool, typer.Option("--open", help="Only what nobody has looked at.")] = False,
    as_json: AsJson = False,
) -> None:
    """Who broke the glass, for whom (the hub's id), why, and who looked at it."""
    from hub.store.break_glass import grants

    async def work() -> list[dict[str, Any]]:
        async with wiring.opened(settings_now()) as engine:
            return await grants(engine, open_only=open_only)

    columns = ["grant_id", "granted_at", "trust", "user_id", "role_id", "person_id", "reason", "verdict"]
    show(run_it(work), as_json, columns, "Nobody broke the glass.")


@glass.command("review")
def glass_review(
    grant_id: str,
    verdict: Annotated[str, typer.Argument(help="justified or not-justified")],
) -> None:
    """Somebody looked at it: closes its incidents; audited."""
    from hub.store.break_glass import review

    if verdict not in {"justified", "not-justified"}:
        fail("The verdict is justified or not-justified.")
    _change(
        lambda engine: review(engine, grant_id, getpass.getuser(), verdict, wiring.now()),
        f"No grant {grant_id} that waits to be looked at.",
    )


@app.command(rich_help_panel=_PANELS["join"])
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


@app.command(rich_help_panel=_PANELS["prepare"])
def openapi() -> None:
    """The facade's OpenAPI document, as in `schemas/openapi/facade.json`."""
    from hub.facade.app import openapi_document

    async def work() -> bytes:
        async with wiring.opened(settings_now(), check_schema=False) as engine:
            return openapi_document(wiring.facade_app(settings_now(), engine))

    print(run_it(work).decode(), end="")


@app.command(rich_help_panel=_PANELS["join"])
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


# ---------------------------------------------------------------- Ask


@audit.command("trail")
def audit_trail(
    transfer: Annotated[str, typer.Argument(help="The transfer's id.")], as_json: AsJson = False
) -> None:
    """One transfer's story, from the first request to the last delivery, in words a ward manager can read."""
    from hub.governance.trail import tell

    async def load(settings: HubSettings) -> tuple[queries.Row, list[queries.Row]]:
        async with wiring.opened(settings) as engine:
            try:
                row = await queries.transfer_row(engine, transfer)
            except queries.NotFoundError:
                raise Failure(f"There is no transfer {transfer}.") from None
            asked = book.Asked(fits=[[book.Is("transfer_id", transfer)]], oldest_first=True)
            by = book.Asking("cli", wiring.now(), {"user_id": getpass.getuser()}, ["transfer"])
            return row, (await book.entries(engine, asked, by)).rows

    found, entries = run_it(load, settings_now())
    if as_json:
        show(entries, True, (), "")
        return
    names = {each.ods: each.name for each in wiring.directory(settings_now())}
    for line in tell(found, entries, names):
        print(line)


@transfers.command("list")
def transfers_list(
    ods: Annotated[str | None, typer.Option("--trust", help="Sent or received by this trust.")] = None,
    state: Annotated[str | None, typer.Option(help="Only in this state, for example awaiting-bed.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Also those that are over.")] = False,
    limit: Annotated[int, typer.Option(help="At most this many, the last changed first.", min=1)] = 100,
    as_json: AsJson = False,
) -> None:
    """Open transfers: from whom, to whom, how they stand. No patient is named."""

    async def load(settings: HubSettings) -> list[queries.Row]:
        async with wiring.opened(settings) as engine:
            return await queries.transfers(engine, trust=ods, state=state, ended=all_, limit=limit)

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
    show(run_it(load, settings_now()), as_json, columns, "No transfer is open.")


@transfers.command("due")
def transfers_due(
    within: Annotated[float, typer.Option(help="Hours to look ahead.")] = 24,
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
    show(run_it(load, settings_now()), as_json, columns, f"There is no transfer {transfer}.")


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
    """Close a transfer that nobody acts on. Possible when its clocks have reached level 3; audited, and both trusts are told."""

    async def expire(settings: HubSettings) -> None:
        trusts = wiring.directory(settings)
        async with wiring.opened(settings) as engine:
            try:
                await expire_transfer(
                    engine, transfer, because, load_clocks(settings.schemas_dir, trusts), trusts, wiring.now()
                )
            except queries.NotFoundError:
                raise Failure(f"There is no transfer {transfer}.") from None
            except NotExpiredError:
                raise Failure(
                    f"Transfer {transfer} may not be closed: it is over, or its clocks have not reached level 3."
                ) from None

    run_it(expire, settings_now())


# ---------------------------------------------------------------- Untangle


@app.command(rich_help_panel=_PANELS["untangle"])
def replay(
    ods: Ods,
    since: Annotated[datetime, typer.Option(help="From when (UTC), for example 2026-01-31T08:00:00.")],
    profile: Annotated[
        Path,
        typer.Option(
            help="The new profile.yaml to try, with the conceptmaps/ beside it if there are any.",
            exists=True,
            dir_okay=False,
        ),
    ],
    values: Annotated[
        bool, typer.Option("--values", help="Also the values, which are patients' data; else paths only.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Try a new version of a trust's profile on the messages it sent: what would differ, field by field. Changes nothing; audited."""
    from hub.onboarding.replay import compare, with_profile

    settings = settings_now()

    async def load(settings: HubSettings) -> list[Received]:
        async with wiring.opened(settings) as engine:
            return await queries.messages_for_replay(
                engine,
                ods.upper(),
                since=since if since.tzinfo else since.replace(tzinfo=UTC),
                reader=getpass.getuser(),
                now=wiring.now(),
            )

    try:
        rules = wiring.journey(settings, wiring.directory(settings))
        new = load_profile(profile)
        book = book_beside(settings.schemas_dir, profile)
    except TrustsError as error:
        fail(str(error))
    if ods.upper() not in rules.directory:
        fail(f"No trust {ods.upper()} has joined. `hub trust list` shows those that have.")
    if new.ods != ods.upper():
        fail(f"{profile} is a profile of {new.ods}, not of {ods.upper()}.")
    messages = run_it(load, settings)
    rows = [
        {"event_id": received.event_id, "path": each.path}
        | ({"before": each.before, "after": each.after} if values else {})
        for received, differing in compare(messages, rules, with_profile(rules, new, book))
        for each in differing
    ]
    columns = ("event_id", "path", "before", "after") if values else ("event_id", "path")
    show(rows, as_json, columns, "Nothing would differ.")
    if not as_json:
        print(f"{len({row['event_id'] for row in rows})} of {len(messages)} messages would differ.")


@quarantine.command("list")
def quarantine_list(
    ods: Annotated[str | None, typer.Option("--trust", help="Only this trust's.")] = None,
    why: Annotated[str | None, typer.Option(help="Only this reason code.")] = None,
    as_json: AsJson = False,
) -> None:
    """What waits, why, where in the message, and who can mend it. No content is shown."""

    async def load(settings: HubSettings) -> list[queries.Row]:
        async with wiring.opened(settings) as engine:
            return await queries.quarantined(engine, trust=ods.upper() if ods else None, why=why)

    rows = run_it(load, settings_now())
    show(
        rows,
        as_json,
        ("event_id", "trust", "received_at", "why", "at", "owner", "retries"),
        "Nothing is quarantined.",
    )


@quarantine.command("show")
def quarantine_show(
    event_id: str,
    raw: Annotated[
        bool,
        typer.Option(
            "--raw", help="Write the bytes as received to standard output. They hold personal data."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """One message: why it waits and what to do."""

    async def load(settings: HubSettings) -> tuple[queries.Row, bytes | None]:
        async with wiring.opened(settings) as engine:
            try:
                return await queries.message(engine, event_id)
            except queries.NotFoundError:
                raise Failure(f"There is no message {event_id}.") from None

    row, content = run_it(load, settings_now())
    if raw:
        if content is None:
            fail(f"The bytes of message {event_id} are not here: {row['content']}.")
        sys.stdout.buffer.write(content)
        return
    if as_json:
        show([row], True, (), "")
        return
    for name, value in row.items():
        print(f"{name:>16}  {cell(value)}")


@quarantine.command("retry")
def quarantine_retry(
    event_ids: Annotated[list[str], typer.Argument(help="One or more messages.")],
    transfer: Annotated[
        str | None, typer.Option(help="The answer to needs-confirmation: this transfer is meant.")
    ] = None,
    person: Annotated[str | None, typer.Option(help="Or: this person (the hub's id) is meant.")] = None,
) -> None:
    """Run the same bytes again, after a mend or with a human's answer. Audited. Exit 1 if one is still quarantined."""
    choice = Choice(TransferId(transfer) if transfer else None, PersonId(person) if person else None)
    if (transfer or person) and len(event_ids) > 1:
        fail("An answer is for one message: give one event id with --transfer or --person.")

    async def retry(settings: HubSettings) -> bool:
        async with wiring.opened(settings) as engine:
            work = wiring.unit_of_work(settings, engine, wiring.directory(settings))
            well = True
            for event_id in event_ids:
                try:
                    effects = await work.retry(event_id, operator=getpass.getuser(), choice=choice)
                except NotQuarantinedError:
                    raise Failure(f"There is no quarantined message {event_id}.") from None
                why = f": {effects.rejection.why} at {effects.rejection.at}" if effects.rejection else ""
                print(f"{event_id}  {effects.disposition}{why}")
                well = well and effects.rejection is None
            return well

    if not run_it(retry, settings_now()):
        raise typer.Exit(1)


@app.command("outbox", rich_help_panel=_PANELS["untangle"])
def outbox_(as_json: AsJson = False) -> None:
    """What waits for each receiver, since when, and why it was not delivered."""

    async def load(settings: HubSettings) -> list[queries.Row]:
        async with wiring.opened(settings) as engine:
            waiting = await outbox.waiting(engine)
        names = ("receiver", "rows", "oldest", "attempts", "next_attempt_at", "last_error")
        return [{name: getattr(each, name) for name in names} for each in waiting]

    rows = run_it(load, settings_now())
    show(
        rows,
        as_json,
        ("receiver", "rows", "oldest", "attempts", "next_attempt_at", "last_error"),
        "Nothing waits.",
    )


@incidents.command("list")
def incidents_list(
    closed: Annotated[bool, typer.Option("--closed", help="Also those acknowledged.")] = False,
    as_json: AsJson = False,
) -> None:
    """Incidents nobody has acknowledged yet."""

    async def load(settings: HubSettings) -> list[queries.Row]:
        async with wiring.opened(settings) as engine:
            return await queries.incidents(engine, closed=closed)

    rows = run_it(load, settings_now())
    show(
        rows,
        as_json,
        ("incident_id", "kind", "subject", "opened_at", "detail", "closed_at"),
        "No incident is open.",
    )


@incidents.command("acknowledge")
def incidents_acknowledge(incident_id: str, because: Because) -> None:
    """Say that somebody has dealt with it."""
    _change(
        lambda engine: queries.close_incident(engine, incident_id, because, wiring.now()),
        f"No incident {incident_id} is open.",
    )


@brake.command("list")
def brake_list(as_json: AsJson = False) -> None:
    """Trusts with messages quarantined in a row, and those that are paused."""

    async def load(settings: HubSettings) -> list[queries.Row]:
        async with wiring.opened(settings) as engine:
            return await queries.brakes(engine)

    show(
        run_it(load, settings_now()),
        as_json,
        ("trust", "pulled", "in_a_row", "pulled_at", "why"),
        "No brake is on.",
    )


@brake.command("release")
def brake_release(ods: Annotated[str, typer.Argument(help="The paused trust.")], because: Because) -> None:
    """Let a paused trust's messages run again; a worker takes it up within seconds."""
    _change(
        lambda engine: queries.release_brake(engine, ods.upper(), because, wiring.now()),
        f"{ods.upper()} is not paused.",
    )


@positions.command("list")
def positions_list(as_json: AsJson = False) -> None:
    """The next offset of every partition, and when it last moved."""

    async def load(settings: HubSettings) -> list[queries.Row]:
        async with wiring.opened(settings) as engine:
            return await queries.positions(engine)

    show(
        run_it(load, settings_now()),
        as_json,
        ("topic", "partition", "next_offset", "moved_at"),
        "Nothing was read yet.",
    )


@positions.command("set")
def positions_set(
    topic: str, partition: int, offset: Annotated[int, typer.Argument(min=0)], because: Because
) -> None:
    """Read a partition from this offset on: the mend when a topic was made anew. Stop the workers first."""
    _change(
        lambda engine: queries.set_position(engine, topic, partition, offset, because, wiring.now()),
        f"No position is known for {topic}/{partition}.",
    )


def _change(work: Callable[[Any], Awaitable[None]], missing: str) -> None:
    async def change(settings: HubSettings) -> None:
        async with wiring.opened(settings) as engine:
            try:
                await work(engine)
            except queries.NotFoundError:
                raise Failure(missing) from None
        print("done")

    run_it(change, settings_now())


def main() -> None:
    """The `hub` command."""
    app()


if __name__ == "__main__":
    main()
