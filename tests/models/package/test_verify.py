"""A package is judged before it is used: what is good is handed over whole, what is bad is refused
with the precise reason.
"""

import hashlib
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from models.errors import ManifestInvalid, ModelInvalid, PackageError, PackageTampered
from models.package.manifest import MANIFEST_FILE, MODEL_FILE
from models.package.manifest_file import read_manifest
from models.package.verify import GoldenImage, verify_package
from tests.models.packages import build_package, edit_model, read_golden, record_again


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return build_package(tmp_path / "package")


def edit_manifest(package: Path, edit: Callable[[dict], None]) -> None:
    raw = json.loads((package / MANIFEST_FILE).read_bytes())
    edit(raw)
    (package / MANIFEST_FILE).write_text(json.dumps(raw))


def edit_golden(package: Path, edit: Callable[[dict], None]) -> None:
    path = package / "golden/golden.json"
    raw = json.loads(path.read_bytes())
    edit(raw)
    path.write_text(json.dumps(raw))
    record_again(package)


def test_a_good_package_is_handed_over_as_it_was_hashed(package):
    verified = verify_package(package)

    assert verified.path == package
    assert verified.manifest == read_manifest(package)
    assert verified.model == (package / MODEL_FILE).read_bytes()
    assert hashlib.sha256(verified.model).hexdigest() == verified.manifest.files[MODEL_FILE].sha256
    assert [image.file for image in verified.golden] == ["0.png", "1.png", "2.png"]
    assert verified.golden[0].encoded == (package / "golden/0.png").read_bytes()
    assert verified.golden_tolerance == 1e-3
    assert read_golden(package) == list(verified.golden)
    assert isinstance(verified.golden[0], GoldenImage)


def test_the_builders_seed_and_labels_make_another_model(tmp_path):
    one = verify_package(build_package(tmp_path / "one"))
    same = verify_package(build_package(tmp_path / "same"))
    other = verify_package(
        build_package(tmp_path / "other", labels=("x", "y", "z"), seed=1, size=16)
    )

    assert one.model == same.model
    assert one.model != other.model
    assert [len(image.probabilities) for image in other.golden] == [3, 3, 3]


def test_verifying_imports_neither_torch_nor_onnx_runtime(package):
    code = (
        "import pathlib, sys, models.package.verify as p;"
        " p.verify_package(pathlib.Path(sys.argv[1])); print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, package],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[3],
    )
    assert not {"torch", "onnxruntime", "training", "service", "bentoml"} & set(done.stdout.split())


def test_a_folder_without_a_manifest_is_no_package(tmp_path):
    with pytest.raises(ManifestInvalid, match=r"is not a model package: it has no manifest\.json"):
        verify_package(tmp_path)
    with pytest.raises(ManifestInvalid, match="absent is not a model package: it is not a folder"):
        verify_package(tmp_path / "absent")


def test_a_manifest_from_the_future_is_refused(package):
    edit_manifest(package, lambda raw: raw.update(schema_version=2))
    with pytest.raises(
        ManifestInvalid,
        match=(
            r"schema_version 2 is from a newer Loupe; this one reads up to 1\. Upgrade Loupe to"
            r" serve this package"
        ),
    ):
        verify_package(package)


def test_a_label_too_few_is_refused(package):
    edit_manifest(package, lambda raw: raw["labels"].append("cat"))
    with pytest.raises(
        ManifestInvalid, match=r"output logits has shape \['N', 2\], but there are 3 labels"
    ):
        verify_package(package)


def test_a_label_too_few_is_refused_when_the_manifest_hides_it(tmp_path):
    package = build_package(tmp_path / "package", labels=("ant", "bee", "cat"))

    def drop_a_label(raw):
        raw["labels"].pop()
        raw["reference"]["predicted"].pop()
        for output in raw["outputs"][:2]:
            output["shape"] = ["N", 2]

    edit_manifest(package, drop_a_label)
    edit_golden(
        package, lambda raw: [image.update(probabilities=[0.5, 0.5]) for image in raw["images"]]
    )
    with pytest.raises(
        ModelInvalid,
        match=r"model\.onnx: output logits has shape \[N, 3\], but the manifest says \[N, 2\]",
    ):
        verify_package(package)


