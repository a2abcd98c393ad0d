"""The fields of `manifest.json`: what a packaged model is, and what input it takes.

Training writes it once, everything else reads it (`models.package.manifest_file`). It holds neither
name nor version. They are the store's folder names, so a package is the same package wherever it is
stored.

Letters used in shapes: N images, K classes, D embedding features, H and W pixels, h and w cells of
the last feature map.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

SCHEMA_VERSION = 1
MANIFEST_FILE = "manifest.json"
MODEL_FILE = "model.onnx"
SIBLING_FILE = "model.fp32.onnx"
"""Optional in an int8 package: the network before quantisation, with the same inputs and outputs.

It answers on CPUs that int8 was not validated on.
"""
GOLDEN_FOLDER = "golden"

Precision = Literal["fp32", "fp16", "int8"]
ImageFormat = Literal["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIC"]
ALL_FORMATS: tuple[ImageFormat, ...] = get_args(ImageFormat)
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]
Side = Annotated[int, Field(ge=1, le=8192)]
Channel = Annotated[int, Field(ge=0, le=255)]
Rgb = tuple[Channel, Channel, Channel]


class StrictRecord(BaseModel):
    """A frozen record that refuses unknown and missing fields, and NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ImageLimits(NamedTuple):
    """What one image may cost; checked from its header, before any pixel is decoded."""

    max_pixels: int = 250_000_000
    """Width times height: a bound on time. The largest photos of phones have 200 megapixels."""
    max_side: int = 65_535
    """Longest side in pixels."""
    max_decode_bytes: int = 768 << 20
    """Estimated memory for decoding it, without the file's own bytes."""


LIMITS = ImageLimits()


class PreprocessSpec(StrictRecord):
    """How encoded bytes become `uint8 [H,W,3]`.

    `models.pixels.preprocess` is its only interpreter in Python.
    """

    formats: tuple[ImageFormat, ...] = ALL_FORMATS
    """Accepted formats, found by content and never by file name. HEIC needs the extra `heif`.

    Of an animation the first frame is used.
    """
    apply_exif_orientation: bool = True
    """Turn the image as its EXIF orientation says before anything else."""
    convert_icc: bool = False
    """Convert an embedded ICC profile to sRGB (perceptual intent).

    Off by default, as in torchvision, whose weights were trained without it.
    """
    background: Rgb = (0, 0, 0)
    """RGB colour behind transparent pixels."""
    resize: Literal["shortest_side", "stretch", "letterbox"] = "shortest_side"
    """How the image gets the size `crop`.

    `shortest_side`: scale to `resize_size`, then crop the centre. `stretch`: scale to `crop`.
    `letterbox`: scale to fit inside `crop`, and pad.
    """
    resize_size: Side = 256
    """Length of the shortest side before the crop, in pixels; only `shortest_side` reads it."""
    crop: tuple[Side, Side] = (224, 224)
    """Height and width of the result, in pixels."""
    stretch_size: Side | None = None
    """Side of the square that `stretch` scales to before it crops the centre; None: it scales to
    `crop`, and crops nothing."""
    recompress: Annotated[int, Field(ge=1, le=95)] | None = None
    """Save the image that `stretch` made as JPEG of this quality and read it again, before the
    crop.

    For networks that were trained on such images, such as Yahoo's Open NSFW. None: do not.
    """
    filter: Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"] = "bilinear"
    """Pillow's resampling filter; all but `nearest` antialias."""
    pad_colour: Rgb = (0, 0, 0)
    """RGB colour of the letterbox border."""
    dct_margin: Annotated[float, Field(ge=1.0)] | None = None
    """A JPEG is decoded at 1/2, 1/4 or 1/8 if that is this many times the resize target or more.

    None: it is decoded at full size.
    """
    max_pixels: Positive = LIMITS.max_pixels
    """See `ImageLimits`. These are for training and edge bundles; the service has its own."""
    max_side: Positive = LIMITS.max_side
    max_decode_bytes: Positive = LIMITS.max_decode_bytes

    def within(self, limits: ImageLimits) -> Self:
        """The same spec with *limits* in place of its own."""
        return self.model_copy(update=limits._asdict())

    def widened(self) -> Self:
        """With limits no less than the defaults. Packages of earlier versions have smaller ones."""
        own = (getattr(self, name) for name in LIMITS._fields)
        return self.within(ImageLimits(*map(max, own, LIMITS)))

    @model_validator(mode="after")
    def _crop_fits(self) -> Self:
        if self.resize == "shortest_side" and self.resize_size < max(self.crop):
            raise ValueError(
                f"resize_size {self.resize_size} is smaller than crop {self.crop}: the border would"
                " be padding"
            )
        if self.stretch_size is not None:
            if self.resize != "stretch":
                raise ValueError(f"stretch_size is for resize stretch, not {self.resize}")
            if self.stretch_size < max(self.crop):
                raise ValueError(
                    f"stretch_size {self.stretch_size} is smaller than crop {self.crop}: the border"
                    " would be padding"
                )
        if self.recompress is not None and self.resize != "stretch":
            raise ValueError(f"recompress is for resize stretch, not {self.resize}")
        return self


