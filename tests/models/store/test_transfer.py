"""A packed model arrives as it left, whatever else calls itself a package file is refused before
anything is written.
"""

import os
import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from models.errors import ModelInvalid, PackageError, PackageTampered, StoreError
from models.package.manifest import MANIFEST_FILE
from models.package.manifest_file import record_file
from models.package.verify import verify_package
from models.store.transfer import copy_package, pack_package, unpack_package
from tests.models.packages import build_package


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return build_package(tmp_path / "package")


@pytest.fixture
def packed(package: Path, tmp_path: Path) -> Path:
    pack_package(package, tmp_path / "ants.zip", name="ants")
    return tmp_path / "ants.zip"


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def repack(
    packed: Path,
    edit: Callable[[zipfile.ZipInfo, bytes], tuple[zipfile.ZipInfo, bytes] | None],
    *more: tuple[zipfile.ZipInfo, bytes],
) -> None:
    """Write *packed* again with each member as *edit* returns it, left out where that is None, and
    *more* at the end.
    """
    with zipfile.ZipFile(packed) as archive:
        members = [edit(info, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(packed, "w") as archive:
        for member in (*members, *more):
            if member is not None:
                archive.writestr(*member)


def same(info: zipfile.ZipInfo, content: bytes) -> tuple[zipfile.ZipInfo, bytes]:
    return info, content


def test_what_was_packed_is_unpacked_byte_for_byte(package, packed, tmp_path):
    assert unpack_package(packed, tmp_path / "there") == "ants"
    assert files(tmp_path / "there") == files(package)
    assert verify_package(tmp_path / "there").model == verify_package(package).model


def test_the_same_package_packs_to_the_same_bytes(package, packed, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(package, copy)
    for path in copy.rglob("*"):
        os.utime(path, (1e9, 1e9))
        path.chmod(0o700)
    pack_package(copy, tmp_path / "again.zip", name="ants")
    assert (tmp_path / "again.zip").read_bytes() == packed.read_bytes()


def test_a_deflated_file_is_unpacked_too(package, packed, tmp_path):
    def deflate(info, content):
        info.compress_type = zipfile.ZIP_DEFLATED
        return info, content

    repack(packed, deflate)
    unpack_package(packed, tmp_path / "there")
    assert files(tmp_path / "there") == files(package)


def test_a_damaged_package_is_not_packed(package, tmp_path):
    (package / "report.html").write_text("changed")
    with pytest.raises(PackageTampered, match=r"report\.html is truncated"):
        pack_package(package, tmp_path / "ants.zip", name="ants")
    assert not list(tmp_path.glob("*.zip*"))


@pytest.mark.parametrize("file", ["report.html", MANIFEST_FILE])
def test_a_package_that_changes_after_its_verification_is_not_copied(package, tmp_path, file):
    verified = verify_package(package)
    content = (package / file).read_bytes()
    (package / file).write_bytes(
        content.replace(b"tests", b"TESTS").replace(b"Evaluation", b"evaluation")
    )
    with pytest.raises(
        PackageTampered,
        match=(
            r"was changed after export|manifest\.json was changed while it was"
            r" being copied"
        ),
    ):
        copy_package(verified, tmp_path / "copy")


def assert_refused(packed: Path, error: type[PackageError], message: str) -> None:
    """*packed* is refused with *message*, and the folder holds what it held before."""
    folder = packed.parent
    before = files(folder)
    with pytest.raises(error, match=message):
        unpack_package(packed, folder / "there")
    assert files(folder) == before
    assert not (folder / "there").exists()


@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "/evil",
        "ants/../evil",
        "ants/golden/../../evil",
        "ants//evil",
        "ants/./evil",
        "ants\\..\\evil",
        "evil",
        "..",
        "ants/",
        "A/x",
    ],
)
def test_a_member_that_would_land_elsewhere_is_refused(packed, name):
    info = zipfile.ZipInfo("x")
    info.filename = name
    repack(packed, same, (info, b"x"))
    assert_refused(packed, PackageTampered, r"member .* would land outside the package; refused")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFDIR])
