"""What a command prints goes to pipes and disks: an answer that is not whole must not look whole, and is no traceback."""

import os
import subprocess
import sys

import pytest

MANY = "from hub.commands.terminal import run_it, show, with_whole_output\n"
SHOWS = MANY + "with_whole_output(lambda: show([{'n': n} for n in range(100_000)], True, (), ''))"
ONE = MANY + "with_whole_output(lambda: show([{'n': 1}], True, (), ''))"
WITHIN = MANY + (
    "async def work():\n    show([{'n': n} for n in range(100_000)], True, (), '')\n"
    "with_whole_output(lambda: run_it(work))"
)
ENDS = MANY + "import typer, sys\nwith_whole_output(lambda: sys.exit(3))"


def run(code, stdout):
    return subprocess.run(
        [sys.executable, "-c", code], stdout=stdout, stderr=subprocess.PIPE, text=True, check=False
    )


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no full disk here")
@pytest.mark.parametrize("code", [SHOWS, ONE, WITHIN])
def test_a_full_disk_is_one_line(code):
    with open("/dev/full", "w") as full:
        done = run(code, full)
    said = "hub: The answer could not be written: No space left on device. It is not whole.\n"
    assert (done.returncode, done.stderr) == (1, said)


CLOSED = 'exec "$0" -c "$1" >&-'


@pytest.mark.parametrize(("code", "closed"), [(SHOWS, CLOSED), (ONE, CLOSED + " <&-"), (WITHIN, CLOSED)])
def test_a_standard_output_that_is_closed_is_one_line(code, closed):
    done = subprocess.run(
        ["sh", "-c", closed, sys.executable, code], capture_output=True, text=True, check=False
    )
    said = "hub: The answer could not be written: standard output is closed. It is not whole.\n"
    assert (done.returncode, done.stderr) == (1, said)


def test_who_has_nothing_to_say_needs_no_standard_output():
    """A service, and what it starts."""
    starts = f"import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', {ENDS!r}]).returncode)"
    code = MANY + f"with_whole_output(lambda: exec({starts!r}))"
    done = subprocess.run(
        ["sh", "-c", CLOSED, sys.executable, code], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (3, "")


@pytest.mark.parametrize("code", [SHOWS, ONE, WITHIN])
def test_whoever_read_it_has_gone_and_nobody_is_told(code):
    reads, writes = os.pipe()
    os.close(reads)
    done = run(code, writes)
    os.close(writes)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_command_ends_as_it_ends():
    assert run(ENDS, subprocess.PIPE).returncode == 3
    assert run(ONE, subprocess.PIPE).returncode == 0
