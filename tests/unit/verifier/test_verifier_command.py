"""``python -m hub.verifier``: what a third party runs, in a process that has nothing else of the hub."""

import json
import subprocess
import sys

import pytest

from hub.verifier.__main__ import main
from tests.harness.sealed_log import FALSE_KEY, HUB_KEY, a_log

LOG = a_log(300, [100, 200])


@pytest.fixture
def files(tmp_path):
    """The export, the key, a kept checkpoint."""
    export, key, old = tmp_path / "export.ndjson", tmp_path / "hub.pub", tmp_path / "old.txt"
    export.write_bytes(b"".join(LOG.export()))
    key.write_text(f"# the hub's\n{HUB_KEY.vkey}\n")
    old.write_text(LOG.notes[100], encoding="utf-8")
    return export, key, old


def test_intact_is_0(files, capsys):
    export, key, old = map(str, files)

    assert main([export, "--key", key]) == 0
    assert capsys.readouterr().out == "intact: hub.example/audit, entries 0 to 299, proved by 3 checkpoints\n"
    assert main([export, "--key", key, "--from-checkpoint", old, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["intact"] is True


def test_not_intact_is_1_and_says_where(files, capsys):
    export, key, old = files
    export.write_bytes(export.read_bytes().replace(b'"entry":1157,', b'"entry":1158,'))

    assert main([str(export), "--key", str(key), "--from-checkpoint", str(old)]) == 1
    assert "altered: leaf 157 (line 160)" in capsys.readouterr().out
    assert main([str(export), "--key", str(key), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["findings"][0]["leaf"] == 157


def test_what_cannot_be_read_is_2(files, capsys):
    export, key, _ = files
    assert main([str(export) + ".gone", "--key", str(key)]) == 2
    assert main([str(export), "--key", str(export)]) == 2
    key.write_bytes(b"\xff")
    assert main([str(export), "--key", str(key)]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_it_runs_alone_and_takes_several_keys_and_a_stream(files, tmp_path):
    export, key, _ = files
    other = tmp_path / "other.pub"
    other.write_text(FALSE_KEY.vkey)
    loaded = (
        "import sys, hub.verifier.__main__ as m; code = m.main(sys.argv[1:]); "
        "print(sorted(n for n in sys.modules if n.startswith('hub.') and not n.startswith('hub.verifier'))); "
        "sys.exit(code)"
    )
    with export.open("rb") as stream:
        ran = subprocess.run(
            [sys.executable, "-c", loaded, "-", "--key", str(other), "--key", str(key)],
            stdin=stream,
            capture_output=True,
            text=True,
            check=False,
        )

    assert (0, "['hub.audit', 'hub.audit.hashes']") == (ran.returncode, ran.stdout.splitlines()[-1])
