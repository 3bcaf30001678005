"""The example messages of `schemas/examples`, made from the simulated EPRs so that they cannot go stale.

``python -m hub.demo.examples schemas/examples`` writes them again; the trusts are read from the folder above.
A bad example is a good one with one thing wrong, so that nothing else can be the reason for its refusal.
"""

import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from hub.demo.epr import Epr
from hub.demo.people import MARSHWIGGLE
from hub.domain.trust import Directory
from hub.fhir.systems import ODS_ORGANISATION
from hub.trusts import load_directory

_Json = dict[str, Any]

SENDER, RECEIVER, THIRD = "RA9", "RH8", "RK9"
UNKNOWN_TRUST = "ZZ9"
REQUEST_NUMBER = "TR-2026-0001"
SENDER_STAY, RECEIVER_STAY = "RA9-V-500101", "RH8-V-700202"


def _on_the_day(hour: int, minute: int) -> datetime:
    return datetime(2026, 11, 23, hour, minute, tzinfo=UTC)


ADMITTED_AT_SENDER = datetime(2026, 11, 21, 22, 5, tzinfo=UTC)


def good_examples(directory: Directory) -> dict[str, bytes]:
    """File name → compact message. One transfer from Torbay to Exeter, and the ways in which it could have gone else."""
    torbay = directory[SENDER]
    sender, receiver = Epr(torbay), Epr(directory[RECEIVER])
    return {
        "transfer-request-RA9-to-RH8.json": sender.asks_to_transfer(
            MARSHWIGGLE,
            to=RECEIVER,
            to_site="RH801",
            request_number=REQUEST_NUMBER,
            encounter_number=SENDER_STAY,
            at=_on_the_day(9, 10),
            admitted_at=ADMITTED_AT_SENDER,
            reason="Complete heart block; needs a permanent pacemaker",
        ).body,
        "transfer-update-RA9.json": sender.updates_request(
            MARSHWIGGLE,
            to=RECEIVER,
            to_site="RH801",
            request_number=REQUEST_NUMBER,
            encounter_number=SENDER_STAY,
            at=_on_the_day(9, 40),
            requested_at=_on_the_day(9, 10),
            admitted_at=ADMITTED_AT_SENDER,
            reason="Complete heart block with syncope; needs a permanent pacemaker",
            priority="asap",
        ).body,
        "transfer-cancel-RA9.json": sender.cancels_request(
            MARSHWIGGLE,
            to=RECEIVER,
            request_number=REQUEST_NUMBER,
            at=_on_the_day(9, 55),
            reason="Treated here; the transfer is no longer needed",
        ).body,
        "transfer-answer-accepted-RH8.json": receiver.answers(
            MARSHWIGGLE, "accepted", requester=torbay, request_number=REQUEST_NUMBER, at=_on_the_day(9, 25)
        ).body,
        "transfer-answer-rejected-RH8.json": receiver.answers(
            MARSHWIGGLE,
            "rejected",
            requester=torbay,
            request_number=REQUEST_NUMBER,
            at=_on_the_day(9, 25),
            reason="RRNA",
            reason_text="No monitored bed before tomorrow",
        ).body,
        "transfer-answer-ready-RH8.json": receiver.answers(
            MARSHWIGGLE,
            "ready",
            requester=torbay,
            request_number=REQUEST_NUMBER,
            at=_on_the_day(10, 5),
            bed="Taw Ward, bed 12",
        ).body,
        "transfer-answer-bars-accepted-RH8.json": receiver.answers_bars(
            MARSHWIGGLE, "planned", requester=torbay, request_number=REQUEST_NUMBER, at=_on_the_day(9, 25)
        ).body,
        "transfer-answer-bars-rejected-RH8.json": receiver.answers_bars(
            MARSHWIGGLE,
            "cancelled",
            requester=torbay,
            request_number=REQUEST_NUMBER,
            at=_on_the_day(9, 25),
            reason_text="No monitored bed before tomorrow",
        ).body,
        "discharged-to-RH8.json": sender.discharges(
            MARSHWIGGLE,
            encounter_number=SENDER_STAY,
            at=_on_the_day(10, 40),
            to_site="RH801",
            admitted_at=ADMITTED_AT_SENDER,
        ).body,
        "admitted-RH8.json": receiver.admits(
            MARSHWIGGLE, encounter_number=RECEIVER_STAY, ward="Taw Ward", at=_on_the_day(11, 30), site="RH801"
        ).body,
        "moved-RH8.json": receiver.moves(
            MARSHWIGGLE,
            encounter_number=RECEIVER_STAY,
            from_ward="Taw Ward",
            to_ward="Coronary Care Unit",
            at=_on_the_day(13, 15),
            admitted_at=_on_the_day(11, 30),
            site="RH801",
        ).body,
    }


def bad_examples(directory: Directory) -> dict[str, bytes]:
    """File name → a message that the hub refuses. All are meant for the sender's topic."""
    request = good_examples(directory)["transfer-request-RA9-to-RH8.json"]
    return {
        "not-json.txt": b"Please send a porter: the patient in bed 4 goes to Exeter.\n",
        "no-message-header.json": _spoilt(request, _drop_header),
        "wrong-sender.json": _spoilt(request, lambda bundle: _rename(bundle, SENDER, THIRD)),
        "no-patient-identifier.json": _spoilt(request, _drop_identifiers),
        "receiver-unknown.json": _spoilt(request, lambda bundle: _rename(bundle, RECEIVER, UNKNOWN_TRUST)),
    }


def _spoilt(message: bytes, spoil: Callable[[_Json], None]) -> bytes:
    bundle = orjson.loads(message)
    spoil(bundle)
    return orjson.dumps(bundle)


def _drop_header(bundle: _Json) -> None:
    del bundle["entry"][0]


def _drop_identifiers(bundle: _Json) -> None:
    for resource in _resources(bundle, "Patient"):
        del resource["identifier"]


def _rename(bundle: _Json, ods: str, other: str) -> None:
    """Give the organisation ``ods`` another code wherever the message is addressed."""
    header = bundle["entry"][0]["resource"]
    for end in (header["source"], *header["destination"]):
        if end["endpoint"].endswith(f"|{ods}"):
            end["endpoint"] = f"{ODS_ORGANISATION}|{other}"
    for organisation in _resources(bundle, "Organization"):
        for identifier in organisation["identifier"]:
            if identifier["value"] == ods:
                identifier["value"] = other


def _resources(bundle: _Json, resource_type: str) -> list[_Json]:
    return [each["resource"] for each in bundle["entry"] if each["resource"]["resourceType"] == resource_type]


def files(directory: Directory) -> Mapping[str, bytes]:
    """File name → content: JSON indented for a reader, anything else as it is."""
    messages = {**good_examples(directory), **bad_examples(directory)}
    return {name: _readable(body) if name.endswith(".json") else body for name, body in messages.items()}


def _readable(body: bytes) -> bytes:
    return orjson.dumps(orjson.loads(body), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def write(folder: Path) -> None:
    """Write all examples into ``folder``, which is inside the schemas folder."""
    for name, content in files(load_directory(folder.resolve().parent)).items():
        (folder / name).write_bytes(content)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
