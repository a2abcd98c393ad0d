"""The README of a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

from models.package.manifest import Manifest

TEMPLATE = Template(Path(__file__).with_name("readme.template.md").read_text(encoding="utf-8"))
_RUN = Template("""
## Run it

Python 3.11 or newer, and three packages:

    python -m pip install numpy pillow "onnxruntime>=$onnxruntime"
    python run.py photo.jpg
    python bench.py

`run.py --variant NAME` takes another file of `variants/`: $variants. The default is $default.
""")
_WEB = Template("""
## In a browser

`web/` is a static page that loads nothing from elsewhere. Put it on any web server with HTTPS, or
look at it here:

    python -m http.server --bind 127.0.0.1 --directory web 8000

and open http://127.0.0.1:8000. After the first visit it works without a network. Photos and camera
pictures do not leave the browser. It needs WebAssembly SIMD: Chrome or Edge 91, Firefox 89, Safari
16.4, or newer. The page has its own self-test.
""")


def readme(manifest: Manifest, index: Mapping[str, Any]) -> str:
    """README.md of the bundle of *manifest*, whose `bundle.json` begins as *index*."""
    runs = _RUN.substitute(
        onnxruntime=index["onnxruntime"],
        variants=", ".join(index["variants"]),
        default=index["default"],
    )
    validated = (
        ""
        if manifest.cpu_class is None
        else f" int8 was validated on {manifest.cpu_class}; other CPUs may compute other answers."
    )
    return TEMPLATE.substitute(
        network=manifest.architecture.network,
        classes=len(manifest.labels),
        quality=_quality(manifest),
        precision=manifest.precision,
        validated=validated,
        run=runs if index["variants"] else "",
        web=_WEB.substitute() if "web" in index["targets"] else "",
    )


def _quality(manifest: Manifest) -> str:
    if manifest.evaluation is None:
        return "Imported and not evaluated: nobody has measured how often it is right. It runs"
    count, top1 = manifest.evaluation.count, manifest.evaluation.metrics["top1"]
    right = f"{top1.value:.1%} ({top1.low:.1%} to {top1.high:.1%})"
    return f"On {count} held-out images {right} were right,"
