"""THE LOG, JUDGED: after all the kills the sealed audit is whole, says nothing twice, and was passed on as it is.

Like the checker it imports nothing of `hub`. The tree's root is computed here once more, from the export's own lines; the
signatures are judged by `python -m hub.verifier`, which is a program of its own.
"""

import asyncio
import base64
import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import asyncpg  # type: ignore[import-untyped]

from tests.chaos.checker import Record, read_topics
from tests.chaos.fleet import hub_command

AUDIT_TOPIC = "hub.audit"
_SHOWN = 5


async def sealed_and_passed_on(dsn: str) -> str:
    """What is left to seal and to pass on; empty when nothing is."""
    connection = await asyncpg.connect(dsn)
    try:
        waiting = await connection.fetchval("select count(*) from audit_pending")
        size = await connection.fetchval("select coalesce(max(size), 0) from audit_checkpoint")
        fed = await connection.fetchval("select coalesce(min(next_leaf), 0) from audit_feed")
    finally:
        await connection.close()
    if waiting or size == 0:
        return f"{waiting} entries wait to be sealed"
    return f"the feed is at {fed} of {size}" if fed < size else ""


async def judge(env: Mapping[str, str], folder: Path, dsn: str, bootstrap_servers: str) -> list[str]:
    """A sentence for each thing that is wrong."""
    connection = await asyncpg.connect(dsn)
    try:
        waiting = await connection.fetchval("select count(*) from audit_pending")
        leaves = await connection.fetch("select leaf_index, entry, code from audit_entry order by leaf_index")
        size = await connection.fetchval("select max(size) from audit_checkpoint")
    finally:
        await connection.close()
    wrong = []
    if waiting:
        wrong.append(f"{waiting} entries are not sealed")
    if [row["leaf_index"] for row in leaves] != list(range(len(leaves))) or size != len(leaves):
        wrong.append(f"{len(leaves)} leaves do not count from 0 to the checkpoint's {size}")
    if len({row["entry"] for row in leaves}) != len(leaves):
        wrong.append("an entry is two leaves")
    records = await asyncio.to_thread(read_topics, bootstrap_servers, [AUDIT_TOPIC])
    wrong += _passed_on([row["entry"] for row in leaves], records)
    return wrong + await _exported(env, folder, [record for record in records if _is_checkpoint(record)])


def _is_checkpoint(record: Record) -> bool:
    return record.headers.get("event-id") == "checkpoint"


def _passed_on(entries: Sequence[int], records: Sequence[Record]) -> list[str]:
    """Every leaf is on the topic once, in the log's order, as the AuditEvent of its entry."""
    events = [record for record in records if not _is_checkpoint(record)]
    wrong = []
    if [record.seq for record in events] != list(range(len(entries))):
        wrong.append(f"{len(events)} AuditEvents are not the {len(entries)} leaves, once and in order")
    for record, entry in zip(events, entries, strict=False):
        body = json.loads(record.body)
        if (body["resourceType"], body["id"]) != ("AuditEvent", str(entry)):
            wrong.append(f"{record} is {body['resourceType']}/{body['id']} and not entry {entry}")
    _keep(events)
    return wrong[:_SHOWN]


def _keep(events: Sequence[Record]) -> None:
    """For whoever judges AuditEvents by their profiles (`tests.harness.validator`)."""
    if folder := os.environ.get("AUDIT_EVENTS"):
        with (Path(folder) / "chaos.ndjson").open("ab") as file:
            file.writelines(record.body + b"\n" for record in events)


async def _exported(env: Mapping[str, str], folder: Path, checkpoints: Sequence[Record]) -> list[str]:
    """The export has the roots that went out, computed here, and the verifier finds it intact against the last that went out."""
    export = await _output(hub_command("audit", "export"), env, folder)
    public = await _output(hub_command("audit", "key", "--public"), env, folder)
    (folder / "export.ndjson").write_bytes(export)
    (folder / "hub.pub").write_bytes(public)
    if not checkpoints:
        return ["no checkpoint went out"]
    kept = checkpoints[-1].body
    (folder / "kept.txt").write_bytes(kept)
    hashes = []
    for line in export.splitlines():
        if line.startswith(b'{"hash":"'):
            stored, _, leaf = line.removeprefix(b'{"hash":"').partition(b'","entry":')
            made = hashlib.sha256(b"\x00" + leaf.removesuffix(b"}")).digest()
            if base64.b64decode(stored) != made:
                return [f"leaf {len(hashes)} does not have its hash"]
            hashes.append(made)
    _, size, root = kept.decode().split("\n")[:3]
    if base64.b64decode(root) != _root(hashes[: int(size)]):
        return [f"the checkpoint of {size} that went out has another root than the export"]
    verify = [sys.executable, "-m", "hub.verifier", "export.ndjson", "--key", "hub.pub"]
    process = await asyncio.create_subprocess_exec(
        *verify, "--from-checkpoint", "kept.txt", cwd=folder, env=dict(env), stdout=asyncio.subprocess.PIPE
    )
    said, _ = await process.communicate()
    return [] if process.returncode == 0 else said.decode().splitlines()[:_SHOWN]


def _root(leaves: Sequence[bytes]) -> bytes:
    """MTH of RFC 6962, section 2.1, as it is written there."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    split = 1 << ((len(leaves) - 1).bit_length() - 1)
    return hashlib.sha256(b"\x01" + _root(leaves[:split]) + _root(leaves[split:])).digest()


async def _output(command: Sequence[str], env: Mapping[str, str], folder: Path) -> bytes:
    process = await asyncio.create_subprocess_exec(
        *command, env=dict(env), cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    said, complained = await process.communicate()
    if process.returncode:
        raise RuntimeError(
            f"{' '.join(command[2:])} ended with {process.returncode}: {complained.decode()[-500:]}"
        )
    return said
