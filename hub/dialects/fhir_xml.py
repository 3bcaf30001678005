"""FHIR R4 or STU3 in XML → the tree that FHIR JSON would have (https://hl7.org/fhir/R4/xml.html and json.html).

Expat reads it, with everything refused that could make it read anything else: document types, entities, external
references. An element that FHIR does not have is kept under its name, for the repairs to set aside.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from xml.parsers import expat
from xml.sax.saxutils import escape, quoteattr

from hub.domain.rejection import Rejection, Why
from hub.fhir.decimals import decimal
from hub.fhir.elements import PRIMITIVE_SIBLING, Element, FhirVersion, elements, resource_types
from hub.fhir.tree import Tree

FHIR_NAMESPACE = "http://hl7.org/fhir"
XHTML_NAMESPACE = "http://www.w3.org/1999/xhtml"
_XML_NAMESPACE = "http://www.w3.org/XML/1998/namespace"
_BETWEEN = "\t"
"""Between namespace and name as expat gives them; neither can hold it."""
_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,17})")
_DECIMAL = re.compile(r"-?(0|[1-9][0-9]{0,17})(\.[0-9]{1,17})?([eE][+-]?[0-9]{1,3})?")
_UNKNOWN = Element("", "")


@dataclass(slots=True)
class _Node:
    """One XML element: its attributes, and its child elements in order."""

    name: str
    attributes: Mapping[str, str]
    children: list["_Node"] = field(default_factory=list)
    xhtml: str | None = None


class _Refused(Exception):  # noqa: N818 - it is an answer
    def __init__(self, why: Why, detail: str) -> None:
        self.why, self.detail = why, detail


def parse_xml(raw: bytes, depth_max: int, version: FhirVersion = FhirVersion.R4) -> Tree | Rejection:
    """The resource in ``raw``, in whatever encoding its XML declaration names; or why it cannot be read, and where."""
    reader = _Reader(depth_max)
    parser = reader.parser
    try:
        parser.Parse(raw, True)
    except _Refused as refused:
        return Rejection(refused.why, at=_place(parser), detail=refused.detail)
    except (expat.ExpatError, ValueError, LookupError):
        return Rejection(Why.NOT_XML, at=_place(parser))
    root = reader.root
    if root is None or root.name not in resource_types(version):
        return Rejection(Why.NOT_FHIR if root is None else Why.RESOURCE_TYPE_UNKNOWN, at="line 1")
    return _resource(root, version)


def _place(parser: Any) -> str:
    return f"line {parser.ErrorLineNumber or parser.CurrentLineNumber}, column {parser.ErrorColumnNumber + 1}"


class _Reader:
    """Expat's events → nodes. Narrative is kept as the text it was."""

    def __init__(self, depth_max: int) -> None:
        self.root: _Node | None = None
        self._open: list[_Node] = []
        self._xhtml: list[str] = []
        self._xhtml_depth = 0
        self._depth_max = depth_max
        parser = expat.ParserCreate(namespace_separator=_BETWEEN)
        parser.buffer_text = True
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._text
        parser.StartDoctypeDeclHandler = self._refuse
        parser.EntityDeclHandler = self._refuse
        parser.UnparsedEntityDeclHandler = self._refuse
        parser.ExternalEntityRefHandler = self._refuse
        parser.SetParamEntityParsing(expat.XML_PARAM_ENTITY_PARSING_NEVER)
        self.parser = parser

    def _refuse(self, *_: Any) -> int:
        raise _Refused(Why.XML_UNSAFE, "Document types and entities are not read.")

    def _start(self, qualified: str, attributes: dict[str, str]) -> None:
        namespace, _, name = qualified.rpartition(_BETWEEN)
        if self._xhtml_depth or namespace == XHTML_NAMESPACE:
            # Narrative often says its language twice, as lang and as xml:lang.
            named = {_xhtml_attribute(key): value for key, value in attributes.items()}
            said = "".join(f" {key}={quoteattr(value)}" for key, value in named.items())
            declared = "" if self._xhtml_depth else f' xmlns="{XHTML_NAMESPACE}"'
            self._xhtml.append(f"<{name}{declared}{said}>")
            self._xhtml_depth += 1
            return
        if namespace != FHIR_NAMESPACE:
            raise _Refused(Why.NOT_FHIR, "An element is not in FHIR's namespace.")
        if len(self._open) >= self._depth_max:
            raise _Refused(Why.MESSAGE_TOO_DEEP, f"At most {self._depth_max} levels are read.")
        node = _Node(name, attributes)
        if self._open:
            self._open[-1].children.append(node)
        else:
            self.root = node
        self._open.append(node)

    def _end(self, qualified: str) -> None:
        if not self._xhtml_depth:
            self._open.pop()
            return
        name = qualified.rpartition(_BETWEEN)[2]
        if (
            self._xhtml[-1].startswith(f"<{name}")
            and self._xhtml[-1].endswith(">")
            and name in {"br", "hr", "img"}
        ):
            self._xhtml[-1] = self._xhtml[-1][:-1] + "/>"
        else:
            self._xhtml.append(f"</{name}>")
        self._xhtml_depth -= 1
        if not self._xhtml_depth and self._open:
            self._open[-1].children.append(_Node(name, {}, xhtml="".join(self._xhtml)))
            self._xhtml.clear()

    def _text(self, text: str) -> None:
        if self._xhtml_depth:
            self._xhtml.append(escape(text))
        elif text.strip():
            raise _Refused(Why.NOT_FHIR, "FHIR has its values in attributes; there is text between elements.")


