"""A sealed log, made by the writer's side as the hub makes it, and its export as a list of lines."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from hub.audit.export import before_nodes, export_lines
from hub.audit.hashes import leaf_hash
from hub.audit.leaf import leaf_bytes
from hub.audit.merkle import Frontier, Node
from hub.audit.note import Signer, sign
from hub.verifier import Keys, read_keys

ORIGIN = "hub.example/audit"
HUB_KEY = Signer(ORIGIN, bytes(range(32)))
NEXT_KEY = Signer(ORIGIN, bytes(range(32, 64)))
FALSE_KEY = Signer(ORIGIN, bytes(32))
BEGAN = datetime(2026, 3, 1, 9, 10, tzinfo=UTC)


def keys_of(*signers: Signer) -> Keys:
    return read_keys("# the hub's\n" + "\n".join(signer.vkey for signer in signers))


HUB = keys_of(HUB_KEY)


def an_entry(number: int) -> dict:
    """The number-th thing that the hub did."""
    return {
        "entry": number + 1_000,
        "code": "delivery-sent",
        "at": BEGAN + timedelta(milliseconds=37 * number),
        "outcome": 0,
        "trust": "RA9",
        "system": "hub",
        "counterpart": "RH8",
        "event_id": f"019cb{number:08x}",
        "detail": {"sha256": f"{number:064x}", "attempts": 1 + number % 3},
    }


@dataclass
class Log:
    """Leaves, the stored nodes and the checkpoints."""

    leaves: list[bytes] = field(default_factory=list)
    nodes: dict[Node, bytes] = field(default_factory=dict)
    notes: dict[int, str] = field(default_factory=dict)
    frontier: Frontier = field(default_factory=Frontier)

    @property
    def size(self) -> int:
        return len(self.leaves)

    def add(self, leaf: bytes) -> None:
        self.nodes[Node(0, self.size)] = leaf_hash(leaf)
        self.nodes.update(self.frontier.extend([leaf_hash(leaf)]))
        self.leaves.append(leaf)

    def checkpoint(self, signers: Sequence[Signer] = (HUB_KEY,)) -> str:
        self.notes[self.size] = sign(ORIGIN, self.size, self.frontier.root(), signers)
        return self.notes[self.size]

    def export(self, first: int = 0, size: int | None = None, old: int | None = None) -> list[bytes]:
        size = self.size if size is None else size
        return list(
            export_lines(
                ORIGIN,
                first,
                size,
                [self.nodes[node] for node in before_nodes(first, old)],
                ((index, self.nodes[Node(0, index)], self.leaves[index]) for index in range(first, size)),
                [
                    (at, note)
                    for at, note in sorted(self.notes.items())
                    if first < at <= size or at == first == size
                ],
                old,
            )
        )


def a_log(
    size: int,
    checkpoints: Iterable[int] = (),
    entry: Callable[[int], dict] = an_entry,
    signers: Sequence[Signer] = (HUB_KEY,),
) -> Log:
    """A log of ``size`` entries with a checkpoint at each of ``checkpoints`` and at the end."""
    log, at = Log(), {*checkpoints, size}
    for index in range(size):
        log.add(leaf_bytes(index, entry(index)))
        if index + 1 in at:
            log.checkpoint(signers)
    if size == 0:
        log.checkpoint(signers)
    return log
