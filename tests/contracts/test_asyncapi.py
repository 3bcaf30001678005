"""`schemas/asyncapi.yaml` says what the code does."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from hub.destinations.topics import AUDIT_TOPIC, wanted_topics
from hub.domain.ids import EventId, OdsCode
from hub.domain.message import ENCOUNTER_EVENT_TYPES, PATIENT_EVENT_TYPES, Position, Received
from hub.domain.rejection import RULINGS, Disposition, Rejection, Why
from hub.domain.transfer import EVENT_TYPE, GLASS_BROKEN, REOPENED
from hub.fhir import headers
from hub.journey.route import receipt_for
from hub.trusts import load_directory

SCHEMAS = Path(__file__).resolve().parents[2] / "schemas"
DOCUMENT: dict[str, Any] = yaml.safe_load((SCHEMAS / "asyncapi.yaml").read_text(encoding="utf-8"))
DIRECTORY = load_directory(SCHEMAS)
CHANNELS, MESSAGES = DOCUMENT["channels"], DOCUMENT["components"]["messages"]

_REF = {
    "type": "object",
    "required": ["$ref"],
    "additionalProperties": False,
    "properties": {"$ref": {"type": "string"}},
}
_KEYED = {"type": "object", "minProperties": 1}
# The parts of AsyncAPI 3.0 that this document uses; the whole was checked with AsyncAPI's own schema.
OUTLINE = {
    "type": "object",
    "required": ["asyncapi", "info", "channels", "operations", "components"],
    "properties": {
        "asyncapi": {"const": "3.0.0"},
        "info": {"type": "object", "required": ["title", "version"]},
        "channels": {
            **_KEYED,
            "additionalProperties": {
                "type": "object",
                "required": ["address", "messages", "bindings"],
                "properties": {
                    "parameters": {**_KEYED, "additionalProperties": _REF},
                    "messages": {**_KEYED, "additionalProperties": _REF},
                },
            },
        },
        "operations": {
            **_KEYED,
            "additionalProperties": {
                "type": "object",
                "required": ["action", "channel", "messages"],
                "properties": {
                    "action": {"enum": ["send", "receive"]},
                    "channel": _REF,
                    "messages": {"type": "array", "items": _REF, "minItems": 1},
                },
            },
        },
    },
}


def resolve(pointer: str) -> Any:
    assert pointer.startswith("#/"), f"{pointer} points out of the document"
    at: Any = DOCUMENT
    for step in pointer[2:].split("/"):
        at = at[step]
    return at


def references(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        return own + [found for value in node.values() for found in references(value)]
    return [found for value in node for found in references(value)] if isinstance(node, list) else []


def validator(schema_name: str) -> jsonschema.Draft7Validator:
    """One of the document's schemas, with the whole document behind its references."""
    return jsonschema.Draft7Validator({**DOCUMENT, "$ref": f"#/components/schemas/{schema_name}"})


def schema_name(reference: dict[str, str]) -> str:
    return reference["$ref"].rpartition("/")[2]


def enum(name: str) -> list[str]:
    return list(DOCUMENT["components"]["schemas"][name]["enum"])


def test_the_document_has_the_outline_of_asyncapi_3():
    jsonschema.Draft7Validator(OUTLINE).validate(DOCUMENT)


def test_every_reference_leads_somewhere():
    for pointer in references(DOCUMENT):
        assert resolve(pointer) is not None, pointer


def test_every_operation_uses_messages_of_its_own_channel():
    for name, operation in DOCUMENT["operations"].items():
        for message in operation["messages"]:
            assert message["$ref"].startswith(operation["channel"]["$ref"] + "/messages/"), name


def test_every_message_is_used_and_every_schema_is_a_schema():
    used = {
        message["$ref"].rpartition("/")[2]
        for channel in CHANNELS.values()
        for message in channel["messages"].values()
    }
    assert used == set(MESSAGES)
    for name, schema in DOCUMENT["components"]["schemas"].items():
        assert isinstance(schema, dict), name
        jsonschema.Draft7Validator.check_schema(schema)


def test_the_addresses_are_the_topics_of_a_trust():
    for profile in DIRECTORY:
        addresses = {
            name: channel["address"].replace("{ods}", profile.ods.lower())
            for name, channel in CHANNELS.items()
        }
        assert addresses == {
            "events": profile.events_topic,
            "inbox": profile.inbox_topic,
            "receipts": profile.receipts_topic,
            "audit": AUDIT_TOPIC,
        }


