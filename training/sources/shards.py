"""`tar:PATTERN`: shards as WebDataset writes them. Nothing is extracted: images are read in place from the tar file.

PATTERN is a path with the wildcards `*`, `?`, `[...]` and `**`, with `{a,b}` for either and `{000..009}` for a range of numbers.

An image is a member whose name ends as an image's does. Its class is the text of the member `<key>.cls` beside it (or `<key>.txt`, if there
is no `.cls`), where `<key>` is the image's name without its ending; without either it is the folder below the split's folder, or the
folder that the image lies in. Its split is the first folder in its name that is called as a split (`train/ants/1.jpg`), else the
split in the shard's file name (`imagenet-train-0001.tar`), else the shard's folder; either all images have one or none has.
"""

from __future__ import annotations

import itertools
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from models.errors import DataError
from training.sources.dataset import Example
from training.sources.listing import SPLIT_OF, SUFFIXES, WHOLE, Listing, class_order, few_of, in_split_order

LABEL_SUFFIXES = (".cls", ".txt")
LABEL_BYTES_MAX = 1024
"""A `.txt` with more is a text about the image and no class name."""
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_WORD = re.compile(r"[a-z]+")


@dataclass(frozen=True)
class TarMember:
    """A file inside a plain tar file; a call reads it."""

    shard: Path
    offset: int
    size: int

    def __call__(self) -> bytes:
        """Its bytes. Raises `DataError` if the shard went away."""
        try:
            with self.shard.open("rb") as stream:
                stream.seek(self.offset)
                return stream.read(self.size)
        except OSError as error:
            raise DataError(f"{self.shard}: {error.strerror}") from error


@dataclass(frozen=True)
class _Found:
    """An image in a shard."""

    name: str
    member: TarMember
    split: str | None
    label: str | None


def list_shards(pattern: str) -> Listing:
    """What the shards of *pattern* hold. Raises `DataError` if there are none, or one cannot be read."""
    shards = [path for one in expand_braces(pattern) for path in _matching(one)]
    if not shards:
        raise DataError(f"tar:{pattern}: no file matches; expected shards such as tar:shards/{{train,val}}-*.tar")
    found: list[_Found] = []
    skipped: list[Example] = []
    for shard in dict.fromkeys(shards):
        images, others = _read_shard(shard)
        found += images
        skipped += others
    labels = class_order({image.label for image in found if image.label is not None})
    index_of = {label: index for index, label in enumerate(labels)}
    splits: dict[str, list[Example]] = {}
    for image in found:
        if image.label is not None:
            example = Example(name=image.name, label=index_of[image.label], reader=image.member)
            splits.setdefault(image.split or WHOLE, []).append(example)
    return Listing(
        source=f"tar:{pattern}",
        place=f"tar:{pattern}",
        labels=labels,
        splits=in_split_order(splits) or {WHOLE: ()},
        skipped=tuple(skipped),
        problems=tuple(_problems(pattern, found, labels)),
    )


def expand_braces(pattern: str) -> list[str]:
    """*pattern* for each choice of its `{a,b}` and `{000..009}`; numbers keep the width of the first."""
    pieces = _BRACES.split(pattern)
    # Every second piece stood in braces.
    return ["".join(choice) for choice in itertools.product(*([piece] if at % 2 == 0 else _choices(piece) for at, piece in enumerate(pieces)))]


def _choices(inner: str) -> list[str]:
    if numbers := _RANGE.fullmatch(inner):
        first, last = numbers.groups()
        return [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    return inner.split(",")


def _matching(pattern: str) -> list[Path]:
    path = Path(pattern)
    if path.is_file():
        return [path]
    base = Path(path.anchor) if path.anchor else Path()
    return sorted(match for match in base.glob(str(path.relative_to(path.anchor) if path.anchor else path)) if match.is_file())


def _read_shard(shard: Path) -> tuple[list[_Found], list[Example]]:
    """Images of *shard* in order, and what else lies in it. Links, devices and hidden files count for nothing."""
    members = {PurePosixPath(member.name).as_posix(): member for member in _members(shard)}
    images: list[_Found] = []
    skipped: list[Example] = []
    for name, member in members.items():
        path = PurePosixPath(name)
        place = TarMember(shard, member.offset_data, member.size)
        if path.suffix.lower() in SUFFIXES:
            written = next((members[key] for suffix in LABEL_SUFFIXES if (key := str(path.with_suffix(suffix))) in members), None)
            label = _folder_label(path) if written is None else _written_label(shard, written)
            images.append(_Found(f"{shard.name}/{name}", place, _split_of(shard, path), label))
        elif path.suffix not in (*LABEL_SUFFIXES, ".json"):
            skipped.append(Example(name=f"{shard.name}/{name}", label=0, reader=place))
    return images, skipped


def _members(shard: Path) -> Iterator[tarfile.TarInfo]:
    """The plain files of *shard* that are not hidden."""
    try:
        # "r:" takes no compression: a member of a compressed tar has no place of its own that it could be read from.
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                if not member.isreg() or member.issparse() or any(part.startswith(".") and part != "." for part in member.name.split("/")):
                    continue
                if member.offset_data + member.size > shard.stat().st_size:
                    raise DataError(f"shard {shard} is cut short in {member.name}: copy the complete file")
                yield member
    except tarfile.TarError as error:
        raise DataError(f"shard {shard} cannot be read as a tar file without compression: {error}") from error
    except OSError as error:
        raise DataError(f"shard {shard}: {error.strerror}") from error


def _split_of(shard: Path, path: PurePosixPath) -> str | None:
    """The split that the member's folders, the shard's name or the shard's folder tell."""
    words = (*path.parts[:-1], *_WORD.findall(shard.stem.lower()), shard.parent.name)
    return next((SPLIT_OF[word] for word in words if word in SPLIT_OF), None)


def _folder_label(path: PurePosixPath) -> str | None:
    folders = path.parts[:-1]
    below_split = next((folders[at + 1] for at, part in enumerate(folders[:-1]) if part in SPLIT_OF), None)
    if below_split is not None or not folders or folders[-1] in SPLIT_OF:
        return below_split
    return folders[-1]


def _written_label(shard: Path, member: tarfile.TarInfo) -> str | None:
    if member.size > LABEL_BYTES_MAX:
        return None
    text = TarMember(shard, member.offset_data, member.size)()
    return text.decode("utf-8", errors="replace").strip() or None


def _problems(pattern: str, found: list[_Found], labels: tuple[str, ...]) -> list[str]:
    place = f"tar:{pattern}"
    problems = []
    if not found:
        problems.append(f"{place} holds no images; looked for {', '.join(sorted(SUFFIXES))}")
    if unlabelled := [image.name for image in found if image.label is None]:
        problems.append(f"{place} has {len(unlabelled)} images without a class: {few_of(unlabelled)}; expected <key>.cls or a class folder")
    loose = [image.name for image in found if image.split is None]
    if loose and len(loose) < len(found):
        problems.append(f"{place} has {len(loose)} images without a split, while others have one: {few_of(loose)}")
    if found and len(labels) < 2:
        problems.append(f"{place} has {len(labels)} classes ({', '.join(labels) or 'none'}); a classifier needs 2 or more")
    return problems
