"""`manifest.json`: the only source of what a packaged model is and how it must be fed.

Written once by training, read by everything else. The name and the version are not in it: they are the store's (the folder
names), so that a package is the same package wherever it lies. Letters used in shapes: N images, K classes, D embedding
features, H and W pixels, h and w cells of the last feature map.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from models.errors import ManifestInvalid

SCHEMA_VERSION = 1
MANIFEST_FILE = "manifest.json"
MODEL_FILE = "model.onnx"
SIBLING_FILE = "model.fp32.onnx"
"""Optional in an int8 package: the network before quantisation, with the same inputs and outputs, for CPUs that int8 was not validated on."""
GOLDEN_FOLDER = "golden"
REPORT_FILES = ("report.html", "report.json")

Migration = Callable[[dict[str, Any]], dict[str, Any]]
MIGRATIONS: Mapping[int, Migration] = {}
"""Schema n -> what turns such a manifest into schema n + 1. A change of `Manifest` raises `SCHEMA_VERSION` and adds a step here."""

Precision = Literal["fp32", "fp16", "int8"]
ImageFormat = Literal["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]


class Record(BaseModel):
    """A frozen record that refuses unknown and missing fields, and NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class PreprocessSpec(Record):
    """How encoded bytes become `uint8 [H,W,3]`. `models.preprocess` is its only interpreter in Python."""

    formats: tuple[ImageFormat, ...] = ("JPEG", "PNG", "WEBP")
    """Accepted formats, found by content and never by file name. Of an animation the first frame is taken."""
    apply_exif_orientation: bool = True
    """Turn the image as its EXIF orientation says before anything else."""
    convert_icc: bool = False
    """Convert an embedded ICC profile to sRGB (perceptual intent). Off by default: torchvision does not, so its weights never saw such colours."""
    background: tuple[int, int, int] = (0, 0, 0)
    """RGB colour, 0 to 255, that shows through transparent pixels."""
    resize: Literal["shortest_side", "stretch", "letterbox"] = "shortest_side"
    """`shortest_side`: scale to `resize_size`, then centre-crop. `stretch`: straight to `crop`. `letterbox`: fit inside `crop` and pad."""
    resize_size: Annotated[int, Field(ge=1, le=8192)] = 256
    """Length of the shortest side before the crop, in pixels; only `shortest_side` reads it."""
    crop: tuple[Annotated[int, Field(ge=1, le=8192)], Annotated[int, Field(ge=1, le=8192)]] = (224, 224)
    """Height and width of the result, in pixels."""
    filter: Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"] = "bilinear"
    """Pillow's resampling filter; all but `nearest` antialias."""
    pad_colour: tuple[int, int, int] = (0, 0, 0)
    """RGB colour of the letterbox border."""
    dct_margin: Annotated[float, Field(ge=1.0)] | None = None
    """A JPEG is decoded at the smallest of 1/1, 1/2, 1/4, 1/8 that stays at least this many times the resize target. None: full decode."""
    max_pixels: Positive = 25_000_000
    """Width times height; an image with more is refused from its header, before any pixel is decoded."""
    max_side: Positive = 16_384
    """Longest side in pixels; likewise."""

    @model_validator(mode="after")
    def _crop_fits(self) -> Self:
        if self.resize == "shortest_side" and self.resize_size < max(self.crop):
            raise ValueError(f"resize_size {self.resize_size} is smaller than crop {self.crop}: the border would be padding")
        if not all(0 <= channel <= 255 for channel in (*self.background, *self.pad_colour)):
            raise ValueError(f"background {self.background} and pad_colour {self.pad_colour} must be RGB values of 0 to 255")
        return self


class Lineage(Record):
    """Where the weights came from."""

    weights: Literal["torchvision", "file", "none"]
    identifier: str
    """torchvision's enum member, the file's name, or `random initialisation`."""
    sha256: Sha256 | None
    """Of the weights file; None for random initialisation."""
    run: str
    """Name of the run that trained them."""
    seed: int


