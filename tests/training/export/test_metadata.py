"""Metadata goes, every pixel stays: in each format, with all that cameras, editors and platforms
put into files.
"""

import io
import random
import struct

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from models.errors import RequestError
from models.package.manifest import PreprocessSpec
from models.pixels.preprocess import to_pixels
from tests.models.pixels.test_preprocess import EVERY_FORMAT, noise, png_chunk, swapped_primaries
from training.export.metadata import without_metadata

SECRET = b"SECRET-52.5200N-13.4050E"
GPS, MAKER, THUMBNAIL_AT = 0x8825, 0x927C, 0x0201
SPECS = [
    EVERY_FORMAT.model_copy(update={"convert_icc": convert, "dct_margin": margin})
    for convert in (False, True)
    for margin in (None, 2.0)
]


def exif(orientation: int = 1) -> Image.Exif:
    """What a phone writes: place, maker's note, owner."""
    found = Image.Exif()
    found[0x0112] = orientation
    found[0x010E] = SECRET.decode()
    found[0x8298] = SECRET.decode()
    found.get_ifd(0x8769)[MAKER] = SECRET * 10
    found.get_ifd(GPS)[1] = "N"
    found.get_ifd(GPS)[0x1D] = SECRET.decode()
    return found


def saved(image: Image.Image, image_format: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, image_format, **options)
    return stream.getvalue()


def segment(marker: int, payload: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(payload) + 2) + payload


def jpeg(*, orientation: int = 6, **options: object) -> bytes:
    """A JPEG with every kind of segment that is no part of the picture, and a second picture and a
    video behind it.
    """
    plain = saved(
        options.pop("image", noise(90, 60)),
        "JPEG",
        exif=exif(orientation),
        comment=SECRET,
        **options,
    )
    thumbnail = b"JFIF\0\1\1\0\0\1\0\1\x02\x01" + SECRET[:6]
    assert plain[2:4] in (b"\xff\xe0", b"\xff\xe1", b"\xff\xee")
    at = 2 + 2 + struct.unpack_from(">H", plain, 4)[0] if plain[2:4] == b"\xff\xe0" else 2
    extra = [
        segment(0xE0, thumbnail) if at > 2 else b"",
        segment(0xE0, b"JFXX\0\x10" + SECRET),
        segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta>" + SECRET),
        segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + SECRET),
        segment(0xE2, b"MPF\0" + SECRET),
        segment(0xE2, b"FPXR\0" + SECRET),
        segment(0xED, b"Photoshop 3.0\08BIM\x04\x04" + SECRET),
        segment(0xEB, b"JP" + SECRET),
        segment(0xEF, SECRET),
        segment(0xFE, SECRET),
    ]
    body = plain[at:].removesuffix(b"\xff\xd9")
    return b"".join(
        (b"\xff\xd8", *extra, body, b"\xff\xd9", plain, SECRET, b"MotionPhoto_Data", SECRET)
    )


def png(image: Image.Image, **options: object) -> bytes:
    """A PNG with text, time and EXIF, and an older picture behind its pixels and behind its end."""
    text = PngImagePlugin.PngInfo()
    text.add_text("Author", SECRET.decode())
    text.add_text("Comment", SECRET.decode() * 9, zip=True)
    text.add_itxt("XML:com.adobe.xmp", SECRET.decode())
    plain = saved(image, "PNG", pnginfo=text, exif=exif(6), dpi=(72, 72), **options)
    at = plain.index(b"IDAT") - 4
    (length,) = struct.unpack_from(">I", plain, at)
    idat = png_chunk(b"IDAT", plain[at + 8 : at + 8 + length] + SECRET)
    extra = png_chunk(b"tIME", SECRET[:7]) + png_chunk(b"prVt", SECRET) + png_chunk(b"caBX", SECRET)
    return plain[:at] + extra + idat + plain[at + 12 + length :] + SECRET


def webp(image: Image.Image, **options: object) -> bytes:
    """A WebP with EXIF, XMP and an unknown chunk, and something behind it."""
    plain = saved(image, "WEBP", exif=exif(6), xmp=SECRET, **options)
    body = plain[12:] + struct.pack("<4sI", b"C2PA", len(SECRET)) + SECRET
    return struct.pack("<4sI", b"RIFF", len(body) + 4) + b"WEBP" + body + SECRET