def _xhtml_attribute(qualified: str) -> str:
    namespace, _, name = qualified.rpartition(_BETWEEN)
    return f"xml:{name}" if namespace == _XML_NAMESPACE else name


def _resource(node: _Node, version: FhirVersion) -> Tree:
    """A resource's element, whose name is its type. One of a type that FHIR does not have keeps only that name."""
    tree: Tree = {"resourceType": node.name}
    if node.name in resource_types(version):
        _fill(tree, node, node.name, version)
    return tree


def _fill(tree: Tree, node: _Node, type_name: str, version: FhirVersion) -> None:
    """Put a node's attributes and children under their JSON names. ``type_name`` is "" for what FHIR does not have."""
    known = elements(version, type_name) if type_name else {}
    for name, text in node.attributes.items():
        if _BETWEEN not in name:  # xsi:schemaLocation and its like say nothing of the patient
            tree[name] = text
    by_name: dict[str, list[_Node]] = {}
    for child in node.children:
        by_name.setdefault(child.name, []).append(child)
    for name, same in by_name.items():
        element = known.get(name, _UNKNOWN)
        if element.primitive:
            _primitive(tree, name, same, element, version)
            continue
        values = [_value(child, element, version) for child in same]
        # Where FHIR has one and several came, the list stays one: the structure check says so.
        tree[name] = values if element.repeats or len(values) > 1 else values[0]


def _primitive(tree: Tree, name: str, nodes: list[_Node], element: Element, version: FhirVersion) -> None:
    values = [
        _value(node, _UNKNOWN, version) if _is_complex(node) else _typed(node, element) for node in nodes
    ]
    beside = [_beside(node, version) for node in nodes]
    if not element.repeats and len(nodes) == 1:
        if values[0] is not None:
            tree[name] = values[0]
        if beside[0] is not None:
            tree[f"_{name}"] = beside[0]
        return
    if any(value is not None for value in values):
        tree[name] = values
    if any(each is not None for each in beside):
        tree[f"_{name}"] = beside


def _typed(node: _Node, element: Element) -> Any:
    """The value as JSON has it. Text that is not of its type stays text, for the structure check to name."""
    if node.xhtml is not None:
        return node.xhtml
    text = node.attributes.get("value")
    if text is None:
        return None
    if element.type == "boolean" and text in {"true", "false"}:
        return text == "true"
    if element.type in {"integer", "positiveInt", "unsignedInt"} and _INTEGER.fullmatch(text):
        return int(text)
    if element.type == "decimal" and _DECIMAL.fullmatch(text):
        return decimal(text) if any(mark in text for mark in ".eE") else int(text)
    return text


def _is_complex(node: _Node) -> bool:
    """Whether elements stand where FHIR has a value: a Coding in place of a code, say."""
    return "value" not in node.attributes and any(child.name != "extension" for child in node.children)


def _beside(node: _Node, version: FhirVersion) -> Tree | None:
    """``_name``: a primitive's id and extensions, and what FHIR does not have there."""
    if _is_complex(node) or not (node.children or node.attributes.keys() - {"value"}):
        return None
    found: Tree = {}
    others = {name: text for name, text in node.attributes.items() if name != "value"}
    _fill(found, _Node(node.name, others, node.children), PRIMITIVE_SIBLING, version)
    return found or None


def _value(node: _Node, element: Element, version: FhirVersion) -> Any:
    if node.xhtml is not None:
        return node.xhtml
    if element.type == "Resource":
        # FHIR has one here. Where several came, they stay together: the structure check says so.
        found = [_resource(child, version) for child in node.children]
        return found if len(found) > 1 else found[0] if found else {}
    if not element.type and not node.children and set(node.attributes) == {"value"}:
        return node.attributes["value"]
    tree: Tree = {}
    _fill(tree, node, element.type, version)
    return tree
