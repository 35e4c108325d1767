"""A real nginx serves the server under a prefix, over TLS as clients see it: nothing leads out of the prefix."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator

import httpx
import pytest

from tests.conftest import need

Server = tuple[subprocess.Popen[str], httpx.Client]
Serve = Callable[..., Server]

TIMEOUT = 60
RAW = {"Content-Type": "image/jpeg"}
CONFIG = """
daemon off; pid nginx.pid; error_log stderr warn;
events {}
http {
    access_log off;
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path unused; uwsgi_temp_path unused;
    scgi_temp_path unused;
    server {
        listen 127.0.0.1:PORT;
        location /vision/ { proxy_pass http://SERVER/; proxy_set_header Host example.org; }
        location /keeps/ { rewrite ^/keeps/(.*)$ /vision/$1 break; proxy_pass http://SERVER; }
    }
}
"""


@pytest.fixture(scope="module")
def proxy(servers: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of an nginx that takes the prefix /vision away; /keeps sends it on."""
    need(shutil.which("nginx") is not None, "nginx", "apt-get install nginx")
    _, server = servers(root_path="/vision")
    folder = tmp_path_factory.mktemp("nginx")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    address = f"{server.base_url.host}:{server.base_url.port}"
    (folder / "nginx.conf").write_text(CONFIG.replace("PORT", str(port)).replace("SERVER", address))
    process = subprocess.Popen(["nginx", "-p", str(folder), "-c", "nginx.conf", "-e", "stderr"])
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=TIMEOUT) as client:
            until = time.monotonic() + TIMEOUT
            while time.monotonic() < until:
                try:
                    client.get("/vision/health/live")
                    break
                except httpx.ConnectError:
                    assert process.poll() is None
            yield client
    finally:
        process.terminate()
        process.wait()


def test_the_documentation_and_the_console_load_from_under_the_prefix(proxy: httpx.Client) -> None:
    for page in ("/vision/docs", "/vision/redoc", "/vision/"):
        answer = proxy.get(page)
        assert answer.status_code == 200
        assets = re.findall(r'(?:src|href)="([^"#:]+)"', answer.text)
        assert assets
        for asset in assets:
            found = answer.url.join(asset)
            assert found.path.startswith("/vision/")
            assert proxy.get(found).status_code == 200, found
    (schema,) = re.findall(r"url: '([^']+)'", proxy.get("/vision/docs").text)
    assert proxy.get(schema).json()["servers"] == [{"url": "/vision"}]


def test_no_answer_leads_out_of_the_prefix(proxy: httpx.Client, jpeg: bytes) -> None:
    for prefix in ("/vision", "/keeps"):
        for path in ("/classify", "/classify/"):
            answer = proxy.post(prefix + path, content=jpeg, headers=RAW)
            assert answer.status_code == 200
        for path in ("/docs/", "/config/threshold/", "/v2/", "/console/console.js/"):
            answer = proxy.get(prefix + path)
            assert (answer.status_code, "Location" in answer.headers) == (200, False)
