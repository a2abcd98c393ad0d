"""Every family of networks on its whole way: trained a few steps, exported through its gates,
published, served, asked over HTTP.
"""

import dataclasses
import shutil

import httpx
import numpy as np
import pytest

from models.errors import ConfigError
from models.networks.catalogue import networks
from models.pixels.preprocess import to_pixels
from models.runtime.session import open_model
from models.store.store import Store
from tests.http.server import ANSWER_PATIENCE_S, serving
from tests.training.photos import COLOURS, photo, write_photos
from tests.training.small_runs import TINY
from training.config import config_from_json, replace_fields
from training.data.source import load_dataset
from training.export.export import export
from training.export.parity import PARITY_TOLERANCE
from training.fit.loop import train

OPTIONS = "simple_cnn,norm=group,activation=gelu,padding=reflect,pooling=flatten"
QUICK = ("lenet5",)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("photos") / "colours", dict.fromkeys(COLOURS, 20))


@pytest.fixture
def place(tmp_path):
    """A folder that is gone afterwards: run, package and store of the VGGs alone are 12 GB, and
    pytest keeps what three sessions leave.
    """
    folder = tmp_path / "place"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


# Of a VGG's 130 million weights each step writes 2 GB.
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "name",
    [
        *QUICK,
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in (*networks(), OPTIONS)
            if name not in QUICK
        ),
    ],
)
def test_every_network_goes_the_whole_way_to_an_answer_over_http(name, photos, place):
    size = 28 if name == "lenet5" else 64
    config = dataclasses.replace(
        TINY, network=name, image_size=size, resize_size=size, epochs=2, learning_rate=2e-4
    )
    run = train(config, load_dataset(str(photos), seed=config.seed), place / "run")
    manifest = export(run, place / "package")
    assert manifest.architecture.network == name
    assert manifest.parity.max_probability_difference <= PARITY_TOLERANCE
    cam = next(spec for spec in manifest.outputs if spec.name == "cam")
    assert cam.shape[:2] == ("N", 3)
    assert all(side >= 1 for side in cam.shape[2:])

    encoded = photo("green", 999)
    model = open_model(place / "package")
    outputs = model.run(
        to_pixels(encoded, manifest.preprocess)[np.newaxis], ("probabilities", "embedding", "cam")
    )
    assert outputs["cam"].shape == (1, *cam.shape[1:])
    assert outputs["embedding"].shape == (1, manifest.architecture.embedding_size)
    store = Store(place / "store")
    store.publish(place / "package", name="colours")
    with serving(place, store=store.root) as server:
        answer = httpx.post(
            f"{server.url}/v1/classify?top_k=3",
            content=encoded,
            timeout=ANSWER_PATIENCE_S,
            trust_env=False,
        ).json()
    probabilities = {
        prediction["label"]: prediction["probability"] for prediction in answer["predictions"]
    }
    # One machine, one session, one thread: what is left is how JSON rounds.
    assert [probabilities[label] for label in manifest.labels] == pytest.approx(
        outputs["probabilities"][0].tolist(), abs=1e-4
    )


def test_an_image_size_that_the_network_cannot_take_is_refused_before_a_run_is_made(
    photos, tmp_path
):
    config = dataclasses.replace(TINY, network="alexnet", image_size=62, resize_size=62)
    with pytest.raises(
        ConfigError,
        match=r"^image_size is 62; network alexnet takes images of 63 pixels a side or more$",
    ):
        train(config, load_dataset(str(photos), seed=config.seed), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_options_are_set_one_by_one_and_kept_in_the_name():
    config = replace_fields(
        TINY, ["network=simple_cnn", "network.activation=elu", "network.norm=group"]
    )
    assert config.network == "simple_cnn,norm=group,activation=elu"
    assert config_from_json(config.to_json(), origin="here") == config
    assert replace_fields(config, ["network.norm=batch"]).network == "simple_cnn,activation=elu"
    with pytest.raises(ConfigError, match=r"^simple_cnn: norm is bach; it should be 'batch', "):
        replace_fields(config, ["network.norm=bach"])
    with pytest.raises(ConfigError, match=r"^simple_cnn: kernel is 4; it should be 1, 3, 5 or 7$"):
        dataclasses.replace(config, network="simple_cnn,kernel=4")
