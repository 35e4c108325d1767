"""The documents as a site: every link and anchor leads somewhere, and a reader's browser asks no other host."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.conftest import need

ROOT = Path(__file__).parents[1]
EXTERNAL = re.compile(r"^(?:[a-z]+:)?//")


class Loaded(HTMLParser):
    """What a page makes a browser load: links that a reader follows are not."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep what is loaded without a click."""
        given = {name: value for name, value in attrs if value}
        if tag != "a":
            self.addresses += [given[name] for name in ("src", "href", "srcset", "data", "poster") if name in given]
        assert "mermaid" not in given.get("class", ""), "the theme loads that library from elsewhere"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``make site`` builds; a warning fails it."""
    need(find_spec("material") is not None, "MkDocs", "pip install '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    built = build(ROOT / "mkdocs.yml", folder)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def build(config: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """What ``make site`` runs."""
    (command,) = re.findall(r"\$\(BIN\)/mkdocs (.+)", (ROOT / "Makefile").read_text())
    given = ["--config-file", str(config), "--site-dir", str(folder)]
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", *command.split(), *given], cwd=config.parent, capture_output=True, text=True
    )


def test_a_link_that_leads_nowhere_fails_the_build(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    with (tmp_path / "docs/report.md").open("a") as document:
        document.write("[one](nowhere.md), [two](api.md#nowhere), [three](../nowhere/file.py)\n")
    config = tmp_path / "mkdocs.yml"
    config.write_text(f"INHERIT: {ROOT / 'mkdocs.yml'}\ndocs_dir: docs\nhooks: [{ROOT / 'docs/site.py'}]\n")
    built = build(config, tmp_path / "site")
    assert built.returncode == 1
    found = re.findall(r"contains a link '([^']+)'", built.stderr)
    assert sorted(found) == ["api.md#nowhere", "nowhere.md", "nowhere/file.py"]


def test_every_document_is_a_page(site: Path) -> None:
    pages = {page.relative_to(site).as_posix() for page in site.rglob("*.html")}
    assert {f"{document.stem}.html" for document in ROOT.glob("docs/*.md")} <= pages
    assert {"index.html", "changelog.html", "contributing.html", "security.html", "license.html"} <= pages
    assert {f"{card.parent.relative_to(ROOT)}/index.html" for card in ROOT.glob("model_store/*/*/README.md")} <= pages
    assert not list(site.rglob("*.py"))


def test_nothing_is_loaded_from_another_host(site: Path) -> None:
    loaded = {address for page in site.rglob("*.html") for address in Loaded(page.read_text()).addresses}
    assert any(address.endswith(".css") for address in loaded)
    assert not {address for address in loaded if EXTERNAL.match(address)}
    for sheet in site.rglob("*.css"):
        assert not re.findall(r"""(?:url\(|@import )["']?(?:[a-z]+:)?//""", sheet.read_text()), sheet


def test_lists_are_shown_as_lists(site: Path) -> None:
    """What belongs to a list's entry is indented by four columns: GitHub takes two as well, MkDocs does not."""
    for page in site.rglob("*.html"):
        assert not re.search(r"<p>[-*] |[.:] - <strong>", page.read_text()), page.name
