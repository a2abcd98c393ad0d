"""From a run to a package: what passes is what was trained, and what does not pass leaves nothing
behind.

Letters used in shapes: N images, K classes.
"""

import base64
import dataclasses
import io
import json
import re
import shutil
import zipfile

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import numpy_helper
from PIL import Image
from torch import nn
from torchvision.models.resnet import Bottleneck

from models.errors import DataError, ExportError, TrainingError
from models.networks.catalogue import build, networks
from models.networks.network import IMAGENET_MEAN, IMAGENET_STD, OUTPUTS, ServedGraph
from models.package.manifest import MODEL_FILE, Lineage, PreprocessSpec
from models.package.manifest_file import read_manifest
from models.pixels.preprocess import to_pixels
from models.runtime.session import open_model
from tests.models.grad_cam import grad_cam, left_to_rounding
from tests.models.packages import read_golden
from tests.models.pixels.test_preprocess import png_chunk
from tests.training.photos import COLOURS, photo
from training.commands import export as command
from training.data.index import make_index
from training.data.loader import evaluation_batches, normalised
from training.data.source import Example, load_dataset
from training.edge.build import build as build_bundle
from training.evaluate import calibration
from training.export import export as exporting
from training.export import onnx_file
from training.export.export import export
from training.export.golden import golden_files
from training.export.onnx_file import to_onnx
from training.export.parity import BATCH_SIZES, PARITY_TOLERANCE, check_parity
from training.export.runners import onnx_runner, torch_runner
from training.fit.loop import preprocess_spec, train
from training.runs.run import WEIGHTS_FILE

SMALL_SPEC = PreprocessSpec(resize_size=64, crop=(64, 64))


@pytest.fixture(scope="module")
def held_out(exported):
    dataset = make_index(
        load_dataset(str(exported.photos), seed=exported.run.config.seed),
        exported.manifest.preprocess,
        most=0.05,
    ).dataset
    return dataset.splits["test"]


@pytest.fixture(scope="module")
def pixels_NHWC(exported, held_out):
    return np.concatenate(list(evaluation_batches(held_out, exported.manifest.preprocess, 32)))


@pytest.fixture(scope="module")
def graph(exported):
    network = build("resnet18", num_classes=3)
    network.load_state_dict(exported.run.load_weights())
    return ServedGraph(
        network, mean=IMAGENET_MEAN, std=IMAGENET_STD, temperature=exported.manifest.temperature
    ).eval()


@pytest.fixture(scope="module")
def model(exported):
    return open_model(exported.package)


def runner_of(model_proto):
    return onnx_runner(model_proto.SerializeToString(), origin="test")


def test_the_package_says_what_it_is(exported, model):
    manifest = exported.manifest
    assert read_manifest(exported.package) == manifest == model.manifest
    assert manifest.labels == ("blue", "green", "red")
    assert manifest.preprocess == preprocess_spec(exported.run.config)
    assert manifest.input.shape == ("N", 32, 32, 3)
    assert {spec.name: spec.shape for spec in manifest.outputs} == {
        "logits": ("N", 3),
        "probabilities": ("N", 3),
        "embedding": ("N", 512),
        "cam": ("N", 3, 1, 1),
    }
    assert (manifest.evaluation.split, manifest.evaluation.count) == ("test", 18)
    assert manifest.data.splits["train"] == {"blue": 18, "green": 18, "red": 18}
    assert manifest.lineage == Lineage(
        weights="none",
        identifier="random initialisation",
        sha256=None,
        run="run",
        seed=3,
        teacher_sha256=None,
    )
    assert manifest.parity.images == 18
    assert manifest.parity.max_probability_difference <= PARITY_TOLERANCE
    assert manifest.parity.top1_agreement == 1.0
    assert manifest.reference.count == 18
    assert manifest.architecture.num_parameters == sum(
        p.numel() for p in build("resnet18", num_classes=3).parameters()
    )
    assert sorted(path.name for path in exported.package.iterdir()) == [
        "golden",
        "manifest.json",
        "model.onnx",
        "report.html",
        "report.json",
    ]
    assert len(list((exported.package / "golden").glob("*.png"))) == 4


def test_what_was_left_out_of_the_run_is_on_record(exported):
    assert list(exported.run.record.unreadable) == ["red/damaged.png"]
    assert (
        sum(exported.manifest.data.splits[split]["red"] for split in ("train", "val", "test")) == 30
    )


