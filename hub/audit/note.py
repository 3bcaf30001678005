"""Checkpoints and the keys that sign them: C2SP signed-note and tlog-checkpoint, Ed25519. Pure.

A checkpoint is a text of three lines, the log's origin, its size and its root, and under a blank line one
signature for each key. While a key is being replaced two keys sign; then a fourth line, an extension
line, names their ids, so that a signature that somebody takes away is missed.
"""

from base64 import b64decode, b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_ED25519 = b"\x01"
"""signed-note, "Signature types": Ed25519 signatures as specified by that document."""
_PRIVATE = "PRIVATE+KEY+"
SEED_BYTES = 32
HASH_BYTES = 32


class NoteError(ValueError):
    """A key or a checkpoint that is not in the form of the standard."""


class Checkpoint(NamedTuple):
    """What a checkpoint says of the log ``origin``: after ``size`` entries its root is ``root``."""

    origin: str
    size: int
    root: bytes


@dataclass(frozen=True)
class Signer:
    """A named Ed25519 key: 32 bytes of seed, which only the caller can draw."""

    name: str
    seed: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if not is_key_name(self.name):
            raise NoteError(
                "a key's name is not empty and has neither spaces nor plus signs nor control characters"
            )
        if len(self.seed) != SEED_BYTES:
            raise NoteError(f"an Ed25519 key is made from {SEED_BYTES} bytes")

    @cached_property
    def _key(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self.seed)

    @cached_property
    def public_key(self) -> bytes:
        return self._key.public_key().public_bytes_raw()

    @cached_property
    def key_id(self) -> bytes:
        """Key ID = SHA-256(key name || 0x0A || signature type || public key)[:4]."""
        return sha256(self.name.encode() + b"\n" + _ED25519 + self.public_key).digest()[:4]

    @property
    def vkey(self) -> str:
        """The line that a verifier is given: ``name+hash+base64(type || public key)``."""
        return f"{self.name}+{self.key_id.hex()}+{_base64(_ED25519 + self.public_key)}"

    @property
    def private_line(self) -> str:
        """The line that is kept secret, as Go's note package writes it."""
        return f"{_PRIVATE}{self.name}+{self.key_id.hex()}+{_base64(_ED25519 + self.seed)}"

    def sign(self, text: str) -> bytes:
        """RFC 8032 over the note's text: 64 bytes, the same each time."""
        return self._key.sign(text.encode())


def is_key_name(name: str) -> bool:
    """Key names "MUST be non-empty and MUST NOT contain any Unicode spaces or plus" (signed-note, "Format")."""
    return bool(name) and not any(char.isspace() or char < " " or char == "+" for char in name)


def read_signer(line: str) -> Signer:
    """The signer that ``private_line`` was written from."""
    name, _, rest = line.strip().removeprefix(_PRIVATE).partition("+")
    hash_, _, encoded = rest.partition("+")
    try:
        key = b64decode(encoded, validate=True)
    except ValueError:
        key = b""
    if not line.startswith(_PRIVATE) or key[:1] != _ED25519 or len(key) != 1 + SEED_BYTES:
        raise NoteError("not a private key: a line PRIVATE+KEY+name+hash+base64 is expected")
    signer = Signer(name, key[1:])
    if signer.key_id.hex() != hash_:
        raise NoteError(f"the private key of {name} does not have the hash that its line says")
    return signer


def read_private_keys(text: str) -> list[Signer]:
    """The signers of a key file: one a line; empty lines and lines that start with # are comments."""
    lines = (line.strip() for line in text.splitlines())
    return [read_signer(line) for line in lines if line and not line.startswith("#")]


def sign(origin: str, size: int, root: bytes, signers: Sequence[Signer]) -> str:
    """The checkpoint of the log ``origin`` at ``size``, signed by each of ``signers``."""
    if not signers:
        raise NoteError("a checkpoint is signed by at least one key")
    in_order = sorted(
        set(signers), key=lambda signer: (signer.name, signer.key_id)
    )  # one form for one checkpoint
    text = _text(Checkpoint(origin, size, root), in_order)
    signatures = (f"\u2014 {by.name} {_base64(by.key_id + by.sign(text))}\n" for by in in_order)
    return text + "\n" + "".join(signatures)


def read_checkpoint(note: str) -> Checkpoint:
    """What a checkpoint says. The signatures are not looked at: for that there is ``hub.verifier``."""
    lines = note.split("\n")
    try:
        origin, size, root = lines[:3]
        checkpoint = Checkpoint(origin, int(size), b64decode(root, validate=True))
    except ValueError:
        raise NoteError("not a checkpoint: lines with origin, size and root are expected") from None
    if not origin or str(checkpoint.size) != size or len(checkpoint.root) != HASH_BYTES or len(lines) < 5:
        raise NoteError("not a checkpoint: an origin, a size, a root of 32 bytes and signatures are expected")
    return checkpoint


def _text(checkpoint: Checkpoint, signers: Sequence[Signer]) -> str:
    """The note's text (tlog-checkpoint, "Note text")."""
    origin, size, root = checkpoint
    if not origin or not origin.isprintable() or len(root) != HASH_BYTES or size < 0:
        raise NoteError("a checkpoint needs an origin of one line, a size and a root of 32 bytes")
    extension = f"keys {' '.join(by.key_id.hex() for by in signers)}\n" if len(signers) > 1 else ""
    return f"{origin}\n{size}\n{_base64(root)}\n{extension}"


def _base64(data: bytes) -> str:
    return b64encode(data).decode()
