"""Every setting: environment variables with the prefix ``HUB_``, each with its unit and its reason.

Only `hub.commands` and `hub.wiring` read this; everybody else is handed what they need.
"""

import inspect
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

_DRIVERS = ("postgresql+asyncpg", "sqlite+aiosqlite")
_PORT_MAX = 65535
REPOSITORY = Path(__file__).resolve().parent.parent


_SQLALCHEMYS = frozenset({"prepared_statement_cache_size", "prepared_statement_name_func"})
"""Options that SQLAlchemy takes out for itself before it connects by asyncpg."""


def _has_options_of_its_driver(url: URL) -> bool:
    """Whether the driver can be called with what the URL says; else it would say so itself, as a traceback, in every command."""
    if not 0 <= (url.port or 0) <= _PORT_MAX:
        return False
    try:
        dialect = url.get_dialect()
        _, options = dialect().create_connect_args(url)
    except (ArgumentError, ValueError, TypeError):
        return False
    if url.drivername != _DRIVERS[0]:
        return True
    import asyncpg  # noqa: PLC0415 - a hub on SQLite does without

    return options.keys() <= inspect.signature(asyncpg.connect).parameters.keys() | _SQLALCHEMYS


def _of(default: Any, unit: str, reason: str, **limits: Any) -> Any:
    return Field(default, description=reason, json_schema_extra={"unit": unit}, **limits)


