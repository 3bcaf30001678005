"""The token endpoint: a system proves who it is and gets an access token (RFC 6749, 4.4; RFC 7523, 2.2)."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from urllib.parse import parse_qsl

from sqlalchemy.exc import SQLAlchemyError

from hub.facade import tokens
from hub.facade.errors import FacadeError
from hub.facade.service import Facade
from hub.facade.tokens import TokenError
from hub.store import clients
from hub.store.clients import Client
from hub.telemetry.log import fault_of

Answer = tuple[int, Mapping[str, Any]]


async def sign_in(facade: Facade, body: bytes) -> Answer:
    """The answer to a request for a token: HTTP status and JSON. What is refused is audited."""
    try:
        form = dict(parse_qsl(body.decode()))
    except ValueError:
        form = {}
    if form.get("grant_type") != "client_credentials":
        return _no(400, "unsupported_grant_type", "Send a form whose grant_type is client_credentials.")
    if form.get("client_assertion_type") != tokens.ASSERTION_TYPE:
        return _no(400, "invalid_request", f"client_assertion_type must be {tokens.ASSERTION_TYPE}.")
    try:
        return await _token(facade, form, facade.now())
    except (OSError, TimeoutError, SQLAlchemyError) as error:
        facade.log.error("store.unavailable", fault=fault_of(error))  # noqa: TRY400 - a trace can quote a message
        return _no(503, "temporarily_unavailable", "The hub's database does not answer. Try again later.")


async def _token(facade: Facade, form: Mapping[str, str], now: datetime) -> Answer:
    try:
        client, scopes = await _proved(facade, form, now)
    except TokenError as error:
        await facade.refused(error.reason)
        wrong_scope = error.reason == "scope"
        return _no(
            400 if wrong_scope else 401, "invalid_scope" if wrong_scope else "invalid_client", str(error)
        )
    return 200, {
        "access_token": facade.office.issue(client, scopes, now),
        "token_type": "bearer",
        "expires_in": int(facade.office.life.total_seconds()),
        "scope": scopes,
    }


async def _proved(facade: Facade, form: Mapping[str, str], now: datetime) -> tuple[Client, str]:
    """The client whose assertion this is, and what its token may. Raises TokenError."""
    assertion = form.get("client_assertion", "")
    client = await clients.find(facade.engine, tokens.claimed_client(assertion))
    if client is None or client.revoked_at is not None:
        raise TokenError("unknown-client", "No client has this id, or it was revoked.")
    jti, expires_at = tokens.checked_assertion(assertion, client, facade.office.token_url, now)
    scopes = tokens.granted(form.get("scope", ""), client)
    # Last, so that an assertion with a fault can be mended without a new jti.
    if not await clients.use_assertion(facade.engine, client.id, jti, expires_at + tokens.SKEW, now):
        raise TokenError(
            "replayed", "This assertion was used before: make one with a new jti for each token."
        )
    return client, scopes


def unread(error: FacadeError) -> Mapping[str, Any]:
    """What is said where the request itself could not be read."""
    return {"error": "invalid_request", "error_description": error.diagnostics}


def _no(status: int, error: str, description: str) -> Answer:
    """RFC 6749, 5.2."""
    return status, {"error": error, "error_description": description}
