"""Where in a message's text, JSON or XML, a FHIR path stands, so that a person can be shown the line."""

import re
from collections.abc import Iterator
from contextlib import suppress
from xml.parsers import expat

Steps = tuple[str, ...]

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s{}\[\],:"]+')
_STEP = re.compile(r"[^.\[\]]+")
_LINE = re.compile(r"line ([0-9]+)")


def line_of(text: str, path: str) -> int | None:
    """The 1-based line on which ``Bundle.entry[0].resource.status`` begins, or of its nearest parent that is there.

    A path that begins with another resource's type than the message's (``MessageHeader.sender``) leads into the first such
    resource; ``line 3, column 4`` to that line. None where the text cannot be read so far, or the path names nothing in it.
    """
    said = _LINE.match(path)
    if said:
        return int(said[1])
    resource_type, *wanted = _STEP.findall(path) or [""]
    if is_xml(text):
        # XML does not tell a list of one from a single element: the first of a name has no number on either side.
        within = [step for step in wanted if step != "0"]
        return _nearest(list(_xml_places(text)), resource_type, tuple(within))
    return _nearest(list(_json_places(text)), resource_type, tuple(wanted))


def text_of(raw: bytes) -> str:
    """A file's bytes as a person's editor would show them."""
    encoding = "utf-16" if raw[:2] in {b"\xff\xfe", b"\xfe\xff"} else "utf-8-sig"
    return raw.decode(encoding, errors="replace")


def is_xml(text: str) -> bool:
    """Whether a person would call it XML."""
    return text.lstrip("\ufeff \t\r\n").startswith("<")


Place = tuple[Steps, int, str]
"""The steps to a value, the line it begins on, and the type if it is a resource or says its type."""


def _nearest(places: list[Place], resource_type: str, wanted: Steps) -> int | None:
    """The line of the place that shares most steps with the wanted one, in the message or in the resource of that type."""
    resources = [(where, line) for where, line, kind in places if kind == resource_type]
    base, line = resources[0] if resources else ((), None)
    target = (*base, *wanted)
    best = len(base)
    for where, at, _ in places:
        if best < len(where) and where == target[: len(where)]:
            best, line = len(where), at
    return line


def _json_places(text: str) -> Iterator[Place]:
    """Every value's steps and line; where a resource says its type, the steps to the resource."""
    line, counted = 1, 0
    for where, offset in _places(text):
        line, counted = line + text.count("\n", counted, offset), offset
        kind = _TYPE.match(text, offset) if where[-1] == "resourceType" else None
        yield (where[:-1], line, kind[1]) if kind else (where, line, "")


_TYPE = re.compile(r'"resourceType"\s*:\s*"([A-Za-z]*)"')


def _xml_places(text: str) -> Iterator[Place]:
    """Every element's steps and line, as far as the text is XML without a document type."""
    found: list[Place] = []
    open_: list[tuple[Steps, dict[str, int]]] = []
    parser = expat.ParserCreate()

    def start(name: str, _: dict[str, str]) -> None:
        above, seen = open_[-1] if open_ else ((), {})
        is_resource = name[:1].isupper()
        number = seen.get(name, 0)
        seen[name] = number + 1
        where = above if is_resource else (*above, name, *((str(number),) if number else ()))
        found.append((where, parser.CurrentLineNumber, name if is_resource else ""))
        open_.append((where, {}))

    def refuse(*_: object) -> None:
        raise expat.ExpatError

    parser.StartElementHandler = start
    parser.EndElementHandler = lambda _: open_.pop()
    parser.StartDoctypeDeclHandler = refuse
    with suppress(expat.ExpatError, ValueError):
        parser.Parse(_undeclared(text), True)
    yield from found


def _undeclared(text: str) -> bytes:
    """The text as UTF-8, whatever encoding it says it was in; the lines stay where they are."""
    text = text.lstrip("\ufeff")
    declaration, _, rest = text.partition("?>") if text.startswith("<?xml") else ("", "", text)
    return ("\n" * declaration.count("\n") + rest).encode("utf-8", "replace")


def _places(text: str) -> Iterator[tuple[tuple[str, ...], int]]:
    """Every value's path and where it starts; for an object's member, where its name starts."""
    path: list[str] = []
    indexes: list[int] = []  # one for each open bracket; -1 for an object
    name: tuple[str, int] | None = None
    for token in _TOKEN.finditer(text):
        word, offset = token.group(), token.start()
        in_list = bool(indexes) and indexes[-1] >= 0
        if word in "]}":
            if indexes:
                indexes.pop()
            if path:
                path.pop()
        elif word == ",":
            if in_list:
                indexes[-1] += 1
            name = None
        elif word == ":":
            continue
        elif not in_list and indexes and name is None:
            name = (word.strip('"'), offset)
            yield (*path, name[0]), offset
        else:
            step = str(indexes[-1]) if in_list else name[0] if name else None
            if in_list and step is not None:
                yield (*path, step), offset
            if word in "[{":
                if step is not None:
                    path.append(step)
                elif indexes:
                    return
                indexes.append(0 if word == "[" else -1)
                name = None
