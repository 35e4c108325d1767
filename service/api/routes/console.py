"""``GET /``: the console, a page of plain files; ``GET /console/{name}``: those files."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.staticfiles import StaticFiles

router = APIRouter(include_in_schema=False)

FOLDER = Path(__file__).parents[1] / "console"
HEADERS = {
    # The page shows the photographs it sends (blob:), and takes everything else from here.
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-cache",  # asked again each time, by ETag: a new server never meets an old page
}


@router.api_route("/", methods=["GET", "HEAD"])
async def page(request: Request) -> Response:
    """Where a person who opens the address in a browser finds everything."""
    return await _file("index.html", request)


@router.api_route("/console/{name}", methods=["GET", "HEAD"])
async def part_of_page(name: str, request: Request) -> Response:
    """A style, a script or the icon; 404 where there is no such file."""
    return await _file(name, request)


async def _file(name: str, request: Request) -> Response:
    response = await StaticFiles(directory=FOLDER).get_response(name, request.scope)
    response.headers.update(HEADERS)
    return response
