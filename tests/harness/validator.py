"""HAPI's FHIR validator with UK Core loaded, for whatever the hub says or keeps.

It lies outside the repository, in ``shared`` beside it. A test that uses it is marked `validator` and `needs_validator`: without the
validator it is skipped, and `.ci/run` says so and fails.
"""

import json
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from hub.fhir import decimals

ROOT: Final = Path(__file__).resolve().parents[2]
_SHARED: Final = ROOT.parent / "shared"
_VALIDATE: Final = _SHARED / "tools" / "fhir-validate" / "validate"
_OUR_CODES: Final = ROOT / "schemas" / "codesystems"

needs_validator = pytest.mark.skipif(
    not _VALIDATE.exists(), reason="the FHIR validator (shared/tools beside the repository) is not here"
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What it said: how many resources it judged, and each error and warning as ``name: severity path: message``."""

    judged: int
    errors: tuple[str, ...]
    warnings: tuple[str, ...]


def judge(
    resources: Iterable[Mapping[str, Any] | bytes], *, names: Sequence[str] = (), profiles: Iterable[str] = ()
) -> Verdict:
    """Judges each resource against base R4, the profiles that it claims and ``profiles``. JSON text is judged as it is.

    ``names`` are what findings call the resources; without them they are numbered from 1. Raises RuntimeError when the validator cannot run,
    which includes that there is nothing to judge.
    """
    command = [str(_VALIDATE), "--ig", str(_SHARED / "ukcore"), "--ig", str(_OUR_CODES), "--json"]
    for profile in profiles:
        command += ["--profile", profile]
    lines = b"\n".join(map(_on_one_line, resources))
    done = subprocess.run([*command, "--ndjson", "-"], input=lines, capture_output=True, check=False)
    if done.returncode not in {0, 1}:
        raise RuntimeError(done.stderr.decode(errors="replace"))
    *found, last = done.stdout.decode().splitlines()
    totals = json.loads(last)
    errors = tuple(_renamed(line, names) for line in found if " error " in line)
    warnings = tuple(_renamed(line, names) for line in found if " warning " in line)
    if totals["errors"] != len(errors):
        raise RuntimeError(f"{totals['errors']} errors, of which {len(errors)} can be told apart: {last}")
    return Verdict(totals["files"], errors, warnings)


def _on_one_line(resource: Mapping[str, Any] | bytes) -> bytes:
    # JSON has line breaks between its tokens only, so a blank says the same.
    return b" ".join(resource.splitlines()) if isinstance(resource, bytes) else decimals.dumps(resource)


def _renamed(line: str, names: Sequence[str]) -> str:
    """``-:12: error …`` with the twelfth's name in front instead."""
    place, blank, rest = line.partition(": ")
    number = place.rpartition(":")[2]
    if not number.isdigit():
        return line
    return f"{names[int(number) - 1] if names else number}{blank}{rest}"
