"""The verifier's own tree (RFC 6962, section 2.1): grows to the right, computes roots, follows a path."""

from collections.abc import Iterable, Sequence

from hub.audit.hashes import EMPTY_ROOT, node_hash


class Tree:
    """The roots of the perfect subtrees of the first ``size`` leaves."""

    __slots__ = ("peaks", "size")

    def __init__(self, size: int = 0, peaks: Iterable[bytes] = ()) -> None:
        self.size, self.peaks = size, list(peaks)

    def copy(self) -> "Tree":
        return Tree(self.size, self.peaks)

    def add(self, digest: bytes, width: int = 1) -> None:
        """Put a perfect subtree of ``width`` leaves, by default one leaf, to the right of what is there."""
        peaks, neighbours = self.peaks, self.size // width
        while neighbours & 1:
            digest = node_hash(peaks.pop(), digest)
            neighbours >>= 1
        peaks.append(digest)
        self.size += width

    def root(self) -> bytes:
        if not self.peaks:
            return EMPTY_ROOT
        digest = self.peaks[-1]
        for left in self.peaks[-2::-1]:
            digest = node_hash(left, digest)
        return digest


def widths(first: int, last: int) -> list[int]:
    """The sizes of the fewest perfect subtrees that cover the leaves [first, last), left to right."""
    found = []
    while first < last:
        width = 1
        while first % (2 * width) == 0 and first + 2 * width <= last:
            width *= 2
        found.append(width)
        first += width
    return found


def root_by_path(leaf: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes | None:
    """The root that PATH(index, D[size]) leads to from this leaf hash (section 2.1.1); None if it has another length."""
    if size == 1 or not path:
        return leaf if size == 1 and not path else None
    left = 1
    while 2 * left < size:
        left *= 2
    *below, sibling = path
    if index < left:
        inner = root_by_path(leaf, index, left, below)
        return inner and node_hash(inner, sibling)
    inner = root_by_path(leaf, index - left, size - left, below)
    return inner and node_hash(sibling, inner)
