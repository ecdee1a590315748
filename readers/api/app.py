"""The app of `readers serve`: its routes, who may use them, and one shape for every error."""

from __future__ import annotations

import hmac

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from marketdata.errors import MarketDataError
from marketdata.settings import Settings
from readers.api.answers import JsonAnswer, error_json, refuse
from readers.api.metrics import Measured, Metrics
from readers.api.routes import open_routes, routes
from readers.client import MarketData

_CODES = {
    401: "unauthorized",
    404: "not_found",
    405: "method_not_allowed",
    422: "bad_argument",
}


def create_app(settings: Settings, data: MarketData) -> FastAPI:
    """The app over `data`; with `api.token` set, every route but `/health` asks for it."""
    metrics = Metrics(data)
    app = FastAPI(
        title="Market data",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        middleware=[Middleware(Measured, metrics=metrics)],
        exception_handlers={
            MarketDataError: _refuse_known,
            RequestValidationError: _refuse_arguments,
            HTTPException: _refuse_request,
            Exception: _refuse_unexpected,
        },
    )
    app.state.settings = settings
    app.state.data = data
    app.state.metrics = metrics
    app.include_router(open_routes)
    app.include_router(routes, dependencies=[Depends(_require_token)])
    return app


async def _require_token(request: Request) -> None:
    token = request.app.state.settings.api.token
    if token is None:
        return
    scheme, _, presented = request.headers.get("Authorization", "").partition(" ")
    expected = token.get_secret_value().encode()
    if scheme.lower() != "bearer" or not hmac.compare_digest(presented.encode(), expected):
        message = "a bearer token is needed: api.token of the configuration"
        raise HTTPException(401, message, {"WWW-Authenticate": "Bearer"})


async def _refuse_known(_: Request, error: MarketDataError) -> JsonAnswer:
    return refuse(error)


async def _refuse_arguments(_: Request, error: RequestValidationError) -> JsonAnswer:
    faults = [
        {"argument": str(fault["loc"][-1]), "message": fault["msg"]} for fault in error.errors()
    ]
    message = "; ".join(f"{fault['argument']}: {fault['message']}" for fault in faults)
    return JsonAnswer({"error": error_json("bad_argument", message, faults)}, 422)


async def _refuse_request(request: Request, error: HTTPException) -> JsonAnswer:
    code = _CODES.get(error.status_code, "error")
    detail = {"method": request.method, "path": request.url.path}
    answer = {"error": error_json(code, error.detail, detail)}
    return JsonAnswer(answer, error.status_code, error.headers)


async def _refuse_unexpected(_: Request, error: Exception) -> JsonAnswer:
    message = f"an unexpected {type(error).__name__}; the log has more"
    return JsonAnswer({"error": error_json("internal", message)}, 500)
