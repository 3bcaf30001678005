"""What happened to the entries between two checkpoints, where something did. Pure, and off the quick path.

The lines are taken at their word only so far as it can be checked. First each entry's own number says what is
missing, double or out of order; then, where there is a choice (which of two entries with one number, the hash
that was stored or the one that the content has), the signed root decides; and where nothing decides, the
finding is the whole range. Asked in this order:

 * Lines that cannot be read: the numbers around them say which leaf each was.
 * Numbers without a break, but more or fewer than the checkpoint counts: somebody inserted or deleted and
   numbered anew. Of one too many, leaving each out in turn finds which.
 * Otherwise by number: twice, not there, out of order (not in the longest run of growing numbers), choices.
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import NamedTuple

from hub.audit.hashes import leaf_hash
from hub.verifier.lines import numbered
from hub.verifier.report import Finding, Kind
from hub.verifier.tree import Tree

HASHES_MAX = 2_000_000
"""How much is tried before the answer is a range: some two seconds."""


class Item(NamedTuple):
    """A leaf's line: the number it claims (None: not to be read), the hashes that it may have been sealed with."""

    claim: int | None
    digests: tuple[bytes, ...]
    data: bytes
    line: int
    fault: str | None = None


class Mark(NamedTuple):
    """A truly signed checkpoint, which came when ``after`` of the segment's items had come."""

    size: int
    root: bytes
    line: int
    after: int


@dataclass(slots=True)
class Explained:
    """What was found; the leaf hashes of the whole segment, where its roots confirm them.

    ``missing`` are indices with the line where they should have been, ``foreign`` items of other segments: an
    entry that is missing here and foreign there was moved, which only the whole export shows. ``shift``: the
    numbers from here on are this much larger than they were when sealed.
    """

    findings: list[Finding] = field(default_factory=list)
    hashes: list[bytes] | None = None
    missing: dict[int, int] = field(default_factory=dict)
    foreign: list[Item] = field(default_factory=list)
    shift: int = 0


def explain(
    start: int, end: int, items: Sequence[Item], marks: Sequence[Mark], tree: Tree | None, proved: int
) -> Explained:
    """What became of the leaves [start, end), for which ``items`` came, and ``marks`` among them.

    ``tree`` is the tree of the ``start`` leaves before, of which ``proved`` have a signed root; or None if it is
    no longer known: then no root can decide.
    """
    explained = Explained()
    placed = _place_unreadable(start, end, items, explained.findings)
    displaced = any(mark.after != mark.size - start for mark in marks)
    if displaced and len(placed) != end - start and _numbers_without_break(start, placed):
        return _numbered_anew(start, end, placed, marks, tree, explained)
    return _by_number(start, end, placed, marks, tree, explained, proved)


def _place_unreadable(start: int, end: int, items: Sequence[Item], findings: list[Finding]) -> list[Item]:
    """The items with the leaf that each line must have been; a line that was none keeps no number."""
    placed: list[Item] = []
    before, at = start - 1, 0
    while at < len(items):
        item = items[at]
        if item.claim is not None:
            placed.append(item)
            before, at = item.claim, at + 1
            continue
        run = at
        while run < len(items) and items[run].claim is None:
            run += 1
        after = items[run].claim if run < len(items) else end
        room = (after or 0) - before - 1
        for unread in items[at:run]:
            fits = room > 0
            leaf = before + 1
            message = unread.fault or "the line cannot be read"
            findings.append(
                Finding(Kind.ALTERED if fits else Kind.MALFORMED, message, leaf=leaf, line=unread.line)
            )
            if fits:
                placed.append(unread._replace(claim=leaf))
                before, room = leaf, room - 1
            else:
                placed.append(unread)  # for the marks' places; nobody asks for it
        at = run
    return placed


def _numbers_without_break(start: int, items: Sequence[Item]) -> bool:
    return all(item.claim == start + place for place, item in enumerate(items))


