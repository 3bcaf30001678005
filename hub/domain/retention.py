"""How long the hub keeps what it keeps, and why (`schemas/retention.yaml`).

What a message held ages out; that it came, what it did and who saw it does not. The policy says when; what is never touched,
whatever it says, is `hub.store.retention`'s: an open transfer, a message in quarantine, a row that was not delivered.
"""

import hashlib
from collections.abc import Iterator, Mapping
from datetime import date, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Self

import orjson
from pydantic import BaseModel, ConfigDict, Field, model_validator

from hub.domain.ids import OdsCode


class Kind(StrEnum):
    """What can age out."""

    MESSAGE_OF_TRANSFER = "message-of-a-transfer"
    MESSAGE_ALONE = "message-of-no-transfer"
    CONTENT_OF_TRANSFER = "content-of-a-transfer"
    CONTENT_ALONE = "content-of-no-transfer"
    NEWS = "delivered-news"
    RECEIPT = "delivered-receipt"
    TOLD = "told-subscription-event"
    ATTEMPT = "delivery-attempt"
    ASSERTION = "used-assertion"


class Since(StrEnum):
    """What a period is counted from."""

    OVER = "the transfer is over"
    RECEIVED = "it was received"
    DELIVERED = "it was delivered"
    CHANGED = "the change that it tells"
    TRIED = "the attempt"
    EXPIRED = "it expired"


SINCE: Mapping[Kind, Since] = {
    Kind.MESSAGE_OF_TRANSFER: Since.OVER,
    Kind.MESSAGE_ALONE: Since.RECEIVED,
    Kind.CONTENT_OF_TRANSFER: Since.OVER,
    Kind.CONTENT_ALONE: Since.RECEIVED,
    Kind.NEWS: Since.OVER,
    Kind.RECEIPT: Since.DELIVERED,
    Kind.TOLD: Since.CHANGED,
    Kind.ATTEMPT: Since.TRIED,
    Kind.ASSERTION: Since.EXPIRED,
}

DAYS_MIN: Mapping[Kind, int] = {
    # A party reads for thirty days after the end (`hub.facade.access`); a stay waits fourteen for its request (`hub.store.load`).
    Kind.MESSAGE_OF_TRANSFER: 30,
    Kind.CONTENT_OF_TRANSFER: 30,
    Kind.NEWS: 30,
    Kind.MESSAGE_ALONE: 15,
    Kind.CONTENT_ALONE: 15,
    Kind.RECEIPT: 1,
    Kind.TOLD: 1,
    Kind.ATTEMPT: 1,
    Kind.ASSERTION: 0,
}
"""Shorter, and the hub could not keep its promises."""

Text = Annotated[str, Field(min_length=1)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Rule(_Part):
    """One kind of thing, and when it goes."""

    kind: Kind
    what: Text
    """In words, what is taken away, and what of it stays."""
    days: Annotated[int, Field(le=36_500)]
    after: Since
    why: Text
    decided_by: Text

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if self.after is not SINCE[self.kind]:
            raise ValueError(f"{self.kind} is counted from: {SINCE[self.kind]}")
        if self.days < DAYS_MIN[self.kind]:
            raise ValueError(f"{self.kind} must be kept for at least {DAYS_MIN[self.kind]} days")
        return self

    def before(self, now: datetime) -> datetime:
        """What is older than this goes."""
        return now - timedelta(days=self.days)


class Kept(_Part):
    """What never goes. ``tables`` are the hub's own."""

    what: Text
    tables: Annotated[tuple[str, ...], Field(min_length=1)]
    why: Text


class Hold(_Part):
    """An order not to destroy, for as long as it stands here: an inquiry, a claim, a complaint."""

    since: date
    because: Text
    """Without a person's name: this file is public."""
    transfers: tuple[str, ...] = ()
    trusts: tuple[OdsCode, ...] = ()

    @model_validator(mode="after")
    def _holds_something(self) -> Self:
        if not self.transfers and not self.trusts:
            raise ValueError("a hold names transfers or trusts")
        return self


class Policy(_Part):
    """The content of `schemas/retention.yaml`."""

    ages_out: tuple[Rule, ...]
    never: tuple[Kept, ...]
    holds: tuple[Hold, ...] = ()

    @model_validator(mode="after")
    def _each_kind_once(self) -> Self:
        kinds = [rule.kind for rule in self.ages_out]
        if sorted(kinds) != sorted(Kind):
            raise ValueError(f"each of these must be there once: {', '.join(Kind)}")
        return self

    def rule(self, kind: Kind) -> Rule:
        """When this kind goes."""
        return next(rule for rule in self.ages_out if rule.kind is kind)

    @property
    def held_transfers(self) -> frozenset[str]:
        return frozenset(_each(hold.transfers for hold in self.holds))

    @property
    def held_trusts(self) -> frozenset[str]:
        return frozenset(_each(hold.trusts for hold in self.holds))

    @property
    def digest(self) -> str:
        """SHA-256 of what it says, whatever its file looks like: for the audit."""
        said = orjson.dumps(self.model_dump(mode="json"), option=orjson.OPT_SORT_KEYS)
        return hashlib.sha256(said).hexdigest()


def _each(groups: Iterator[tuple[str, ...]]) -> Iterator[str]:
    for group in groups:
        yield from group
