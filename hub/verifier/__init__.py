"""Checks an export of the log, or a proof, with nothing but a public key.

For a third party: it asks nothing of the hub's and shares nothing with the log's writer but the definitions of
the two hashes (``hub.audit.hashes``). ``python -m hub.verifier export.ndjson --key hub.pub``.
"""

from hub.verifier.export import verify_export
from hub.verifier.note import KeyFormatError, Keys, read_keys
from hub.verifier.proof import ProofReport, verify_proof
from hub.verifier.report import Finding, Kind, Report

__all__ = [
    "Finding", "KeyFormatError", "Keys", "Kind", "ProofReport", "Report", "read_keys", "verify_export", "verify_proof",
]  # fmt: skip