def _numbered_anew(
    start: int,
    end: int,
    items: Sequence[Item],
    marks: Sequence[Mark],
    tree: Tree | None,
    explained: Explained,
) -> Explained:
    """The numbers go on without a break and the checkpoints do not stand where they count to."""
    first = next(mark for mark in marks if mark.after != mark.size - start)
    good = max(
        (mark.size for mark in marks if mark.size < first.size and mark.after == mark.size - start),
        default=start,
    )
    explained.shift = shift = first.after - (first.size - start)
    _note_altered(items, explained.findings)
    if (
        shift == 1
        and tree is not None
        and (extra := _left_out(items[: first.after], tree, first.root)) is not None
    ):
        message = "without this entry the others are those that were sealed, under the numbers that they had"
        explained.findings.append(Finding(Kind.ADDED, message, leaf=start + extra, line=items[extra].line))
    elif shift > 0:
        message = f"entries more than the checkpoint of {first.size} counts: {shift}"
        explained.findings.append(
            Finding(Kind.ADDED, message, leaf=good, line=first.line, upto=first.size + shift)
        )
    elif first is marks[-1] and end == first.size and len(items) == first.after:
        message = (
            f"the checkpoint of {first.size} counts it; if the entries were numbered anew, "
            f"what is missing may be any after {good - 1}"
        )
        explained.findings.append(
            Finding(Kind.MISSING, message, leaf=start + first.after, line=first.line, upto=first.size)
        )
    else:
        message = f"entries fewer than the checkpoint of {first.size} counts: {-shift}; the others were numbered anew"
        explained.findings.append(Finding(Kind.MISSING, message, leaf=good, line=first.line, upto=first.size))
    return explained


def _left_out(items: Sequence[Item], tree: Tree, root: bytes) -> int | None:
    """Which of the items is the one too many: without it, and numbered as before, the rest have this root."""
    if len(items) ** 2 > HASHES_MAX:
        return None
    shifted = [leaf_hash(numbered(item.data, (item.claim or 0) - 1)) for item in items]
    prefix = tree.copy()
    for place, item in enumerate(items):
        trial = prefix.copy()
        for digest in shifted[place + 1 :]:
            trial.add(digest)
        if trial.root() == root:
            return place
        prefix.add(item.digests[0])
    return None


def _by_number(
    start: int,
    end: int,
    items: Sequence[Item],
    marks: Sequence[Mark],
    tree: Tree | None,
    explained: Explained,
    proved: int,
) -> Explained:
    findings = explained.findings
    inside = [item for item in items if item.claim is not None and start <= item.claim < end]
    explained.foreign = [item for item in items if item.claim is not None and not start <= item.claim < end]
    in_order = _longest_growing(inside)
    groups: dict[int, list[Item]] = {}
    for item in inside:
        groups.setdefault(item.claim or 0, []).append(item)
    next_line = max((mark.line for mark in marks), default=items[-1].line + 1 if items else 0)
    for index in range(end - 1, start - 1, -1):
        if index in groups:
            next_line = groups[index][0].line
        else:
            explained.missing[index] = next_line
    for (
        index,
        group,
    ) in groups.items():  # first the one that stands in order, then those that are not at fault
        group.sort(key=lambda item: (item.fault is not None, item.line not in in_order))
        groups[index] = [item for item in group if item.digests] or group
    chosen = {
        index: (group[0], group[0].digests[0] if group[0].digests else b"") for index, group in groups.items()
    }
    confirmed = False
    if tree is not None and not explained.missing:
        confirmed, chosen = _choose(start, groups, chosen, [mark for mark in marks if mark.size <= end], tree)
    for index, group in groups.items():
        for item in group:
            if item is not chosen[index][0]:
                findings.append(
                    Finding(Kind.ADDED, "a second entry for this leaf", leaf=index, line=item.line)
                )
    winners = [chosen[index][0] for index in sorted(chosen)]
    _note_altered(winners, findings)
    in_order = _longest_growing(sorted(winners, key=lambda item: item.line))
    findings.extend(
        Finding(Kind.REORDERED, "the entry does not stand in its place", leaf=item.claim, line=item.line)
        for item in winners
        if item.line not in in_order
    )
    findings.extend(_marks_out_of_place(items, in_order, marks))
    if tree is None or explained.missing:
        return explained
    hashes = [chosen[index][1] for index in range(start, end)]
    explained.hashes = hashes if confirmed else None
    findings.extend(_roots_that_differ(hashes, marks, tree, explained, proved))
    return explained


