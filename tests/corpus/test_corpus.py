"""Messages that nobody wrote for this hub: each ends as canonical, quarantined for a reason, or rejected.

Public examples from NHS and HL7 sources and what hypothesis makes of them. They lie outside the repository, beside it
in ``shared/corpus``; without them only the mutations of the hub's own examples run.
`pytest -rP tests/corpus -k outcomes` prints the table of outcomes.
"""

import copy
import json
from collections import Counter
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hub.domain.ids import EventId, OdsCode, time_ordered_id
from hub.domain.message import Canonical, Position, Received
from hub.domain.rejection import Rejection, Why
from hub.fhir import headers
from hub.journey.decide import Journey, decide, understand
from hub.journey.explain import explain
from hub.journey.known import Known
from hub.journey.read import Limits, Read, read
from hub.trusts import load_books, load_directory

ROOT = Path(__file__).resolve().parents[2]
CORPUS = ROOT.parent / "shared" / "corpus"
OWN = ROOT / "schemas" / "examples"
AT = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
DIRECTORY = load_directory(ROOT / "schemas")
JOURNEY = Journey(DIRECTORY, books=load_books(ROOT / "schemas", DIRECTORY))
CONTENT_TYPE = {
    ".json": headers.CONTENT_TYPE_FHIR,
    ".xml": "application/fhir+xml",
    ".hl7": "x-application/hl7-v2+er7",
}
MUTATED_BYTES_MAX = 40_000


@cache
def _files(folder: Path) -> tuple[Path, ...]:
    return tuple(sorted(path for path in folder.rglob("*") if path.suffix in CONTENT_TYPE))


needs_corpus = pytest.mark.skipif(
    not CORPUS.is_dir(), reason="the public examples (shared/corpus beside the repository) are not here"
)


def _received(raw: bytes, content_type: str = headers.CONTENT_TYPE_FHIR) -> Received:
    return Received(
        event_id=EventId(time_ordered_id(AT, raw)),
        trust=OdsCode("RA9"),
        position=Position("epr.ra9.events", 0, 0),
        headers={headers.CONTENT_TYPE: content_type},
        key=b"",
        raw=raw,
        received_at=AT,
    )


def outcome(raw: bytes, content_type: str = headers.CONTENT_TYPE_FHIR) -> str:
    """What becomes of the bytes, decided and not only read; a fault of the hub's own fails the test."""
    received = _received(raw, content_type)
    understood = understand(received, JOURNEY)
    effects = decide(understood, Known(), JOURNEY, AT)
    why = effects.rejection.why if effects.rejection else None
    assert why is not Why.HUB_FAULT, effects.rejection
    assert isinstance(understood.meaning, Canonical | Rejection)
    told = explain(received, JOURNEY)
    assert told.outcome in {"canonical", "quarantined", "rejected"}
    orjson.dumps(told.as_json())
    return f"{effects.disposition}: {why}" if why else "accepted"


@needs_corpus
def test_every_public_example_has_one_of_the_outcomes():
    found: dict[str, Counter[str]] = {}
    for file in _files(CORPUS):
        folder = file.relative_to(CORPUS).parts[0]
        said = outcome(file.read_bytes(), CONTENT_TYPE[file.suffix])
        found.setdefault(folder, Counter())[said] += 1
    for folder, outcomes in found.items():
        print(f"{folder}: {sum(outcomes.values())}")
        for said, count in outcomes.most_common():
            print(f"  {count:4}  {said}")
    assert sum(sum(each.values()) for each in found.values()) == len(_files(CORPUS))


@needs_corpus
def test_every_example_of_the_specification_can_be_read():
    files = _files(CORPUS / "hl7-r4-spec")
    unread = {}
    for file in files:
        found = read(_received(file.read_bytes()), Limits(), JOURNEY.directory["RA9"])
        if not isinstance(found, Read):
            unread[file.name] = found
    assert not unread
    assert len(files) == 191


# --- what may happen to a message on its way ----------------------------------------------------------------------

ODD = (
    None, True, False, 0, -1, 2**63, 1e308, 1.10, "", " ", "x" * 70_000, "\u0000", "2026-02-30", "9999-12-31T23:59:59-14:00",
    "0001-01-01T00:00:00+14:00", "2026-10-25T01:30:00", [], {}, [[]], [None], {"resourceType": "Patient"},
    {"reference": "#"}, {"reference": "Patient/[id]"}, {"coding": "x"}, {"extension": [{"url": None}]}, "\u202e", "\ud7ff",
)  # fmt: skip


def _spots(node, path=()):
    yield path
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for step, child in children:
        yield from _spots(child, (*path, step))


@st.composite
def mutations(draw, files):
    """A file's tree with some of its parts dropped, doubled, replaced or exchanged, as bytes in some encoding."""
    file = draw(st.sampled_from(files))
    try:
        tree = orjson.loads(file.read_bytes())
    except orjson.JSONDecodeError:
        tree = {"resourceType": "Patient"}
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 4))):
        path = draw(st.sampled_from(list(_spots(tree))))
        if not path:
            continue
        *above, last = path
        parent = tree
        for step in above:
            parent = parent[step]
        match draw(st.sampled_from(["drop", "double", "odd", "wrap", "deep"])):
            case "drop":
                del parent[last]
            case "double" if isinstance(parent, list):
                parent.append(copy.deepcopy(parent[last]))
            case "double":
                parent[f"{last}x"] = copy.deepcopy(parent[last])
            case "odd":
                parent[last] = copy.deepcopy(draw(st.sampled_from(ODD)))
            case "wrap":
                parent[last] = [parent[last]]
            case "deep":
                for _ in range(80):
                    parent[last] = {"extension": [parent[last]]}
    text = json.dumps(tree, ensure_ascii=False)  # it takes what is too deep for orjson
    raw = text.encode(
        draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "latin-1"])), "replace"
    )
    cut = draw(st.integers(0, 20))
    return raw[: len(raw) * cut // 10] if cut < 10 else raw


_SMALL = (
    tuple(f for f in _files(CORPUS) if f.suffix == ".json" and f.stat().st_size < MUTATED_BYTES_MAX)
    if CORPUS.is_dir()
    else ()
)


@given(mutations([*_SMALL, *_files(OWN)]))
@settings(max_examples=600, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
def test_whatever_was_done_to_a_message_it_has_an_outcome(raw):
    outcome(raw)


@given(
    st.sampled_from(
        [f for f in (_files(CORPUS) if CORPUS.is_dir() else ()) if f.suffix != ".json"] or list(_files(OWN))
    ),
    st.integers(0, 10_000),
    st.binary(min_size=1, max_size=4),
)
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
def test_bytes_changed_on_the_way_have_an_outcome_in_every_dialect(file, at, put):
    raw = bytearray(file.read_bytes())
    raw[at % len(raw) : at % len(raw) + len(put)] = put
    outcome(bytes(raw), CONTENT_TYPE[file.suffix])