def test_the_report_in_the_package_has_the_figures_of_the_manifest(exported):
    report = json.loads((exported.package / "report.json").read_text())
    assert report["evaluation"] == exported.manifest.evaluation.model_dump(mode="json")
    assert report["parity"] == exported.manifest.parity.model_dump(mode="json")


def test_golden_images_are_held_out_images_of_every_class(exported, held_out):
    encoded = {example.read(): example.label for example in held_out}
    golden = [path.read_bytes() for path in sorted((exported.package / "golden").glob("*.png"))]
    assert {encoded[content] for content in golden} == {0, 1, 2}


def pictures_in(page):
    """Every image inside the HTML *page*, decoded from its data URL."""
    return [
        base64.b64decode(found)
        for found in re.findall(r'src="data:image/[a-z]+;base64,([^"]+)"', page)
    ]


def chunks(png):
    """The types of the chunks of *png*, up to its last byte."""
    at, found = 8, []
    while at < len(png):
        found.append(png[at + 4 : at + 8])
        at += 12 + int.from_bytes(png[at : at + 4], "big")
    assert at == len(png)
    return set(found)


@pytest.mark.slow
def test_a_package_of_photos_with_metadata_holds_the_pictures_alone(tmp_path, exported):
    """Place, owner and preview are in every photo; they are in no file of the package, and golden
    answers hold.
    """
    secret, run = b"SECRET-52.52N", exported.run
    for path in exported.photos.rglob("[0-9]*.png"):
        target = tmp_path / "photos" / path.relative_to(exported.photos)
        target.parent.mkdir(parents=True, exist_ok=True)
        text = png_chunk(b"tEXt", b"GPS\0" + secret)
        target.write_bytes(path.read_bytes()[:33] + text + path.read_bytes()[33:] + secret)
    dataset = load_dataset(str(tmp_path / "photos"), seed=run.config.seed)
    private = train(run.config, dataset, tmp_path / "run")
    export(private, tmp_path / "package")
    names = [path for path in (tmp_path / "package").rglob("*") if path.is_file()]
    assert len(names) == 9
    assert [path.name for path in names if secret in path.read_bytes()] == []
    inside = pictures_in((tmp_path / "package" / "report.html").read_text(encoding="utf-8"))
    for picture in [
        *inside,
        *(path.read_bytes() for path in (tmp_path / "package" / "golden").glob("*.png")),
    ]:
        assert chunks(picture) == {b"IHDR", b"IDAT", b"IEND"}
    bundle = build_bundle(tmp_path / "package", tmp_path / "bundle.zip", targets=("python",)).path
    with zipfile.ZipFile(bundle) as archive:
        assert [name for name in archive.namelist() if secret in archive.read(name)] == []


@pytest.mark.slow
def test_golden_images_may_come_from_a_folder(tmp_path, exported):
    folder = tmp_path / "golden"
    folder.mkdir()
    (folder / "b.jpeg").write_bytes(photo("red", 901, image_format="JPEG"))
    (folder / "a (1).PNG").write_bytes(photo("green", 900))
    (folder / ".DS_Store").write_bytes(b"x")
    done = CliRunner().invoke(
        command,
        [str(exported.run.path), "--out", str(tmp_path / "package"), "--golden", str(folder)],
    )
    assert done.exit_code == 0, done.output
    assert [image.file for image in read_golden(tmp_path / "package")] == ["0.png", "1.jpg"]
    assert (tmp_path / "package/golden/0.png").read_bytes() == (folder / "a (1).PNG").read_bytes()
    open_model(tmp_path / "package")


