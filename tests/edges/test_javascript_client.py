"""fhir-kit-client (npm), as a JavaScript integrator would use it."""

import json
import shutil
import subprocess
from pathlib import Path

import orjson
import pytest

from hub.demo.people import FENNIMOSS
from hub.fhir.systems import NHS_NUMBER

FOLDER = Path(__file__).parent / "fhir_kit"


def node_is_good():
    """The client needs Node.js 20."""
    if not (shutil.which("node") and shutil.which("npm")):
        return False
    said = subprocess.run(["node", "--version"], capture_output=True, text=True, check=False).stdout
    return said.startswith("v") and int(said[1:].partition(".")[0]) >= 20


@pytest.mark.skipif(not node_is_good(), reason="fhir-kit-client needs Node.js 20 or later, and npm")
def test_it_asks_finds_patches_and_reads_the_history(server, tmp_path):
    for name in ("package.json", "package-lock.json", "story.mjs"):
        shutil.copy(FOLDER / name, tmp_path)
    command = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
    installed = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    if installed.returncode:
        pytest.skip("npm cannot install fhir-kit-client: is a package registry reachable from here?")
    message = server.request(FENNIMOSS, "javascript")
    told = {
        "url": server.url,
        "torbay": server.token("RA9"),
        "exeter": server.token("RH8"),
        "request": orjson.loads(message.body),
        "headers": message.headers,
        "numbers": f"{NHS_NUMBER}|{FENNIMOSS.nhs_number}",
    }
    run = subprocess.run(
        ["node", "story.mjs"],
        cwd=tmp_path,
        input=json.dumps(told),
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert json.loads(run.stdout) == {
        "version": "4.0.1",
        "receipt": "ok",
        "found": [1, "requested"],
        "patched": ["accepted", "2"],
        "history": ["accepted", "requested"],
        "first": "requested",
        "request": "active",
        "stale": [412, "conflict"],
        "places": True,
    }
