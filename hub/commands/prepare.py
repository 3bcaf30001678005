"""The commands before the first message: settings, the database, the topics, the facade's description."""

import re
from typing import Any

import typer

from hub import wiring
from hub.commands.terminal import (
    AsJson,
    Because,
    Failure,
    fail,
    group,
    run_it,
    settings_now,
    show,
)
from hub.settings import HubSettings
from hub.store import outbox, restored, schema
from hub.trusts import TrustsError

db = group("The database's schema.")
topics = group("Kafka's topics and their settings.")


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

        url = make_url(value.get_secret_value())
        if "password" in url.query:
            url = url.update_query_dict({"password": "***"})
        return url.render_as_string(hide_password=True)
    return re.sub(r"(://[^/\s]*?:)[^/\s]*@", r"\1***@", str(value))


@db.command("upgrade")
def db_upgrade() -> None:
    """Bring the database to this program's version."""

    async def upgrade(settings: HubSettings) -> None:
        # An index of a large table takes minutes, and half an upgrade is none.
        async with wiring.opened(settings, check_schema=False, long_statements=True) as engine:
            try:
                before, after = await schema.upgrade(engine)
            except schema.TablesInUseError as error:
                raise Failure(str(error)) from None
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


@db.command("restored")
def db_restored(because: Because) -> None:
    """Say that a backup was put back, before any service runs: numbers go on where nobody has seen one.

    Refused while a sealer, the feeds, a facade or a dispatcher that sends work on this database; a worker or a clock alone is not seen.

    Kafka is read again from the backup's positions by itself. What came over REST since the backup is gone: ask the senders.
    """

    async def tell(settings: HubSettings) -> None:
        if wiring.on_sqlite(settings):
            fail(
                "A backup of SQLite is its file: begin with a new database, or go on with the file as it was."
            )
        async with wiring.opened(settings) as engine:
            if held := await outbox.leases(engine, wiring.now()):
                raise Failure(
                    f"A service works on this database ({', '.join(name for name, _ in held)}), and gives the numbers that were given before: "
                    f"nothing was changed. Stop every service; one that was killed counts until {held[-1][1]:%Y-%m-%d %H:%M:%S}Z. Then run it again."
                )
            first = await restored.give_new_numbers(engine, because, wiring.now())
        print(
            f"The outbox goes on at number {first}. Start the services: what Kafka holds since the backup is read again, and hospitals hear "
            "of it a second time under the same event ids. Messages that came over REST since the backup are gone: ask their senders."
        )

    run_it(tell, settings_now())


@topics.command("list")
def topics_list(as_json: AsJson = False) -> None:
    """Each topic there must be, and whether it is there with the right settings. Exit 1 if one is not."""
    _topics(as_json, apply=False)


@topics.command("apply")
def topics_apply(as_json: AsJson = False) -> None:
    """Create the topics that are missing. Nothing is deleted or changed. Exit 1 if one is not there then; one that differs is only said."""
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
    if any(row.state in (kafka_topics.NOT_THERE if apply else kafka_topics.BAD) for row in rows):
        raise typer.Exit(1)


def openapi() -> None:
    """The facade's OpenAPI document, as in `schemas/openapi/facade.json`."""
    from hub.facade.app import openapi_document

    async def work() -> bytes:
        async with wiring.opened(settings_now(), check_schema=False) as engine:
            return openapi_document(wiring.facade_app(settings_now(), engine))

    print(run_it(work).decode(), end="")
