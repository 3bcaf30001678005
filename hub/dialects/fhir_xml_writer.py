"""A FHIR R4 tree → XML (https://hl7.org/fhir/R4/xml.html): the other way round from `hub.dialects.fhir_xml`.

Elements stand in the order of the standard. What XML cannot hold, or FHIR does not have, is an error and never left out.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any
from xml.parsers import expat
from xml.sax.saxutils import quoteattr

from hub.dialects.fhir_xml import FHIR_NAMESPACE, XHTML_NAMESPACE
from hub.fhir import decimals
from hub.fhir.elements import Element, FhirVersion, elements, resource_types

_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 (2.2) has no way to say."""


class NotInXmlError(ValueError):
    """A resource cannot be written as XML. Says why, without quoting it."""


def write_xml(resource: Mapping[str, Any]) -> bytes:
    """One resource as UTF-8 XML. Raises NotInXmlError."""
    text = "".join(_resource(resource, f' xmlns="{FHIR_NAMESPACE}"'))
    return f'<?xml version="1.0" encoding="UTF-8"?>{text}'.encode()


def _resource(resource: Mapping[str, Any], namespace: str = "") -> Iterator[str]:
    kind = resource.get("resourceType")
    if kind not in resource_types(FhirVersion.R4):
        raise NotInXmlError("It is of no resource type that FHIR R4 has")
    yield f"<{kind}{namespace}>"
    said = {name: value for name, value in resource.items() if name != "resourceType"}
    yield from _children(said, str(kind))
    yield f"</{kind}>"


def _children(tree: Mapping[str, Any], type_name: str) -> Iterator[str]:
    known = elements(FhirVersion.R4, type_name)
    if any(name.removeprefix("_") not in known for name in tree):
        raise NotInXmlError(f"A {type_name} has an element that FHIR R4 does not have")
    for name, element in known.items():
        if element.primitive:
            yield from _primitives(name, element, tree.get(name), tree.get(f"_{name}"))
        elif name in tree:
            value = tree[name]
            for each in value if isinstance(value, list) else [value]:
                yield from _complex(name, element, each)


def _primitives(name: str, element: Element, values: Any, beside: Any) -> Iterator[str]:
    """A primitive and what stands beside it under ``_name``; of a list, place by place."""
    if not isinstance(values, list) and not isinstance(beside, list):
        values, beside = [values], [beside]
    values, beside = values or [], beside or []
    for place in range(max(len(values), len(beside))):
        value = values[place] if place < len(values) else None
        more = (beside[place] if place < len(beside) else None) or {}
        if value is None and not more:
            continue
        if element.type == "xhtml":
            yield _narrative(value)
            continue
        said = "" if value is None else f" value={_quoted(_text(value))}"
        yield from _tag(name, said, more, "Element")


def _complex(name: str, element: Element, value: Any) -> Iterator[str]:
    if not isinstance(value, Mapping):
        raise NotInXmlError(f"{name} holds a value where FHIR R4 has elements")
    if element.type == "Resource":
        yield f"<{name}>"
        yield from _resource(value)
        yield f"</{name}>"
        return
    url = f" url={_quoted(str(value['url']))}" if element.type == "Extension" and "url" in value else ""
    kept = {key: each for key, each in value.items() if not (url and key == "url")}
    yield from _tag(name, url, kept, element.type)


def _tag(name: str, attributes: str, tree: Mapping[str, Any], type_name: str) -> Iterator[str]:
    """Inside a resource an ``id`` is an attribute."""
    identity = f" id={_quoted(str(tree['id']))}" if "id" in tree else ""
    inner = "".join(_children({key: each for key, each in tree.items() if key != "id"}, type_name))
    yield f"<{name}{identity}{attributes}>{inner}</{name}>" if inner else f"<{name}{identity}{attributes}/>"


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else decimals.dumps(value).decode()


def _quoted(text: str) -> str:
    if _NOT_IN_XML.search(text):
        raise NotInXmlError("A text holds a character that XML cannot hold")
    return quoteattr(text)


def _narrative(div: Any) -> str:
    """Narrative is XML already; what is not well formed would end the document around it, and JSON often lacks its namespace."""
    parser = expat.ParserCreate(namespace_separator=" ")
    names: list[str] = []
    parser.StartElementHandler = lambda name, _: names.append(name)
    try:
        parser.Parse(str(div).encode(), True)
    except (expat.ExpatError, UnicodeEncodeError) as error:
        raise NotInXmlError("A narrative is not well-formed XHTML") from error
    if names[0] == "div":
        return str(div).replace("<div", f'<div xmlns="{XHTML_NAMESPACE}"', 1)
    if names[0] != f"{XHTML_NAMESPACE} div":
        raise NotInXmlError("A narrative is not a div of XHTML")
    return str(div)
