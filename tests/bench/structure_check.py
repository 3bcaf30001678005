"""How long the structure check takes, beside reading the JSON and beside fhir.resources.

Run: python -m tests.bench.structure_check
Prints microseconds a message (best of five rounds), what the first check of a fresh process costs, and memory.
"""

import resource
import time
from collections.abc import Callable
from timeit import repeat
from typing import Any

import orjson
import psutil

ROUNDS = 5


def bundle() -> bytes:
    """A message of 2 KB with four resources about a patient nobody is."""
    reference = {"reference": "urn:uuid:6b5a8f2e-1111-4222-8333-444455556666", "display": "Ada Okafor"}
    resources: list[dict[str, Any]] = [
        {
            "resourceType": "MessageHeader",
            "id": "6b5a8f2e-1111-4222-8333-444455550000",
            "eventCoding": {"system": "https://fhir.nhs.uk/CodeSystem/message-events-bars", "code": "new"},
            "source": {"name": "Northmoor EPR", "endpoint": "https://epr.example/ZZ1"},
            "focus": [{"reference": "urn:uuid:6b5a8f2e-1111-4222-8333-444455550002"}],
        },
        {
            "resourceType": "Patient",
            "id": "6b5a8f2e-1111-4222-8333-444455556666",
            "meta": {"lastUpdated": "2026-03-01T09:10:00.000Z"},
            "identifier": [{"system": "https://fhir.nhs.uk/Id/nhs-number", "value": "9990000018"}],
            "name": [{"use": "official", "family": "Okafor", "given": ["Ada"]}],
            "gender": "female",
            "birthDate": "1956-02-29",
            "address": [
                {"use": "home", "line": ["1 Mill Lane"], "city": "Northmoor", "postalCode": "ZZ99 3WZ"}
            ],
        },
        {
            "resourceType": "ServiceRequest",
            "id": "6b5a8f2e-1111-4222-8333-444455550002",
            "identifier": [{"system": "https://epr.example/ZZ1/transfers", "value": "T-1"}],
            "status": "active",
            "intent": "order",
            "priority": "urgent",
            "code": {
                "coding": [{"system": "http://snomed.info/sct", "code": "19712007", "display": "Transfer"}]
            },
            "subject": reference,
            "authoredOn": "2026-03-01T09:10:00Z",
            "note": [{"text": "Needs two nurses for the move and oxygen on the way."}],
        },
        {
            "resourceType": "Encounter",
            "id": "6b5a8f2e-1111-4222-8333-444455550003",
            "status": "in-progress",
            "class": {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "IMP"},
            "subject": reference,
            "period": {"start": "2026-03-01T08:00:00+00:00"},
            "location": [{"location": {"display": "Ward 7"}, "status": "active"}],
        },
    ]
    entries = [{"fullUrl": f"urn:uuid:{one['id']}", "resource": one} for one in resources]
    return orjson.dumps(
        {"resourceType": "Bundle", "type": "message", "timestamp": "2026-03-01T09:10:00Z", "entry": entries}
    )


def microseconds(run: Callable[[], object], calls: int) -> float:
    """The best of some rounds, for one call."""
    return min(repeat(run, number=calls, repeat=ROUNDS)) / calls * 1e6


def rss_mb() -> float:
    return float(psutil.Process().memory_info().rss) / 1e6


def main() -> None:
    raw = bundle()
    tree = orjson.loads(raw)
    print(f"message: {len(raw)} bytes, {len(tree['entry'])} resources")

    before = rss_mb()
    started = time.perf_counter()
    from fhir.resources.R4B.bundle import Bundle
    from fhir.resources.R4B.encounter import Encounter  # noqa: F401
    from fhir.resources.R4B.messageheader import MessageHeader  # noqa: F401
    from fhir.resources.R4B.patient import Patient  # noqa: F401
    from fhir.resources.R4B.servicerequest import ServiceRequest  # noqa: F401

    print(f"import of the five models: {time.perf_counter() - started:.2f} s, +{rss_mb() - before:.0f} MB")

    before = rss_mb()
    started = time.perf_counter()
    from hub.fhir.elements import resource_types
    from hub.fhir.structure import check

    if check(tree):
        raise SystemExit("the message of this benchmark is not sound")
    print(f"first check() on top of that: {time.perf_counter() - started:.2f} s, +{rss_mb() - before:.0f} MB")

    loads = microseconds(lambda: orjson.loads(raw), 5_000)
    checked = microseconds(lambda: check(tree), 5_000)
    validated = microseconds(lambda: Bundle.model_validate(tree), 200)
    print(f"orjson.loads          {loads:8.1f} µs")
    print(f"check()               {checked:8.1f} µs")
    print(f"Bundle.model_validate {validated:8.1f} µs")
    print(f"ratio model_validate / check: {validated / checked:.0f}")

    broken = orjson.loads(raw)
    broken["entry"][1]["resource"]["gender"] = "x"
    print(f"check(), one issue    {microseconds(lambda: check(broken), 2_000):8.1f} µs")

    before = rss_mb()
    started = time.perf_counter()
    for name in resource_types():
        check({"resourceType": name})
    print(
        f"all {len(resource_types())} types in use: {time.perf_counter() - started:.2f} s, +{rss_mb() - before:.0f} MB"
    )
    print(f"peak memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:.0f} MB")


if __name__ == "__main__":
    main()
