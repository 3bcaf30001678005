"""The facade as an application: one way in for every request, then the interaction it asks for.

Nothing is answered 200 that is not committed. The bytes of a message go to the journey as they came, so that what the facade
takes in is read, judged, repaired, deduplicated and audited as what comes over Kafka.
"""

import asyncio
import functools
import re
import time
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hub import __version__
from hub.dialects.fhir_xml_writer import NotInXmlError, write_xml
from hub.facade.answers import fhir
from hub.facade.capability import (
    FHIR_JSON,
    FHIR_XML,
    JSON_PATCH,
    SERVED,
    Served,
    capability_statement,
    described,
    smart_configuration,
)
from hub.facade.errors import FacadeError, bad_request
from hub.facade.interactions import HANDLERS
from hub.facade.service import Facade
from hub.facade.sign_in import sign_in, unread
from hub.fhir import decimals
from hub.fhir.tree import deeper_than, has_many_brackets
from hub.services.health import untried
from hub.store.intake import StoreUnavailableError
from hub.store.unit_of_work import database_fault, is_refusal
from hub.telemetry.log import fault_of

_FORM = "application/x-www-form-urlencoded"
_ANSWERED_IN_JSON: Mapping[str, Any] = {
    status: {"description": text, "content": {"application/json": {"schema": {"type": "object"}}}}
    for status, text in (("200", "An access token"), ("default", "RFC 6749, 5.2: error, error_description"))
}
_ANSWERED_IN_WORDS: Mapping[str, Any] = {
    status: {"description": text, "content": {"text/plain": {"schema": {"type": "string"}}}}
    for status, text in (("200", "All is well"), ("default", "What is not"))
}
_CAPABILITIES: Mapping[str, Any] = {"responses": described(SERVED[0])["responses"]}
_JSON_TYPES = frozenset({FHIR_JSON, "application/json", "text/json", "application/json+fhir"})
_XML_TYPES = frozenset({FHIR_XML, "application/xml", "text/xml", "application/xml+fhir"})
_USABLE: Mapping[str, frozenset[str]] = {
    "search_task_post": frozenset({_FORM}),
    "search_audit_post": frozenset({_FORM}),
    "patch_task": frozenset({JSON_PATCH}),
}
"""What an interaction takes, where that is not a resource."""
_JUDGED_BY_THE_JOURNEY = frozenset({"process_message", "create_bundle", "update_encounter"})
"""Their bytes go to the journey whatever they are, so that what is wrong with them is kept and told as over Kafka."""
_ANY = frozenset({"*/*", "application/*", "text/*", ""})
_TOKEN_BYTES_MAX = 20_000


def make_app(facade: Facade) -> FastAPI:
    """The routes of `SERVED`, the token endpoint, and what operators ask."""
    app = FastAPI(
        title="Transfer hub, FHIR facade",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
        # A redirect would go to whatever host the request names, with the address and what it asks for, before anybody is known.
        redirect_slashes=False,
    )
    counted = _Counted()
    for each in SERVED:
        _serve(app, facade, each, counted)
    _serve_what_it_can(app, facade)
    _serve_tokens(app, facade, counted)
    _serve_operators(app, facade, counted)
    app.exception_handler(HTTPException)(_nothing_here)
    app.add_middleware(_HeadIsGet)
    app.openapi = functools.partial(_openapi, app)  # type: ignore[method-assign]
    return app


