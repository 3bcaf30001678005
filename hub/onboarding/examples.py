"""Worked examples: what a trust sends beside what the hub makes of it, signed off by reading.

``schemas/trusts/<ODS>/examples/NAME.in.json`` (or ``.xml``) and ``NAME.expected.json``. The expected file is what
`hub explain --json` says of the input, taken as received at `RECEIVED_AT`, so that every run gives the same bytes.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import orjson

from hub.domain.ids import EventId, OdsCode, time_ordered_id
from hub.domain.message import Position, Received
from hub.fhir import decimals, headers
from hub.journey.decide import Journey
from hub.journey.explain import Explanation, explain
from hub.onboarding.replay import differences
from hub.trusts import Finding

RECEIVED_AT = datetime(2026, 1, 15, 12, 0, tzinfo=UTC)
"""When every example was received. Their own times lie shortly before."""

TAKEN = "canonical"
"""The outcome of a message that is no refusal."""
WANTED_MIN = 6
"""A request, its update and its cancellation, an answer, an admission, a discharge."""

_CONTENT_TYPES = {".json": headers.CONTENT_TYPE_FHIR, ".xml": "application/fhir+xml"}


@dataclass(frozen=True, slots=True)
class Example:
    """One input and where its expected output is, or will be when somebody signs it off."""

    ods: OdsCode
    given: Path
    expected: Path


def examples_of(schemas_dir: Path, ods: str) -> Iterator[Example]:
    """The trust's worked examples, by name."""
    folder = schemas_dir / "trusts" / ods / "examples"
    for given in sorted(each for ending in _CONTENT_TYPES for each in folder.glob(f"*.in{ending}")):
        if given.is_file():
            yield Example(
                OdsCode(ods), given, given.with_name(given.name.split(".in.")[0] + ".expected.json")
            )


def _strays(schemas_dir: Path, ods: str) -> Iterator[Finding]:
    """What lies among the examples and is none, so that nothing would ever try it."""
    folder = schemas_dir / "trusts" / ods / "examples"
    given = list(examples_of(schemas_dir, ods))
    expected = [each.expected for each in given]
    tried = {each.given for each in given} | {*expected}
    for path in sorted(folder.glob("*")):
        name = path.relative_to(schemas_dir).as_posix()
        if path.name.endswith(".expected.json") and path not in tried:
            yield Finding(name, "", "there is no input beside it, so nothing is tried", "the hub team")
        elif path.suffix.lower() in _CONTENT_TYPES and path not in tried:
            yield Finding(name, "", "is no example: call it NAME.in.json or NAME.in.xml", "the hub team")
        elif expected.count(path) > 1:
            yield Finding(name, "", "two inputs have this name: each needs its own", "the hub team")


def explain_file(file: Path, ods: OdsCode, journey: Journey, received_at: datetime) -> Explanation:
    """Explain a file as if the trust ``ods`` had sent its bytes. Raises OSError; KeyError if the trust has not joined."""
    raw = file.read_bytes()
    journey.directory[ods]
    received = Received(
        event_id=EventId(time_ordered_id(received_at, "explain", hashlib.sha256(raw).hexdigest())),
        trust=ods,
        position=Position("explain", 0, 0),
        headers={
            headers.CONTENT_TYPE: _CONTENT_TYPES.get(file.suffix.lower(), ""),
            headers.REQUEST_ID: file.name,
        },
        key=b"explain",
        raw=raw,
        received_at=received_at,
    )
    return explain(received, journey)


def as_text(explanation: Explanation) -> bytes:
    """An explanation as an expected file holds it: indented, so that a review shows what changed."""
    return decimals.dumps(explanation.as_json(), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def check_examples(schemas_dir: Path, ods: str, journey: Journey) -> list[Finding]:
    """What is wrong with a trust's examples: files that nothing tries, not signed off, or not what the hub makes of them now."""
    findings = list(_strays(schemas_dir, ods))
    for example in examples_of(schemas_dir, ods):
        name = example.expected.relative_to(schemas_dir).as_posix()
        found = as_text(explain_file(example.given, example.ods, journey, RECEIVED_AT))
        if not example.expected.exists():
            todo = f"nobody has signed off what becomes of {example.given.name}: `hub trust check {ods} --sign-off`, then read it"
            findings.append(Finding(name, "", todo, "the hub team"))
        elif (signed := example.expected.read_bytes()) != found:
            findings.append(
                Finding(
                    name, _first_difference(signed, found), "is not what the hub makes of it", "the hub team"
                )
            )
    return findings


def explained(schemas_dir: Path, ods: str, journey: Journey) -> list[tuple[str, Explanation]]:
    """What the hub makes of each of a trust's examples, by name."""
    return [
        (example.given.name, explain_file(example.given, example.ods, journey, RECEIVED_AT))
        for example in examples_of(schemas_dir, ods)
    ]


def sign_off(schemas_dir: Path, ods: str, journey: Journey) -> list[tuple[Path, str]]:
    """Write the expected files that are missing or differ, for a person to read before they are committed; beside each, what it signs off
    if that is a refusal, or no refusal any more, and else "".
    """
    written: list[tuple[Path, str]] = []
    for example in examples_of(schemas_dir, ods):
        explanation = explain_file(example.given, example.ods, journey, RECEIVED_AT)
        found = as_text(explanation)
        before = example.expected.read_bytes() if example.expected.exists() else None
        if before != found:
            example.expected.write_bytes(found)
            written.append((example.expected, _refused_or_not(explanation, before)))
    return written


def _refused_or_not(explanation: Explanation, before: bytes | None) -> str:
    try:
        was = orjson.loads(before)["outcome"] if before else ""
    except (ValueError, TypeError, LookupError):
        was = ""
    changed = f" until now it was {was}." if was not in ("", explanation.outcome) else ""
    if explanation.outcome == TAKEN:
        return f"the hub takes this message;{changed}" if changed else ""
    reasons = ", ".join(f"{each['code']} at {each['path'] or 'the whole'}" for each in explanation.issues)
    return f"the hub does not take this message: {explanation.outcome}, {reasons}{f';{changed}' if changed else '.'}"


def _first_difference(signed: bytes, found: bytes) -> str:
    try:
        first = next(differences(orjson.loads(signed), orjson.loads(found)), None)
    except orjson.JSONDecodeError:
        return "not JSON"
    return first.path if first else "white space or the order of fields"
