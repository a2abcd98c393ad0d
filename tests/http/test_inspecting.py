"""Seeing inside a served model over HTTP: layers, feature maps, preprocessing, and who may ask."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image

from models.inspection.feature_maps import feature_maps, session_with_outputs
from models.package.manifest import MODEL_FILE
from models.store.store import Store
from service.gate.keys import add_key
from service.inspection.inspector import PROCESS, WAITING_MAX
from tests.http.conftest import LABELS, WORKERS, make_photo
from tests.http.server import ANSWER_PATIENCE_S, Server, serving
from tests.models.packages import build_package

LAYERS = ["centred", "normalised", "embedding", "logits", "probabilities"]
"""Of the test's graph, without what only moves values."""


def post(client: httpx.Client, path: str, photo: bytes, **query: object) -> httpx.Response:
    return client.post(path, params={name: str(one) for name, one in query.items()}, content=photo)


def refusal(response: httpx.Response) -> tuple[int, str, str]:
    problem = response.json()
    return response.status_code, problem["code"], problem["detail"]


def inspectors(server: Server) -> list[psutil.Process]:
    return [one for one in server.family() if PROCESS in one.cmdline()]


def test_the_layers_are_those_of_the_served_graph(client):
    found = client.get("/v1/models/zoo/layers").raise_for_status().json()
    assert found["model"] == {"name": "zoo", "version": 1}
    assert (found["precision"], found["precisions"]) == ("fp32", ["fp32"])
    assert found["image_size"] == [8, 8]
    assert [layer["name"] for layer in found["layers"]] == LAYERS
    assert [layer["has_maps"] for layer in found["layers"]] == [True, True, False, False, False]
    assert found["layers"][3]["parameters"] == 4 * len(LABELS)
    assert found["totals"]["multiply_adds"] == 3 * len(LABELS)
    assert found["totals"]["milliseconds"] is None


def test_layers_are_measured_on_request(client):
    found = client.get("/v1/models/zoo/layers", params={"timed": "true"}).raise_for_status().json()
    assert found["totals"]["milliseconds"] > 0.0
    assert any(layer["milliseconds"] for layer in found["layers"])


def test_the_sheet_holds_the_values_of_the_served_graph(client, classifier, photo):
    found = post(client, "/v1/features", photo, layer="normalised").raise_for_status().json()
    assert found["shape"] == [3, 8, 8]
    assert (found["channels"], found["tile"], found["columns"]) == ([0, 1, 2], [8, 8], 3)
    encoded = (classifier.model.path / MODEL_FILE).read_bytes()
    session = session_with_outputs(encoded, ["normalised"])
    values_HWC = feature_maps(session, classifier.decode(photo)[np.newaxis])[0][0]
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(found["sheet_png"]))), np.float32)
    for channel in range(3):
        low, high = found["ranges"][channel]
        drawn_HW = low + sheet[:, 8 * channel : 8 * (channel + 1)] / 255.0 * (high - low)
        # 256 grey levels, and six digits of each range.
        np.testing.assert_allclose(
            drawn_HW, values_HWC[:, :, channel], atol=0.51 * (high - low) / 255.0
        )
        assert found["means"][channel] == pytest.approx(values_HWC[:, :, channel].mean(), rel=1e-4)


def test_a_layer_without_maps_gives_its_values(client, photo):
    found = post(client, "/v1/features", photo, layer="embedding").raise_for_status().json()
    answer = post(client, "/v1/classify", photo, embedding="true").json()
    assert found["values"] == pytest.approx(answer["embedding"], rel=1e-4)
    assert "sheet_png" not in found


