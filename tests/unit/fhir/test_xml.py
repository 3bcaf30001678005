"""FHIR R4 in XML is read as the tree that its JSON would have, and what XML could do besides is refused."""

from xml.sax.saxutils import quoteattr

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hub.dialects import Dialect, contradicts, detect
from hub.dialects.fhir_xml import parse_xml
from hub.domain.rejection import Rejection
from hub.fhir.structure import check
from tests.unit.fhir.test_structure import CORPUS

XMLNS = ' xmlns="http://hl7.org/fhir"'


def written(tree):
    """A resource as FHIR XML, by the rules of https://hl7.org/fhir/R4/xml.html; in tests only."""
    return f"<{tree['resourceType']}{XMLNS}>{_children(tree)}</{tree['resourceType']}>"


def _children(tree, skip=("resourceType",)):
    text = ""
    names = [name for name in tree if name not in skip and not name.startswith("_")]
    names += [name[1:] for name in tree if name.startswith("_") and name[1:] not in tree]
    for name in names:
        value, beside = tree.get(name), tree.get(f"_{name}")
        listed = isinstance(value, list) or isinstance(beside, list)
        values = value if isinstance(value, list) else [value] if not listed else [None] * len(beside)
        besides = beside if isinstance(beside, list) else [beside] if not listed else [None] * len(values)
        for one, more in zip(values, besides, strict=True):
            text += _element(name, one, more)
    return text


def _element(name, value, beside):
    if name == "div":
        return value
    if isinstance(value, dict):
        if "resourceType" in value:
            kind = value["resourceType"]
            return f"<{name}><{kind}>{_children(value)}</{kind}></{name}>"
        # Only an Extension's url, and every id, is an attribute.
        attributes = [
            key
            for key in ("id", "url")
            if isinstance(value.get(key), str) and (key == "id" or name.endswith("xtension"))
        ]
        said = "".join(f" {key}={quoteattr(value[key])}" for key in attributes)
        return f"<{name}{said}>{_children(value, attributes)}</{name}>"
    text = "true" if value is True else "false" if value is False else None if value is None else str(value)
    said = f" value={quoteattr(text)}" if text is not None else ""
    said += f" id={quoteattr(beside['id'])}" if beside and "id" in beside else ""
    return f"<{name}{said}>{_children(beside or {}, ('id',))}</{name}>"


PATIENT = {
    "resourceType": "Patient",
    "id": "p1",
    "text": {"status": "generated", "div": '<div xmlns="http://www.w3.org/1999/xhtml">A &amp; <b class="x">B</b><br/></div>'},
    "contained": [{"resourceType": "Organization", "id": "o", "name": "Torbay"}],
    "extension": [{"url": "urn:x", "valueDecimal": 1.5}, {"url": "urn:y", "extension": [{"url": "z", "valueBoolean": False}]}],
    "identifier": [{"system": "https://fhir.nhs.uk/Id/nhs-number", "value": "9990000018"}],
    "active": True,
    "name": [{"given": ["Ada", None], "_given": [None, {"id": "g2", "extension": [{"url": "urn:n", "valueCode": "x"}]}], "family": "<&\"'>"}],
    "_birthDate": {"extension": [{"url": "urn:b", "valueInteger": 7}]},
    "multipleBirthInteger": 2,
}  # fmt: skip


def test_every_shape_of_json_comes_back():
    assert parse_xml(written(PATIENT).encode(), 64) == PATIENT


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "iso-8859-1"])
def test_the_encoding_that_the_declaration_names(encoding):
    tree = {"resourceType": "Patient", "name": [{"family": "Ørsted"}]}
    text = f'<?xml version="1.0" encoding="{encoding}"?>{written(tree)}'
    raw = text.encode(encoding)
    assert detect("", raw) is Dialect.FHIR_R4_XML
    assert parse_xml(raw, 64) == tree


@pytest.mark.skipif(
    not CORPUS.is_dir(), reason="the public examples (shared/corpus beside the repository) are not here"
)
def test_every_example_of_the_specification_is_the_same_in_xml():
    for path in sorted((CORPUS / "hl7-r4-spec").glob("*.json")):
        tree = orjson.loads(path.read_bytes())
        if "div" in str(tree.get("text", "")) and "&" in tree["text"].get("div", ""):
            continue  # named HTML entities are no XML
        found = parse_xml(written(tree).encode(), 64)
        assert not isinstance(found, Rejection), path.name
        assert _without_narrative(found) == _without_narrative(tree), path.name
        assert check(found) == check(tree), path.name


def _without_narrative(node):
    """Narrative is the same text up to how attributes are quoted and empty elements written."""
    if isinstance(node, dict):
        return {name: _without_narrative(value) for name, value in node.items() if name != "div"}
    return [_without_narrative(each) for each in node] if isinstance(node, list) else node


