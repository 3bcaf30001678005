"""The integrators' guide, run as it stands: its blocks are one script."""

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "hub" / "facade" / "README.md").read_text(encoding="utf-8")


@pytest.mark.timeout(120)
@pytest.mark.skipif(
    not all(map(shutil.which, ("bash", "curl", "openssl"))), reason="the guide needs bash, curl and openssl"
)
def test_the_guide_does_what_it_says(tmp_path):
    script = "set -euo pipefail\n" + "\n".join(re.findall(r"```sh\n(.*?)```", GUIDE, re.DOTALL))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HUB_")}
    environment = kept | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HUB_DATABASE_URL": f"sqlite+aiosqlite:///{tmp_path}/hub.db",
        "HUB_SCHEMAS_DIR": str(ROOT / "schemas"),
        "HUB_FACADE_PORT": str(port),
        "HUB_FACADE_URL": f"http://127.0.0.1:{port}",
        "EXAMPLES": str(ROOT / "schemas" / "examples"),
    }
    run = subprocess.run(
        ["bash", "-c", script], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, f"{run.stdout[-1500:]}\n{run.stderr[-3000:]}"
    assert (tmp_path / "history.json").exists()
