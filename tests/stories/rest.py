"""A hospital's system that speaks REST: its key, its token, and requests to a facade in this process."""

import functools
import uuid
from datetime import timedelta

import httpx
import orjson
from joserfc import jwt
from joserfc.jwk import ECKey, RSAKey

from hub.facade.app import make_app
from hub.facade.service import Facade, Limits
from hub.facade.tokens import ASSERTION_TYPE, TokenOffice
from hub.store import clients
from hub.store.clients import Client

URL = "https://hub.example"


def facade_of(hub, *, directory=None, **limits):
    """The facade over a story's hub, with its clock."""
    office = TokenOffice(URL, ECKey.generate_key("P-384"), timedelta(hours=3))
    return Facade(
        hub.engine,
        hub.unit,
        directory or hub.journey.directory,
        office,
        hub.clock,
        hub.log,
        Limits(**{"requests_per_s": 10_000, "client_s": 0, **limits}),
    )


@functools.cache
def _rsa_key():
    """One for all: making it takes longer than most stories."""
    return RSAKey.generate_key(2048, {"kid": "one"})


class System:
    """One client of a trust."""

    def __init__(self, facade, client, key, algorithm):
        self.facade, self.client, self.key, self.algorithm = facade, client, key, algorithm
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(make_app(facade)), base_url=URL)
        self.token = None

    @classmethod
    async def join(cls, facade, ods, *, scopes="system/*.cruds", kind="EC", algorithm=None):
        key = ECKey.generate_key("P-384", {"kid": "one"}) if kind == "EC" else _rsa_key()
        keys = {"keys": [key.as_dict(private=False)]}
        client = Client(str(uuid.uuid4()), ods, f"{ods}'s system", keys, scopes, facade.now())
        await clients.add(facade.engine, client)
        return cls(facade, client, key, algorithm or ("ES384" if kind == "EC" else "RS384"))

    def assertion(self, *, key=None, algorithm=None, **claims):
        now = int(self.facade.now().timestamp())
        said = {
            "iss": self.client.id,
            "sub": self.client.id,
            "aud": f"{URL}/oauth2/token",
            "iat": now,
            "exp": now + 240,
            "jti": str(uuid.uuid4()),
        } | claims
        said = {name: value for name, value in said.items() if value is not None}
        header = {"alg": algorithm or self.algorithm, "kid": "one"}
        return jwt.encode(header, said, key or self.key, algorithms=[header["alg"]])

    async def ask_for_token(self, assertion, **more):
        form = {
            "grant_type": "client_credentials",
            "client_assertion_type": ASSERTION_TYPE,
            "client_assertion": assertion,
        }
        return await self.http.post("/oauth2/token", data=form | more)

    async def signed_in(self):
        answer = await self.ask_for_token(self.assertion())
        assert answer.status_code == 200, answer.text
        self.token = answer.json()["access_token"]
        return self

    async def call(self, method, path, *, headers=None, **more):
        said = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        return await self.http.request(method, f"/fhir{path}", headers=said | (headers or {}), **more)

    async def get(self, path, **more):
        return await self.call("GET", path, **more)

    async def send(self, message, path="/$process-message", method="POST", **headers):
        """A message as its record system made it."""
        said = {"Content-Type": "application/fhir+json", **message.headers, **headers}
        return await self.call(method, path, headers=said, content=message.body)

    async def put(self, task, *, version=None, request_id=None):
        said = {"Content-Type": "application/fhir+json", "X-Request-Id": request_id or str(uuid.uuid4())}
        said |= {"If-Match": f'W/"{version}"'} if version else {}
        return await self.call("PUT", f"/Task/{task['id']}", headers=said, content=orjson.dumps(task))

    async def ack(self, *numbers):
        parameters = [{"name": "message", "valueId": each} for each in numbers]
        return await self.call(
            "POST",
            "/$ack",
            headers={"Content-Type": "application/fhir+json"},
            content=orjson.dumps({"resourceType": "Parameters", "parameter": parameters}),
        )


def issue(response):
    """The one issue of an OperationOutcome: (BaRS code, FHIR issue type)."""
    outcome = response.json()
    assert outcome["resourceType"] == "OperationOutcome", outcome
    [said] = outcome["issue"]
    return said["details"]["coding"][0]["code"], said["code"]
