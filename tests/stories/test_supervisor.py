"""`hub run`: what it started does not outlive it."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from tests.stories.conftest import SCHEMAS


@pytest.mark.timeout(90)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_services_end_with_their_supervisor_however_it_ends(tmp_path, store_url, how):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HUB_")}
    environment = kept | {
        "HUB_DATABASE_URL": store_url,
        "HUB_SCHEMAS_DIR": str(SCHEMAS),
        "HUB_KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1",
        "HUB_FACADE_PORT": "0",
        "HUB_AUDIT_KEY_FILE": str(tmp_path / "hub-audit.key"),
        "HUB_AUDIT_CHECKPOINT_FILE": str(tmp_path / "checkpoints.txt"),
    }
    with (tmp_path / "log").open("wb") as log:
        run = subprocess.Popen(
            [sys.executable, "-m", "hub.cli", "run"], env=environment, stdout=log, stderr=log
        )
    try:
        until = time.monotonic() + 30
        services = []
        while len(services) < 5 and time.monotonic() < until:
            time.sleep(0.1)
            services = psutil.Process(run.pid).children()
        assert len(services) == 5
        time.sleep(3)  # so that those that need no Kafka are well under way
        services = {*services, *psutil.Process(run.pid).children()}
        run.send_signal(how)
        run.wait(40)
    finally:
        run.kill()  # a test that fails leaves nobody behind
        run.wait()
    _, alive = psutil.wait_procs(services, timeout=30)
    assert alive == [], (tmp_path / "log").read_text()[-2000:]


def test_a_second_worker_on_sqlite_is_refused_before_anything_starts(store_url):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HUB_")}
    done = subprocess.run(
        [sys.executable, "-m", "hub.cli", "run"],
        env=kept | {"HUB_DATABASE_URL": store_url, "HUB_WORKERS": "2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr.strip()) == (
        1,
        "hub: SQLite allows one worker: HUB_WORKERS=1, or PostgreSQL (HUB_DATABASE_URL).",
    )
