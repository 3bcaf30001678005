"""What the live tests need on this machine: says what is missing, and installs it on Debian.

`python -m tests.harness.prerequisites [--install]` prints one line for each missing thing; exit status 0 if nothing
is missing (any more), else 1.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from typing import Final

from tests.harness.kafka_server import kafka_is_installed
from tests.harness.postgres_server import binaries

_JAVA: Final = "openjdk-17-jre-headless"
_MAVEN: Final = "maven"
_POSTGRES: Final = "postgresql"
_SENTENCES: Final = {
    _JAVA: "Java 17 or newer is missing",
    _MAVEN: "Maven is missing",
    _POSTGRES: "PostgreSQL is missing",
}


def given_kafka(environment: Mapping[str, str] = os.environ) -> str | None:
    """The Kafka the environment names (HUB_KAFKA_BOOTSTRAP_SERVERS), or None: then the tests run their own."""
    return environment.get("HUB_KAFKA_BOOTSTRAP_SERVERS") or None


def given_postgres(environment: Mapping[str, str] = os.environ) -> str | None:
    """The PostgreSQL the environment names (HUB_DATABASE_URL, if it is one), or None: then the tests run their own."""
    url = environment.get("HUB_DATABASE_URL", "")
    return url if url.startswith(("postgresql:", "postgresql+")) else None


def missing() -> list[str]:
    """One sentence for each missing thing, with the command that mends it; empty if the live tests can run.

    A server that the environment names needs nothing here, and Maven is not needed once Kafka is in the cache.
    """
    return [f"{_SENTENCES[package]}: apt-get install {package}" for package in _missing_packages()]


def install() -> None:
    """Installs the Debian packages that are missing, and only those; nothing happens if none is.

    Raises RuntimeError when not root or not on Debian, and CalledProcessError when apt-get fails (its output is
    on the terminal).
    """
    packages = _missing_packages()
    if not packages:
        return
    if shutil.which("apt-get") is None:
        raise RuntimeError("Only Debian's apt-get is known here; install by hand: " + ", ".join(packages))
    if os.geteuid() != 0:
        raise RuntimeError("Only root can install: sudo apt-get install " + " ".join(packages))
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["apt-get", "update", "-q"], check=True, env=environment)
    subprocess.run(
        ["apt-get", "install", "-q", "-y", "--no-install-recommends", *packages], check=True, env=environment
    )


def _missing_packages() -> list[str]:
    packages = []
    if given_kafka() is None:
        if not _java_is_new_enough():
            packages.append(_JAVA)
        if not kafka_is_installed() and shutil.which("mvn") is None:
            packages.append(_MAVEN)
    if given_postgres() is None and binaries() is None:
        packages.append(_POSTGRES)
    return packages


def _java_is_new_enough() -> bool:
    java = shutil.which("java")
    if java is None:
        return False
    try:
        said = subprocess.run(
            [java, "-version"], capture_output=True, text=True, timeout=30, check=False
        ).stderr
    except (OSError, subprocess.TimeoutExpired):
        return False
    version = re.search(r'version "(\d+)', said)
    return version is not None and int(version.group(1)) >= 17


def main(arguments: list[str]) -> int:
    """Returns the exit status."""
    if arguments not in ([], ["--install"]):
        print("usage: python -m tests.harness.prerequisites [--install]")
        return 1
    if arguments:
        try:
            install()
        except (RuntimeError, subprocess.CalledProcessError) as failure:
            print(f"Could not install: {failure}")
    sentences = missing()
    for sentence in sentences or ["Nothing is missing: the live tests can run."]:
        print(sentence)
    return 1 if sentences else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