_BOMB = '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]>'


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (f"{_BOMB}<Patient{XMLNS}><id value='&b;'/></Patient>", "xml-unsafe"),
        (f'<!DOCTYPE x SYSTEM "file:///etc/passwd"><Patient{XMLNS}/>', "xml-unsafe"),
        (f"<Patient{XMLNS}><id value='&nbsp;'/></Patient>", "not-xml"),
        (f"<Patient{XMLNS}>", "not-xml"),
        ("<Patient/>", "not-fhir"),
        (f"<Patient{XMLNS}>Dear colleague</Patient>", "not-fhir"),
        (f"<Letter{XMLNS}/>", "resource-type-unknown"),
        (f"<Patient{XMLNS}>" + "<extension>" * 100 + "</extension>" * 100 + "</Patient>", "message-too-deep"),
        ('<?xml version="1.0" encoding="klingon"?><a/>', "not-xml"),
    ],
)
def test_what_is_refused(text, why):
    found = parse_xml(text.encode(), 64)
    assert isinstance(found, Rejection)
    assert found.why == why
    assert "colleague" not in str(found)


def test_what_fhir_does_not_have_is_kept_for_the_repairs():
    text = f'<Patient{XMLNS}><wardColour value="blue"/><letter><to value="a"/></letter></Patient>'
    assert parse_xml(text.encode(), 64) == {
        "resourceType": "Patient",
        "wardColour": "blue",
        "letter": {"to": "a"},
    }


@pytest.mark.parametrize(
    ("inner", "tree"),
    [
        (
            "<gender><coding><code value='female'/></coding></gender>",
            {"gender": {"coding": {"code": "female"}}},
        ),
        (
            "<birthDate value='1948-03-09' sure='no'><note value='n'/></birthDate>",
            {"birthDate": "1948-03-09", "_birthDate": {"sure": "no", "note": "n"}},
        ),
        (
            "<contained><Organization><name value='a'/></Organization><Location><name value='b'/></Location></contained>",
            {
                "contained": [
                    [{"resourceType": "Organization", "name": "a"}, {"resourceType": "Location", "name": "b"}]
                ]
            },
        ),
    ],
)
def test_what_stands_where_fhir_has_one_value_is_not_left_out(inner, tree):
    assert parse_xml(f"<Patient{XMLNS}>{inner}</Patient>".encode(), 64) == {
        "resourceType": "Patient",
        **tree,
    }


def test_narrative_that_says_its_language_twice_stays_xhtml():
    div = '<div xmlns="http://www.w3.org/1999/xhtml" lang="en" xml:lang="en">A</div>'
    text = {"status": "generated", "div": div}
    tree = {"resourceType": "Patient", "text": text}
    assert parse_xml(written(tree).encode(), 64) == tree


@given(st.binary(max_size=200), st.integers(0, 400))
@settings(suppress_health_check=list(HealthCheck), deadline=None)
def test_no_bytes_break_it(put, at):
    raw = bytearray(written(PATIENT).encode())
    raw[at : at + len(put)] = put
    assert isinstance(parse_xml(bytes(raw), 64), dict | Rejection)


@pytest.mark.parametrize(
    ("content_type", "raw", "dialect", "wrong"),
    [
        ("application/fhir+json", b"{}", Dialect.FHIR_R4_JSON, False),
        ("application/fhir+json", b"<Patient/>", Dialect.FHIR_R4_XML, True),
        ("application/xml+fhir", b"{}", Dialect.FHIR_R4_JSON, True),
        ("application/fhir+json; fhirVersion=3.0", b"{}", Dialect.FHIR_STU3_JSON, False),
        (
            "",
            b'<Bundle xmlns="http://hl7.org/fhir"><ReferralRequest/></Bundle>',
            Dialect.FHIR_STU3_XML,
            False,
        ),
        ("", b"MSH|^~\\&|", Dialect.HL7_V2, False),
        ("", b'<?xml version="1.0"?>\n<ClinicalDocument xmlns="urn:hl7-org:v3"/>', Dialect.CDA, False),
        ("application/fhir+json; fhirVersion=4.3", b"{}", Dialect.FHIR_R4_JSON, False),
        ("application/fhir+json; fhirVersion=5.0", b"{}", Dialect.FHIR_R5, False),
        ("application/fhir+xml;fhirVersion=1.0", b"<Patient/>", Dialect.FHIR_DSTU2, False),
    ],
)
def test_what_a_message_is_in(content_type, raw, dialect, wrong):
    assert detect(content_type, raw) is dialect
    assert contradicts(content_type, dialect) is wrong
