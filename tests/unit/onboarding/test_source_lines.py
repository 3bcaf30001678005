"""A path leads a person to the line of their own file."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.onboarding.source_lines import line_of

TEXT = """{
  "resourceType": "Bundle",
  "entry": [
    {"resource": {
      "resourceType": "Patient",
      "gender": "male",
      "name": [{"given": ["A, B: [C]", "\\"D\\""]}]
    }},
    {"resource": {
      "resourceType": "Encounter", "status": "finished"}}
  ]
}"""


def test_an_element_of_a_resource_inside_a_bundle():
    assert line_of(TEXT, "Bundle.entry[0].resource.gender") == 6
    assert line_of(TEXT, "Bundle.entry[0].resource.name[0].given[1]") == 7
    assert line_of(TEXT, "Bundle.entry[1].resource.status") == 10


def test_what_is_missing_leads_to_where_it_should_be():
    assert line_of(TEXT, "Bundle.entry[1].resource.class") == 9


def test_a_path_from_a_resource_type_leads_to_that_resource():
    assert line_of(TEXT, "Encounter.identifier") == 10


def test_a_path_from_a_resource_type_leads_into_that_resource():
    assert line_of(TEXT, "Patient.gender") == 6
    assert line_of(TEXT, "Patient.name[0].given") == 7


XML = """\ufeff<?xml version="1.0"
  encoding="utf-16"?>
<Bundle xmlns="http://hl7.org/fhir">
  <entry>
    <resource>
      <Patient>
        <name><family value="A"/>
          <given value="B"/>
          <given value="C"/></name>
        <gender value="male"/>
        <text><div xmlns="http://www.w3.org/1999/xhtml"><p>x</p></div></text>
      </Patient>
    </resource>
  </entry>
  <entry>
    <resource>
      <Encounter>
        <contained><Location><status value="gone"/></Location></contained>
        <status value="finished"/>
      </Encounter>
    </resource>
  </entry>
</Bundle>"""


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("Bundle.entry[0].resource.name[0].given[1]", 9),
        ("Bundle.entry[0].resource.name.given[0]", 8),
        ("Bundle.entry[0].resource.gender", 10),
        ("Bundle.entry[1].resource.status", 19),
        ("Bundle.entry[1].resource.contained[0].status", 18),
        ("Bundle.entry[1].resource.class", 16),
        ("Patient.gender", 10),
        ("Encounter.identifier", 17),
        ("Bundle", 3),
        ("line 12, column 3", 12),
        ("Task.status", None),
    ],
)
def test_the_same_in_xml(path, line):
    assert line_of(XML, path) == line


def test_xml_is_read_as_far_as_it_goes_and_no_document_type_is():
    assert line_of(XML.replace("</Encounter>", "</Encountre>"), "Patient.gender") == 10
    assert line_of(XML.replace("<Bundle", '<!DOCTYPE x [<!ENTITY a "b">]><Bundle'), "Patient.gender") is None


def test_what_is_no_json_has_no_lines():
    assert line_of("Dear colleague", "Patient.identifier") is None
    assert line_of("]]]{,:", "Patient.name") is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.from_regex(r"\A[a-z]{1,6}\Z"), inner, max_size=4)
    ),
    max_leaves=12,
)


def _leaves(value, path):
    if isinstance(value, dict):
        for name, child in value.items():
            yield from _leaves(child, f"{path}.{name}")
    elif isinstance(value, list):
        for index, child in enumerate(value):
            yield from _leaves(child, f"{path}[{index}]")
    else:
        yield path, value


@given(st.dictionaries(st.from_regex(r"\A[a-z]{1,6}\Z"), json_values, max_size=4))
def test_the_line_of_every_leaf_holds_it(tree):
    """Indented JSON has one leaf a line, so the line found must hold the leaf's own text."""
    text = json.dumps(tree, indent=1)
    for path, value in _leaves(tree, "Thing"):
        line = line_of(text, path)
        assert line is not None
        assert json.dumps(value) in text.splitlines()[line - 1]
