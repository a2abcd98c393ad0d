from __future__ import annotations

import json
from pathlib import Path

import pytest

from models.errors import ManifestInvalid
from models.package.manifest import MANIFEST_FILE, SCHEMA_VERSION, Manifest, PreprocessSpec
from models.package.manifest_file import parse_manifest, read_manifest
from tests.models.packages import build_package

SCHEMA = Path(__file__).resolve().parents[3] / "docs" / "manifest.schema.json"


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    package = build_package(tmp_path_factory.mktemp("manifest") / "package")
    return json.loads((package / MANIFEST_FILE).read_text())


def refused(raw: dict) -> str:
    with pytest.raises(ManifestInvalid) as caught:
        parse_manifest(json.dumps(raw), origin="manifest.json")
    return str(caught.value)


def test_a_manifest_survives_being_written_and_read(raw):
    manifest = parse_manifest(json.dumps(raw), origin="manifest.json")
    assert parse_manifest(manifest.model_dump_json(), origin="again") == manifest


@pytest.mark.parametrize("field", sorted(Manifest.model_fields))
def test_a_missing_field_is_refused_by_its_name(raw, field):
    without = {key: value for key, value in raw.items() if key != field}
    assert f"manifest.json: {field}" in refused(without)


def test_an_unknown_field_is_refused_by_its_name(raw):
    assert (
        refused({**raw, "colour": "red"}) == "manifest.json: colour: Extra inputs are not permitted"
    )


def test_an_unknown_field_of_an_inner_record_is_refused_by_its_path(raw):
    spec = {**raw["preprocess"], "gamma": 2.2}
    assert (
        refused({**raw, "preprocess": spec})
        == "manifest.json: preprocess.gamma: Extra inputs are not permitted"
    )


def test_how_many_more_problems_there_are_is_said(raw):
    assert refused({**raw, "colour": "red", "opset": 0}).endswith("(and 1 more)")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"labels": ["ant", "ant"]}, "labels occur more than once: ant"),
        ({"labels": ["ant"]}, "labels: Tuple should have at least 2 items"),
        ({"labels": ["ant", "bee", "wasp"]}, r"has shape ['N', 2], but there are 3 labels"),
        ({"temperature": 0.0}, "temperature: Input should be greater than 0"),
        ({"abstain_threshold": 1.5}, "abstain_threshold: Input should be less than or equal to 1"),
        ({"precision": "int8"}, "cpu_class is None for precision int8"),
        ({"cpu_class": "arm64"}, "cpu_class is 'arm64' for precision fp32"),
        ({"precision": "fp8"}, "precision: Input should be 'fp32', 'fp16' or 'int8'"),
        ({"outputs": []}, "outputs must hold logits and probabilities"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused(raw, change, reason):
    assert reason in refused({**raw, **change})


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_are_none_are_refused(raw, value):
    text = json.dumps({**raw, "temperature": 12345.5}).replace("12345.5", value)
    with pytest.raises(ManifestInvalid, match="temperature: Input should be a finite number"):
        parse_manifest(text, origin="manifest.json")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not JSON"),
        ("[1]", "expected a JSON object, found list"),
        ('{"schema_version": 1', "not JSON"),
    ],
)
def test_what_is_no_json_object_is_refused(text, reason):
    with pytest.raises(ManifestInvalid, match=reason):
        parse_manifest(text, origin="manifest.json")


def test_a_folder_without_a_manifest_is_no_package(tmp_path):
    with pytest.raises(ManifestInvalid, match=r"is not a model package: it has no manifest\.json"):
        read_manifest(tmp_path)


def test_a_manifest_from_the_future_asks_for_an_upgrade(raw):
    future = SCHEMA_VERSION + 1
    assert (
        f"schema_version {future} is from a newer Loupe; this one reads up to {SCHEMA_VERSION}."
        " Upgrade Loupe" in refused({**raw, "schema_version": future})
    )


@pytest.mark.parametrize("version", [0, -1, "1", 1.0, True, None])
def test_a_schema_version_that_is_no_whole_number_is_refused(raw, version):
    assert f"schema_version is {version!r}" in refused({**raw, "schema_version": version})


def test_the_public_part_says_what_the_model_is_and_not_what_it_was_made_from(raw):
    public = parse_manifest(json.dumps(raw), origin="manifest.json").public()
    assert {"labels", "preprocess", "evaluation"} <= public.keys()
    assert {"data", "files", "lineage", "provenance", "reference"} & public.keys() == set()


def test_a_crop_larger_than_the_resize_is_refused():
    with pytest.raises(ValueError, match="resize_size 200 is smaller than crop"):
        PreprocessSpec(resize_size=200)


def test_the_json_schema_in_the_documents_is_the_manifests_own():
    """Renew it with: loupe models schema > docs/manifest.schema.json"""
    assert json.loads(SCHEMA.read_text(encoding="utf-8")) == Manifest.model_json_schema(), (
        "run: loupe models schema > docs/manifest.schema.json"
    )
