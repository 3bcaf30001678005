"""Is this export what was sealed? Line by line, in memory that does not grow with the export.

The quick path, for a line that is exactly what it should be: make the line anew from its entry and compare.
What is then left to ask is asked of a *segment*, the entries up to the next truly signed checkpoint: do they,
on top of the tree proved so far, have the root that was signed? Whatever is not as it should be goes to
``segment.explain``.

Rules, in the order in which they are applied:

 * The header is in form, and the hashes before the export are as many as its first leaf asks for.
 * Each leaf's line has the hash of its entry, and the entries' numbers follow each other.
 * Each checkpoint is in form, of the header's log, signed by a known key and by no other; the checkpoints are
   counted, their sizes grow, each stands after the last entry that it covers, and the entries have its root.
 * The last line is the checkpoint of the header's size.
 * The checkpoint that somebody kept, if one is given, is signed likewise, and the tree had its root at its size.

A hole leaves the tree unknown from there on: what follows is still read, and compared with its own hashes,
numbers and signatures, but no root can be computed any more. ``Report.proved`` says up to where one could.
"""

from binascii import b2a_base64
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

from hub.audit.hashes import leaf_hash
from hub.verifier.lines import (
    ENTRY_AT,
    HASH_AT,
    Header,
    numbered,
    read_checkpoint,
    read_header,
    read_leaf,
    was_checkpoint,
)
from hub.verifier.note import Checkpoint, KeyId, Keys, decode, notes_of, open_checkpoint
from hub.verifier.report import Finding, Kind, Report
from hub.verifier.segment import Explained, Gap, Item, Mark, explain
from hub.verifier.tree import Tree

FINDINGS_MAX = 1_000
"""Who has a thousand findings needs no more."""
LINE_MAX = 4 << 20
"""Bytes of a line; an entry has some hundreds."""
ITEMS_MAX, ITEM_BYTES_MAX = 20_000, 32 << 20
"""Of a segment that are held: the hub signs a checkpoint each second, so it is a few thousand at most."""
MOVED_MAX = 10_000
"""Entries missing here and foreign there that are held to be matched at the end."""


def verify_export(lines: Iterable[bytes], keys: Keys, old_checkpoint: str | None = None) -> Report:
    """Check an export's lines, each with its newline, against ``keys`` and the checkpoint that somebody kept, or the file of
    them that the sealer writes: then each one counts, because after a history is rewritten the newest belong to the new one.

    Raises nothing but what ``lines`` raises: whatever the bytes are, the answer is a report.
    """
    rest = iter(lines)
    first = next(rest, b"")
    header = read_header(first)
    if header is None:
        message = "the export is empty" if not first else "the first line is not the header of an export"
        return Report(False, "", 0, 0, 0, 0, (Finding(Kind.MALFORMED, message, line=1),))
    reading = _Reading(header, keys)
    if old_checkpoint is not None:
        reading.compare_with(notes_of(old_checkpoint))
    reading.read(rest)
    return reading.report()


def lines_of(stream: BinaryIO) -> Iterator[bytes]:
    """A stream's lines. What is longer than a line can be comes in pieces, none of which is a line."""
    return iter(lambda: stream.readline(LINE_MAX), b"")