@pytest.mark.slow
def test_golden_images_may_be_made(tmp_path, exported):
    """Nothing of the data is in the package then but the report's thumbnails and figures."""
    export(exported.run, tmp_path / "package", golden="made")
    golden = read_golden(tmp_path / "package")
    assert [image.file for image in golden] == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    assert len({image.probabilities for image in golden}) == 4
    open_model(tmp_path / "package")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            None,
            (
                "golden images {folder}: No such file or directory; expected a folder of images, or"
                " made"
            ),
        ),
        ({}, "golden images {folder}: the folder holds 0 files, expected 1 to 32 images"),
        (
            {f"{number}.png": b"" for number in range(33)},
            "golden images {folder}: the folder holds 33 files, expected 1 to 32 images",
        ),
        (
            {"a.txt": b"hello"},
            (
                "golden image {folder}/a.txt: received 5 bytes that begin with b'hello', which is"
                " not an image"
            ),
        ),
        (
            {"a/b.png": b""},
            "golden image {folder}/a is not a file; expected images alone in {folder}",
        ),
    ],
)
def test_golden_images_that_cannot_be_used_are_refused_before_any_work(
    tmp_path, exported, monkeypatch, files, message
):
    folder = tmp_path / "golden"
    for name, content in ({} if files is None else files).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    if files == {}:
        folder.mkdir()
    monkeypatch.setattr(exporting, "calibrated", None)
    with pytest.raises(ExportError) as refused:
        export(exported.run, tmp_path / "package", golden=str(folder))
    assert str(refused.value).startswith(message.format(folder=folder))
    assert not (tmp_path / "package").exists()


def test_held_out_images_that_cannot_be_freed_of_their_metadata_are_left_out():
    encoded = io.BytesIO()
    Image.new("RGB", (40, 40)).save(encoded, "TIFF", description="x")
    tiff = Example(name="a.tif", label=0, encoded=encoded.getvalue())
    mixed = PreprocessSpec(resize_size=64, crop=(64, 64), formats=("TIFF", "JPEG"))
    jpeg = Example(name="b.jpg", label=0, encoded=photo("red", 1, image_format="JPEG"))
    assert golden_files([tiff, jpeg], mixed, given=None) == [("0.jpg", jpeg.read())]
    with pytest.raises(
        ExportError,
        match=(
            r"^none of 1 held-out images can be freed of its metadata .*; give others with --golden"
            r" FOLDER"
        ),
    ):
        golden_files([tiff], mixed, given=None)
    both = mixed.model_copy(update={"formats": ("TIFF", "PNG")})
    ((name, _),) = golden_files([tiff], both, given=None)
    assert name == "0.png"


def test_every_output_equals_torchs(graph, model, pixels_NHWC):
    """fp32 on both sides; only the order of additions differs."""
    with torch.inference_mode():
        expected = dict(zip(OUTPUTS, graph(torch.from_numpy(pixels_NHWC)), strict=True))
    found = model.run(pixels_NHWC, OUTPUTS)
    for name in OUTPUTS:
        np.testing.assert_allclose(
            found[name], expected[name].numpy(), rtol=1e-4, atol=2e-5, err_msg=name
        )


def test_normalisation_in_the_graph_is_that_of_training(graph, model, pixels_NHWC):
    with torch.inference_mode():
        logits_NK = graph.network(normalised(torch.from_numpy(pixels_NHWC).permute(0, 3, 1, 2)))
    np.testing.assert_allclose(
        model.run(pixels_NHWC, ["logits"])["logits"], logits_NK.numpy(), rtol=1e-4, atol=2e-5
    )


def test_probabilities_are_the_logits_at_the_calibrated_temperature(exported, model, pixels_NHWC):
    found = model.run(pixels_NHWC, ["logits", "probabilities"])
    scaled_NK = torch.from_numpy(found["logits"]) / exported.manifest.temperature
    np.testing.assert_allclose(
        found["probabilities"], torch.softmax(scaled_NK, dim=1).numpy(), atol=1e-6
    )


@pytest.mark.parametrize("size", BATCH_SIZES)
def test_the_answer_does_not_depend_on_the_batch(model, pixels_NHWC, size):
    images_NHWC = np.concatenate([pixels_NHWC, pixels_NHWC[:14]])
    assert len(images_NHWC) == 32
    one_by_one = np.concatenate(
        [model.run(images_NHWC[index : index + 1])["probabilities"] for index in range(32)]
    )
    batched = np.concatenate(
        [
            model.run(images_NHWC[start : start + size])["probabilities"]
            for start in range(0, 32, size)
        ]
    )
    # Another batch may be computed with another kernel, so with another order of additions.
    np.testing.assert_allclose(batched, one_by_one, atol=1e-5)


def test_the_stated_accuracy_is_that_of_the_package_on_the_encoded_images(
    exported, model, held_out
):
    pixels = [
        to_pixels(example.read(), model.manifest.preprocess)[np.newaxis] for example in held_out
    ]
    right = [
        int(model.run(image)["probabilities"].argmax()) == example.label
        for image, example in zip(pixels, held_out, strict=True)
    ]
    assert exported.manifest.evaluation.metrics["top1"].value == sum(right) / 18


