"""Grafana's dashboards, as JSON: ``python docker/grafana/build.py [FOLDER]``, by default ``dashboards/`` beside it.

What may be shown by model comes from the recording rules; what is shown by replica from the replicas' own metrics.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from early_exit import early_exit
from fleet import fleet
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from serving import serving

DASHBOARDS = Path(__file__).parent / "dashboards"


def main(folder: Path) -> None:
    """Write every dashboard into ``folder``."""
    folder.mkdir(exist_ok=True)
    for page in (early_exit(), serving(), fleet()):
        text = json.dumps(page, cls=JSONEncoder, indent=2, sort_keys=True)
        (folder / f"{str(page.uid).removeprefix('lowfirst-')}.json").write_text(text + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else DASHBOARDS)
