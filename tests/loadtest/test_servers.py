from __future__ import annotations

import sys
from pathlib import Path

import psutil
import pytest

from loadtest.servers import ServerFailed, free_port, running

# Answers every POST; its child is in a session of its own and ignores being told to end.
SERVER = """
import http.server, signal, subprocess, sys
code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def test_a_server_is_stopped_with_all_that_it_started(tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-c", SERVER, str(port)]
    url = f"http://127.0.0.1:{port}/classify"
    with running(command, {}, url, b"image", "image/jpeg", tmp_path / "log") as server:
        process = psutil.Process(server.pid)
        family = [process, *process.children(recursive=True)]
        assert len(family) == 2
        assert server.origin == f"http://127.0.0.1:{port}"
        assert server.rss() > process.memory_info().rss
        assert 0 < server.pss() <= server.rss()
        assert set(server.cpu_seconds()) == {each.pid for each in family}
    assert not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in family)


def test_a_server_that_does_not_come_up_is_told_with_its_log(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "server.log"
    command = [sys.executable, "-c", "raise SystemExit('no model')"]
    with (
        pytest.raises(ServerFailed, match=r"ended with status 1; see .*server\.log"),
        running(command, {}, f"http://127.0.0.1:{free_port()}/", b"", "image/jpeg", log),
    ):
        pass
    assert log.read_text().strip() == "no model"
