"""The page at `/`: its files, and the facts about the server that it shows.

Plain HTML, CSS and JavaScript modules: no framework, no build step, nothing from another host.
"""

from __future__ import annotations

from collections.abc import Collection
from importlib import resources
from typing import Any, Final

from kresnet.export.contract import Contract

_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}


def load_assets() -> dict[str, tuple[bytes, str]]:
    """Read the files of the page.

    Returns:
        Content and media type by file name: "index.html" is the page at `/`, the others belong
        under `/static/`.
    """
    files = (file for file in resources.files(__package__).iterdir() if file.is_file())
    return {
        file.name: (file.read_bytes(), _TYPES[suffix])
        for file in files
        if (suffix := "." + file.name.rpartition(".")[2]) in _TYPES
    }


def facts(
    contract: Contract,
    *,
    name: str,
    version: int,
    runtime: str,
    signatures: Collection[str],
    max_body_bytes: int,
    max_pixels: int,
) -> dict[str, Any]:
    """Return what the page asks for at `/v1/page.json`.

    Args:
        contract: Of the version that is served.
        name: Of the model, in paths.
        version: Its number.
        runtime: What computes, as a reader should see it.
        signatures: Names of the signatures that can be asked for.
        max_body_bytes: Longest body of a request that the server takes.
        max_pixels: An image that announces more is not decoded.
    """
    return {
        "name": name,
        "version": version,
        "variant": contract.variant,
        "num_classes": len(contract.classes),
        "threshold": contract.threshold,
        "crop_pct": contract.preprocessing.crop_pct,
        "runtime": runtime,
        "signature": "explain" if "explain" in signatures else "serving_bytes",
        "max_body_bytes": max_body_bytes,
        "max_pixels": max_pixels,
    }