class _Counted:
    """What Prometheus is told of the answers of one application."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "hub_http_requests", "Requests answered", ["interaction", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "hub_http_request_seconds", "Time to answer", ["interaction"], registry=self.registry
        )


def _serve(app: FastAPI, facade: Facade, served: Served, counted: _Counted) -> None:
    """The route of one interaction."""

    async def endpoint(request: Request) -> Response:
        began = time.perf_counter()
        response = await _answered(facade, request, served)
        counted.requests.labels(served.name, response.status_code).inc()
        counted.seconds.labels(served.name).observe(time.perf_counter() - began)
        return response

    app.add_api_route(
        served.path,
        endpoint,
        methods=[served.method],
        name=served.name,
        summary=served.summary,
        operation_id=served.name,
        response_class=Response,
        openapi_extra=dict(described(served)),
    )


def _serve_what_it_can(app: FastAPI, facade: Facade) -> None:
    """What the facade says of itself, to anybody who asks."""
    started_at = facade.now()

    @app.get(
        "/fhir/metadata",
        name="capabilities",
        summary="The CapabilityStatement.",
        response_class=Response,
        openapi_extra=dict(_CAPABILITIES),
    )
    async def capabilities(request: Request) -> Response:
        statement = fhir(capability_statement(facade.base, started_at))
        try:
            return _told(request, _in_xml(facade, statement) if _wants_xml(request) else statement)
        except FacadeError as error:
            return _told(request, _refusal(error))

    @app.get(
        "/fhir/.well-known/smart-configuration",
        name="smart",
        summary="How to get a token.",
        response_class=Response,
    )
    async def smart() -> Response:
        return Response(orjson.dumps(smart_configuration(facade.office.url)), media_type="application/json")


def _serve_tokens(app: FastAPI, facade: Facade, counted: _Counted) -> None:
    """The token endpoint."""

    @app.post(
        "/oauth2/token",
        name="token",
        summary="A signed assertion for an access token (RFC 7523).",
        response_class=Response,
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {_FORM: {"schema": {"type": "object"}}},
            },
            "responses": _ANSWERED_IN_JSON,
        },
    )
    async def token(request: Request) -> Response:
        try:
            form = await _read(request, _TOKEN_BYTES_MAX, facade.limits.body_s)
        except FacadeError as error:
            status, said = error.status, unread(error)
        else:
            status, said = await sign_in(facade, form)
        counted.requests.labels("token", status).inc()
        return Response(
            orjson.dumps(said), status, media_type="application/json", headers={"Cache-Control": "no-store"}
        )


def _serve_operators(app: FastAPI, facade: Facade, counted: _Counted) -> None:
    """Health and metrics."""

    @app.get(
        "/healthz",
        name="health",
        summary="Whether messages move.",
        response_class=Response,
        openapi_extra={"responses": dict(_ANSWERED_IN_WORDS)},
    )
    async def healthz() -> Response:
        try:
            async with asyncio.timeout(2):
                stuck = await untried(
                    facade.engine,
                    facade.directory,
                    timedelta(seconds=facade.limits.untried_s),
                    facade.now(),
                )
        except (OSError, TimeoutError, SQLAlchemyError) as error:
            return _plain(503, f"The database cannot be used ({type(error).__name__})")
        if stuck:
            return _plain(503, f"Nothing was even tried for {', '.join(stuck)}: is a dispatcher running?")
        return _plain(200, "well")

    @app.get("/metrics", name="metrics", summary="For Prometheus.", response_class=Response)
    async def metrics() -> Response:
        return Response(generate_latest(counted.registry), media_type=CONTENT_TYPE_LATEST)


async def _nothing_here(request: Request, error: HTTPException) -> Response:
    """The answer where no route is, or none for this method."""
    if error.status_code == 405:
        allowed = dict(error.headers or {})
        refusal = FacadeError(
            405,
            "SEND_METHOD_NOT_ALLOWED",
            "not-supported",
            "This address is not used with this method; see metadata.",
            headers=allowed,
        )
    else:
        refusal = FacadeError(
            404, "SEND_NOT_FOUND", "not-found", "Nothing is served at this address; see metadata."
        )
    return _told(request, _refusal(refusal))


class _HeadIsGet:
    """HEAD is answered as GET is, without what it holds (RFC 9110, 9.3.2); it is read, audited and counted as GET."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def without_body(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        await self._app({**scope, "method": "GET"}, receive, without_body)


