"""Images of a Hugging Face dataset: a hub id, a local folder in one of its formats, or what ``save_to_disk`` wrote."""

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from fl_sim.config import NOT_DATASETS, DataSettings, SettingsError
from fl_sim.errors import nearest, one_line, printable, quiet
from fl_sim.images.classes import order_classes
from fl_sim.images.hub import cached_if_unreachable, is_hub_id
from fl_sim.images.image_set import ImageSet
from fl_sim.images.pixels import BrokenImageError, centre_crop, read_rgb
from fl_sim.images.stays_inside import check_stays_inside

if TYPE_CHECKING:
    from datasets import Dataset

MOST_ROWS = 5_000_000
"""Rows that a split may have: names and labels of all are kept in memory, 250 bytes each."""

LOCAL_FORMS = "a folder of images (with a metadata.csv or not) or of parquet files, or one that save_to_disk wrote"
"""What a path in ``data.name`` may lead to."""


def list_dataset(settings: DataSettings) -> ImageSet:
    """The rows of split ``data.split``, each image cropped to its centre.

    Raises:
        SettingsError: if there is no such dataset, configuration, split or column, or several could be meant.
    """
    import datasets  # imported late: it takes seconds, which the other sources do not need

    rows = _load(settings).with_format(None)
    if not 0 < len(rows) <= MOST_ROWS:
        number = f"{len(rows):,}; allowed: up to {MOST_ROWS:,}" if len(rows) else "no"
        raise SettingsError(f"data.name = {settings.name!r}: {number} rows in split {settings.split!r}")
    image, label = _image_column(settings, rows), _label_column(settings, rows)
    used = rows.select(range(min(settings.limit or len(rows), len(rows))))
    encoded = used.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    homes = _homes(settings.name)

    def crop(index: int) -> Image.Image:
        name = f"data.name = {settings.name!r}: row {index} of split {settings.split!r}"
        return centre_crop(
            read_rgb(_source(_cell(encoded, index, image, name), name, homes), name), settings.height_width
        )

    return ImageSet(
        settings.height_width,
        photographs=tuple(f"{settings.split}/{index}" for index in range(len(used))),
        labels=_texts(used, label, settings) if label else (),
        classes=_classes(rows, label, settings) if label else (),
        remedy=_remedy(rows),
        crop=crop,
        strict=settings.strict,
        found=len(rows),
    )


def _load(settings: DataSettings) -> "Dataset":
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

    if settings.name in _PACKAGED_DATASETS_MODULES:
        raise SettingsError(
            f"data.name = {settings.name!r}: a format, not a dataset: give the folder's path as data.name"
        )
    folder = Path(settings.name)
    if not folder.is_dir() and not is_hub_id(settings.name):
        raise _not_loaded(settings, "there is no such folder, and an id on the hub is namespace/name")
    if folder.is_dir():
        check_stays_inside(folder)
    saved = any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))
    if saved and settings.config is not None:
        raise SettingsError(
            f"data.config = {settings.config!r}: what save_to_disk wrote has no configurations; allowed: unset"
        )
    reachable = nullcontext() if folder.is_dir() else cached_if_unreachable()
    with quiet("huggingface_hub"), _bars_in_a_terminal_only(), reachable:
        try:
            if not saved:
                return _built(settings)
            splits = _saved_splits(folder)
        except ConnectionError as error:
            raise _not_loaded(settings, "the hub cannot be reached") from error
        except Exception as error:  # the library raises anything from ValueError to its own and the network's errors
            raise _not_loaded(settings, one_line(error)) from error
    if settings.split not in splits:
        raise SettingsError(
            f"data.split = {settings.split!r}: no split of {settings.name!r}; allowed: "
            f"{', '.join(splits)}{nearest(settings.split, splits)}"
        )
    return splits[settings.split]


def _built(settings: DataSettings) -> "Dataset":
    """The split of a dataset on the hub, or of a folder in one of its formats."""
    import datasets

    builder = datasets.load_dataset_builder(settings.name, settings.config)
    if not _is_inside(builder.cache_dir, Path(datasets.config.HF_DATASETS_CACHE)):
        raise ValueError("its card leads out of the cache")
    builder.download_and_prepare()
    return builder.as_dataset(split=settings.split)


def _saved_splits(folder: Path) -> "dict[str, Dataset]":
    """By name, what ``save_to_disk`` wrote."""
    import datasets

    loaded = datasets.load_from_disk(folder)
    splits = dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {str(loaded.split or "train"): loaded}
    for split in splits.values():
        split.data.table.validate(full=True)  # what is mapped into memory unchecked may end the process
    return splits


@contextmanager
def _bars_in_a_terminal_only() -> Iterator[None]:
    """Elsewhere the library's progress bars would be lines around the one that says what is wrong."""
    import datasets

    if sys.stderr.isatty() or datasets.utils.are_progress_bars_disabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()


def _not_loaded(settings: DataSettings, reason: str) -> SettingsError:
    if reason.startswith("Unknown split"):
        return SettingsError(f"data.split = {settings.split!r}: {reason}")
    if reason.startswith(("Config name is missing", "BuilderConfig")):
        return _no_such_config(settings)
    kind = "this folder could not be" if Path(settings.name).is_dir() else "no dataset of that name could be"
    return SettingsError(
        f"data.name = {settings.name!r}: not {', '.join(map(repr, NOT_DATASETS))}, and {kind} loaded: "
        f"{printable(reason[:200])}; allowed without a network: the path of {LOCAL_FORMS}"
        f"{nearest(settings.name, NOT_DATASETS)}"
    )


