"""`hub trust`: the folders of the trusts that have joined."""

import sys
from collections.abc import Iterable
from dataclasses import asdict
from typing import Annotated

import orjson
import typer
from rich.console import Console

from hub import wiring
from hub.commands.terminal import (
    AsJson,
    fail,
    group,
    settings_now,
    show,
)
from hub.domain.ids import parse_ods
from hub.domain.trust import TrustProfile
from hub.trusts import Finding, TrustsError, check_codes, check_trusts, load_retention

trust = group("The trusts that have joined: folders in `schemas/trusts/`.")


@trust.command("list")
def trust_list(as_json: AsJson = False) -> None:
    """The trusts that have joined."""
    try:
        found = wiring.directory(settings_now())
    except TrustsError as error:
        fail(str(error))
    rows = [
        {
            "ods": each.ods,
            "name": each.name + (" (illustration)" if each.illustration else ""),
            "sites": ", ".join(site.ods for site in each.sites),
            "dialect": each.dialect,
            "events_topic": each.events_topic,
        }
        for each in found
    ]
    show(rows, as_json, ("ods", "name", "sites", "dialect", "events_topic"), "No trust has joined.")


@trust.command("check")
def trust_check(
    ods: Annotated[str | None, typer.Argument(help="Only this trust's folder.")] = None,
    sign_off: Annotated[
        bool,
        typer.Option(
            "--sign-off", help="Write the expected files that are missing or differ. Read them, then commit."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object: findings and coverage.")] = False,
) -> None:
    """Prove the trusts' folders: profile, codes claimed once, maps, worked examples; and the hub's own clocks and retention. Say which codes the
    examples hold.

    Exit 1 and say what is wrong, where, and who can mend it.
    """
    from hub.onboarding import examples
    from hub.onboarding.coverage import coverage
    from hub.onboarding.telling import sum_up_coverage, tell_coverage

    settings = settings_now()
    schemas = settings.schemas_dir
    findings, shown, refused = _of_trust(check_trusts(schemas), ods), {}, 0
    try:
        if not findings:
            trusts = wiring.directory(settings)
            findings = _of_trust(check_codes(schemas, trusts), ods)
        if not findings:
            rules = wiring.journey(settings, trusts)
            load_retention(schemas, trusts)
    except TrustsError as error:
        # Somebody else's, perhaps: but nothing can be tried while it is so.
        findings = list(error.findings)
    if not findings:
        for each in [ods.upper()] if ods else [profile.ods for profile in trusts]:
            if each not in trusts:
                fail(f"No trust {each} has joined. `hub trust list` shows those that have.")
            for file, refusal in examples.sign_off(schemas, each, rules) if sign_off else ():
                said = f"written: {file}{f' - {refusal}' if refusal else ''}"
                print(said, file=sys.stderr if as_json else sys.stdout)
            findings += examples.check_examples(schemas, each, rules)
            explained = examples.explained(schemas, each, rules)
            refused += sum(explanation.outcome != examples.TAKEN for _, explanation in explained)
            shown[each] = coverage(explained, rules.books[each], each)
    if as_json:
        told = {
            "findings": [asdict(finding) for finding in findings],
            "trusts": {each: found.as_json() for each, found in shown.items()},
        }
        print(orjson.dumps(told, option=orjson.OPT_INDENT_2).decode())
    else:
        for finding in findings:
            print(finding)
        for each, found in shown.items() if not findings else ():
            if ods:
                Console(highlight=False).print(tell_coverage(each, found))
            else:
                print(sum_up_coverage(each, found))
    if findings:
        raise typer.Exit(1)
    if not as_json:
        for each, found in shown.items():
            if found.examples < examples.WANTED_MIN:
                print(
                    f"{each} has {found.examples or 'no'} worked examples, and what none shows was not tried. Wanted are {examples.WANTED_MIN} at "
                    "least: a request, its update and its cancellation, an answer, an admission, a discharge."
                )
        proved = sum(found.examples for found in shown.values())
        of = f", {refused} of them a refusal" if refused else ""
        print(
            f"{f'The folder of {ods.upper()}' if ods else 'Every folder'} is sound; {proved} worked examples give what was signed off{of}."
        )


def _of_trust(findings: Iterable[Finding], ods: str | None) -> list[Finding]:
    return [each for each in findings if ods is None or f"/{ods.upper()}/" in f"/{each.file}"]


@trust.command("new")
def trust_new(
    ods: Annotated[str, typer.Argument(help="The trust's ODS code.")],
    name: Annotated[str, typer.Option(help="The trust's full name.")] = "Name of the trust",
) -> None:
    """Begin a trust's folder: a profile to fill in, and a place for worked examples."""
    from hub.onboarding.new_trust import new_trust

    code = parse_ods(ods)
    if code is None:
        fail(f"{ods} is no ODS code: three to six letters and digits.")
    try:
        made = new_trust(settings_now().schemas_dir, code, name)
    except FileExistsError:
        fail(f"{code} has a folder already.")
    for file in made:
        print(f"made: {file}")
    print(f"Fill in the profile, add examples, then: hub trust check {code}")


@trust.command("repairs")
def trust_repairs(as_json: AsJson = False) -> None:
    """What the hub mends in messages before it judges them; a profile's `repairs_off` does without."""
    from hub.journey.repair import RULES

    rows = [{"rule": rule.value, "does": each.does, "because": each.because} for rule, each in RULES.items()]
    show(rows, as_json, ("rule", "does", "because"), "")


@trust.command("schema")
def trust_schema() -> None:
    """Print the JSON Schema of profile.yaml; schemas/trusts/profile.schema.json is this, for editors."""
    print(orjson.dumps(TrustProfile.model_json_schema(), option=orjson.OPT_INDENT_2).decode())