def test_a_file_that_is_missing_is_named(package):
    (package / "golden/1.png").unlink()
    with pytest.raises(
        PackageTampered,
        match=(
            r"golden/1\.png is listed in manifest\.json but missing\. Copy the whole package again"
        ),
    ):
        verify_package(package)


def test_a_file_that_is_not_listed_is_named(package):
    (package / "golden/notes.txt").write_text("x")
    with pytest.raises(
        PackageTampered,
        match=(
            r"golden/notes\.txt is not listed in manifest\.json\. Remove it; a package never"
            r" changes after export"
        ),
    ):
        verify_package(package)


def test_a_truncated_model_is_refused(package):
    content = (package / MODEL_FILE).read_bytes()
    (package / MODEL_FILE).write_bytes(content[:-7])
    with pytest.raises(
        PackageTampered,
        match=(
            rf"model\.onnx is truncated: it has {len(content) - 7} bytes, manifest\.json says"
            rf" {len(content)}"
        ),
    ):
        verify_package(package)


@pytest.mark.parametrize("file", [MODEL_FILE, "golden/0.png", "report.html"])
def test_one_flipped_bit_is_refused(package, file):
    content = bytearray((package / file).read_bytes())
    content[len(content) // 2] ^= 1
    (package / file).write_bytes(content)
    with pytest.raises(
        PackageTampered,
        match=(
            r"was changed after export: its SHA-256 is [0-9a-f]{16}\.\.\., manifest\.json says"
            r" [0-9a-f]{16}\.\.\.\."
        ),
    ):
        verify_package(package)


def test_a_longer_file_is_refused_before_it_is_read(package):
    os.truncate(package / "report.html", 2**40)  # sparse: reading it would take minutes
    with pytest.raises(
        PackageTampered, match=r"report\.html is changed: it has 1099511627776 bytes"
    ):
        verify_package(package)


def test_a_model_above_the_protobuf_limit_is_refused_before_it_is_read(package):
    os.truncate(package / MODEL_FILE, 2**31)
    with pytest.raises(
        ModelInvalid,
        match=(
            r"model\.onnx has 2147483648 bytes; a model without external data has at most"
            r" 2147483647"
        ),
    ):
        verify_package(package)


@pytest.mark.parametrize("file", ["golden/0.png", MODEL_FILE, MANIFEST_FILE])
def test_a_symbolic_link_is_refused_wherever_it_points(package, tmp_path, file):
    shutil.move(package / file, tmp_path / "elsewhere")
    (package / file).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(
        PackageTampered, match="is a symbolic link; a package holds plain files only"
    ):
        verify_package(package)


def test_a_linked_folder_is_refused(package, tmp_path):
    shutil.move(package / "golden", tmp_path / "elsewhere")
    (package / "golden").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PackageTampered, match="golden is a symbolic link"):
        verify_package(package)


def test_a_file_with_a_second_name_is_refused(package, tmp_path):
    os.link(package / MODEL_FILE, tmp_path / "second")
    with pytest.raises(
        PackageTampered,
        match=r"model\.onnx has 2 hard links: anyone with another link can change the model",
    ):
        verify_package(package)


def test_a_fifo_is_refused_and_not_waited_for(package):
    (package / "report.html").unlink()
    os.mkfifo(package / "report.html")
    with pytest.raises(
        PackageTampered,
        match=r"report\.html is a special file \(prw-r--r--\); a package holds plain files only",
    ):
        verify_package(package)


def test_a_socket_is_refused(package, monkeypatch):
    monkeypatch.chdir(package)  # a socket's path has at most 107 bytes
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("door")
        assert stat.S_ISSOCK(Path("door").stat().st_mode)
        with pytest.raises(PackageTampered, match="door is a special file"):
            verify_package(package)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "golden/../model.onnx"])
def test_a_manifest_that_lists_a_file_elsewhere_reaches_nothing(package, name):
    (package.parent / "outside").write_text("x")
    edit_manifest(
        package, lambda raw: raw["files"].update({name: {"sha256": "0" * 64, "bytes": 1}})
    )
    with pytest.raises(PackageTampered, match=f"{name} is listed in manifest.json but missing"):
        verify_package(package)


