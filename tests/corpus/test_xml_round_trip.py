"""Whatever FHIR R4 says in JSON, written as XML and read again, is the same: the worked examples, and all public ones."""

from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from hub.dialects.fhir_xml import parse_xml
from hub.dialects.fhir_xml_writer import NotInXmlError, write_xml
from hub.fhir import decimals
from hub.fhir.structure import check

ROOT = Path(__file__).resolve().parents[2]
CORPUS = ROOT.parent / "shared" / "corpus"
EXAMPLES = sorted(path for path in (ROOT / "schemas").rglob("*.json") if "examples" in path.parts)


def alike(value, name=""):
    """The same with narratives in one spelling: <br /> is <br></br>, and &#39; an apostrophe."""
    if isinstance(value, dict):
        return {key: alike(each, key) for key, each in value.items()}
    if isinstance(value, list):
        return [alike(each, name) for each in value]
    return ET.canonicalize(value) if name == "div" and isinstance(value, str) else value


def trees(paths):
    for path in paths:
        try:
            tree = decimals.loads(path.read_bytes())
        except ValueError:
            continue
        if isinstance(tree, dict) and not check(tree, limit=1):
            yield path, tree


def test_every_worked_example_comes_back_as_it_was():
    told = list(trees(EXAMPLES))
    assert len(told) > 50
    for path, tree in told:
        assert alike(parse_xml(write_xml(tree), 64)) == alike(tree), path.name


@pytest.mark.skipif(
    not CORPUS.exists(), reason="the public examples (shared/corpus) are not beside the repository"
)
def test_every_public_example_comes_back_as_it_was():
    told = refused = 0
    for path, tree in trees(sorted(CORPUS.rglob("*.json"))):
        try:
            written = write_xml(tree)
        except NotInXmlError:
            refused += 1
            continue
        told += 1
        assert alike(parse_xml(written, 64)) == alike(tree), path
    assert told > 100
    assert refused < told / 20


@pytest.mark.parametrize(
    "resource",
    [
        {"resourceType": "Colour"},
        {"resourceType": "Patient", "colour": "red"},
        {"resourceType": "Patient", "name": [{"family": "a\x01b"}]},
        {"resourceType": "Patient", "text": {"status": "generated", "div": "<div></div><Patient/>"}},
        {"resourceType": "Patient", "text": {"status": "generated", "div": "</div>"}},
        {"resourceType": "Patient", "text": {"status": "generated", "div": "<Patient/>"}},
    ],
)
def test_what_xml_cannot_say_is_not_left_out(resource):
    with pytest.raises(NotInXmlError):
        write_xml(resource)


def test_a_narrative_without_its_namespace_gets_it():
    patient = {"resourceType": "Patient", "text": {"status": "generated", "div": "<div>A <b>B</b></div>"}}
    told = parse_xml(write_xml(patient), 64)
    assert told["text"]["div"] == '<div xmlns="http://www.w3.org/1999/xhtml">A <b>B</b></div>'


def test_ids_urls_and_gaps():
    patient = {
        "resourceType": "Patient",
        "id": "p",
        "extension": [{"id": "e", "url": "https://x.example", "valueDecimal": decimals.decimal("4.10")}],
        "name": [{"id": "n", "given": ["A", None], "_given": [None, {"extension": [{"url": "https://y.example", "valueBoolean": True}]}]}],
        "_birthDate": {"id": "b"},
    }  # fmt: skip
    said = write_xml(patient).decode()
    assert '<extension id="e" url="https://x.example"><valueDecimal value="4.10"/></extension>' in said
    assert '<birthDate id="b"/>' in said
    assert parse_xml(said.encode(), 64) == patient
