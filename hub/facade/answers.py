"""Trees in, trees out."""

from collections.abc import Mapping
from datetime import UTC
from email.utils import format_datetime, parsedate_to_datetime

from fastapi import Response

from hub.domain.transfer import Transfer
from hub.facade.capability import FHIR_JSON
from hub.fhir import decimals
from hub.fhir.tree import Tree


def etag(transfer: Transfer) -> str:
    """The version of a transfer as HTTP says it."""
    return f'W/"{transfer.version}"'


def validators(transfer: Transfer) -> dict[str, str]:
    """ETag and Last-Modified (RFC 9110, 8.8)."""
    changed_at = (transfer.changed_at or transfer.requested_at).astimezone(UTC)
    return {
        "ETag": etag(transfer),
        "Last-Modified": format_datetime(changed_at.replace(microsecond=0), usegmt=True),
    }


def is_unchanged(said: Mapping[str, str], transfer: Transfer) -> bool:
    """Whether the caller has this version: by If-None-Match, else by If-Modified-Since (RFC 9110, 13.2.2)."""
    if known := said.get("if-none-match"):
        return known.strip() == "*" or etag(transfer) in {each.strip() for each in known.split(",")}
    try:
        since = parsedate_to_datetime(said.get("if-modified-since", ""))
    except ValueError:
        return False
    changed_at = (transfer.changed_at or transfer.requested_at).replace(microsecond=0)
    return changed_at <= (since if since.tzinfo else since.replace(tzinfo=UTC))


def tree_of(body: bytes) -> Tree | None:
    """The body as far as it is a JSON object: the journey says what is wrong with anything else."""
    try:
        found = decimals.loads(body)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def fhir(content: Tree | bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """FHIR JSON, as a tree or as bytes."""
    body = content if isinstance(content, bytes) else decimals.dumps(content)
    return Response(body, status, media_type=f"{FHIR_JSON}; charset=utf-8", headers=dict(headers or {}))
