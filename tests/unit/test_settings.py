"""Settings: each has a unit and a reason, and `hub settings` shows them all but no secret."""

import json
import os

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from hub.settings import HubSettings

FIELDS = HubSettings.model_fields


@pytest.mark.parametrize("name", FIELDS)
def test_each_has_a_unit_and_a_reason(name):
    field = FIELDS[name]

    assert field.json_schema_extra["unit"].strip()
    assert field.description.strip().endswith(".")


def hub_command(*arguments):
    """What a `hub` command does with the environment as it is now."""
    from hub import cli
    from hub.commands import terminal

    terminal.settings_now.cache_clear()
    result = CliRunner().invoke(cli.app, arguments)
    terminal.settings_now.cache_clear()
    return result


@pytest.fixture
def shown(monkeypatch):
    def show(*arguments, **environment):
        for name in [each for each in os.environ if each.startswith("HUB_")]:
            monkeypatch.delenv(name)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        result = hub_command("settings", *arguments)
        assert result.exit_code == 0, result.output
        return result.output

    return show


def test_the_command_prints_all_of_them(shown):
    rows = [json.loads(line) for line in shown("--json").splitlines()]

    assert [row["setting"] for row in rows] == [f"HUB_{name.upper()}" for name in FIELDS]
    assert {row["source"] for row in rows} == {"default"}
    assert all(row["unit"] and row["reason"] for row in rows)


@pytest.mark.parametrize("as_json", [["--json"], []])
def test_secrets_are_masked(shown, as_json):
    output = shown(
        *as_json,
        HUB_DATABASE_URL="postgresql+asyncpg://hub:hunter2@db/hub",
        HUB_KAFKA_PASSWORD="swordfish",
    )

    assert "hunter2" not in output
    assert "swordfish" not in output
    if as_json:
        rows = {row["setting"]: row for row in map(json.loads, output.splitlines())}
        assert rows["HUB_DATABASE_URL"]["value"] == "postgresql+asyncpg://hub:***@db/hub"
        assert (rows["HUB_KAFKA_PASSWORD"]["source"], rows["HUB_LOG_LEVEL"]["source"]) == (
            "environment",
            "default",
        )


def test_a_password_elsewhere_in_a_url_is_masked_too(shown):
    output = shown(
        "--json",
        HUB_DATABASE_URL="postgresql+asyncpg:///hub?host=db&password=hunter2",
        HUB_AUDIT_REPOSITORY_URL="https://hub:swordfish@audit.example/fhir",
    )

    assert "hunter2" not in output
    assert "swordfish" not in output
    assert "https://hub:***@audit.example/fhir" in output


def test_secrets_are_not_in_a_repr(monkeypatch):
    monkeypatch.setenv("HUB_KAFKA_PASSWORD", "swordfish")
    monkeypatch.setenv("HUB_DATABASE_URL", "postgresql+asyncpg://hub:hunter2@db/hub")

    assert "swordfish" not in repr(HubSettings())
    assert "hunter2" not in repr(HubSettings())


@pytest.mark.parametrize(
    ("name", "value"), [("MESSAGE_BYTES_MAX", "1"), ("NHS_NUMBER_CHECK", "maybe"), ("WATCHDOG_S", "0")]
)
def test_a_senseless_value_is_refused(monkeypatch, name, value):
    monkeypatch.setenv(f"HUB_{name}", value)
    with pytest.raises(ValidationError):
        HubSettings()


@pytest.mark.parametrize(
    "url",
    [
        "hunter2",
        "postgresql://hub:hunter2@db/hub",
        "mysql://hub:hunter2@db/hub",
        "sqlite:///hunter2.db",
        "postgresql+asyncpg://hub:pa@ss:hunter2@db/hub",
    ],
)
def test_a_database_that_cannot_be_one_is_one_line_without_what_was_given(monkeypatch, url):
    monkeypatch.setenv("HUB_DATABASE_URL", url)
    result = hub_command("db", "current")
    assert result.exit_code == 1
    assert "hunter2" not in result.output
    assert "hub: HUB_DATABASE_URL: must be a URL that begins with postgresql+asyncpg://" in result.stderr
    assert "hunter2" not in result.output


def test_settings_do_not_change_while_the_program_runs():
    with pytest.raises(ValidationError):
        HubSettings().log_level = "debug"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+asyncpg://hub:hunter2@db/hub?sslmode=require",
        "postgresql+asyncpg://hub@db/hub?hunter2=1",
        "postgresql+asyncpg://hub:hunter2@db:99999/hub",
        "postgresql+asyncpg://hub:hunter2@db/hub?prepared_statement_cache_size=hunter2",
        "sqlite+aiosqlite:///hub.db?timeout=hunter2",
    ],
)
def test_an_option_that_the_driver_does_not_take_is_one_line(monkeypatch, url):
    monkeypatch.setenv("HUB_DATABASE_URL", url)
    result = hub_command("transfers", "list")
    assert (result.exit_code, type(result.exception)) == (1, SystemExit)
    assert "hub: HUB_DATABASE_URL: has a port or an option" in result.stderr
    assert "hunter2" not in result.output


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+asyncpg://hub@db:5432/hub?ssl=require&prepared_statement_cache_size=0",
        "postgresql+asyncpg://hub@/hub?host=db1:5432&host=db2:5432",
        "postgresql+asyncpg:///hub?host=/run/postgresql",
        "sqlite+aiosqlite:///hub.db?timeout=3",
    ],
)
def test_an_option_that_it_takes_is_taken(monkeypatch, url):
    monkeypatch.setenv("HUB_DATABASE_URL", url)
    assert HubSettings().database_url.get_secret_value() == url
