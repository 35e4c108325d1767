"""A hook of MkDocs: the documents outside docs/ are pages of the site too, and every link leads to a page.

GitHub shows the same files as they are, so links in them are relative to the repository: here they become the site's.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "LICENSE": "license.md",
}
CARDS = [
    path.relative_to(ROOT).as_posix()
    for name in ("README.md", "*.png")
    for path in ROOT.glob(f"model_store/*/*/{name}")
]
ELSEWHERE = PAGES | {path: path for path in CARDS}
LINK = re.compile(r"(?<=\]\()([^)#:\s]+)(?=[)#])")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what is not in docs/."""
    for source, target in ELSEWHERE.items():
        files.append(File.generated(config, target, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Turn links between files of the repository into links between pages."""
    here = {target: source for source, target in ELSEWHERE.items()}.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def on_site(found: re.Match[str]) -> str:
        linked = posixpath.normpath(posixpath.join(posixpath.dirname(here), found[1]))
        target = ELSEWHERE.get(linked, linked.removeprefix("docs/"))
        return posixpath.relpath(target, posixpath.dirname(page.file.src_uri) or ".")

    return LINK.sub(on_site, markdown)
