"""The life of a transfer: the tables are whole, and a story's end does not depend on how it was told."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.domain.ids import EventId, OdsCode, PersonId, TransferId
from hub.domain.transfer import (
    ENDED,
    EVENT_TYPE,
    HELD,
    STEP_OF_BARS_ENCOUNTER,
    STEP_OF_TASK,
    TASK_STATUS,
    TRANSITIONS,
    WHO_MAY,
    Fact,
    Party,
    State,
    Step,
    Transfer,
    advance,
    final_state,
    fold,
)

NINE = datetime(2026, 11, 23, 9, tzinfo=UTC)
SENDER, RECEIVER = OdsCode("RA9"), OdsCode("RH8")


def fact(name, step, minute=0, *, sequence=None, received=0):
    by = SENDER if WHO_MAY[step] is Party.SENDER else RECEIVER
    at = NINE + timedelta(minutes=minute)
    return Fact(EventId(name), step, by, at, NINE + timedelta(minutes=received), sequence)


facts = st.builds(
    fact,
    st.uuids().map(str),
    st.sampled_from(Step),
    st.integers(0, 4),
    sequence=st.none() | st.integers(0, 2),
    received=st.integers(0, 3),
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
    repeated = [
        Fact(EventId(f"{each.event_id}-{n}"), each.step, each.by, each.occurred_at, each.received_at)
        for n, each in enumerate(again)
    ]
    transfer = told((_STORY[0], *order, *repeated))

    assert transfer.state is State.COMPLETED
    assert transfer.version == 6 + len(again)


@given(stories)
def test_a_state_is_left_only_by_the_table(story):
    state = None
    for move in fold(story):
        assert move.before == state
        assert move.after == TRANSITIONS[state].get(move.fact.step)
        state = move.after or state
    assert final_state(fold(story)) == state


@given(stories)
def test_no_story_begins_without_a_request(story):
    opened = any(each.step is Step.REQUEST for each in story)

    assert (final_state(fold(story)) is not None) == opened


def test_the_request_opens_the_story_even_if_its_clock_is_ahead():
    moves = fold([fact("a", Step.ACCEPT, 0), fact("r", Step.REQUEST, 30)])

    assert [(m.before, m.after) for m in moves] == [
        (None, State.REQUESTED),
        (State.REQUESTED, State.ACCEPTED),
    ]


def test_the_senders_numbering_decides_between_equal_times():
    yes, no = fact("a", Step.ACCEPT, 1, sequence=2), fact("b", Step.REJECT, 1, sequence=1)

    assert final_state(fold([fact("r", Step.REQUEST), yes, no])) is State.ACCEPTED


@pytest.mark.parametrize("state", [None, *State])
def test_every_state_has_a_row_of_known_steps(state):
    row = TRANSITIONS[state]

    assert set(row) <= set(Step)
    assert set(row.values()) <= set(State)
    assert {step: advance(state, step) for step in Step} == {step: row.get(step) for step in Step}


@pytest.mark.parametrize("table", [WHO_MAY, EVENT_TYPE])
def test_tables_of_steps_are_whole(table):
    assert set(table) == set(Step)


def test_tables_of_states_are_whole():
    assert set(TASK_STATUS) == set(State)
    assert set(TRANSITIONS) == {None, *State}
    assert len(set(TASK_STATUS.values())) == len(State)


def test_event_types_are_one_a_step():
    assert len(set(EVENT_TYPE.values())) == len(Step)


def test_every_state_can_be_reached():
    reached, waiting = set(), [None]
    while waiting:
        for after in TRANSITIONS[waiting.pop()].values():
            if after not in reached:
                reached.add(after)
                waiting.append(after)
    assert reached == set(State)


@pytest.mark.parametrize("state", sorted(ENDED))
def test_nothing_leads_out_of_an_end(state):
    assert set(TRANSITIONS[state].values()) == {state}


def test_only_ends_have_no_way_out():
    assert {state for state in State if set(TRANSITIONS[state].values()) == {state}} == ENDED


@pytest.mark.parametrize("state", sorted(HELD | {State.IN_TRANSIT}))
def test_a_transfer_that_is_under_way_can_be_completed(state):
    assert advance(state, Step.ADMIT) is State.COMPLETED


def test_steps_of_tasks_are_the_partys_own():
    for party, table in STEP_OF_TASK.items():
        assert {WHO_MAY[step] for step in table.values()} == {party}
    assert {WHO_MAY[step] for step in STEP_OF_BARS_ENCOUNTER.values()} == {Party.RECEIVER}


@pytest.mark.parametrize("step", [Step.CANCEL, Step.REJECT])
@pytest.mark.parametrize("state", [State.IN_TRANSIT, State.COMPLETED])
def test_a_patient_who_has_left_cannot_be_refused_or_withdrawn(state, step):
    assert advance(state, step) is None


def test_parties():
    transfer = told(_STORY[:1])

    assert (transfer.party(SENDER), transfer.party(RECEIVER), transfer.party(OdsCode("RK9"))) == (
        Party.SENDER, Party.RECEIVER, None,
    )  # fmt: skip
    assert (transfer.other(SENDER), transfer.other(RECEIVER)) == (RECEIVER, SENDER)