def test_a_channel_has_the_parameter_its_address_names():
    for name, channel in CHANNELS.items():
        assert ("{ods}" in channel["address"]) == ("ods" in channel.get("parameters", {})), name


def test_the_settings_of_a_topic_are_those_it_is_made_with():
    profile = next(iter(DIRECTORY))
    made = {
        topic.name: topic.config
        for topic in wanted_topics(DIRECTORY, partitions=6, replication=1, retention_days=14)
    }
    for channel in CHANNELS.values():
        config = made[channel["address"].replace("{ods}", profile.ods.lower())]
        said = channel["bindings"]["kafka"]["topicConfiguration"]
        assert said["cleanup.policy"] == [config["cleanup.policy"]]
        assert str(said["max.message.bytes"]) == config["max.message.bytes"]


def test_the_hub_reads_events_and_writes_the_rest():
    actions = {
        operation["channel"]["$ref"].rpartition("/")[2]: operation["action"]
        for operation in DOCUMENT["operations"].values()
    }
    assert actions == {"events": "receive", "inbox": "send", "receipts": "send", "audit": "send"}


@pytest.mark.parametrize(
    ("message", "names"),
    [
        ("event", headers.INWARD),
        ("news", headers.INBOX),
        ("receipt", headers.RECEIPT),
        ("auditEntry", headers.AUDIT),
        ("auditCheckpoint", headers.AUDIT),
    ],
)
def test_the_headers_are_those_of_the_code(message, names):
    assert set(resolve(MESSAGES[message]["headers"]["$ref"])["properties"]) == names


def test_the_content_type_is_the_one_the_hub_writes():
    assert DOCUMENT["defaultContentType"] == headers.CONTENT_TYPE_FHIR
    assert DOCUMENT["components"]["schemas"]["ContentType"]["const"] == headers.CONTENT_TYPE_FHIR
    types = {name: message["contentType"] for name, message in MESSAGES.items()}
    assert types.pop("auditCheckpoint") == headers.CHECKPOINT_TYPE
    assert set(types.values()) == {headers.CONTENT_TYPE_FHIR}


def test_reasons_and_dispositions_are_those_of_the_code():
    assert enum("Reason") == [why.value for why in Why]
    assert enum("Disposition") == [disposition.value for disposition in Disposition]


def test_event_types_are_those_of_the_code():
    assert sorted(enum("TransferEventType")) == sorted({*EVENT_TYPE.values(), REOPENED, GLASS_BROKEN})
    assert sorted(enum("PatientEventType")) == sorted(PATIENT_EVENT_TYPES)
    assert sorted(enum("EncounterEventType")) == sorted(ENCOUNTER_EVENT_TYPES)


@pytest.mark.parametrize(
    ("message", "example"),
    [
        pytest.param(message, example, id=f"{name}-{example['name']}")
        for name, message in MESSAGES.items()
        for example in message.get("examples", ())
    ],
)
def test_the_examples_are_what_they_are_examples_of(message, example):
    validator(schema_name(message["headers"])).validate(example["headers"])
    if "payload" in example:
        validator(schema_name(message["payload"])).validate(example["payload"])


@pytest.mark.parametrize("why", [None, *Why])
def test_a_receipt_the_hub_writes_is_one_the_document_describes(why):
    """The dispatcher adds the outbox number; everything else is the route's."""
    received = Received(
        event_id=EventId("01930000-0000-7000-8000-000000000001"),
        trust=OdsCode("RH8"),
        position=Position("epr.rh8.events", 0, 0),
        headers={"x-correlation-id": "2f1d6f3e-8f0a-4b57-8f6e-3f8f4f6d9b21"},
        key=None,
        raw=b"{}",
        received_at=datetime(2026, 1, 5, 9, 10, tzinfo=UTC),
    )
    disposition = Disposition.ACCEPTED if why is None else RULINGS[why].disposition

    receipt = receipt_for(received, "an-id", disposition, None if why is None else Rejection(why), DIRECTORY)

    validator("ReceiptHeaders").validate({**receipt.headers, headers.OUTBOX_SEQ: "1"})
    validator("FhirMessage").validate(yaml.safe_load(receipt.payload))
