"""What the verifier says."""

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What is wrong. Stable: programs that read ``--json`` go by it."""

    ALTERED = "altered"
    """The entry is not what was sealed, or its line is not in the form of the export."""
    MISSING = "missing"
    """An entry is not there."""
    ADDED = "added"
    """An entry, or a line, that does not belong."""
    REORDERED = "reordered"
    """An entry or a checkpoint stands somewhere else than it should."""
    TRUNCATED = "truncated"
    """The log goes on, and the export does not."""
    CHECKPOINT_ALTERED = "checkpoint-altered"
    """A checkpoint is not in form, not of this log, or not what its key signed."""
    CHECKPOINT_MISSING = "checkpoint-missing"
    """The checkpoints are counted, and one is not there."""
    WRONG_KEY = "wrong-key"
    """Signed with a key that the verifier was not given."""
    REWRITTEN = "rewritten"
    """Two checkpoints, both truly signed, that cannot both be true."""
    MALFORMED = "malformed"
    """A line that is neither a header nor an entry nor a checkpoint."""
    NOT_COMPARED = "not-compared"
    """The checkpoint that somebody kept could not be compared with this export."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, and where: the entry's leaf index, and the line of the export.

    With ``upto`` it is somewhere among the leaves [leaf, upto), and nothing in the export says where.
    """

    kind: Kind
    message: str
    leaf: int | None = None
    line: int | None = None
    upto: int | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """Intact, or what is wrong, in the order of the lines.

    The export claims to be the leaves [first, size) of the log ``origin``. ``proved``: the leaves before it are
    those under the last checkpoint whose root could be computed. ``checkpoints`` counts those truly signed.
    ``left_out`` counts findings beyond the first thousand.
    """

    intact: bool
    origin: str
    first: int
    size: int
    proved: int
    checkpoints: int
    findings: tuple[Finding, ...]
    left_out: int = 0
