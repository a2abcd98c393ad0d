"""`csv:PATH`: a table with a column for paths, one for labels and, if the data is split, `split`.

Paths are relative to the table's folder.

Instead of labels it may have a column of 0 and 1 for each class, as labelling tools export
`_classes.csv`. PATH may be a pattern, such as `photos/*/_classes.csv`, for one table for each
split: the names of the tables, or else of their folders, then say which.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from models.pixels.endings import ENDINGS
from training.data.layout.names import class_order, few_of, litter, number, printable
from training.data.layout.splits import SPLIT_OF, WHOLE, guess, same_name, split_of
from training.data.sources.dataset import Example, Unused
from training.data.sources.listing import Listing, in_split_order, too_few_classes
from training.data.sources.options import SourceOptions
from training.data.sources.patterns import matching, names_of
from training.data.sources.rows import Row, read_rows


def list_table(rest: str, options: SourceOptions) -> Listing:
    """What the table *rest* holds. Raises `DataError` if it cannot be read as one."""
    tables = matching(rest) or [Path(rest)]
    place = str(tables[0]) if len(tables) == 1 else f"csv:{rest}"
    rows, problems = _read_all(tables, options)
    files = {row: file for row in rows if row.path and (file := _file(row)) is not None}
    labels = class_order({row.label for row in rows if row.path and row.label})
    split_by = _splitter(rows, options.split)
    unused = [
        Unused(f"{row.table.name}, row {row.line}", "not named by --split")
        for row in rows
        if options.split and split_by(row) is None
    ]
    return Listing(
        source=f"csv:{rest if len(tables) > 1 else tables[0]}",
        place=place,
        labels=labels,
        splits=_examples(files, labels, split_by),
        unused=(*unused, *_beside(tables, files)),
        problems=(*problems, *_problems(place, rows, files, split_by, options.split)),
        training_problems=too_few_classes(place, labels) if rows else (),
        warnings=_stripped(place, rows),
        by_name=lambda: ((_example(row, path, 0), row.label) for row, path in files.items()),
    )


def _read_all(tables: list[Path], options: SourceOptions) -> tuple[list[Row], list[str]]:
    """The rows of all *tables*; where there are several, rows without a split have that of their
    table's name or folder.
    """
    rows: list[Row] = []
    problems: list[str] = []
    for table, name in zip(tables, names_of(tables), strict=True):
        found, ragged = read_rows(table, options)
        problems += ragged
        split = _name_of_split(table, options.split) if len(tables) > 1 else ""
        below = Path(name).parent.as_posix()
        rows += [
            row._replace(split=row.split or split, above="" if below == "." else f"{below}/")
            for row in found
        ]
    return rows, problems


def _name_of_split(table: Path, named: Mapping[str, str] | None) -> str:
    if named is None:
        return guess(table.stem)[0] or split_of(table.parent.name) or ""
    return next(
        (
            name
            for name in (table.stem, table.parent.name)
            if any(same_name(wanted, [name]) for wanted in named.values())
        ),
        "",
    )


def _splitter(rows: Sequence[Row], named: Mapping[str, str] | None) -> Callable[[Row], str | None]:
    """What gives a row's split; None where it has none that is known."""
    if named == {} or not any(row.split for row in rows):
        return lambda row: WHOLE
    if named is None:
        return lambda row: split_of(row.split)
    return lambda row: next(
        (split for split, name in named.items() if same_name(name, [row.split])), None
    )


def _file(row: Row) -> Path | None:
    r"""The file that *row* names, on Windows perhaps: `\` is tried as `/` where there is no such
    file.
    """
    for text in dict.fromkeys((row.path, row.path.replace("\\", "/"))):
        path = row.table.parent / text
        if os.path.isfile(path):  # noqa: PTH113 - Path.is_file raises for long names
            return path
    return None


def _examples(
    files: Mapping[Row, Path], labels: tuple[str, ...], split_by: Callable[[Row], str | None]
) -> dict[str, tuple[Example, ...]]:
    index_of = {label: index for index, label in enumerate(labels)}
    splits: dict[str, list[Example]] = {}
    for row, path in files.items():
        if row.label and (split := split_by(row)) is not None:
            splits.setdefault(split, []).append(_example(row, path, index_of[row.label]))
    return in_split_order(splits) or {WHOLE: ()}