def test_a_manifest_that_does_not_list_the_model_is_refused(package):
    edit_manifest(package, lambda raw: raw["files"].pop(MODEL_FILE))
    with pytest.raises(ManifestInvalid, match=r"manifest\.json: files does not list model\.onnx"):
        verify_package(package)


def test_an_input_that_preprocessing_does_not_make_is_refused(package):
    edit_manifest(package, lambda raw: raw["preprocess"].update(crop=[6, 6]))
    expected = (
        r"input is image uint8 \['N', 8, 8, 3\], but preprocessing makes image uint8 \['N', 6,"
        r" 6, 3\]"
    )
    with pytest.raises(ManifestInvalid, match=expected):
        verify_package(package)


def test_a_half_model_with_a_matching_hash_is_refused(package):
    content = (package / MODEL_FILE).read_bytes()
    (package / MODEL_FILE).write_bytes(content[:100])
    record_again(package)
    with pytest.raises(ModelInvalid, match=r"model\.onnx is not a whole ONNX file \(100 bytes\)"):
        verify_package(package)


def externalise(tensor: onnx.TensorProto) -> onnx.TensorProto:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secrets")
    return tensor


def external_tensor() -> onnx.TensorProto:
    return externalise(numpy_helper.from_array(np.zeros(2, np.float32), "outside"))


def hide_in_initializer(model):
    externalise(model.graph.initializer[3])


def hide_in_attribute(model):
    model.graph.node.append(helper.make_node("Constant", [], ["hidden"], value=external_tensor()))


def hide_in_subgraph(model):
    inner = helper.make_graph([], "inner", [], [], [external_tensor()])
    model.graph.node.append(
        helper.make_node("If", ["condition"], ["hidden"], then_branch=inner, else_branch=inner)
    )


def hide_in_sparse_initializer(model):
    indices = numpy_helper.from_array(np.zeros(2, np.int64), "indices")
    model.graph.sparse_initializer.append(
        helper.make_sparse_tensor(external_tensor(), indices, [4])
    )


def hide_in_function(model):
    constant = helper.make_node("Constant", [], ["hidden"], value=external_tensor())
    model.functions.append(helper.make_function("custom", "Hidden", [], ["hidden"], [constant], []))


def hide_in_training_info(model):
    model.training_info.add().initialization.initializer.append(external_tensor())


@pytest.mark.parametrize(
    "hide",
    [
        hide_in_initializer,
        hide_in_attribute,
        hide_in_subgraph,
        hide_in_sparse_initializer,
        hide_in_function,
        hide_in_training_info,
    ],
)
def test_external_data_is_refused_wherever_it_hides(package, hide):
    model = onnx.load_model(package / MODEL_FILE)
    hide(model)
    (package / MODEL_FILE).write_bytes(model.SerializeToString())
    record_again(package)
    with pytest.raises(
        ModelInvalid,
        match=r"keeps its data in another file \(\.\./secrets\)\. External data is refused",
    ):
        verify_package(package)


def test_the_wrong_opset_is_refused(package):
    edit_model(package, lambda model: setattr(model.opset_import[0], "version", 18))
    with pytest.raises(ModelInvalid, match=r"model\.onnx has opset 18, but the manifest says 20"):
        verify_package(package)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_weights_that_are_not_finite_are_refused(package, value, dtype):
    bad = np.asarray([1.0, value, 2.0, 3.0], dtype=dtype)
    edit_model(
        package, lambda model: model.graph.initializer.append(numpy_helper.from_array(bad, "extra"))
    )
    with pytest.raises(
        ModelInvalid,
        match=r"NaN weights refused: 1 of 4 values of tensor 'extra' are NaN or infinite",
    ):
        verify_package(package)


def test_a_lone_infinity_is_a_bound_and_not_a_weight(package):
    bound = np.asarray(np.inf, dtype=np.float32)
    edit_model(
        package,
        lambda model: model.graph.initializer.append(numpy_helper.from_array(bound, "bound")),
    )
    assert verify_package(package)


