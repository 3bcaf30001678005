"""The trusts' folders, ``schemas/trusts/<ODS>/profile.yaml``: read, and judged.

A folder that is not clean is not used at all: a code that two trusts claim would send a patient's
record to the wrong hospital.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

import yaml
from pydantic import BaseModel, ValidationError

from hub.codes.book import CodeBook, CodeFile, CodeFileError, CodeProblem, compile_book, problems
from hub.domain.clocks import Clocks
from hub.domain.retention import Policy
from hub.domain.trust import Directory, TrustProfile
from hub.journey.repair import RULES

Mender = Literal["the trust", "the hub team", "the hub team with both trusts"]

PROFILE = "profile.yaml"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with a trust's folder.

    ``file`` is relative to the schemas folder; ``field`` is as in the file (``sites.2.ods``), empty
    where the whole file is meant.
    """

    file: str
    field: str
    problem: str
    mender: Mender

    def __str__(self) -> str:
        at = f", {self.field}" if self.field else ""
        return f"{self.file}{at}: {self.problem} ({self.mender} can mend it)"


class TrustsError(ValueError):
    """The trusts' folders cannot be used. ``findings`` says why, one by one."""

    def __init__(self, findings: Iterable[Finding]) -> None:
        self.findings = tuple(findings)
        super().__init__("\n".join(str(finding) for finding in self.findings))


def load_directory(schemas_dir: Path) -> Directory:
    """All trusts that have joined. Raises TrustsError if anything is wrong with any of them."""
    profiles, findings = _examine(schemas_dir)
    if findings:
        raise TrustsError(findings)
    return Directory(profile for profile, _ in profiles.values())


def load_clocks(schemas_dir: Path, directory: Directory) -> Clocks:
    """How long each part of a transfer may take (``clocks.yaml``). Raises TrustsError for a file that cannot be used."""
    file = "clocks.yaml"
    clocks = _of_the_hub(schemas_dir, file, Clocks)
    strangers = {each for route in clocks.routes for each in (route.sender, route.receiver)} - {
        p.ods for p in directory
    }
    if strangers:
        names = ", ".join(sorted(strangers))
        raise TrustsError([Finding(file, "routes", f"{names}: no such trust has joined", "the hub team")])
    return clocks


def load_retention(schemas_dir: Path, directory: Directory) -> Policy:
    """How long what is kept (``retention.yaml``). Raises TrustsError for a file that cannot be used: then nothing is let go."""
    file = "retention.yaml"
    policy = _of_the_hub(schemas_dir, file, Policy)
    if strangers := policy.held_trusts - {profile.ods for profile in directory}:
        names = ", ".join(sorted(strangers))
        raise TrustsError([Finding(file, "holds", f"{names}: no such trust has joined", "the hub team")])
    return policy


Content = TypeVar("Content", bound=BaseModel)


def _of_the_hub(schemas_dir: Path, file: str, model: type[Content]) -> Content:
    """What one of the hub team's own files says. Raises TrustsError: in which line or field it cannot be used."""
    content, _ = _read_yaml(schemas_dir / file, file, "the hub team")
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise TrustsError(_faults(error, file, "the hub team")) from error


def _faults(error: ValidationError, file: str, mender: Mender) -> Iterator[Finding]:
    faults = error.errors(include_url=False, include_context=False)
    for fault in faults:
        at = fault["loc"]
        if fault["type"] == "too_short" and any(
            len(at) < len(o["loc"]) and o["loc"][: len(at)] == at for o in faults
        ):
            continue  # Too few are left because one cannot be used, which is said.
        problem = fault["msg"].removeprefix("Value error, ")
        yield Finding(file, ".".join(map(str, fault["loc"])), problem, mender)


def load_books(schemas_dir: Path, directory: Directory) -> dict[str, CodeBook]:
    """The code book of every trust: the shared maps, and its own (``conceptmaps/*.json`` in its folder) before them.

    Raises TrustsError for a file that cannot be used, or that says a code which there is not: a discharge destination that is no code sends nobody.
    """
    try:
        shared = compile_book(_files(schemas_dir, "codesystems"), _files(schemas_dir, "conceptmaps"))
        books = {
            profile.ods: shared.with_maps(_files(schemas_dir, f"trusts/{profile.ods}/conceptmaps"))
            for profile in directory
        }
    except CodeFileError as error:
        raise TrustsError([_in_codes(error.found)]) from error
    if found := check_codes(schemas_dir, directory):
        raise TrustsError(found)
    return books


def _in_codes(problem: CodeProblem, mender: Mender | None = None) -> Finding:
    at = f"line {problem.line}" if problem.line else ""
    whose: Mender = "the trust" if problem.file.startswith("trusts/") else "the hub team"
    return Finding(problem.file, at, problem.problem, mender or whose)


