"""``GET /``: the console, a set of static files; ``GET /console/{name}``: these files."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.staticfiles import StaticFiles

router = APIRouter(include_in_schema=False)

FOLDER = Path(__file__).parents[1] / "console"
HEADERS = {
    # The page shows the photographs it sends (blob:), and loads everything else from this server.
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-cache",  # revalidated by ETag each time, so that a page never outlives its server's version
}


@router.api_route("/", methods=["GET", "HEAD"])
async def page(request: Request) -> Response:
    """The page for people who open the server's address in a browser."""
    return await _file("index.html", request)


@router.api_route("/console/{name}", methods=["GET", "HEAD"])
async def part_of_page(name: str, request: Request) -> Response:
    """A stylesheet, a script or the icon; 404 if there is no such file."""
    return await _file(name, request)


async def _file(name: str, request: Request) -> Response:
    response = await StaticFiles(directory=FOLDER).get_response(name, request.scope)
    response.headers.update(HEADERS)
    return response
