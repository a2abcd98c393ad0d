"""The teacher: a model package that a smaller network learns from (knowledge distillation).

The teacher sees the same augmented images as the student, and all its probabilities are the target.
Sources: Hinton et al. 2015, "Distilling the Knowledge in a Neural
Network", for the loss; Beyer et al. 2022, "A good teacher is patient and consistent", for the same
view on both sides. Letters used in shapes: N images, K classes.
"""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort
import torch
from torch import Tensor
from torch.nn import functional

from models.errors import ConfigError
from models.machine import threads_per_worker
from models.networks.inputs import IMAGENET_MEAN, IMAGENET_STD, Rgb
from models.package.manifest import MODEL_FILE
from models.runtime.providers import PROVIDER_NAMES, GpuOptions, Provider
from models.runtime.session import Model, open_model
from training.config import TrainConfig
from training.data.loader import as_pixels
from training.distributed import Processes
from training.fit.inputs import normalisation


class Teacher:
    """A package whose answers the student learns to give."""

    def __init__(
        self,
        model: Model,
        *,
        share: float,
        temperature: float,
        normalisation: tuple[Rgb, Rgb] = (IMAGENET_MEAN, IMAGENET_STD),
    ) -> None:
        """A *share* of the loss, 0 to 1, comes from the teacher.

        The logits of teacher and student are divided by *temperature*. *normalisation* is the
        student's mean and standard deviation.
        """
        self.model = model
        self._mean, self._std = normalisation
        self._share, self._temperature = share, temperature

    @property
    def sha256(self) -> str:
        """Of its graph."""
        return self.model.manifest.files[MODEL_FILE].sha256

    def mixed(self, loss: Tensor, logits_NK: Tensor, images_N3HW: Tensor) -> Tensor:
        """The *loss* by the labels, mixed with that by the teacher's answers to the same images."""
        student_NK = torch.log_softmax(logits_NK / self._temperature, dim=1)
        teacher_NK = torch.log_softmax(self.logits(images_N3HW) / self._temperature, dim=1)
        # Gradients shrink with the square of the temperature. Source: Hinton et al. 2015, section
        # 2.
        apart = (
            functional.kl_div(student_NK, teacher_NK, reduction="batchmean", log_target=True)
            * self._temperature**2
        )
        return (1.0 - self._share) * loss + self._share * apart

    @torch.no_grad()
    def logits(self, images_N3HW: Tensor) -> Tensor:
        """The teacher's logits [N,K] for normalised images, on their device.

        Images of another size than the teacher's are resized.
        """
        size = self.model.manifest.preprocess.crop
        if tuple(images_N3HW.shape[2:]) != size:
            images_N3HW = functional.interpolate(
                images_N3HW, size=size, mode="bilinear", antialias=True, align_corners=False
            )
        found = self.model.run(as_pixels(images_N3HW, self._mean, self._std), ("logits",))["logits"]
        return torch.from_numpy(found).to(images_N3HW.device)


def open_teacher(
    config: TrainConfig, labels: tuple[str, ...], processes: Processes
) -> Teacher | None:
    """The teacher that *config* names, if any, on the GPU where ONNX Runtime has one.

    Raises `ConfigError` if one is wanted and not named, or has other classes than *labels*;
    `PackageError` if it may not be used.
    """
    if config.teacher == "none":
        return None
    if not config.teacher:
        raise ConfigError(
            "teacher is not set, and this recipe learns from one; expected --set teacher=PACKAGE,"
            " the folder of a model package with the same classes, or --set teacher=none to learn"
            " from the labels alone"
        )
    path = Path(config.teacher)
    if not path.is_dir():
        raise ConfigError(
            f"teacher is {path}, which is not a folder; expected the folder of a model package,"
            " such as artifacts/store/NAME/1"
        )
    on_gpu = (
        processes.device.type == "cuda" and PROVIDER_NAMES["cuda"] in ort.get_available_providers()
    )
    provider: Provider = "cuda" if on_gpu else "cpu"
    gpu = GpuOptions(device=processes.local_rank)
    # One batch size: a session for each size would take memory of the GPU from the student. Larger
    # batches take several runs.
    size = (
        min(TEACHER_BATCH, max(1, config.batch_size // processes.count))
        if config.batch_size
        else TEACHER_BATCH
    )
    threads = threads_per_worker(processes.local_count)
    model = open_model(
        path, threads=threads, provider=provider, warm_batches=(size,), buckets=(size,), gpu=gpu
    )
    if model.manifest.labels != labels:
        raise ConfigError(
            f"teacher {path} answers with {', '.join(model.manifest.labels)}; expected the classes"
            f" of the data: {', '.join(labels)}"
        )
    return Teacher(
        model,
        share=config.distillation,
        temperature=config.distillation_temperature,
        normalisation=normalisation(config),
    )


TEACHER_BATCH = 64
"""Most images that the teacher takes at a time."""
