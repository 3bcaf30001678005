"""The hospitals that speak REST: each message is sent under its one id until the facade says that it is delivered; what waits is fetched."""

import asyncio
import contextlib
import hashlib
import json
import socket
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import httpx
from joserfc.jwk import ECKey

from hub.demo.epr import Message, correlation_of
from hub.demo.rest_client import RestClient
from tests.chaos.fleet import hub_command
from tests.chaos.ledger import Fetched, Ledger, Sent

_AGAIN = frozenset({408, 425, 429, 500, 502, 503})
_TOKEN_LIFE_S = 3600


class RestDoor:
    """Every trust's client of one facade. ``settings`` are what the facade's process needs."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self._url, self._folder = f"http://127.0.0.1:{self._port}", folder
        token_key = folder / "token.pem"
        token_key.write_bytes(ECKey.generate_key("P-384").as_pem(private=True))
        self.settings = {
            "facade_port": f"{self._port}",
            "facade_url": self._url,
            "token_key_file": str(token_key),
            "token_life_s": f"{_TOKEN_LIFE_S}",
        }
        self._key = ECKey.generate_key("P-384", {"kid": "demo"})
        self._clients: dict[str, str] = {}
        self._tokens: dict[str, str] = {}
        self._sent: Counter[str] = Counter()
        self._http = httpx.AsyncClient(base_url=self._url, timeout=12)

    async def join(self, trusts: Iterable[str], env: dict[str, str]) -> None:
        """A client for each trust, made with the command that the hub team has."""
        keys = self._folder / "clients.jwks.json"
        keys.write_text(json.dumps({"keys": [self._key.as_dict(private=False)]}), encoding="utf-8")
        for trust in trusts:
            command = hub_command("clients", "add", "--trust", trust, "--name", "chaos", "--jwks", str(keys))
            process = await asyncio.create_subprocess_exec(
                *command, env=env, cwd=self._folder, stdout=asyncio.subprocess.PIPE
            )
            told, _ = await process.communicate()
            if process.returncode:
                raise RuntimeError(f"no client for {trust}")
            self._clients[trust] = told.decode().strip()

    async def send(
        self,
        ledger: Ledger,
        trust: str,
        message: Message,
        *,
        what: str,
        story: str,
        expected: frozenset[str],
        news: str | None = None,
        news_to: str | None = None,
    ) -> Sent:
        """Until it is answered 200, or 409 that it was delivered before: then some earlier attempt was."""
        attempts = 0
        while True:
            attempts += 1
            with contextlib.suppress(httpx.HTTPError, OSError):
                answer = await self._http.post(
                    "/fhir/$process-message",
                    content=message.body,
                    headers={**message.headers, "Authorization": f"Bearer {await self._token(trust)}"},
                )
                if answer.status_code == 401:
                    self._tokens.pop(trust, None)
                elif answer.status_code not in _AGAIN:
                    break
            await asyncio.sleep(0.2)
        is_duplicate = answer.status_code == 409 and b'"duplicate"' in answer.content
        if answer.status_code != 200 and not (is_duplicate and attempts > 1):
            raise RuntimeError(
                f"{what}, {story}: the facade answered {answer.status_code}: {answer.text[:500]}"
            )
        self._sent[trust] += 1
        sent = Sent(
            trust,
            f"rest.{trust}",
            0,
            self._sent[trust],
            message.headers["x-request-id"],
            hashlib.sha256(message.body).hexdigest(),
            what,
            story,
            attempts,
            expected,
            news,
            news_to,
        )
        ledger.sent.append(sent)
        return sent

    async def fetch(self, ledger: Ledger, trust: str) -> list[Fetched]:
        """What waits for this trust and was not fetched yet; acknowledged once it is in the ledger. Empty while the facade is away."""
        try:
            said = {"Authorization": f"Bearer {await self._token(trust)}"}
            answer = await self._http.get("/fhir/$inbox", headers=said)
            if answer.status_code != 200:
                if answer.status_code == 401:
                    self._tokens.pop(trust, None)
                return []
            had = ledger.fetched.setdefault(trust, [])
            known = {each.seq for each in had}
            bundles = [each["resource"] for each in answer.json().get("entry", ())]
            new = [_fetched(each, trust, ledger) for each in bundles]
            new = [each for each in new if each.seq not in known]
            had += new
            parameters = [{"name": "message", "valueId": each["id"]} for each in bundles]
            if parameters:
                body = json.dumps({"resourceType": "Parameters", "parameter": parameters})
                said["Content-Type"] = "application/fhir+json"
                # What is not acknowledged is given again, and known then.
                with contextlib.suppress(httpx.HTTPError, OSError):
                    await self._http.post("/fhir/$ack", content=body, headers=said)
        except (httpx.HTTPError, OSError):
            return []
        return new

    async def close(self) -> None:
        await self._http.aclose()

    async def _token(self, trust: str) -> str:
        """Raises OSError while the facade is away."""
        if trust not in self._tokens:
            client = RestClient(self._url, self._clients[trust], self._key)
            self._tokens[trust] = await asyncio.to_thread(client.token)
        return self._tokens[trust]


def _fetched(bundle: dict[str, Any], trust: str, ledger: Ledger) -> Fetched:
    """A message as the checker looks at one from a topic: by what the Bundle itself says."""
    header = bundle["entry"][0]["resource"]
    event_type = header["eventCoding"]["code"]
    headers = {"event-id": bundle["identifier"]["value"], "outbox-seq": bundle["id"]}
    if event_type == "receipt":
        message_id = next(e["valueString"] for e in header["extension"] if e["url"].endswith("x-request-id"))
        headers["x-request-id"] = key = message_id
    else:
        key = header["focus"][0]["reference"].removeprefix("urn:uuid:")
        source = header["sender"]["identifier"]["value"]
        requests = [
            each["resource"]["identifier"][0]["value"]
            for each in bundle["entry"]
            if each["resource"]["resourceType"] == "ServiceRequest" and "identifier" in each["resource"]
        ]
        headers |= {"event-type": event_type, "transfer-id": key, "source-ods": source}
        if requests:
            headers["x-correlation-id"] = correlation_of(source, requests[0])
    topic = ledger.topic(trust, "receipts" if event_type == "receipt" else "inbox")
    return Fetched(int(bundle["id"]), topic, key, headers, json.dumps(bundle).encode())
