"""``GET /`` and its files: what they are served with. What the page does is tested in ``tests/e2e``."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest

from service.api.routes import console

pytestmark = pytest.mark.anyio

TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


async def test_page_and_everything_it_names_is_served(client: httpx.AsyncClient) -> None:
    page = await client.get("/")
    assert page.status_code == 200
    assert page.headers["Content-Type"].startswith("text/html")
    named = set(re.findall(r'(?:src|href)="([^"#]+)"', page.text))
    assert {"console/console.css", "console/console.js", "console/icon.svg", "docs"} <= named
    for path in named:
        assert (await client.get(f"/{path}")).status_code == 200, path


@pytest.mark.parametrize("file", sorted(console.FOLDER.iterdir()), ids=lambda file: file.name)
async def test_every_file_has_its_type_and_the_headers(client: httpx.AsyncClient, file: Path) -> None:
    response = await client.get(f"/console/{file.name}")
    assert response.content == file.read_bytes()
    assert response.headers["Content-Type"].startswith(TYPES[file.suffix])
    assert {name: response.headers[name] for name in console.HEADERS} == console.HEADERS


async def test_policy_lets_nothing_in_from_elsewhere(client: httpx.AsyncClient) -> None:
    headers = (await client.get("/")).headers
    policy = dict(rule.split(" ", 1) for rule in headers["Content-Security-Policy"].split("; "))
    assert policy == {
        "default-src": "'self'", "img-src": "'self' blob: data:", "object-src": "'none'", "base-uri": "'none'",
        "form-action": "'none'", "frame-ancestors": "'none'",
    }  # fmt: skip
    assert (headers["X-Content-Type-Options"], headers["Referrer-Policy"]) == ("nosniff", "no-referrer")


async def test_page_has_no_inline_script_or_style_and_names_no_other_host(client: httpx.AsyncClient) -> None:
    page = (await client.get("/")).text
    assert not re.search(r"<script(?![^>]*\ssrc=)|<style|\sstyle=|\son\w+=", page)
    for file in console.FOLDER.iterdir():
        outside = re.findall(r"(?:https?:)?//[\w.-]+\.\w+", file.read_text())
        assert set(outside) <= {"http://www.w3.org"}, file.name  # the name of SVG


@pytest.mark.parametrize("name", ["nothing.js", "", "%2e%2e", "..%2fschemas.py", "%2fetc%2fpasswd"])
async def test_what_is_no_file_of_the_console_is_not_found(client: httpx.AsyncClient, name: str) -> None:
    assert (await client.get(f"/console/{name}")).status_code == 404


async def test_unchanged_file_is_not_sent_twice(client: httpx.AsyncClient) -> None:
    etag = (await client.get("/console/console.js")).headers["ETag"]
    again = await client.get("/console/console.js", headers={"If-None-Match": etag})
    assert (again.status_code, again.content) == (304, b"")


async def test_head_of_the_page_is_answered_and_other_methods_are_refused(client: httpx.AsyncClient) -> None:
    assert (await client.head("/")).status_code == 200
    assert (await client.post("/")).status_code == 405
