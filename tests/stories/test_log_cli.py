"""The log at the command line: keys, an export that is verified by itself, one entry's proof."""

import asyncio

import orjson
import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from hub.audit.note import sign
from hub.cli import app
from hub.commands.terminal import settings_now
from hub.demo.people import MARSHWIGGLE
from hub.services.log_keys import KeyFileError, load_keys, require_ours
from hub.store import tables as t
from hub.wiring import audit_keys
from tests.harness.log import ORIGIN, seal_all
from tests.stories.test_sealed_log import without_triggers


@pytest.fixture
def type_(store_url, tmp_path, monkeypatch):
    monkeypatch.setenv("HUB_DATABASE_URL", store_url)
    monkeypatch.setenv("HUB_AUDIT_KEY_FILE", str(tmp_path / "hub-audit.key"))
    monkeypatch.setenv("HUB_AUDIT_ORIGIN", ORIGIN)
    monkeypatch.setenv("COLUMNS", "300")
    settings_now.cache_clear()

    async def run(*words):
        # The command line makes a loop of its own.
        return await asyncio.to_thread(CliRunner().invoke, app, [str(word) for word in words])

    yield run
    settings_now.cache_clear()


async def test_from_a_new_key_to_a_proof(hub, torbay, type_, tmp_path):
    assert "Nothing is sealed yet" in (await type_("audit", "export")).stderr
    made = await type_("audit", "key", "--new")
    assert made.exit_code == 0, made.output
    assert (tmp_path / "hub-audit.key").stat().st_mode & 0o077 == 0
    public = tmp_path / "hub.pub"
    public.write_text((await type_("audit", "key", "--public")).stdout)
    assert "PRIVATE" not in public.read_text()
    await torbay.asks_to_transfer(MARSHWIGGLE, to="RH8", request_number="T-1", encounter_number="V-1")
    hub.signers = load_keys(tmp_path / "hub-audit.key").signers
    await seal_all(hub.engine, signers=hub.signers)

    export = tmp_path / "export.ndjson"
    export.write_bytes((await type_("audit", "export")).stdout_bytes)
    intact = await type_("audit", "verify", export, "--key", public)
    assert (intact.exit_code, intact.stdout.split(":")[0]) == (0, "intact")
    kept = tmp_path / "kept.txt"
    kept.write_text((await type_("audit", "checkpoint")).stdout)
    assert (await type_("audit", "verify", export, "--key", public, "--from-checkpoint", kept)).exit_code == 0

    changed = export.read_bytes().replace(b'"trust":"RA9"', b'"trust":"RVJ"', 1)
    export.write_bytes(changed)
    told = await type_("audit", "verify", export, "--key", public, "--json")
    report = orjson.loads(told.stdout)
    assert (told.exit_code, report["intact"], report["findings"][0]["kind"]) == (1, False, "altered")

    [entry] = [row["entry"] for row in await hub.rows(t.audit_entry) if row["code"] == "transfer-created"]
    proof = tmp_path / "entry.tlog-proof"
    proof.write_text((await type_("audit", "prove", entry)).stdout)
    proved = await type_("audit", "verify-proof", proof, "--key", public)
    assert proved.exit_code == 0
    assert '"code":"transfer-created"' in proved.stdout
    good = proof.read_bytes()
    proof.write_bytes(good.replace(b"\n", b"\r\n"))
    assert (await type_("audit", "verify-proof", proof, "--key", public)).exit_code == 1
    proof.write_bytes(good.replace(b"index ", b"index 1"))
    assert (await type_("audit", "verify-proof", proof, "--key", public)).exit_code == 1
    assert "Entry 999 is not in the log" in (await type_("audit", "prove", 999)).stderr


async def test_a_key_is_rotated_and_retired(hub, type_, tmp_path):
    """Who verifies needs the public keys of all that ever signed; the file never holds a retired key's secret."""
    file = tmp_path / "hub-audit.key"
    await type_("audit", "key", "--new")
    [old] = load_keys(file).signers
    assert "--rotate replaces a key" in (await type_("audit", "key", "--new")).stderr
    assert "cannot be retired" in (await type_("audit", "key", "--retire", old.key_id.hex())).stderr
    both = (await type_("audit", "key", "--rotate")).stdout.split()
    assert both[1] == old.vkey
    assert len(load_keys(file).signers) == 2
    assert sign(ORIGIN, 1, b"\x00" * 32, load_keys(file).signers).count("— ") == 2
    left = (await type_("audit", "key", "--retire", old.key_id.hex())).stdout.split()
    assert left == both
    assert [each.vkey for each in load_keys(file).signers] == both[:1]
    assert old.private_line not in file.read_text()
    hub.signers = load_keys(file).signers
    changes = [row["detail"]["change"] for row in await hub.audit(code="config-changed")]
    assert changes == ["audit-key-new", "audit-key-rotate", "audit-key-retire"]


