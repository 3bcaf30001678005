"""`hub transfers lifecycle`: the table of `hub.domain.transfer` as a page, so that the picture cannot differ from the code."""

from collections.abc import Iterator

from hub.domain.transfer import ENDED, LIFECYCLE, REQUEST_STATUS, TASK_STATUS, Party, State, Step

_SELDOM = frozenset({Step.VOID, Step.EXPIRE, Step.DIE, Step.REDIRECT, Step.CANCEL})
"""Steps that lead to the same end from almost everywhere: in the table, not in the picture."""


def page() -> Iterator[str]:
    """The lines of `hub/LIFECYCLE.md`."""
    yield "# The life of a transfer"
    yield ""
    yield "Made by `hub transfers lifecycle` from the table in `domain/transfer.py`; a test holds it to the code."
    yield "The picture leaves out what leads to an end from almost everywhere (cancel, redirect, void, death, expiry): see the table."
    yield ""
    yield "```mermaid"
    yield "stateDiagram-v2"
    yield from _arrows()
    yield "```"
    yield ""
    yield "| state | Task.status | ServiceRequest.status |"
    yield "|---|---|---|"
    for state in State:
        over = ", over" if state in ENDED else ""
        yield f"| {state}{over} | {TASK_STATUS[state]} | {REQUEST_STATUS[state]} |"
    yield ""
    yield "| step | who may | from | to |"
    yield "|---|---|---|---|"
    yield from _rows()
    yield ""
    yield "A step that leads back to its own state is news without a move. *Retract* takes back what a stay had said: the state is"
    yield "then what it would have been without it."


def _arrows() -> Iterator[str]:
    drawn: dict[tuple[str, str], list[str]] = {}
    for rule in LIFECYCLE:
        for start, goal in rule.moves.items():
            if start is goal or (rule.step in _SELDOM and start is not State.ACCEPTED):
                continue
            ends = (_name(start) if start else "[*]", _name(goal))
            names = drawn.setdefault(ends, [])
            if rule.step.value not in names:
                names.append(rule.step.value)
    for (start_name, goal_name), steps in sorted(drawn.items()):
        yield f"    {start_name} --> {goal_name}: {', '.join(steps)}"


def _name(state: State) -> str:
    """Mermaid has no hyphens in names."""
    return state.value.replace("-", "_")


def _rows() -> Iterator[str]:
    for rule in LIFECYCLE:
        goals: dict[State, list[str]] = {}
        for start, goal in rule.moves.items():
            goals.setdefault(goal, []).append(start.value if start else "(new)")
        who = ", ".join(party.value for party in Party if party in rule.by)
        if all(start is goal for start, goal in rule.moves.items()):
            yield f"| {rule.step} | {who} | {', '.join(goal.value for goal in rule.moves.values())} | (stays) |"
            continue
        for goal, starts in goals.items():
            if starts == [goal.value]:
                continue
            yield f"| {rule.step} | {who} | {', '.join(each for each in starts if each != goal.value)} | {goal} |"