def _longest_growing(items: Sequence[Item]) -> set[int]:
    """The lines of the longest run of growing numbers: the entries that stayed where they were."""
    tails: list[int] = []
    at: list[int] = []
    previous: list[int] = []
    for place, item in enumerate(items):
        index = item.claim or 0
        rank = bisect_left(tails, index)
        previous.append(at[rank - 1] if rank else -1)
        if rank == len(tails):
            tails.append(index)
            at.append(place)
        elif index < tails[rank]:  # of two with one number the first stays
            tails[rank], at[rank] = index, place
    lines: set[int] = set()
    place = at[-1] if at else -1
    while place >= 0:
        lines.add(items[place].line)
        place = previous[place]
    return lines


Chosen = dict[int, tuple[Item, bytes]]


def _choose(
    start: int, groups: Mapping[int, list[Item]], first_choice: Chosen, marks: Sequence[Mark], tree: Tree
) -> tuple[bool, Chosen]:
    """Which item and hash each leaf was sealed with: those that the signed root confirms, if any do."""
    options = {
        index: [(item, digest) for item in group for digest in item.digests]
        for index, group in groups.items()
        if len(group) > 1 or len(group[0].digests) > 1
    }
    if not marks:
        return True, first_choice
    size, root = marks[-1].size, marks[-1].root
    tries = HASHES_MAX // max(1, size - start)
    for choice in _combinations(options, tries):
        chosen = first_choice | choice
        trial = tree.copy()
        for index in range(start, size):
            trial.add(chosen[index][1])
        if trial.root() == root:
            return True, chosen
    return False, first_choice


def _combinations(options: Mapping[int, list[tuple[Item, bytes]]], tries: int) -> Iterator[Chosen]:
    for _, choice in zip(range(max(1, tries)), product(*options.values()), strict=False):
        yield dict(zip(options, choice, strict=True))


def _roots_that_differ(
    hashes: Sequence[bytes], marks: Sequence[Mark], tree: Tree, explained: Explained, proved: int
) -> Iterator[Finding]:
    """The first checkpoint whose root the entries do not have, unless a later one confirms them after all."""
    trial, good, differs = tree.copy(), proved, None
    for mark in marks:  # their sizes grow
        for digest in hashes[trial.size - tree.size : max(0, mark.size - tree.size)]:
            trial.add(digest)
        if trial.size != mark.size:
            explained.hashes = None
            message = f"the checkpoint of {mark.size} stands where its root cannot be computed"
            yield Finding(Kind.REORDERED, message, leaf=mark.size, line=mark.line)
        elif trial.root() != mark.root:
            differs = differs or mark
        elif differs:
            message = f"truly signed, but no root of this log at {differs.size}: a later checkpoint confirms the entries"
            yield Finding(Kind.REWRITTEN, message, leaf=differs.size, line=differs.line)
            differs, good = None, mark.size
        else:
            good = mark.size
    if differs:
        explained.hashes = None
    if differs and not any(finding.kind in {Kind.ALTERED, Kind.ADDED} for finding in explained.findings):
        message = (
            "each entry has the hash in its line, but together with what came before "
            f"they do not have the signed root of {differs.size}"
        )
        yield Finding(Kind.ALTERED, message, leaf=good, line=differs.line, upto=differs.size)


def _marks_out_of_place(
    items: Sequence[Item], in_order: set[int], marks: Sequence[Mark]
) -> Iterator[Finding]:
    for mark in marks:
        before = [
            item.claim for item in items[: mark.after] if item.line in in_order and item.claim is not None
        ]
        after = [
            item.claim for item in items[mark.after :] if item.line in in_order and item.claim is not None
        ]
        if (before and before[-1] >= mark.size) or (after and after[0] < mark.size):
            message = f"the checkpoint of {mark.size} does not stand after the last entry that it covers"
            yield Finding(Kind.REORDERED, message, leaf=mark.size, line=mark.line)


def _note_altered(items: Sequence[Item], findings: list[Finding]) -> None:
    noted = {finding.line for finding in findings}
    findings.extend(
        Finding(Kind.ALTERED, item.fault, leaf=item.claim, line=item.line)
        for item in items
        if item.fault and item.line not in noted
    )
