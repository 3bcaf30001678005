"""The code book: FHIR R4 CodeSystems and ConceptMaps, compiled for looking up.

Pure: it is handed the files' text. A translation names the map and the line it came from, so that every output code can be explained.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import orjson

ELEMENT = "https://transfer-hub.example/element/"
"""Begins the source of a map of plain words: ``…/element/gender``, or of one type only, ``…/element/Encounter.status``."""


@dataclass(frozen=True, slots=True)
class CodeFile:
    """One JSON file: what to call it, and its text."""

    name: str
    text: bytes


@dataclass(frozen=True, slots=True)
class Translation:
    """What a code means in another system. ``source`` is ``map, line N``; ``equivalence`` as in ConceptMap."""

    system: str
    code: str
    display: str | None
    equivalence: str
    source: str


@dataclass(frozen=True, slots=True)
class CodeProblem:
    """Something that is wrong with a map or a code system; ``line`` is 1-based, 0 where the whole file is meant."""

    file: str
    line: int
    problem: str


class CodeFileError(ValueError):
    """A file that cannot be used; ``found`` says why and where."""

    def __init__(self, file: str, problem: str, line: int = 0) -> None:
        self.found = CodeProblem(file, line, problem)
        super().__init__(f"{file}, line {line}: {problem}" if line else f"{file}: {problem}")


@dataclass(frozen=True, slots=True)
class CodeBook:
    """Immutable; one for each trust, sharing what is common to all."""

    systems: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """System URL → code → display."""
    _maps: Mapping[tuple[str, str], tuple[Translation, ...]] = field(default_factory=dict)

    def has(self, system: str, code: str) -> bool:
        """Whether ``code`` is in the national code set ``system``."""
        return code in self.systems.get(system, ())

    def translations(self, system: str, code: str) -> tuple[Translation, ...]:
        """What a code may mean, the trust's own maps first; the caller takes the first whose system fits the element."""
        return self._maps.get((_folded(system), code), ())

    def elements(self) -> Iterator[tuple[str, Translation]]:
        """Every local code that a map has, with each of its translations."""
        for (_, code), found in self._maps.items():
            for each in found:
                yield code, each

    def words(self, type_name: str, element: str, word: str) -> tuple[Translation, ...]:
        """What a local word means that stands where FHIR has a code, which has no system: by the type's element, then by any
        type's element of that name; as it is written, then in capitals.
        """
        for source in (f"{ELEMENT}{type_name}.{element}", f"{ELEMENT}{element}"):
            for spelt in (word, word.strip().upper()):
                if found := self._maps.get((_folded(source), spelt)):
                    return found
        return ()

    def with_maps(self, files: Iterable[CodeFile]) -> "CodeBook":
        """The same book with a trust's own ConceptMaps before the shared ones. Raises CodeFileError as `compile_book` does."""
        return CodeBook(self.systems, _merged(_compiled(files), self._maps))


def compile_book(systems: Iterable[CodeFile], maps: Iterable[CodeFile]) -> CodeBook:
    """A book of the shared code systems and maps. Raises CodeFileError for what is not such a resource."""
    known: dict[str, dict[str, str]] = {}
    for file in systems:
        tree = _parsed(file, "CodeSystem")
        try:
            known[tree["url"]] = {each["code"]: each.get("display", "") for each in tree["concept"]}
        except (KeyError, TypeError, AttributeError) as error:
            raise _not_as_it_must_be(file, "CodeSystem", error) from error
    return CodeBook(known, _compiled(maps))


def problems(book: CodeBook, files: Iterable[CodeFile]) -> list[CodeProblem]:
    """What is wrong with the maps of one folder: no such target code, one code twice with different meanings, in one file or in two."""
    found: list[CodeProblem] = []
    seen: dict[tuple[str, str, str], tuple[str, str]] = {}
    for file in files:
        try:
            for each in _elements(file):
                if not book.has(each.system, each.target):
                    found.append(CodeProblem(file.name, each.line, f"{each.target} is not in {each.system}"))
                meaning = (_folded(each.source), each.code, each.system)
                target, where = seen.setdefault(meaning, (each.target, file.name))
                if target != each.target:
                    other = f", and to something else in {where}" if where != file.name else ""
                    found.append(CodeProblem(file.name, each.line, f"{each.code} is mapped twice{other}"))
        except CodeFileError as error:
            found.append(error.found)
    return found


