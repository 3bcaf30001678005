"""How long the structure check takes, beside reading the JSON and beside fhir.resources.

Run: python -m tests.bench.structure_check [R4|STU3]
Prints microseconds of processor time a message (best of five rounds), what the first check of a fresh process costs, and
memory; for both versions, each in a process of its own, if none is named.
"""

import importlib
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from timeit import repeat
from typing import Any

import orjson
import psutil

ROUNDS = 5


def bundle(version: str) -> bytes:
    """A message of 2 KB with four resources about a patient nobody is, in a version of FHIR."""
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
    message = {"resourceType": "Bundle", "type": "message", "timestamp": "2026-03-01T09:10:00Z"}
    if version == "STU3":
        header, _, request, encounter = resources
        header |= {"event": header.pop("eventCoding"), "timestamp": message.pop("timestamp")}
        request |= {"resourceType": "ReferralRequest", "serviceRequested": [request.pop("code")]}
        encounter["class"]["system"] = "http://hl7.org/fhir/v3/ActCode"
    entries = [{"fullUrl": f"urn:uuid:{one['id']}", "resource": one} for one in resources]
    return orjson.dumps(message | {"entry": entries})


def microseconds(run: Callable[[], object], calls: int) -> float:
    """The best of some rounds, for one call."""
    return min(repeat(run, timer=time.process_time, number=calls, repeat=ROUNDS)) / calls * 1e6


def rss_mb() -> float:
    return float(psutil.Process().memory_info().rss) / 1e6


def measure(version: str) -> None:
    raw = bundle(version)
    tree = orjson.loads(raw)
    types = ["Bundle", *(entry["resource"]["resourceType"] for entry in tree["entry"])]
    print(f"{version} message: {len(raw)} bytes, {len(tree['entry'])} resources")

    before = rss_mb()
    started = time.perf_counter()
    models = importlib.import_module(f"fhir.resources.{'R4B' if version == 'R4' else version}")
    bundle_model, *_ = [models.get_fhir_model_class(name) for name in types]
    print(f"import of the five models: {time.perf_counter() - started:.2f} s, +{rss_mb() - before:.0f} MB")

    before = rss_mb()
    started = time.perf_counter()
    from hub.fhir.elements import FhirVersion, resource_types
    from hub.fhir.structure import check

    written_in = FhirVersion(version)
    if check(tree, written_in):
        raise SystemExit("the message of this benchmark is not sound")
    print(f"first check() on top of that: {time.perf_counter() - started:.2f} s, +{rss_mb() - before:.0f} MB")

    loads = microseconds(lambda: orjson.loads(raw), 5_000)
    checked = microseconds(lambda: check(tree, written_in), 5_000)
    validated = microseconds(lambda: bundle_model.model_validate(tree), 200)
    print(f"orjson.loads          {loads:8.1f} µs")
    print(f"check()               {checked:8.1f} µs")
    print(f"Bundle.model_validate {validated:8.1f} µs")
    print(f"ratio model_validate / check: {validated / checked:.0f}")

    broken = orjson.loads(raw)
    broken["entry"][1]["resource"]["gender"] = "x"
    print(f"check(), one issue    {microseconds(lambda: check(broken, written_in), 2_000):8.1f} µs")

    before = rss_mb()
    started = time.perf_counter()
    names = resource_types(written_in)
    for name in names:
        check({"resourceType": name}, written_in)
    print(
        f"all {len(names)} types in use: {time.perf_counter() - started:.2f} s, +{rss_mb() - before:.0f} MB"
    )
    print(f"peak memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:.0f} MB")


def main() -> None:
    if sys.argv[1:]:
        measure(sys.argv[1])
        return
    for version in ("R4", "STU3"):
        subprocess.run([sys.executable, "-m", "tests.bench.structure_check", version], check=True)


if __name__ == "__main__":
    main()
