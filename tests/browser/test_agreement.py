"""The page gives real photos the answers that the service gives them."""

from __future__ import annotations

import shutil

import pytest

from benchmarks.packages import build_imagenet_package
from tests.browser.agreement import agreement
from tests.browser.chromium import static_server
from training.edge.build import build


@pytest.mark.slow
def test_page_and_service_agree_on_real_photos(page, web_folder, shared_data):
    photos = sorted((shared_data / "imagenet-500").glob("*.jpg"))[:8]
    with static_server(web_folder) as address:
        found = agreement(page, address, package=web_folder.parents[1] / "package", photos=photos)
    assert (found.photos, found.same_top1, found.same_pixels) == (8, 8, 8)
    assert found.max_probability_difference < 1e-5, "both compute in fp32, with other kernels"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_page_and_service_agree_on_200_photos_with_imagenets_mobilenet(
    page, ort_web_tarball, shared_data, tmp_path
):
    photos = sorted((shared_data / "imagenet-500").glob("*.jpg"))[:200]
    package = build_imagenet_package(tmp_path / "package", data=shared_data)
    build(package, tmp_path / "bundle.zip", targets=("web",), ort_web=ort_web_tarball)
    shutil.unpack_archive(tmp_path / "bundle.zip", tmp_path / "bundle")
    with static_server(tmp_path / "bundle" / "web") as address:
        found = agreement(page, address, package=package, photos=photos)
    assert found.photos == 200
    assert found.same_top1 >= 198, "99 %"
    # Those that Python decodes at a reduced scale are few among photos of this size.
    assert found.same_pixels >= 190
