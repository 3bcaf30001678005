"""The hashes of the log: RFC 6962, section 2.1, and nothing else.

The only thing that the log's writer (``hub.audit``) and its verifier (``hub.verifier``) share. The byte in
front keeps a leaf from ever passing for a node, and a node for a leaf.
"""

from hashlib import sha256

EMPTY_ROOT = sha256(b"").digest()
"""The root of a tree without leaves: MTH({}) = SHA-256()."""


def leaf_hash(data: bytes) -> bytes:
    """MTH({d(0)}) = SHA-256(0x00 || d(0))."""
    return sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """MTH(D[n]) = SHA-256(0x01 || MTH(D[0:k]) || MTH(D[k:n]))."""
    return sha256(b"\x01" + left + right).digest()