class Architecture(Record):
    """The network as `models.architectures` builds it."""

    network: str
    num_parameters: Positive
    embedding_size: Positive
    mean: tuple[float, float, float]
    """RGB mean of the normalisation inside the graph, in units of 0 to 1."""
    std: tuple[float, float, float]


class TensorSpec(Record):
    """A graph input or output. Symbolic sizes are letters of the legend above."""

    name: str
    dtype: Literal["uint8", "float32"]
    shape: tuple[int | str, ...]


class Interval(Record):
    """A metric and its confidence interval."""

    value: float
    low: float
    high: float
    confidence: Share = 0.95
    method: str
    """How the interval was computed, such as `wilson`."""


class Evaluation(Record):
    """What the exported package scored, through its own preprocessing and session."""

    data: str
    split: str
    count: Positive
    metrics: dict[str, Interval]
    provider: str


class Parity(Record):
    """How far the exported graph is from the network that was trained, on real images."""

    images: Positive
    max_probability_difference: Annotated[float, Field(ge=0.0)]
    top1_agreement: Share
    tolerance: Annotated[float, Field(gt=0.0)]
    batch_sizes: tuple[Positive, ...]
    exporter: str


class DataFingerprint(Record):
    """Which images trained and judged the model."""

    source: str
    sha256: Sha256
    """Over every image's bytes and label, in order."""
    splits: dict[str, dict[str, int]]
    """split -> label -> number of images."""


class Histogram(Record):
    """Counts between edges; the first and last bin take what lies outside."""

    edges: tuple[float, ...]
    counts: tuple[Annotated[int, Field(ge=0)], ...]

    @model_validator(mode="after")
    def _bins(self) -> Self:
        if len(self.edges) != len(self.counts) + 1 or list(self.edges) != sorted(set(self.edges)):
            raise ValueError(f"{len(self.counts)} counts need {len(self.counts) + 1} ascending edges, not {len(self.edges)}")
        return self


class DriftReference(Record):
    """What the evaluation images looked like to the model; live traffic is compared with it."""

    count: Positive
    predicted: tuple[Annotated[int, Field(ge=0)], ...]
    """Predictions per class, in label order."""
    confidence: Histogram
    """Of the highest probability."""
    brightness: Histogram
    """Of the mean luma of the preprocessed pixels, 0 to 1."""
    sharpness: Histogram
    """Of the standard deviation of the Laplacian of the luma, 0 to 1."""
    embedding_mean: tuple[float, ...]
    embedding_distance: Histogram
    """Of the cosine distance to `embedding_mean`, 0 to 2."""


class Provenance(Record):
    """What wrote the package."""

    created: str
    """UTC, ISO 8601."""
    git_commit: str | None
    git_dirty: bool | None
    python: str
    platform: str
    packages: dict[str, str]


class FileRecord(Record):
    """Content of one file of the package."""

    sha256: Sha256
    bytes: Annotated[int, Field(ge=0)]


