"""The folder of a phone, from training to the answer of a served model: HEIC, turned, in Display
P3, and far larger than the model's input.
"""

from __future__ import annotations

import dataclasses
import io
import struct

import httpx
import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from pillow_heif import register_heif_opener

from models.pixels.preprocess import decode
from models.store.store import Store
from tests.http.server import serving
from tests.training.photos import COLOURS
from tests.training.small_runs import TINY
from training.data.loader import TrainImages
from training.data.quarantine import Quarantine
from training.data.source import load_dataset
from training.evaluate.judge import judge
from training.export.export import export
from training.fit.loop import train
from training.fit.preparation import preprocess_spec

P3_COLORANTS = {
    "r": (0.51512, 0.2412, -0.00105),
    "g": (0.29198, 0.69225, 0.04189),
    "b": (0.1571, 0.06657, 0.78407),
}
"""XYZ of Display P3's primaries, adapted to D50 as ICC profiles have them."""
HEADERS = {"content-type": "application/octet-stream"}
CONFIG = dataclasses.replace(
    TINY, network="lenet5", image_size=32, resize_size=36, convert_icc=True
)


def display_p3() -> bytes:
    """sRGB's profile with the primaries of Display P3; both have the same curve."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for number in range(struct.unpack_from(">I", profile, 128)[0]):
        tag, at, _ = struct.unpack_from(">4sII", profile, 132 + 12 * number)
        if tag[1:] == b"XYZ" and chr(tag[0]) in P3_COLORANTS:
            struct.pack_into(
                ">3i",
                profile,
                at + 8,
                *(round(value * 65536) for value in P3_COLORANTS[chr(tag[0])]),
            )
    return bytes(profile)


def phone_photo(colour: str, seed: int) -> bytes:
    """A HEIC of 160x120 pixels that is shown upright, and has a thumbnail; every sixth is in tiles,
    as phones write them.
    """
    noise = np.random.default_rng([seed, list(COLOURS).index(colour)]).normal(
        scale=30.0, size=(120, 160, 3)
    )
    exif = Image.Exif()
    exif[274] = 6
    exif[271] = "Apple"
    stream = io.BytesIO()
    image = Image.fromarray((np.asarray(COLOURS[colour]) + noise).clip(0, 255).astype(np.uint8))
    settings = {
        "thumbnails": [64],
        "enc_params": {"preset": "ultrafast"},
        "tile_size": 64 if seed % 6 == 0 else 0,
    }
    image.save(
        stream, "HEIF", quality=60, exif=exif.tobytes(), icc_profile=display_p3(), **settings
    )
    return stream.getvalue()


@pytest.fixture(scope="module")
def camera_roll(tmp_path_factory):
    register_heif_opener()
    root = tmp_path_factory.mktemp("phone")
    for colour in COLOURS:
        (root / colour).mkdir()
        for number in range(12):
            (root / colour / f"IMG_{number:04d}.HEIC").write_bytes(phone_photo(colour, number))
    return root


@pytest.mark.slow
def test_the_folder_of_an_iphone_trains_exports_is_judged_and_is_served(camera_roll, tmp_path):
    dataset = load_dataset(str(camera_roll), seed=CONFIG.seed)
    assert sum(map(len, dataset.splits.values())) == 36
    run = train(CONFIG, dataset, tmp_path / "run")
    assert run.record.unreadable == {}
    package = tmp_path / "package"
    export(run, package)
    figures = judge(package, str(camera_roll), tmp_path / "report", whole=True)
    assert figures.count == 36
    store = Store(tmp_path / "store")
    store.publish(package, name="phone", why="test")
    store.promote("phone", 1, why="test")
    with serving(tmp_path, store=store.root, workers=1) as server:
        answer = httpx.post(
            f"{server.url}/v1/classify", content=phone_photo("red", 99), headers=HEADERS, timeout=30
        )
    assert (answer.status_code, {one["label"] for one in answer.json()["predictions"]}) == (
        200,
        set(COLOURS),
    )


def test_a_phones_photo_is_upright_and_in_srgb(camera_roll):
    """Display P3's numbers are less far apart than sRGB's for the same colour, so red has more red
    after the conversion.
    """
    encoded = (camera_roll / "red" / "IMG_0000.HEIC").read_bytes()
    plain, converted = (
        decode(encoded, preprocess_spec(dataclasses.replace(CONFIG, convert_icc=on)))
        for on in (False, True)
    )
    assert plain.size == converted.size == (120, 160)
    means = [np.asarray(image, float).mean(axis=(0, 1)) for image in (plain, converted)]
    assert means[1][0] > means[0][0] + 5
    assert means[1][1] < means[0][1] - 5


@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
def test_large_photos_are_cropped_from_reduced_ones_and_the_same_seed_gives_the_same_crops(
    image_format,
):
    stream = io.BytesIO()
    Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (1500, 2000, 3), dtype=np.uint8)
    ).save(stream, image_format)
    examples = dataclasses.replace(
        load_dataset("digits").splits["train"][0], encoded=stream.getvalue()
    )
    images = TrainImages([examples], CONFIG, preprocess_spec(CONFIG), Quarantine("x", images=1))
    found = []
    for _ in range(2):
        torch.manual_seed(5)
        found.append(images[0][0])
    assert found[0].shape == (3, 32, 32)
    assert torch.equal(*found)