def book_beside(schemas_dir: Path, profile: Path) -> CodeBook | None:
    """The code book with the maps that lie beside a profile (``conceptmaps/``); None if there are none. Raises TrustsError."""
    own = _files(profile.parent, "conceptmaps")
    if not own:
        return None
    try:
        shared = compile_book(_files(schemas_dir, "codesystems"), _files(schemas_dir, "conceptmaps"))
    except CodeFileError as error:
        raise TrustsError([_in_codes(error.found)]) from error
    try:
        book = shared.with_maps(own)
    except CodeFileError as error:
        raise TrustsError([_in_codes(error.found, "the trust")]) from error
    if found := problems(shared, own):
        raise TrustsError(_in_codes(each, "the trust") for each in found)
    return book


def check_codes(schemas_dir: Path, directory: Directory) -> list[Finding]:
    """What is wrong with the maps: shared ones, then each trust's. The profiles must be sound. Raises TrustsError."""
    try:
        book = compile_book(_files(schemas_dir, "codesystems"), ())
    except CodeFileError as error:
        raise TrustsError([_in_codes(error.found)]) from error
    folders = ["conceptmaps", *(f"trusts/{profile.ods}/conceptmaps" for profile in directory)]
    return [_in_codes(each) for folder in folders for each in problems(book, _files(schemas_dir, folder))]


def _files(schemas_dir: Path, folder: str) -> list[CodeFile]:
    found = []
    for path in sorted((schemas_dir / folder).glob("*.json")):
        name = f"{folder}/{path.name}"
        try:
            found.append(CodeFile(name, path.read_bytes()))
        except OSError as error:
            problem = f"the file cannot be read: {error.strerror}"
            raise TrustsError([Finding(name, "", problem, "the hub team")]) from error
    return found


def load_profile(file: Path) -> TrustProfile:
    """One profile from a file of any name, for a trial. Raises TrustsError."""
    found = _read_profile(file, file.name)
    if isinstance(found, list):
        raise TrustsError(found)
    return found[0]


def check_trusts(schemas_dir: Path) -> list[Finding]:
    """Everything that is wrong, in the order of the files. Empty: the hub can start with these trusts."""
    _, findings = _examine(schemas_dir)
    return findings


_Profiles = Mapping[str, tuple[TrustProfile, str]]
"""Folder name → its profile and the file's text."""