def test_a_tampered_weight_fails_the_parity_gate_and_names_the_worst_image(
    exported, graph, held_out, pixels_NHWC
):
    proto = onnx.load(exported.package / MODEL_FILE)
    bias = next(tensor for tensor in proto.graph.initializer if tensor.dims == [3])
    bias.CopyFrom(
        numpy_helper.from_array(
            numpy_helper.to_array(bias) + np.float32([0.5, 0.0, 0.0]), bias.name
        )
    )
    run = runner_of(proto)

    with torch.inference_mode():
        expected_NK = graph(torch.from_numpy(pixels_NHWC))[1].numpy()
    difference_N = np.abs(run(pixels_NHWC, ["probabilities"])["probabilities"] - expected_NK).max(
        axis=1
    )
    worst = held_out[int(difference_N.argmax())].name
    with pytest.raises(
        ExportError,
        match=(
            r"^parity gate: a probability of the exported model differs from torch's by"
            rf" {difference_N.max():.2e}, "
            rf"more than 1e-04; worst image: {re.escape(worst)}$"
        ),
    ):
        check_parity(torch_runner(graph), run, held_out, exported.manifest.preprocess)


def test_a_nan_at_one_batch_size_is_not_forgotten_at_the_next(exported, graph, model, held_out):
    def not_a_number_once(pixels_NHWC, outputs):
        found = model.run(pixels_NHWC, outputs)
        if len(pixels_NHWC) == 32:
            found["probabilities"][5] = np.nan
        return found

    spec = exported.manifest.preprocess
    with pytest.raises(
        ExportError,
        match=f"differs from torch's by inf, .*; worst image: {re.escape(held_out[5].name)}$",
    ):
        check_parity(torch_runner(graph), not_a_number_once, held_out, spec)


def left_behind(folder):
    return sorted(path.name for path in folder.iterdir())


def damaged(encoded, value):
    proto = onnx.ModelProto.FromString(encoded)
    weight = next(tensor for tensor in proto.graph.initializer if len(tensor.dims) == 4)
    tensor = numpy_helper.to_array(weight).copy()
    tensor.flat[0] = value
    weight.CopyFrom(numpy_helper.from_array(tensor, weight.name))
    return proto.SerializeToString()


@pytest.mark.parametrize("value", [50.0, np.nan])
def test_a_failed_gate_leaves_nothing_behind(exported, tmp_path, monkeypatch, value):
    encoded = (exported.package / MODEL_FILE).read_bytes()
    monkeypatch.setattr(onnx_file, "to_onnx", lambda graph, spec, exporter: damaged(encoded, value))
    with pytest.raises(ExportError, match=r"^parity gate: "):
        export(exported.run, tmp_path / "package")
    assert left_behind(tmp_path) == []


