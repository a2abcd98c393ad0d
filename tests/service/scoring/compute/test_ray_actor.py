"""What runs on a Ray node, driven as the plain class and function that it is."""

from __future__ import annotations

import shutil

import pytest

from models.runtime.session import open_model
from models.store.store import Store
from models.store.transfer import pack_package
from service.scoring.compute.ray_actor import (
    PACKAGE_NAME,
    DecodeTask,
    RayJob,
    ScoringActor,
    result_row,
    row_of,
)
from service.scoring.compute.unit import ScoringOptions, answer_unit, decode_unit
from service.scoring.input.inputs import open_input
from service.scoring.input.items import units_of
from service.scoring.input.reader import Reader
from service.scoring.output.journal import encode
from tests.service.scoring.test_resume import many


@pytest.fixture
def package(store):
    return Store(store).resolve("tiny").path


def job_on(source, package, *, precision: str = "fp32") -> RayJob:
    spec = open_model(package, threads=1).manifest.preprocess
    return RayJob(
        base=source.base,
        max_image_bytes=2**20,
        spec=spec,
        precision=precision,
        provider="cpu",
        options=ScoringOptions(embedding=True),
    )


def actor_of(job: RayJob, package, folder) -> ScoringActor:
    pack_package(package, folder / "package.zip", name=PACKAGE_NAME)
    return ScoringActor(job, (folder / "package.zip").read_bytes)


def test_files_read_by_the_actor_or_decoded_elsewhere_give_the_record_of_the_local_engine(
    tmp_path, package
):
    table = many(tmp_path / "in", 200)
    with table.open("a", encoding="utf-8") as stream:
        stream.write("gone.jpg,200\n")
    source = open_input(str(table))
    job = job_on(source, package)
    actor, decode, model = (
        actor_of(job, package, tmp_path),
        DecodeTask(job),
        open_model(package, threads=1),
    )
    reader = Reader(source.base)
    units = list(units_of(source.items()))
    assert len(units) == 4
    for unit in units:
        decoded = decode_unit(unit, map(reader.read, unit.items), job.spec, hashed=False)
        expected = result_row(encode(answer_unit(unit, decoded, model, job.options)))
        assert actor(row_of(unit)) == expected
        assert actor(decode(row_of(unit))) == expected


def test_a_node_that_answers_in_another_precision_is_refused(tmp_path, package):
    source = open_input(str(many(tmp_path / "in", 1)))
    actor = actor_of(job_on(source, package, precision="int8"), package, tmp_path)
    refused = actor(row_of(next(units_of(source.items()))))["refused"]
    assert refused.startswith(
        "a node of the cluster cannot run the model: it answers in fp32, this machine in int8"
    )


def test_a_storage_that_is_gone_is_told_as_that(tmp_path, package):
    source = open_input(str(many(tmp_path / "in", 1)))
    job = job_on(source, package)
    row = row_of(next(units_of(source.items())))
    actor, decode = actor_of(job, package, tmp_path), DecodeTask(job)
    shutil.rmtree(tmp_path / "in")
    for answered in (actor(row), actor(decode(row))):
        assert answered == result_row(lost=answered["lost"])
        assert str(tmp_path / "in") in answered["lost"]