def _no_such_config(settings: DataSettings) -> SettingsError:
    import datasets

    names = datasets.get_dataset_config_names(settings.name)
    allowed = f"allowed: {_named(names)}{nearest(settings.config or '', names)}"
    if settings.config is None:
        return SettingsError(f"data.config is not set, and {settings.name!r} has several configurations; {allowed}")
    return SettingsError(f"data.config = {settings.config!r}: no configuration of {settings.name!r}; {allowed}")


def _image_column(settings: DataSettings, rows: "Dataset") -> str:
    import datasets

    columns = [name for name, feature in rows.features.items() if isinstance(feature, datasets.Image)]
    if not columns:
        raise SettingsError(f"data.name = {settings.name!r}: no image column among {_named(rows.features)}")
    if settings.image_column is None and len(columns) > 1:
        raise SettingsError(
            f"data.image_column is not set, and {settings.name!r} has several: allowed: {_named(columns)}"
        )
    return _chosen("data.image_column", settings.image_column or columns[0], columns, rows, "images")


def _label_column(settings: DataSettings, rows: "Dataset") -> str | None:
    """The column in the settings; else the only column of classes; else one called "label"; else None."""
    if settings.label_column is not None:
        return _chosen("data.label_column", settings.label_column, _label_columns(rows), rows, "labels")
    classes = _class_columns(rows)
    if classes:
        return classes[0] if len(classes) == 1 else None
    return "label" if "label" in _label_columns(rows) else None


def _cell(rows: "Dataset", index: int, column: str, name: str) -> Any:
    try:
        return rows[index][column]
    except Exception as error:  # text that is no UTF-8, and whatever else a damaged file makes the library raise
        raise BrokenImageError(f"{name}: cannot be read: {printable(one_line(error))}") from error


def _texts(rows: "Dataset", column: str, settings: DataSettings) -> tuple[str, ...]:
    """All values of a column as texts."""
    try:
        return tuple(map(str, rows.select_columns([column])[:][column]))
    except Exception as error:  # as in ``_cell``
        reason = printable(one_line(error))
        raise SettingsError(f"data.name = {settings.name!r}: column {column!r} cannot be read: {reason}") from error


def _classes(rows: "Dataset", label: str, settings: DataSettings) -> tuple[str, ...]:
    """The names of all classes in a column, in the order of their numbers; a ClassLabel's are its numbers."""
    import datasets

    feature = rows.features[label]
    labels = set(_texts(rows, label, settings))
    if isinstance(feature, datasets.ClassLabel):
        labels |= set(map(str, range(feature.num_classes)))
    return order_classes(labels)


def _chosen(key: str, column: str, allowed: Sequence[str], rows: "Dataset", content: str) -> str:
    if column in allowed:
        return column
    problem = f"no column of {content}" if column in rows.features else "no such column"
    choices = _named(allowed) or "none of its columns"
    raise SettingsError(f"{key} = {column!r}: {problem}; allowed: {choices}{nearest(column, allowed)}")


def _named(names: Iterable[str]) -> str:
    return printable(", ".join(names))


def _class_columns(rows: "Dataset") -> list[str]:
    import datasets

    return [name for name, feature in rows.features.items() if isinstance(feature, datasets.ClassLabel)]


def _label_columns(rows: "Dataset") -> list[str]:
    """Columns of classes, strings, whole numbers or truth values."""
    import datasets

    kinds = ("string", "large_string", "int", "uint", "bool")
    return [
        name
        for name, feature in rows.features.items()
        if isinstance(feature, datasets.Value | datasets.ClassLabel) and feature.dtype.startswith(kinds)
    ]


def _remedy(rows: "Dataset") -> str:
    columns = _class_columns(rows) or _label_columns(rows)
    return f"set data.label_column to one of {_named(columns)}" if columns else "choose another data.partition"


def _homes(name: str) -> tuple[Path, ...]:
    """The folders that the image files of a dataset may lie in: its own, and those that downloads are kept in."""
    import datasets
    from huggingface_hub import constants

    cache = (datasets.config.HF_DATASETS_CACHE, datasets.config.DOWNLOADED_DATASETS_PATH, constants.HF_HUB_CACHE)
    return tuple(Path(folder) for folder in (*cache, *([name] if Path(name).is_dir() else [])))


def _source(value: dict[str, Any] | None, name: str, homes: Sequence[Path]) -> Path | bytes:
    """The content of a row's image file, or its path, which a table could lead anywhere."""
    if value is None or (value["bytes"] is None and value["path"] is None):
        raise BrokenImageError(f"{name}: no image")
    if value["bytes"] is not None:
        content: bytes = value["bytes"]
        return content
    if not any(_is_inside(value["path"], home) for home in homes):
        raise BrokenImageError(f"{name}: its file lies outside the dataset: {printable(value['path'])}")
    return Path(value["path"])


def _is_inside(path: str, home: Path) -> bool:
    """Without following links, which the hub's cache consists of."""
    return Path(os.path.abspath(path)).is_relative_to(home.absolute())  # noqa: PTH100
