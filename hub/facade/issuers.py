"""Tokens of other issuers that a trust has registered: its own sign-in for systems, or NHS CIS2 for people.

Their public keys are fetched from the registered address, kept, and fetched again when they are old or when a token names a key
that is not among them. Sources: OpenID Connect Core, 10.1.1 (rotation of keys); NHS CIS2, scopes and claims.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import httpx
import orjson
from joserfc.errors import JoseError
from joserfc.jwk import KeySet, import_key
from joserfc.jws import extract_compact

from hub.domain.ids import OdsCode
from hub.domain.trust import Directory, Issuer, TrustProfile
from hub.facade.errors import FacadeError
from hub.facade.tokens import Caller, Person, TokenError, checked_claims, verified
from hub.store.clients import ISSUER_MARK

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "ES256", "ES384")
ASSURANCE_MIN, ASSURANCE_TO_WRITE = 2, 3
"""Authenticator assurance levels: below the first nobody gets in, below the second nothing is decided (DOMAIN, 1.11)."""

_KEPT_S = 300.0
"""Keys this old are fetched again: a key that was withdrawn is believed no longer."""
_STALE_S = 3600.0
"""While the issuer cannot be reached its last keys hold this long."""
_BETWEEN_S = 10.0
"""Not more often than this, however many tokens name a key that nobody knows."""
_BYTES_MAX = 200_000

Fetch = Callable[[str], Awaitable[bytes]]


async def fetch(url: str) -> bytes:
    """What is at an address; nothing else is followed. Raises httpx.HTTPError, ValueError."""
    async with httpx.AsyncClient(timeout=5, follow_redirects=False, trust_env=False) as client:
        answer = (await client.get(url)).raise_for_status()
        if len(answer.content) > _BYTES_MAX:
            raise ValueError("too large")
        return answer.content


@dataclass(slots=True)
class _Keys:
    """The keys of one address. Times are the monotonic clock's."""

    known: KeySet | None = None
    fetched_at: float = -math.inf
    tried_at: float = -math.inf
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Issuers:
    """Those of all trusts. ``audience`` is the facade's base address, which a token must be for."""

    def __init__(self, directory: Directory, audience: str, fetch: Fetch = fetch) -> None:
        self._directory, self._audience, self._fetch = directory, audience, fetch
        self._keys: dict[str, _Keys] = {}

    def _registered(self, url: str) -> dict[OdsCode, Issuer]:
        """The trusts that registered an issuer, with how."""
        return {
            OdsCode(profile.ods): each
            for profile in self._directory
            for each in profile.issuers
            if each.url == url
        }

    async def caller(self, token: str, issuer: str, now: datetime) -> Caller:
        """Who shows this token, which says that it is from ``issuer``. Raises TokenError; FacadeError (503) if the keys cannot be had."""
        registered = self._registered(issuer)
        if not registered:
            raise TokenError("issuer", "No trust has registered the issuer of this token.")
        reasons: list[TokenError | FacadeError] = []
        for address in sorted({each.jwks_url for each in registered.values()}):
            try:
                claims = await self._claims(token, address)
            except (TokenError, FacadeError) as error:
                # One trust's address that is away or knows the key not says nothing about another's.
                reasons.append(error)
                continue
            checked_claims(claims, issuer, self._audience, now)
            # Who may say where an issuer's keys are is the trust: another trust's address proves nothing for it.
            here = {ods: each for ods, each in registered.items() if each.jwks_url == address}
            is_of_people = any(each.people for each in here.values())
            return _person(claims, here, self._directory) if is_of_people else _system(claims, here)
        raise next((each for each in reasons if isinstance(each, FacadeError)), reasons[0])

    async def _claims(self, token: str, address: str) -> Mapping[str, Any]:
        kid = _key_id(token)
        keys = await self._key_set(address, kid)
        return verified(token, keys, ALGORITHMS)

    async def _key_set(self, address: str, kid: str) -> KeySet:
        kept = self._keys.setdefault(address, _Keys())
        async with kept.lock:
            at = time.monotonic()
            wanted = at - kept.fetched_at >= _KEPT_S or not _holds(kept.known, kid)
            if wanted and at - kept.tried_at >= _BETWEEN_S:
                kept.tried_at = at
                # The last keys hold on; how long is decided below.
                with contextlib.suppress(httpx.HTTPError, ValueError, OSError):
                    kept.known, kept.fetched_at = _read(await self._fetch(address)), at
            if kept.known is None or at - kept.fetched_at >= _STALE_S:
                raise FacadeError(
                    503,
                    "REC_UNAVAILABLE",
                    "transient",
                    "The keys of your token's issuer cannot be fetched from the address that your trust registered.",
                    "Authorization",
                    headers={"Retry-After": str(int(_BETWEEN_S))},
                )
            return kept.known


