"""`hub demo` as anybody would start it: one command, nothing else running."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

STEPS = 13


@pytest.mark.timeout(240)
def test_every_step_of_the_story_is_seen(tmp_path: Path):
    # Settings of a real hub must not reach the demo.
    environment = {
        **os.environ,
        "HUB_KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1",
        "HUB_DATABASE_URL": "sqlite+aiosqlite:////nowhere/x.db",
    }
    run = subprocess.run(
        [sys.executable, "-m", "hub.cli", "demo", "--once", "--json"],
        env={**environment, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    told = json.loads(run.stdout.splitlines()[-1])
    assert told["ok"] is True
    assert [step["step"] for step in told["steps"] if not step["seen"]] == []
    assert len(told["steps"]) == STEPS
    assert told["quarantined"] == 1
    assert told["duplicates"] == 1
    assert told["delivered"] == sum(step["arrived_at"] is not None for step in told["steps"])
    assert "The transfer is complete." in run.stdout, "the audit trail is told"
    assert run.stderr == ""
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"
