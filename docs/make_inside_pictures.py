"""Makes the pictures of inside.md and learn.md, by the commands that these guides show.

`python docs/make_inside_pictures.py WEIGHTS PACKAGE RUN A B PHOTOS`:
WEIGHTS is a file of MobileNetV2 for ImageNet, PACKAGE a package, RUN a run on `digits`, A and B are
photos, and PHOTOS is a folder of them. Debian's Chromium takes the picture of the tour.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from training.data.source import load_dataset

FOLDER = Path(__file__).parent / "pictures"
WIDTH = 720
HEIGHTS = {
    "convolution": 565,
    "embedding": 760,
    "gradients": 1100,
    "gradients_training": 800,
    "normalisation": 795,
}
HEIGHT = 364
"""Four rows of maps are enough to see what they are."""
COLOURS = 256
"""A palette keeps each picture small."""


def main() -> None:
    """Run the commands and keep their pictures."""
    weights, package, run, photo, other, photos = sys.argv[1:]
    digit = FOLDER / "digit.png"
    network = ["mobilenet_v2", "--weights", weights]
    some = [str(file) for file in sorted(Path(photos).rglob("*.jpg"))[:4]]
    commands = {
        "shapes": ["shapes", "vgg11"],
        "features": ["features", *network, photo, "--layer", "features.5.conv.0.0"],
        "filters": ["filters", *network],
        "explain": ["explain", *network, photo],
        "patches": [
            *("patches", *network, "--data", photos),
            *("--layer", "features.4.conv.0.0", "--filter", "3"),
        ],
        "embedding": ["embedding", run, "--data", "digits"],
        "gradients": ["gradients", run, str(digit)],
        "gradients_training": ["gradients", run],
        "convolution": ["convolution", *network, photo],
        "normalisation": [
            *("normalisation", *network, *some, "--layer", "features.3.conv.0.0"),
        ],
        "compare": ["compare", package, "--image", photo, "--image", other],
    }
    digit.write_bytes(load_dataset("digits").splits["val"][0].read())
    for name, arguments in commands.items():
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "picture.png"
            command = [sys.executable, "-m", "loupe", "inspect", *arguments, "--out", str(out)]
            subprocess.run(command, check=True)
            picture = Image.open(out).convert("RGB")
        _keep(picture, name)
    digit.unlink()
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
