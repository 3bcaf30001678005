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
from xml.sax.saxutils import quoteattr

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
from hub.onboarding.examples import RECEIVED_AT, examples_of
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


def _received(
    raw: bytes, content_type: str = headers.CONTENT_TYPE_FHIR, ods: str = "RA9", at: datetime = AT
) -> Received:
    return Received(
        event_id=EventId(time_ordered_id(at, raw)),
        trust=OdsCode(ods),
        position=Position(f"epr.{ods.lower()}.events", 0, 0),
        headers={headers.CONTENT_TYPE: content_type},
        key=b"",
        raw=raw,
        received_at=at,
    )


def outcome(raw: bytes, content_type: str = headers.CONTENT_TYPE_FHIR) -> str:
    """What becomes of the bytes, decided and not only read; a fault of the hub's own fails the test."""
    return _outcome(_received(raw, content_type), Known())


def _outcome(received: Received, known: Known) -> str:
    understood = understand(received, JOURNEY)
    effects = decide(understood, known, JOURNEY, received.received_at)
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
    {"coding": [None, {"code": 1}]}, "٣", "searchset", "29/02/1956", "0001-01-01T00:00:00", [{}],
    {"reference": "Patient?identifier=%zz|"}, {"reference": "Patient/1/_history/2"},
    {"url": "https://fhir.hl7.org.uk/StructureDefinition/Extension-UKCore-LegalStatus", "extension": [{"url": "legalStatusContext"}]},
)  # fmt: skip


NAMES = (
    "resourceType", "id", "meta", "identifier", "status", "class", "subject", "period", "extension", "reference", "coding",
    "system", "code", "value", "contained", "entry", "resource", "fullUrl", "request", "search", "type", "_status", "_value",
    "valueCodeableConcept", "gender", "priority", "link", "other", "focus", "for", "url", "text", "unheard",
)  # fmt: skip
WAYS = ("drop", "double", "odd", "wrap", "unwrap", "deep", "rename", "graft", "swap")


def _spots(node, path=()):
    yield path
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for step, child in children:
        yield from _spots(child, (*path, step))


@cache
def _tree(file: Path):
    try:
        return orjson.loads(file.read_bytes())
    except orjson.JSONDecodeError:
        return {"resourceType": "Patient"}


@cache
def _parts(file: Path) -> tuple:
    return tuple(_spots(_tree(file)))


def _at(tree, path):
    for step in path:
        tree = tree[step]
    return tree


@st.composite
def mutated_trees(draw, files):
    """A file's tree with some of its parts dropped, doubled, renamed, replaced or exchanged, for parts of other files too."""
    tree = copy.deepcopy(_tree(draw(st.sampled_from(files))))
    for _ in range(draw(st.integers(1, 4))):
        path = draw(st.sampled_from(list(_spots(tree))))
        if not path:
            continue
        *above, last = path
        parent = _at(tree, above)
        match draw(st.sampled_from(WAYS)):
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
            case "unwrap" if isinstance(parent[last], list) and parent[last]:
                parent[last] = parent[last][0]
            case "deep":
                for _ in range(80):
                    parent[last] = {"extension": [parent[last]]}
            case "rename" if isinstance(parent, dict):
                parent[draw(st.sampled_from(NAMES))] = parent.pop(last)
            case "graft":
                donor = draw(st.sampled_from(files))
                parent[last] = copy.deepcopy(_at(_tree(donor), draw(st.sampled_from(_parts(donor)))))
            case "swap":
                parent[last] = copy.deepcopy(_at(tree, draw(st.sampled_from(list(_spots(tree))))))
    return tree


@st.composite
def mutations(draw, files):
    """What was made of a file, as bytes in some encoding, sometimes cut."""
    tree = draw(mutated_trees(files))
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


WORKED = {
    profile.ods: tuple(
        each.given for each in examples_of(ROOT / "schemas", profile.ods) if each.given.suffix == ".json"
    )
    for profile in DIRECTORY
}


@given(st.data())
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
def test_whatever_three_trusts_make_of_their_messages_each_has_an_outcome(data):
    """Most public examples are refused early; these are not. What one leaves known, the next meets."""
    known = Known()
    for _ in range(3):
        ods = data.draw(st.sampled_from(sorted(WORKED)))
        tree = data.draw(mutated_trees(WORKED[ods]))
        version = data.draw(st.sampled_from(["4.0", "3.0"]))
        content_type = f"application/fhir+json; fhirVersion={version}"
        _outcome(_received(json.dumps(tree).encode(), content_type, ods, RECEIVED_AT), known)


def _as_xml(node, name):
    """A tree in XML's clothes, however little FHIR it is."""
    if isinstance(node, dict):
        kind = node.get("resourceType")
        inner = "".join(_as_xml(value, key) for key, value in node.items() if key != "resourceType")
        inner = f"<{kind}>{inner}</{kind}>" if isinstance(kind, str) and name != kind else inner
        return f"<{name}>{inner}</{name}>"
    if isinstance(node, list):
        return "".join(_as_xml(each, name) for each in node)
    return f"<{name} value={quoteattr(str(node))}/>"


@given(st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
def test_whatever_was_done_to_a_message_in_xml_it_has_an_outcome(data):
    ods = data.draw(st.sampled_from(sorted(WORKED)))
    text = _as_xml(data.draw(mutated_trees(WORKED[ods])), "Bundle").replace(
        "<Bundle>", '<Bundle xmlns="http://hl7.org/fhir">', 1
    )
    version = data.draw(st.sampled_from(["4.0", "3.0"]))
    content_type = f"application/fhir+xml; fhirVersion={version}"
    _outcome(_received(text.encode("utf-8", "replace"), content_type, ods, RECEIVED_AT), Known())


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
