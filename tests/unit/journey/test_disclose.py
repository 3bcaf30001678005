"""Who gets what of a message: a table of author and reader."""

import itertools

import pytest

from hub.domain.transfer import Party
from hub.journey.disclose import resources_for

MESSAGE = ({"fullUrl": "urn:uuid:1", "resource": {"resourceType": "ServiceRequest"}},)
CROSSES = {(Party.SENDER, Party.RECEIVER), (Party.RECEIVER, Party.SENDER)}


@pytest.mark.parametrize(("author", "reader"), list(itertools.product(Party, Party)))
def test_only_the_two_ends_get_anything_and_only_of_each_other(author, reader):
    shown = resources_for(MESSAGE, author, reader, sensitive=False)
    assert shown == (MESSAGE if (author, reader) in CROSSES else ())


def entries(**resources):
    """Entries by the names that references have for them; `a_Type` is a resource of that type."""
    return tuple(
        {"fullUrl": f"urn:uuid:{name}", "resource": {"resourceType": kind, "id": name, **content}}
        for name, (kind, content) in resources.items()
    )


def to(name):
    return {"reference": f"urn:uuid:{name}"}


GP = {"gp": ("Practitioner", {}), "surgery": ("Organization", {"address": [{"text": "Hidden Lane"}]})}
ROLE = {"role": ("PractitionerRole", {"practitioner": to("gp"), "organization": to("surgery")})}


@pytest.mark.parametrize(
    ("general_practitioner", "more", "shown"),
    [
        (to("gp"), ROLE, set()),
        # By a version that its sender kept.
        ({"reference": "Practitioner/gp/_history/3"}, ROLE, set()),
        # The doctor asks for the transfer, so the receiver must know them and where they are.
        (to("gp"), ROLE | {"request": ("ServiceRequest", {"requester": to("role")})}, {"gp", "surgery", "role", "request"}),
        # The ward's doctor is the patient's own too; the role of a colleague has to do with neither.
        (
            to("gp"),
            {
                "request": ("ServiceRequest", {"requester": to("gp")}),
                "role": ("PractitionerRole", {"practitioner": to("gp"), "organization": to("trust")}),
                "trust": ("Organization", {}),
                "colleague": ("PractitionerRole", {"organization": to("trust")}),
            },
            {"gp", "surgery", "role", "trust", "colleague", "request"},
        ),
    ],
)  # fmt: skip
def test_a_restricted_patients_gp_is_not_found_by_a_role_that_nothing_leads_to(
    general_practitioner, more, shown
):
    """Many systems send a role beside the doctor, to say where they practise, and refer to the doctor only."""
    patient = {"p": ("Patient", {"generalPractitioner": [general_practitioner]})}
    said = entries(**patient, **GP, **more)
    found = resources_for(said, Party.SENDER, Party.RECEIVER, sensitive=True)
    assert {each["resource"]["id"] for each in found} == {"p"} | shown
