"""Encoded bytes to pixels: formats, limits, orientation, colour, geometry and damage."""

from __future__ import annotations

import io
import math
import struct
import subprocess
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageFile, ImageOps
from pillow_heif import register_heif_opener

from models.errors import (
    EmptyBody,
    ImageError,
    ImageTooLarge,
    TooManyPixels,
    UndecodableImage,
    UnsupportedFormat,
)
from models.package.manifest import ALL_FORMATS, PreprocessSpec
from models.pixels import colour, containers, decoders, geometry
from models.pixels.containers import jpeg
from models.pixels.geometry import fit
from models.pixels.preprocess import decode, to_pixels

# With everything switched on that a spec can ask for.
SPEC = PreprocessSpec(convert_icc=True, formats=("JPEG", "PNG", "WEBP"))
EVERY_FORMAT = PreprocessSpec(convert_icc=True)
HEIF_SIGNATURES = (b"\0\0\0\x18ftypheic", b"\0\0\0\x18ftypavif")
register_heif_opener()


def encode(image: Image.Image, image_format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, {"HEIC": "HEIF"}.get(image_format, image_format), **options)
    return stream.getvalue()


def noise(width: int, height: int, *, seed: int = 0) -> Image.Image:
    return Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    )


def ramp(width: int, height: int) -> Image.Image:
    """Smooth, and unlike itself under every turn: a pixel's value tells where it was."""
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(
        np.stack([across, down, (across + down) / 2], axis=-1).round().astype(np.uint8)
    )


