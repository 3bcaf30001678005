"""What the hub's values are made with."""

from dataclasses import dataclass, field
from typing import TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def value(cls: type[T]) -> type[T]:
    """A dataclass with slots that is equal by its fields, hashable, and never changed.

    mypy holds everybody to that, as it does for ``frozen=True``, and Python does not: it would set each field by a
    function call, three to four times as long for the hundreds of fields that are set for every message.
    """
    return dataclass(slots=True, unsafe_hash=True)(cls)


@dataclass_transform(frozen_default=True, order_default=True, field_specifiers=(field,))
def ordered_value(cls: type[T]) -> type[T]:
    """The same, and sorts by its fields in their order."""
    return dataclass(slots=True, unsafe_hash=True, order=True)(cls)
