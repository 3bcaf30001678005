"""Trees in, trees out."""

from collections.abc import Mapping

from fastapi import Response

from hub.facade.capability import FHIR_JSON
from hub.fhir import decimals
from hub.fhir.tree import Tree


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
