"""A new trust's folder, ready to be filled in."""

from pathlib import Path

import orjson

from hub.domain.ids import OdsCode

_PROFILE = """\
# yaml-language-server: $schema=../profile.schema.json
ods: {ods}
name: {name}
illustration: false
nation: england
time_zone: Europe/London
epr: "Vendor and product, as the trust says"
dialect: fhir-r4-json
sites:
  # Every place the trust runs, by its ODS site code: they are how a discharge names where the patient goes.
  - {{ ods: {ods}01, name: "Main hospital" }}
identifier_systems:
  # The URIs under which the trust issues its own numbers; no other trust may use them.
  patient: https://replace.me/Id/hospital-number
  encounter: https://replace.me/Id/encounter
  request: https://replace.me/Id/transfer-request
doors: {{ inward: kafka, outward: kafka }}
"""

_EXAMPLES = """\
# Worked examples

`NAME.in.json` (or `.xml`) is a message as the trust's system sends it, with synthetic patients only (NHS numbers that
begin with 999). `hub trust check {ods} --sign-off` writes `NAME.expected.json` beside it: read every line of that,
and commit both. From then on `hub trust check {ods}` fails when the hub makes anything else of the message.

At least: a transfer request, its update and its cancellation, an answer, an admission, a discharge.
"""


def _quoted(text: str) -> str:
    """As YAML, whatever is in it: JSON's strings are YAML's."""
    return orjson.dumps(text).decode()


def new_trust(schemas_dir: Path, ods: OdsCode, name: str) -> list[Path]:
    """Make ``schemas/trusts/<ODS>/`` with what is to be filled in; the files made. Raises FileExistsError."""
    folder = schemas_dir / "trusts" / ods
    folder.mkdir(parents=True)
    files = {
        folder / "profile.yaml": _PROFILE.format(ods=ods, name=_quoted(name)),
        folder / "examples" / "README.md": _EXAMPLES.format(ods=ods),
    }
    for file, text in files.items():
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return list(files)
