"""Who is calling: SMART Backend Services. A system signs an assertion with its private key, gets a token, and shows it.

Sources: SMART App Launch 2.2, backend services; RFC 7523, 3; RFC 7519, 4.1. NHS England's API platform asks for the same
("signed JWT") with RS512.
"""

import base64
import hmac
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypedDict, cast

import orjson
from joserfc import jwe, jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, KeySet, OctKey
from joserfc.jws import extract_compact

from hub.domain.ids import OdsCode
from hub.domain.roles import Role
from hub.facade.access import Reader
from hub.facade.errors import forbidden
from hub.store.clients import Client

ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
ASSERTION_ALGORITHMS = ("RS384", "ES384", "RS512")
"""What a client may sign with. ``none`` and shared secrets are not among them."""
TOKEN_ALGORITHM = "ES384"  # noqa: S105
ASSERTION_LIFE = timedelta(minutes=5)
"""An assertion may not be good for longer (SMART; NHS England, signed JWT)."""
SKEW = timedelta(seconds=30)
"""How far two clocks may be apart."""
ALL_SCOPES = "system/*.cruds"

_SEALED = {"alg": "dir", "enc": "A256GCM"}
_SCOPE = re.compile(r"system/(\*|[A-Z][A-Za-z]+)\.(c?r?u?d?s?)")
_USER_SCOPE = re.compile(r"user/(\*|[A-Z][A-Za-z]+)\.(c?r?u?d?s?)")


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody who signed in, in the role that they chose. ``role_id`` is that role's id (``selected_roleid``)."""

    id: str
    role: Role
    role_id: str
    may_write: bool


class Who(TypedDict, total=False):
    """Who acted, as `hub.audit.entries.AuditEntry` names it."""

    trust: OdsCode
    client_id: str
    user_id: str | None
    role_id: str | None
    request_id: str | None


@dataclass(frozen=True, slots=True)
class Caller:
    """A system or a person, proved by a token: it speaks for one trust. ``broken`` are the hub's ids of those patients for whom
    this person has broken the glass.
    """

    client_id: str
    trust: OdsCode
    scopes: str
    person: Person | None = None
    broken: frozenset[str] = frozenset()
    request_id: str | None = None
    """X-Request-Id of what is asked for, if there is one."""

    @property
    def role(self) -> Role:
        return self.person.role if self.person else Role.SYSTEM

    @property
    def reader(self) -> Reader:
        return Reader(self.trust, self.role, self.broken)

    @property
    def who(self) -> Who:
        """For the audit."""
        person = self.person
        return {
            "trust": self.trust,
            "client_id": self.client_id,
            "user_id": person.id if person else None,
            "role_id": person.role_id if person else None,
            "request_id": self.request_id,
        }

    def must_be_a_system(self, why: str) -> None:
        """Raises FacadeError (403), with ``why``, for a person."""
        if self.person is not None:
            raise forbidden(why)

    def must(self, resource_type: str, verb: str) -> None:
        """``verb`` is one of SMART's letters: c, r, u, d, s. Raises FacadeError (403)."""
        whose = "user" if self.person else "system"
        if not allows(self.scopes, resource_type, verb, whose):
            raise forbidden(
                f"Your token's scopes do not hold {whose}/{resource_type}.{verb}: ask for it when you get the token, "
                "or ask the hub team to give it to your client."
            )


class TokenError(Exception):
    """Why an assertion or a token is not good. ``reason`` is a word for the log and the audit, the text is for the caller."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


def allows(scopes: str, resource_type: str, verb: str, whose: str = "system") -> bool:
    """Whether SMART scopes let a system (or a ``user``) do this."""
    pattern = _SCOPE if whose == "system" else _USER_SCOPE
    found = (pattern.fullmatch(each) for each in scopes.split())
    return any(each and each[1] in {"*", resource_type} and verb in each[2] for each in found)


def is_scopes(text: str) -> bool:
    """Whether these are SMART system scopes, and at least one."""
    found = text.split()
    return bool(found) and all((parts := _SCOPE.fullmatch(each)) and parts[2] for each in found)


def granted(wanted: str, client: Client) -> str:
    """Of the scopes that are asked for those the client may have; all of its own if none are named. Raises TokenError."""
    if not wanted.strip():
        return client.scopes
    given = []
    for scope in wanted.split():
        parts = _SCOPE.fullmatch(scope)
        if parts and all(allows(client.scopes, parts[1], verb) for verb in parts[2]):
            given.append(scope)
    if not given:
        raise TokenError("scope", "The client may have none of these scopes.")
    return " ".join(given)


def claimed_issuer(token: str, what: str = "It") -> str:
    """Whom a token says it is from, to learn whose key to try; nothing is proved yet. Raises TokenError."""
    try:
        issuer = orjson.loads(extract_compact(token.encode()).payload).get("iss")
    except (JoseError, ValueError, AttributeError) as error:
        raise TokenError("malformed", f"{what} is not a signed JWT.") from error
    if not isinstance(issuer, str):
        raise TokenError("issuer", f"{what} must say who it is from (iss).")
    return issuer


def claimed_client(assertion: str) -> str:
    """Which client an assertion says it is from; nothing is proved yet. Raises TokenError."""
    issuer = claimed_issuer(assertion, "The assertion")
    if not 0 < len(issuer) <= 64 or not issuer.isprintable():
        raise TokenError("issuer", "The assertion's iss must be the client's id.")
    return issuer


def checked_assertion(assertion: str, client: Client, token_url: str, now: datetime) -> tuple[str, datetime]:
    """Prove a client's assertion; its ``jti`` and when it expires. Raises TokenError."""
    claims = verified(assertion, key_set(client.keys), ASSERTION_ALGORITHMS)
    checked_claims(claims, client.id, token_url, now)
    if claims.get("sub") != client.id:
        raise TokenError("subject", "iss and sub must both be the client's id.")
    jti = claims.get("jti")
    if not isinstance(jti, str) or not 1 <= len(jti) <= 255 or not jti.isprintable():
        raise TokenError("jti", "The assertion needs a jti of its own.")
    expires_at = _moment(claims, "exp")
    if expires_at > now + ASSERTION_LIFE + SKEW:
        raise TokenError("life", "The assertion may not be good for more than five minutes.")
    return jti, expires_at


