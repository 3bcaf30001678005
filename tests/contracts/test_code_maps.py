"""The shipped code systems and maps: complete, sourced, and every map's target exists."""

from collections import Counter
from pathlib import Path

import orjson
import pytest

from hub.codes.book import CodeFile, compile_book, problems
from hub.journey.codes import ELEMENTS, EXTENSIONS
from hub.trusts import check_codes, load_directory

SCHEMAS = Path(__file__).resolve().parents[2] / "schemas"
SYSTEMS = sorted((SCHEMAS / "codesystems").glob("*.json"))
MAPS = sorted((SCHEMAS / "conceptmaps").glob("*.json"))


def _files(paths):
    return [CodeFile(path.name, path.read_bytes()) for path in paths]


BOOK = compile_book(_files(SYSTEMS), _files(MAPS))


def test_every_target_of_every_map_is_a_national_code():
    assert check_codes(SCHEMAS, load_directory(SCHEMAS)) == []


@pytest.mark.parametrize("path", SYSTEMS, ids=lambda path: path.stem)
def test_a_code_system_says_where_it_comes_from_and_has_no_code_twice(path):
    tree = orjson.loads(path.read_bytes())
    assert tree["version"]
    assert any(word in tree["description"] for word in ("UK Core", "NHS Data Dictionary", "FHIR R4", "BaRS"))
    codes = Counter(each["code"] for each in tree["concept"])
    assert max(codes.values()) == 1
    assert all(each["display"] for each in tree["concept"])


def test_every_kind_of_element_has_its_code_set():
    kinds = [kind for rows in ELEMENTS.values() for _, kind in rows] + list(EXTENSIONS.values())
    for kind in kinds:
        for system in kind.systems("england"):
            assert system in BOOK.systems


def test_a_translation_names_the_line_it_stands_on():
    for path in MAPS:
        lines = path.read_text().splitlines()
        for group in orjson.loads(path.read_bytes())["group"]:
            for element in group["element"]:
                found = BOOK.translations(group["source"], element["code"])
                mine = [each for each in found if each.source.startswith(f"{path.name}, line ")]
                assert mine
                for each in mine:
                    assert f'"code": "{element["code"]}"' in lines[int(each.source.rpartition(" ")[2]) - 1]


def test_a_map_with_a_wrong_target_is_found_with_its_line():
    wrong = CodeFile(
        "ours.json",
        b'{"resourceType": "ConceptMap", "group": [\n{"source": "urn:ours", "target": "http://hl7.org/fhir/administrative-gender",'
        b' "element": [\n{"code": "M", "target": [{"code": "male"}]},\n{"code": "W", "target": [{"code": "woman"}]}\n]}]}',
    )
    assert [(each.file, each.line) for each in problems(BOOK, [wrong])] == [("ours.json", 4)]
    assert [each.line for each in problems(BOOK, [CodeFile("x.json", b"[]")])] == [0]


def test_a_code_that_two_maps_of_a_folder_understand_differently_is_found():
    """Which of them counted would hang on the files' names."""
    text = '{"resourceType": "ConceptMap", "group": [\n{"source": "urn:ours", "target": "http://hl7.org/fhir/administrative-gender", "element": [\n%s\n]}]}'
    first = CodeFile("a.json", (text % '{"code": "M", "target": [{"code": "male"}]}').encode())
    again = CodeFile("b.json", first.text)
    other = CodeFile("c.json", first.text.replace(b"urn:ours", b"urn:Ours/").replace(b'"male"', b'"female"'))

    assert problems(BOOK, [first, again]) == []
    assert [(each.file, each.line, each.problem) for each in problems(BOOK, [first, other])] == [
        ("c.json", 3, "M is mapped twice, and to something else in a.json")
    ]
