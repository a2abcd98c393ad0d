"""What runs on a Ray node, driven as the plain class and function that it is."""

from __future__ import annotations

import pytest

from models.errors import ScoringError
from models.runtime import open_model
from models.store import Store
from models.transfer import pack_package
from service.scoring.inputs import open_input
from service.scoring.items import units_of
from service.scoring.journal import encode
from service.scoring.lane import PACKAGE_NAME, Lane, Work, decode
from service.scoring.unit import Wanted, answer_unit
from tests.service.scoring.test_resume import many


@pytest.fixture
def package(store):
    return Store(store).resolve("tiny").path


def work_on(source, package, *, precision: str = "fp32") -> Work:
    spec = open_model(package, threads=1).manifest.preprocess
    return Work(base=source.base, max_image_bytes=2**20, spec=spec, precision=precision, provider="cpu", wanted=Wanted(embedding=True))


def opened(work: Work, package, folder) -> Lane:
    pack_package(package, folder / "package.zip", name=PACKAGE_NAME)
    lane = Lane(work, (folder / "package.zip").read_bytes())
    lane.open()
    return lane


def test_files_read_by_the_lane_or_decoded_elsewhere_give_the_record_of_the_local_engine(tmp_path, package):
    source = open_input(str(many(tmp_path / "in", 200)))
    work = work_on(source, package)
    lane, model = opened(work, package, tmp_path), open_model(package, threads=1)
    units = list(units_of(source.items()))
    assert len(units) == 4
    for unit in units:
        decoded = decode(unit, work)
        decoded.pixels_NHWC.flags.writeable = False  # as they come out of Ray's store
        expected = encode(answer_unit(unit, decoded, model, work.wanted))
        assert encode(lane.answer(unit)) == expected
        assert encode(lane.answer(unit, decoded)) == expected


def test_a_node_that_answers_in_another_precision_is_refused(tmp_path, package):
    source = open_input(str(many(tmp_path / "in", 1)))
    with pytest.raises(ScoringError, match="a node of the cluster answers in fp32, this machine in int8"):
        opened(work_on(source, package, precision="int8"), package, tmp_path)
