"""``lowfirst sign``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.cli.console import output, unverified_folder


def sign(
    model: Annotated[str, typer.Argument(help="Model of the store: name, or name/version.")],
    key: Annotated[Path, typer.Option(help="Private key: PEM, an elliptic curve (P-256, P-384 or P-521).")],
) -> None:
    """Sign a model for servers with LOWFIRST_MODEL_KEY, which load only signed models. Sign again after any change."""
    from service.signing import sign as put

    output.print(f"signed {put(unverified_folder(model), key)}", highlight=False, markup=False, soft_wrap=True)