def test_the_pixels_are_those_that_the_model_got(client, classifier, photo):
    found = post(client, "/v1/preprocess", photo).raise_for_status().json()
    pixels_HWC = np.asarray(Image.open(io.BytesIO(base64.b64decode(found["pixels_png"]))))
    np.testing.assert_array_equal(pixels_HWC, classifier.decode(photo))
    assert found["file"] | {"bytes": len(photo)} == {
        "format": "PNG",
        "bytes": len(photo),
        "size": [11, 9],
        "mode": "RGB",
        "orientation": 1,
        "colour_profile": None,
    }
    steps = [step["step"] for step in found["steps"]]
    assert steps == ["decode", "colour", "orient", "resize", "crop"]


def test_any_body_that_classification_takes_is_taken(client, photo):
    form = client.post("/v1/preprocess", files={"image": photo})
    text = {"images": [{"b64": base64.b64encode(photo).decode()}]}
    document = client.post("/v1/preprocess", json=text)
    assert form.json()["pixels_png"] == document.json()["pixels_png"]
    two = client.post("/v1/preprocess", files=[("image", photo), ("image", photo)])
    assert refusal(two)[:2] == (400, "bad_request")
    assert "this route takes one" in two.json()["detail"]


@pytest.mark.parametrize(
    ("query", "status", "said"),
    [
        ({}, 400, "layer is missing"),
        ({"layer": "normalized"}, 404, "Did you mean normalised"),
        ({"layer": "x" * 4000}, 404, "..."),
        ({"layer": "../../etc/passwd\n"}, 404, "no layer"),
        ({"layer": "normalised", "channels": "0-64"}, 400, "at most 64"),
        ({"layer": "normalised", "channels": "9-2"}, 400, "such as 0-63"),
        ({"layer": "normalised", "channels": "1e9"}, 400, "such as 0-63"),
        ({"layer": "normalised", "channels": "3"}, 400, "has 3, 0 to 2"),
        ({"layer": "normalised", "precision": "int8"}, 400, "that the package has: fp32"),
        ({"layer": "normalised", "version": "9"}, 404, "is not served"),
        ({"layer": "normalised", "model": "../zoo"}, 404, "is not served"),
    ],
)
def test_what_cannot_be_asked_for_gets_a_sentence(client, photo, query, status, said):
    response = post(client, "/v1/features", photo, **query)
    assert response.status_code == status
    assert said in response.json()["detail"]
    assert len(response.json()["detail"]) < 400


def test_a_broken_image_is_refused_as_by_classification(client, photo):
    for path in ("/v1/preprocess", "/v1/features?layer=normalised"):
        for body in (b"", b"no image", photo[:60], b"x" * 200_000):
            expected = refusal(client.post("/v1/classify", content=body))
            assert refusal(client.post(path, content=body))[:2] == expected[:2]


def test_methods_and_paths_are_as_strict_as_elsewhere(client):
    assert client.head("/v1/models/zoo/layers").status_code == 200
    for method, path in (("GET", "/v1/features"), ("PUT", "/v1/preprocess")):
        assert refusal(client.request(method, path))[:2] == (405, "method_not_allowed")
    for path in ("/v1/models/zoo%2f..%2fzoo/layers", "/v1/models//layers"):
        assert refusal(client.get(path))[:2] == (404, "unknown_route")
    assert refusal(client.get("/v1/models/other/layers"))[:2] == (404, "unknown_model")


def test_models_say_what_may_be_asked_for(client):
    (model,) = client.get("/v1/models").json()["models"]
    assert model["name"] == "zoo"
    assert model["version"] in model["versions"]
    assert client.get("/v1/models/zoo").json()["inspect"] is True