def oriented(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[274] = orientation
    return exif.tobytes()


def pixel(
    encoded: bytes, spec: PreprocessSpec = EVERY_FORMAT, at: tuple[int, int] = (0, 0)
) -> tuple[int, ...]:
    value = decode(encoded, spec).getpixel(at)
    assert isinstance(value, tuple)
    return value


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(
    *, depth: int, colour_type: int, rows: bytes, size: tuple[int, int], extra: bytes = b""
) -> bytes:
    header = struct.pack(">IIBBBBB", *size, depth, colour_type, 0, 0, 0)
    body = (
        png_chunk(b"IHDR", header)
        + extra
        + png_chunk(b"IDAT", zlib.compress(rows))
        + png_chunk(b"IEND", b"")
    )
    return b"\x89PNG\r\n\x1a\n" + body


def swapped_primaries() -> bytes:
    """sRGB with the names of its red and green primaries exchanged: red pixels are green."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return (
        profile.replace(b"rXYZ", b"?XYZ", 1)
        .replace(b"gXYZ", b"rXYZ", 1)
        .replace(b"?XYZ", b"gXYZ", 1)
    )


# The result


@pytest.mark.parametrize("image_format", ALL_FORMATS)
def test_every_format_gives_writable_contiguous_pixels_of_the_crop(image_format):
    pixels = to_pixels(
        encode(ramp(300, 200), image_format), EVERY_FORMAT.model_copy(update={"crop": (192, 224)})
    )
    assert (pixels.shape, pixels.dtype) == ((192, 224, 3), np.uint8)
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable
    assert pixels.flags.owndata


def test_to_pixels_is_fit_of_decode_also_at_a_reduced_scale():
    spec = PreprocessSpec(dct_margin=1.0)
    encoded = encode(ramp(1999, 1501), "JPEG", exif=oriented(6))
    image = decode(encoded, spec)
    assert image.size == (376, 500)
    np.testing.assert_array_equal(to_pixels(encoded, spec), fit(image, spec))


def test_the_decoded_image_carries_no_metadata():
    encoded = encode(
        ramp(32, 16), "JPEG", exif=oriented(6), icc_profile=swapped_primaries(), comment=b"hello"
    )
    image = decode(encoded, SPEC)
    assert (image.mode, image.size, image.info, dict(image.getexif())) == ("RGB", (16, 32), {}, {})


def test_importing_preprocessing_does_not_import_torch():
    code = (
        "import sys, models.pixels.preprocess; sys.exit('torch' in sys.modules or 'torchvision' in"
        " sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Formats


@pytest.mark.parametrize(
    ("encoded", "name"),
    [
        (encode(ramp(8, 8), "GIF"), "GIF"),
        (encode(ramp(8, 8), "TIFF"), "TIFF"),
        (encode(ramp(8, 8), "BMP"), "BMP"),
        (encode(ramp(64, 64), "AVIF"), "AVIF"),
        (encode(ramp(64, 64), "HEIC"), "HEIC"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + bytes(64), "HEIC"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1j2ki" + bytes(64), "HEIF"),
        (encode(ramp(8, 8), "JPEG2000"), "JPEG 2000"),
        (encode(ramp(8, 8), "PDF"), "PDF"),
        (encode(ramp(16, 16), "ICO"), "ICO"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64), "HEIC"),
        (b"II+\0\x08\0\0\0" + bytes(64), "BigTIFF"),
        (b"\xff\x0a" + bytes(64), "JPEG XL"),
        (b'\xef\xbb\xbf <?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_image_of_a_known_other_format_is_refused_by_its_name(encoded, name):
    with pytest.raises(
        UnsupportedFormat,
        match=f"^received a {name} file, expected JPEG, PNG, WEBP: convert it first$",
    ):
        to_pixels(encoded, SPEC)


def test_only_the_decoder_of_an_accepted_format_is_reached(monkeypatch):
    def unreachable(stream: io.BytesIO) -> None:
        raise AssertionError(stream)

    for image_format in ("PNG", "GIF", "BMP", "TIFF", "WEBP"):
        monkeypatch.setitem(decoders._DECODERS, image_format, unreachable)
    only_jpeg = PreprocessSpec(formats=("JPEG",))
    for image_format in ("PNG", "GIF", "BMP", "TIFF", "WEBP"):
        with pytest.raises(UnsupportedFormat, match="expected JPEG: convert it first"):
            to_pixels(encode(ramp(8, 8), image_format), only_jpeg)


def test_no_bytes_are_an_empty_body():
    with pytest.raises(
        EmptyBody, match=r"^received 0 bytes, expected an image file \(JPEG, PNG, WEBP\)$"
    ):
        to_pixels(b"", SPEC)


@pytest.mark.parametrize(
    "encoded", [b"\0", b"hello", b"<html></html>", b"BM but not a bitmap", bytes(range(256)) * 40]
)
def test_bytes_that_are_no_image_are_undecodable(encoded):
    with pytest.raises(
        UndecodableImage,
        match=(
            f"^received {len(encoded)} bytes that begin with .*, which is not an image; expected"
            " JPEG, PNG, WEBP$"
        ),
    ):
        to_pixels(encoded, SPEC)


@pytest.mark.parametrize("image_format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_an_animation_is_taken(image_format):
    frames = [Image.new("RGB", (16, 8), rgb) for rgb in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    options = {"lossless": True} if image_format == "WEBP" else {}
    assert pixel(
        encode(frames[0], image_format, save_all=True, append_images=frames[1:], **options)
    ) == (255, 0, 0)


def test_a_phones_multi_picture_jpeg_is_its_first_picture():
    first, second = ramp(64, 48), Image.new("RGB", (32, 24))
    encoded = encode(first, "MPO", save_all=True, append_images=[second], quality=90)
    assert Image.open(io.BytesIO(encoded)).format == "MPO"
    np.testing.assert_array_equal(
        decode(encoded, SPEC), Image.open(io.BytesIO(encode(first, "JPEG", quality=90)))
    )


# Limits


def with_size(encoded: bytes, image_format: str, width: int, height: int) -> bytes:
    """The file with another size in its header and nothing else changed, but for the checksum."""
    if image_format == "PNG":
        header = struct.pack(">II", width, height) + encoded[24:29]
        return encoded[:8] + png_chunk(b"IHDR", header) + encoded[33:]
    if image_format == "JPEG":
        at = encoded.index(b"\xff\xc0") + 5
        return encoded[:at] + struct.pack(">HH", height, width) + encoded[at + 4 :]
    layout, at = {"GIF": ("<HH", 6), "BMP": ("<II", 18), "WEBP": ("<HH", 26)}[image_format]
    return (
        encoded[:at]
        + struct.pack(layout, width, height)
        + encoded[at + 4 * (1 + (layout == "<II")) :]
    )


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_limits_are_read_from_the_header_before_a_decoder_is_reached(image_format, monkeypatch):
    monkeypatch.setattr(decoders, "_DECODERS", {})
    encoded = encode(ramp(64, 64), image_format)
    spec = EVERY_FORMAT.model_copy(update={"max_side": 9000, "max_pixels": 25_000_000})
    with pytest.raises(
        ImageTooLarge,
        match=r"^image is 9001x64 pixels, expected sides of at most 9000: scale it down first$",
    ):
        to_pixels(with_size(encoded, image_format, 9001, 64), spec)
    with pytest.raises(
        TooManyPixels,
        match=(
            r"^image is 8000x4000 = 32000000 pixels, expected at most 25000000: scale it down"
            r" first$"
        ),
    ):
        to_pixels(with_size(encoded, image_format, 8000, 4000), spec)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "GIF", "BMP"])
@pytest.mark.parametrize("size", [(0, 64), (64, 0), (0, 0)])
def test_an_image_without_pixels_is_undecodable(image_format, size):
    encoded = with_size(encode(ramp(64, 64), image_format), image_format, *size)
    if image_format == "GIF":  # its frame is larger than the screen, and counts
        assert to_pixels(encoded, EVERY_FORMAT).shape == (224, 224, 3)
    else:
        with pytest.raises(
            UndecodableImage, match=f"header says {size[0]}x{size[1]} pixels: the file is damaged"
        ):
            to_pixels(encoded, EVERY_FORMAT)


@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "BMP"])
def test_a_header_that_promises_more_pixels_than_the_file_holds_is_undecodable(image_format):
    with pytest.raises(UndecodableImage, match=f"^{image_format}"):
        to_pixels(
            with_size(encode(ramp(64, 64), image_format), image_format, 1024, 1024), EVERY_FORMAT
        )


def test_a_webp_whose_canvas_is_unlike_its_picture_is_undecodable():
    small = encode(ramp(64, 64), "WEBP", exif=oriented(1))
    lying = small[:24] + (8).to_bytes(3, "little") + (8).to_bytes(3, "little") + small[30:]
    with pytest.raises(UndecodableImage):
        to_pixels(lying, SPEC)


def test_pillows_own_limit_neither_warns_nor_refuses_within_the_specs(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60_000)  # room for the crop
    for image_format in ("JPEG", "PNG", "BMP"):
        assert to_pixels(encode(ramp(400, 400), image_format), EVERY_FORMAT).shape == (224, 224, 3)
    for image_format in ("WEBP", "GIF", "TIFF"):
        with pytest.raises(TooManyPixels, match="expected at most 60000"):
            to_pixels(encode(ramp(400, 400), image_format), EVERY_FORMAT)


def test_a_progressive_jpeg_of_too_many_scans_is_refused():
    encoded = encode(ramp(64, 64), "JPEG", progressive=True)
    assert to_pixels(encoded, SPEC).shape == (224, 224, 3)
    scan = encoded[encoded.rindex(b"\xff\xc4") : -2]
    with pytest.raises(UndecodableImage, match="has too many scans, 65 with"):
        to_pixels(encoded[:-2] + scan * jpeg.SCANS_MAX + b"\xff\xd9", SPEC)


@pytest.mark.parametrize("segment", [b"\xff\xfe\0\x02", b"\xff\xe1\0\x02"])
def test_a_flood_of_empty_segments_is_refused(segment):
    encoded = encode(ramp(64, 64), "JPEG")
    with pytest.raises(UndecodableImage, match="more than 100000 segments"):
        to_pixels(encoded[:2] + segment * 100_001 + encoded[2:], SPEC)


def test_text_and_profiles_that_inflate_without_bound_are_passed_over():
    bomb = zlib.compress(bytes(64 << 20), 9)
    extra = (
        png_chunk(b"zTXt", b"a\0\0" + bomb)
        + png_chunk(b"iTXt", b"a\0\1\0\0\0" + bomb)
        + png_chunk(b"iCCP", b"a\0\0" + bomb)
    )
    encoded = png(depth=8, colour_type=2, rows=b"\0\x01\x02\x03", size=(1, 1), extra=extra)
    assert pixel(encoded) == (1, 2, 3)


# Orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_all_orientations_are_turned_upright_as_pillow_turns_them(image_format, orientation):
    options = {"lossless": True} if image_format == "WEBP" else {}
    encoded = encode(ramp(40, 24), image_format, exif=oriented(orientation), **options)
    reference = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded)))
    assert reference.size == ((40, 24) if orientation < 5 else (24, 40))
    np.testing.assert_array_equal(decode(encoded, EVERY_FORMAT), reference)


def test_orientation_is_left_alone_where_the_spec_says_so():
    spec = EVERY_FORMAT.model_copy(update={"apply_exif_orientation": False})
    for image_format in ("JPEG", "PNG", "WEBP", "TIFF"):
        assert decode(encode(ramp(40, 24), image_format, exif=oriented(6)), spec).size == (40, 24)


@pytest.mark.parametrize(
    "exif",
    [
        oriented(6)[:20],  # ends within the directory
        oriented(6)[:10],
        b"Exif\0\0",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + bytes(40),
        b"Exif\0\0not a TIFF header",
        oriented(9),
        oriented(0),
    ],
)
def test_a_damaged_or_absurd_orientation_means_upright(exif):
    for image_format in ("JPEG", "PNG", "WEBP"):
        assert decode(encode(ramp(40, 24), image_format, exif=exif), SPEC).size == (40, 24)


def test_metadata_about_which_pillow_warns_is_decoded_in_silence():
    encoded = encode(
        ramp(40, 24),
        "JPEG",
        exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0" + b"\x1a\x01\x05\0\xff\xff\0\0\xff\xff\0\0" * 5,
    )
    encoded = encoded.replace(
        b"JFIF\0", b"JUNK\0"
    )  # without a density there, Pillow looks for one in EXIF as it opens the file
    with pytest.warns(UserWarning, match=r"Corrupt EXIF data|Tag data larger than file"):
        Image.open(io.BytesIO(encoded))
    assert decode(encoded, SPEC).size == (40, 24)


def test_metadata_inside_an_unknown_segment_reaches_no_parser():
    """Pillow walks into segments that it does not know, and would find EXIF there."""
    encoded = encode(ramp(40, 24), "JPEG")
    inner = b"\xff\xe1\0\x22Exif\0\0II*\0\x08\0\0\0\x02\0\x1a\x01\x05\0\xff\xff\0\0\xff\xff\0\0"
    assert decode(
        b"\xff\xd8\xff\xf3" + struct.pack(">H", 2 + len(inner)) + inner + encoded[20:], SPEC
    ).size == (40, 24)


# Colour


def with_alpha(rgb: tuple[int, int, int], alpha: int) -> Image.Image:
    return Image.new("RGBA", (8, 8), (*rgb, alpha))


def test_transparency_is_laid_on_the_background():
    spec = SPEC.model_copy(update={"background": (10, 20, 30)})
    assert pixel(encode(with_alpha((200, 100, 50), 0), "PNG"), spec) == (10, 20, 30)
    assert pixel(encode(with_alpha((200, 100, 50), 255), "PNG"), spec) == (200, 100, 50)
    # 128/255 of the way from background to colour
    assert pixel(encode(with_alpha((200, 100, 50), 128), "PNG"), spec) == (105, 60, 40)
    assert pixel(
        encode(with_alpha((200, 100, 50), 0), "WEBP", lossless=True, exact=True), spec
    ) == (10, 20, 30)
    assert pixel(encode(Image.new("LA", (8, 8), (200, 0)), "PNG"), spec) == (10, 20, 30)


@pytest.mark.parametrize(
    "transparency", [1, bytes([255, 0])], ids=["one entry", "alpha for each entry"]
)
@pytest.mark.parametrize("image_format", ["PNG", "GIF"])
def test_a_transparent_palette_entry_shows_the_background(image_format, transparency):
    if image_format == "GIF" and isinstance(transparency, bytes):
        transparency = 1
    image = Image.new("P", (8, 8))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.paste(1, (4, 0, 8, 8))
    encoded = encode(image, image_format, transparency=transparency)
    spec = EVERY_FORMAT.model_copy(update={"background": (1, 2, 3)})
    assert (pixel(encoded, spec), pixel(encoded, spec, at=(7, 7))) == ((10, 20, 30), (1, 2, 3))


@pytest.mark.parametrize(
    ("depth", "colour_type", "rows", "transparent", "expected"),
    [
        (1, 0, b"\0\x80", b"\0\1", [(9, 9, 9), (0, 0, 0)]),
        (2, 0, b"\0\xd0", b"\0\3", [(9, 9, 9), (85, 85, 85)]),
        (4, 0, b"\0\xf3", b"\0\x0f", [(9, 9, 9), (51, 51, 51)]),
        (8, 0, b"\0\xc8\x64", b"\0\xc8", [(9, 9, 9), (100, 100, 100)]),
        (16, 0, b"\0\xc8\x11\xc8\x12", b"\xc8\x11", [(9, 9, 9), (200, 200, 200)]),
        (8, 2, b"\0\x01\x02\x03\x04\x05\x06", b"\0\x01\0\x02\0\x03", [(9, 9, 9), (4, 5, 6)]),
        (
            16,
            2,
            b"\0\x01\x80\x02\x80\x03\x80\x04\xff\x05\xff\x06\xff",
            b"\x01\x80\x02\x80\x03\x80",
            [(9, 9, 9), (4, 5, 6)],
        ),
    ],
)
def test_a_transparent_colour_counts_at_every_depth(
    depth, colour_type, rows, transparent, expected
):
    encoded = png(
        depth=depth,
        colour_type=colour_type,
        rows=rows,
        size=(2, 1),
        extra=png_chunk(b"tRNS", transparent),
    )
    spec = SPEC.model_copy(update={"background": (9, 9, 9)})
    assert [pixel(encoded, spec, at=(x, 0)) for x in (0, 1)] == expected


def test_16_bit_grey_keeps_its_high_byte():
    samples = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
    for image_format in ("PNG", "TIFF"):
        image = decode(encode(Image.fromarray(samples), image_format), EVERY_FORMAT)
        assert np.asarray(image)[0, :, 0].tolist() == [0, 0, 1, 128, 255]


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_grey_and_palette_images_become_rgb_as_pillow_converts_them(mode):
    image = ramp(40, 24).convert(mode)
    for image_format in ("PNG", "BMP", "TIFF", "GIF"):
        if (mode, image_format) == ("RGB", "GIF"):
            continue
        np.testing.assert_array_equal(
            decode(encode(image, image_format), EVERY_FORMAT), image.convert("RGB")
        )


def test_cmyk_and_inverted_ycck_jpegs_show_their_colours():
    cyan = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    assert pixel(encode(cyan, "JPEG", quality=100)) == pytest.approx(
        (0, 255, 255), abs=2
    )  # JPEG rounds
    # As Adobe writes it: Y 200, neutral chroma, no black, all of it inverted. That is 200 of 255 of
    # cyan, magenta and yellow.
    stored = Image.new("CMYK", (16, 16), (255 - 200, 255 - 128, 255 - 128, 255 - 255))
    encoded = encode(stored, "JPEG", quality=100)
    at = encoded.index(b"Adobe") + 11
    ycck = encoded[:at] + b"\x02" + encoded[at + 1 :]
    assert pixel(ycck) == pytest.approx((55, 55, 55), abs=2)


def test_samples_without_a_defined_range_are_refused():
    with pytest.raises(
        UnsupportedFormat,
        match=(
            "received TIFF samples of Pillow mode F, expected 8 or 16 bits per sample: convert it"
            " first"
        ),
    ):
        to_pixels(encode(Image.new("F", (8, 8), 0.5), "TIFF"), EVERY_FORMAT)


# ICC profiles


@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "TIFF", "JPEG"])
def test_an_embedded_profile_is_converted_to_srgb(image_format):
    options = (
        {"lossless": True}
        if image_format == "WEBP"
        else {"quality": 100, "subsampling": 0}
        if image_format == "JPEG"
        else {}
    )
    encoded = encode(
        Image.new("RGB", (16, 16), (255, 0, 0)),
        image_format,
        icc_profile=swapped_primaries(),
        **options,
    )
    assert pixel(encoded) == pytest.approx((0, 255, 0), abs=3)  # lcms and JPEG round
    assert pixel(encoded, EVERY_FORMAT.model_copy(update={"convert_icc": False})) == pytest.approx(
        (255, 0, 0), abs=1
    )


def test_a_profile_under_transparent_and_grey_pixels_is_converted_too():
    red = encode(with_alpha((255, 0, 0), 255), "PNG", icc_profile=swapped_primaries())
    assert pixel(red) == pytest.approx((0, 255, 0), abs=3)
    # Equal parts of exchanged primaries are still grey.
    assert pixel(
        encode(Image.new("L", (8, 8), 128), "PNG", icc_profile=swapped_primaries())
    ) == pytest.approx((128, 128, 128), abs=2)


def test_an_srgb_profile_changes_no_bit():
    image = noise(64, 48)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    np.testing.assert_array_equal(decode(encode(image, "PNG", icc_profile=srgb), SPEC), image)
    assert colour._conversion(srgb) is None


@pytest.mark.parametrize(
    "profile",
    [b"junk", bytes(200), swapped_primaries()[:-1000], swapped_primaries()[:130], bytes(5 << 20)],
)
def test_a_damaged_or_huge_profile_is_passed_over(profile):
    image = ramp(40, 24)
    np.testing.assert_array_equal(decode(encode(image, "PNG", icc_profile=profile), SPEC), image)
    assert decode(encode(image, "JPEG", icc_profile=profile), SPEC).size == (40, 24)


def test_a_profile_of_another_colour_space_than_the_pixels_is_passed_over():
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    image = ramp(40, 24)
    np.testing.assert_array_equal(decode(encode(image, "PNG", icc_profile=lab), SPEC), image)


def test_conversions_are_kept_but_not_without_bound():
    assert colour._conversion.cache_info().maxsize == 32


# Geometry


def test_letterbox_fits_the_whole_image_and_pads_with_the_specs_colour():
    spec = PreprocessSpec(resize="letterbox", crop=(100, 200), pad_colour=(1, 2, 3))
    pixels = to_pixels(encode(Image.new("RGB", (300, 300), (200, 200, 200)), "PNG"), spec)
    assert (pixels[:, :50] == (1, 2, 3)).all()
    assert (pixels[:, 50:150] == 200).all()
    assert (pixels[:, 150:] == (1, 2, 3)).all()


def test_letterbox_never_loses_the_thin_side_of_a_strip():
    spec = PreprocessSpec(resize="letterbox", crop=(100, 100))
    for size in ((1, 5000), (5000, 1)):
        pixels = to_pixels(encode(Image.new("RGB", size, (200, 200, 200)), "PNG"), spec)
        assert (pixels == 200).all(axis=-1).sum() == 100


def test_stretch_may_go_to_a_square_and_crop_its_centre():
    """As `Resize((256, 256))` and `CenterCrop(224)` of torchvision do."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 130, 3), np.uint8))
    spec = PreprocessSpec(resize="stretch", stretch_size=80, crop=(64, 64), resize_size=64)
    expected = image.resize((80, 80), Image.Resampling.BILINEAR).crop((8, 8, 72, 72))
    np.testing.assert_array_equal(fit(image, spec), np.asarray(expected))


def test_an_image_may_be_saved_as_jpeg_before_the_crop():
    """As Yahoo's Open NSFW was trained: stretched, saved by Pillow, cropped."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 130, 3), np.uint8))
    spec = PreprocessSpec(
        resize="stretch", stretch_size=80, crop=(64, 64), resize_size=64, recompress=75
    )
    stream = io.BytesIO()
    image.resize((80, 80), Image.Resampling.BILINEAR).save(stream, "JPEG")
    expected = Image.open(stream).convert("RGB").crop((8, 8, 72, 72))
    np.testing.assert_array_equal(fit(image, spec), np.asarray(expected))


def test_stretch_equals_pillows_resize():
    image = noise(300, 201)
    spec = PreprocessSpec(resize="stretch", crop=(64, 96), filter="bicubic")
    np.testing.assert_array_equal(
        to_pixels(encode(image, "PNG"), spec), image.resize((96, 64), Image.Resampling.BICUBIC)
    )


@pytest.mark.parametrize("size", [(1, 16384), (16384, 1), (3, 8000)])
def test_a_strip_is_resized_in_the_window_alone(size, monkeypatch):
    """A 1x16384 image would be 4 GB when resized whole."""
    largest = []
    resize = Image.Image.resize

    def watched(self: Image.Image, size: tuple[int, int], *arguments: Any) -> Image.Image:
        largest.append(size[0] * size[1])
        return resize(self, size, *arguments)

    monkeypatch.setattr(Image.Image, "resize", watched)
    pixels = to_pixels(encode(Image.new("RGB", size, (7, 8, 9)), "PNG"), SPEC)
    assert (pixels == (7, 8, 9)).all()
    assert max(largest) <= geometry.WINDOWED_PIXELS_MIN


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (333, 1000), (97, 120)])
def test_the_window_alone_is_the_whole_resize_but_for_rounding(size, monkeypatch):
    encoded = encode(noise(*size), "PNG")
    whole = to_pixels(encoded, SPEC)
    monkeypatch.setattr(geometry, "WINDOWED_PIXELS_MIN", 0)
    assert np.abs(to_pixels(encoded, SPEC).astype(int) - whole).max() <= 1


# DCT-scaled decode


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(1999, 1501), (1501, 1999), (1037, 1041)])
def test_a_reduced_decode_keeps_the_crop_where_it_was(size, orientation):
    """A shift of a pixel would move this ramp by 0.3 to 0.5 levels, and a turn by far more."""
    encoded = encode(ramp(*size), "JPEG", quality=95, exif=oriented(orientation))
    full = to_pixels(encoded, SPEC).astype(float)
    for margin in (1.0, 2.0):
        spec = SPEC.model_copy(update={"dct_margin": margin})
        assert decode(encoded, spec).size < decode(encoded, SPEC).size
        difference = to_pixels(encoded, spec) - full
        assert abs(difference.mean(axis=(0, 1))).max() < 0.06
        assert abs(difference).max() <= 3


@given(
    width=st.integers(1, 1200),
    height=st.integers(1, 1200),
    margin=st.sampled_from([1.0, 1.3, 2.0, 3.0]),
    resize=st.sampled_from(["shortest_side", "stretch", "letterbox"]),
    orientation=st.sampled_from([1, 6]),
)
@settings(max_examples=60, deadline=None)
def test_a_reduced_decode_stays_above_the_margin(width, height, margin, resize, orientation):
    spec = PreprocessSpec(resize=resize, resize_size=64, crop=(48, 64), dct_margin=margin)
    encoded = encode(Image.new("RGB", (width, height)), "JPEG", exif=oriented(orientation))
    upright = (width, height) if orientation == 1 else (height, width)
    image = decode(encoded, spec)
    target = geometry.resized_size(upright, spec)
    if image.size != upright:
        assert all(side >= margin * least for side, least in zip(image.size, target, strict=True))
        assert fit(image, spec).shape == (48, 64, 3)
    # One step further would have gone below the margin, or there is none.
    scale = max(1, round(upright[0] / image.size[0]), round(upright[1] / image.size[1]))
    assert scale == 8 or any(
        side // (2 * scale) < margin * least for side, least in zip(upright, target, strict=True)
    )


@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
@pytest.mark.parametrize(("share", "scale"), [(1.0, 4), (0.5, 2), (0.25, 2), (0.1, 1)])
def test_before_a_random_crop_an_image_is_reduced_as_far_as_the_margin_allows(
    image_format, share, scale
):
    spec = PreprocessSpec(dct_margin=2.0)
    image = decode(encode(ramp(2800, 2100), image_format), spec, crop_share=share)
    assert image.size == (2800 // scale, 2100 // scale)
    short = math.sqrt(share * 0.75 * image.width * image.height)
    assert short >= 2.0 * 224 or scale == 1
    assert short < 2.0 * 2.0 * 224


@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
def test_a_crop_of_a_reduced_image_is_near_to_that_of_the_whole(image_format, shared_data):
    """The mean difference of a real photo is below two levels of 255: as much as saving it once
    more as a JPEG of quality 90.
    """
    photo = (
        Image.open(shared_data / "imagenet-500" / "0000.jpg")
        .convert("RGB")
        .resize((3000, 2250), Image.Resampling.LANCZOS)
    )
    encoded = encode(photo, image_format, **({"quality": 95} if image_format == "JPEG" else {}))
    reduced = decode(encoded, PreprocessSpec(dct_margin=2.0), crop_share=0.5)
    whole = decode(encoded, PreprocessSpec())
    scale = whole.width // reduced.width
    assert scale == 2
    box = (301, 203, 301 + 1700, 203 + 1300)
    crops = [
        image.resize((224, 224), Image.Resampling.BILINEAR, [edge / by for edge in box])
        for image, by in ((whole, 1), (reduced, scale))
    ]
    difference = np.abs(np.asarray(crops[0], np.int16) - np.asarray(crops[1], np.int16))
    assert difference.mean() < 2.0
    assert np.percentile(difference, 99) <= 12


def test_without_a_margin_training_has_the_full_size():
    assert decode(encode(ramp(1200, 900), "JPEG"), PreprocessSpec(), crop_share=0.5).size == (
        1200,
        900,
    )


def test_an_image_cut_after_a_reduced_decode_is_fitted_as_it_is():
    spec = PreprocessSpec(dct_margin=1.0)
    cut = decode(encode(ramp(1200, 900), "JPEG"), spec).crop((0, 0, 300, 300))
    fresh = Image.fromarray(np.asarray(cut))
    np.testing.assert_array_equal(fit(cut, spec), fit(fresh, spec))


# Damage


@cache
def whole_files() -> dict[str, bytes]:
    """A file of each kind, with all metadata that its format takes."""
    image = noise(48, 40)
    extras: dict[str, Any] = {"exif": oriented(6), "icc_profile": swapped_primaries()}
    palette = image.quantize(16)
    return {
        "JPEG": encode(image, "JPEG", comment=b"x", **extras),
        "JPEG progressive": encode(image, "JPEG", progressive=True, **extras),
        "JPEG CMYK": encode(image.convert("CMYK"), "JPEG"),
        "MPO": encode(image, "MPO", save_all=True, append_images=[image], **extras),
        "PNG": encode(image, "PNG", **extras),
        "PNG palette": encode(palette, "PNG", transparency=3),
        "PNG 16 bit": encode(
            Image.fromarray(np.arange(1920, dtype=np.uint16).reshape(40, 48)), "PNG"
        ),
        "APNG": encode(image, "PNG", save_all=True, append_images=[image]),
        "WEBP": encode(image, "WEBP", **extras),
        "WEBP lossless": encode(image.convert("RGBA"), "WEBP", lossless=True),
        "WEBP animated": encode(image, "WEBP", save_all=True, append_images=[ramp(48, 40)]),
        "GIF": encode(
            palette,
            "GIF",
            save_all=True,
            append_images=[palette.transpose(Image.Transpose.ROTATE_180)],
            transparency=3,
            comment=b"x",
        ),
        "BMP": encode(image, "BMP"),
        "BMP palette": encode(palette, "BMP"),
        "TIFF": encode(image, "TIFF", **extras),
        "TIFF LZW": encode(image, "TIFF", compression="tiff_lzw", **extras),
        "TIFF JPEG": encode(image, "TIFF", compression="jpeg"),
        "AVIF": encode(image, "AVIF", **extras),
        "AVIF alpha": encode(image.convert("RGBA"), "AVIF"),
        "AVIF animated": encode(image, "AVIF", save_all=True, append_images=[ramp(48, 40)]),
        "HEIC": encode(image, "HEIC", **extras),
        "HEIC alpha": encode(image.convert("RGBA"), "HEIC"),
        "HEIC grid": encode(ramp(300, 200), "HEIC", tile_size=64),
        "TIFF palette": encode(palette, "TIFF", compression="tiff_adobe_deflate"),
    }


@pytest.mark.parametrize(
    "name",
    [
        "JPEG",
        "JPEG progressive",
        "PNG",
        "PNG palette",
        "WEBP",
        "WEBP lossless",
        "BMP",
        "TIFF JPEG",
        "AVIF",
        "HEIC",
    ],
)
def test_a_file_that_is_cut_short_is_undecodable(name):
    encoded = whole_files()[name]
    for share in np.linspace(0.05, 0.98, 32):
        with pytest.raises(UndecodableImage):
            to_pixels(encoded[: int(len(encoded) * share)], EVERY_FORMAT)


def test_a_png_that_lacks_its_last_byte_is_undecodable():
    with pytest.raises(
        UndecodableImage, match="ends in the middle of a structure: send the complete file"
    ):
        to_pixels(whole_files()["PNG"][:-1], SPEC)


def test_a_flipped_bit_in_png_pixels_is_found():
    encoded = bytearray(whole_files()["PNG"])
    encoded[-100] ^= 1
    with pytest.raises(
        UndecodableImage, match="PNG chunk IDAT does not match its checksum: the file is damaged"
    ):
        to_pixels(bytes(encoded), SPEC)


@st.composite
def damaged_files(draw: st.DrawFn) -> bytes:
    """A valid file with a few bytes changed, removed or inserted, and perhaps its end cut off."""
    encoded = bytearray(whole_files()[draw(st.sampled_from(sorted(whole_files())))])
    # Most of what can go wrong is near the front.
    places = (
        st.integers(0, len(encoded) - 1)
        | st.integers(0, min(200, len(encoded) - 1))
        | st.integers(len(encoded) - 200, len(encoded) - 1)
    )
    for _ in range(draw(st.integers(1, 4))):
        at = draw(places)
        match draw(st.sampled_from(["set", "flip", "word", "remove", "insert"])):
            case "set":
                encoded[at : at + 1] = bytes(
                    [draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFE, 0xFF]))]
                )
            case "flip":
                encoded[at : at + 1] = bytes(
                    [encoded[min(at, len(encoded) - 1)] ^ (1 << draw(st.integers(0, 7)))]
                )
            case "word":
                encoded[at : at + 4] = draw(st.binary(min_size=4, max_size=4))
            case "remove":
                del encoded[at : at + draw(st.integers(1, 40))]
            case "insert":
                encoded[at:at] = draw(st.binary(min_size=1, max_size=8))
    return bytes(
        encoded[: draw(st.integers(1, len(encoded)))] if draw(st.integers(0, 4)) == 0 else encoded
    )


@given(encoded=damaged_files(), scaled=st.booleans())
@settings(
    max_examples=1200,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
def test_a_damaged_file_gives_pixels_or_an_image_error_and_nothing_else(encoded, scaled):
    spec = PreprocessSpec(
        resize_size=16,
        crop=(16, 12),
        max_pixels=1_000_000,
        dct_margin=1.0 if scaled else None,
        background=(9, 9, 9),
    )
    try:
        pixels = to_pixels(encoded, spec)
    except ImageError:
        return
    assert (pixels.shape, pixels.dtype) == ((16, 12, 3), np.uint8)


@given(
    encoded=st.sampled_from(
        [
            b"\xff\xd8\xff",
            b"\x89PNG\r\n\x1a\n",
            b"RIFF\x99\0\0\0WEBP",
            b"GIF89a",
            b"II*\0",
            b"MM\0*",
            *HEIF_SIGNATURES,
        ]
    ),
    tail=st.binary(max_size=300),
)
@settings(max_examples=300, deadline=None)
def test_garbage_behind_a_signature_is_an_image_error(encoded, tail):
    with pytest.raises(ImageError):
        to_pixels(encoded + tail, EVERY_FORMAT)


# Threads


def test_threads_give_what_one_thread_gives_and_nothing_global_changes():
    filters, truncated = list(warnings.filters), ImageFile.LOAD_TRUNCATED_IMAGES
    files = list(whole_files().values())
    files += [file[: len(file) // 2] for file in files]

    def answer(encoded: bytes) -> bytes | str:
        try:
            return to_pixels(encoded, EVERY_FORMAT).tobytes()
        except ImageError as error:
            return str(error)

    alone = [answer(encoded) for encoded in files]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(answer, files * 4))
    assert together == alone * 4
    assert (list(warnings.filters), ImageFile.LOAD_TRUNCATED_IMAGES) == (filters, truncated)


def test_sniffing_knows_every_format_that_is_accepted():
    for name, encoded in whole_files().items():
        expected = "JPEG" if name == "MPO" else "PNG" if name == "APNG" else name.partition(" ")[0]
        assert containers.sniff(encoded) == expected
