"""The proof that one entry is in the log: C2SP tlog-proof, version 1. Pure."""

from base64 import b64encode
from collections.abc import Iterable


def proof_text(index: int, leaf: bytes, proof: Iterable[bytes], checkpoint: str) -> str:
    """A ``.tlog-proof`` that stands alone (tlog-proof, "Format").

    ``proof`` is the inclusion proof of leaf ``index`` in the tree of ``checkpoint``, a signed note. The leaf's
    bytes travel as extra data: nothing vouches for these but the leaf hash, which the verifier computes.
    """
    hashes = "".join(f"{b64encode(digest).decode()}\n" for digest in proof)
    return f"c2sp.org/tlog-proof@v1\nextra {b64encode(leaf).decode()}\nindex {index}\n{hashes}\n{checkpoint}"
