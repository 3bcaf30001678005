"""The code book: FHIR R4 CodeSystems and ConceptMaps, compiled for looking up.

Pure: it is handed the files' text. A translation names the map and the line it came from, so that every output code can be explained.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

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
        """The same book with a trust's own ConceptMaps before the shared ones. Raises ValueError as `compile_book` does."""
        return CodeBook(self.systems, _merged(_compiled(files), self._maps))


def compile_book(systems: Iterable[CodeFile], maps: Iterable[CodeFile]) -> CodeBook:
    """A book of the shared code systems and maps. Raises ValueError, with the file's name, for what is not such a resource."""
    known: dict[str, dict[str, str]] = {}
    for file in systems:
        tree = _parsed(file, "CodeSystem")
        known[tree["url"]] = {each["code"]: each.get("display", "") for each in tree["concept"]}
    return CodeBook(known, _compiled(maps))


def problems(book: CodeBook, files: Iterable[CodeFile]) -> list[CodeProblem]:
    """What is wrong with maps: no such target code, one code twice with different meanings."""
    found: list[CodeProblem] = []
    for file in files:
        try:
            tree = _parsed(file, "ConceptMap")
            lines = _lines(file.text)
            for group in tree.get("group", ()):
                seen: dict[str, str] = {}
                for element in group["element"]:
                    line = lines.get(id_of(group, element), 0)
                    for target in element["target"]:
                        if not book.has(group["target"], target["code"]):
                            found.append(
                                CodeProblem(file.name, line, f"{target['code']} is not in {group['target']}")
                            )
                        if seen.setdefault(element["code"], target["code"]) != target["code"]:
                            found.append(CodeProblem(file.name, line, f"{element['code']} is mapped twice"))
        except (ValueError, KeyError, TypeError) as error:
            found.append(
                CodeProblem(file.name, 0, f"not a ConceptMap that can be used: {type(error).__name__}")
            )
    return found


def _compiled(files: Iterable[CodeFile]) -> dict[tuple[str, str], tuple[Translation, ...]]:
    maps: dict[tuple[str, str], tuple[Translation, ...]] = {}
    for file in files:
        tree, lines = _parsed(file, "ConceptMap"), _lines(file.text)
        try:
            for group in tree.get("group", ()):
                for element in group["element"]:
                    line = lines.get(id_of(group, element), 0)
                    key = (_folded(group["source"]), element["code"])
                    maps[key] = maps.get(key, ()) + tuple(
                        Translation(
                            group["target"],
                            target["code"],
                            target.get("display"),
                            target.get("equivalence", "equivalent"),
                            f"{file.name}, line {line}",
                        )
                        for target in element["target"]
                    )
        except (KeyError, TypeError) as error:
            raise ValueError(f"{file.name}: a ConceptMap lacks {error}") from error
    return maps


def _merged(
    first: Mapping[tuple[str, str], tuple[Translation, ...]],
    then: Mapping[tuple[str, str], tuple[Translation, ...]],
) -> dict[tuple[str, str], tuple[Translation, ...]]:
    return {key: first.get(key, ()) + then.get(key, ()) for key in first.keys() | then.keys()}


def _parsed(file: CodeFile, resource_type: str) -> dict[str, Any]:
    try:
        tree = orjson.loads(file.text)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"{file.name}, line {error.lineno}: not JSON") from error
    if not isinstance(tree, dict) or tree.get("resourceType") != resource_type:
        raise ValueError(f"{file.name}: not a {resource_type}")
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
