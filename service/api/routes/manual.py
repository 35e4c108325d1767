"""``GET /manual/operate.md``: these documents as pages, of the version that runs. Alerts link to them."""

from __future__ import annotations

import re
from functools import lru_cache
from html import escape
from itertools import pairwise
from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse, HTMLResponse
from starlette.exceptions import HTTPException

from service.api.routes.console import HEADERS

router = APIRouter(include_in_schema=False)

FOLDER = Path(__file__).parents[2] / "manual"  # a link to ../docs

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<link rel="icon" href="../console/icon.svg" type="image/svg+xml">
<link rel="stylesheet" href="../console/manual.css">
</head>
<body><main>
{body}</main></body>
</html>
"""


@router.api_route("/manual/{name}", methods=["GET", "HEAD"])
async def page(name: str, request: Request) -> Response:  # noqa: ARG001
    """A page, as its links name it (``operate.md``), or a picture on one; 404 where there is none."""
    file = FOLDER / name
    if not re.fullmatch(r"[a-z-]+\.(md|png)", name) or not file.is_file():
        raise HTTPException(404)
    if file.suffix == ".png":
        return FileResponse(file, headers=HEADERS)
    return HTMLResponse(_rendered(file), headers=HEADERS)


@lru_cache
def _rendered(file: Path) -> str:
    from markdown_it import MarkdownIt  # few servers are asked

    markdown = MarkdownIt("commonmark").enable("table")
    tokens = markdown.parse(file.read_text(encoding="utf-8"))
    headings = [(token, text.content) for token, text in pairwise(tokens) if token.type == "heading_open"]
    for token, text in headings:
        token.attrSet("id", _anchor(text))
    return PAGE.format(title=escape(headings[0][1]), body=markdown.renderer.render(tokens, markdown.options, {}))


def _anchor(heading: str) -> str:
    """By which links name a heading, as GitHub does."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