@dataclass(slots=True)
class _Reading:
    """Where the reading of one export has come to."""

    header: Header
    keys: Keys
    tree: Tree | None = None
    """The proved leaves, and on top of them whole parts of an open segment; None once it is unknown."""
    proved: int = 0
    start: int = 0
    """The first leaf of the open segment, by the numbers in the file."""
    shift: int = 0
    """How much larger these are than when they were sealed."""
    expected: int = 0
    items: list[Item] = field(default_factory=list)
    bytes_held: int = 0
    marks: list[Mark] = field(default_factory=list)
    odd: bool = False
    """Something in the open segment is not as it should be."""
    line: int = 1
    checkpoint_number: int = 1
    checkpoints: int = 0
    largest: int = -1
    """The size of the last checkpoint that is truly signed."""
    signed_by: frozenset[KeyId] = frozenset()
    """Keys that have signed so far."""
    retired: frozenset[KeyId] = frozenset()
    """Those of them that a later checkpoint was no longer signed with: by themselves they do not count any more."""
    bad_checkpoint: bool = False
    """Since then one was not."""
    old: dict[int, list[Checkpoint]] = field(default_factory=dict)
    """Kept checkpoints that are still to be compared, by size."""
    cut: int | None = None
    """The line that has no newline."""
    missing: list[Gap] = field(default_factory=list)
    foreign: list[Item] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    left_out: int = 0

    def __post_init__(self) -> None:
        first = self.header.first
        self.tree = self.header.tree(first)
        self.start = self.expected = self.proved = first

    def compare_with(self, notes: Sequence[str]) -> None:
        """Remember the kept checkpoints, or say why they cannot be compared.

        Of several it is enough that one can be compared with this export: those before it can be with an export of all.
        """
        apart: list[Finding] = []
        comparable = 0
        for note in notes:
            checkpoint, faults = open_checkpoint(note, self.keys)
            for fault in faults:
                self._find(Finding(fault.kind, f"the kept checkpoint: {fault.message}"))
            if checkpoint is None:
                continue
            finding = self._kept(checkpoint)
            comparable += finding is None
            apart += [finding] if finding else []
        if not comparable and apart:
            self._find(apart[-1])

    def _kept(self, checkpoint: Checkpoint) -> Finding | None:
        """Compare it, now or when the tree has come so far; or what to do so that it can be compared."""
        if checkpoint.origin != self.header.origin:
            self._find(Finding(Kind.NOT_COMPARED, "the kept checkpoint is one of another log"))
        elif checkpoint.size > self.header.size:
            message = (
                f"the kept checkpoint counts {checkpoint.size} entries, the export ends at {self.header.size}"
            )
            self._find(Finding(Kind.TRUNCATED, message, leaf=self.header.size, upto=checkpoint.size))
        elif checkpoint.size > self.header.first:
            self.old.setdefault(checkpoint.size, []).append(checkpoint)
        elif (tree := self.header.tree(checkpoint.size)) is None:
            message = (
                "make the export against the kept checkpoint: hub audit export --from-checkpoint old.txt"
            )
            return Finding(Kind.NOT_COMPARED, message, leaf=checkpoint.size)
        else:
            self._compare(checkpoint, tree.root())
        return None

    def read(self, lines: Iterable[bytes]) -> None:
        """All lines after the header."""
        for line in lines:
            self.line += 1
            data = line[ENTRY_AT:-2]
            digest = leaf_hash(data)
            if line == b'{"hash":"%b","entry":%b}\n' % (
                b2a_base64(digest, newline=False),
                data,
            ) and data.startswith(b'{"leaf":%d,' % self.expected):
                self.items.append(Item(self.expected, (digest,), data, self.line))
                self.expected += 1
                self.bytes_held += len(line)
                if len(self.items) >= ITEMS_MAX or self.bytes_held >= ITEM_BYTES_MAX:
                    self._close(self.expected)
            elif line.endswith(b"\n") or len(line) >= LINE_MAX:
                self._other(line)
            else:
                self.cut = self.line
        self._end()

    def report(self) -> Report:
        header = self.header
        if not self.findings and (self.tree is None or self.proved != header.size):
            self._find(
                Finding(Kind.MALFORMED, "the export could not be proved", leaf=self.proved, upto=header.size)
            )
        found = tuple(sorted(self.findings, key=lambda finding: finding.line or 0))
        return Report(
            not found,
            header.origin,
            header.first,
            header.size,
            self.proved,
            self.checkpoints,
            found,
            self.left_out,
        )

    def _other(self, line: bytes) -> None:
        """A line that is not the leaf expected here."""
        checkpoint = read_checkpoint(line)
        if checkpoint is not None:
            self._checkpoint(checkpoint.number, checkpoint.note)
        elif was_checkpoint(line):
            self._bad_checkpoint(Kind.CHECKPOINT_ALTERED, "the checkpoint's line is not in form")
            self.checkpoint_number += 1
        else:
            self._odd_leaf(line)

    def _odd_leaf(self, line: bytes) -> None:
        """A leaf's line with another number than expected, or changed, or no leaf's line at all."""
        self.odd = True
        leaf = read_leaf(line)
        if leaf is None:
            stored = decode(line[HASH_AT : HASH_AT + 44])
            data = line[ENTRY_AT:].removesuffix(b"\n").removesuffix(b"}")
            sealed_as = (leaf_hash(data),) if data.startswith(b'{"leaf":') else ()
            item = Item(
                None, ((stored,) if stored and len(stored) == 32 else ()) + sealed_as, data, self.line
            )
        elif leaf.stored == (computed := leaf_hash(leaf.data)):
            item = Item(leaf.claim, (computed,), leaf.data, self.line)
        else:
            fault = "the entry does not have the hash that was stored when it was sealed"
            item = Item(leaf.claim, (computed,), leaf.data, self.line, fault)
            if leaf.stored is not None:
                item = item._replace(digests=(leaf.stored, computed))
            if leaf.claim != self.expected:  # its own word counts for nothing; its neighbours say which it is
                item = item._replace(claim=None)
                if leaf.stored == leaf_hash(numbered(leaf.data, self.expected)):
                    item = item._replace(claim=self.expected, fault="the entry's number was changed")
        self.items.append(item)
        self.bytes_held += len(line)
        self.expected = (self.expected if item.claim is None else item.claim) + 1
        if len(self.items) >= ITEMS_MAX or self.bytes_held >= ITEM_BYTES_MAX:
            self._close(self.expected)

    def _checkpoint(self, number: int, note: str | None) -> None:
        if number != self.checkpoint_number:
            message = f"checkpoint number {number} stands where {self.checkpoint_number} should"
            kind = Kind.CHECKPOINT_MISSING if number > self.checkpoint_number else Kind.REORDERED
            self._find(Finding(kind, message, leaf=self.expected, line=self.line))
        self.checkpoint_number = number + 1
        if note is None:
            self._bad_checkpoint(Kind.CHECKPOINT_ALTERED, "the note is not a JSON string in its one form")
            return
        checkpoint, faults = open_checkpoint(note, self.keys)
        for fault in faults:
            self._find(Finding(fault.kind, fault.message, leaf=self.expected, line=self.line))
        if checkpoint is None:
            self.bad_checkpoint = True
        elif checkpoint.origin != self.header.origin:
            self._bad_checkpoint(
                Kind.CHECKPOINT_ALTERED, "the checkpoint is one of another log than the header says"
            )
        elif checkpoint.size <= max(
            self.largest, self.header.first - (self.header.first == self.header.size)
        ):
            self._bad_checkpoint(
                Kind.CHECKPOINT_ALTERED, f"no larger than what came before: {checkpoint.size}"
            )
        elif checkpoint.by <= self.retired:
            self._bad_checkpoint(
                Kind.WRONG_KEY, "signed with nothing but a key that had been replaced by then"
            )
        else:
            self._good_checkpoint(checkpoint)

    def _bad_checkpoint(self, kind: Kind, message: str) -> None:
        self.bad_checkpoint = True
        self._find(Finding(kind, message, leaf=self.expected, line=self.line))

    def _good_checkpoint(self, checkpoint: Checkpoint) -> None:
        self.checkpoints += 1
        self.largest, self.bad_checkpoint = checkpoint.size, False
        self.signed_by |= checkpoint.by
        self.retired = (self.retired | self.signed_by) - checkpoint.by
        size = checkpoint.size + self.shift
        self.marks.append(Mark(size, checkpoint.root, self.line, len(self.items)))
        if self.expected == size or len(self.marks) > 1:
            # Else something may be on its way that the checkpoint covers: the next one will tell.
            self._close(size)

    def _close(self, end: int) -> None:
        """What the open segment's entries, up to ``end``, come to."""
        hashes: list[bytes] | None = None
        in_place = not self.marks or [mark.after for mark in self.marks] == [len(self.items)]
        straight = not self.odd and self.expected == end and in_place
        if straight and self.tree is not None:
            hashes = [item.digests[0] for item in self.items]
            tree, roots = self._on_top(self.tree, hashes)
            straight = not self.marks or tree.root() == self.marks[0].root
        if straight and hashes is not None:
            self._grow(tree, roots)
        elif not straight:
            explained = explain(self.start, end, self.items, self.marks, self.tree, self.proved)
            self._take(explained)
            if explained.hashes is None or self.tree is None:
                self.tree = None
            else:
                self._grow(*self._on_top(self.tree, explained.hashes))
            if explained.shift:
                end = self.expected
        if self.marks and self.tree is not None:
            self.proved = self.tree.size
        self.start = self.expected = end
        self.items, self.marks, self.odd, self.bytes_held = [], [], False, 0

    def _on_top(self, tree: Tree, hashes: list[bytes]) -> tuple[Tree, dict[int, bytes]]:
        """The tree with these leaves too, and the roots that it had at the kept checkpoints' sizes on the way."""
        grown, roots = tree.copy(), dict[int, bytes]()
        for digest in hashes:
            grown.add(digest)
            if grown.size in self.old:
                roots[grown.size] = grown.root()
        return grown, roots

    def _grow(self, tree: Tree, roots: dict[int, bytes]) -> None:
        self.tree = tree
        for size, root in roots.items():
            for old in self.old.pop(size):
                self._compare(old, root)

    def _take(self, explained: Explained) -> None:
        for finding in explained.findings:
            self._find(finding)
        self.missing += explained.missing
        self.foreign += explained.foreign
        self.shift += explained.shift
        if len(self.missing) + len(self.foreign) > MOVED_MAX:
            self._match_moved()

    def _compare(self, old: Checkpoint, root: bytes) -> None:
        if root != old.root:
            message = f"the first {old.size} entries are not those that the kept checkpoint was signed over"
            self._find(Finding(Kind.REWRITTEN, message, leaf=0, upto=old.size))

    def _end(self) -> None:
        """The last line has been read: is all there that the header and the kept checkpoint promise?"""
        size = self.header.size + self.shift
        complete = self.largest == self.header.size
        end = size if complete else self._reached(size)
        if self.items or self.marks:
            self._close(end)
        self._match_moved()
        if self.largest > self.header.size:
            message = (
                f"the header says {self.header.size} entries, and a checkpoint of {self.largest} follows"
            )
            self._find(Finding(Kind.ALTERED, message, line=1))
        elif not complete and (end < size or not self.bad_checkpoint):
            message = (
                "the export ends before the last entry" if end < size else "the last checkpoint is not there"
            )
            upto = size if end < size else None
            self._find(Finding(Kind.TRUNCATED, message, leaf=end, line=self.line, upto=upto))
        elif self.cut is not None:
            self._find(Finding(Kind.MALFORMED, "the line does not end", line=self.cut))
        if self.old:
            message = "what is wrong with the export keeps it from being compared with the kept checkpoint"
            self._find(Finding(Kind.NOT_COMPARED, message, leaf=min(self.old)))

    def _reached(self, size: int) -> int:
        """Up to where there are entries, of an export whose last checkpoint is not there."""
        claimed = [item.claim + 1 for item in self.items if item.claim is not None and item.claim < size]
        if not self.items or self.items[-1].index is None:
            claimed.append(min(self.expected, size))
        return max(claimed, default=self.start)

    def _match_moved(self) -> None:
        """An entry that is missing in one place and foreign in another was moved; the rest is missing, or added."""
        added: list[Gap] = []
        gaps = sorted(self.missing)
        for item in self.foreign:
            claim = item.claim or 0
            if item.fault:
                self._find(Finding(Kind.ALTERED, item.fault, leaf=claim, line=item.line))
            at = bisect_right(gaps, claim, key=lambda gap: gap.leaf) - 1
            if at >= 0 and claim < gaps[at].upto:
                leaf, upto, line = gaps[at]
                rest = (Gap(leaf, claim, line), Gap(claim + 1, upto, line))
                gaps[at : at + 1] = [gap for gap in rest if gap.leaf < gap.upto]
                message = "the entry does not stand in its place"
                self._find(Finding(Kind.REORDERED, message, leaf=claim, line=item.line))
            else:
                added.append(Gap(claim, claim + 1, item.line))
        for leaf, upto, line in _joined(added):
            unknown = leaf >= self.header.size
            message = "a leaf that the log does not have" if unknown else "a second entry for this leaf"
            self._find(Finding(Kind.ADDED, message, leaf, line, upto if upto > leaf + 1 else None))
        for leaf, upto, line in _joined(gaps):
            message = "the entry is not there" if upto == leaf + 1 else f"{upto - leaf} entries are not there"
            self._find(Finding(Kind.MISSING, message, leaf, line, upto if upto > leaf + 1 else None))
        self.foreign, self.missing = [], []

    def _find(self, finding: Finding) -> None:
        if len(self.findings) < FINDINGS_MAX:
            self.findings.append(finding)
        else:
            self.left_out += 1


def _joined(places: Iterable[Gap]) -> Iterator[Gap]:
    """Leaves that follow each other as one, with the first one's line."""
    run: Gap | None = None
    for place in places:
        if run and place.leaf == run.upto:
            run = run._replace(upto=place.upto)
            continue
        if run:
            yield run
        run = place
    if run:
        yield run
