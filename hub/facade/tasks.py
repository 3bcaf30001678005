"""Transfers as FHIR Tasks: how one is shown to a party, which versions it had, and who may see how much."""

from dataclasses import replace
from datetime import datetime, timedelta

from hub.domain.ids import OdsCode
from hub.domain.transfer import ENDED, Party, State, Step, Transfer, final_state, fold
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


def versions(transfer: Transfer, trust: OdsCode) -> list[Transfer]:
    """The transfer as it stood after each fact that it learned, oldest first, as far as ``trust`` was a party then."""
    found = []
    for number, fact in enumerate(transfer.facts, 1):
        facts = transfer.facts[:number]
        state = final_state(fold(facts)) or transfer.state
        then = replace(transfer, facts=facts, state=state, version=number, changed_at=fact.received_at)
        if then.party(trust) is not None:
            found.append(then)
    return found


def may_see(transfer: Transfer, trust: OdsCode) -> bool:
    """Whether this trust is party to it. A third trust has no part in it, and is told that there is nothing."""
    return transfer.party(trust) in {Party.SENDER, Party.RECEIVER}


CLINICAL_FOR = timedelta(days=30)
"""How long after its end the receiver of a transfer that did not arrive may still read what it was sent (DOMAIN, 5.4)."""


def may_read_clinical(transfer: Transfer, trust: OdsCode, now: datetime) -> bool:
    """Whether this party may read the request and the patient, and not only how the transfer stands.

    The sender reads what it wrote. The receiver reads it once it was asked; after its refusal, and when the request was an
    error, only the state; of what ended otherwise without an arrival, for thirty days.
    """
    party = transfer.party(trust)
    if party is not Party.RECEIVER:
        return party is Party.SENDER
    if transfer.state in {State.REJECTED, State.ENTERED_IN_ERROR}:
        return False
    ended = transfer.state in ENDED and transfer.state is not State.COMPLETED
    return not ended or (transfer.changed_at or transfer.requested_at) > now - CLINICAL_FOR


def is_requested(transfer: Transfer) -> bool:
    """Whether somebody has written a request; a transfer that was inferred has none."""
    return any(fact.step in {Step.REQUEST, Step.DRAFT} for fact in transfer.facts)
