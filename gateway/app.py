"""The gateway as one ASGI application: routes, the page, health, and the description of all of it."""

from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, Field
from pydantic.json_schema import models_json_schema
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.staticfiles import StaticFiles

from gateway import accept, jobs, operations, problems
from gateway.access import Access
from gateway.keys import HEADER, Authenticated
from gateway.parts import Parts
from gateway.problems import Problem, ProblemDetails, responses
from schemas.documents import DocumentUploaded
from schemas.requests import RequestSubmitted

CONSOLE = Path(__file__).parent / "console"
VERSION = "1"
FORM_BYTES = 100_000
"""What a multipart body has besides its document."""

_ABOUT = """\
A thin layer over events: what is accepted is durable in Kafka, and what is shown is what the topics say.
Errors are problem details (RFC 9457).
"""
_BODIES: tuple[type[BaseModel], ...] = (RequestSubmitted, DocumentUploaded, ProblemDetails)


class Me(BaseModel):
    """Whose key that is."""

    tenant: str = Field(description="The tenant; `*` for a key that sees all.", examples=["acme"])
    open: bool = Field(description="No keys are configured: everybody on this machine sees all.")


class Health(BaseModel):
    """Fine."""

    status: str = Field(description="`ok`.", examples=["ok"])


def create_app(parts: Parts) -> FastAPI:
    """The application. Its parts are started and closed by whoever made them."""
    app = FastAPI(
        title="Headrace",
        version=VERSION,
        description=_ABOUT,
        docs_url=None,
        redoc_url=None,
        # It would look for OpenTelemetry at each request, and record what was sent where it is refused.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.keys = parts.keys
    found = jobs.Jobs(parts)
    for router in (accept.router(parts, found), jobs.router(parts, found), operations.router(parts), _about(parts)):
        app.include_router(router)
    if CONSOLE.is_dir():
        app.mount("/console", StaticFiles(directory=CONSOLE, html=True), name="console")
    problems.install(app)
    app.openapi = lambda: _described(app)  # type: ignore[method-assign]  # FastAPI's documented way
    if parts.limits.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(parts.limits.cors_origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "X-API-Key", "Content-Type", "Idempotency-Key", "Prefer", "Last-Event-ID"],
            expose_headers=["Location", "Retry-After", "Preference-Applied"],
        )
    app.add_middleware(
        Access,
        is_open=parts.keys.open,
        cors_origins=parts.limits.cors_origins,
        max_body_bytes=parts.limits.max_body_bytes,
        max_upload_bytes=parts.limits.max_document_bytes + FORM_BYTES,
    )
    return app


def _about(parts: Parts) -> APIRouter:
    """Who asks, and whether the gateway is well."""
    routes = APIRouter()

    @routes.get("/v1/me", tags=["about"], summary="Whose key is this?", responses=responses())
    async def me(caller: Authenticated) -> Me:
        """Say what the key of this request sees."""
        return Me(tenant=caller.tenant, open=caller.open)

    @routes.get("/healthz", tags=["about"], summary="Is the process alive?")
    async def healthz() -> Health:
        """Say that the process lives."""
        return Health(status="ok")

    @routes.get(
        "/readyz",
        tags=["about"],
        summary="Is the gateway of use?",
        response_model=Health,
        responses={503: responses(503)[503]},
    )
    async def readyz() -> JSONResponse:
        """Say whether Kafka answers, and the read model has caught up."""
        missing = []
        if not parts.publisher.reachable:
            missing.append(f"Kafka at {parts.bootstrap} does not answer")
        if not parts.progress.caught_up:
            missing.append("the read model has not caught up with the topics yet")
        if not parts.progress.healthy:
            missing.append("the read model does not follow the topics")
        if missing:
            raise Problem(503, "not-ready", "; ".join(missing), headers={"Retry-After": "5"})
        return JSONResponse({"status": "ok"})

    @routes.get("/", include_in_schema=False)
    async def root() -> Response:
        return RedirectResponse("/console/")

    return routes


def _described(app: FastAPI) -> dict[str, Any]:
    """OpenAPI 3.1, with the bodies that routes read by themselves."""
    if app.openapi_schema is None:
        described = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes, summary=None
        )
        _, models = models_json_schema(
            [(model, "validation") for model in _BODIES], ref_template="#/components/schemas/{model}"
        )
        schemas = described.setdefault("components", {}).setdefault("schemas", {})
        for name, schema in models.get("$defs", {}).items():
            schemas.setdefault(name, schema)
        _describe_second_header(described)
        app.openapi_schema = described
    return app.openapi_schema


def _describe_second_header(described: dict[str, Any]) -> None:
    """Wherever a key is needed, it may come in either header."""
    schemes = described["components"]["securitySchemes"]
    schemes[HEADER.scheme_name] = HEADER.model.model_dump(mode="json", by_alias=True, exclude_none=True)
    for operations_of_path in described["paths"].values():
        for operation in operations_of_path.values():
            if "security" in operation:
                operation["security"].append({HEADER.scheme_name: []})
