"""Where in a JSON text a FHIR path stands, so that a person can be shown the line."""

import re
from collections.abc import Iterator

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s{}\[\],:"]+')
_STEP = re.compile(r"[^.\[\]]+")


def line_of(text: str, path: str) -> int | None:
    """The 1-based line on which ``Bundle.entry[0].resource.status`` begins, or of its nearest parent that is there.

    A path that begins with another resource's type than the message's (``MessageHeader.sender``) leads to that
    resource. None where the text is not JSON or the path names nothing in it.
    """
    wanted = tuple(_STEP.findall(path))[1:]
    best: tuple[int, int] | None = None
    for where, offset in _places(text):
        if where == wanted[: len(where)] and (best is None or len(where) > best[0]):
            best = (len(where), offset)
    begins = best[1] if best else _resource(text, path)
    return None if begins is None else text.count("\n", 0, begins) + 1


def _resource(text: str, path: str) -> int | None:
    """Where the first resource of the path's type says so."""
    resource_type = re.escape(path.partition(".")[0])
    found = re.search(rf'"resourceType"\s*:\s*"{resource_type}"', text)
    return found.start() if found else None


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