def key_set(keys: Mapping[str, Any]) -> KeySet:
    """Public keys as a JSON Web Key Set says them. Raises ValueError if it is none or holds a private key."""
    try:
        found = KeySet.import_key_set(cast("Any", dict(keys)))
    except (JoseError, KeyError, TypeError) as error:
        raise ValueError("This is not a JSON Web Key Set (RFC 7517)") from error
    if not found.keys or any(each.is_private or each.kid is None for each in found.keys):
        raise ValueError("The set must hold public keys only, each with its kid")
    return found


class TokenOffice:
    """Makes access tokens and knows its own again. ``url`` is the facade's, as its callers know it."""

    def __init__(self, url: str, key: ECKey, life: timedelta) -> None:
        self.url = url.rstrip("/")
        self._key = key
        self.life = life
        # Of the same secret, so that every process of the hub opens what one has sealed; and for this use only (RFC 5869, 3.2).
        secret = base64.urlsafe_b64decode(str(key.as_dict(private=True)["d"]) + "==")
        self._seal = OctKey.import_key(hmac.digest(secret, b"transfer-hub page", "sha256"))

    @property
    def token_url(self) -> str:
        return f"{self.url}/oauth2/token"

    def issue(self, client: Client, scopes: str, now: datetime) -> str:
        """An access token for this client, good for ``life``."""
        claims = {
            "iss": self.url,
            "aud": f"{self.url}/fhir",
            "sub": client.id,
            "ods": client.trust,
            "scope": scopes,
            "iat": int(now.timestamp()),
            "exp": int((now + self.life).timestamp()),
            "jti": secrets.token_urlsafe(16),
        }
        return jwt.encode(
            {"alg": TOKEN_ALGORITHM, "typ": "at+jwt"}, claims, self._key, algorithms=[TOKEN_ALGORITHM]
        )

    def sealed(self, text: str) -> str:
        """Text that only the hub can read, for an address that others may write down."""
        return jwe.encrypt_compact(_SEALED, text.encode(), self._seal, algorithms=list(_SEALED.values()))

    def unsealed(self, token: str) -> str | None:
        """What was `sealed`; None if this hub did not, or its key has changed since."""
        try:
            found = jwe.decrypt_compact(token, self._seal, algorithms=list(_SEALED.values()))
            return None if found.plaintext is None else found.plaintext.decode()
        except (JoseError, ValueError, KeyError, TypeError):
            return None

    def caller(self, token: str, now: datetime) -> Caller:
        """Who shows this token. Raises TokenError."""
        claims = verified(token, self._key, (TOKEN_ALGORITHM,))
        checked_claims(claims, self.url, f"{self.url}/fhir", now)
        return Caller(str(claims["sub"]), OdsCode(str(claims["ods"])), str(claims["scope"]))


def verified(token: str, key: Any, algorithms: tuple[str, ...]) -> Mapping[str, Any]:
    """The claims of a token that this key, or one of this set, signed. Raises TokenError."""
    try:
        return jwt.decode(token, key, algorithms=list(algorithms)).claims
    except (JoseError, ValueError, TypeError, KeyError) as error:
        raise TokenError(
            "signature",
            f"The signature does not fit a key that is known, or the algorithm is none of {', '.join(algorithms)}.",
        ) from error


def checked_claims(claims: Mapping[str, Any], issuer: str, audience: str, now: datetime) -> None:
    """That a token is from and for whom it must be, and good now. Raises TokenError."""
    if claims.get("iss") != issuer:
        raise TokenError("issuer", "iss is not the expected one.")
    audiences = claims.get("aud")
    if audience not in (audiences if isinstance(audiences, list) else [audiences]):
        raise TokenError("audience", f"aud must be exactly {audience}.")
    if _moment(claims, "exp") <= now - SKEW:
        raise TokenError("expired", "It has expired: get a new one.")
    for name in ("iat", "nbf"):
        if name in claims and _moment(claims, name) > now + SKEW:
            raise TokenError("future", f"{name} is in the future: compare your clock with the hub's.")


def _moment(claims: Mapping[str, Any], name: str) -> datetime:
    value = claims.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e11:
        raise TokenError(name, f"{name} must be there, in seconds since 1970.")
    return datetime.fromtimestamp(value, UTC)