def test_ctrl_c_leaves_nothing_behind(exported, tmp_path, monkeypatch):
    encoded = (exported.package / MODEL_FILE).read_bytes()

    def interrupted(package, **options):
        assert (package / "manifest.json").is_file()
        raise KeyboardInterrupt

    monkeypatch.setattr(onnx_file, "to_onnx", lambda graph, spec, exporter: encoded)
    monkeypatch.setattr(exporting, "open_model", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(exported.run, tmp_path / "package")
    assert left_behind(tmp_path) == []


def test_nothing_is_overwritten(exported, tmp_path):
    (tmp_path / "package").mkdir()
    with pytest.raises(
        ExportError,
        match=(
            r"package exists already; a package is never overwritten: choose another --out, or"
            r" remove it$"
        ),
    ):
        export(exported.run, tmp_path / "package")
    assert left_behind(tmp_path / "package") == []


def test_a_place_that_cannot_be_written_is_named(exported, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(
        ExportError,
        match=(
            rf"^package folder {re.escape(str(tmp_path / 'file/package'))} cannot be made: (File"
            r" exists|Not a directory)$"
        ),
    ):
        export(exported.run, tmp_path / "file/package")


def elsewhere(run, photos):
    """*run*, as if its photos had always been at *photos*."""
    data = run.record.data.model_copy(update={"source": f"folder:{photos}"})
    return dataclasses.replace(run, record=run.record.model_copy(update={"data": data}))


def test_data_that_changed_since_is_refused(exported, tmp_path):
    photos = shutil.copytree(exported.photos, tmp_path / "photos")
    run = elsewhere(exported.run, photos)
    for number in range(9):
        (photos / f"red/{number:03d}.png").write_bytes(photo("red", 500 + number))
    expected = (
        f"the data is not what {run.path} was trained on: folder:{photos}: 10 of the 91 images of"
        " the run are gone, changed or unreadable, such as red/000.png: has another class or other"
        " content than it had. Up to 5.0% are left out (max_unreadable_share): restore them, or"
        " train again"
    )
    with pytest.raises(ExportError, match=f"^{re.escape(expected)}$"):
        export(run, tmp_path / "package")
    shutil.rmtree(photos)
    with pytest.raises(DataError, match="does not exist"):
        export(run, tmp_path / "package")
    assert left_behind(tmp_path) == []


@pytest.mark.slow
def test_photos_and_classes_that_were_added_since_are_ignored_and_what_is_gone_is_named(
    exported, tmp_path, capsys
):
    photos = shutil.copytree(exported.photos, tmp_path / "photos")
    run = elsewhere(exported.run, photos)
    names = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("[0-9]*.png"))
    gone, changed = names[0], names[-1]
    # Before all others, so that every place in a list of files or classes moves.
    for name in ("aaa/1.png", "aaa/2.png", "aaa/3.png", "red/000-new.png"):
        (photos / name).parent.mkdir(exist_ok=True)
        (photos / name).write_bytes(photo("red", 900 + len(name)))
    (photos / gone).unlink()
    (photos / changed).write_bytes(photo("red", 500))
    manifest = export(run, tmp_path / "package")
    out = " ".join(capsys.readouterr().err.split())
    assert "added since the run began, and ignored: 4, such as aaa/1.png" in out
    assert f"left out {gone}: is no longer there" in out
    assert f"left out {changed}: has another class or other content than it had" in out
    assert manifest.labels == run.record.labels
    assert sum(sum(split.values()) for split in manifest.data.splits.values()) == len(names) - 2


def test_an_unfinished_run_is_refused(exported, tmp_path):
    shutil.copytree(exported.run.path, tmp_path / "run")
    (tmp_path / "run" / WEIGHTS_FILE).unlink()
    with pytest.raises(TrainingError, match="has no weights"):
        export(dataclasses.replace(exported.run, path=tmp_path / "run"), tmp_path / "package")
    assert left_behind(tmp_path) == ["run"]


def lively(name):
    """Network *name* whose answers differ from image to image, by about one: with random weights a
    deep one evens them out, or swells them.
    """
    torch.manual_seed(0)
    network = build(name, num_classes=3)
    network.train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the plain mean over all batches
        if isinstance(module, Bottleneck):
            # As training begins by its own advice (Goyal et al. 2017, section 5.1): a hundred
            # random layers would magnify rounding a thousandfold.
            nn.init.constant_(module.bn3.weight, 0.2)
    (pixels_NHWC,) = evaluation_batches(EXAMPLES, SMALL_SPEC, len(EXAMPLES))
    images_N3HW = normalised(torch.from_numpy(pixels_NHWC).permute(0, 3, 1, 2))
    with torch.no_grad():
        for _ in range(3):
            network(images_N3HW)
        spread_K = network.eval()(images_N3HW).std(dim=0)
        network.head.linear.weight /= spread_K[:, None]
    return network


FAST = ("lenet5",)
MAP_ROUNDING = 1e-3
"""As for the other outputs, relative to the largest value."""
EXAMPLES = [
    Example(name=f"{colour}-{index}", label=0, encoded=photo(colour, index))
    for colour in COLOURS
    for index in range(11)
]
"""More than the largest batch."""


# The exporter takes a minute for a DenseNet or an EfficientNet where others want the processor too.
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in networks()],
)
def test_every_network_exports_to_what_it_is_in_torch(name):
    network = lively(name)
    graph = ServedGraph(network, mean=IMAGENET_MEAN, std=IMAGENET_STD, temperature=1.5).eval()
    proto = onnx.ModelProto.FromString(to_onnx(graph, SMALL_SPEC))
    assert [output.name for output in proto.graph.output] == list(OUTPUTS)
    assert [
        d.dim_param or d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim
    ] == ["N", 64, 64, 3]

    run = runner_of(proto)
    parity = check_parity(torch_runner(graph), run, EXAMPLES, SMALL_SPEC)
    assert parity.max_probability_difference <= PARITY_TOLERANCE
    (pixels_NHWC,) = evaluation_batches(EXAMPLES, SMALL_SPEC, len(EXAMPLES))
    with torch.inference_mode():
        expected = dict(zip(OUTPUTS, graph(torch.from_numpy(pixels_NHWC)), strict=True))
    assert float(expected["logits"].std(dim=0).max()) > 1e-3
    images_N3HW = normalised(torch.from_numpy(pixels_NHWC).permute(0, 3, 1, 2))
    features_NChw, _ = network.embed(images_N3HW)
    by_autograd = grad_cam(network.head, features_NChw.detach())
    # In VGG-19 one hidden ReLU at its kink changes a map by 0.14 of 5. A map may move by what such
    # units add, and not further.
    moved = left_to_rounding(network, images_N3HW).numpy()
    assert float(np.mean(moved > MAP_ROUNDING * float(by_autograd.abs().max()))) < 0.75
    for size in BATCH_SIZES:
        parts = [
            run(pixels_NHWC[start : start + size], OUTPUTS)
            for start in range(0, len(pixels_NHWC), size)
        ]
        assert len(parts[0]["logits"]) == size
        found = {output: np.concatenate([part[output] for part in parts]) for output in OUTPUTS}
        # The gate has looked at the probabilities.
        for output in ("logits", "embedding"):
            scale = float(expected[output].abs().max())
            # Random networks magnify the rounding of fp32: four digits of the largest value. A
            # wrong graph is wrong in the first.
            np.testing.assert_allclose(
                found[output],
                expected[output].numpy(),
                atol=1e-3 * max(scale, 1.0),
                err_msg=f"{output} at batch size {size}",
            )
        # What stands in the file against the closed form, and that against torch's own gradients.
        for maps_NKhw, least in ((expected["cam"].numpy(), 1.0), (by_autograd.numpy(), 0.0)):
            beyond = np.abs(found["cam"] - maps_NKhw) - moved
            assert beyond.max() <= MAP_ROUNDING * max(np.abs(maps_NKhw).max(), least), size


