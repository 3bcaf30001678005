"""Checks a proof that one entry is in the log: C2SP tlog-proof, version 1, with the leaf's bytes as extra data."""

import re
from dataclasses import dataclass

from hub.audit.hashes import leaf_hash
from hub.verifier.note import Keys, decode, open_checkpoint
from hub.verifier.report import Finding, Kind
from hub.verifier.tree import root_by_path

_PROOF = re.compile(
    r"c2sp\.org/tlog-proof@v1\nextra ([A-Za-z0-9+/=]+)\nindex (0|[1-9][0-9]{0,17})\n"
    r"((?:[A-Za-z0-9+/]{43}=\n){0,64})\n([^\n].*)",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class ProofReport:
    """``entry``, the leaf's bytes, is leaf ``index`` of the log ``origin`` at ``size``: if intact."""

    intact: bool
    origin: str
    index: int
    size: int
    entry: bytes
    findings: tuple[Finding, ...]


def verify_proof(text: str, keys: Keys) -> ProofReport:
    """Does the proof hold? Every byte of it counts, the extra data too, because the leaf hash is made from it."""
    parts = _PROOF.fullmatch(text)
    entry = decode(parts[1].encode()) if parts else None
    path = [decode(line.encode()) for line in parts[3].split()] if parts else []
    if parts is None or entry is None or None in path:
        return _not(
            Kind.MALFORMED, "not a proof in the form of c2sp.org/tlog-proof@v1 with the entry as extra data"
        )
    index = int(parts[2])
    checkpoint, faults = open_checkpoint(parts[4], keys)
    findings = [Finding(fault.kind, fault.message, leaf=index) for fault in faults]
    if checkpoint is None:
        return ProofReport(False, "", index, 0, entry, tuple(findings))
    hashes = [digest for digest in path if digest]
    root = root_by_path(leaf_hash(entry), index, checkpoint.size, hashes) if index < checkpoint.size else None
    if root != checkpoint.root:
        message = "this entry is not that leaf of the log whose checkpoint was signed"
        findings.append(Finding(Kind.ALTERED, message, leaf=index))
    elif not entry.startswith(b'{"leaf":%d,' % index):
        findings.append(Finding(Kind.REORDERED, "the entry says that it is another leaf", leaf=index))
    return ProofReport(not findings, checkpoint.origin, index, checkpoint.size, entry, tuple(findings))


def _not(kind: Kind, message: str) -> ProofReport:
    return ProofReport(False, "", 0, 0, b"", (Finding(kind, message),))
