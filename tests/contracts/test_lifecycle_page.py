"""`hub/LIFECYCLE.md` is what the code says."""

from pathlib import Path

from hub.domain.transfer import State, Step
from hub.governance.lifecycle import page

PAGE = Path(__file__).resolve().parents[2] / "hub" / "LIFECYCLE.md"


def test_the_page_is_that_of_the_code():
    """If not: `hub transfers lifecycle > hub/LIFECYCLE.md`."""
    assert PAGE.read_text(encoding="utf-8") == "\n".join(page()) + "\n"


def test_every_state_and_every_step_is_on_it():
    text = PAGE.read_text(encoding="utf-8")
    assert all(state.value in text for state in State)
    assert all(step.value in text.lower() for step in Step)
