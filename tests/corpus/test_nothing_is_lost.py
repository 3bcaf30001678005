"""Every value of a message is in its canonical form, in what was changed, or in what has no place. Whoever wrote the message."""

from collections import Counter
from pathlib import Path

import orjson
import pytest

from hub.fhir import headers
from hub.journey.decide import understand
from hub.journey.explain import explain
from hub.onboarding.examples import RECEIVED_AT, examples_of, explain_file
from tests.corpus.test_corpus import CORPUS, DIRECTORY, JOURNEY, ROOT, _files, _received, needs_corpus


def leaves(node):
    """Every value that is no object and no list, as text, however often it is there."""
    if isinstance(node, dict):
        for value in node.values():
            yield from leaves(value)
    elif isinstance(node, list):
        for value in node:
            yield from leaves(value)
    elif node not in (None, ""):  # FHIR says nothing with either
        yield str(node)


def lost(sent, told):
    """What was sent and is nowhere."""
    kept = Counter(leaves(told["canonical"]))
    for change in told["changes"]:
        kept += Counter(leaves(change["before"]))
    for each in told["unmapped"]:
        kept += Counter(leaves(each["value"]))
    return {value for value in leaves(sent) if value not in kept}


@pytest.mark.parametrize("ods", [profile.ods for profile in DIRECTORY])
def test_nothing_of_a_worked_example_is_lost(ods):
    for example in examples_of(ROOT / "schemas", ods):
        if example.given.suffix != ".json":
            continue
        told = explain_file(example.given, example.ods, JOURNEY, RECEIVED_AT).as_json()
        assert told["outcome"] == "canonical"
        assert lost(orjson.loads(example.given.read_bytes()), told) == set(), example.given.name


@needs_corpus
def test_nothing_of_a_public_example_that_is_understood_is_lost():
    """Few of them are transfers; those that are must be whole."""
    for file in _files(CORPUS):
        if file.suffix != ".json":
            continue
        received = _received(file.read_bytes(), headers.CONTENT_TYPE_FHIR)
        told = explain(received, JOURNEY).as_json()
        if told["outcome"] == "canonical":
            assert lost(orjson.loads(file.read_bytes()), told) == set(), file.name


def test_the_same_bytes_give_the_same_bytes():
    for file in sorted(Path(ROOT / "schemas" / "examples").glob("*.json")):
        once, again = (
            orjson.dumps(explain(_received(file.read_bytes()), JOURNEY).as_json()) for _ in range(2)
        )
        assert once == again
    assert understand(_received(b"{}"), JOURNEY) == understand(_received(b"{}"), JOURNEY)
