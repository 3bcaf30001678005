"""Part of step 4: which transfer a request or an answer means.

By the names that it gives; without any, the only one that there can be. More than one is a question for a human.
"""

import re
from collections.abc import Iterable

from hub.domain.ids import PersonId, TransferId
from hub.domain.message import Canonical, Kind
from hub.domain.rejection import Rejection, Why
from hub.domain.transfer import Party, Transfer
from hub.journey.known import Known
from hub.journey.stays import CLOCKS_DIFFER

ANOTHER_ADDRESSED = Rejection(
    Why.ADDRESS_DIFFERS, "Task", "The body names another transfer or another patient than the address."
)


def named_transfer(
    canonical: Canonical, known: Known, choice: TransferId | None = None
) -> Transfer | Rejection | None:
    """The transfer that the message names itself, surest way first: the hub's id, the request's identifier
    between these two trusts, the conversation. A trust that has no part in it gets the same answer as if it did not exist.

    ``choice`` is a human's answer to a question; it stands for a name in the message.
    """
    hub_id = choice or canonical.refs.hub_id
    found = _by_id(TransferId(hub_id), canonical, known) if hub_id is not None else _by_name(canonical, known)
    if choice is not None or not isinstance(found, Transfer):
        return found
    if not _is_addressed_to(canonical, found):
        return Rejection(Why.TRANSFER_UNKNOWN, "MessageHeader.destination.receiver")
    if hub_id is not None and _names_another(canonical, found, known):
        if canonical.about:
            return ANOTHER_ADDRESSED
        return ask((found, *_by_request(canonical, known).values()))
    return found


def _by_id(hub_id: TransferId, canonical: Canonical, known: Known) -> Transfer | Rejection:
    transfer = known.transfers.get(hub_id)
    if transfer is None or transfer.party(canonical.trust) is None:
        return Rejection(Why.TRANSFER_UNKNOWN, "identifier")
    return transfer


def _by_request(canonical: Canonical, known: Known) -> dict[TransferId, Transfer]:
    requests = canonical.refs.requests
    return _of_trust((t for each in requests for t in known.transfers_of_request(each)), canonical)


def _by_name(canonical: Canonical, known: Known) -> Transfer | Rejection | None:
    """By the request's identifier; by the conversation only if no other request is named, because one conversation can be about several."""
    refs = canonical.refs
    found = _by_request(canonical, known)
    if found or not refs.correlation_id:
        return _only(found)
    if canonical.kind in {Kind.REQUEST, Kind.ENCOUNTER, Kind.PATIENT}:
        return None
    meant = _only(_of_trust(known.transfers_of_correlation(refs.correlation_id), canonical))
    if isinstance(meant, Transfer):
        # A number of another system is the author's own, and says nothing of which request it is.
        systems = {each.system for each in meant.requests}
        is_another = any(each.system in systems for each in refs.requests)
        if is_another or not _can_be_called(meant, canonical, known):
            return None if refs.requests else Rejection(Why.TRANSFER_UNKNOWN, "ServiceRequest.identifier")
    return meant


def _is_addressed_to(canonical: Canonical, transfer: Transfer) -> bool:
    """Whether an answer that says to whom it goes can be about this transfer."""
    answered = canonical.receiver if canonical.kind is Kind.ANSWER else None
    return answered in {None, transfer.sender, transfer.receiver}


def _names_another(canonical: Canonical, transfer: Transfer, known: Known) -> bool:
    """Whether a message that has the hub's id of this transfer names the request of another one as well. Its sender may give a
    request a new number; whoever answers it may not.
    """
    refs = canonical.refs
    if set(refs.requests) & set(transfer.requests):
        return False
    if _by_request(canonical, known):
        return True
    if canonical.kind is not Kind.ANSWER:
        return False
    same_system = {each.system for each in refs.requests} & {each.system for each in transfer.requests}
    called = _calls(refs.numbers, refs.addresses)
    return bool(same_system) or (
        not called & _names_of(transfer) and bool(called & _names_of_others(transfer, canonical, known))
    )


