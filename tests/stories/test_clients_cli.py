"""`hub clients …` and `hub token`, as the hub team types them."""

import asyncio
import getpass

import httpx
import orjson
import pytest
from joserfc.jwk import ECKey
from typer.testing import CliRunner

from hub import wiring
from hub.cli import app
from hub.commands.terminal import settings_now
from hub.settings import HubSettings
from hub.store.engine import open_engine
from tests.stories.conftest import SCHEMAS


@pytest.fixture
def type_(store_url, monkeypatch, tmp_path):
    monkeypatch.setenv("HUB_DATABASE_URL", store_url)
    monkeypatch.setenv("HUB_SCHEMAS_DIR", str(SCHEMAS))
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.chdir(tmp_path)
    settings_now.cache_clear()

    async def run(*words):
        return await asyncio.to_thread(CliRunner().invoke, app, list(words))

    yield run
    settings_now.cache_clear()


@pytest.fixture
def keys(tmp_path):
    """A file for each kid."""

    def write(*kids, private=False):
        path = tmp_path / f"{'-'.join(kids) or 'none'}.json"
        found = [ECKey.generate_key("P-384", {"kid": kid}).as_dict(private=private) for kid in kids]
        path.write_bytes(orjson.dumps({"keys": found}))
        return str(path)

    return write


async def test_a_client_from_joining_to_leaving(hub, type_, keys):
    client_id = (
        await type_("clients", "add", "--trust", "RA9", "--name", "letters", "--jwks", keys("old"))
    ).stdout.strip()
    assert (await type_("clients", "rotate", client_id, "--jwks", keys("old", "new"))).exit_code == 0
    listed = orjson.loads((await type_("clients", "list", "--json")).stdout)
    assert (listed["client_id"], listed["trust"], listed["keys"]) == (client_id, "RA9", "old, new")
    assert (await type_("clients", "revoke", client_id)).exit_code == 0
    again = await type_("clients", "revoke", client_id)
    assert (again.exit_code, "No client" in again.stderr) == (1, True)
    changes = await hub.audit(code="config-changed")
    assert [(entry["detail"]["change"], entry["user_id"]) for entry in changes] == [
        (change, getpass.getuser()) for change in ("client-added", "client-keys-rotated", "client-revoked")
    ]


async def test_what_is_no_client(hub, type_, keys, tmp_path):
    """One line that says what to mend, and nothing is stored."""
    rubbish = tmp_path / "rubbish.json"
    rubbish.write_text("{}")
    for words, said in (
        (("--trust", "XXX", "--jwks", keys("one")), "No trust XXX has joined"),
        (("--trust", "RA9", "--jwks", keys("secret", private=True)), "public keys only"),
        (("--trust", "RA9", "--jwks", str(rubbish)), "JSON Web Key Set"),
        (("--trust", "RA9", "--jwks", keys()), "JSON Web Key Set"),
        (("--trust", "RA9", "--jwks", keys("one"), "--scopes", "everything"), "SMART system scopes"),
    ):
        answer = await type_("clients", "add", "--name", "letters", *words)
        assert (answer.exit_code, said in answer.stderr) == (1, True), (words, answer.stderr)
    assert "No client yet" in (await type_("clients", "list")).stdout


async def test_tokens_by_hand_are_for_development(hub, type_, keys, tmp_path, monkeypatch, store_url):
    client_id = (
        await type_("clients", "add", "--trust", "RA9", "--name", "letters", "--jwks", keys("one"))
    ).stdout.strip()
    refused = await type_("token", client_id)
    assert (refused.exit_code, "in development only" in refused.stderr) == (1, True)

    (tmp_path / "key.pem").write_bytes(ECKey.generate_key("P-384").as_pem(private=True))
    monkeypatch.setenv("HUB_DEVELOPMENT", "true")
    monkeypatch.setenv("HUB_TOKEN_KEY_FILE", str(tmp_path / "key.pem"))
    settings_now.cache_clear()
    token = (await type_("token", client_id)).stdout.strip()
    engine = open_engine(store_url)
    facade = wiring.facade_app(HubSettings(), engine)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(facade), base_url="http://hub") as http:
        answer = await http.get("/fhir/Organization/RA9", headers={"Authorization": f"Bearer {token}"})
    await engine.dispose()
    assert answer.status_code == 200

    (tmp_path / "key.pem").write_text("nothing")
    broken = await type_("token", client_id)
    assert (broken.exit_code, "HUB_TOKEN_KEY_FILE" in broken.stderr) == (1, True)