def test_a_tensor_without_its_values_is_refused(package):
    def cut(model):
        model.graph.initializer[3].raw_data = model.graph.initializer[3].raw_data[:-4]

    edit_model(package, cut)
    with pytest.raises(ModelInvalid, match=r"model\.onnx"):
        verify_package(package)


def test_an_output_that_the_manifest_does_not_know_is_refused(package):
    edit_model(package, lambda model: model.graph.output.pop())
    expected = (
        r"model\.onnx has outputs logits, probabilities, but the manifest says embedding, logits,"
        r" probabilities"
    )
    with pytest.raises(ModelInvalid, match=expected):
        verify_package(package)


def test_an_input_of_another_type_is_refused(package):
    def to_float(model):
        model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT

    edit_model(package, to_float)
    with pytest.raises(
        ModelInvalid, match=r"model\.onnx: input image is float32, but the manifest says uint8"
    ):
        verify_package(package)


def test_a_fixed_batch_size_is_refused(package):
    def fix(model):
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4

    edit_model(package, fix)
    with pytest.raises(
        ModelInvalid,
        match=r"input image has shape \[4, 8, 8, 3\], but the manifest says \[N, 8, 8, 3\]",
    ):
        verify_package(package)


def test_a_graph_that_onnx_rejects_is_refused(package):
    edit_model(package, lambda model: model.graph.node.pop(0))
    with pytest.raises(
        ModelInvalid,
        match=(
            r"model\.onnx is not a valid ONNX graph: Nodes in a graph must be topologically sorted"
        ),
    ):
        verify_package(package)


def test_a_package_without_golden_images_is_refused(package):
    shutil.rmtree(package / "golden")
    edit_manifest(
        package,
        lambda raw: [
            raw["files"].pop(file) for file in list(raw["files"]) if file.startswith("golden/")
        ],
    )
    with pytest.raises(ManifestInvalid, match=r"files does not list golden/golden\.json"):
        verify_package(package)


@pytest.mark.parametrize(
    ("edit", "error", "message"),
    [
        (
            lambda raw: raw.update(images=[]),
            ManifestInvalid,
            r"golden\.json: images: Tuple should have at least 1 item",
        ),
        (
            lambda raw: raw.pop("tolerance"),
            ManifestInvalid,
            r"golden\.json: tolerance: Field required",
        ),
        (
            lambda raw: raw.update(note="x"),
            ManifestInvalid,
            r"golden\.json: note: Extra inputs are not permitted",
        ),
        (
            lambda raw: raw["images"][0].update(file="../model.onnx"),
            ManifestInvalid,
            r"golden\.json: images\.0\.file: String should match pattern",
        ),
        (
            lambda raw: raw["images"][0].update(file="9.png"),
            PackageTampered,
            r"golden\.json names 9\.png, which is not in the package",
        ),
        (
            lambda raw: raw["images"][0].update(probabilities=[1.0]),
            ManifestInvalid,
            r"0\.png has 1 probabilities, but there are 2 labels",
        ),
        (
            lambda raw: raw["images"][0].update(probabilities=[0.5, 0.4]),
            ManifestInvalid,
            r"probabilities of 0\.png sum to 0\.9000, not 1",
        ),
    ],
)
def test_a_golden_list_that_says_nothing_useful_is_refused(package, edit, error, message):
    edit_golden(package, edit)
    with pytest.raises(error, match=message):
        verify_package(package)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_no_damage_to_the_graph_gets_further_than_a_refusal(package, data):
    """Random bytes over the model, hash renewed: either the graph is still what the manifest says,
    or the refusal is one of ours.
    """
    good = (package / MODEL_FILE).read_bytes()
    bad = bytearray(good)
    position = data.draw(st.integers(0, len(good) - 1))
    for offset, value in enumerate(data.draw(st.binary(min_size=1, max_size=8))):
        bad[min(position + offset, len(bad) - 1)] = value
    (package / MODEL_FILE).write_bytes(bad)
    record_again(package)
    try:
        verified = verify_package(package)
    except PackageError as error:
        assert str(package) in str(error)  # noqa: PT017 - both ends are allowed here
    else:
        assert verified.model == bytes(bad)
    finally:
        (package / MODEL_FILE).write_bytes(good)
