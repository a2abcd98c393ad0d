"""Makes the pictures of inside.md.

`python docs/make_inside_pictures.py WEIGHTS PACKAGE RUN A B PHOTOS`:
WEIGHTS is a file of MobileNetV2 for ImageNet, PACKAGE a package, RUN a run on `digits`, A and B are
photos, and PHOTOS is a folder of them. Each picture is made by the command that the guide shows.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from training.data.source import load_dataset

FOLDER = Path(__file__).parent / "pictures"
WIDTH = 720
HEIGHTS = {"embedding": 760, "gradients": 1100, "gradients_training": 800}
"""Of pictures that need more than four rows of maps."""
COLOURS = 256
"""A palette keeps each picture small."""


def main() -> None:
    """Run the commands and keep their pictures."""
    weights, package, run, photo, other, photos = sys.argv[1:]
    digit = FOLDER / "digit.png"
    network = ["mobilenet_v2", "--weights", weights]
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
        "compare": ["compare", package, "--image", photo, "--image", other],
    }
    digit.write_bytes(load_dataset("digits").splits["val"][0].read())
    for name, arguments in commands.items():
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "picture.png"
            command = [sys.executable, "-m", "loupe", "inspect", *arguments, "--out", str(out)]
            subprocess.run(command, check=True)
            picture = Image.open(out).convert("RGB")
        height = round(picture.height * WIDTH / picture.width)
        # Four rows of maps are enough to see what they are.
        smaller = picture.resize((WIDTH, height), Image.Resampling.LANCZOS).crop(
            (0, 0, WIDTH, min(height, HEIGHTS.get(name, 364)))
        )
        smaller.quantize(COLOURS, kmeans=3).save(FOLDER / f"{name}.png", optimize=True)
    digit.unlink()


if __name__ == "__main__":
    main()
