"""``python -m hub.verifier EXPORT --key hub.pub``: 0 it is intact, 1 it is not, 2 it could not be read."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import BinaryIO

from hub.verifier.export import lines_of, verify_export
from hub.verifier.note import KeyFormatError, Keys, read_keys
from hub.verifier.report import Finding, Report

INTACT, NOT_INTACT, NOT_READ = 0, 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m hub.verifier", description="Is this export of the log intact?"
    )
    parser.add_argument("export", help="the export, or - for standard input")
    parser.add_argument(
        "--key", action="append", required=True, help="a file of public keys; may be given again"
    )
    parser.add_argument(
        "--from-checkpoint",
        help="a checkpoint that was kept, or a file of them: is the log still the one it was?",
    )
    parser.add_argument("--json", action="store_true", help="the report as one line of JSON")
    asked = parser.parse_args(arguments)
    try:
        keys: Keys = read_keys("\n".join(_text(path) for path in asked.key))
        old = _text(asked.from_checkpoint) if asked.from_checkpoint else None
        report = _verify(asked.export, keys, old)
    except (OSError, UnicodeDecodeError, KeyFormatError) as fault:
        print(f"cannot be read: {fault}", file=sys.stderr)
        return NOT_READ
    print(json.dumps(asdict(report)) if asked.json else "\n".join(told(report)))
    return INTACT if report.intact else NOT_INTACT


def told(report: Report) -> list[str]:
    """The report as lines for people."""
    if report.intact:
        return [
            f"intact: {report.origin}, entries {report.first} to {report.size - 1}, "
            f"proved by {report.checkpoints} checkpoints"
            if report.size > report.first
            else f"intact: {report.origin}, no entries after {report.first}"
        ]
    findings = [_told(finding) for finding in report.findings]
    more = [f"and {report.left_out} more findings"] if report.left_out else []
    return ["NOT INTACT", *findings, *more, f"proved: the entries from {report.first} up to {report.proved}"]


def _told(finding: Finding) -> str:
    where = ""
    if finding.leaf is not None:
        where += (
            f" leaf {finding.leaf}"
            if finding.upto is None
            else f" leaves {finding.leaf} to {finding.upto - 1}"
        )
    if finding.line is not None:
        where += f" (line {finding.line})"
    return f"{finding.kind}:{where} {finding.message}"


def _verify(path: str, keys: Keys, old: str | None) -> Report:
    stream: BinaryIO
    if path == "-":
        return verify_export(lines_of(sys.stdin.buffer), keys, old)
    with open(path, "rb") as stream:
        return verify_export(lines_of(stream), keys, old)


def _text(path: str) -> str:
    with open(path, encoding="utf-8", newline="") as stream:
        return stream.read()


if __name__ == "__main__":
    sys.exit(main())
