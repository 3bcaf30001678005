"""Reads public keys and checkpoints (C2SP signed-note, tlog-checkpoint), more strictly than the standard asks.

Clients of the standard pass over what they do not know. Here every byte must be accounted for: a signature of
an unknown key is a finding, and only the form that the hub writes is accepted.
"""

import re
from base64 import b64decode, b64encode
from collections.abc import Mapping
from hashlib import sha256
from typing import NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from hub.verifier.report import Kind

_ED25519 = b"\x01"
_SIGNATURES_MAX = 16
"""What signed-note asks verifiers to accept at least."""
_NUMBER = r"(?:0|[1-9][0-9]{0,17})"
_NOTE = re.compile(
    rf"(?P<text>(?P<origin>[^\x00-\x1f]+)\n(?P<size>{_NUMBER})\n(?P<root>[A-Za-z0-9+/]{{43}}=)\n"
    rf"(?:keys(?P<ids>(?: [0-9a-f]{{8}}){{2,{_SIGNATURES_MAX}}})\n)?)"
    rf"\n(?P<signatures>(?:\u2014 [^\s+]+ [A-Za-z0-9+/=]+\n){{1,{_SIGNATURES_MAX}}})"
)

_BETWEEN = re.compile("(?<=\n)\n(?!\u2014)")
"""The empty line after a note; the one within a note stands before its signatures."""

KeyId = tuple[str, bytes]
"""Name and key id, which "uniquely identify the key that performed the signature" (signed-note, "Signatures")."""
Keys = Mapping[KeyId, Ed25519PublicKey]


class KeyFormatError(ValueError):
    """A text that does not hold public keys."""


class Checkpoint(NamedTuple):
    """After ``size`` entries the log ``origin`` has this ``root``: whoever has the keys ``by`` has said so."""

    origin: str
    size: int
    root: bytes
    by: frozenset[KeyId] = frozenset()


class Fault(NamedTuple):
    """What is wrong with a note."""

    kind: Kind
    message: str


def read_keys(text: str) -> Keys:
    """Public keys as ``hub audit key --public`` prints them: ``name+hash+base64``, one a line, # for comments."""
    keys: dict[KeyId, Ed25519PublicKey] = {}
    for line in text.splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, _, rest = line.strip().partition("+")
        hash_, _, encoded = rest.partition("+")
        data = decode(encoded.encode(errors="replace"))
        if data is None or len(data) != 33 or data[:1] != _ED25519:
            raise KeyFormatError("not a public key: a line name+hash+base64 of an Ed25519 key is expected")
        key_id = sha256(name.encode(errors="replace") + b"\n" + data).digest()[:4]
        if key_id.hex() != hash_:
            raise KeyFormatError("a public key does not have the hash that its line says")
        try:
            keys[name, key_id] = Ed25519PublicKey.from_public_bytes(data[1:])
        except ValueError as fault:
            raise KeyFormatError("a public key is no point of the curve") from fault
    if not keys:
        raise KeyFormatError("there is no public key in it")
    return keys


def notes_of(text: str) -> list[str]:
    """The notes of a file in which they stand one after the other with an empty line between, as the sealer writes it."""
    return [note for note in _BETWEEN.split(text) if note] or [text]


def open_checkpoint(note: str, keys: Keys) -> tuple[Checkpoint | None, list[Fault]]:
    """What the note says, if one of ``keys`` has signed it and none wrongly; and all that is wrong with it."""
    parts = _NOTE.fullmatch(note)
    root = decode(parts["root"].encode()) if parts else None
    if parts is None or root is None:
        return None, [Fault(Kind.CHECKPOINT_ALTERED, "the checkpoint is not in form")]
    faults: list[Fault] = []
    signed_by: list[KeyId] = []
    trusted: set[KeyId] = set()
    for line in parts["signatures"].splitlines():
        name, encoded = line[2:].rsplit(" ", 1)
        signature = decode(encoded.encode()) or b""
        key_id = signature[:4]
        signed_by.append((name, key_id))
        key = keys.get((name, key_id))
        if key is None:
            faults.append(
                Fault(Kind.WRONG_KEY, f"signed with a key that was not given: {name}+{key_id.hex()}")
            )
        elif not _verifies(key, signature[4:], parts["text"]):
            return None, [
                Fault(Kind.CHECKPOINT_ALTERED, f"the signature of {name}+{key_id.hex()} is not over this")
            ]
        else:
            trusted.add((name, key_id))
    said = [bytes.fromhex(key_id) for key_id in (parts["ids"] or "").split()] or [signed_by[0][1]]
    if trusted and (said != [key_id for _, key_id in signed_by] or len({*signed_by}) < len(signed_by)):
        faults.append(Fault(Kind.CHECKPOINT_ALTERED, "the signatures are not those that were put under it"))
    if not trusted:
        return None, faults
    return Checkpoint(parts["origin"], int(parts["size"]), root, frozenset(trusted)), faults


def decode(encoded: bytes) -> bytes | None:
    """Base64 (RFC 4648, section 4) in its one canonical form; None if it is anything else."""
    try:
        data = b64decode(encoded, validate=True)
    except ValueError:
        return None
    return data if b64encode(data) == encoded else None


def _verifies(key: Ed25519PublicKey, signature: bytes, text: str) -> bool:
    try:
        key.verify(signature, text.encode())
    except (InvalidSignature, ValueError):
        return False
    return True
