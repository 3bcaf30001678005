"""`docker-compose.yml` and `deploy/Dockerfile` name only what there is."""

import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from hub.cli import app
from hub.settings import HubSettings
from hub.store.grants import ROLE

REPOSITORY = Path(__file__).resolve().parents[2]
COMPOSE_TEXT = (REPOSITORY / "docker-compose.yml").read_text(encoding="utf-8")
SERVICES: dict[str, Any] = yaml.safe_load(COMPOSE_TEXT)["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
DOCKERFILE = (REPOSITORY / "deploy" / "Dockerfile").read_text(encoding="utf-8")
VALIDATE = REPOSITORY / "deploy" / "validate.sh"


def leads_to_a_command(words: list[str]) -> bool:
    """Whether `hub <words>` names a command, and not only a group of commands."""
    at: Any = typer.main.get_command(app)
    for word in words:
        at = getattr(at, "commands", {}).get(word)
        if at is None:
            return False
    return not getattr(at, "commands", {})


def seconds(duration: str) -> int:
    number, unit = re.fullmatch(r"(\d+)([sm])", duration).groups()
    return int(number) * {"s": 1, "m": 60}[unit]


def test_the_services_are_these():
    ours = {"migrate", "topics", "worker", "dispatcher", "clock", "sealer", "feeds", "facade"}
    assert set(OURS) == ours
    assert set(SERVICES) == {"kafka", "postgres", *ours}


@pytest.mark.parametrize("name", OURS)
def test_a_services_command_exists(name):
    assert leads_to_a_command(OURS[name]["command"]), OURS[name]["command"]


def test_what_asks_for_health_exists():
    asked = [
        service["healthcheck"]["test"][1:] for service in OURS.values() if "test" in service["healthcheck"]
    ]
    (in_image,) = re.findall(r"^HEALTHCHECK .*CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)
    for program, *words in [*asked, yaml.safe_load(in_image)]:
        assert program == "hub"
        assert leads_to_a_command(words), words


def test_the_image_starts_the_hub_and_not_as_root():
    assert 'ENTRYPOINT ["hub"]' in DOCKERFILE
    assert re.search(r"^USER [1-9]\d*:[1-9]\d*$", DOCKERFILE, re.MULTILINE)


def test_what_the_image_installs_is_held_to_its_hash():
    for install in re.findall(r"pip install [^&\n]*", DOCKERFILE):
        assert "--require-hashes" in install or "--no-index" in install, install


def test_every_hub_variable_is_a_setting():
    settings = {f"HUB_{name.upper()}" for name in HubSettings.model_fields}
    named = set(re.findall(r"\bHUB_[A-Z0-9_]+", COMPOSE_TEXT + DOCKERFILE))
    assert named - settings == set()


def test_the_hubs_environment_makes_settings():
    for service in OURS.values():
        for name, value in service["environment"].items():
            assert isinstance(value, str), f"{name} must be quoted"
        given = {name.removeprefix("HUB_").lower(): value for name, value in service["environment"].items()}
        HubSettings(**given)


def test_images_are_pinned():
    named = [service["image"] for service in SERVICES.values() if "build" not in service]
    named += re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    for image in named:
        assert re.search(r":\d[\w.-]*$", image), image


def test_ports_are_published_on_loopback_only():
    for name, service in SERVICES.items():
        for port in service.get("ports", ()):
            assert str(port).startswith("127.0.0.1:"), name
        assert "network_mode" not in service, name


def test_indexes_of_text_do_not_depend_on_the_c_library():
    """Nor is the order another one than in the tests, whose PostgreSQL is made the same way."""
    assert SERVICES["postgres"]["environment"]["POSTGRES_INITDB_ARGS"].split() == [
        "--encoding=UTF8",
        "--locale=C",
    ]
    harness = (REPOSITORY / "tests" / "harness" / "postgres_server.py").read_text(encoding="utf-8")
    assert '"--locale=C"' in harness


def test_postgresql_has_room_to_work_in_parallel():
    """Docker's 64 MB are less than one index of a large table takes (maintenance_work_mem, and hash joins beside it)."""
    assert int(SERVICES["postgres"]["shm_size"].removesuffix("mb")) >= 256


def test_what_containers_write_does_not_fill_the_disk():
    for name, service in SERVICES.items():
        assert {"max-size", "max-file"} <= set(service["logging"]["options"]), name


def test_every_service_waits_for_what_it_needs():
    """A service waits for health where the other lives on, and for success where it ends."""
    ends = {name for name, service in SERVICES.items() if service["restart"] == "no"}
    assert ends == {"migrate", "topics"}
    for name, service in SERVICES.items():
        for needed, how in service.get("depends_on", {}).items():
            expected = "service_completed_successfully" if needed in ends else "service_healthy"
            assert how["condition"] == expected, (name, needed)
    for name in ("worker", "dispatcher"):
        assert set(SERVICES[name]["depends_on"]) == {"kafka", "postgres", "migrate", "topics"}


def test_what_lives_on_has_a_health_check():
    for name, service in SERVICES.items():
        if service["restart"] != "no":
            assert service["healthcheck"]["test"][0] == "CMD", name
            assert seconds(service["healthcheck"]["timeout"]) <= seconds(
                service["healthcheck"]["interval"]
            ), name


def test_looking_whether_the_services_are_well_keeps_no_processor_busy():
    """`hub health` is a second or two of a processor, and on a busy machine takes longer than that."""
    lives_on = [service["healthcheck"] for service in OURS.values() if service["restart"] != "no"]
    (in_image,) = re.findall(r"^HEALTHCHECK .*--interval=(\S+) --timeout=(\S+) ", DOCKERFILE, re.MULTILINE)
    for interval, timeout in [*((each["interval"], each["timeout"]) for each in lives_on), in_image]:
        assert (seconds(interval), seconds(timeout)) == (60, 30)


def test_passwords_come_from_the_environment_and_their_defaults_say_what_they_are():
    secrets = re.findall(r"\$\{\w*PASSWORD\w*(?::-([^}]*))?\}", COMPOSE_TEXT)
    assert secrets
    assert set(secrets) == {"development-only"}


def test_services_are_not_the_owner_of_the_tables():
    """Only `hub db upgrade` signs in as the owner; the others as the user that may change nothing sealed."""
    users = {
        name: re.search(r"//(\w+):", service["environment"]["HUB_DATABASE_URL"])[1]
        for name, service in OURS.items()
    }
    assert users.pop("migrate") == "hub"
    assert set(users.values()) == {"hub_service"}
    made = (REPOSITORY / "deploy" / "postgres" / "service-user.sh").read_text(encoding="utf-8")
    assert f"CREATE USER hub_service PASSWORD :'service_password' IN ROLE {ROLE};" in made


def test_a_password_is_always_a_variable():
    for line in COMPOSE_TEXT.splitlines():
        if re.match(r"\s*\w*PASSWORD\w*:", line):
            assert "${" in line, line


def test_the_build_sees_what_the_dockerfile_copies_and_no_more():
    lines = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in lines
    let_in = {line.removeprefix("!") for line in lines if line.startswith("!")}
    copied = {
        source
        for instruction in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE)
        for source in shlex.split(instruction)[:-1]
    }
    assert let_in == copied
    for source in copied:
        assert (REPOSITORY / source).exists(), source


def test_docker_compose_accepts_the_file():
    which = subprocess.run([VALIDATE, "--print"], capture_output=True, text=True, check=False, timeout=60)
    if which.returncode == 3:
        pytest.skip("no Docker Compose here; deploy/validate.sh builds one")
    assert which.returncode == 0, which.stderr
    checked = subprocess.run(
        [VALIDATE], capture_output=True, text=True, check=False, timeout=60, env=dict(os.environ)
    )
    assert checked.returncode == 0, checked.stderr
