"""``make sbom`` and ``make audit`` speak of what is installed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import service
from tests.conftest import need
from tests.test_requirements import locked

ROOT = Path(__file__).parents[2]
IN_PLACE = ["make", "--silent", "--old-file=.venv/.installed-test", f"BIN={Path(sys.executable).parent}"]


def test_bill_of_materials_names_every_package_that_the_image_installs(tmp_path: Path) -> None:
    need(find_spec("cyclonedx_py") is not None, "cyclonedx-bom", "pip install cyclonedx-bom")
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("requirements", "service"):
        (tmp_path / name).mkdir()
    shutil.copy(ROOT / "requirements/serve.txt", tmp_path / "requirements")
    shutil.copy(ROOT / "service/__init__.py", tmp_path / "service")
    subprocess.run([*IN_PLACE, "sbom"], cwd=tmp_path, check=True, capture_output=True)
    bill = json.loads((tmp_path / "dist/sbom.cdx.json").read_text())
    assert bill["bomFormat"] == "CycloneDX"
    assert (bill["metadata"]["component"]["name"], bill["metadata"]["component"]["version"]) == (
        "lowfirst",
        service.__version__,
    )
    found = {(each["name"], each["version"]) for each in bill["components"]}
    assert found == {(package.name, str(package.specifier).removeprefix("==")) for package, _ in locked("serve")}
    assert all(each["purl"].startswith("pkg:pypi/") for each in bill["components"])
    assert all(each["externalReferences"][0]["hashes"] for each in bill["components"])


def test_audit_looks_at_every_lock() -> None:
    (names,) = re.findall(r"^LOCKS := (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {f"{name}.txt" for name in names.split()} == {path.name for path in (ROOT / "requirements").iterdir()}
