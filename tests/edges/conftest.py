"""`hub serve` as a process of its own on SQLite, and what its clients need."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import orjson
import pytest
from joserfc.jwk import ECKey

from hub.demo.epr import Epr
from hub.demo.rest_client import RestClient
from hub.settings import REPOSITORY
from hub.trusts import load_directory

TRUSTS = load_directory(REPOSITORY / "schemas")


@dataclass
class Server:
    url: str
    folder: Path
    environment: dict
    tokens: dict = field(default_factory=dict)

    def run(self, *words):
        done = subprocess.run(
            [sys.executable, "-m", "hub.cli", *words],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def token(self, ods):
        """A token for a client of this trust."""
        if ods not in self.tokens:
            key = ECKey.generate_key("P-384", {"kid": "demo"})
            keys = self.folder / f"{ods}.json"
            keys.write_bytes(orjson.dumps({"keys": [key.as_dict(private=False)]}))
            client_id = self.run("clients", "add", "--trust", ods, "--name", "edge", "--jwks", str(keys))
            self.tokens[ods] = RestClient(self.url, client_id.strip(), key).token()
        return self.tokens[ods]

    def request(self, patient, number):
        """A transfer request from Torbay to Exeter."""
        return Epr(TRUSTS["RA9"]).asks_to_transfer(
            patient,
            to="RH8",
            request_number=f"TR-{number}",
            encounter_number=f"V-{number}",
            at=datetime.now(UTC),
        )


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("facade")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HUB_")}
    served = Server(
        f"http://127.0.0.1:{port}",
        folder,
        kept
        | {
            "HUB_DATABASE_URL": f"sqlite+aiosqlite:///{folder}/hub.db",
            "HUB_SCHEMAS_DIR": str(REPOSITORY / "schemas"),
            "HUB_FACADE_PORT": str(port),
            "HUB_FACADE_URL": f"http://127.0.0.1:{port}",
            "HUB_TOKEN_LIFE_S": "3600",
            # No dispatcher runs here: after this long /healthz would say so, rightly, and a slow machine gets there.
            "HUB_WATCHDOG_S": "3600",
        },
    )
    served.run("db", "upgrade")
    log = folder / "serve.log"
    with log.open("wb") as lines:
        process = subprocess.Popen(
            [sys.executable, "-m", "hub.cli", "serve"], env=served.environment, stdout=lines, stderr=lines
        )
    until = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < until:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            break
        time.sleep(0.1)
    yield served
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0, log.read_text()[-2000:]