def test_a_member_that_is_no_plain_file_is_refused(packed, kind):
    info = zipfile.ZipInfo("ants/link")
    info.external_attr = (kind | 0o777) << 16
    repack(packed, same, (info, b"model.onnx"))
    assert_refused(packed, PackageTampered, "member 'ants/link' is a link or special file; refused")


def test_a_member_that_occurs_twice_is_refused(packed):
    with pytest.warns(UserWarning, match="Duplicate name"):
        repack(packed, same, (zipfile.ZipInfo("ants/model.onnx"), b"x"))
    assert_refused(packed, PackageTampered, "member 'ants/model.onnx' occurs twice; refused")


def test_a_compression_that_pack_never_uses_is_refused(packed):
    def squeeze(info, content):
        info.compress_type = zipfile.ZIP_LZMA
        return info, content

    repack(packed, squeeze)
    assert_refused(
        packed,
        PackageTampered,
        "is encrypted or compressed in a way that `pack` never does; refused",
    )


def test_a_member_that_the_manifest_does_not_list_is_refused(packed):
    repack(packed, same, (zipfile.ZipInfo("ants/extra"), b"x"))
    assert_refused(
        packed,
        PackageTampered,
        r"extra is in the file or in manifest\.json, but not in both; refused",
    )


def test_a_member_that_is_missing_is_named(packed):
    repack(
        packed,
        lambda info, content: None if info.filename == "ants/report.html" else (info, content),
    )
    assert_refused(
        packed,
        PackageTampered,
        r"report\.html is in the file or in manifest\.json, but not in both; refused",
    )


def test_a_member_larger_than_listed_is_refused_before_it_is_inflated(packed):
    bomb = zipfile.ZipInfo("ants/report.html")
    bomb.compress_type = zipfile.ZIP_DEFLATED
    repack(
        packed,
        lambda info, content: (
            (bomb, bytes(2**24)) if info.filename == bomb.filename else (info, content)
        ),
    )
    assert packed.stat().st_size < 2**17
    assert_refused(
        packed,
        PackageTampered,
        r"report\.html has 16777216 bytes, manifest\.json says \d+; refused",
    )


def test_a_member_that_was_changed_is_refused(packed):
    repack(packed, lambda info, content: (info, content.replace(b"Evaluation", b"evaluation")))
    assert_refused(
        packed,
        PackageTampered,
        r"report\.html was changed after export: its SHA-256 is",
    )


def test_the_model_inside_is_judged_as_any_other(package, packed):
    """A file that lists itself truthfully is still no model."""
    import json

    model = package / "model.onnx"
    model.write_bytes(b"\x00\x01")
    record = record_file(model).model_dump()

    def edit(info, content):
        if info.filename == "ants/model.onnx":
            return info, model.read_bytes()
        if info.filename == "ants/manifest.json":
            raw = json.loads(content)
            raw["files"]["model.onnx"] = record
            return info, json.dumps(raw).encode()
        return info, content

    repack(packed, edit)
    assert_refused(packed, ModelInvalid, r"model\.onnx is not a whole ONNX file \(2 bytes\)")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(packed, share):
    os.truncate(packed, int(packed.stat().st_size * share))
    assert_refused(
        packed,
        PackageError,
        r"ants\.zip is not a whole package file: .*\. Copy it again, or pack it again with `loupe"
        r" models pack`",
    )


def test_a_zip_of_something_else_is_refused(packed):
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("photos/1.jpg", b"")
    assert_refused(
        packed,
        PackageError,
        r"is not a package file: expected one folder with a manifest\.json, found photos",
    )


def test_two_models_in_one_file_are_refused(packed):
    repack(packed, same, (zipfile.ZipInfo("bees/model"), b"x"))
    assert_refused(
        packed, PackageError, "expected one folder with a manifest.json, found ants, bees"
    )


def test_a_folder_that_exists_is_not_unpacked_into(packed, tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(StoreError, match="there exists already; name a folder that does not"):
        unpack_package(packed, tmp_path / "there")