def can_come(client_id: str, profile: TrustProfile) -> bool:
    """Whether a system of this id can be let in at all: one of the hub's own clients (which can be revoked), or of an issuer of systems that
    its trust has registered still.
    """
    return ISSUER_MARK not in client_id or any(not each.people for each in profile.issuers)


def _key_id(token: str) -> str:
    try:
        kid = extract_compact(token.encode()).headers().get("kid")
    except (JoseError, ValueError) as error:
        raise TokenError("malformed", "It is not a signed JWT.") from error
    if not isinstance(kid, str):
        raise TokenError("signature", "It does not name the key that signed it (kid).")
    return kid


def _holds(keys: KeySet | None, kid: str) -> bool:
    return keys is not None and any(each.kid == kid for each in keys.keys)


def _read(text: bytes) -> KeySet:
    """The keys that can be used; kinds that are not known here are left out. Raises ValueError."""
    said = orjson.loads(text)
    if not isinstance(said, dict) or not isinstance(said.get("keys"), list):
        raise ValueError("not a key set")  # noqa: TRY004 - a value of theirs, not a type of ours
    found = []
    for each in said["keys"]:
        try:
            key = import_key(each)
        except (JoseError, ValueError, TypeError, KeyError, AttributeError):
            continue
        # A shared secret in a public set would let anybody sign.
        if key.key_type in {"RSA", "EC"} and not key.is_private and key.kid and each.get("use") != "enc":
            found.append(key)
    return KeySet(found)


def _system(claims: Mapping[str, Any], registered: Mapping[OdsCode, Issuer]) -> Caller:
    """A system of the trust that registered its issuer; where several did, the token says of which (``ods``)."""
    said = claims.get("ods")
    trust = OdsCode(str(said)) if said else next(iter(registered))
    if trust not in registered or (not said and len(registered) > 1):
        raise TokenError(
            "organisation", "The token must say of which trust it is (ods): one that registered its issuer."
        )
    client = claims.get("client_id") or claims.get("azp") or claims.get("sub")
    if not isinstance(client, str) or not 0 < len(client) <= 200 or not client.isprintable():
        raise TokenError("subject", "The token must name the client (client_id or sub).")
    return Caller(f"{trust}{ISSUER_MARK}{client}", trust, _scopes(claims))


def _person(claims: Mapping[str, Any], registered: Mapping[OdsCode, Issuer], directory: Directory) -> Caller:
    """A person in the role that they chose, of the trust that the role is at."""
    chosen = claims.get("selected_roleid")
    roles = claims.get("nhsid_nrbac_roles")
    held = next(
        (
            each
            for each in (roles if isinstance(roles, list) else [])
            if isinstance(each, dict) and chosen and each.get("person_roleid") == chosen
        ),
        None,
    )
    if held is None:
        raise TokenError(
            "role",
            "The token must name a chosen role (selected_roleid) among the person's roles (nhsid_nrbac_roles).",
        )
    trust = directory.trust_of(str(held.get("org_code")).upper())
    if trust is None or trust not in registered:
        raise TokenError(
            "organisation", "The chosen role is at an organisation that did not register this issuer."
        )
    role = registered[trust].roles.get(str(held.get("role_code")).rpartition(":")[2])
    if role is None:
        raise TokenError(
            "role", "The chosen role may do nothing here: choose another, or have your trust list its code."
        )
    who = claims.get("nhsid_useruid") or claims.get("sub")
    if not isinstance(who, str) or not 0 < len(who) <= 100 or not who.isprintable():
        raise TokenError("subject", "The token must say who it is (nhsid_useruid or sub).")
    assurance = _assurance(claims)
    if assurance < ASSURANCE_MIN:
        raise TokenError("assurance", f"People sign in with assurance level {ASSURANCE_MIN} or more.")
    person = Person(who, role, str(chosen), may_write=assurance >= ASSURANCE_TO_WRITE)
    return Caller(f"{trust}{ISSUER_MARK}{who}", trust, _scopes(claims), person)


def _assurance(claims: Mapping[str, Any]) -> int:
    """``authentication_assurance_level`` is a digit; ``acr`` begins with AAL and that digit."""
    said = str(
        claims.get("authentication_assurance_level") or str(claims.get("acr", "")).removeprefix("AAL")[:1]
    )
    return int(said) if said in {"1", "2", "3"} else 0


def _scopes(claims: Mapping[str, Any]) -> str:
    said = claims.get("scope", "")
    return " ".join(map(str, said)) if isinstance(said, list) else str(said)
