"""What the structure check costs: `python -m tests.bench.structure_check`.

Prints µs per message for orjson.loads, `hub.fhir.structure.check` and fhir.resources' `model_validate`
on a made-up transfer message of 2 KB and four resources, and what building the validators costs.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import orjson
import psutil

# 999 numbers are the range that is never given to anybody; 9990000018 is invented.
MESSAGE: dict[str, Any] = {
    "resourceType": "Bundle",
    "id": "7c0ad2f6-3f5e-4f41-9a3c-0d6c9f3b2a10",
    "meta": {"lastUpdated": "2025-03-04T10:15:30.123+00:00"},
    "type": "message",
    "timestamp": "2025-03-04T10:15:30Z",
    "entry": [
        {
            "fullUrl": "urn:uuid:0b1c7e52-6a55-4d0c-8a63-6b8f2b9f5a01",
            "resource": {
                "resourceType": "MessageHeader",
                "id": "0b1c7e52-6a55-4d0c-8a63-6b8f2b9f5a01",
                "eventCoding": {"system": "https://example.org/events", "code": "transfer-request"},
                "destination": [{"name": "Receiving trust", "endpoint": "https://example.org/rbb"}],
                "source": {"name": "Sending trust", "endpoint": "https://example.org/raa"},
                "focus": [{"reference": "urn:uuid:0b1c7e52-6a55-4d0c-8a63-6b8f2b9f5a04"}],
            },
        },
        {
            "fullUrl": "urn:uuid:0b1c7e52-6a55-4d0c-8a63-6b8f2b9f5a02",
            "resource": {
                "resourceType": "Patient",
                "id": "0b1c7e52-6a55-4d0c-8a63-6b8f2b9f5a02",
                "identifier": [
                    {
                        "extension": [
                            {
                                "url": "https://fhir.hl7.org.uk/StructureDefinition/Extension-UKCore-NHSNumberVerificationStatus",
                                "valueCodeableConcept": {
                                    "coding": [
                                        {
                                            "system": "https://fhir.hl7.org.uk/CodeSystem/UKCore-NHSNumberVerificationStatus",
                                            "code": "01",
                                        }
                                    ]
                                },
                            }
                        ],
                        "system": "https://fhir.nhs.uk/Id/nhs-number",
                        "value": "9990000018",
                    }
                ],
                "active": True,
                "name": [{"use": "official", "family": "Specimen", "given": ["Alex", "Sam"]}],
                "gender": "female",
                "birthDate": "1950-02-28",
                "address": [{"use": "home", "line": ["1 Example Street"], "postalCode": "ZZ99 3WZ"}],
            },
        },
        {
            "fullUrl": "urn:uuid:0b1c7e52-6a55-4d0c-8a63-6b8f2b9f5a03",
            "resource": {
                "resourceType": "Encounter",
                "id": "0b1c7e52-6a55-4d0c-8a63-6b8f2b9f5a03",
                "status": "in-progress",
                "class": {
                    "system": "http://terminology.hl7.org/CodeSystem/v3-ActCode",
                    "code": "IMP",
                },
                "subject": {"reference": "urn:uuid:0b1c7e52-6a55-4d0c-8a63-6b8f2b9f5a02"},
                "period": {"start": "2025-03-01T08:00:00+00:00"},
            },
        },
        {
            "fullUrl": "urn:uuid:0b1c7e52-6a55-4d0c-8a63-6b8f2b9f5a04",
            "resource": {
                "resourceType": "ServiceRequest",
                "id": "0b1c7e52-6a55-4d0c-8a63-6b8f2b9f5a04",
                "status": "active",
                "intent": "order",
                "priority": "urgent",
                "code": {"coding": [{"system": "http://snomed.info/sct", "code": "19712007"}]},
                "subject": {"reference": "urn:uuid:0b1c7e52-6a55-4d0c-8a63-6b8f2b9f5a02"},
                "encounter": {"reference": "urn:uuid:0b1c7e52-6a55-4d0c-8a63-6b8f2b9f5a03"},
                "authoredOn": "2025-03-04T10:15:00+00:00",
            },
        },
    ],
}


def _micros(run: Callable[[], object], *, times: int, rounds: int = 7) -> float:
    """Median over rounds of the mean of `times` runs; the median keeps a busy machine out of it."""
    measured = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(times):
            run()
        measured.append((time.perf_counter() - start) / times * 1e6)
    return statistics.median(measured)


def main() -> None:
    process = psutil.Process()

    def megabytes() -> float:
        return float(process.memory_info().rss) / 1024 / 1024

    raw = orjson.dumps(MESSAGE)
    tree = orjson.loads(raw)

    before, start = megabytes(), time.perf_counter()
    from hub.fhir import structure

    imported, imported_at = megabytes(), time.perf_counter()
    found = structure.check(tree)
    built, built_at = megabytes(), time.perf_counter()
    assert found == (), found
    # The other types a transfer may carry: what a worker holds after its first hour.
    for name in ("Task", "Organization", "Location", "Practitioner", "Provenance", "AuditEvent"):
        structure.check({"resourceType": name})
    ten, ten_at = megabytes(), time.perf_counter()

    from fhir.resources.R4B.bundle import Bundle

    wrong = orjson.loads(raw)
    wrong["entry"][2]["resource"]["status"] = "nonsense"
    assert structure.check(wrong)
    Bundle.model_validate(tree)

    print(f"message                      {len(raw):9,d} bytes, {len(tree['entry'])} resources")
    print(f"orjson.loads                 {_micros(lambda: orjson.loads(raw), times=5000):9.1f} µs")
    print(f"check(), sound               {_micros(lambda: structure.check(tree), times=5000):9.1f} µs")
    print(f"check(), one wrong code      {_micros(lambda: structure.check(wrong), times=2000):9.1f} µs")
    print(f"Bundle.model_validate        {_micros(lambda: Bundle.model_validate(tree), times=200):9.1f} µs")
    print(
        f"import (with fhir.resources) {(imported_at - start) * 1000:9.0f} ms, RSS +{imported - before:.1f} MB"
    )
    print(
        f"first check: 5 validators    {(built_at - imported_at) * 1000:9.0f} ms, RSS +{built - imported:.1f} MB"
    )
    print(f"6 more validators            {(ten_at - built_at) * 1000:9.0f} ms, RSS +{ten - built:.1f} MB")


if __name__ == "__main__":
    main()