class Lineage(StrictRecord):
    """Where the weights came from."""

    weights: Literal["torchvision", "timm", "file", "none", "imported"]
    """`imported`: Loupe did not train the model (`loupe import`)."""
    identifier: str
    """torchvision's enum member, the Hub's repository, the file's name, or `random
    initialisation`."""
    sha256: Sha256 | None
    """Of the weights file; None for random initialisation."""
    run: str
    """Name of the run that trained them; of an imported model its kind, such as `onnx`."""
    seed: int
    teacher_sha256: Sha256 | None = None
    """Of the model file that the network was distilled from; None if it had no teacher."""


class Architecture(StrictRecord):
    """The network as `models.networks` builds it."""

    network: str
    num_parameters: Positive
    embedding_size: Positive | None
    """None: the graph has no output `embedding`."""
    mean: tuple[float, float, float]
    """RGB mean of the normalisation inside the graph, in units of 0 to 1."""
    std: tuple[float, float, float]


class TensorSpec(StrictRecord):
    """A graph input or output. Symbolic sizes are letters of the legend above."""

    name: str
    dtype: Literal["uint8", "float32"]
    shape: tuple[int | str, ...]


class Interval(StrictRecord):
    """A metric and its confidence interval."""

    value: float
    low: float
    high: float
    confidence: Share = 0.95
    method: str
    """How the interval was computed, such as `wilson`."""


class Evaluation(StrictRecord):
    """What the exported package scored, through its own preprocessing and session."""

    data: str
    split: str
    count: Positive
    metrics: dict[str, Interval]
    provider: str


class Parity(StrictRecord):
    """How far the exported graph is from the network that was trained, on real images."""

    images: Positive
    max_probability_difference: Annotated[float, Field(ge=0.0)]
    top1_agreement: Share
    tolerance: Annotated[float, Field(gt=0.0)]
    batch_sizes: tuple[Positive, ...]
    exporter: str


class DataFingerprint(StrictRecord):
    """Which images trained and judged the model."""

    source: str
    sha256: Sha256
    """Over every image's bytes and label, in order."""
    splits: dict[str, dict[str, int]]
    """split -> label -> number of images."""


class Histogram(StrictRecord):
    """Counts between edges; values outside count in the first or last bin."""

    edges: tuple[float, ...]
    counts: tuple[Annotated[int, Field(ge=0)], ...]

    @model_validator(mode="after")
    def _bins(self) -> Self:
        if len(self.edges) != len(self.counts) + 1 or list(self.edges) != sorted(set(self.edges)):
            raise ValueError(
                f"{len(self.counts)} counts need {len(self.counts) + 1} ascending edges, not"
                f" {len(self.edges)}"
            )
        return self


class DriftReference(StrictRecord):
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


class Provenance(StrictRecord):
    """What wrote the package."""

    created: str
    """UTC, ISO 8601."""
    git_commit: str | None
    git_dirty: bool | None
    python: str
    platform: str
    packages: dict[str, str]


class FileRecord(StrictRecord):
    """Content of one file of the package."""

    sha256: Sha256
    bytes: Annotated[int, Field(ge=0)]


class Manifest(StrictRecord):
    """Everything about a model that is not a weight. ARCHITECTURE.md tells who reads it."""

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
    evaluation: Evaluation | None
    """None: not evaluated. Only an imported model may be so."""
    parity: Parity
    data: DataFingerprint | None
    """None: nobody gave images with an imported model."""
    reference: DriftReference | None
    """None: there are no images that live traffic could be compared with."""
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
                raise ValueError(
                    f"output {output.name} has shape {list(output.shape)}, but there are {classes}"
                    " labels"
                )
        if {"logits", "probabilities"} - {output.name for output in self.outputs}:
            raise ValueError("outputs must hold logits and probabilities")
        if (self.cpu_class is not None) != (self.precision == "int8"):
            raise ValueError(
                f"cpu_class is {self.cpu_class!r} for precision {self.precision}: an int8 package"
                " names one, the others none"
            )
        if self.evaluation is None and self.lineage.weights != "imported":
            raise ValueError("evaluation is missing; only an imported model may be without one")
        if self.reference is not None and len(self.reference.predicted) != classes:
            raise ValueError(
                f"reference.predicted has {len(self.reference.predicted)} classes, but there are"
                f" {classes} labels"
            )
        return self

    def public(self) -> dict[str, Any]:
        """What the service shows to every client: what the model is, and how good it is."""
        what = {"architecture", "labels", "preprocess", "input", "outputs", "precision"}
        how_good = {"temperature", "abstain_threshold", "evaluation", "parity"}
        return self.model_dump(mode="json", include=what | how_good)
