"""A simulated hospital system that speaks REST: signs in as SMART Backend Services and asks."""

import json
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from typing import Any

from joserfc import jwt
from joserfc.jwk import ECKey
from sqlalchemy.ext.asyncio import AsyncEngine

from hub.domain.ids import OdsCode
from hub.facade.tokens import ALL_SCOPES, ASSERTION_TYPE
from hub.store.clients import Client, add

_STARTS_WITHIN_S = 30


@dataclass(frozen=True)
class RestClient:
    """One system of one trust. Its calls wait; run them in a thread."""

    url: str
    client_id: str
    key: ECKey

    @classmethod
    async def join(cls, engine: AsyncEngine, url: str, ods: str, now: datetime) -> "RestClient":
        """A new client with a key of its own, as `hub clients add` makes one."""
        key = ECKey.generate_key("P-384", {"kid": "demo"})
        keys = {"keys": [key.as_dict(private=False)]}
        client = Client(str(uuid.uuid4()), OdsCode(ods), "Demonstration", keys, ALL_SCOPES, now)
        await add(engine, client)
        return cls(url, client.id, key)

    def token(self) -> str:
        """An access token. Raises OSError if the facade does not come up within half a minute, or gives none."""
        until = time.monotonic() + _STARTS_WITHIN_S
        while True:
            fault: OSError
            try:
                status, said = self._ask("/oauth2/token", urllib.parse.urlencode(self._assertion()).encode())
            except urllib.error.URLError as error:
                fault = error
            else:
                if status == HTTPStatus.OK:
                    return str(said["access_token"])
                fault = PermissionError(f"no access token: HTTP {status}, {said.get('error')}")
                if status != HTTPStatus.SERVICE_UNAVAILABLE:
                    raise fault
            if time.monotonic() > until:
                raise fault
            time.sleep(0.2)

    def get(self, path: str) -> tuple[int, dict[str, Any]]:
        """A resource: HTTP status and body. Raises OSError as `token` does."""
        return self._ask(path, None, {"Authorization": f"Bearer {self.token()}"})

    def _ask(
        self, path: str, body: bytes | None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, Any]]:
        request = urllib.request.Request(f"{self.url}{path}", body, headers or {})  # noqa: S310 - our own address
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def _assertion(self) -> dict[str, str]:
        now = int(time.time())
        claims = {
            "iss": self.client_id,
            "sub": self.client_id,
            "aud": f"{self.url}/oauth2/token",
            "iat": now,
            "exp": now + 240,
            "jti": str(uuid.uuid4()),
        }
        signed = jwt.encode({"alg": "ES384", "kid": "demo"}, claims, self.key, algorithms=["ES384"])
        return {
            "grant_type": "client_credentials",
            "client_assertion_type": ASSERTION_TYPE,
            "client_assertion": signed,
        }
