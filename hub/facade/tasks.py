"""Transfers as FHIR Tasks: how one is shown to a party, and which versions it had."""

from dataclasses import replace

from hub.domain.transfer import Step, Transfer, final_state, fold
from hub.facade.access import Reader, Sees, sees
from hub.fhir.outgoing import instant, request_reference, task_of
from hub.fhir.systems import NHS_NUMBER
from hub.fhir.tree import Tree


def shown(transfer: Transfer, nhs_number: str | None, *, clinical: bool) -> Tree:
    """A transfer as one of its parties sees it. ``nhs_number`` is the patient's, where it is known; ``clinical`` whether the
    request and the patient can be read here too.
    """
    moved = [move for move in fold(transfer.facts) if move.after is not None]
    last = moved[-1].fact if moved else None
    changed_at = transfer.changed_at or transfer.requested_at
    task = task_of(transfer, request_reference(transfer), last.occurred_at if last else changed_at)
    task["id"] = transfer.id
    task["meta"]["lastUpdated"] = instant(changed_at)
    task["identifier"] += [{"system": each.system, "value": each.value} for each in transfer.requests]
    task["for"] = {"type": "Patient"}
    if nhs_number:
        task["for"]["identifier"] = {"system": NHS_NUMBER, "value": nhs_number}
    if clinical:
        task["for"]["reference"] = f"Patient/{transfer.person_id}"
        if is_requested(transfer):
            task["focus"]["reference"] = f"ServiceRequest/{transfer.id}"
    if task["for"].keys() == {"type"}:
        del task["for"]
    if transfer.priority in {"routine", "urgent", "asap", "stat"}:
        task["priority"] = transfer.priority
    if last is not None and last.because:
        task["note"] = [{"time": instant(last.occurred_at), "text": last.because}]
    return task


def versions(transfer: Transfer, reader: Reader) -> list[Transfer]:
    """The transfer as it stood after each fact that it learned, oldest first, as far as the reader may see it as it was then."""
    found = []
    for number, fact in enumerate(transfer.facts, 1):
        facts = transfer.facts[:number]
        state = final_state(fold(facts)) or transfer.state
        # The last change can have come of a message that had waited: then it is later than that.
        changed_at = fact.received_at if number < len(transfer.facts) else transfer.changed_at
        then = replace(transfer, facts=facts, state=state, version=number, changed_at=changed_at)
        if sees(then, reader, fact.received_at) is not Sees.NOTHING:
            found.append(then)
    return found


def is_requested(transfer: Transfer) -> bool:
    """Whether somebody has written a request; a transfer that was inferred has none."""
    return any(fact.step in {Step.REQUEST, Step.DRAFT} for fact in transfer.facts)