class Manifest(Record):
    """Everything about a model that is not a weight. See DESIGN in ARCHITECTURE.md for who reads what."""

    schema_version: Literal[1]
    architecture: Architecture
    lineage: Lineage
    labels: Annotated[tuple[str, ...], Field(min_length=2)]
    """Class names; the position is the index in `logits` and `probabilities`."""
    preprocess: PreprocessSpec
    input: TensorSpec
    outputs: tuple[TensorSpec, ...]
    opset: Positive
    precision: Precision
    cpu_class: str | None
    """The CPU class that an int8 file was validated on; None for the others."""
    temperature: Annotated[float, Field(gt=0.0)]
    """Calibration temperature, already inside the graph."""
    abstain_threshold: Share
    """Answers whose highest probability is lower are marked `abstained`."""
    evaluation: Evaluation
    parity: Parity
    data: DataFingerprint
    reference: DriftReference
    provenance: Provenance
    files: dict[str, FileRecord]
    """Every file of the package but this one, by POSIX path relative to it."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        classes = len(self.labels)
        if len(set(self.labels)) != classes:
            twice = sorted({label for label in self.labels if self.labels.count(label) > 1})
            raise ValueError(f"labels occur more than once: {', '.join(twice)}")
        for output in self.outputs:
            if output.name in ("logits", "probabilities") and output.shape != ("N", classes):
                raise ValueError(f"output {output.name} has shape {list(output.shape)}, but there are {classes} labels")
        if {"logits", "probabilities"} - {output.name for output in self.outputs}:
            raise ValueError("outputs must hold logits and probabilities")
        if (self.cpu_class is not None) != (self.precision == "int8"):
            raise ValueError(f"cpu_class is {self.cpu_class!r} for precision {self.precision}: an int8 package names one, the others none")
        if len(self.reference.predicted) != classes:
            raise ValueError(f"reference.predicted has {len(self.reference.predicted)} classes, but there are {classes} labels")
        return self

    def public(self) -> dict[str, Any]:
        """The part that the service shows to anyone: what the model is, and how good, without the data's and files' fingerprints."""
        keys = {"architecture", "labels", "preprocess", "input", "outputs", "precision", "temperature", "abstain_threshold", "evaluation", "parity"}
        return self.model_dump(mode="json", include=keys)


def parse_manifest(text: str | bytes, *, origin: str) -> Manifest:
    """The manifest in *text*, migrated to the present schema.

    Raises `ManifestInvalid` with the offending field and *origin*.
    """
    try:
        raw = json.loads(text)
    except ValueError as error:
        raise ManifestInvalid(f"{origin}: not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise ManifestInvalid(f"{origin}: expected a JSON object, found {type(raw).__name__}")
    try:
        return Manifest.model_validate(migrate(raw, origin=origin, steps=MIGRATIONS, newest=SCHEMA_VERSION))
    except ValidationError as error:
        raise ManifestInvalid(f"{origin}: {_first_problem(error)}") from error


def read_manifest(package: Path) -> Manifest:
    """The manifest of the package folder *package*. Raises `ManifestInvalid`."""
    path = package / MANIFEST_FILE
    try:
        text = path.read_bytes()
    except FileNotFoundError as error:
        raise ManifestInvalid(f"{package} is not a model package: it has no {MANIFEST_FILE}") from error
    except OSError as error:
        raise ManifestInvalid(f"{path}: {error.strerror}") from error
    return parse_manifest(text, origin=str(path))


def write_manifest(package: Path, manifest: Manifest) -> None:
    """Write *manifest* into the folder *package*. Only the exporter calls this: a package never changes afterwards."""
    (package / MANIFEST_FILE).write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")


def record_files(package: Path) -> dict[str, FileRecord]:
    """SHA-256 and size of every file below *package* but the manifest, in name order."""
    files = sorted(path for path in package.rglob("*") if path.is_file() and path.name != MANIFEST_FILE)
    return {path.relative_to(package).as_posix(): record_file(path) for path in files}


def record_file(path: Path) -> FileRecord:
    """SHA-256 and size of *path*."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return FileRecord(sha256=digest, bytes=path.stat().st_size)


def migrate(raw: dict[str, Any], *, origin: str, steps: Mapping[int, Migration], newest: int) -> dict[str, Any]:
    """*raw* brought forward to schema *newest*, one step of *steps* after the other; step n turns schema n into n + 1.

    Raises `ManifestInvalid` if the schema is not a whole number of 1 to *newest*.
    """
    version = raw.get("schema_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ManifestInvalid(f"{origin}: schema_version is {version!r}, expected a whole number of 1 to {newest}")
    if version > newest:
        raise ManifestInvalid(
            f"{origin}: schema_version {version} is from a newer Loupe; this one reads up to {newest}. Upgrade Loupe to serve this package"
        )
    for step in range(version, newest):
        raw = {**steps[step](raw), "schema_version": step + 1}
    return raw


def _first_problem(error: ValidationError) -> str:
    """`field.path: what is wrong`, of the first problem, and how many more there are."""
    problems = error.errors()
    first = problems[0]
    where = ".".join(str(part) for part in first["loc"]) or "manifest"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{where}: {first['msg']}{more}"
