"""The life of a transfer: the tables are whole, and a story's end does not depend on how it was told."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.domain.ids import EventId, OdsCode, PersonId, TransferId
from hub.domain.transfer import (
    ENDED,
    EVENT_TYPE,
    HELD,
    HUB,
    LIFECYCLE,
    MOVING,
    PHYSICAL,
    REQUEST_STATUS,
    STEP_OF_BARS_ENCOUNTER,
    STEP_OF_TASK,
    TASK_STATUS,
    WHO_MAY,
    Fact,
    Party,
    State,
    Step,
    Transfer,
    advance,
    counting,
    final_state,
    fold,
)

NINE = datetime(2026, 11, 23, 9, tzinfo=UTC)
SENDER, RECEIVER = OdsCode("RA9"), OdsCode("RH8")


CODES = {Party.SENDER: SENDER, Party.RECEIVER: RECEIVER, Party.THIRD: OdsCode("RK9"), Party.HUB: HUB}


def fact(name, step, minute=0, *, sequence=None, received=0, party=None, retracts=(), encounter=None):
    party = party or min(WHO_MAY[step], key=list(Party).index)
    at = NINE + timedelta(minutes=minute)
    return Fact(
        EventId(name), step, CODES[party], party, at, NINE + timedelta(minutes=received), sequence,
        encounter=encounter, retracts=frozenset(retracts),
    )  # fmt: skip


facts = st.builds(
    fact,
    st.uuids().map(str),
    st.sampled_from(Step),
    st.integers(0, 4),
    sequence=st.none() | st.integers(0, 2),
    received=st.integers(0, 3),
    party=st.none() | st.sampled_from(Party),
    retracts=st.frozensets(st.sampled_from(sorted(PHYSICAL)), max_size=3),
)
stories = st.lists(facts, max_size=8, unique_by=lambda each: each.event_id)


@given(stories.flatmap(lambda story: st.tuples(st.just(story), st.permutations(story))))
def test_any_order_of_telling_ends_in_the_same_state(both):
    story, shuffled = both

    assert fold(shuffled) == fold(story)
    assert final_state(fold(shuffled)) == final_state(fold(story))


_STORY = (
    fact("1", Step.REQUEST, 0), fact("2", Step.RECEIVE, 1), fact("3", Step.ACCEPT, 2), fact("4", Step.ALLOCATE_BED, 3),
    fact("5", Step.DEPART, 4), fact("6", Step.ADMIT, 5),
)  # fmt: skip


def told(story):
    """A transfer that hears the facts one after the other, as the hub does."""
    transfer = Transfer(TransferId("t"), PersonId("p"), SENDER, RECEIVER, State.REQUESTED, 0, NINE, facts=())
    for each in story:
        transfer, _ = transfer.with_fact(each)
    return transfer


@given(st.permutations(_STORY[1:]), st.lists(st.sampled_from(_STORY[1:]), max_size=4))
def test_a_planned_transfer_ends_completed_however_and_how_often_it_is_told(order, again):
    repeated = [replace(each, event_id=EventId(f"{each.event_id}-{n}")) for n, each in enumerate(again)]
    transfer = told((_STORY[0], *order, *repeated))

    assert transfer.state is State.COMPLETED
    assert transfer.version == 6 + len(again)


@given(stories)
def test_a_state_is_left_only_by_the_table_or_because_something_was_taken_back(story):
    state = None
    for move in fold(story):
        assert move.before == state
        if move.fact.step is not Step.RETRACT:
            assert move.after == advance(state, move.fact.step, move.fact.party)
        state = move.after or state
    assert final_state(fold(story)) == state


@given(stories)
def test_what_is_taken_back_never_happened(story):
    """The end is the same as if neither the facts nor their taking back had been told."""
    taken_back = [each for each in story if each.step is Step.RETRACT]
    last = max(taken_back, key=lambda each: each.order, default=None)
    if last is None:
        return
    lasting = [each for each in counting(story) if each.step is not Step.RETRACT]
    end = final_state(fold(story))

    assert end in {final_state(fold(lasting)), State.ENTERED_IN_ERROR}


@given(stories)
def test_no_story_begins_without_a_request_or_something_that_happened(story):
    openers = {Step.REQUEST, Step.DRAFT, Step.DEPART, Step.ARRIVE, Step.ADMIT, Step.IDENTIFY}

    if final_state(fold(story)) is not None:
        assert any(each.step in openers for each in story)


def test_the_request_opens_the_story_even_if_its_clock_is_ahead():
    moves = fold([fact("a", Step.ACCEPT, 0), fact("r", Step.REQUEST, 30)])

    assert [(m.before, m.after) for m in moves] == [
        (None, State.REQUESTED),
        (State.REQUESTED, State.ACCEPTED),
    ]


def test_the_senders_numbering_decides_between_equal_times():
    yes, no = fact("a", Step.ACCEPT, 1, sequence=2), fact("b", Step.REJECT, 1, sequence=1)

    assert final_state(fold([fact("r", Step.REQUEST), yes, no])) is State.ACCEPTED


@pytest.mark.parametrize("table", [WHO_MAY, EVENT_TYPE])
def test_tables_of_steps_are_whole(table):
    assert set(table) == set(Step)


def test_tables_of_states_are_whole():
    assert set(TASK_STATUS) == set(REQUEST_STATUS) == set(State)


def test_states_that_look_alike_to_fhir_differ_in_the_hubs_own_word():
    """Task.status has fewer words than there are states; businessStatus tells them apart."""
    alike = [state for state in State if TASK_STATUS[state] == "cancelled"]

    assert set(alike) == {State.CANCELLED, State.REDIRECTED, State.EXPIRED}


def test_event_types_are_one_a_step():
    assert len(set(EVENT_TYPE.values())) == len(Step)


def goals(start):
    return {rule.moves[start] for rule in LIFECYCLE if start in rule.moves}


def test_every_state_can_be_reached():
    reached, waiting = set(), [None]
    while waiting:
        for after in goals(waiting.pop()) - reached:
            reached.add(after)
            waiting.append(after)
    assert reached == set(State)


@pytest.mark.parametrize("state", sorted(ENDED))
def test_only_the_patients_body_leads_out_of_an_end(state):
    left_by = {rule.step for rule in LIFECYCLE if rule.moves.get(state, state) is not state}

    assert left_by <= {Step.DEPART}
    assert bool(left_by) == (state not in {State.COMPLETED, State.FAILED})


def test_no_party_has_two_rules_for_one_step():
    pairs = [(rule.step, party) for rule in LIFECYCLE for party in rule.by]

    assert len(pairs) == len(set(pairs))


def test_the_hub_ends_nothing_but_what_a_person_has_closed():
    by_hub = {
        rule.step
        for rule in LIFECYCLE
        if Party.HUB in rule.by and any(to in ENDED and at not in ENDED for at, to in rule.moves.items())
    }

    assert by_hub == {Step.EXPIRE}


@pytest.mark.parametrize("state", [*HELD, *MOVING])
def test_a_transfer_that_is_under_way_can_be_completed(state):
    assert advance(state, Step.ADMIT, Party.RECEIVER) is State.COMPLETED


def test_steps_of_tasks_are_the_partys_own():
    for party, table in STEP_OF_TASK.items():
        assert all(party in WHO_MAY[step] for step in table.values())
    assert all(Party.RECEIVER in WHO_MAY[step] for step in STEP_OF_BARS_ENCOUNTER.values())


@pytest.mark.parametrize(("step", "party"), [(Step.CANCEL, Party.SENDER), (Step.REJECT, Party.RECEIVER)])
@pytest.mark.parametrize("state", [State.IN_TRANSIT, State.COMPLETED])
def test_a_patient_who_has_left_cannot_be_refused_or_withdrawn(state, step, party):
    assert advance(state, step, party) is None


def test_parties():
    transfer = told(_STORY[:1])

    assert (transfer.party(SENDER), transfer.party(RECEIVER), transfer.party(OdsCode("RK9"))) == (
        Party.SENDER, Party.RECEIVER, None,
    )  # fmt: skip
    assert (transfer.other(SENDER), transfer.other(RECEIVER)) == (RECEIVER, SENDER)


_UNHEARD = (Step.UPDATE, Step.CANCEL, Step.VOID, Step.DIE, Step.DIVERGE, Step.IDENTIFY, Step.ESCALATE, Step.EXPIRE, Step.RETURN)  # fmt: skip


@pytest.mark.parametrize("step", _UNHEARD)
def test_what_becomes_of_a_draft_is_not_the_receivers(step):
    transfer = told((fact("1", Step.DRAFT, 0), fact("2", step, 1)))

    assert not transfer.was_asked
    assert transfer.party(RECEIVER) is None
    assert transfer.party(SENDER) is Party.SENDER


@pytest.mark.parametrize("last", [Step.CANCEL, Step.VOID])
@pytest.mark.parametrize("asking", [Step.REQUEST, Step.DEPART])
def test_what_the_receiver_was_asked_stays_its_own(asking, last):
    """A departure that came late, too: the fold has the withdrawal before it, and the receiver has heard of it."""
    transfer = told((fact("1", Step.DRAFT, 0), fact("2", last, 1), fact("3", asking, 2)))

    assert transfer.was_asked
