"""`loupe inspect embedding` on planted photos and on vectors whose neighbours are known."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from tests.training.small_runs import Exported
from training.inside.commands import inspect
from training.inside.data_map.marks import COLOURS, MOST, OTHER, marks
from training.inside.data_map.points import _neighbours
from training.inside.data_map.projection import projected


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(inspect, ["embedding", *map(str, arguments)])


def write(folder: Path, colours: dict[str, tuple[int, int, int]], count: int) -> Path:
    for label, colour in colours.items():
        (folder / label).mkdir(parents=True)
        for index in range(count):
            shade = tuple(min(255, part + 3 * index) for part in colour)
            Image.new("RGB", (32, 32), shade).save(folder / label / f"{index:02}.png")
    return folder


def test_the_map_holds_every_photo_of_the_source(exported: Exported, tmp_path: Path) -> None:
    out = tmp_path / "map.png"
    result = run(exported.package, "--data", exported.photos, "--json", "--out", out)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    points = document["points"]
    assert len(points) == document["photos"] - len(document["unreadable"])
    assert {point["label"] for point in points} == set(exported.manifest.labels)
    assert all(0.0 <= place <= 1.0 for point in points for place in point["at"])
    wrong = [point["photo"] for point in points if point["answer"] != point["label"]]
    assert sorted(wrong) == sorted(document["mistakes"])
    with Image.open(out) as picture:
        assert picture.width > 900


def test_labels_that_the_model_does_not_know_are_no_mistakes(
    exported: Exported, tmp_path: Path
) -> None:
    photos = write(tmp_path / "photos", {"red": (180, 0, 0), "puce <b>": (0, 0, 180)}, 8)
    (photos / "red" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    out = tmp_path / "map.html"
    result = run(exported.package, "--data", photos, "--out", out)
    assert result.exit_code == 0, result.output
    assert "The model does not know the labels puce <b>." in result.output
    assert "1 photo cannot be read: red/broken.png" in result.output
    assert "puce" not in "".join(re.findall(r"mistakes:\n(.*?)outliers", result.output, re.DOTALL))
    page = out.read_text(encoding="utf-8")
    assert "<b>" not in page
    assert "src=" not in page
    assert page.count("http:") == 1, "the name of SVG's elements, which nothing loads"


@pytest.mark.parametrize(
    ("count", "message"),
    [(2, "4 photos of .* can be read; a map needs 10 photos or more")],
)
def test_too_little_data_is_said_to_be_little(
    exported: Exported, tmp_path: Path, count: int, message: str
) -> None:
    photos = write(tmp_path / "photos", {"red": (180, 0, 0), "green": (0, 180, 0)}, count)
    assert re.search(message, str(run(exported.package, "--data", photos).exception))


def test_a_class_around_and_the_distance_to_the_own_class() -> None:
    """Six of a class in one direction, and one of them among six of another."""
    vectors_ND = np.zeros((13, 3), np.float32)
    vectors_ND[:6, 0] = vectors_ND[6:12, 1] = vectors_ND[12, 1] = 1.0
    vectors_ND[:, 2] = np.linspace(0.0, 0.01, 13)
    labels_N = np.array([0] * 6 + [1] * 6 + [0])
    distances_N, among_N = _neighbours(vectors_ND, labels_N)
    assert among_N.tolist() == [0] * 6 + [1] * 7
    assert distances_N[12] == pytest.approx(np.sqrt(2.0), abs=1e-3)
    assert distances_N[0] < 0.3
    alone_N, _ = _neighbours(vectors_ND, np.arange(13) // 5)
    assert np.isnan(alone_N).all()


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_groups_that_lie_apart_lie_apart_on_the_map(method: str) -> None:
    rng = np.random.default_rng(0)
    vectors_ND = rng.normal(0.0, 0.05, (40, 8)).astype(np.float32)
    vectors_ND[20:, 0] += 1.0
    places_N2, axes = projected(vectors_ND, "tsne" if method == "tsne" else "pca")
    again_N2, _ = projected(vectors_ND, "tsne" if method == "tsne" else "pca")
    assert axes
    assert np.array_equal(places_N2, again_N2)
    assert places_N2.min() >= 0.0
    assert places_N2.max() <= 1.0
    middles = places_N2[:20].mean(axis=0), places_N2[20:].mean(axis=0)
    spread = max(places_N2[:20].std(axis=0).max(), places_N2[20:].std(axis=0).max())
    assert np.linalg.norm(middles[0] - middles[1]) > 2 * spread


def test_no_two_classes_look_alike() -> None:
    looks = marks([f"class {place}" for place in range(MOST + 2)])
    seen = {(mark.colour, mark.shape) for mark in list(looks.values())[:MOST]}
    assert len(seen) == MOST
    assert list(looks.values())[-1].colour == OTHER
    assert len(set(COLOURS)) == len(COLOURS)