def _example(row: Row, path: Path, label: int) -> Example:
    return Example(name=printable(f"{row.above}{row.path}"), label=label, path=path)


def _problems(
    place: str,
    rows: Sequence[Row],
    files: Mapping[Row, Path],
    split_by: Callable[[Row], str | None],
    named: Mapping[str, str] | None,
) -> list[str]:
    """What is wrong with *rows*; rows are named by their line in the file."""
    if not rows:
        return [f"{place} has no rows below its header"]
    problems = []
    for what, found in {
        "has no path": [row for row in rows if not row.path],
        "has no label": [row for row in rows if not row.label and not row.marked],
        "marks more than one class": [row for row in rows if row.marked],
    }.items():
        if found:
            problems.append(
                f"{place} {what} in {number(found, 'row')}: {few_of([row.line for row in found])}"
            )
    unknown = [
        f"{row.line} ({printable(row.split) or 'empty'})" for row in rows if split_by(row) is None
    ]
    if unknown and not named:
        problems.append(
            f"{place} has unknown splits in {number(unknown, 'row')}: {few_of(unknown)}; valid:"
            f" {', '.join(SPLIT_OF)}. Say what they mean, as in --split train=NAME,val=NAME, or"
            " --split none to split anew"
        )
    problems += [
        f"{place} has no rows with the split {name} (--split {split}={name})"
        for split, name in (named or {}).items()
        if not any(split_by(row) == split for row in rows)
    ]
    if absent := [
        f"{row.line} ({printable(row.path)})" for row in rows if row.path and row not in files
    ]:
        folder = rows[0].table.parent
        problems.append(
            f"{place} names files that do not exist in {number(absent, 'row')}: {few_of(absent)};"
            f" paths are relative to {folder}"
        )
    return problems


def _stripped(place: str, rows: Sequence[Row]) -> tuple[str, ...]:
    found = [row.line for row in rows if row.stripped and row.label]
    text = (
        f"{place} has white space around the label in {number(found, 'row')}: {few_of(found)}; the"
        " label is taken without it"
    )
    return (text,) if found else ()


def _beside(tables: list[Path], files: Mapping[Row, Path]) -> list[Unused]:
    """Whatever lies in the folders of the *files* that rows name, up to the table's folder, and is
    named by no row.
    """
    used = {os.path.abspath(path) for path in (*files.values(), *tables)}  # noqa: PTH100 - resolves `..` and leaves links
    roots = {os.path.abspath(table.parent) for table in tables}  # noqa: PTH100
    folders = _folders(
        {os.path.dirname(path) for path in used} - roots
        | {root for root in roots if _holds(root, files)},
        roots,
    )
    root = os.path.commonpath(roots)
    found = []
    for folder in sorted(folders):
        try:
            with os.scandir(folder) as entries:
                listed = sorted((entry.path, entry.name, entry.is_dir()) for entry in entries)
        except OSError as error:
            found.append(Unused(_shown(folder, root) + "/", f"unreadable ({error.strerror})"))
            continue
        for path, name, is_folder in listed:
            if path in used or path in folders:
                continue
            content = (
                None if is_folder else Example(name=_shown(path, root), label=0, path=Path(path))
            )
            found.append(
                Unused(
                    _shown(path, root) + "/" * is_folder,
                    _reason(name, is_folder=is_folder),
                    content,
                )
            )
    return found


def _holds(root: str, files: Mapping[Row, Path]) -> bool:
    return any(os.path.abspath(path).startswith(f"{root}{os.sep}") for path in files.values())  # noqa: PTH100


def _folders(below: set[str], roots: set[str]) -> set[str]:
    """*below*, and the folders between them and the one of *roots* that they lie in."""
    folders = set(below)
    for folder in below:
        between = [str(parent) for parent in Path(folder).parents]
        if inside := [at for at, parent in enumerate(between) if parent in roots]:
            folders |= set(between[: inside[-1] + 1])
    return folders


def _shown(path: str, root: str) -> str:
    return printable(os.path.relpath(path, root) if path.startswith(f"{root}{os.sep}") else path)


def _reason(name: str, *, is_folder: bool) -> str:
    if reason := litter(name):
        return reason
    ending = os.path.splitext(name)[1].lower()  # noqa: PTH122 - *name* is text
    return (
        "in no row" if is_folder or ending in ENDINGS else printable(ending) or "without an ending"
    )
