"""The hazard log (`deploy/governance/hazard-log.yaml`): what could hurt a patient, what stands against it, and where that is proved.

After DCB0129: each hazard with its causes and effect, an initial and a residual risk, controls and who owns what is left. Each control
names where in the program it is and which test tries it; a test of the papers holds these names to what is there.
"""

from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Text = Annotated[str, Field(min_length=1)]
Texts = Annotated[tuple[Text, ...], Field(min_length=1)]


class Severity(StrEnum):
    MINOR = "minor"
    SIGNIFICANT = "significant"
    CONSIDERABLE = "considerable"
    MAJOR = "major"
    CATASTROPHIC = "catastrophic"


class Likelihood(StrEnum):
    VERY_LOW = "very low"
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    VERY_HIGH = "very high"


_RISK: Mapping[Likelihood, tuple[int, ...]] = {
    Likelihood.VERY_HIGH: (3, 4, 4, 5, 5),
    Likelihood.HIGH: (2, 3, 3, 4, 5),
    Likelihood.MEDIUM: (2, 2, 3, 3, 4),
    Likelihood.LOW: (1, 2, 2, 3, 4),
    Likelihood.VERY_LOW: (1, 1, 2, 2, 3),
}
"""The matrix that goes with DCB0129: a row for each likelihood, a column for each severity."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Risk(_Part):
    severity: Severity
    likelihood: Likelihood

    @property
    def rating(self) -> int:
        """From 1, acceptable, to 5, unacceptable; 3 and more must be shown to be as low as is reasonably practicable."""
        return _RISK[self.likelihood][list(Severity).index(self.severity)]

    def __str__(self) -> str:
        return f"{self.rating} ({self.severity}, {self.likelihood})"


class Residual(Risk):
    why: Text


class Control(_Part):
    """What stands against it. ``code``: a file, or module:function; ``tests``: pytest's names; ``commands``: what a person types."""

    control: Text
    code: Texts
    tests: Texts
    commands: tuple[Text, ...] = ()


class Hazard(_Part):
    id: Annotated[str, Field(pattern=r"^HUB-\d\d$")]
    hazard: Text
    causes: Texts
    effect: Text
    initial: Risk
    controls: Annotated[tuple[Control, ...], Field(min_length=1)]
    deployer: Texts
    """What the deploying organisation must do for the controls to hold (DCB0160)."""
    residual: Residual
    owner: Text

    @model_validator(mode="after")
    def _is_no_worse(self) -> Self:
        if self.residual.rating > self.initial.rating:
            raise ValueError("controls have made it worse")
        return self


class HazardLog(_Part):
    status: Text
    hazards: Annotated[tuple[Hazard, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        ids = [each.id for each in self.hazards]
        if ids != sorted(set(ids)):
            raise ValueError("ids must be in order, each once")
        return self


def page(log: HazardLog) -> Iterator[str]:
    """The lines of `deploy/governance/hazard-log.md`."""
    yield "# Hazard log"
    yield ""
    yield "Made by `hub governance hazard-log` from `hazard-log.yaml`; a test holds it to that file, and each control to the code and to the tests it names."
    yield log.status.strip()
    yield ""
    yield "A risk is its rating from 1 to 5 in the matrix that goes with DCB0129, with severity and likelihood."
    yield ""
    yield "| | hazard | before | after | owner |"
    yield "|---|---|---|---|---|"
    for each in log.hazards:
        yield f"| [{each.id}](#{each.id.lower()}) | {each.hazard} | {each.initial} | {each.residual} | {each.owner} |"
    for each in log.hazards:
        yield ""
        yield from _hazard(each)


def _hazard(each: Hazard) -> Iterator[str]:
    yield f"## {each.id}"
    yield ""
    yield f"**{each.hazard}** {each.effect}"
    yield ""
    yield "Causes:"
    yield ""
    yield from (f"* {cause}" for cause in each.causes)
    yield ""
    yield "| control | in the program | tried by |"
    yield "|---|---|---|"
    for control in each.controls:
        typed = "".join(f"; `{command}`" for command in control.commands)
        code = ", ".join(f"`{name}`" for name in control.code)
        tests = "<br>".join(f"`{name.removeprefix('tests/')}`" for name in control.tests)
        yield f"| {control.control} | {code}{typed} | {tests} |"
    yield ""
    yield "The deploying organisation must:"
    yield ""
    yield from (f"* {duty}" for duty in each.deployer)
    yield ""
    yield f"Risk before: {each.initial}. After: {each.residual}: {each.residual.why}"
