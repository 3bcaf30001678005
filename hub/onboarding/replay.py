"""What another version of a trust's profile would change: stored messages, explained twice, nothing written but the audit."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hub.codes.book import CodeBook
from hub.domain.message import Received
from hub.domain.trust import Directory, TrustProfile
from hub.journey.decide import Journey
from hub.journey.explain import explain


@dataclass(frozen=True, slots=True)
class Difference:
    """One field that would not be the same. ``path`` is as in `hub explain --json`; a value that is absent is None."""

    path: str
    before: Any
    after: Any


def with_profile(journey: Journey, profile: TrustProfile, book: CodeBook | None = None) -> Journey:
    """The same rules with one trust's profile exchanged, and its code book if there is another."""
    others = (each for each in journey.directory if each.ods != profile.ods)
    books = {**journey.books, profile.ods: book} if book else journey.books
    return replace(journey, directory=Directory((*others, profile)), books=books)


def compare(
    messages: Sequence[Received], now: Journey, then: Journey
) -> Iterator[tuple[Received, list[Difference]]]:
    """Each message with what would differ in its explanation; [] where nothing would."""
    for received in messages:
        before, after = (explain(received, journey).as_json() for journey in (now, then))
        # A line that only moved within its map changes nothing for anybody.
        yield received, [each for each in differences(before, after) if not _SOURCE.fullmatch(each.path)]


_SOURCE = re.compile(r"changes\[[0-9]+\]\.source")


def differences(before: Any, after: Any, path: str = "") -> Iterator[Difference]:
    """Every leaf in which two JSON values differ."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for name in dict.fromkeys((*before, *after)):
            yield from differences(before.get(name), after.get(name), f"{path}.{name}" if path else name)
    elif isinstance(before, list | tuple) and isinstance(after, list | tuple):
        for index in range(max(len(before), len(after))):
            yield from differences(
                before[index] if index < len(before) else None,
                after[index] if index < len(after) else None,
                f"{path}[{index}]",
            )
    elif before != after or type(before) is not type(after):
        yield Difference(path or "(the whole)", before, after)
