"""`csv:PATH`: a table with a column for paths, one for labels and, if the data is split, `split`.

Paths are relative to the table's folder.

Instead of labels it may have a column of 0 and 1 for each class, as labelling tools export
`_classes.csv`. PATH may be a pattern, such as `photos/*/_classes.csv`, for one table for each
split: the names of the tables, or else of their folders, then say which.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from models.pixels.endings import ENDINGS
from training.data.layout.names import class_order, few_of, litter, number, printable
from training.data.layout.splits import SPLIT_OF, WHOLE, guess, same_name, split_of
from training.data.sources.dataset import Example, SourceOptions, Unused
from training.data.sources.listing import Listing, by_split, too_few_classes
from training.data.sources.patterns import matching, names_of
from training.data.sources.rows import Row, read_rows


def list_table(rest: str, options: SourceOptions) -> Listing:
    """What the table *rest* holds. Raises `DataError` if it cannot be read as one."""
    tables = matching(rest) or [Path(rest)]
    place = str(tables[0]) if len(tables) == 1 else f"csv:{rest}"
    rows, problems = _read_all(tables, options)
    examples = {row: example for row in rows if row.path and (example := _example(row))}
    labels = class_order({row.label for row in rows if row.path and row.label})
    splits = dict(zip(rows, _splits(rows, options.split), strict=True))
    not_named = [row for row in rows if options.split and splits[row] is None]
    return Listing(
        source=f"csv:{rest if len(tables) > 1 else tables[0]}",
        place=place,
        labels=labels,
        splits=by_split(
            ((example, splits[row], row.label) for row, example in examples.items() if splits[row]),
            labels,
        ),
        unused=(
            *(
                Unused(f"{row.table.name}, row {row.line}", "not named by --split")
                for row in not_named
            ),
            *_beside(tables, [str(example.path) for example in examples.values()]),
        ),
        problems=(*problems, *_problems(place, splits, examples, options.split or {})),
        training_problems=too_few_classes(place, labels) if rows else (),
        warnings=_stripped(place, rows),
        by_name=[(example, row.label) for row, example in examples.items()],
    )


def _read_all(tables: list[Path], options: SourceOptions) -> tuple[list[Row], list[str]]:
    """The rows of all *tables*. Of several tables, the name or folder gives rows their split."""
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
    """The split that the name of *table*, or of its folder, tells; empty if neither does."""
    if named is None:
        return guess(table.stem)[0] or split_of(table.parent.name) or ""
    own = [table.stem, table.parent.name]
    return next((name for name in own if any(same_name(of, [name]) for of in named.values())), "")


def _splits(rows: Sequence[Row], named: Mapping[str, str] | None) -> list[str | None]:
    """The split of each of *rows*; None if it is unknown."""
    if named == {} or not any(row.split for row in rows):
        return [WHOLE] * len(rows)
    if named is None:
        return [split_of(row.split) for row in rows]
    return [
        next((split for split, name in named.items() if same_name(name, [row.split])), None)
        for row in rows
    ]


def _example(row: Row) -> Example | None:
    r"""The image that *row* names; None if there is no such file.

    Windows writes `\` for `/`: both are tried.
    """
    for text in dict.fromkeys((row.path, row.path.replace("\\", "/"))):
        path = row.table.parent / text
        if os.path.isfile(path):  # noqa: PTH113 - Path.is_file raises for long names
            return Example(name=printable(f"{row.above}{row.path}"), label=0, path=path)
    return None


def _problems(
    place: str,
    splits: Mapping[Row, str | None],
    examples: Mapping[Row, Example],
    named: Mapping[str, str],
) -> Iterator[str]:
    """What is wrong with the rows of *splits*; a row is named by its line in the file."""
    if not splits:
        yield f"{place} has no rows below its header"
    for what, found in {
        "has no path": [row.line for row in splits if not row.path],
        "has no label": [row.line for row in splits if not row.label and not row.marked],
        "marks more than one class": [row.line for row in splits if row.marked],
    }.items():
        if found:
            yield f"{place} {what} in {number(found, 'row')}: {few_of(found)}"
    unknown = [
        f"{row.line} ({printable(row.split) or 'empty'})"
        for row, split in splits.items()
        if split is None
    ]
    if unknown and not named:
        yield (
            f"{place} has unknown splits in {number(unknown, 'row')}: {few_of(unknown)}; valid:"
            f" {', '.join(SPLIT_OF)}. Say what they mean, as in --split train=NAME,val=NAME, or"
            " --split none to split again"
        )
    for split, name in named.items():
        if split not in splits.values():
            yield f"{place} has no rows with the split {name} (--split {split}={name})"
    absent = [row for row in splits if row.path and row not in examples]
    if absent:
        yield (
            f"{place} names files that do not exist in {number(absent, 'row')}:"
            f" {few_of([f'{row.line} ({printable(row.path)})' for row in absent])};"
            f" paths are relative to {next(iter(splits)).table.parent}"
        )


def _stripped(place: str, rows: Sequence[Row]) -> tuple[str, ...]:
    found = [row.line for row in rows if row.stripped and row.label]
    text = (
        f"{place} has white space around the label in {number(found, 'row')}: {few_of(found)}; the"
        " label is taken without it"
    )
    return (text,) if found else ()


def _beside(tables: list[Path], files: Sequence[str]) -> Iterator[Unused]:
    """Files and folders beside the *files* of rows, up to the table's folder, that no row names."""
    used = {os.path.abspath(path) for path in (*files, *map(str, tables))}  # noqa: PTH100 - resolves `..` and leaves links
    roots = {os.path.abspath(table.parent) for table in tables}  # noqa: PTH100
    holding = {Path(os.path.abspath(path)).parent for path in files}  # noqa: PTH100
    folders = {str(folder) for folder in holding} | {
        str(above)
        for folder in holding
        for above in (folder, *folder.parents)
        if any(f"{above}{os.sep}".startswith(f"{root}{os.sep}") for root in roots)
    }
    root = os.path.commonpath(roots)
    for folder in sorted(folders):
        try:
            with os.scandir(folder) as entries:
                listed = sorted((entry.path, entry.name, entry.is_dir()) for entry in entries)
        except OSError as error:
            yield Unused(_shown(folder, root) + "/", f"unreadable ({error.strerror})")
            continue
        for path, name, is_folder in listed:
            if path not in used and path not in folders:
                shown, reason = _shown(path, root), _reason(name, is_folder=is_folder)
                content = None if is_folder else Example(name=shown, label=0, path=Path(path))
                yield Unused(shown + "/" * is_folder, reason, content)


def _shown(path: str, root: str) -> str:
    return printable(os.path.relpath(path, root) if path.startswith(f"{root}{os.sep}") else path)


def _reason(name: str, *, is_folder: bool) -> str:
    ending = os.path.splitext(name)[1].lower()  # noqa: PTH122 - *name* is text
    named = "in no row" if is_folder or ending in ENDINGS else printable(ending)
    return litter(name) or named or "without an ending"
