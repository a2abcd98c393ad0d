"""Triton and BentoML read what the store holds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from google.protobuf.message import Message

from models.errors import PackageTampered
from models.store.interchange import write_triton
from models.store.store import ModelRef, Store
from tests.models.packages import build_package

CHECKOUT = Path(__file__).parents[3]

# The part of Triton's protocol that a config.pbtxt of ours may use. Source: model_config.proto,
# triton-inference-server/common: names, numbers and types of the fields.
FIELD = descriptor_pb2.FieldDescriptorProto
MESSAGES = {
    "ModelInput": [
        ("name", 1, FIELD.TYPE_STRING),
        ("data_type", 2, "DataType"),
        ("dims", 4, [FIELD.TYPE_INT64]),
    ],
    "ModelOutput": [
        ("name", 1, FIELD.TYPE_STRING),
        ("data_type", 2, "DataType"),
        ("dims", 3, [FIELD.TYPE_INT64]),
        ("label_filename", 4, FIELD.TYPE_STRING),
    ],
    "Specific": [("versions", 1, [FIELD.TYPE_INT64])],
    "ModelVersionPolicy": [("specific", 3, "Specific")],
    "ModelDynamicBatching": [("max_queue_delay_microseconds", 2, FIELD.TYPE_UINT64)],
    "ModelConfig": [
        ("name", 1, FIELD.TYPE_STRING),
        ("version_policy", 3, "ModelVersionPolicy"),
        ("max_batch_size", 4, FIELD.TYPE_INT32),
        ("input", 5, ["ModelInput"]),
        ("output", 6, ["ModelOutput"]),
        ("dynamic_batching", 11, "ModelDynamicBatching"),
        ("backend", 17, FIELD.TYPE_STRING),
    ],
}
DATA_TYPES = {"TYPE_INVALID": 0, "TYPE_UINT8": 2, "TYPE_FP32": 11}


def parse_config(text: str) -> Message:
    """*text* as Triton's own parser would read it; a misspelt field or type is an error."""
    file = descriptor_pb2.FileDescriptorProto(
        name="model_config.proto", package="inference", syntax="proto3"
    )
    enum = file.enum_type.add(name="DataType")
    for name, number in DATA_TYPES.items():
        enum.value.add(name=name, number=number)
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for field_name, number, kind in fields:
            repeated, kind = isinstance(kind, list), (kind[0] if isinstance(kind, list) else kind)  # noqa: PLW2901
            field = message.field.add(
                name=field_name,
                number=number,
                label=FIELD.LABEL_REPEATED if repeated else FIELD.LABEL_OPTIONAL,
            )
            if isinstance(kind, str):
                field.type, field.type_name = (
                    (FIELD.TYPE_ENUM if kind == "DataType" else FIELD.TYPE_MESSAGE),
                    f".inference.{kind}",
                )
            else:
                field.type = kind
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return text_format.Parse(
        text, message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))()
    )


@pytest.fixture
def ref(tmp_path: Path) -> ModelRef:
    package = build_package(tmp_path / "package", labels=("ant", "honey bee", "cat\nfish"))
    store = Store(tmp_path / "store")
    store.publish(package, name="ants")
    return store.publish(package, name="ants")


def test_triton_finds_its_configuration_beside_the_versions(ref):
    path = write_triton(ref, max_batch_size=16)
    config = parse_config(path.read_text())

    assert path == ref.path.parent / "config.pbtxt"
    assert (config.name, config.backend, config.max_batch_size) == (
        ref.path.parent.name,
        "onnxruntime",
        16,
    )
    assert list(config.version_policy.specific.versions) == [2]
    assert [(tensor.name, tensor.data_type, list(tensor.dims)) for tensor in config.input] == [
        ("image", DATA_TYPES["TYPE_UINT8"], [8, 8, 3])
    ]
    assert [
        (tensor.name, tensor.data_type, list(tensor.dims), tensor.label_filename)
        for tensor in config.output
    ] == [
        ("logits", DATA_TYPES["TYPE_FP32"], [3], ""),
        ("probabilities", DATA_TYPES["TYPE_FP32"], [3], "labels.txt"),
        ("embedding", DATA_TYPES["TYPE_FP32"], [3], ""),
    ]
    assert config.HasField("dynamic_batching")
    assert (ref.path.parent / "labels.txt").read_text().splitlines() == [
        "ant",
        "honey bee",
        "cat fish",
    ]


def test_the_store_reads_a_folder_that_triton_shares(ref):
    write_triton(ref)
    store = Store(ref.path.parents[1])
    assert store.names() == ["ants"]
    assert store.versions("ants") == [1, 2]


def test_a_damaged_version_is_not_exported(ref):
    (ref.path / "report.html").write_text("changed")
    with pytest.raises(PackageTampered, match=r"report\.html"):
        write_triton(ref)
    assert not (ref.path.parent / "config.pbtxt").exists()


BENTO = """
import json, sys
from pathlib import Path
import bentoml
from models.errors import StoreError
from models.store.interchange import BENTO_STORE, export_to_bento
from models.package.verify import verify_package
from models.store.store import Store
ref = Store(Path(sys.argv[1])).resolve("ants:2")
tag = export_to_bento(ref)
model = bentoml.models.get(tag)
verified = verify_package(Store(Path(model.path_of(BENTO_STORE))).resolve("ants").path)
try:
    export_to_bento(ref)
except StoreError as error:
    again = str(error)
metadata = {
    name: value if isinstance(value, str) else list(value)
    for name, value in model.info.metadata.items()
}
same = verified.model == verify_package(ref.path).model
print(json.dumps({"tag": tag, "same": same, "metadata": metadata, "again": again}))
"""


def test_bentoml_takes_a_version_into_its_model_store(ref, tmp_path):
    """In a process of its own: BentoML reads the place of its store once, when it is imported."""
    environment = {
        **os.environ,
        "BENTOML_HOME": str(tmp_path / "bento"),
        "BENTOML_DO_NOT_TRACK": "True",
    }
    done = subprocess.run(
        [sys.executable, "-c", BENTO, ref.path.parents[1]],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        cwd=CHECKOUT,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["tag"] == "ants:2"
    assert answer["same"]
    assert answer["metadata"] == {
        "network": "tiny",
        "precision": "fp32",
        "labels": ["ant", "honey bee", "cat\nfish"],
    }
    assert answer["again"].startswith(
        "BentoML does not take ants:2: Item 'ants:2' already exists in the store"
    )
    assert answer["again"].endswith("`bentoml models delete ants:2` removes one that is there")
