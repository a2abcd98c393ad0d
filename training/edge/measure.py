"""`loupe edge bench`: every variant of a bundle, or of a package as a bundle would hold it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from models.errors import PackageTampered
from models.package.edge_bundle import INDEX_FILE
from training.edge.archive import opened
from training.edge.build import build
from training.edge.bundle.bench import bench
from training.edge.bundle.selftest import damaged_files


def measure(place: Path, *, threads: int, seconds: float) -> list[dict[str, Any]]:
    """The figures of every variant of the bundle (zip or folder) or package *place*.

    Our own code measures, not the bundle's. Raises `PackageTampered` for a bundle with a file
    missing or changed, or without variants, and what `build` raises for a package.
    """
    if place.is_dir() and not (place / INDEX_FILE).exists():
        with tempfile.TemporaryDirectory(prefix="loupe-bench-") as scratch:
            bundle = Path(scratch) / "bundle.zip"
            build(place, bundle, targets=("python", "ort"))
            return measure(bundle, threads=threads, seconds=seconds)
    with opened(place) as folder:
        if damaged := damaged_files(folder):
            raise PackageTampered(
                f"{place} is not as it was built: {'; '.join(damaged)}. Copy the bundle again"
            )
        figures = bench(folder, threads=threads, seconds=seconds)
    if not figures:
        raise PackageTampered(
            f"{place} has no variants to measure: it was built for the browser only"
        )
    return figures
