"""How soon a patient's trail is found among ten million audit entries in PostgreSQL: by the store, and over REST.

Run: python -m tests.bench.audit [--entries 10000000] [--trails 1000] [--cluster FOLDER]
What is measured and how to read it: tests/bench/README.md. Exit 1 if anything was answered otherwise than it must be.
"""

import argparse
import asyncio
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import asyncpg
import yaml
from joserfc import jwt
from joserfc.jwk import ECKey

from hub import wiring
from hub.domain.ids import OdsCode
from hub.fhir.systems import NHS_NUMBER
from hub.settings import REPOSITORY
from hub.store import book
from hub.store.book import Asked, Asking, Is, Scope
from hub.store.engine import open_engine
from hub.store.search import Token
from hub.store.waiting import BATCH_MAX
from hub.trusts import load_directory
from tests.bench.rest import Answers, Connection, say
from tests.harness.postgres_server import PostgresServer

PER_TRANSFER = 16
ISSUER = "https://sign-in.example"
STARTS_WITHIN_S = 60.0


class Asks(NamedTuple):
    """A patient, and a trust that is an end of one of their transfers."""

    number: str
    trust: str


async def fill(url: str, trusts: Sequence[str], entries: int) -> None:
    """Two years of transfers, sixteen entries each over two days; some patients are moved often, most once."""
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    transfers = max(1, entries // PER_TRANSFER)
    patients = max(100, int(transfers * 0.8))
    codes = "','".join(trusts)
    indexes = await connection.fetch(
        "SELECT indexname, indexdef FROM pg_indexes WHERE tablename = 'audit_act' AND indexname LIKE 'ix_%'"
    )
    statements = [
        *(f"DROP INDEX {each['indexname']}" for each in indexes),
        "SELECT setseed(0.5)",
        f"""CREATE TEMP TABLE made AS SELECT k,
              'p-' || floor({patients} * power(random(), 1.5))::int AS person,
              (ARRAY['{codes}'])[1 + floor(random() * {len(trusts)})::int] AS sender,
              (ARRAY['{codes}'])[1 + floor(random() * {len(trusts)})::int] AS receiver,
              timestamptz '2024-11-01Z' + k * interval '1 second' * (63000000.0 / {transfers}) AS at
            FROM generate_series(0, {transfers} - 1) AS k""",
        f"INSERT INTO person (person_id, created_at) SELECT 'p-' || g, '2024-11-01Z' FROM generate_series(0, {patients} - 1) AS g",
        f"""INSERT INTO person_identifier (value, authority, person_id, event_id)
            SELECT '999' || lpad(g::text, 6, '0') || 'x', 'nhs', 'p-' || g, 'e' FROM generate_series(0, {patients} - 1) AS g""",
        """INSERT INTO transfer (transfer_id, person_id, sender, receiver, state, version, requested_at, changed_at, inferred)
            SELECT 't-' || k, person, sender, receiver, 'completed', 1, at, at, false FROM made""",
        f"""INSERT INTO audit_act (first_leaf, hashes, first_entry, entries, at, occurred_at, outcome, trust, system, event_id,
              person_id, transfer_id, request_id, user_id, role_id, client_id)
            SELECT row_number() OVER (ORDER BY at + j * interval '3 hours') - 1, decode(md5(k::text) || md5(j::text), 'hex'),
              row_number() OVER (ORDER BY at + j * interval '3 hours'),
              '[{{"code":"' || (ARRAY['msg-received','msg-accepted','transfer-created','routed','disclosure-sent','delivery-ack',
                     'record-read','record-search','msg-received','msg-repaired','transfer-accepted','routed','disclosure-sent',
                     'record-read','departed','completed'])[j + 1] || '"'
                || coalesce(',"counterpart":"' || CASE WHEN j IN (3, 4, 11, 12) THEN CASE WHEN j < 8 THEN receiver ELSE sender END END || '"', '')
                || ',"detail":{{"step":"request","from":"requested","to":"accepted","version":3,"sha256":"0123456789abcdef0123456789abcdef"}}}}]',
              at + j * interval '3 hours', CASE WHEN j < 6 THEN at END, CASE WHEN (k + j) % 500 = 0 THEN 8 ELSE 0 END,
              CASE WHEN j < 8 THEN sender ELSE receiver END, CASE WHEN j IN (6, 7, 13) THEN 'rest' ELSE 'kafka' END,
              'e-' || k || '-' || j / 8, person, 't-' || k, gen_random_uuid()::text,
              CASE WHEN j IN (6, 7, 13) THEN 'u-' || k % 20000 END, CASE WHEN j IN (6, 7, 13) THEN '1111' END,
              CASE WHEN j IN (6, 7, 13) THEN 'c-' || k % 50 END
            FROM made CROSS JOIN generate_series(0, {PER_TRANSFER} - 1) AS j ORDER BY at + j * interval '3 hours'""",
        *(each["indexdef"] for each in indexes),
        f"SELECT setval(pg_get_serial_sequence('audit_batch', 'batch'), {entries // BATCH_MAX + 1})",
        "DROP TABLE made",
        "ANALYZE",
    ]
    for statement in statements:
        await connection.execute(statement, timeout=3600)
    await connection.close()


async def drawn(url: str, count: int) -> list[Asks]:
    """Patients as they are asked for: one who was moved often is asked for often."""
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    transfers = await connection.fetchval("SELECT count(*) FROM transfer")
    rng = random.Random(3)
    ids = [f"t-{rng.randrange(transfers)}" for _ in range(count)]
    rows = await connection.fetch(
        "SELECT i.value, t.sender FROM transfer t JOIN person_identifier i USING (person_id) WHERE t.transfer_id = ANY($1)",
        ids,
    )
    await connection.close()
    found = [Asks(row["value"], row["sender"]) for row in rows]
    rng.shuffle(found)
    return found


async def by_the_store(url: str, asked: Sequence[Asks]) -> Answers:
    """The newest fifty of each patient's entries, as governance of their hospital sees them, with what was read written down."""
    engine, answers = open_engine(url), Answers()
    for each in asked:
        begun = time.perf_counter()
        question = Asked(patients=[Token(NHS_NUMBER, each.number)])
        who = {"trust": each.trust, "user_id": "555000000001"}
        scope = Scope(frozenset({OdsCode(each.trust)}))
        page = await book.page(engine, question, Asking("bench", wiring.now(), who, ["patient"], {}, scope))
        await book.known_numbers(engine, page)
        answers.took.append(time.perf_counter() - begun)
        if not page.rows:
            answers.wrong["nothing found"] = answers.wrong.get("nothing found", 0) + 1
    await engine.dispose()
    return answers


async def over_rest(connection: Connection, asked: Sequence[Asks]) -> Answers:
    """The same over HTTP, as AuditEvents."""
    answers = Answers()
    for each in asked:
        begun = time.perf_counter()
        path = f"/fhir/AuditEvent?patient:identifier={NHS_NUMBER}%7C{each.number}"
        status, body = await connection.ask("GET", path, each.trust)
        answers.took.append(time.perf_counter() - begun)
        if status != 200 or b'"AuditEvent"' not in body:
            why = f"{status} {body[:300].decode()}"
            answers.wrong[why] = answers.wrong.get(why, 0) + 1
    return answers


async def others(url: str, trusts: Sequence[str]) -> None:
    """What else is asked, once each: said, not judged."""
    engine = open_engine(url, patience_s=60)
    everything = Asking("bench", wiring.now(), {"user_id": "bench"})
    own = Asking("bench", wiring.now(), {"user_id": "bench"}, scope=Scope(frozenset({OdsCode(trusts[0])})))
    stranger = Asking("bench", wiring.now(), {"user_id": "bench"}, scope=Scope(frozenset({OdsCode("ZZ9")})))
    newest = await book.page(engine, Asked(limit=1), everything)
    month = [(datetime(2026, 5, 1, tzinfo=UTC), datetime(2026, 6, 1, tzinfo=UTC))]
    refused = frozenset({4, 8, 12})
    kinds = (
        ("the newest, everything", Asked(), everything, False),
        ("the newest, a trust's governance", Asked(), own, False),
        ("the newest, a trust that has nothing", Asked(), stranger, False),
        ("a transfer", Asked(fits=[[Is("transfer_id", "t-77")]]), everything, False),
        ("a user", Asked(fits=[[Is("user_id", "u-77")]]), everything, False),
        ("what was refused", Asked(outcomes=refused), everything, False),
        ("a month of a trust, counted", Asked(at=month, limit=0), own, True),
        (
            "a request's id",
            Asked(fits=[[Is("request_id", newest.rows[0]["request_id"] or "")]]),
            everything,
            False,
        ),
    )
    for name, asked, asking, counted in kinds:
        begun = time.perf_counter()
        await book.page(engine, asked, asking, counted=counted)
        say(f"  {name}: {(time.perf_counter() - begun) * 1000:.0f} ms")
    await engine.dispose()


@contextmanager
def sign_in(folder: Path) -> Iterator[ECKey]:
    """An issuer for governance people that every trust has registered, in a copy of the schemas."""
    key = ECKey.generate_key("P-256", {"kid": "bench"})
    body = json.dumps({"keys": [key.as_dict(private=False)]}).encode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    issuer = {
        "url": ISSUER,
        "jwks_url": f"http://127.0.0.1:{server.server_port}/jwks",
        "people": True,
        "roles": {"R0004": "governance"},
    }
    shutil.copytree(REPOSITORY / "schemas", folder)
    for profile in folder.glob("trusts/*/profile.yaml"):
        with profile.open("a", encoding="utf-8") as file:
            file.write(yaml.safe_dump({"issuers": [issuer]}))
    try:
        yield key
    finally:
        server.shutdown()


def token_of(key: ECKey, facade: str, trust: str) -> str:
    now = int(time.time())
    role = {"person_roleid": "1111", "org_code": trust, "role_code": "S0010:G0020:R0004"}
    claims = {
        "iss": ISSUER, "aud": f"{facade}/fhir", "sub": "somebody", "iat": now, "exp": now + 7200,
        "nhsid_useruid": "555000000001", "selected_roleid": "1111", "nhsid_nrbac_roles": [role],
        "authentication_assurance_level": "3", "scope": "user/*.rs",
    }  # fmt: skip
    return jwt.encode({"alg": "ES256", "kid": "bench"}, claims, key, algorithms=["ES256"])


async def measure(port: int, url: str, trails: int, tokens: dict[str, str]) -> dict[str, object]:
    asked = await drawn(url, trails + 100)
    say("a patient's trail, by the store")
    await by_the_store(url, asked[:50])
    stored = await by_the_store(url, asked[100:])
    say(
        f"  median {stored.percentile_ms(50):.1f} ms, p95 {stored.percentile_ms(95):.1f} ms, p99 {stored.percentile_ms(99):.1f} ms"
    )
    say("the same over REST")
    connection = await Connection(port, tokens).open()
    await over_rest(connection, asked[50:100])
    served = await over_rest(connection, asked[100:])
    say(
        f"  median {served.percentile_ms(50):.1f} ms, p95 {served.percentile_ms(95):.1f} ms, p99 {served.percentile_ms(99):.1f} ms"
    )
    say("other questions")
    await others(url, sorted(tokens))
    wrong = {**stored.wrong, **served.wrong}
    for each in wrong:
        say(f"  not as it must be: {each}")
    connected = await asyncpg.connect(url.replace("+asyncpg", ""))
    entries = await connected.fetchval("SELECT count(*) FROM audit_act", timeout=600)
    await connected.close()
    return {
        "entries": entries,
        "trail_p50_ms": round(stored.percentile_ms(50), 1),
        "trail_p95_ms": round(stored.percentile_ms(95), 1),
        "rest_p50_ms": round(served.percentile_ms(50), 1),
        "rest_p95_ms": round(served.percentile_ms(95), 1),
        "errors": sum(wrong.values()),
    }


def answering(port: int, serving: subprocess.Popen[bytes]) -> None:
    """Returns when somebody listens there."""
    until = time.monotonic() + STARTS_WITHIN_S
    while time.monotonic() < until and serving.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise SystemExit("hub serve did not start")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--entries", type=int, default=10_000_000)
    parser.add_argument("--trails", type=int, default=1000)
    parser.add_argument(
        "--cluster", type=Path, help="keep the database in this folder, and use what is there"
    )
    options = parser.parse_args()
    trusts = [each.ods for each in load_directory(REPOSITORY / "schemas")]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    facade = f"http://127.0.0.1:{port}"
    tuned = {"max_wal_size": "8GB", "maintenance_work_mem": "512MB", "checkpoint_timeout": "30min"}
    if options.cluster:
        options.cluster.mkdir(parents=True, exist_ok=True)
    is_new = options.cluster is None or not (options.cluster / "data").exists()
    with (
        PostgresServer(options.cluster, fsync=True, settings=tuned) as postgres,
        tempfile.TemporaryDirectory(prefix="hub-bench-") as folder,
        sign_in(Path(folder, "schemas")) as key,
    ):
        if is_new:
            postgres.create_database("hub")
        url = postgres.url("hub")
        environment = {
            **os.environ,
            "HUB_DATABASE_URL": url,
            "HUB_SCHEMAS_DIR": str(Path(folder, "schemas")),
            "HUB_FACADE_PORT": str(port),
            "HUB_FACADE_URL": facade,
            "HUB_FACADE_REQUESTS_PER_S": "100000",
            "HUB_WATCHDOG_S": "100000",
            "HUB_LOG_LEVEL": "error",
        }
        hub = [sys.executable, "-m", "hub.cli"]
        subprocess.run([*hub, "db", "upgrade"], env=environment, check=True, stdout=subprocess.DEVNULL)
        if is_new:
            say(f"storing {options.entries} entries")
            begun = datetime.now(UTC)
            asyncio.run(fill(url, trusts, options.entries))
            say(f"  took {(datetime.now(UTC) - begun) / timedelta(seconds=1):.0f} s")
        tokens = {each: token_of(key, facade, each) for each in trusts}
        with Path(folder, "serve.log").open("wb") as log:
            serving = subprocess.Popen([*hub, "serve"], env=environment, stdout=log, stderr=log)
            try:
                answering(port, serving)
                result = asyncio.run(measure(port, url, options.trails, tokens))
            finally:
                serving.terminate()
                serving.wait(30)
    print(json.dumps(result))
    return 0 if result["errors"] == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
