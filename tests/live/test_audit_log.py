"""The sealed log as processes on real Kafka and PostgreSQL: sealer and feeds are killed while hospitals write to each other."""

import asyncio
import json
import subprocess
import sys
from contextlib import asynccontextmanager

import asyncpg
import orjson
import pytest
import uvicorn
from fastapi import FastAPI, Request, Response

from hub.demo.people import patient_number
from hub.fhir import headers
from hub.fhir.audit_event import PARS
from tests.live.hub_process import live_hub, now
from tests.live.test_facade_killed import free_port

pytestmark = [pytest.mark.live, pytest.mark.timeout(240)]


class Repository:
    """An audit repository (ITI-20). Not well at first; then it takes each event once, and says 409 to one it has."""

    def __init__(self, refusals):
        self.port, self.refusals, self.had = free_port(), refusals, {}

    async def take(self, request: Request) -> Response:
        if self.refusals:
            self.refusals -= 1
            return Response(status_code=503, headers={"Retry-After": "0"})
        event = orjson.loads(await request.body())
        request_id = request.headers["x-request-id"]
        if request_id in self.had:
            return Response(status_code=409)
        self.had[request_id] = event
        return Response(status_code=201)


@asynccontextmanager
async def a_repository(refusals=3):
    found = Repository(refusals)
    app = FastAPI()
    app.add_api_route("/AuditEvent", found.take, methods=["POST"])
    server = uvicorn.Server(uvicorn.Config(app, port=found.port, log_level="error", lifespan="off"))
    serving = asyncio.create_task(server.serve())
    yield found
    server.should_exit = True
    await serving


