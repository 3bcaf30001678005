"""Whatever a message held is in the repaired tree, in what changed or in what has no place; whatever it was made of."""

import copy
from collections import Counter
from functools import cache
from pathlib import Path

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hub.fhir.elements import resource_types
from hub.fhir.structure import check
from hub.journey.repair import repair
from hub.journey.repair.glance import nothing_to_mend
from hub.journey.repair.walk import Walk
from hub.trusts import load_books, load_directory

SCHEMAS = Path(__file__).resolve().parents[3] / "schemas"
BOOK = load_books(SCHEMAS, load_directory(SCHEMAS))["RA9"]
CORPUS = Path(__file__).resolve().parents[3].parent / "shared" / "corpus"
R4_FOLDERS = ("hl7-r4-spec", "bars-api", "nhs-pds", "nhs-ers")
MUTATED_FILE_BYTES_MAX = 20_000

OWN = (
    {
        "resourceType": "Bundle",
        "type": "message",
        "timestamp": "2026-03-01T09:10:00Z",
        "entry": [
            {
                "fullUrl": "urn:uuid:6b5a8f2e-1111-4222-8333-444455556666",
                "resource": {
                    "resourceType": "Patient",
                    "id": "p1",
                    "identifier": [{"system": "https://fhir.nhs.uk/Id/nhs-number", "value": "9990000018"}],
                    "name": [{"given": ["Ada", None], "_given": [None, {"id": "g2"}], "family": "Okafor"}],
                    "gender": "female",
                    "birthDate": "1956-02-29",
                    "contained": [
                        {"resourceType": "Organization", "id": "o1", "identifier": [{"value": "RA9"}]}
                    ],
                },
            },
            {
                "resource": {
                    "resourceType": "Encounter",
                    "status": "in-progress",
                    "class": {"code": "IMP"},
                    "subject": {"reference": "urn:uuid:6b5a8f2e-1111-4222-8333-444455556666"},
                    "period": {"start": "2026-03-01T08:00:00+00:00"},
                    "text": {"status": "generated", "div": "<div>x</div>"},
                    "extension": [{"url": "urn:x", "valueDecimal": 1.50}],
                }
            },
        ],
    },
)
ODD = (
    None, "", {}, [], [None], True, "true", 5, 1.5, -(2**40), 1e300, " x ", "$x", "{x}", "[x]", "M", "IN_PROGRESS", "1", 9, {"coding": [{"system": "http://hl7.org/fhir/v2/0001", "code": "F"}]}, {"code": "home"},
    "29/02/1956", "23.11.2026 09:10",
    "2026-10-25T01:30:00", "2026-03-29 01:30", "2026-01-01T24:00", "2026-01-01T00:00:00+0215", "Patient/[Id]",
    ":uuid:", "URN:UUID:6B5A8F2E-1111-4222-8333-444455556666", '\\"', {"coding": [{"code": "a"}, {"code": "b"}]},
    {"type": "Patient"}, {"url": "http://hl7.org/fhir/us/core/x", "valueCode": "y"}, {"resourceType": "Patient", "x": 1},
    [{"value": "1"}, {"value": "2"}], {"unheard": {"of": ["x", None]}}, {"status": "generated"},
    "a_b", "Patient/a_b", "#a_b",
)  # fmt: skip
NAMESPACES = {"Patient": {"*": "urn:patient"}, "Encounter": {"FIN NBR": "urn:fin"}}


def leaves(tree):
    """Every value that is no object and no list, with its type and how often it is there."""
    found = Counter()
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node
        else:
            found[type(node).__name__, repr(node)] += 1
    return found


def hold_to_the_rules(tree, switched_off=frozenset()):
    """Nothing lost, nothing said twice, and what is said to be sound is."""
    before = copy.deepcopy(tree)
    lost = leaves(tree)
    done = repair(tree, switched_off, namespaces=NAMESPACES, book=BOOK)
    lost -= leaves(tree)
    lost -= leaves([change.before for change in done.changes])
    lost -= leaves([each.value for each in done.unmapped])
    assert not lost
    assert (tree == before) or done.changes or done.unmapped

    structural = check(tree, limit=5)
    assert done.issues[: len(structural)] == structural
    orjson.dumps([change.after for change in done.changes])

    once = orjson.dumps(tree)
    again = repair(tree, switched_off, namespaces=NAMESPACES, book=BOOK)
    assert (again.changes, again.unmapped) == ((), ())
    assert again.issues == done.issues
    assert orjson.dumps(tree) == once


