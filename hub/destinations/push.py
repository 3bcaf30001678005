"""REST as a door out: each message is posted to the address that the receiving trust registered.

HTTP has neither transactions nor a log to read back, so a message may be posted again after a failure; it then has the
X-Request-Id that it had, and a receiver that knows it says 409, which means delivered (BaRS, errors).
"""

import re
import ssl
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from hub.domain.delivery import DeliveryError, Fault, Outgoing, Placed, ReadBack, Scope
from hub.fhir import headers
from hub.patience import within

_IDS = uuid.UUID("5f0c2f7e-6a35-4f4b-9d0e-4d4f3d8a7c11")
"""The namespace of the messages' ids (RFC 9562, 5.5)."""
_KEPT = (headers.CORRELATION_ID, headers.EVENT_ID, headers.TRANSFER_ID, headers.EVENT_TYPE, headers.SOURCE_ODS, headers.TRACEPARENT)  # fmt: skip
_TOGETHER_S = 5.0
_ADVICE_BY_STATUS = {
    401: "the receiver does not accept who the hub is: check the certificate that it was given (HUB_PUSH_CERTIFICATE_FILE)",
    403: "the receiver does not let the hub in: ask its integrators to register the hub",
    404: "nothing answers at the registered address: check doors.url in the trust's profile",
    429: "the receiver asks for fewer messages: they wait",
}
_OR_THE_CERTIFICATE = (
    ", or a server before it the certificate that the hub shows (HUB_PUSH_CERTIFICATE_FILE): has it run out?"
)
"""Some (nginx) say 400 to a client's certificate that is no good, and that is all there is to tell it by."""
_ABOUT_THE_RECORD = frozenset({400, 406, 409, 410, 411, 412, 413, 414, 415, 422})
_CONTROLS = re.compile(r"[\x00-\x1f\x7f]")
_SAID_BYTES_MAX = 65_536
"""So much of an answer is read: an OperationOutcome is shorter. The rest may have no end."""


@dataclass(frozen=True, slots=True)
class PushAccess:
    """How the hub shows itself and whom it trusts: PEM files; None for the system's authorities and for no certificate."""

    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None
    answer_s: float = 10

    def context(self) -> ssl.SSLContext:
        """Certificates are always verified. Raises OSError if a file cannot be read."""
        context = ssl.create_default_context(cafile=self.ca_file)
        if self.certificate_file:
            context.load_cert_chain(self.certificate_file, self.key_file)
        return context

    def written(self) -> tuple[object, ...]:
        """Another answer than before: its files were put anew, and a context has to be made anew to know it."""
        return tuple(map(_written, (self.ca_file, self.certificate_file, self.key_file)))


def _written(file: Path | None) -> object:
    try:
        found = file.stat() if file else None
    except OSError:
        return None
    return found and (found.st_ino, found.st_size, found.st_mtime_ns)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a receiver answered. ``said`` is how its body begins."""

    status: int
    said: bytes
    retry_after: str

    @property
    def is_success(self) -> bool:
        """Any 2xx."""
        return 200 <= self.status < 300


async def post(
    client: httpx.AsyncClient, url: str, content: bytes, said: Mapping[str, str], answer_s: float
) -> Answer:
    """Post to somebody else's server, which may be anything: after ``answer_s`` it is over however the answer comes, and little of it is read.

    Header values go as UTF-8, and those that HTTP has no room for do not go. Raises httpx.HTTPError, TimeoutError.
    """
    sent = [(name.encode(), value.encode()) for name, value in said.items() if _fits_a_header(value)]

    async def asked() -> Answer:
        body = b""
        async with client.stream("POST", url, content=content, headers=sent, timeout=answer_s) as answer:
            async for some in answer.aiter_bytes():
                body += some[: _SAID_BYTES_MAX - len(body)]
                if len(body) == _SAID_BYTES_MAX:
                    break
        return Answer(answer.status_code, body, answer.headers.get("retry-after", ""))

    # httpx limits each step of it; an answer that comes in drops would last for ever.
    return await within(answer_s, asked())


def _fits_a_header(value: str) -> bool:
    """RFC 9110, 5.5: no control characters, and something to see. Kafka's headers take any text."""
    return bool(value.strip()) and _CONTROLS.search(value) is None


