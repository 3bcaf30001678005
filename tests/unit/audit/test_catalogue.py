"""The catalogue is complete, and its file is what the code says."""

from pathlib import Path

import orjson
import pytest

from hub.audit.catalogue import CATALOGUE, NOTABLE, TRANSFER_CODE, TRANSFER_CODES, Action, Purpose
from hub.audit.entries import Code
from hub.codes.book import CodeFile, compile_book
from hub.domain.transfer import CORRECTED, EVENT_TYPE, REOPENED
from hub.fhir.audit_event import code_system
from hub.fhir.systems import HUB_AUDIT_EVENT

FILE = Path(__file__).resolve().parents[3] / "schemas" / "codesystems" / "transfer-audit-event.json"


def test_every_code_is_in_it_and_nothing_else():
    assert list(CATALOGUE) == list(Code)


def test_no_two_codes_are_shown_alike():
    assert len({meaning.display for meaning in CATALOGUE.values()}) == len(CATALOGUE)


@pytest.mark.parametrize("code", Code)
def test_a_meaning_is_a_few_words_and_a_sentence(code):
    meaning = CATALOGUE[code]
    assert 1 <= len(meaning.display.split()) <= 5
    assert meaning.definition.endswith(".")
    assert ". " not in meaning.definition
    assert meaning.definition[0].isupper()


@pytest.mark.parametrize(
    ("code", "action"),
    [
        (Code.MESSAGE_RECEIVED, Action.CREATE),
        (Code.MESSAGE_DUPLICATE, Action.READ),
        (Code.MESSAGE_REPAIRED, Action.UPDATE),
        (Code.MESSAGE_QUARANTINED, Action.UPDATE),
        (Code.TRANSFER_CREATED, Action.CREATE),
        (Code.TRANSFER_ACCEPTED, Action.UPDATE),
        (Code.DISCLOSURE_SENT, Action.READ),
        (Code.DELIVERY_RETRY, Action.EXECUTE),
        (Code.RECORD_READ, Action.READ),
        (Code.RECORD_SEARCHED, Action.EXECUTE),
        (Code.IDENTITY_MERGED, Action.UPDATE),
        (Code.TIMER_ESCALATED, Action.EXECUTE),
        (Code.GLASS_BROKEN, Action.READ),
        (Code.AUDIT_EXPORTED, Action.READ),
        (Code.CONFIG_CHANGED, Action.UPDATE),
        (Code.CLOCK_SKEW, Action.EXECUTE),
    ],
)
def test_the_actions_are_those_of_the_published_catalogue(code, action):
    assert CATALOGUE[code].action is action


def test_each_event_type_of_a_transfer_has_its_code():
    assert TRANSFER_CODE.keys() == {*EVENT_TYPE.values(), CORRECTED, REOPENED}
    assert set(TRANSFER_CODE.values()) < TRANSFER_CODES
    assert TRANSFER_CODES >= {code for code in Code if code.name.startswith(("TRANSFER_", "BED_"))}


def test_what_governance_asks_for_by_name_is_notable():
    assert {code for code in Code if CATALOGUE[code].purpose is Purpose.BREAK_THE_GLASS} < NOTABLE
    assert NOTABLE >= {
        Code.ACCESS_DENIED,
        Code.AUTHENTICATION_FAILED,
        Code.ORGANISATION_MISMATCH,
        Code.TRANSITION_DENIED,
    }
    # What every message writes would make an index of the few into one of all.
    assert not NOTABLE & {Code.MESSAGE_RECEIVED, Code.MESSAGE_ACCEPTED, Code.ROUTED, Code.DISCLOSURE_SENT}


def test_the_code_system_is_that_of_the_code():
    """If not: python -c "from hub.fhir.audit_event import code_system; print(code_system(), end='')" > the file."""
    assert FILE.read_text(encoding="utf-8") == code_system()


def test_the_code_system_is_one_that_the_code_book_takes():
    book = compile_book([CodeFile(FILE.name, FILE.read_bytes())], ())
    assert set(book.systems[HUB_AUDIT_EVENT]) == {code.value for code in Code}
    assert orjson.loads(FILE.read_bytes())["content"] == "complete"
