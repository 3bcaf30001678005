"""Breaking the glass: the interaction."""

import uuid
from dataclasses import replace

from fastapi import Request, Response

from hub.domain.ids import time_ordered_id
from hub.facade.access import MAY_BREAK_THE_GLASS
from hub.facade.answers import fhir, parameters_of
from hub.facade.capability import Served
from hub.facade.errors import bad_request, forbidden, not_found
from hub.facade.searching import token_of_identifier
from hub.facade.service import Facade
from hub.facade.tokens import Caller
from hub.fhir.outgoing import instant
from hub.fhir.systems import NHS_NUMBER
from hub.fhir.tree import Tree
from hub.store import break_glass, search
from hub.store.break_glass import REASON_MIN, Grant


async def break_the_glass(
    facade: Facade, request: Request, caller: Caller, served: Served, body: bytes
) -> Response:
    """Parameters ``patient`` (an identifier) and ``reason`` for sixty minutes of a patient whose hospital this is not."""
    del request
    if caller.person is None or caller.role not in MAY_BREAK_THE_GLASS:
        await facade.denied(caller, served, "role")
        raise forbidden("Only a clinician who signed in may break the glass.")
    said = {str(each.get("name")): each for each in parameters_of(body)}
    reason = str(said.get("reason", {}).get("valueString", "")).strip()
    named = said.get("patient", {}).get("valueIdentifier")
    if len(reason) < REASON_MIN or "\x00" in reason:
        raise bad_request(
            f"Say why you must see this patient, in {REASON_MIN} characters or more: parameter reason, valueString.",
            "Parameters.parameter.where(name='reason')",
            "required",
        )
    token = token_of_identifier(named)
    if token is None:
        raise bad_request(
            "Name the patient: parameter patient, valueIdentifier with system and value.",
            "Parameters.parameter.where(name='patient')",
            "required",
        )
    persons = await search.persons(
        facade.engine, caller.trust, replace(token, system=token.system or NHS_NUMBER)
    )
    if not persons:
        await facade.denied(caller, served, "unknown")
        raise not_found()
    now = facade.now()
    asked = Grant(
        time_ordered_id(now, "break-glass", caller.client_id, uuid.uuid4().hex),
        caller.trust,
        caller.person.id,
        caller.person.role_id,
        persons[0],
        reason[:2000],
        now,
    )
    given = await break_glass.grant(facade.engine, asked, persons, "rest", facade.directory)
    granted: Tree = {
        "resourceType": "Parameters",
        "parameter": [
            {"name": "grant", "valueId": given.id},
            {"name": "until", "valueInstant": instant(given.expires_at)},
            *({"name": "patient", "valueReference": {"reference": f"Patient/{each}"}} for each in persons),
        ],
    }
    return fhir(granted)