def _compiled(files: Iterable[CodeFile]) -> dict[tuple[str, str], tuple[Translation, ...]]:
    maps: dict[tuple[str, str], tuple[Translation, ...]] = {}
    for file in files:
        for each in _elements(file):
            key = (_folded(each.source), each.code)
            at = f"{file.name}, line {each.line}"
            maps[key] = (
                *maps.get(key, ()),
                Translation(each.system, each.target, each.display, each.equivalence, at),
            )
    return maps


class _Element(NamedTuple):
    """One target of one element of a map."""

    source: str
    code: str
    system: str
    target: str
    display: str | None
    equivalence: str
    line: int


def _elements(file: CodeFile) -> Iterator[_Element]:
    """What a map says, target by target. Raises CodeFileError, with the line of the element if it has come so far."""
    tree, lines = _parsed(file, "ConceptMap"), _lines(file.text)
    line = 0
    try:
        for group in tree.get("group", ()):
            line = 0
            for element in group["element"]:
                line = lines.get(id_of(group, element), 0)
                for target in element["target"]:
                    yield _Element(
                        _text(group["source"]), _text(element["code"]), _text(group["target"]), _text(target["code"]),
                        target.get("display"), target.get("equivalence", "equivalent"), line,
                    )  # fmt: skip
    except (KeyError, TypeError, AttributeError) as error:
        raise _not_as_it_must_be(file, "ConceptMap", error, line) from error


def _text(said: Any) -> str:
    """A code that is a number would never be met in a message."""
    if not isinstance(said, str):
        raise TypeError(type(said).__name__)
    return said


def _not_as_it_must_be(file: CodeFile, what: str, error: Exception, line: int = 0) -> CodeFileError:
    why = f"{error} is missing" if isinstance(error, KeyError) else "something in it is of the wrong kind"
    return CodeFileError(file.name, f"not a {what} that can be used: {why}", line)


def _merged(
    first: Mapping[tuple[str, str], tuple[Translation, ...]],
    then: Mapping[tuple[str, str], tuple[Translation, ...]],
) -> dict[tuple[str, str], tuple[Translation, ...]]:
    return {key: first.get(key, ()) + then.get(key, ()) for key in first.keys() | then.keys()}


def _parsed(file: CodeFile, resource_type: str) -> dict[str, Any]:
    try:
        tree = orjson.loads(file.text)
    except orjson.JSONDecodeError as error:
        raise CodeFileError(file.name, "not JSON", error.lineno) from error
    if not isinstance(tree, dict) or tree.get("resourceType") != resource_type:
        raise CodeFileError(file.name, f"not a {resource_type}")
    return tree


def id_of(group: Mapping[str, Any], element: Mapping[str, Any]) -> tuple[str, str]:
    """What names an element in its map: the group's source system, and the code."""
    return group["source"], element["code"]


def _lines(text: bytes) -> dict[tuple[str, str], int]:
    """The line of each element. Maps are written with one element a line, and each group's source before its elements."""
    lines: dict[tuple[str, str], int] = {}
    source = ""
    for number, line in enumerate(text.decode("utf-8", errors="replace").splitlines(), 1):
        source = _quoted(line, '"source":') or source
        code = _quoted(line, '"code":')
        if code and source:
            lines.setdefault((source, code), number)
    return lines


def _quoted(line: str, name: str) -> str:
    """The first text value behind ``name`` on a line."""
    _, found, rest = line.partition(name)
    parts = rest.split('"', 2)
    return parts[1] if found and len(parts) == 3 else ""


@lru_cache(maxsize=1024)
def _folded(system: str) -> str:
    return system.strip().rstrip("/").lower()
