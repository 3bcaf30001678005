"""The example messages of schemas/examples: made by the simulated EPRs, valid FHIR, and understood as their README says."""

import re
from datetime import UTC, datetime
from pathlib import Path

import nhs_number
import orjson
import pytest
from fhir.resources.R4B import get_fhir_model_class

from hub.demo import examples
from hub.demo.epr import Epr, Message
from hub.demo.people import MARSHWIGGLE, PATIENTS_MAX, PEOPLE, patient_number
from hub.domain.ids import EventId
from hub.domain.message import Canonical, Received
from hub.domain.message import Position as KafkaPosition
from hub.domain.rejection import Rejection
from hub.fhir import headers
from hub.journey.normalise import Rules, normalise
from hub.journey.read import Limits, read
from hub.trusts import load_directory

SCHEMAS = Path(__file__).parents[2] / "schemas"
FOLDER = SCHEMAS / "examples"
DIRECTORY = load_directory(SCHEMAS)
FILES = examples.files(DIRECTORY)
GOOD = sorted(examples.good_examples(DIRECTORY))
BAD = sorted(examples.bad_examples(DIRECTORY))
AT = datetime(2026, 11, 23, 14, 0, tzinfo=UTC)


def what_the_readme_says():
    """File name → the words in backticks in its row: the topic, if the row has one, and what becomes of the message."""
    rows = [
        re.findall(r"`([^`]+)`", line)
        for line in (FOLDER / "README.md").read_text().splitlines()
        if line.startswith("| `")
    ]
    return {row[0]: row[1:] for row in rows}


def understand(body: bytes, topic: str):
    """The hub's first two steps, for a record on this topic."""
    received = Received(
        EventId("0"),
        DIRECTORY.trust_of_topic[topic],
        KafkaPosition(topic, 0, 0),
        {headers.REQUEST_ID: "1", headers.CONTENT_TYPE: headers.CONTENT_TYPE_FHIR},
        b"key",
        body,
        AT,
    )
    found = read(received, Limits(), DIRECTORY[received.trust])
    return found if isinstance(found, Rejection) else normalise(received, found, DIRECTORY, Rules())


@pytest.mark.parametrize("name", sorted(FILES))
def test_the_file_is_what_the_simulated_eprs_write(name):
    """If this fails on purpose: python -m hub.demo.examples schemas/examples."""
    assert FILES[name] == (FOLDER / name).read_bytes()


def test_the_folder_and_its_readme_name_the_same_files():
    in_folder = {path.name for path in FOLDER.iterdir()} - {"README.md"}

    assert set(FILES) == in_folder
    assert set(FILES) == set(what_the_readme_says())


@pytest.mark.parametrize("name", GOOD)
def test_a_good_example_is_a_valid_resource(name):
    assert_is_fhir((FOLDER / name).read_bytes())


@pytest.mark.parametrize("name", GOOD)
def test_a_good_example_is_understood_without_a_doubt(name):
    topic, kind = what_the_readme_says()[name]

    canonical = understand((FOLDER / name).read_bytes(), topic)

    assert isinstance(canonical, Canonical), canonical
    assert kind == canonical.kind
    assert canonical.flags == ()
    assert canonical.person.nhs_number.digits == MARSHWIGGLE.nhs_number


@pytest.mark.parametrize("name", BAD)
def test_a_bad_example_is_refused_for_the_reason_the_readme_gives(name):
    (reason,) = what_the_readme_says()[name]

    rejection = understand((FOLDER / name).read_bytes(), "epr.ra9.events")

    assert isinstance(rejection, Rejection), rejection
    assert reason == rejection.why