def test_class_activation_of_a_trained_package_is_grad_cam(graph, model, pixels_NHWC):
    """Of a linear head behind averages, where Grad-CAM is exact."""
    with torch.inference_mode():
        features_NChw, _ = graph.network.embed(
            normalised(torch.from_numpy(pixels_NHWC).permute(0, 3, 1, 2))
        )
    expected = grad_cam(graph.network.head, features_NChw.clone()).numpy()
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(model.run(pixels_NHWC, ["cam"])["cam"], expected, atol=1e-4)


def test_without_a_wish_every_image_is_answered_and_with_one_the_threshold_is_chosen_on_validation(
    exported, monkeypatch, tmp_path
):
    assert exported.manifest.abstain_threshold == 0.0
    encoded = (exported.package / MODEL_FILE).read_bytes()
    monkeypatch.setattr(onnx_file, "to_onnx", lambda graph, spec, exporter: encoded)
    asked = []

    def choose(confidence_N, correct_N, accuracy):
        asked.append((len(confidence_N), float(confidence_N.min()) > 1 / 3, accuracy))
        return 0.625

    monkeypatch.setattr(calibration, "abstain_threshold", choose)
    arguments = [
        str(exported.run.path),
        "--out",
        str(tmp_path / "package"),
        "--abstain-accuracy",
        "0.99",
    ]
    done = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert "abstains below a confidence of 0.625\n" in done.stdout
    manifest = read_manifest(tmp_path / "package")
    assert asked == [(18, True, 0.99)]
    assert manifest.abstain_threshold == 0.625
    assert json.loads((tmp_path / "package/report.json").read_text())["abstain_threshold"] == 0.625


def test_an_accuracy_that_abstaining_cannot_reach_leaves_nothing_behind(
    exported, monkeypatch, tmp_path
):
    monkeypatch.setattr(
        calibration,
        "softmax",
        lambda logits_NK, axis: np.roll(np.sort(logits_NK, axis=1), 1, axis=0) * 0.0,
    )
    with pytest.raises(
        ExportError,
        match=(
            r"^abstain gate: no threshold reaches an accuracy of 100\.00% on the 18 validation"
            r" images"
        ),
    ):
        export(exported.run, tmp_path / "package", abstain_accuracy=1.0)
    assert left_behind(tmp_path) == []
