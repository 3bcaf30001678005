"""Trees in, trees out."""

import codecs
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime, parsedate_to_datetime
from urllib.parse import parse_qsl

from fastapi import Request, Response

from hub.dialects.fhir_xml import parse_xml
from hub.domain.rejection import Rejection
from hub.facade.capability import FHIR_JSON
from hub.facade.errors import bad_request
from hub.facade.searching import IDS_MAX, VALUES_MAX, Opens, not_too_many, opened, too_many
from hub.fhir import decimals
from hub.fhir.tree import Tree


def validators(resource: Tree, now: datetime) -> dict[str, str]:
    """ETag and Last-Modified of a resource with its meta (RFC 9110, 8.8). Last-Modified is when this version had stood for a minute, and is
    not said before ``now`` is that late: HTTP's times are seconds, and another version can come in the same one, or have come in just then and not be
    committed yet. Whoever has read since then has this one.
    """
    settled_at = _settled_at(resource)
    last = {"Last-Modified": format_datetime(settled_at, usegmt=True)} if settled_at <= now else {}
    return {"ETag": _etag(resource), **last}


def is_unchanged(said: Mapping[str, str], resource: Tree) -> bool:
    """Whether the caller has this version: by If-None-Match, else by If-Modified-Since (RFC 9110, 13.2.2).

    Only of what is the same as long as its version is. A Patient's versions begin anew with each transfer, and in all that was told of a
    patient a number can be found not to be theirs: that is given again each time.
    """
    if resource["resourceType"] not in _SAME_AS_ITS_VERSION:
        return False
    if known := said.get("if-none-match"):
        return known.strip() == "*" or _etag(resource) in {each.strip() for each in known.split(",")}
    try:
        since = parsedate_to_datetime(said.get("if-modified-since", ""))
        return _settled_at(resource) <= (since if since.tzinfo else since.replace(tzinfo=UTC))
    except (ValueError, OverflowError, TypeError):
        return False


_SAME_AS_ITS_VERSION = frozenset({"Task", "Provenance"})
_SETTLES_WITHIN = timedelta(minutes=1)
"""Longer than any transaction takes."""


def _etag(resource: Tree) -> str:
    return f'W/"{resource["meta"].get("versionId", "1")}"'


def _settled_at(resource: Tree) -> datetime:
    """To the second, as HTTP has it."""
    return datetime.fromisoformat(resource["meta"]["lastUpdated"]).replace(microsecond=0) + _SETTLES_WITHIN


def tree_of(body: bytes) -> Tree | None:
    """The body as far as it is a JSON object: the journey says what is wrong with anything else."""
    try:
        found = decimals.loads(body)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def resource_of(body: bytes, depth_max: int) -> Tree | None:
    """The body as far as it is one resource of FHIR R4, in JSON or XML: the journey says what is wrong with anything else."""
    if not body[:64].lstrip(_BEFORE_XML).startswith(b"<"):
        return tree_of(body)
    found = parse_xml(body, depth_max)
    return None if isinstance(found, Rejection) else found


_BEFORE_XML = codecs.BOM_UTF8 + b" \t\r\n"


@dataclass(frozen=True, slots=True)
class AskedWith:
    """The parameters of a search, and whether those that are not known are an error (`Prefer: handling=strict`). ``in_a_form``: they came
    in a body, or by a link that holds them sealed, so that none is written into an address.
    """

    parameters: Sequence[tuple[str, str]]
    strict: bool
    in_a_form: bool = False


def asked_with(request: Request, body: bytes, resource: str = "", office: Opens | None = None) -> AskedWith:
    """What a search was asked with, from the address and from a form. ``office`` opens the links of a search for ``resource`` that came
    in a form. Raises FacadeError (400).
    """
    parameters = list(request.query_params.multi_items())
    if request.method == "POST":
        if body.count(b"&") >= VALUES_MAX + IDS_MAX:
            raise too_many()
        try:
            parameters += parse_qsl(body.decode(), keep_blank_values=True, strict_parsing=bool(body))
        except ValueError:
            raise bad_request("Send the parameters as application/x-www-form-urlencoded.") from None
        if any("\x00" in value for _, value in parameters):
            raise bad_request("A value holds U+0000, which nothing here has.")
    found = opened(resource, parameters, office) if office is not None else None
    parameters = parameters if found is None else found
    not_too_many(parameters)
    strict = "handling=strict" in request.headers.get("prefer", "").replace(" ", "").lower()
    return AskedWith(parameters, strict, request.method == "POST" or found is not None)


def parameters_of(body: bytes) -> list[Tree]:
    """What a Parameters resource holds; nothing if it is none."""
    found = (tree_of(body) or {}).get("parameter")
    sound = isinstance(found, list) and all(isinstance(each, dict) for each in found)
    return found if sound and found else []


def searchset(
    found: Sequence[Tree], base: str, *, links: Sequence[Tree] = (), total: int | None = None
) -> Tree:
    """What was found. ``links`` and ``total`` where there are any."""
    entries = [
        {
            "fullUrl": f"{base}/{each['resourceType']}/{each['id']}",
            "resource": each,
            "search": {"mode": "match"},
        }
        for each in found
    ]
    return {
        "resourceType": "Bundle",
        "type": "searchset",
        **({"link": list(links)} if links else {}),
        **({"total": total} if total is not None else {}),
        **({"entry": entries} if entries else {}),
    }


def fhir(content: Tree | bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """FHIR JSON, as a tree or as bytes."""
    body = content if isinstance(content, bytes) else decimals.dumps(content)
    return Response(body, status, media_type=f"{FHIR_JSON}; charset=utf-8", headers=dict(headers or {}))
