"""The ASGI application: routes, and what becomes of errors."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict
from functools import partial
from importlib import resources
from typing import Any

import torch
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from fewstep.errors import UsageError, nearest
from fewstep.serving import edits, verbs
from fewstep.serving.bodies import (
    Answer,
    EditAsked,
    InterpolateAsked,
    Models,
    Refusal,
    SampleAsked,
)
from fewstep.serving.forms import form
from fewstep.serving.gate import App, Gate
from fewstep.serving.limits import Limits
from fewstep.serving.served import Served
from fewstep.serving.worker import Busy, Cancelled, Ticket, TooSlow, Worker
from fewstep.version import __version__

LOG = logging.getLogger("uvicorn.error")

KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
"""Content types of the page's files."""

CLOSED = 499
"""Status of an answer that nobody reads, because its client has left."""

REFUSALS: dict[int | str, dict[str, Any]] = {
    code: {"model": Refusal} for code in (401, 403, 404, 413, 415, 421, 422, 429, 503)
}


def page_files() -> dict[str, tuple[bytes, str]]:
    """Content and kind of the page's files by name; read once, so that no request reads a file."""
    folder = resources.files("fewstep.serving") / "page"
    files = [one for one in folder.iterdir() if "." + one.name.rpartition(".")[2] in KINDS]
    return {one.name: (one.read_bytes(), KINDS["." + one.name.rpartition(".")[2]]) for one in files}


def application(
    models: Mapping[str, Served],
    limits: Limits,
    *,
    token: str | None = None,
    host: str = "127.0.0.1",
) -> App:
    """The whole server behind its gate.

    Args:
        models: by name.
        limits: of requests.
        token: that requests must show; None asks for none.
        host: that the server listens at.
    """
    worker, files = Worker(limits.queue, limits.seconds), page_files()
    facts = Models(
        version=__version__,
        models=[form(one) for one in models.values()],
        limits=asdict(limits),
    )

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        for one in models.values():
            worker.begin_with(partial(verbs.warm, one))
        yield
        worker.stop()

    app = FastAPI(
        title="fewstep",
        version=__version__,
        description="Samples and edits of few-step generative models.",
        docs_url=None,
        redoc_url=None,
        lifespan=life,
    )
    _errors(app)

    def known(name: str) -> Served:
        if name not in models:
            raise HTTPException(404, f"no model of this name; {nearest(name, models)}")
        return models[name]

    async def computed(request: Request, work: Callable[[Ticket], Any]) -> Response:
        async def gone() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass

        try:
            turn = await worker.run(work, gone)
        except (UsageError, Busy, Cancelled, TooSlow, MemoryError):
            raise
        except Exception as error:  # networks of users raise all kinds
            # torch says by its words alone that the CPU's memory is full.
            if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):
                raise MemoryError from error
            LOG.error("a request failed", exc_info=error)
            raise HTTPException(500, "the server failed at this; its terminal says why") from error
        if isinstance(turn.result, bytes):
            return Response(turn.result, media_type="image/png")
        turn.result.waited, turn.result.ahead = turn.waited, turn.ahead
        return Response(turn.result.model_dump_json(), media_type="application/json")

    @app.get("/api/models", response_model=Models, responses={401: REFUSALS[401]})
    async def list_models() -> JSONResponse:
        """The models of this server, what may be asked of each, and the limits."""
        return JSONResponse(facts.model_dump(mode="json"))

    @app.post("/api/sample", response_model=Answer, responses=REFUSALS)
    async def sample(request: Request, asked: SampleAsked) -> Response:
        """Generate samples, and say what made each and how long it took."""
        served = known(asked.model)
        return await computed(request, lambda ticket: verbs.sample(served, asked, limits, ticket))

    @app.post("/api/edit", response_model=Answer, responses=REFUSALS)
    async def edit(request: Request, asked: EditAsked) -> Response:
        """Edit a picture: inpaint, strokes, vary, upscale, colourise, deblur, denoise."""
        served = known(asked.model)
        return await computed(request, lambda ticket: edits.edit(served, asked, limits, ticket))

    @app.post("/api/interpolate", response_model=Answer, responses=REFUSALS)
    async def interpolate(request: Request, asked: InterpolateAsked) -> Response:
        """Generate pictures on the way between those of two or more seeds."""
        served = known(asked.model)
        return await computed(
            request, lambda ticket: edits.interpolate(served, asked, limits, ticket)
        )

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return _file(files, "index.html")

    @app.get("/page/{name}", include_in_schema=False)
    async def part(name: str) -> Response:
        return _file(files, name)

    return Gate(app, limits, token, host)


def _file(files: Mapping[str, tuple[bytes, str]], name: str) -> Response:
    if name not in files:
        raise HTTPException(404, "nothing is here")
    content, kind = files[name]
    return Response(content, media_type=kind)


def _errors(app: FastAPI) -> None:
    """One plain sentence for each error."""

    def says(status: int, sentence: str, after: int | None = None) -> JSONResponse:
        headers = {} if after is None else {"retry-after": str(after)}
        return JSONResponse({"error": sentence}, status, headers)

    @app.exception_handler(RequestValidationError)
    async def wrong_body(request: Request, error: RequestValidationError) -> JSONResponse:
        return says(422, sentence_of(error))

    @app.exception_handler(UsageError)
    async def wrong_use(request: Request, error: UsageError) -> JSONResponse:
        return says(422, str(error))

    @app.exception_handler(HTTPException)
    async def wrong_place(request: Request, error: HTTPException) -> JSONResponse:
        plain = {
            "Not Found": "nothing is here",
            "Method Not Allowed": "this address answers to another method",
        }
        return says(error.status_code, plain.get(str(error.detail), str(error.detail)))

    @app.exception_handler(Busy)
    async def busy(request: Request, error: Busy) -> JSONResponse:
        return says(429, str(error), error.seconds)

    @app.exception_handler(TooSlow)
    async def slow(request: Request, error: TooSlow) -> JSONResponse:
        return says(503, str(error), 1)

    @app.exception_handler(MemoryError)
    async def full(request: Request, error: MemoryError) -> JSONResponse:
        return says(503, "this needs more memory than there is; ask for fewer samples", 1)

    @app.exception_handler(Cancelled)
    async def cancelled(request: Request, error: Cancelled) -> JSONResponse:
        return says(CLOSED, "the request was cancelled")


def sentence_of(error: RequestValidationError) -> str:
    """The first thing that is wrong with a request, without what was sent."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"][1:] if isinstance(part, str | int))[:100]
    if first["type"] == "extra_forbidden":
        return f"the request has an unknown field {place!r}; leave it out"
    if first["type"] == "json_invalid":
        return "the request is no valid JSON"
    if first["type"] == "missing":
        return f"the request lacks the field {place!r}" if place else "the request has no body"
    message = first["msg"][:1].lower() + first["msg"][1:200]
    return f"{place}: {message}" if place else message
