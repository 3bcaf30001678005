"""The bugs that the chaos run can plant (`--plant`) fit the hub as it is: one that does not proves nothing about the checker."""

import subprocess
import sys

import pytest

from tests.chaos.__main__ import FOUND_AS
from tests.chaos.fleet import ROOT, environment


@pytest.mark.parametrize("plant", [*FOUND_AS, "nothing-of-the-kind"])
def test_a_bug_can_be_planted(plant):
    done = subprocess.run(
        [sys.executable, "-c", ""],
        check=False,
        env=environment({}, plant),
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    fits = plant in FOUND_AS
    assert (done.returncode, "could not be planted" in done.stderr) == ((0, False) if fits else (99, True))