def openapi_document(app: FastAPI) -> bytes:
    """What `/openapi.json` says, as it is kept under `schemas/openapi/`."""
    return orjson.dumps(app.openapi(), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def _openapi(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(title=app.title, version=app.version, routes=app.routes)
    flow = {
        "tokenUrl": "/oauth2/token",
        "scopes": {f"system/{e.resource}.{e.verb}": e.summary for e in SERVED},
    }
    document["components"] = {
        "securitySchemes": {"smart": {"type": "oauth2", "flows": {"clientCredentials": flow}}}
    }
    return document


async def _answered(facade: Facade, request: Request, served: Served) -> Response:
    """Whatever happens, an answer that says what is wrong; the text of an exception, which may quote a message, never leaves."""
    xml = False
    try:
        xml = _wants_xml(request)
        caller = await facade.caller(request)
        await facade.must(caller, served, served.resource, served.verb)
        _can_be_stored(
            [*request.path_params.values(), *request.query_params.keys(), *request.query_params.values()]
        )
        body = await _body(facade, request, served) if served.body else b""
        response = await HANDLERS[served.name](facade, request, caller, served, body)
    except FacadeError as error:
        response = _refusal(error)
    except (StoreUnavailableError, OSError, TimeoutError, SQLAlchemyError) as error:
        response = _refusal(_of_the_store(facade, error))
    except Exception as error:  # noqa: BLE001 - a bug of ours is an answer too
        response = _refusal(_fault(facade, error))
    return _told(request, _in_xml(facade, response) if xml and response.body else response)


def _of_the_store(facade: Facade, error: Exception) -> FacadeError:
    """503, which says to send again; but 422 where the database is well and refuses a value, which no repeating mends."""
    if isinstance(error, DBAPIError) and is_refusal(error):
        facade.log.warning("facade.value-refused", fault=database_fault(error))
        return FacadeError(
            422,
            "SEND_UNPROCESSABLE_ENTITY",
            "value",
            "A value of the request cannot be kept or looked for: it is too large, or holds what no text here has. Mend it.",
        )
    facade.log.error("store.unavailable", fault=fault_of(error))  # a trace can quote a message
    return FacadeError(
        503,
        "REC_UNAVAILABLE",
        "transient",
        "The hub's database does not answer; nothing was taken in. Send the same again, with the same id.",
        headers={"Retry-After": "5"},
    )


def _fault(facade: Facade, error: Exception) -> FacadeError:
    facade.log.error("fault", fault=fault_of(error))  # a trace can quote a message
    return FacadeError(
        500,
        "REC_SERVER_ERROR",
        "exception",
        "A fault in the hub; its team was told by the log. Try again later.",
    )


def _in_xml(facade: Facade, response: Response) -> Response:
    """The same answer in XML; a fault of ours in writing it is an answer in JSON."""
    try:
        return _as_xml(response)
    except Exception as error:  # noqa: BLE001 - as above
        return _refusal(_fault(facade, error))


def _can_be_stored(texts: Iterable[str]) -> None:
    """No id and no value that could be looked for holds U+0000, which PostgreSQL cannot take. Raises FacadeError (400)."""
    if any("\x00" in each for each in texts):
        raise bad_request("The address holds U+0000, which no id and no value has.")


def _wants_xml(request: Request) -> bool:
    """`_format` goes before Accept (FHIR R4, http, 3.1.0.1.11), and of several kinds the best liked. Raises FacadeError (406)."""
    wanted = request.query_params.get("_format") or request.headers.get("accept", "")
    for kind in sorted(wanted.lower().split(","), key=_liking, reverse=True):
        # A plus sign in an address may have come as a space.
        name = kind.partition(";")[0].strip().replace(" ", "+")
        if name in _JSON_TYPES | _ANY | {"json"}:
            return False
        if name in _XML_TYPES | {"xml"}:
            return True
    raise FacadeError(
        406, "SEND_NOT_ACCEPTABLE", "not-supported", f"Answers are {FHIR_JSON} or {FHIR_XML}.", "Accept"
    )


def _liking(kind: str) -> float:
    """The q of one kind of an Accept header (RFC 9110, 12.4.2)."""
    found = re.search(r";\s*q=([01](?:\.\d{0,3})?)\s*(?:;|$)", kind)
    return float(found[1]) if found else 1.0


def _as_xml(response: Response) -> Response:
    """The same answer in XML."""
    try:
        body = write_xml(decimals.loads(bytes(response.body)))
    except NotInXmlError as error:
        return _refusal(
            FacadeError(
                406, "SEND_NOT_ACCEPTABLE", "not-supported", f"{error}: ask for {FHIR_JSON}.", "Accept"
            )
        )
    kept = {name: value for name, value in response.headers.items() if not name.startswith("content-")}
    return Response(body, response.status_code, kept, media_type=f"{FHIR_XML}; charset=utf-8")


async def _body(facade: Facade, request: Request, served: Served) -> bytes:
    kind, _, rest = request.headers.get("content-type", "").lower().partition(";")
    usable = _USABLE.get(served.name, _JSON_TYPES | _XML_TYPES if served.writes else _JSON_TYPES)
    charset = rest.partition("charset=")[2].strip(' "').partition(";")[0]
    if kind.strip() not in usable or charset not in {"", "utf-8", "utf8"}:
        raise FacadeError(
            415,
            "SEND_UNSUPPORTED_MEDIA_TYPE",
            "not-supported",
            f"Send {' or '.join(sorted(usable & {FHIR_JSON, FHIR_XML, JSON_PATCH, _FORM}))}, in UTF-8.",
            "Content-Type",
        )
    body = await _read(request, facade.limits.body_bytes, facade.limits.body_s)
    if not body and served.writes:
        raise bad_request("The request has no body.", "", "required")
    if kind.strip() in _JSON_TYPES | {JSON_PATCH} and served.name not in _JUDGED_BY_THE_JOURNEY:
        _can_be_read(body, facade.limits.depth_max)
        if not served.writes and b"\\u0000" in body:
            raise bad_request("The body holds U+0000, which no text here has.")
    return body


def _can_be_read(body: bytes, depth_max: int) -> None:
    """That JSON is no deeper than the journey reads. Raises FacadeError (400)."""
    if not has_many_brackets(body, depth_max):
        return
    try:
        tree = decimals.loads(body)
    except orjson.JSONDecodeError as error:
        if not decimals.is_too_deep(error):
            # Whoever needs a tree says what is wrong with this.
            return
    else:
        if not deeper_than(tree, depth_max):
            return
    raise bad_request(
        f"The body is nested too deeply: at most {depth_max} levels are read.", "", "too-costly"
    )


async def _read(request: Request, most: int, within_s: float) -> bytes:
    """The body, as far as it is neither too large nor too slow. Raises FacadeError (400, 408, 413)."""
    parts, size = [], 0
    try:
        async with asyncio.timeout(within_s):
            async for part in request.stream():
                size += len(part)
                if size > most:
                    raise FacadeError(
                        413,
                        "SEND_BAD_REQUEST",
                        "too-long",
                        f"A request may have {most} bytes. Send documents by reference.",
                    )
                parts.append(part)
    except TimeoutError:
        raise FacadeError(
            408,
            "SEND_BAD_REQUEST",
            "timeout",
            f"The request did not arrive within {within_s:g} seconds; nothing was taken in. Send the same again, with the same id.",
            headers={"Connection": "close"},
        ) from None
    except ClientDisconnect:
        # Nobody hears it: whoever sent has gone.
        raise bad_request("The request ended before its body did.", "", "incomplete") from None
    return b"".join(parts)


def _refusal(error: FacadeError) -> Response:
    return fhir(error.outcome(), error.status, error.headers)


def _told(request: Request, response: Response) -> Response:
    """The caller's own ids come back with every answer (BaRS, headers)."""
    for name in ("X-Request-Id", "X-Correlation-Id"):
        value = request.headers.get(name, "")
        if value.isascii() and value.isprintable() and 0 < len(value) <= 255:
            response.headers[name] = value
    return response


def _plain(status: int, text: str) -> Response:
    return Response(f"{text}\n", status, media_type="text/plain")