@pytest.mark.long
async def test_every_entry_is_sealed_and_passed_on_once_while_sealer_and_feeds_are_killed(
    tmp_path, bootstrap_servers, database_url
):
    with live_hub(tmp_path, bootstrap_servers, database_url) as hub:
        async with a_repository() as repository:
            more = {
                "HUB_AUDIT_REPOSITORY_URL": f"http://127.0.0.1:{repository.port}/AuditEvent",
                "HUB_AUDIT_SEAL_S": "0.1",
                "HUB_AUDIT_CHECKPOINT_S": "0.5",
                "HUB_DISPATCH_BACKOFF_MAX_S": "1",
            }
            hub.start("worker")
            hub.start("dispatcher")
            sealer, feeds = hub.start("sealer", **more), hub.start("feeds", **more)
            for round_ in range(5):
                asked = [
                    hub.one.asks_to_transfer(
                        patient_number(100 * round_ + number),
                        to=hub.two.profile.ods,
                        request_number=f"R{round_}-{number}",
                        encounter_number=f"E{round_}-{number}",
                        at=now(),
                    )
                    for number in range(20)
                ]
                await hub.produce(*((hub.one, each) for each in asked))
                await asyncio.sleep(1)
                sealer.kill()
                feeds.kill()
                sealer, feeds = hub.start("sealer", **more), hub.start("feeds", **more)
            await hub.until_taken_in(100)
            await hub.until_delivered()

            async def all_sealed():
                waiting = await hub.rows("select count(*) as n from audit_pending")
                return waiting[0]["n"] == 0

            async def all_passed_on():
                size = (await hub.rows("select max(size) as n from audit_checkpoint"))[0]["n"]
                rows = await hub.rows("select name, next_leaf from audit_feed")
                return {row["name"] for row in rows if row["next_leaf"] == size} == {"topic", "repository"}

            await hub.until(all_sealed, "everything is sealed")
            await hub.until(all_passed_on, "everything is passed on")
            assert (sealer.stop(), feeds.stop()) == (0, 0)

        entries = await hub.audit()
        leaves = await hub.rows("select leaf_index, entry from audit_entry order by leaf_index")
        assert [row["leaf_index"] for row in leaves] == list(range(len(entries)))

        records = await hub.on(hub.audit_topic)
        said = [{name: value.decode() for name, value in record.headers} for record in records]
        events = [r for r, h in zip(records, said, strict=True) if h["event-id"] != "checkpoint"]
        on_topic = [int(h["outbox-seq"]) for h in said if h["event-id"] != "checkpoint"]
        assert on_topic == list(range(len(entries)))
        bodies = [orjson.loads(record.value) for record in events]
        assert [int(body["id"]) for body in bodies] == [row["entry"] for row in leaves]
        assert all(PARS in body["meta"]["profile"] for body in bodies)
        assert {h["content-type"] for h in said} == {headers.CONTENT_TYPE_FHIR, headers.CHECKPOINT_TYPE}
        # The repository has the same events, each once.
        assert sorted(int(each["id"]) for each in repository.had.values()) == sorted(
            int(body["id"]) for body in bodies
        )

        # Somebody else checks the export, against the last checkpoint on the topic and the one in the file.
        newest = next(
            r.value.decode()
            for r, h in zip(records[::-1], said[::-1], strict=True)
            if h["event-id"] == "checkpoint"
        )
        assert newest in (tmp_path / "checkpoints.txt").read_text()
        (tmp_path / "kept.txt").write_text(newest)
        (tmp_path / "hub.pub").write_text(hub.run("audit", "key", "--public"))
        (tmp_path / "export.ndjson").write_text(hub.run("audit", "export"))
        verify = [sys.executable, "-m", "hub.verifier", "export.ndjson", "--key", "hub.pub", "--json"]
        done = subprocess.run(  # noqa: ASYNC221 - nothing else is to run meanwhile
            [*verify, "--from-checkpoint", "kept.txt"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        report = json.loads(done.stdout)
        assert (done.returncode, report["intact"], report["size"]) == (0, True, len(entries))


@pytest.mark.long
async def test_a_backup_is_put_back_and_the_audit_is_passed_on_as_it_is_now(
    tmp_path, bootstrap_servers, database_url
):
    """The repository and the topic have the AuditEvents of the lost time. They are given those of the new time, none of which is taken for an older one."""
    with live_hub(tmp_path, bootstrap_servers, database_url) as hub:
        async with a_repository(refusals=0) as repository:
            more = {
                "HUB_AUDIT_REPOSITORY_URL": f"http://127.0.0.1:{repository.port}/AuditEvent",
                "HUB_AUDIT_SEAL_S": "0.1",
                "HUB_DISPATCH_BACKOFF_MAX_S": "1",
            }

            async def a_day(number, taken_in):
                services = [hub.start(name, **more) for name in ("worker", "dispatcher", "sealer", "feeds")]
                asked = hub.one.asks_to_transfer(
                    patient_number(number),
                    to=hub.two.profile.ods,
                    request_number=f"R{number}",
                    encounter_number=f"E{number}",
                    at=now(),
                )
                await hub.produce((hub.one, asked))
                await hub.until_taken_in(taken_in)
                await hub.until_delivered()
                await hub.until(lambda: _is_passed_on(hub), "everything is sealed and passed on")
                for each in services:
                    each.stop()

            await a_day(1, taken_in=1)
            backup = await hub.copy_of_the_database()
            await a_day(2, taken_in=2)
            lost = {row["entry"] for row in await hub.audit()}
            kept = tmp_path / "kept.txt"
            kept.write_text(hub.run("audit", "checkpoint"))

            hub.database_url = backup
            before = {row["entry"] for row in await hub.audit()}
            with pytest.raises(asyncpg.InsufficientPrivilegeError, match="what is sealed"):
                await hub.rows("update audit_act set trust = trust")
            hub.run("db", "restored", "--because", "the disk was lost")
            await a_day(3, taken_in=3)
            here = {row["entry"] for row in await hub.audit()} - before
            assert here
            assert not here & lost
            given = {int(event["id"]) for event in repository.had.values()}
            assert given == lost | before | here
            told = await hub.on(hub.audit_topic)
            ids = [orjson.loads(r.value)["id"] for r in told if dict(r.headers)["event-id"] != b"checkpoint"]
            assert len(ids) == len(set(ids))
            assert {int(each) for each in ids} == given

            # Whoever kept a checkpoint of the lost time sees that this is another history.
            (tmp_path / "hub.pub").write_text(hub.run("audit", "key", "--public"))
            (tmp_path / "log.ndjson").write_text(hub.run("audit", "export"))
            verify = ["audit", "verify", "log.ndjson", "--key", "hub.pub", "--json"]
            assert _report(tmp_path, *verify)["intact"]
            found = _report(tmp_path, *verify, "--from-checkpoint", kept.name)["findings"]
            assert [each["kind"] for each in found] == ["rewritten"]


async def _is_passed_on(hub):
    """Nothing waits to be sealed, and both feeds have passed on what is."""
    waiting = await hub.rows("select 1 from audit_pending limit 1")
    size = (await hub.rows("select max(size) as n from audit_checkpoint"))[0]["n"]
    rows = await hub.rows("select name, next_leaf from audit_feed")
    there = {row["name"] for row in rows if row["next_leaf"] == size}
    return not waiting and there == {"topic", "repository"}


def _report(folder, *arguments):
    command = [sys.executable, "-m", "hub.cli", *arguments]
    return json.loads(subprocess.run(command, cwd=folder, capture_output=True, check=False).stdout)


async def test_a_feed_does_not_go_on_behind_another_logs_entries(tmp_path, bootstrap_servers, database_url):
    """The topic is another hub's, or the database is older than it: nothing is passed over in silence."""
    with live_hub(tmp_path, bootstrap_servers, database_url) as hub:
        hub.start("sealer", HUB_AUDIT_SEAL_S="0.1")
        feeds = hub.start("feeds")
        hub.run("audit", "search", "--json")

        async def passed_on():
            return [r for r in await hub.rows("select next_leaf from audit_feed") if r["next_leaf"] > 0]

        await hub.until(passed_on, "the first entry is passed on")
        feeds.stop()
        connection_row = await hub.rows(
            "update audit_feed set next_leaf = 0, last_offset = null returning name"
        )
        assert connection_row
        # The first entry is now another one.
        await hub.rows("alter table audit_act disable trigger user")
        await hub.rows("update audit_act set first_entry = first_entry + 1 where first_leaf = 0")
        hub.start("feeds", HUB_DISPATCH_BACKOFF_MAX_S="1")

        async def said():
            rows = await hub.rows("select last_error from audit_feed")
            return rows and "OtherLog" in (rows[0]["last_error"] or "")

        await hub.until(said, "the feed says whose entries these are")
        assert "OtherLog" in hub.run("audit", "feeds", "--json")