def test_a_crowd_is_refused_and_holds_one_process_a_worker(server, photo):
    """A loop over many layers: what waits is bounded, and so is what runs."""

    def ask(number: int) -> httpx.Response:
        query = {"layer": LAYERS[number % 2], "channels": "0"}
        url = f"{server.url}/v1/features"
        return httpx.post(
            url, params=query, content=photo, timeout=ANSWER_PATIENCE_S, trust_env=False
        )

    with ThreadPoolExecutor(40) as crowd:
        answers = list(crowd.map(ask, range(120)))
    assert {answer.status_code for answer in answers} <= {200, 503}
    refused = [answer for answer in answers if answer.status_code == 503]
    assert refused, f"of 40 at a time, {WORKERS} workers take {WAITING_MAX + 1} each"
    assert {answer.json()["code"] for answer in refused} == {"queue_full"}
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    assert len(inspectors(server)) <= WORKERS


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Iterator[tuple[Server, dict[str, str], Store]]:
    """One worker that only shows its inside to a key with the scope `admin`; the keys by scope."""
    folder = tmp_path_factory.mktemp("alone")
    store = Store(folder / "store")
    for seed in (0, 1):
        package = build_package(folder / f"package-{seed}", labels=LABELS, seed=seed)
        store.publish(package, name="zoo")
    keys = folder / "keys.json"
    secrets = {
        "predict": add_key(keys, name="app", scopes=("predict",)),
        "admin": add_key(keys, name="ops", scopes=("predict", "admin")),
    }
    with serving(
        folder, store=store.root, inspect="admin", api_keys_file=keys, follow_interval_s=0.05
    ) as running:
        yield running, secrets, store
        assert running.stop() == 0
        assert "Traceback" not in running.log


def as_key(server: Server, secret: str) -> httpx.Client:
    return httpx.Client(
        base_url=server.url,
        headers={"X-API-Key": secret},
        timeout=ANSWER_PATIENCE_S,
        trust_env=False,
    )


def test_only_a_key_with_the_scope_admin_looks_inside(alone, photo):
    server, secrets, _ = alone
    for path in ("/v1/models/zoo/layers", "/v1/models/zoo/layers/"):
        with as_key(server, secrets["predict"]) as app, as_key(server, secrets["admin"]) as ops:
            assert refusal(app.get(path))[:2] == (403, "forbidden")
            assert ops.get(path).status_code == 200
            assert app.get("/v1/models/zoo").json()["inspect"] is False
            assert ops.get("/v1/models/zoo").json()["inspect"] is True
    with as_key(server, "") as nobody:
        for path in ("/v1/features?layer=normalised", "/v1/preprocess"):
            assert refusal(nobody.post(path, content=photo))[:2] == (401, "unauthorised")


def test_a_process_that_is_killed_costs_one_answer(alone, photo):
    server, secrets, _ = alone
    with as_key(server, secrets["admin"]) as ops:
        assert post(ops, "/v1/features", photo, layer="normalised").status_code == 200
        (process,) = inspectors(server)
        process.kill()
        process.wait(ANSWER_PATIENCE_S)
        answers = [post(ops, "/v1/features", photo, layer="normalised") for _ in range(2)]
    assert answers[-1].status_code == 200
    assert {answer.status_code for answer in answers} <= {200, 503}


def test_versions_may_come_and_go_meanwhile(alone):
    """Each answer belongs to one version, and none fails because its version left."""
    server, secrets, store = alone
    with as_key(server, secrets["admin"]) as ops:
        versions = set()
        for turn in range(12):
            store.promote("zoo", turn % 2 + 1, alias="production")
            answer = post(ops, "/v1/features", make_photo(turn), layer="embedding")
            assert answer.status_code == 200
            versions.add(answer.json()["model"]["version"])
    assert versions <= {1, 2}


def test_the_inside_is_closed_where_others_can_reach_the_service(tmp_path, alone, photo):
    _, _, store = alone
    with serving(tmp_path, store=store.root, host="0.0.0.0", model="zoo") as server:
        for response in (
            httpx.get(f"{server.url}/v1/models/zoo/layers", trust_env=False),
            httpx.post(f"{server.url}/v1/preprocess", content=photo, trust_env=False),
        ):
            assert refusal(response)[:2] == (404, "inspection_off")
            assert "LOUPE_INSPECT" in response.json()["detail"]
        shown = httpx.get(f"{server.url}/v1/models/zoo", trust_env=False).json()
        assert shown["inspect"] is False
        assert inspectors(server) == []