def hold_the_glance_to_the_walk(tree):
    """What the glance and the structure check let pass, the walk does not touch."""
    if isinstance(tree, dict) and not check(tree) and nothing_to_mend(tree, NAMESPACES):
        walk = Walk(frozenset(), "Europe/London", NAMESPACES, "", BOOK)
        walk.message(copy.deepcopy(tree))
        assert (walk.changes, walk.unmapped) == ([], [])


@cache
def examples():
    """(name, bytes) of every FHIR JSON file of R4 among the public examples; none where they are not."""
    found = []
    for folder in R4_FOLDERS:
        for path in sorted((CORPUS / folder).rglob("*.json")):
            try:
                tree = orjson.loads(path.read_bytes())
            except orjson.JSONDecodeError:
                continue
            if isinstance(tree, dict) and tree.get("resourceType") in resource_types():
                found.append((f"{folder}/{path.name}", path.read_bytes()))
    return tuple(found)


@pytest.fixture
def corpus():
    if not examples():
        pytest.skip("the public example messages are not on this machine")
    return examples()


def objects_and_lists(tree):
    """(container, key) of every value inside a tree."""
    waiting, found = [tree], []
    for node in waiting:
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            found.append((node, key))
            if isinstance(node[key], dict | list):
                waiting.append(node[key])
    return found


def mutate(draw, tree):
    """One thing wrong in the tree: dropped, doubled, of another type, wrapped, unwrapped, unknown, spelled otherwise."""
    places = objects_and_lists(tree)
    if not places:
        return
    node, key = places[draw(st.integers(0, len(places) - 1))]
    value = node[key]
    match draw(st.sampled_from(("drop", "double", "odd", "wrap", "unwrap", "unknown", "spell"))):
        case "drop":
            del node[key]
        case "double" if isinstance(node, list):
            node.insert(key, copy.deepcopy(value))
        case "double" | "wrap":
            node[key] = [value, copy.deepcopy(value)] if draw(st.booleans()) else [value]
        case "unwrap" if isinstance(value, list) and value:
            node[key] = value[0]
        case "unknown" if isinstance(value, dict):
            value["unheardOf"] = copy.deepcopy(draw(st.sampled_from(ODD)))
            value["_" + next(iter(value))] = copy.deepcopy(draw(st.sampled_from(ODD)))
        case "spell" if isinstance(value, str):
            node[key] = draw(
                st.sampled_from((value.upper(), f" {value}", value[:-1], value.replace("T", " ", 1)))
            )
        case _:
            node[key] = copy.deepcopy(draw(st.sampled_from(ODD)))


def test_nothing_of_any_example_is_lost(corpus):
    for name, raw in corpus:
        tree = orjson.loads(raw)
        try:
            hold_the_glance_to_the_walk(tree)
            hold_to_the_rules(tree)
        except Exception as error:
            raise AssertionError(f"{name} is not repaired as it should be") from error


def test_most_examples_need_no_repair(corpus):
    """The official R4 examples are left alone, to the last of them."""
    for name, raw in corpus:
        if name.startswith("hl7-r4-spec/"):
            tree = orjson.loads(raw)

            assert repair(tree).issues == (), name
            assert tree == orjson.loads(raw), name


@settings(max_examples=4000, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_nothing_of_a_damaged_example_is_lost(data):
    """Up to four things wrong at once, in an example or, without them, in a message of our own."""
    small = [raw for _, raw in examples() if len(raw) <= MUTATED_FILE_BYTES_MAX]
    raw = data.draw(st.sampled_from([*map(orjson.dumps, OWN), *small]))
    tree = orjson.loads(raw)
    for _ in range(data.draw(st.integers(1, 4))):
        mutate(data.draw, tree)

    hold_the_glance_to_the_walk(tree)
    hold_to_the_rules(tree)


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_nothing_of_a_damaged_message_is_lost_with_some_rules_off(data):
    tree = copy.deepcopy(OWN[0])
    for _ in range(data.draw(st.integers(1, 6))):
        mutate(data.draw, tree)
    off = data.draw(
        st.frozensets(st.sampled_from(("empty-dropped", "tz-assumed", "unknown-element", "spaces", "list-to-single", "placeholder")))
    )  # fmt: skip

    hold_to_the_rules(tree, off)