class PushDestination:
    """One receiver's address. Start, send; close after any error."""

    def __init__(self, url: str, access: PushAccess) -> None:
        self._url, self._access = url, access
        self._client: httpx.AsyncClient | None = None
        self._failed: DeliveryError | None = None

    async def start(self) -> None:
        """Make the client; nothing is asked yet. Raises DeliveryError if a certificate cannot be read."""
        try:
            verify = self._access.context()
        except (OSError, ValueError) as error:
            name = type(error).__name__
            raise DeliveryError(
                Fault(Scope.RECEIVER, name, "a certificate file of the hub's (HUB_PUSH_…) cannot be read")
            ) from error
        # Nobody else's address is ever followed, and nothing of the environment (proxies, netrc) is.
        self._client = httpx.AsyncClient(
            verify=verify, timeout=self._access.answer_s, follow_redirects=False, trust_env=False
        )

    async def read_back(self, topics: Iterable[str], known: Iterable[Placed]) -> ReadBack:
        """HTTP has nothing to read back."""
        del topics, known
        return ReadBack()

    async def send(self, rows: Sequence[Outgoing]) -> list[Placed]:
        """In order, until one is not taken or some seconds are over, so that what was taken is written down soon. Those before it are
        returned, and what was wrong is raised by the next call.
        """
        if self._failed is not None:
            raise self._failed
        placed: list[Placed] = []
        until = time.monotonic() + _TOGETHER_S
        for row in rows:
            if placed and time.monotonic() > until:
                break
            try:
                await self._post(row)
            except DeliveryError as error:
                if not placed:
                    raise
                self._failed = error
                break
            placed.append(Placed(row.seq, row.topic, -1, row.seq, row.event_id))
        return placed

    async def close(self) -> None:
        """Never raises."""
        if self._client is not None:
            await self._client.aclose()

    async def _post(self, row: Outgoing) -> None:
        assert self._client is not None
        said = {name: row.headers[name] for name in _KEPT if name in row.headers}
        said |= {
            headers.REQUEST_ID: str(uuid.uuid5(_IDS, f"{row.event_id} {row.seq}")),
            headers.CONTENT_TYPE: "application/fhir+json",
            "accept": "application/fhir+json",
            "accept-encoding": "identity",
        }
        try:
            answer = await post(self._client, self._url, row.payload, said, self._access.answer_s)
        except (httpx.HTTPError, TimeoutError) as error:
            advice = "the receiver does not answer at its address, or not in time: is it running, and is its certificate good?"
            raise DeliveryError(Fault(Scope.RECEIVER, type(error).__name__, advice)) from error
        if not answer.is_success and not _is_delivered(answer):
            raise _refused(answer, row)


def _is_delivered(answer: Answer) -> bool:
    """409 with FHIR's issue type ``duplicate``, or without a word: it has this message. With ``conflict`` it has another,
    and what was not read to its end may say so.
    """
    read = len(answer.said) < _SAID_BYTES_MAX
    return answer.status == 409 and read and b'"conflict"' not in answer.said


def _refused(answer: Answer, row: Outgoing) -> DeliveryError:
    status = answer.status
    name = f"HTTP {status}"
    if status in _ABOUT_THE_RECORD:
        certificate = _OR_THE_CERTIFICATE if status == 400 else ""
        advice = f"the receiver refuses this message{certificate or ':'} its integrators must look, it is offered again; later ones of other transfers go on"
        return DeliveryError(Fault(Scope.RECORD, name, advice, row.topic), (row.seq,))
    if 300 <= status < 400:
        advice = "the receiver sends the hub elsewhere, which it does not follow: register the new address in the trust's profile"
        return DeliveryError(Fault(Scope.RECEIVER, name, advice))
    advice = _ADVICE_BY_STATUS.get(status, "the receiver is not well: what is for it waits")
    return DeliveryError(Fault(Scope.RECEIVER, name, advice), retry_after_s=_retry_after_s(answer))


def _retry_after_s(answer: Answer) -> float | None:
    """Retry-After in seconds (RFC 9110, 10.2.3); its other form, a date, is left to the hub's own back-off."""
    said = answer.retry_after
    return float(said) if said.isascii() and said.isdigit() and len(said) < 7 else None