async def test_a_sealer_does_not_go_on_with_another_key_or_under_another_name(hub, torbay, type_, tmp_path):
    """A key that was lost and made anew would leave a log that nobody can verify from one end to the other."""
    file = tmp_path / "hub-audit.key"
    await type_("audit", "key", "--new")
    hub.signers = load_keys(file).signers
    await torbay.asks_to_transfer(MARSHWIGGLE, to="RH8", request_number="T-1", encounter_number="V-1")
    newest = (await seal_all(hub.engine, signers=hub.signers)).note
    require_ours(load_keys(file), ORIGIN, None)
    require_ours(load_keys(file), ORIGIN, newest)
    with pytest.raises(KeyFileError, match="keeps its name"):
        require_ours(load_keys(file), "another.example/audit", newest)
    old = load_keys(file)
    await type_("audit", "key", "--rotate")
    await type_("audit", "key", "--retire", old.signers[0].key_id.hex())
    require_ours(load_keys(file), ORIGIN, newest)
    file.unlink()
    with pytest.raises(KeyFileError, match="Put the key back that signed the log"):
        audit_keys(settings_now(), newest)
    assert not file.exists(), "a new key would look like the right one"
    await type_("audit", "key", "--new")
    with pytest.raises(KeyFileError, match="Put the key back"):
        require_ours(load_keys(file), ORIGIN, newest)


async def test_no_key_changes_while_that_cannot_be_written_down(hub, type_, tmp_path, monkeypatch):
    file = tmp_path / "hub-audit.key"
    await type_("audit", "key", "--new")
    [old] = load_keys(file).signers
    monkeypatch.setenv("HUB_DATABASE_URL", "postgresql+asyncpg://hub@127.0.0.1:1/hub")
    settings_now.cache_clear()
    for words in (["--rotate"], ["--retire", old.key_id.hex()]):
        said = await type_("audit", "key", *words)
        assert (said.exit_code, "The database cannot be used" in said.stderr) == (1, True)
        assert load_keys(file).signers == (old,)
    assert [row["detail"]["change"] for row in await hub.audit(code="config-changed")] == ["audit-key-new"]


async def test_what_no_command_can_use_is_said(hub, type_, tmp_path):
    del hub
    assert "make one: hub audit key --new" in (await type_("audit", "key", "--public")).stderr
    (tmp_path / "hub-audit.key").write_text("something else\n")
    assert "holds no private key" in (await type_("audit", "key", "--public")).stderr
    assert "Say what" in (await type_("audit", "key")).stderr
    unread = await type_("audit", "verify", tmp_path / "nothing", "--key", tmp_path / "no.pub")
    assert unread.exit_code == 2


@pytest.mark.parametrize(
    ("change", "advice"),
    [
        ("delete from audit_act where first_leaf = 0", "hub audit verify says where"),
        ("update audit_checkpoint set note = 'x'", "HUB_AUDIT_CHECKPOINT_FILE"),
    ],
)
async def test_an_export_of_a_log_that_was_changed_says_what_to_do(hub, torbay, type_, change, advice):
    """Not with a traceback: whoever changed the log must not be able to keep governance from asking."""
    for number in ("T-1", "T-2"):
        await torbay.asks_to_transfer(MARSHWIGGLE, to="RH8", request_number=number, encounter_number="V-1")
        hub.clock.later(hours=1)
    await seal_all(hub.engine)
    entry = (await hub.rows(t.audit_entry))[-1]
    async with without_triggers(hub) as connection:
        await connection.execute(text(change))
    hub.broken = True
    since = f"{entry['at']:%Y-%m-%dT%H:%M:%S}"
    for words in (["export", "--since", since], ["prove", entry["entry"]]):
        told = await type_("audit", *words)
        assert (told.exit_code, told.stdout) == (1, "")
        assert told.stderr.startswith("hub: "), told.stderr
        assert advice in told.stderr
