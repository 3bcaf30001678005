"""The trusts that have joined and the places they run, as their profiles say."""

from collections.abc import Mapping, Sequence

from fastapi import Request, Response

from hub.domain.ids import OdsCode
from hub.domain.trust import TrustProfile
from hub.facade import searching
from hub.facade.answers import asked_with, fhir, searchset
from hub.facade.capability import Served
from hub.facade.errors import not_found
from hub.facade.service import Facade
from hub.facade.tokens import Caller
from hub.fhir.systems import ODS_ORGANISATION, ODS_SITE
from hub.fhir.tree import Tree


async def search_organization(
    facade: Facade, request: Request, caller: Caller, served: Served, body: bytes
) -> Response:
    del caller
    said, ignored = _asked(request, body, served)
    found = _named(said, _organisations(facade))
    return fhir(searching.with_ignored(searchset(found, facade.base, total=len(found)), ignored))


async def read_organization(
    facade: Facade, request: Request, caller: Caller, served: Served, body: bytes
) -> Response:
    del body, caller, served
    return _only(request, _organisations(facade))


async def search_location(
    facade: Facade, request: Request, caller: Caller, served: Served, body: bytes
) -> Response:
    del caller
    said, ignored = _asked(request, body, served)
    found = _named(said, _sites(facade))
    if organisation := said.get("organization"):
        owners = {f"Organization/{each.rpartition('/')[2].upper()}" for each in organisation.split(",")}
        found = [each for each in found if each["managingOrganization"]["reference"] in owners]
    return fhir(searching.with_ignored(searchset(found, facade.base, total=len(found)), ignored))


async def read_location(
    facade: Facade, request: Request, caller: Caller, served: Served, body: bytes
) -> Response:
    del body, caller, served
    return _only(request, _sites(facade))


def _asked(request: Request, body: bytes, served: Served) -> tuple[Mapping[str, str], Sequence[str]]:
    given = asked_with(request, body)
    return searching.plainly(served.resource, given.parameters, strict=given.strict)


def _named(said: Mapping[str, str], found: Sequence[Tree]) -> list[Tree]:
    """Those that are asked for by code (`identifier`) and by how the name begins (`name`)."""
    wanted, name = said.get("identifier"), said.get("name", "").lower()
    codes = {each.rpartition("|")[2].upper() for each in wanted.split(",")} if wanted else None
    return [
        each
        for each in found
        if (codes is None or each["id"] in codes) and each["name"].lower().startswith(name)
    ]


def _only(request: Request, found: Sequence[Tree]) -> Response:
    """The one that the address names. Raises FacadeError (404)."""
    for each in found:
        if each["id"] == request.path_params["id"]:
            return fhir(each)
    raise not_found()


def _organisations(facade: Facade) -> list[Tree]:
    return [_organisation(each) for each in facade.directory]


def _organisation(profile: TrustProfile) -> Tree:
    return {
        "resourceType": "Organization",
        "id": profile.ods,
        "identifier": [{"system": ODS_ORGANISATION, "value": OdsCode(profile.ods)}],
        "active": True,
        "name": profile.name,
    }


def _sites(facade: Facade) -> list[Tree]:
    return [
        {
            "resourceType": "Location",
            "id": site.ods,
            "identifier": [{"system": ODS_SITE, "value": site.ods}],
            "status": "active",
            "name": site.name,
            "mode": "instance",
            "managingOrganization": {"reference": f"Organization/{profile.ods}", "type": "Organization"},
        }
        for profile in facade.directory
        for site in profile.sites
    ]
