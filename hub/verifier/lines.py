"""The lines of an export, matched as bytes: each has one form, and whatever differs from it is seen."""

import json
import re
from typing import NamedTuple

from hub.verifier.note import decode
from hub.verifier.tree import Tree, widths

_NUMBER = rb"(?:0|[1-9][0-9]{0,17})"
_STRING = rb'"(?:[^"\\\x00-\x1f]|\\.)*"'
_HASH = rb"[A-Za-z0-9+/]{43}="
_HEADER = re.compile(
    rb'\{"transfer-hub-audit":1,"origin":(%b),"first":(%b),"size":(%b)(?:,"old":(%b))?,"before":\[(|"%b"(?:,"%b")*)\]\}\n'
    % (_STRING, _NUMBER, _NUMBER, _NUMBER, _HASH, _HASH)
)
_LEAF = re.compile(rb'\{"hash":"(%b)","entry":(\{"leaf":(%b),[^\n]*\})\}\n' % (_HASH, _NUMBER))
_CHECKPOINT = re.compile(rb'\{"checkpoint":([1-9][0-9]{0,17}),"note":(%b)\}\n' % _STRING)

HASH_AT, ENTRY_AT = 9, 63
"""Where in a leaf's line the stored hash and the entry begin."""


class Header(NamedTuple):
    """What the export claims to be, and the tree before it."""

    origin: str
    first: int
    size: int
    old: int | None
    before: tuple[bytes, ...]

    def tree(self, upto: int) -> Tree | None:
        """The tree of the first ``upto`` leaves, if the hashes in ``before`` can be taken apart there."""
        tree = Tree()
        for digest, width in zip(self.before, self._widths(), strict=True):
            if tree.size == upto:
                break
            tree.add(digest, width)
        return tree if tree.size == upto else None

    def _widths(self) -> list[int]:
        return widths(0, self.old or 0) + widths(self.old or 0, self.first)

    def fits(self) -> bool:
        """Are there as many hashes as there are subtrees, and is ``old`` there only where it is needed?"""
        if self.first > self.size or len(self.before) != len(self._widths()):
            return False
        return self.old is None or (self.old < self.first and self._widths() != widths(0, self.first))


class Leaf(NamedTuple):
    """A leaf's line that is in form: the hash stored when it was sealed (None: not base64), and the entry."""

    stored: bytes | None
    data: bytes
    claim: int


class Signed(NamedTuple):
    """A checkpoint's line: its number in the export, and the note (None: not a JSON string in the one form)."""

    number: int
    note: str | None


def read_header(line: bytes) -> Header | None:
    parts = _HEADER.fullmatch(line)
    if parts is None:
        return None
    origin = _string(parts[1])
    before = [decode(quoted[1:-1]) for quoted in parts[5].split(b",") if quoted]
    if origin is None or any(digest is None for digest in before):
        return None
    old = int(parts[4]) if parts[4] else None
    header = Header(origin, int(parts[2]), int(parts[3]), old, tuple(digest for digest in before if digest))
    return header if header.fits() else None


def read_leaf(line: bytes) -> Leaf | None:
    parts = _LEAF.fullmatch(line)
    return parts and Leaf(decode(parts[1]), parts[2], int(parts[3]))


def read_checkpoint(line: bytes) -> Signed | None:
    parts = _CHECKPOINT.fullmatch(line)
    return parts and Signed(int(parts[1]), _string(parts[2]))


def was_checkpoint(line: bytes) -> bool:
    """Is this line, which is in no form, what is left of a checkpoint's?"""
    return line.startswith(b'{"checkpoint":') or b'"note":' in line[:45]


def numbered(data: bytes, index: int) -> bytes:
    """The same entry with another leaf index."""
    return b'{"leaf":%d,%b' % (index, data.partition(b",")[2])


def _string(encoded: bytes) -> str | None:
    """A JSON string in its one form: what must be escaped is, in the short form, and nothing else."""
    try:
        value = json.loads(encoded)
        same = json.dumps(value, ensure_ascii=False).encode() == encoded
    except ValueError:  # also what is not UTF-8, and half a surrogate pair
        return None
    return value if same and isinstance(value, str) else None