PROFILE = swapped_primaries()
PHOTOS = {
    "jpeg": jpeg,
    "jpeg progressive": lambda: jpeg(progressive=True),
    "jpeg with restarts": lambda: jpeg(restart_marker_blocks=1),
    "jpeg with profile": lambda: jpeg(icc_profile=PROFILE),
    "jpeg cmyk": lambda: jpeg(image=noise(90, 60).convert("CMYK")),
    "jpeg grey": lambda: jpeg(image=noise(90, 60).convert("L"), orientation=3),
    "jpeg large": lambda: jpeg(image=noise(1999, 1501)),
    "png": lambda: png(noise(90, 60)),
    "png with profile": lambda: png(noise(90, 60), icc_profile=PROFILE),
    "png palette": lambda: png(noise(90, 60).convert("P"), transparency=3),
    "png alpha": lambda: png(noise(90, 60).convert("RGBA")),
    "png animation": lambda: png(
        noise(90, 60), save_all=True, append_images=[noise(90, 60, seed=1)]
    ),
    "png grey 1 bit": lambda: png(noise(90, 60).convert("1")),
    "webp": lambda: webp(noise(90, 60)),
    "webp lossless": lambda: webp(noise(90, 60), lossless=True),
    "webp with profile": lambda: webp(noise(90, 60), icc_profile=PROFILE),
    "webp alpha": lambda: webp(noise(90, 60).convert("RGBA")),
    "webp animation": lambda: webp(
        noise(90, 60), save_all=True, append_images=[noise(90, 60, seed=1)]
    ),
    "gif": lambda: saved(noise(90, 60), "GIF", comment=SECRET) + SECRET,
    "tiff": lambda: saved(noise(90, 60), "TIFF", description=SECRET.decode(), exif=exif(6)),
    "bmp": lambda: saved(noise(90, 60), "BMP") + SECRET,
}


@pytest.mark.parametrize(
    "spec", SPECS, ids=lambda spec: f"icc={spec.convert_icc} dct={spec.dct_margin}"
)
@pytest.mark.parametrize("name", PHOTOS)
def test_nothing_is_left_but_the_picture_and_not_one_pixel_changes(name, spec):
    photo = PHOTOS[name]()
    assert SECRET in photo
    alone = without_metadata(photo, spec)
    assert alone is not None
    assert SECRET[:6] not in alone
    np.testing.assert_array_equal(to_pixels(alone, spec), to_pixels(photo, spec))
    with Image.open(io.BytesIO(alone)) as opened:
        expected = (
            {"JPEG", "PNG", "WEBP"}
            if name.startswith(("jpeg", "png", "webp")) and "animation" not in name
            else {"PNG"}
        )
        assert opened.format in expected
        assert set(opened.getexif()) <= {0x0112}
        assert ("icc_profile" in opened.info) == (spec.convert_icc and "profile" in name)
        assert set(opened.info) <= {
            *("jfif", "jfif_version", "jfif_unit", "jfif_density", "adobe", "adobe_transform"),
            *("progressive", "progression", "icc_profile", "exif", "transparency", "dpi", "loop"),
            *("background", "timestamp", "duration"),
        }
    # A second time there is nothing to do.
    assert without_metadata(alone, spec) == alone


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_the_orientation_stays(image_format, orientation):
    photo = saved(noise(90, 60), image_format, exif=exif(orientation))
    alone = without_metadata(photo, EVERY_FORMAT)
    with Image.open(io.BytesIO(alone)) as opened:
        assert dict(opened.getexif()) == ({} if orientation == 1 else {0x0112: orientation})
    np.testing.assert_array_equal(to_pixels(alone, EVERY_FORMAT), to_pixels(photo, EVERY_FORMAT))


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_a_file_without_metadata_stays_as_it_is(image_format):
    photo = saved(noise(90, 60), image_format)
    assert without_metadata(photo, EVERY_FORMAT) == photo


def test_what_cannot_be_cut_and_may_not_become_a_png_is_given_up():
    spec = PreprocessSpec(formats=("TIFF",))
    assert without_metadata(saved(noise(90, 60), "TIFF", description="x"), spec) is None


def test_a_profile_is_no_metadata_where_the_spec_converts_it():
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    photo = saved(noise(90, 60), "JPEG", icc_profile=srgb)
    assert without_metadata(photo, SPECS[2]) == photo
    assert srgb not in without_metadata(photo, SPECS[0])


@pytest.mark.parametrize(
    "name", ["jpeg", "jpeg progressive", "png", "webp", "webp alpha", "webp animation"]
)
def test_a_damaged_file_is_refused_or_keeps_its_pixels(name):
    """Whatever bytes are changed or missing, it ends as a refusal, as nothing, or with the same
    pixels.
    """
    photo, rng = PHOTOS[name](), random.Random(0)
    kept = 0
    for _ in range(150):
        damaged = bytearray(photo)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        damaged = bytes(
            damaged[: rng.randint(len(damaged) // 2, len(damaged))]
            if rng.random() < 0.5
            else damaged
        )
        try:
            expected = to_pixels(damaged, EVERY_FORMAT)
        except RequestError:
            with pytest.raises(RequestError):
                without_metadata(damaged, EVERY_FORMAT)
            continue
        alone = without_metadata(damaged, EVERY_FORMAT)
        if alone is not None:
            kept += 1
            np.testing.assert_array_equal(to_pixels(alone, EVERY_FORMAT), expected)
    assert kept > 0