class _Loader(yaml.SafeLoader):
    """Safe YAML that does not let a key's second value silently replace its first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"{key!r} is there twice", problem_mark=key_node.start_mark
                )
            if isinstance(key, str):
                seen.add(key)
        return super().construct_mapping(node, deep=deep)


def _examine(schemas_dir: Path) -> tuple[_Profiles, list[Finding]]:
    trusts_dir = schemas_dir / "trusts"
    if not trusts_dir.is_dir():
        return {}, [
            Finding(
                "trusts", "", f"there is no such folder in {schemas_dir}; see HUB_SCHEMAS_DIR", "the hub team"
            )
        ]
    folders = sorted(path for path in trusts_dir.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not folders:
        return {}, [
            Finding("trusts", "", "no trust has a folder here; the hub would serve nobody", "the hub team")
        ]
    profiles: dict[str, tuple[TrustProfile, str]] = {}
    findings: list[Finding] = []
    for folder in folders:
        read = _read(folder)
        if isinstance(read, list):
            findings += read
        else:
            profiles[folder.name] = read
            findings += _judge(folder.name, *read)
    findings += _clashes(profiles)
    findings += _audits_opened(profiles)
    return profiles, findings


def _file(folder: str) -> str:
    return f"trusts/{folder}/{PROFILE}"


def _read(folder: Path) -> tuple[TrustProfile, str] | list[Finding]:
    return _read_profile(folder / PROFILE, _file(folder.name))


def _read_profile(path: Path, file: str) -> tuple[TrustProfile, str] | list[Finding]:
    """``file`` is what the findings call it."""
    try:
        content, text = _read_yaml(path, file, "the trust")
        return TrustProfile.model_validate(content), text
    except TrustsError as error:
        return list(error.findings)
    except ValidationError as error:
        return list(_faults(error, file, "the trust"))


def _read_yaml(path: Path, file: str, mender: Mender) -> tuple[dict[Any, Any], str]:
    """The mapping that a file holds, and its text. Raises TrustsError; ``mender`` is whose what it says is."""

    def unusable(problem: str, mender: Mender = mender) -> TrustsError:
        return TrustsError([Finding(file, "", problem, mender)])

    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise unusable(f"there is no {path.name}", "the hub team") from error
    except UnicodeDecodeError as error:
        raise unusable("the file is not UTF-8") from error
    except OSError as error:
        raise unusable(f"the file cannot be read: {error.strerror}", "the hub team") from error
    try:
        content = _parse(text)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise unusable(f"{line}not YAML that can be used: {error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise unusable(f"not YAML that can be used: {type(error).__name__}") from error
    if not isinstance(content, dict):
        raise unusable("the file must hold one mapping, field: value")
    return content, text


def _parse(text: str) -> Any:
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def _judge(folder: str, profile: TrustProfile, text: str) -> Iterator[Finding]:
    """What can be said of one profile alone."""
    file = _file(folder)
    if folder != profile.ods:
        yield Finding(file, "ods", f"says {profile.ods} but the folder's name is {folder}", "the hub team")
    try:
        ZoneInfo(profile.time_zone)
    except (KeyError, ValueError, OSError):  # unknown; not a plausible path; a folder of zones
        yield Finding(file, "time_zone", f"there is no time zone {profile.time_zone!r}", "the trust")
    for unknown in sorted(profile.repairs_off - set(RULES)):
        yield Finding(
            file, "repairs_off", f"there is no repair {unknown!r}; see `hub trust repairs`", "the trust"
        )
    for name, system in _systems(profile):
        yield from _judge_system(file, name, system, profile)
    opening = " ".join(line.lstrip("# ") for line in _leading_comment(text)).lower()
    says_so = "illustration" in opening and "not supplied or endorsed" in opening
    if profile.illustration and not says_so:
        yield Finding(
            file,
            "illustration",
            "true, so the comment at the top must say that it is an illustration, not supplied or endorsed by the trust",
            "the hub team",
        )
    if says_so and not profile.illustration:
        yield Finding(
            file,
            "illustration",
            "false, but the comment at the top says it is an illustration",
            "the hub team",
        )


def _judge_system(file: str, name: str, system: str, profile: TrustProfile) -> Iterator[Finding]:
    field = f"identifier_systems.{name}"
    try:
        parts = urlsplit(system)
        host = (parts.hostname or "").lower()
        absolute = (
            bool(host) if parts.scheme in {"http", "https"} else parts.scheme == "urn" and bool(parts.path)
        )
    except ValueError:
        host, absolute = "", False
    if not absolute or any(character.isspace() for character in system):
        yield Finding(file, field, "must be an absolute URI (https://… or urn:…)", "the trust")
    elif system.rstrip("/").lower().endswith("/id/nhs-number"):
        yield Finding(file, field, "is the NHS number's system; name the trust's own", "the trust")
    elif host == "replace.me":
        yield Finding(file, field, "is still the placeholder; the trust's own URI is needed", "the trust")
    elif profile.illustration and not host.endswith(".example"):
        yield Finding(
            file,
            field,
            "an illustration's systems end in .example, so that none is a real one",
            "the hub team",
        )
    elif not profile.illustration and host.endswith(".example"):
        yield Finding(
            file, field, "a .example system is invented; the trust's real one is needed", "the trust"
        )


def _leading_comment(text: str) -> Iterator[str]:
    for line in text.splitlines():
        if not line.startswith("#"):
            return
        yield line


def _systems(profile: TrustProfile) -> Iterator[tuple[str, str]]:
    systems = profile.identifier_systems
    yield from (("patient", systems.patient), ("encounter", systems.encounter), ("request", systems.request))


def _clashes(profiles: _Profiles) -> Iterator[Finding]:
    """What two places claim and only one can have."""
    codes: dict[str, str] = {}
    topics: dict[str, str] = {}
    systems: dict[str, str] = {}
    for folder, (profile, _) in profiles.items():
        yield from _claim(codes, folder, "ods", profile.ods, "the code")
        for number, site in enumerate(profile.sites):
            yield from _claim(codes, folder, f"sites.{number}.ods", site.ods, "the code")
        for number, code in enumerate(profile.predecessors):
            yield from _claim(codes, folder, f"predecessors.{number}", code, "the code")
        for topic in (profile.events_topic, profile.inbox_topic, profile.receipts_topic):
            yield from _claim(topics, folder, "ods", topic, "the topic")
        for name, system in _systems(profile):
            # As the hub compares them: neither case nor a last stroke makes two systems of one.
            yield from _claim(
                systems, folder, f"identifier_systems.{name}", system.rstrip("/").lower(), "the system"
            )


def _audits_opened(profiles: _Profiles) -> Iterator[Finding]:
    """That a trust opens its audit to trusts that are there. One that is not answered counts for nothing, and is no fault."""
    for folder, (profile, _) in profiles.items():
        for number, ods in enumerate(profile.audit_opened_to):
            if ods not in profiles or ods == profile.ods:
                yield Finding(
                    _file(folder),
                    f"audit_opened_to.{number}",
                    f"{ods} is no other trust that has joined",
                    "the trust",
                )


def _claim(owners: dict[str, str], folder: str, field: str, value: str, what: str) -> Iterator[Finding]:
    first = owners.get(value)
    if first is None:
        owners[value] = folder
    elif first == folder:
        yield Finding(_file(folder), field, f"{what} {value} is there twice", "the trust")
    else:
        yield Finding(
            _file(folder), field, f"{what} {value} is claimed by {first} too", "the hub team with both trusts"
        )
