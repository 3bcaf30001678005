"""What FHIR R4 has in each place of a resource, as far as a repair or a parser of XML must know it.

Read from the JSON Schemas of `hub.fhir.structure`, so that what is mended is what is refused there.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

# The schemas are made there and nowhere else. Whoever gives them a public name changes these two lines.
from hub.fhir.structure import _PRIMITIVES, _schema


@dataclass(frozen=True, slots=True)
class Element:
    """One property of a FHIR type."""

    type: str
    """A primitive, a data type, a backbone (``EncounterLocation``), or ``Resource``."""
    repeats: bool
    required: bool
    """Whether the type cannot do without it, or without one of a choice that it belongs to."""
    codes: tuple[str, ...]
    """The only codes there are, if the binding is required."""
    aligned: bool
    """A list that null may stand in, because ``_name`` beside it fills the gap."""
    primitive: bool


@cache
def shape(resource_type: str, type_name: str) -> Mapping[str, Element]:
    """The properties of a type within reach of a resource type, ``_name`` siblings included.

    In: a type in `hub.fhir.structure.resource_types`, and the name of that type or of one an Element said.
    """
    schema = _schema(resource_type)["$defs"][type_name]
    required = frozenset(_required(schema))
    return {
        name: _element(of, name in required)
        for name, of in schema["properties"].items()
        if "const" not in of  # resourceType
    }


def _required(schema: Mapping[str, Any]) -> Iterator[str]:
    yield from schema.get("required", ())
    for rule in schema.get("allOf", ()):
        for alternative in rule.get("anyOf", ()):
            yield from alternative.get("required", ())


def _element(schema: Mapping[str, Any], required: bool) -> Element:
    repeats = schema.get("type") == "array"
    value = schema["items"] if repeats else schema
    aligned = "if" in value
    value = value["else"] if aligned else value
    codes = tuple(value.get("enum", ()))
    kind = "code" if codes else value.get("$ref", "Resource").rpartition("/")[2]
    return Element(kind, repeats, required, codes, aligned, kind in _PRIMITIVES)