def _can_be_called(transfer: Transfer, canonical: Canonical, known: Known) -> bool:
    """Whether what an answer calls its request can be this transfer's. A number must be its number. What a URL ends in is often
    the key of a server of the sender's own and says nothing: unless it is another transfer's name, or looks like a number of the
    same series.
    """
    refs = canonical.refs
    names = _names_of(transfer)
    called = _calls(refs.numbers, refs.addresses)
    if called & names or not called:
        return True
    if refs.numbers or called & _names_of_others(transfer, canonical, known):
        return False
    series = {_series(each.value) for each in transfer.requests} - {""}
    return not any(_series(each) in series for each in called)


def _calls(*names: Iterable[str]) -> set[str]:
    return {each.casefold() for found in names for each in found}


def _names_of(transfer: Transfer) -> set[str]:
    return _calls([transfer.id], (each.value for each in transfer.requests))


def _names_of_others(transfer: Transfer, canonical: Canonical, known: Known) -> set[str]:
    """What the person's other transfers are called that the trust has a part in."""
    others = (
        t for t in known.transfers_of_person(transfer.person_id) if t.party(canonical.trust) is not None
    )
    return {name for each in others if each.id != transfer.id for name in _names_of(each)}


def _series(name: str) -> str:
    """TR-1 and TR-20 are numbers of one series; mere digits are of any."""
    return re.sub(r"\d+", "#", name.casefold()) if re.search("[a-zA-Z]", name) else ""


def _of_trust(transfers: Iterable[Transfer], canonical: Canonical) -> dict[TransferId, Transfer]:
    """Those in which the trust plays a part this kind of message needs."""
    needs = {Kind.REQUEST: Party.SENDER, Kind.UPDATE: Party.SENDER, Kind.CANCEL: Party.SENDER}.get(
        canonical.kind
    )
    return {
        t.id: t
        for t in transfers
        if (party := t.party(canonical.trust)) is not None and needs in {None, party}
    }


def _only(found: dict[TransferId, Transfer]) -> Transfer | Rejection | None:
    if len(found) > 1:
        return ask(found.values())
    return next(iter(found.values()), None)


def ask(transfers: Iterable[Transfer]) -> Rejection:
    return Rejection(
        Why.NEEDS_CONFIRMATION,
        "identifier",
        "More than one transfer could be meant.",
        tuple(sorted(each.id for each in transfers)),
    )


def only_open(canonical: Canonical, person_id: PersonId, known: Known) -> Transfer | Rejection:
    """Without a name: the one open transfer of this person in which the trust plays the part, and no guess.

    A message that names a request means that one and no other: an unrelated task of the same patient, or an answer that overtook its request.
    A Task about something else, a prescription, is about that.
    """
    if canonical.refs.requests:
        return Rejection(Why.TRANSFER_UNKNOWN, "ServiceRequest.identifier")
    if canonical.refs.other:
        return Rejection(
            Why.TRANSFER_UNKNOWN,
            "Task.focus",
            f"The Task is about a {canonical.refs.other} and names no transfer.",
        )
    found = _of_trust((t for t in known.transfers_of_person(person_id) if t.is_open), canonical)
    if canonical.kind is Kind.ANSWER:
        found = {k: t for k, t in found.items() if _can_be_answered(t, canonical, known)}
    elif canonical.receiver is not None:
        found = {k: t for k, t in found.items() if t.receiver == canonical.receiver}
    return _only(found) or Rejection(Why.TRANSFER_UNKNOWN, "ServiceRequest.identifier")


def _can_be_answered(transfer: Transfer, canonical: Canonical, known: Known) -> bool:
    """Whether an answer that does not name its request can be about this one: it goes to the other party, calls it by no other
    name, and was not said before the request was made.
    """
    was_asked = transfer.requested_at <= canonical.occurred_at + CLOCKS_DIFFER
    return was_asked and _is_addressed_to(canonical, transfer) and _can_be_called(transfer, canonical, known)


# ----------------------------------------------------------------------------------------------------------------------
# What is said on purpose: requests and answers
# ----------------------------------------------------------------------------------------------------------------------
