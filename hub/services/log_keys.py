"""The keys that sign the log: a file, secret, of C2SP lines. ``PRIVATE+KEY+…`` lines sign; plain lines are the public keys of
those that signed before and do so no more, so that old checkpoints can still be verified.

Whoever has the file can sign what he likes, so it belongs where the database's administrators cannot read it.
"""

import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from hub.audit.note import SEED_BYTES, NoteError, Signer, read_signer
from hub.verifier.note import open_checkpoint, read_keys

_PRIVATE = "PRIVATE+KEY+"


class KeyFileError(Exception):
    """The key file cannot be used. The message says why and what to do."""


@dataclass(frozen=True, slots=True)
class LogKeys:
    """``signers`` sign, the newest first; ``retired`` are public keys (vkeys) of former ones."""

    signers: tuple[Signer, ...]
    retired: tuple[str, ...] = ()

    @property
    def public(self) -> list[str]:
        """Every vkey that a verifier needs, the newest first."""
        return [*(each.vkey for each in self.signers), *self.retired]

    def rotated(self, seed: bytes) -> "LogKeys":
        """A new key beside those that sign: both sign until the old one is retired."""
        return LogKeys((Signer(self.signers[0].name, seed), *self.signers), self.retired)

    def without(self, key_id: str) -> "LogKeys":
        """A key that signs no more. Raises KeyFileError."""
        gone = [each for each in self.signers if each.key_id.hex() == key_id]
        left = tuple(each for each in self.signers if each.key_id.hex() != key_id)
        if not gone:
            raise KeyFileError(f"No key {key_id} signs. See: hub audit key --public")
        if not left:
            raise KeyFileError("The only key cannot be retired: first hub audit key --rotate")
        return LogKeys(left, (gone[0].vkey, *self.retired))

    @property
    def text(self) -> str:
        lines = [
            "# Signs the audit log's checkpoints. Secret: keep it from the database's administrators.",
            *(each.private_line for each in self.signers),
            *self.retired,
        ]
        return "".join(f"{line}\n" for line in lines)


def require_ours(keys: LogKeys, origin: str, newest: str | None) -> None:
    """A log is gone on with only under its name and with its keys: otherwise nobody could verify it from one end to the other.

    ``newest`` is its newest checkpoint. Raises KeyFileError.
    """
    if newest is None:
        return
    checkpoint, faults = open_checkpoint(newest, read_keys("\n".join(keys.public)))
    if checkpoint is None or faults:
        raise KeyFileError(
            "The log's newest checkpoint was not signed by the keys in HUB_AUDIT_KEY_FILE. Put the key back that signed it; "
            "with it there, hub audit key --rotate adds a new one."
        )
    if checkpoint.origin != origin:
        raise KeyFileError(
            f"The log's name is {checkpoint.origin} and HUB_AUDIT_ORIGIN says {origin}. A log keeps its name."
        )


def load_keys(path: Path) -> LogKeys:
    """Raises KeyFileError."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError:
        raise KeyFileError(
            f"HUB_AUDIT_KEY_FILE is not there: {path}. Put the key back that signed the log; for a log that was never "
            "signed, make one: hub audit key --new"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise KeyFileError(f"HUB_AUDIT_KEY_FILE cannot be read ({type(error).__name__}): {path}") from error
    lines = [line for line in lines if line and not line.startswith("#")]
    try:
        signers = tuple(read_signer(line) for line in lines if line.startswith(_PRIVATE))
    except NoteError as error:
        raise KeyFileError(f"HUB_AUDIT_KEY_FILE is not a key file: {error}") from error
    if not signers:
        raise KeyFileError("HUB_AUDIT_KEY_FILE holds no private key. Make one: hub audit key --new")
    return LogKeys(signers, tuple(line for line in lines if not line.startswith(_PRIVATE)))


def new_keys(path: Path, name: str) -> LogKeys:
    """Make a key and its file, readable by its owner only. Raises KeyFileError if the file is there already."""
    try:
        keys = LogKeys((Signer(name, secrets.token_bytes(SEED_BYTES)),))
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(keys.text)
    except FileExistsError:
        raise KeyFileError(f"{path} is there already; hub audit key --rotate replaces a key") from None
    except (OSError, NoteError) as error:
        raise KeyFileError(f"HUB_AUDIT_KEY_FILE cannot be written: {error}") from error
    return keys


def replace_keys(path: Path, keys: LogKeys) -> None:
    """Write the file anew, at once or not at all. Raises KeyFileError."""
    beside = path.with_name(f"{path.name}.new")
    try:
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(keys.text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        raise KeyFileError(f"HUB_AUDIT_KEY_FILE cannot be written: {error}") from error


def rotate(path: Path) -> LogKeys:
    """A new key beside the old ones. Raises KeyFileError."""
    keys = load_keys(path).rotated(secrets.token_bytes(SEED_BYTES))
    replace_keys(path, keys)
    return keys


def retire(path: Path, key_id: str) -> LogKeys:
    """A key that signs no more. Raises KeyFileError."""
    keys = load_keys(path).without(key_id)
    replace_keys(path, keys)
    return keys
