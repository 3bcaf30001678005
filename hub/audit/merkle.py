"""The log's tree, as its writer needs it: RFC 6962, section 2.1. Pure.

The tree over n leaves is made of *perfect* subtrees, which never change once their last leaf is there; only
these are stored, each under its ``Node``. Whatever else is asked for, a root, a proof, is folded from them
when it is asked for. Proofs come in two steps so that a database can fetch in between: ``…_nodes`` says which
nodes are needed, ``…_proof`` makes the proof from their hashes.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple, Self

from hub.audit.hashes import EMPTY_ROOT, node_hash

Range = tuple[int, int]
"""The leaves [first, last)."""


class Node(NamedTuple):
    """The perfect subtree over the leaves [index · 2^level, (index + 1) · 2^level)."""

    level: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody asks of a node


class Frontier:
    """The compact range of [0, size): all that is needed of a tree to let it grow.

    Not a value: ``extend`` changes it, because a new one for each leaf would cost more than the hashing.
    """

    __slots__ = ("nodes", "size")

    def __init__(self) -> None:
        self.size = 0
        self.nodes: list[bytes] = []
        """The hashes of ``range_nodes(0, size)``, left to right."""

    @classmethod
    def of(cls, size: int, nodes: Iterable[bytes]) -> Self:
        """The frontier of a tree of ``size`` leaves from the hashes of ``range_nodes(0, size)``."""
        frontier = cls()
        frontier.size, frontier.nodes = size, list(nodes)
        if len(frontier.nodes) != size.bit_count():
            raise ValueError(
                f"a tree of {size} has {size.bit_count()} perfect subtrees, not {len(frontier.nodes)}"
            )
        return frontier

    def extend(self, leaf_hashes: Iterable[bytes], lowest: int = 1) -> list[tuple[Node, bytes]]:
        """Add leaves; the nodes of level ``lowest`` and up that they completed, the lowest level first."""
        completed: list[tuple[Node, bytes]] = []
        row, level, index = list(leaf_hashes), 0, self.size
        self.size += len(row)
        edge: list[bytes] = []
        while row:
            if index & 1:  # what stands alone to the left is the first one's sibling
                row.insert(0, self.nodes.pop())
            if len(row) & 1:
                edge.append(row.pop())
            index, level = index >> 1, level + 1
            row = [node_hash(left, right) for left, right in zip(row[::2], row[1::2], strict=True)]
            if level >= lowest:
                completed += ((Node(level, at), digest) for at, digest in enumerate(row, index))
        self.nodes += reversed(edge)
        return completed

    def root(self) -> bytes:
        """MTH of all leaves (section 2.1)."""
        return fold(self.nodes) if self.nodes else EMPTY_ROOT


def fold(hashes: Iterable[bytes]) -> bytes:
    """The hash over perfect subtrees that stand side by side, each smaller than the one to its left."""
    *lefts, digest = hashes
    for left in reversed(lefts):
        digest = node_hash(left, digest)
    return digest


def range_nodes(first: int, last: int) -> list[Node]:
    """The fewest perfect subtrees that cover the leaves [first, last), left to right (a compact range)."""
    nodes: list[Node] = []
    while first < last:
        fits = (last - first).bit_length() - 1
        aligned = (first & -first).bit_length() - 1 if first else fits
        level = min(fits, aligned)
        nodes.append(Node(level, first >> level))
        first += 1 << level
    return nodes


def inclusion_nodes(index: int, size: int) -> list[Node]:
    """The nodes whose hashes ``inclusion_proof`` needs."""
    return _nodes_of(_inclusion_ranges(index, size))


def inclusion_proof(index: int, size: int, hashes: Mapping[Node, bytes]) -> list[bytes]:
    """PATH(index, D[size]): that leaf ``index`` is in the tree of ``size`` (section 2.1.1), leaf to root."""
    return _hashes_of(_inclusion_ranges(index, size), hashes)


def consistency_nodes(old: int, size: int) -> list[Node]:
    """The nodes whose hashes ``consistency_proof`` needs."""
    return _nodes_of(_consistency_ranges(old, size))


def consistency_proof(old: int, size: int, hashes: Mapping[Node, bytes]) -> list[bytes]:
    """PROOF(old, D[size]): that the tree of ``old`` leaves is the beginning of this one (section 2.1.2)."""
    return _hashes_of(_consistency_ranges(old, size), hashes)


def verify_inclusion(leaf_hash: bytes, index: int, size: int, proof: Iterable[bytes], root: bytes) -> bool:
    """Does the proof lead from the leaf to the root? (RFC 9162, section 2.1.3.2, the steps of it.)"""
    if not 0 <= index < size:
        return False
    at, last, digest = index, size - 1, leaf_hash
    for sibling in proof:
        if last == 0:
            return False
        if at & 1 or at == last:
            digest = node_hash(sibling, digest)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            digest = node_hash(digest, sibling)
        at, last = at >> 1, last >> 1
    return last == 0 and digest == root


def verify_consistency(old: int, size: int, proof: Iterable[bytes], old_root: bytes, root: bytes) -> bool:
    """Does the proof lead from both the old root and the root? (RFC 9162, section 2.1.4.2.)"""
    path = list(proof)
    if not 0 <= old <= size:
        return False
    if old == size:
        return not path and old_root == root
    if old == 0:  # anything begins with nothing
        return not path and old_root == EMPTY_ROOT
    if old & (old - 1) == 0:  # then the old tree is itself a node, and the proof leaves it out
        path.insert(0, old_root)
    if not path:
        return False
    at, last = old - 1, size - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    before = after = path[0]
    for sibling in path[1:]:
        if last == 0:
            return False
        if at & 1 or at == last:
            before, after = node_hash(sibling, before), node_hash(sibling, after)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            after = node_hash(after, sibling)
        at, last = at >> 1, last >> 1
    return last == 0 and before == old_root and after == root


def _inclusion_ranges(index: int, size: int) -> list[Range]:
    """The subtrees whose hashes are the proof, leaf to root."""
    if not 0 <= index < size:
        raise ValueError(f"there is no leaf {index} in a tree of {size}")
    ranges, (first, last) = [], (0, size)
    while last - first > 1:
        middle = first + _split(last - first)
        if index < middle:
            ranges.append((middle, last))
            last = middle
        else:
            ranges.append((first, middle))
            first = middle
    return ranges[::-1]


def _consistency_ranges(old: int, size: int) -> list[Range]:
    """SUBPROOF(old, D[size], true), and its subtrees in the proof's order."""
    if not 0 <= old <= size:
        raise ValueError(f"a tree of {old} is no beginning of a tree of {size}")
    if old in {0, size}:
        return []
    ranges, (first, last) = [], (0, size)
    while last > old:
        middle = first + _split(last - first)
        if old <= middle:
            ranges.append((middle, last))
            last = middle
        else:
            ranges.append((first, middle))
            first = middle
    if first:  # else the subtree is the whole old tree, whose root the asker has
        ranges.append((first, last))
    return ranges[::-1]


def _split(size: int) -> int:
    """The largest power of two smaller than ``size``: k in section 2.1."""
    return 1 << ((size - 1).bit_length() - 1)


def _nodes_of(ranges: Iterable[Range]) -> list[Node]:
    return [node for first, last in ranges for node in range_nodes(first, last)]


def _hashes_of(ranges: Iterable[Range], hashes: Mapping[Node, bytes]) -> list[bytes]:
    return [fold([hashes[node] for node in range_nodes(first, last)]) for first, last in ranges]
