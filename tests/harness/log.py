"""The sealed log in a test: a key, sealing all that waits, and what the verifier says of an export."""

from collections.abc import Sequence
from datetime import UTC, datetime

from sqlalchemy.ext.asyncio import AsyncEngine

from hub.audit.note import Signer, sign
from hub.store import exporting
from hub.store.sealing import Sealed, seal
from hub.verifier import Report, read_keys, verify_export

ORIGIN = "log.example/audit"
SIGNER = Signer(ORIGIN, b"\x07" * 32)
NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)


async def seal_all(
    engine: AsyncEngine, now: datetime = NOW, *, most: int = 5000, signers: Sequence[Signer] = (SIGNER,)
) -> Sealed:
    """Until nothing waits."""
    while True:
        sealed = await seal(engine, lambda size, root: sign(ORIGIN, size, root, signers), now, most=most)
        if sealed.entries < most:
            return sealed


async def exported(engine: AsyncEngine, **asked: object) -> list[bytes]:
    """The lines of an export."""
    return [line async for line in exporting.export(engine, reader="tester", now=NOW, **asked)]  # type: ignore[arg-type]


def verified(lines: Sequence[bytes], old: str | None = None, signers: Sequence[Signer] = (SIGNER,)) -> Report:
    """What the verifier says, with these signers' public keys."""
    return verify_export(lines, read_keys("\n".join(each.vkey for each in signers)), old)
