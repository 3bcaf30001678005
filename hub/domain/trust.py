"""A trust as the hub knows it: data, never code."""

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema, model_validator

from hub.domain.ids import OdsCode
from hub.domain.roles import Role

Ods = Annotated[str, Field(pattern=r"^[A-Z0-9]{3,6}$")]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Site(_Part):
    """A place the trust runs. One building can be a site of two trusts under two codes."""

    ods: Ods
    name: str


class IdentifierSystems(_Part):
    """The systems (URIs) under which this trust issues its own numbers."""

    patient: str = Field(description="The hospital number, unique inside the trust only")
    encounter: str = Field(description="The visit or spell number")
    request: str = Field(description="The transfer request's number")


class Doors(_Part):
    """How the trust and the hub reach each other."""

    inward: Literal["kafka"] = "kafka"
    outward: Literal["kafka", "polled", "push"] = Field(
        default="kafka",
        description="kafka: its inbox topic. polled: it fetches over REST ($inbox, $ack). push: the hub posts to its address",
    )
    url: str | None = Field(
        default=None, description="push: where the hub posts messages. https, but for this machine itself"
    )

    @model_validator(mode="after")
    def _pushed_to_an_address(self) -> Self:
        if (self.outward == "push") != (self.url is not None):
            raise ValueError("doors.url belongs to outward: push, and push needs one")
        if self.url and not _SAFE_URL.fullmatch(self.url):
            raise ValueError("doors.url must be https")
        return self


class Issuer(_Part):
    """Somebody else's sign-in whose tokens count for this trust (OpenID Connect; its keys by RFC 7517)."""

    url: str = Field(description="What its tokens say as iss")
    jwks_url: str = Field(description="Where its public keys are. https, but for this machine itself")
    people: bool = Field(
        default=False,
        description="True: its tokens are people's, with NHS CIS2's claims. False: the trust's own systems'",
    )
    roles: Mapping[str, Role] = Field(
        default_factory=dict,
        description="National RBAC job role code → what it is here. A role that is not listed may do nothing",
    )

    @model_validator(mode="after")
    def _keys_over_tls(self) -> Self:
        if not _SAFE_URL.fullmatch(self.jwks_url):
            raise ValueError("issuers.jwks_url must be https")
        if Role.SYSTEM in self.roles.values() or bool(self.roles) != self.people:
            raise ValueError("issuers.roles belong to people: list each job role that may do something")
        return self


_SAFE_URL = re.compile(r"https://[^/@\s]+(/\S*)?|http://(127\.0\.0\.1|localhost)(:\d+)?(/\S*)?")


_HOST = r'[^\s/?#@:\[\]\\"<>A-Z]+(:[1-9][0-9]{0,4})?|[0-9a-f.]*:[0-9a-f.]*:[0-9a-f:.]*'
"""As `urlsplit` says it, in small letters and an IPv6 address without its brackets: another spelling would match no address."""


def _is_a_host(said: str) -> str:
    port = said.rpartition(":")[2] if said.count(":") == 1 else ""
    if not re.fullmatch(_HOST, said) or int(port or 0) > 65_535:
        raise ValueError(
            "must be host or host:port, as in bedboard.trust.example: in small letters, without https:// and without a path"
        )
    return said


Host = Annotated[
    str, AfterValidator(_is_a_host), WithJsonSchema({"type": "string", "pattern": f"^({_HOST})$"})
]


class TrustProfile(_Part):
    """One trust: the content of ``schemas/trusts/<ODS>/profile.yaml``."""

    ods: Ods
    name: str
    illustration: bool = Field(
        description="True: written to show how joining works; not supplied or endorsed by the trust"
    )
    nation: Literal["england", "wales"] = "england"
    time_zone: str = "Europe/London"
    epr: str = Field(description="The record system, as far as public sources say")
    dialect: Literal["fhir-r4-json"] = "fhir-r4-json"
    sites: tuple[Site, ...] = Field(min_length=1)
    predecessors: tuple[Ods, ...] = Field(
        default=(), description="ODS codes of trusts this one absorbed; old messages still carry them"
    )
    identifier_systems: IdentifierSystems
    repairs_off: frozenset[str] = Field(
        default=frozenset(), description="Ids of repairs that must not be done to this trust's messages"
    )
    identifier_namespaces: Mapping[str, Mapping[str, str]] = Field(
        default_factory=dict,
        description="Resource type → the type an identifier has ('*' for any) → the system it gets when it comes without one",
    )
    shares_record_with: tuple[Ods, ...] = Field(
        default=(),
        description="ODS codes of trusts on the same record system: their stays, told on this trust's topic, are echoes",
    )
    audit_opened_to: tuple[Ods, ...] = Field(
        default=(),
        description="ODS codes of trusts whose joint governance may read this trust's audit; counts only where each names the other",
    )
    doors: Doors = Doors()
    issuers: tuple[Issuer, ...] = Field(
        default=(), description="Whose tokens the REST facade takes besides its own, for this trust"
    )
    callback_hosts: tuple[Host, ...] = Field(
        default=(),
        description="host or host:port to which the trust's subscriptions may have the hub post; over https, but for this machine",
    )

    @property
    def events_topic(self) -> str:
        """Where the trust writes what happens to its patients."""
        return f"epr.{self.ods.lower()}.events"

    @property
    def inbox_topic(self) -> str:
        """Where the hub puts what the trust must know."""
        return f"hub.{self.ods.lower()}.inbox"

    @property
    def receipts_topic(self) -> str:
        """Where the hub says what became of each message the trust sent."""
        return f"hub.{self.ods.lower()}.receipts"


class Directory:
    """All trusts that have joined, found by any code that means them."""

    def __init__(self, profiles: Iterable[TrustProfile]) -> None:
        self._by_ods = {OdsCode(p.ods): p for p in sorted(profiles, key=lambda p: p.ods)}

    def __iter__(self) -> Iterator[TrustProfile]:
        return iter(self._by_ods.values())

    def __len__(self) -> int:
        return len(self._by_ods)

    def __getitem__(self, ods: str) -> TrustProfile:
        return self._by_ods[OdsCode(ods)]

    def __contains__(self, ods: object) -> bool:
        return ods in self._by_ods

    @cached_property
    def _trust_of_code(self) -> dict[str, OdsCode]:
        found: dict[str, OdsCode] = {}
        for ods, profile in self._by_ods.items():
            for code in (*(site.ods for site in profile.sites), *profile.predecessors, ods):
                found[code] = ods
        return found

    def trust_of(self, code: str) -> OdsCode | None:
        """The trust that an organisation, site or predecessor code belongs to.

        A site code that no profile lists belongs to the trust whose code it begins with (ODS gives
        sites their trust's code and two characters); the listed ones come first, because that rule
        does not survive mergers.
        """
        listed = self._trust_of_code.get(code)
        if listed is not None:
            return listed
        return self._trust_of_code.get(code[:3]) if len(code) == 5 else None

    def joint_with(self, ods: str) -> frozenset[OdsCode]:
        """The trusts whose audit a joint role at this trust may read: itself, and those that agreed as it agreed."""
        own = self._by_ods[OdsCode(ods)]
        agreed = (
            other
            for each in own.audit_opened_to
            if (other := OdsCode(each)) in self._by_ods and own.ods in self._by_ods[other].audit_opened_to
        )
        return frozenset({OdsCode(own.ods), *agreed})

    @cached_property
    def trust_of_topic(self) -> dict[str, OdsCode]:
        """Events topic → the trust that owns it."""
        return {p.events_topic: ods for ods, p in self._by_ods.items()}