def every_kind_of_message() -> dict[str, Message]:
    """What the examples leave out: other forms, other ways to name a request, a person with no hospital number."""
    torbay = DIRECTORY["RA9"]
    sender, receiver = Epr(torbay), Epr(DIRECTORY["RH8"])
    stranger = type(MARSHWIGGLE)("Nobody", "Known", MARSHWIGGLE.birth_date, MARSHWIGGLE.nhs_number)
    ask = {"to": "RH8", "request_number": "1", "at": AT}
    messages = {
        "request, stranger": sender.asks_to_transfer(stranger, encounter_number="2", **ask),
        "update, on hold": sender.updates_request(MARSHWIGGLE, encounter_number="2", on_hold=True, **ask),
        "sent in error": sender.cancels_request(MARSHWIGGLE, in_error=True, **ask),
    }
    for status in ("received", "accepted", "rejected", "ready"):
        for named in (
            {"request_number": "1"},
            {"transfer_id": "3"},
            {"request_number": "1", "transfer_id": "3"},
        ):
            messages[f"{status} {sorted(named)}"] = receiver.answers(
                MARSHWIGGLE,
                status,
                requester=torbay,
                at=AT,
                reason="OTH" if status == "rejected" else None,
                **named,
            )
    for status in ("planned", "cancelled", "in-progress", "finished"):
        messages[f"bars {status}"] = receiver.answers_bars(
            MARSHWIGGLE, status, requester=torbay, request_number="1", at=AT
        )
    for form in ("collection", "message", "bare"):
        stay = {"encounter_number": "4", "at": AT, "form": form}
        messages[f"admits {form}"] = receiver.admits(MARSHWIGGLE, ward="A", **stay)
        messages[f"moves {form}"] = receiver.moves(MARSHWIGGLE, from_ward="A", to_ward="B", **stay)
        messages[f"discharges {form}"] = receiver.discharges(MARSHWIGGLE, to_site="RA901", **stay)
        messages[f"goes home {form}"] = receiver.discharges(MARSHWIGGLE, disposition="19", **stay)
    return messages


@pytest.mark.parametrize("name", sorted(every_kind_of_message()))
def test_every_kind_of_message_is_a_valid_resource(name):
    message = every_kind_of_message()[name]

    assert_is_fhir(message.body)


def test_a_message_that_says_the_same_is_a_retry_and_any_other_is_new():
    once, again = every_kind_of_message(), every_kind_of_message()

    assert once == again
    assert len(once) == len({message.headers[headers.REQUEST_ID] for message in once.values()})


def test_an_answer_keeps_the_conversation_of_the_request():
    sender, receiver = Epr(DIRECTORY["RA9"]), Epr(DIRECTORY["RH8"])
    request = sender.asks_to_transfer(MARSHWIGGLE, to="RH8", request_number="1", encounter_number="2", at=AT)
    answer = receiver.answers(MARSHWIGGLE, "accepted", requester=DIRECTORY["RA9"], request_number="1", at=AT)

    assert request.headers[headers.CORRELATION_ID] == answer.headers[headers.CORRELATION_ID]
    assert (
        orjson.loads(request.body)["id"]
        == orjson.loads(answer.body)["entry"][0]["resource"]["response"]["identifier"]
    )


def test_a_time_without_an_offset_is_refused():
    with pytest.raises(ValueError, match="offset"):
        Epr(DIRECTORY["RA9"]).discharges(MARSHWIGGLE, encounter_number="2", at=AT.replace(tzinfo=None))


def test_an_answer_that_names_no_request_is_refused():
    with pytest.raises(ValueError, match="names the request"):
        Epr(DIRECTORY["RH8"]).answers(MARSHWIGGLE, "accepted", requester=DIRECTORY["RA9"], at=AT)


def test_nobody_has_an_nhs_number_that_could_be_issued():
    crowd = [*PEOPLE, *(patient_number(n) for n in (*range(2000), *range(PATIENTS_MAX - 2000, PATIENTS_MAX)))]
    numbers = {patient.nhs_number for patient in crowd}

    assert len(crowd) == len(numbers)
    assert all(number.startswith("999") and nhs_number.is_valid(number) for number in numbers)
    assert "9999999999" not in numbers


def test_a_hospital_number_means_one_person_at_one_trust_and_another_elsewhere():
    crowd = [*PEOPLE, *(patient_number(n) for n in range(2000))]
    at_torbay = {patient.local["RA9"]: patient for patient in crowd}
    at_exeter = {patient.local["RH8"]: patient for patient in crowd}
    shared = at_torbay.keys() & at_exeter.keys()

    assert len(crowd) == len(at_torbay)
    assert shared
    assert all(at_torbay[number] != at_exeter[number] for number in shared)


def assert_is_fhir(body: bytes):
    model = get_fhir_model_class(orjson.loads(body)["resourceType"])
    model.model_validate_json(body)
