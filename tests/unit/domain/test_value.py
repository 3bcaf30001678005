"""Values are equal by what they say, can be kept in sets, and mypy lets nobody change one."""

from dataclasses import field, replace
from pathlib import Path
from subprocess import run
from sys import executable

from hub.domain.value import value


@value
class Pair:
    one: int
    other: tuple[int, ...] = field(default=())


def test_values_that_say_the_same_are_the_same():
    assert Pair(1) == Pair(1, ())
    assert {Pair(1), Pair(1), Pair(2)} == {Pair(1), Pair(2)}
    assert replace(Pair(1), one=2) == Pair(2)


def test_mypy_lets_nobody_change_one(tmp_path):
    file = tmp_path / "changed.py"
    file.write_text(
        "from hub.domain.ids import Identifier, PersonKey\n"
        "Identifier('a', 'b').value = 'c'\n"
        "PersonKey('a', 'b').authority = 'c'\n"
    )
    root = Path(__file__).resolve().parents[3]

    found = run(
        [executable, "-m", "mypy", "--strict", f"--cache-dir={tmp_path}", str(file)],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )

    for said in ('"value" defined in "Identifier"', '"authority" defined in "PersonKey"'):
        assert f"Property {said} is read-only" in found.stdout, found.stdout + found.stderr
