"""Makes the pictures of inside.md and learn.md, by the commands that these guides show.

`python docs/make_inside_pictures.py WEIGHTS PHOTO PHOTOS`: WEIGHTS is a file of MobileNetV2 for
ImageNet, PHOTO a photo, PHOTOS a folder of photos, of which normalisation shows four. Debian's
Chromium takes the picture of the tour.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

FOLDER = Path(__file__).parent / "pictures"
WIDTH = 720
HEIGHTS = {"convolution": 565, "normalisation": 795}
HEIGHT = 364
"""Four rows of maps are enough to see what they are."""
COLOURS = 256
"""A palette keeps each picture small."""


def main() -> None:
    """Run the commands and keep their pictures."""
    weights, photo, photos = sys.argv[1:]
    commands = {
        "features": ["features", "mobilenet_v2", photo, "--layer", "features.5.conv.0.0"],
        "explain": ["explain", "mobilenet_v2", photo],
        "patches": [
            *("patches", "mobilenet_v2", "--data", photos),
            *("--layer", "features.4.conv.0.0", "--filter", "3"),
        ],
    }
    some = [str(file) for file in sorted(Path(photos).rglob("*.jpg"))[:4]]
    commands["convolution"] = ["convolution", "mobilenet_v2", photo]
    commands["normalisation"] = [
        *("normalisation", "mobilenet_v2", *some, "--layer", "features.3.conv.0.0")
    ]
    for name, arguments in commands.items():
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "picture.png"
            options = ["--weights", weights, "--out", str(out)]
            command = [sys.executable, "-m", "loupe", "inspect", *arguments, *options]
            subprocess.run(command, check=True)
            picture = Image.open(out).convert("RGB")
        _keep(picture, name)
    _take_tour(weights, photo)


def _keep(picture: Image.Image, name: str) -> None:
    height = round(picture.height * WIDTH / picture.width)
    smaller = picture.resize((WIDTH, height), Image.Resampling.LANCZOS)
    cut = smaller.crop((0, 0, WIDTH, min(height, HEIGHTS.get(name, HEIGHT))))
    _reduced(cut).save(FOLDER / f"{name}.png", optimize=True)


def _reduced(picture: Image.Image) -> Image.Image:
    """*picture* with few colours, of which rare ones, such as those of frames, are kept."""
    return picture.quantize(COLOURS, method=Image.Quantize.MAXCOVERAGE)


def _take_tour(weights: str, photo: str) -> None:
    """The second chapter of the tour, as a browser shows it."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        out = Path(folder) / "learn.html"
        # The page shows commands, in which the names of files should be short.
        for given, name in ((photo, "photo.jpg"), (weights, "weights.safetensors")):
            (Path(folder) / name).symlink_to(Path(given).resolve())
        command = [sys.executable, "-m", "loupe", "learn", "photo.jpg", "--model", "mobilenet_v2"]
        subprocess.run(
            [*command, "--weights", "weights.safetensors"],
            check=True,
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(FOLDER.parents[1])},
            stdout=subprocess.DEVNULL,
        )
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": 900, "height": 800})
        page.goto(out.as_uri())
        chapter = page.locator("section").nth(1)
        chapter.locator("summary").click()
        shot = Path(folder) / "shot.png"
        chapter.screenshot(path=shot)
        _reduced(Image.open(shot).convert("RGB")).save(FOLDER / "learn.png", optimize=True)


if __name__ == "__main__":
    main()
