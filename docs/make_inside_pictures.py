"""Makes the pictures of inside.md: `python docs/make_inside_pictures.py WEIGHTS PHOTO PHOTOS`.

WEIGHTS is a file of MobileNetV2 for ImageNet, PHOTO a photo, PHOTOS a folder of photos. Each
picture is made by the command that the guide shows.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

FOLDER = Path(__file__).parent / "pictures"
WIDTH = 720
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
    for name, arguments in commands.items():
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "picture.png"
            options = ["--weights", weights, "--out", str(out)]
            command = [sys.executable, "-m", "loupe", "inspect", *arguments, *options]
            subprocess.run(command, check=True)
            picture = Image.open(out).convert("RGB")
        height = round(picture.height * WIDTH / picture.width)
        # Four rows of maps are enough to see what they are.
        smaller = picture.resize((WIDTH, height), Image.Resampling.LANCZOS).crop(
            (0, 0, WIDTH, min(height, 364))
        )
        smaller.quantize(COLOURS).save(FOLDER / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
