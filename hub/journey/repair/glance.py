"""A cheap look for what the structure check cannot see, so that a clean message is not walked.

It works on the text of the message, because a search in text is some twenty times as fast as a walk in Python.
A sign may be wrong: then the walk finds nothing to do. What the walk would mend must never lack a sign; the
tests hold it to that.
"""

import re
from typing import Any

import orjson

from hub.fhir.tree import Tree
from hub.journey.repair.walk import Namespaces, namespace_of, resources_of

_UUID = rb"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_PLAIN = rb'https?://[^"\\\[\]{}<>]*|[A-Z][A-Za-z]+/[A-Za-z0-9.-]+'
_SIGNS = (
    # References and URLs that are not of a form known to be good: placeholders and odd UUIDs.
    re.compile(rb'"reference":"(?!(?:urn:uuid:' + _UUID + rb'|#[^"\\\[\]{}<>]*|' + _PLAIN + rb')")'),
    re.compile(rb'"fullUrl":"(?!(?:urn:uuid:' + _UUID + rb"|" + _PLAIN + rb')")'),
    # Identifier values that are placeholders.
    re.compile(rb'"value":"[$\[{<:]'),
    # References that say a type and nothing else.
    re.compile(rb'\{"type":"[^"]*"\}'),
)
_US_CORE = b"http://hl7.org/fhir/us/core/"


def nothing_to_mend(tree: Tree, namespaces: Namespaces) -> bool:
    """Whether a tree that the structure check found sound can be left as it is. False means: perhaps not."""
    try:
        text = orjson.dumps(tree, default=str)
    except orjson.JSONEncodeError:
        return False
    if _US_CORE in text or any(sign.search(text) for sign in _SIGNS):
        return False
    if tree["resourceType"] == "Bundle":
        entries = tree.get("entry", ())
        urls = [entry["fullUrl"] for entry in entries if "fullUrl" in entry]
        if len(urls) != len(set(urls)) or not all(map(_has_content, entries)):
            return False
    return not namespaces or not any(_lacks_system(each, namespaces) for _, each in resources_of(tree))


def _has_content(entry: dict[str, Any]) -> bool:
    return "resource" in entry or "request" in entry or "response" in entry


def _lacks_system(resource: dict[str, Any], namespaces: Namespaces) -> bool:
    systems = namespaces.get(str(resource.get("resourceType")))
    found = resource.get("identifier") if systems else None
    if not systems or not found:
        return False
    return any(
        "system" not in each and "value" in each and namespace_of(each, systems) is not None
        for each in (found if isinstance(found, list) else (found,))
    )
