"""Every "no" says what becomes of the message, who can mend it, and how."""

import re

import pytest

from hub.domain.rejection import RULINGS, Disposition, Owner, Rejection, Why


@pytest.mark.parametrize("why", Why)
def test_every_reason_has_a_ruling(why):
    ruling = Rejection(why).ruling

    assert ruling.disposition in Disposition
    assert ruling.disposition not in {Disposition.ACCEPTED, Disposition.DUPLICATE}
    assert ruling.owner in Owner
    assert re.fullmatch(r"[A-Z].{15,}[.]", ruling.advice)


def test_no_ruling_without_a_reason():
    assert set(RULINGS) == set(Why)


@pytest.mark.parametrize("why", Why)
def test_reason_codes_are_short_and_plain(why):
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", why.value)
    assert len(why.value) <= 40, "message.why holds 40 characters"


def test_only_one_reason_is_a_conflict():
    assert [why for why, r in RULINGS.items() if r.disposition is Disposition.CONFLICT] == [
        Why.MESSAGE_ID_REUSED
    ]


def test_what_the_hub_does_wrong_can_be_run_again():
    assert {RULINGS[why].disposition for why in (Why.HUB_FAULT, Why.PROCESS_KILLED)} == {
        Disposition.QUARANTINED
    }
