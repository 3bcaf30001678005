"""The export: a part of the log as lines that anybody can check with the public key. Pure.

NDJSON, and each line has exactly one form of bytes, so that a change of any byte can be seen:

 * ``{"transfer-hub-audit":1,"origin":O,"first":a,"size":n,"before":[…]}``: the entries [a, n) of the log O
   follow. ``before`` are the hashes of the perfect subtrees over [0, a), without which no root could be
   computed. With ``"old":m`` after ``size`` they are those over [0, m) and then those over [m, a), so that
   the root at m can be computed too, and compared with a checkpoint that somebody kept.
   It is left out where the subtrees are the same without it.
 * ``{"hash":H,"entry":E}``: a leaf. E are the leaf's bytes, made now from what is stored now; H is the leaf
   hash that was stored when the entry was sealed. Where they disagree, this entry was changed.
 * ``{"checkpoint":k,"note":N}``: the k-th checkpoint in this export, N, the signed note as a JSON string.
   It stands after the last leaf that it covers. The last line is the checkpoint of size n.

Hashes are in base64 (RFC 4648, section 4). JSON strings escape what must be, in the short form.
"""

import json
from base64 import b64encode
from binascii import b2a_base64
from collections.abc import Iterable, Iterator

from hub.audit.merkle import Node, range_nodes

FORMAT = 1


def before_nodes(first: int, old: int | None = None) -> list[Node]:
    """The nodes whose hashes are ``before`` for an export from ``first`` against an old checkpoint's size."""
    if old is None or old >= first:
        return range_nodes(0, first)
    return range_nodes(0, old) + range_nodes(old, first)


def export_lines(
    origin: str,
    first: int,
    size: int,
    before: Iterable[bytes],
    entries: Iterable[tuple[int, bytes, bytes]],
    checkpoints: Iterable[tuple[int, str]],
    old: int | None = None,
) -> Iterator[bytes]:
    """The lines of the export of [first, size).

    ``before`` has the hashes of ``before_nodes(first, old)``; ``entries`` (index, stored hash, leaf bytes) in
    the order of the index, as the store has them, holes and all: finding what is wrong is the verifier's.
    ``checkpoints`` (size, signed note) those of sizes in (first, size], growing, the one of ``size`` last.
    """
    yield header_line(origin, first, size, before, old)
    waiting = enumerate(checkpoints, start=1)
    number, (covers, note) = next(waiting, (0, (size + 1, "")))
    for index, stored_hash, leaf in entries:
        while number and covers <= index:
            yield checkpoint_line(number, note)
            number, (covers, note) = next(waiting, (0, (size + 1, "")))
        yield entry_line(stored_hash, leaf)
    while number:
        yield checkpoint_line(number, note)
        number, (covers, note) = next(waiting, (0, (size + 1, "")))


def header_line(origin: str, first: int, size: int, before: Iterable[bytes], old: int | None = None) -> bytes:
    """The first line. ``old`` is left out where it would not change ``before_nodes``."""
    header: dict[str, object] = {"transfer-hub-audit": FORMAT, "origin": origin, "first": first, "size": size}
    if old is not None and before_nodes(first, old) != range_nodes(0, first):
        header["old"] = old
    header["before"] = [b64encode(digest).decode() for digest in before]
    return _json(header) + b"\n"


def entry_line(stored_hash: bytes, leaf: bytes) -> bytes:
    """A leaf's line."""
    return b'{"hash":"%b","entry":%b}\n' % (b2a_base64(stored_hash, newline=False), leaf)


def checkpoint_line(number: int, note: str) -> bytes:
    """A checkpoint's line; ``number`` counts from 1 in each export, so that one that is taken out is missed."""
    return b'{"checkpoint":%d,"note":%b}\n' % (number, _json(note))


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
