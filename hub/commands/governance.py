"""`hub governance`: the papers in `deploy/governance/` that are made from what the hub goes by."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
import yaml

from hub import wiring
from hub.commands.terminal import fail, group, settings_now
from hub.settings import REPOSITORY
from hub.trusts import TrustsError, load_retention

governance = group(
    "Papers for clinical safety and information governance, as pages (Markdown): `deploy/governance/`."
)
PAPERS = REPOSITORY / "deploy" / "governance"


def _source(name: str) -> Any:
    return typer.Option("--from", help=f"The file it is made from: {name}.", exists=True, dir_okay=False)


@governance.command("hazard-log")
def hazard_log(source: Annotated[Path, _source("hazard-log.yaml")] = PAPERS / "hazard-log.yaml") -> None:
    """What could hurt a patient, what stands against it, and which test proves that."""
    from hub.governance.hazards import HazardLog, page

    _print(page(HazardLog.model_validate(_yaml(source))))


@governance.command("dspt-evidence")
def dspt_evidence(
    source: Annotated[Path, _source("dspt-evidence.yaml")] = PAPERS / "dspt-evidence.yaml",
) -> None:
    """What of the hub supports which theme of the Data Security and Protection Toolkit."""
    from hub.governance.dspt import EvidenceMap, page

    _print(page(EvidenceMap.model_validate(_yaml(source))))


@governance.command("retention-schedule")
def retention_schedule() -> None:
    """How long what is kept, and why (`schemas/retention.yaml`)."""
    from hub.governance.retention_schedule import page

    settings = settings_now()
    try:
        _print(page(load_retention(settings.schemas_dir, wiring.directory(settings))))
    except TrustsError as error:
        fail(str(error))


@governance.command("data-flow")
def data_flow() -> None:
    """Which data goes where, drawn from `schemas/asyncapi.yaml` and `schemas/openapi/facade.json`."""
    from hub.governance.data_flow import page

    schemas = settings_now().schemas_dir
    rest = orjson.loads((schemas / "openapi" / "facade.json").read_bytes())
    _print(page(_yaml(schemas / "asyncapi.yaml"), rest))


def _yaml(file: Path) -> Any:
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        fail(f"{file.name} cannot be used ({type(error).__name__}).")


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        print(line)