class HubSettings(BaseSettings):
    """One frozen object. `hub settings` prints it."""

    model_config = SettingsConfigDict(env_prefix="HUB_", frozen=True, extra="ignore", env_ignore_empty=True)

    @field_validator("database_url")
    @classmethod
    def _is_a_database(cls, url: SecretStr) -> SecretStr:
        """Said here, because SQLAlchemy's own answers come late; without the value, which holds a password."""
        try:
            driver = make_url(url.get_secret_value()).drivername
        except (
            ArgumentError,
            ValueError,
        ):  # of what stands behind an @ in a password SQLAlchemy makes a port, and quotes it
            driver = ""
        if driver not in _DRIVERS:
            raise ValueError(
                f"must be a URL that begins with {' or '.join(f'{each}://' for each in _DRIVERS)}"
            )
        if not _has_options_of_its_driver(make_url(url.get_secret_value())):
            raise ValueError(
                "has a port or an option (what stands after the ?) that its driver does not take; TLS is ssl=require"
            )
        return url

    # Where things are
    database_url: SecretStr = _of(
        SecretStr("sqlite+aiosqlite:///hub.db"),
        "URL",
        "postgresql+asyncpg://user:password@host/database in production. SQLite is for one machine and one worker.",
    )
    kafka_bootstrap_servers: str = _of("127.0.0.1:9092", "host:port,…", "Where Kafka answers first.")
    kafka_security_protocol: Literal["PLAINTEXT", "SASL_SSL"] = _of(
        "PLAINTEXT", "name", "SASL_SSL with SCRAM-SHA-512 anywhere but on one machine."
    )
    kafka_username: str | None = _of(None, "text", "The hub's SCRAM user, with SASL_SSL.")
    kafka_password: SecretStr | None = _of(None, "secret", "Its password.")
    kafka_ca_file: Path | None = _of(
        None, "path", "The authority that signed the brokers' certificates (PEM)."
    )
    schemas_dir: Path = _of(REPOSITORY / "schemas", "path", "Holds trusts/<ODS>/profile.yaml.")

    # Reading
    worker_group: str = _of("hub.worker", "name", "Workers of one group share the partitions.")
    worker_instance: str | None = _of(
        None,
        "name",
        "Stable name of this worker, and of no other: a restart within the session timeout then causes no rebalance. Two of one name take all from each other.",
    )
    workers: int = _of(
        1,
        "processes",
        "How many workers `hub run` starts; each keeps one processor busy. SQLite allows one.",
        ge=1,
        le=64,
    )
    batch_messages_max: int = _of(
        200, "messages", "One transaction; larger gains little and holds locks longer.", ge=1, le=2000
    )
    batch_wait_s: float = _of(
        0.1,
        "seconds",
        "How long a batch may wait to fill; half of it is the price in latency. A batch costs the same twenty round trips to the store however small it is.",
        gt=0,
    )
    session_timeout_s: float = _of(
        10, "seconds", "A killed worker's partitions stand still this long; the default of 60 is too long."
    )
    watchdog_s: float = _of(
        60, "seconds", "No progress this long while messages wait: the worker says so and leaves.", gt=0
    )
    store_patience_s: float = _of(
        5, "seconds", "How long one transaction may wait for the database before the worker stops.", gt=0
    )

    # Judging messages
    message_bytes_max: int = _of(
        1_000_000, "bytes", "Kafka's own default limit; a letter belongs in a document store.", ge=1000
    )
    message_depth_max: int = _of(64, "levels", "The deepest public FHIR example has 14.", ge=10, le=200)
    nhs_number_check: Literal["enforce", "flag"] = _of(
        "flag",
        "mode",
        "A wrong check digit: enforce quarantines, flag lets it pass and never matches by it. Most published samples fail it.",
    )
    clock_ahead_s: float = _of(
        3600, "seconds", "An event time this far in the future is taken as now, and flagged.", ge=0
    )
    clock_ahead_max_s: float = _of(
        86_400, "seconds", "Further in the future is implausible: quarantined.", ge=0
    )
    clock_behind_max_days: float = _of(
        366,
        "days",
        "An event older than this is not news of a transfer: quarantined. A stay that goes on may have begun earlier, if the message was made lately.",
        gt=0,
    )
    quarantine_in_a_row_max: int = _of(
        50,
        "messages",
        "As many quarantined one after the other, and the trust is paused: the fault is general.",
        ge=1,
    )

    # Waiting
    clock_poll_s: float = _of(
        5, "seconds", "How often the clock looks what is due; the shortest limit is ten minutes.", gt=0
    )

    delivery_late_s: float = _of(
        60, "seconds", "A hospital that was not given its messages for so long is an incident.", gt=0
    )

    # Delivering
    dispatch_batch_max: int = _of(200, "messages", "One Kafka transaction for one receiver.", ge=1, le=1000)
    dispatch_poll_s: float = _of(0.05, "seconds", "How soon a new row is seen when nothing is waiting.", gt=0)
    dispatch_gather_s: float = _of(
        0.15,
        "seconds",
        "The beat: receivers that are behind begin their Kafka transactions together and so often. Each costs the broker the same however few rows it has, and half as much beside others; a full batch does not wait.",
        ge=0,
    )
    dispatch_backoff_s: float = _of(
        0.5, "seconds", "The first wait after a failure; doubles up to the maximum.", gt=0
    )
    dispatch_backoff_max_s: float = _of(
        60, "seconds", "Retries do not end: a hospital that comes back waits at most this long.", gt=0
    )
    dispatch_lease_s: float = _of(
        15, "seconds", "A receiver whose dispatcher died is taken over after this long.", gt=0
    )
    kafka_transactions: bool = _of(
        True, "yes/no", "Off only for the embedded broker, which does not model them."
    )

    # The sealed audit log
    audit_origin: str = _of(
        "transfer-hub.example/audit",
        "name",
        "The log's name in every checkpoint (C2SP tlog-checkpoint): of one hub only, and for ever the same.",
    )
    audit_key_file: Path = _of(
        Path("hub-audit.key"),
        "path",
        "The key that signs checkpoints; `hub sealer` makes one where there is none. Keep it from the database's administrators.",
    )
    audit_checkpoint_file: Path = _of(
        Path("hub-checkpoints.txt"),
        "path",
        "Each checkpoint that goes out is added here. Somebody else should keep it: the hub could rewrite its own.",
    )
    audit_seal_s: float = _of(0.5, "seconds", "How long an audit entry may wait to be sealed.", gt=0, le=60)
    audit_late_s: float = _of(
        60,
        "seconds",
        "Audit entries that wait so long to be sealed are an incident: then `hub sealer` does not run.",
        gt=0,
    )
    audit_checkpoint_s: float = _of(
        30, "seconds", "How often the newest checkpoint goes out, changed or not.", gt=0, le=60
    )
    audit_topic: str = _of(
        "hub.audit",
        "name",
        "Sealed entries, as AuditEvents, and signed checkpoints go here, for governance's monitoring. Of one hub only.",
    )
    audit_topic_feed: bool = _of(
        True, "yes/no", "Off: only checkpoints go there. An AuditEvent takes some 2 KB for each entry."
    )
    audit_repository_url: str | None = _of(
        None,
        "URL",
        "An audit repository that each AuditEvent is posted to (IHE ITI-20), for example …/AuditEvent.",
    )
    audit_organisation: str | None = _of(
        None,
        "ODS code",
        "Who runs this hub, where they have a code: the organisation that its own acts are by.",
    )

    # The REST facade
    facade_host: str = _of(
        "127.0.0.1", "address", "Where `hub serve` listens; TLS ends at the proxy before it."
    )
    facade_port: int = _of(8080, "port", "0: `hub run` starts no facade.", ge=0, le=65_535)
    facade_url: str = _of(
        "http://127.0.0.1:8080", "URL", "The facade as its callers know it: the audience of their assertions."
    )
    facade_answer_s: float = _of(5, "seconds", "A message that takes longer is answered 408 (BaRS).", gt=0)
    facade_body_s: float = _of(
        15,
        "seconds",
        "A request whose body takes longer to arrive is answered 408: a slow line sends 1 MB in 10.",
        gt=0,
    )
    facade_requests_per_s: float = _of(
        500, "requests", "Of each client in a second; more are answered 429.", ge=1
    )
    token_key_file: Path | None = _of(
        None,
        "path",
        "A private P-384 key (PEM) that access tokens are signed with. Without one `hub serve` makes its own, and tokens end with it.",
    )
    token_life_s: float = _of(300, "seconds", "How long an access token is good.", gt=0, le=3600)
    development: bool = _of(False, "yes/no", "`hub token` gives tokens to whoever can start it.")

    # Pushing to receivers that registered an address
    push_answer_s: float = _of(10, "seconds", "How long a receiver may take to answer.", gt=0)
    push_ca_file: Path | None = _of(
        None,
        "path",
        "The authorities that sign the receivers' certificates (PEM); the system's own otherwise.",
    )
    push_certificate_file: Path | None = _of(
        None, "path", "The certificate that the hub shows to receivers (PEM)."
    )
    push_key_file: Path | None = _of(None, "path", "Its private key (PEM).")

    # Topics
    topic_partitions: int = _of(
        6, "partitions", "Of each trust's events. Workers beyond this number have nothing to do.", ge=1
    )
    topic_partitions_out: int = _of(
        1,
        "partitions",
        "Of each inbox and receipts topic. One carries far more than a hospital gets, and each more is written to "
        "in every transaction. To change it later breaks the order of what is under way.",
        ge=1,
    )
    topic_replication: int = _of(1, "copies", "3 on a real cluster.", ge=1)
    topic_retention_days: int = _of(14, "days", "Longer than the longest outage anybody plans for.", ge=1)

    # Running
    restart_backoff_s: float = _of(
        1, "seconds", "`hub run`: first wait before a service that died is started again.", gt=0
    )
    restart_backoff_max_s: float = _of(30, "seconds", "`hub run`: the longest such wait.", gt=0)
    log_format: Literal["auto", "json", "console"] = _of(
        "auto", "name", "auto: console on a terminal, JSON elsewhere."
    )
    log_level: Literal["debug", "info", "warning", "error"] = _of(
        "info", "name", "Below it, nothing is written."
    )
