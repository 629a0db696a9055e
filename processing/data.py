# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""Rows {image, mask, prompt, name, patient_id} from any source, and the torch data set that training reads them by.

rows = load_rows("builtin", "train")        # or a folder, or a Hub id ("owner/name", "owner/name:configuration")
data = SegmentationDataset(rows, image_processor, augmentation=JointAugmentation(), prompt_dropout=0.1)
batches = DataLoader(data, batch_size=8, shuffle=True, collate_fn=collate)
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath

import numpy as np
import torch
from PIL import Image

from .augmentation import shorten_prompt
from .builtin_sample import SPLITS, load_builtin_sample
from .image_processing_tamiseg import IGNORE_INDEX
from .prompts import normalize_prompt
from .reading import name_flag, parse_json, reason
from .sources import files_below, spelled_alike


COLUMNS = ("image", "mask", "prompt", "name", "patient_id")
# What other people call these columns; the first that is there is taken.
ALIASES = {"mask": ("label", "labels", "annotation"), "prompt": ("text", "caption", "Description")}
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)
VALIDATION_SPELLINGS = ("validation", "valid", "val", "dev")


class NoSuchSplit(ValueError):
    """The source is there, the split is not."""


def load_rows(source: str, split: str, *, max_rows: int | None = None, seed: int = 0) -> Sequence[dict]:
    """Gives the rows of one split.

    Args:
        source: `"builtin"` (the synthetic sample), a folder, or the id of a data set on the Hub, where it has several
            configurations with one of them, as "owner/name:configuration". A folder holds
            - parquet files whose names begin with the split (`train-00000-of-00001.parquet`), at any depth, those of a
              split in one folder, or
            - what `DatasetDict.save_to_disk` or `Dataset.save_to_disk` wrote, or
            - `<split>/metadata.jsonl`, one line {"image_file_name", "mask_file_name", "prompt", "name", "patient_id"}
              per row, of which the first two are compulsory (`file_name` also names the image), beside the pictures.
        split: for example "train", "validation" or "test"; "valid", "val" and "dev" also mean "validation".
        max_rows: keep a random subset of that many rows (of the built-in sample, the first: whole pictures).
        seed: of that subset, and of the pictures of the built-in sample.

    Returns:
        A `datasets.Dataset` (a list for "builtin") with the columns `image` and `mask` (decoded at access), `prompt`,
        `name` and `patient_id`. `prompt` and `patient_id` are None where unknown; `name` is, where the source does not
        give it, the image file's stem (with its folders, where stems repeat), or "<split>/<index>" if file names are
        not kept either. `patient_id` is as it is stored: `read_row` and `column` read blank and NaN as unknown too.

    Raises:
        ValueError, FileNotFoundError: the source, the split, a column or a mask is missing. A picture that cannot be
            decoded is found when its row is read, see `read_row`.
    """
    if max_rows is not None and max_rows < 1:
        raise ValueError(f"max_rows is {max_rows}: give at least 1, or None for all rows.")
    if source == "builtin":
        return load_builtin_sample(split, max_rows and min(max_rows, SPLITS.get(split, max_rows)), seed)

    folder = Path(source).expanduser()
    if folder.is_dir():
        rows = _load_folder(folder, split)
    elif folder.exists():
        raise ValueError(f"'{source}' is a file: give the folder that holds it.")
    else:
        with _cache_in_plain_words(source):
            rows = _load_hub(source, split)
    if len(rows) == 0:
        raise ValueError(f"Split '{split}' of '{source}' has no rows: give a source with at least one.")
    return pick(_with_our_columns(rows, split, source), max_rows, seed)


def pick(rows, most: int | None, seed: int = 0):
    """A random subset of so many rows of a `datasets.Dataset`, in their order, where there are more."""
    if most is None or most >= len(rows):
        return rows
    return rows.select(np.sort(np.random.default_rng(seed).choice(len(rows), most, replace=False)))


def stream_rows(source: str, split: str):
    """Opens one split without copying it: a folder of parquet files or a data set on the Hub.

    Returns:
        A `datasets.IterableDataset` with the columns of `load_rows` (those that are there), pictures encoded; and the
        number of its rows, None where the Hub does not say.

    Raises:
        ValueError, FileNotFoundError: the source, the split or a column is missing, or it cannot be streamed.
    """
    from datasets import load_dataset

    folder = Path(source).expanduser()
    if folder.is_dir() and _parquet_files(folder):
        found, paths, num_rows = _find_parquet(folder, split)
        if num_rows == 0:
            raise ValueError(f"Split '{split}' of '{source}' has no rows: give a source with at least one.")
        with _parquet_in_plain_words(source):
            rows = load_dataset("parquet", data_files={found: paths}, split=found, streaming=True)
    elif folder.exists() or source == "builtin":
        raise ValueError(
            f"'{source}' cannot be streamed: give a folder of parquet files (`tamiseg data prepare` writes one) or a "
            "Hub id, or leave streaming off."
        )
    else:
        rows = _load_hub(source, split, streaming=True)
        known = (rows.info.splits or {}).get(str(rows.split))
        num_rows = known.num_examples if known else None
    rows = _encoded(_with_our_names(rows, source), "image", "mask")
    return rows.select_columns([column for column in COLUMNS if column in rows.column_names]), num_rows


def read_row(rows: Sequence[dict], index: int) -> dict:
    """Reads one row with its pictures decoded.

    Returns:
        `image` and `mask` (as stored), `prompt` (normalised str or None), `name` (str), `patient_id` (str or None).

    Raises:
        ValueError: one sentence that names the row, when its image or mask is missing or unreadable, or its prompt is
            not a string.
    """
    index = range(len(rows))[index]  # raises IndexError
    try:
        row = rows[index]
    except Exception as error:  # of damaged files: decoders raise whatever comes
        name = rows.select_columns("name")[index]["name"]  # only a `datasets.Dataset` decodes at access
        raise ValueError(
            f"Row {index} ('{name}') has an image or a mask that is not there or cannot be decoded: replace it or "
            "drop the row."
        ) from error
    name = _text(row.get("name")) or str(index)
    for column in ("image", "mask"):
        if row.get(column) is None:
            raise ValueError(
                f"Row {index} ('{name}') has no {column}: add it or drop the row (an all-zero mask says 'no finding')."
            )
    return {
        "image": row["image"],
        "mask": row["mask"],
        "prompt": _prompt(row.get("prompt"), f"Row {index} ('{name}')"),
        "name": name,
        "patient_id": _text(row.get("patient_id")),
    }


def read_pair(rows: Sequence[dict], index: int, image_processor) -> dict:
    """Reads one row as `read_row`, with `image` as RGB and `mask` as class ids, both PIL images of one size.

    Raises:
        ValueError: as `read_row`, and when the picture or mask is unreadable, has unknown label values, or they differ
            in size.
    """
    row = read_row(rows, index)
    image, mask = decode_pair(row, f"Row {index} ('{row['name']}')", image_processor)
    return {**row, "image": image, "mask": mask}


def decode_pair(row: dict, where: str, image_processor) -> tuple[Image.Image, Image.Image]:
    """Picture (RGB) and mask (class ids) of a row, of their own size; errors as `read_pair`, which say `where`."""
    try:
        image = image_processor.load_image(row["image"])
        mask = image_processor.load_mask(row["mask"])
    except (OSError, ValueError) as error:  # OSError from a PIL file that is decoded only now
        flag = """in training --model_config '{"num_labels": 3}'"""
        raise ValueError(f"{where}: {name_flag(error, flag)}") from error
    if image.size != mask.size:
        raise ValueError(
            f"{where} has an image of {image.width}x{image.height} pixels and a mask of "
            f"{mask.width}x{mask.height}: make them one size, or check that they belong together."
        )
    return image, mask


def limit_labels(
    rows: Sequence[dict], budget: float, seed: int, keep_unlabelled: bool
) -> tuple[Sequence[dict], np.ndarray]:
    """Lets only a share of the rows show their masks, as where experts' time is short.

    Whole pictures are drawn: the rows that ask about one, each with its own mask, are labelled together or not at all,
    since the masks of some would tell those of the others. So the share may be passed by the last picture's rows.
    A smaller budget's labelled rows are among those of a larger one. They come several times, each time as a view of
    its own: without the unlabelled rows, until there are as many rows as before; with them, until about every second
    row is a labelled one. So a pass is never too short to be worth a validation.

    Args:
        rows: what `load_rows` gives.
        budget: share of the rows that are labelled, above 0 and at most 1; at least one is.
        seed: of their choice.
        keep_unlabelled: whether the others stay, or are left out.

    Returns:
        The rows of a pass, and a bool array of the same length that says which are labelled.
    """
    pictures = number_pictures(rows)
    turns = np.argsort(np.random.default_rng(seed).permutation(max(pictures) + 1))[pictures]  # of each row's picture
    count = max(1, round(budget * len(rows)))
    shown = turns <= np.sort(turns)[count - 1]
    labelled, rest = np.flatnonzero(shown), np.flatnonzero(~shown & keep_unlabelled)
    wanted = max(len(labelled), len(rest) if keep_unlabelled else len(rows))
    picked = np.concatenate([np.resize(labelled, wanted), rest])
    chosen = rows.select(picked) if _is_dataset(rows) else [rows[index] for index in picked]
    return chosen, np.arange(len(picked)) < wanted


def number_pictures(rows: Sequence[dict]) -> list[int]:
    """Which picture each row asks about: from 0, in the order of their first rows. Equal files are one picture."""
    numbers: dict[bytes, int] = {}
    images = _encoded(rows.select_columns("image"), "image") if _is_dataset(rows) else rows
    contents = (_content(row["image"]) for row in images)
    return [numbers.setdefault(hashlib.sha256(content).digest(), len(numbers)) for content in contents]


def column(rows: Sequence[dict], name: str) -> list:
    """One column of the rows, without decoding the others; unknown patients are None, as in `read_row`."""
    if isinstance(rows, list):
        values = [row[name] for row in rows]
    elif name in rows.column_names:
        values = list(rows.select_columns(name)[name])
    else:  # only a stream may lack one
        values = []
    return [_text(value) for value in values] if name == "patient_id" else values


def fingerprint(rows: Sequence[dict]) -> str:
    """Hashes names, sentences, patients and pictures in their order (SHA-256, 64 hex digits), for receipts.

    Files are hashed as they are encoded, which is quick and does not depend on the decoder's version; drawn pictures
    are hashed by their pixels. So the same pictures in another file format have another fingerprint.
    """
    digest = hashlib.sha256()
    for row in _encoded(rows, "image", "mask") if _is_dataset(rows) else rows:
        digest.update(json.dumps([row.get("name"), row.get("prompt"), row.get("patient_id")]).encode())
        for column in ("image", "mask"):
            content = _content(row[column])
            # The length keeps two neighbouring pictures from being cut at another place into the same bytes.
            digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()


class _Items:
    """Makes items of rows; the two data sets below differ in where the rows come from."""

    def __init__(
        self,
        image_processor,
        *,
        augmentation: Callable | None = None,
        perturbation: Callable | None = None,
        prompt_dropout: float = 0.0,
        prompt_shortening: float = 0.0,
        seed: int = 0,
    ):
        for name, value in (("prompt_dropout", prompt_dropout), ("prompt_shortening", prompt_shortening)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is a probability: give a number from 0 to 1, not {value}.")
        self.image_processor = image_processor
        self.augmentation = augmentation
        self.perturbation = perturbation
        self.prompt_dropout = prompt_dropout
        self.prompt_shortening = prompt_shortening
        self.seed = seed
        # In shared memory, because persistent workers keep the copy of this object that they were born with.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Changes all draws; call it before each pass. Reaches running workers too."""
        self._epoch.fill_(epoch)

    def _resize(self, image: Image.Image, mask: Image.Image) -> tuple[Image.Image, Image.Image]:
        # Resized before the augmentation, not after: a small picture is several times cheaper to warp and to blur.
        size = (self.image_processor.size["width"], self.image_processor.size["height"])
        return image.resize(size, Image.Resampling.BILINEAR), mask.resize(size, Image.Resampling.NEAREST)

    def _make(self, row: dict, image: Image.Image, mask: Image.Image, number: int, labelled: bool = True) -> dict:
        """One item from a resized picture and mask; all draws come from (seed, epoch, number)."""
        generator = np.random.default_rng([self.seed, int(self._epoch), number])
        prompt = None if generator.random() < self.prompt_dropout else row["prompt"]
        if self.prompt_shortening and generator.random() < self.prompt_shortening:
            prompt = shorten_prompt(prompt, generator)
        if not labelled:  # nor may the augmentation look at it
            mask = Image.new("L", mask.size)
        if self.augmentation is not None:
            image, mask, prompt = self.augmentation(image, mask, prompt, generator)
        labels = torch.from_numpy(np.asarray(mask, dtype=np.int64))
        if not labelled:
            labels = torch.full_like(labels, IGNORE_INDEX)
        item = {"name": row["name"], "patient_id": row["patient_id"], "prompt": prompt}
        item |= {"pixel_values": self._pixel_values(image), "labels": labels}
        if self.perturbation is not None:
            perturbed, affine = self.perturbation(image, generator)
            item |= {"perturbed_pixel_values": self._pixel_values(perturbed), "affine": torch.from_numpy(affine)}
        return item

    def _pixel_values(self, image: Image.Image) -> torch.Tensor:
        """RGB picture of the items' size -> float32 (3, H, W), by the image processor."""
        as_it_is = {"do_resize": False, "do_center_crop": False, "do_pad": False}
        return self.image_processor(image, return_tensors="pt", **as_it_is)["pixel_values"][0]


class SegmentationDataset(_Items, torch.utils.data.Dataset):
    """Rows as tensors, one item per row, none twice and none left out.

    All draws of an item come from (seed, epoch, index) alone: the number of workers or processes, the order of the
    rows and a resumed run do not change them.

    Args:
        rows: what `load_rows` gives, or a list of such dictionaries.
        image_processor: a `TAMISegImageProcessor`; its `size` is the size of the items.
        augmentation: `JointAugmentation` or None.
        perturbation: `ConsistencyPerturbation` or None; adds the strong view of stage 1 to each item.
        prompt_dropout: probability to hide the sentence, so that the model learns to serve without one.
        prompt_shortening: probability that a shown sentence says less, see `shorten_prompt`.
        labelled: bool, one per row; all labels of the others are to be ignored. All are labelled if left out.
        cache: keeps each decoded and resized row in memory, 4 bytes a pixel, in each process that reads rows.
        seed: of all draws.
    """

    def __init__(
        self,
        rows: Sequence[dict],
        image_processor,
        *,
        labelled: Sequence[bool] | None = None,
        cache: bool = False,
        **options,
    ):
        super().__init__(image_processor, **options)
        if len(rows) == 0:
            raise ValueError("There are no rows: give at least one.")
        self.rows = rows
        self.labelled = np.ones(len(rows), dtype=bool) if labelled is None else np.asarray(labelled, dtype=bool)
        self.cache: dict[int, tuple] | None = {} if cache else None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        """Gives one item.

        Returns:
            `pixel_values` float32 (3, H, W), `labels` int64 (H, W), `prompt` str or None, `name` str, `patient_id` str
            or None; with a perturbation `perturbed_pixel_values` float32 (3, H, W) and `affine` float32 (2, 3), see
            `ConsistencyPerturbation`.

        Raises:
            ValueError: one sentence that names the row, when a picture is missing, unreadable, has unknown label
                values, or image and mask differ in size.
        """
        index = range(len(self))[index]  # -1 is the last row, an index too large raises IndexError
        labelled = bool(self.labelled[index])
        if self.cache is not None and index in self.cache:
            return self._make(*self.cache[index], index, labelled)
        row = read_row(self.rows, index)
        image, mask = self._resize(*decode_pair(row, f"Row {index} ('{row['name']}')", self.image_processor))
        if self.cache is not None:
            texts = {key: row[key] for key in ("name", "patient_id", "prompt")}  # not the pictures as they came
            self.cache[index] = (texts, image, mask)
        return self._make(row, image, mask, index, labelled)


class StreamedSegmentationDataset(_Items, torch.utils.data.IterableDataset):
    """The same items from rows that are read as they come: no copy on disk, a start within seconds, any size.

    The order is that of a shuffle buffer, drawn from (seed, epoch). The draws of an item come from (seed, epoch, its
    encoded picture). Each process reads its share, each worker a share of that; together they read every row once.

    Args:
        stream: what `stream_rows` gives.
        image_processor, augmentation, perturbation, prompt_dropout, prompt_shortening, seed: as for
            `SegmentationDataset`.
        buffer_size: rows among which the next one is drawn; 0 keeps the order.
        rank, world_size: which process this is, of how many.
    """

    def __init__(
        self, stream, image_processor, *, buffer_size: int = 1000, rank: int = 0, world_size: int = 1, **options
    ):
        from datasets.distributed import split_dataset_by_node

        super().__init__(image_processor, **options)
        if buffer_size:
            # The groups of rows inside a file change places too. One group at a time: reading ten at once, as is the
            # default, costs 5 seconds of sleep after each pass (datasets 5.2).
            stream = stream.reshard().shuffle(seed=self.seed, buffer_size=buffer_size, max_buffer_input_shards=1)
        self.stream = split_dataset_by_node(stream, rank, world_size)

    def set_epoch(self, epoch: int) -> None:
        """Changes the order and all draws; call it before each pass. Reaches running workers too."""
        super().set_epoch(epoch)
        # Here and not in the workers: they share the stream's epoch, and set_epoch adds the difference to it, so that
        # two at once would add it twice, and each would read another order.
        self.stream.set_epoch(epoch)

    def __iter__(self):
        """Gives the items of one pass, see `SegmentationDataset.__getitem__`."""
        stream = iter(self.stream)
        while True:
            with _parquet_in_plain_words("the stream"):
                row = next(stream, None)
            if row is None:
                return
            pictures = {column: row.get(column) or {} for column in ("image", "mask")}
            # A file in an archive is told inside out, as "zip://masks/a.png::hf://datasets/...".
            path = (pictures["image"].get("path") or "unnamed").partition("::")[0]
            name = _text(row.get("name")) or PurePath(path).stem
            where = f"The row '{name}'"
            contents = {}
            for column, picture in pictures.items():
                row[column], contents[column] = _decode(
                    picture, f"{where} has no {column} that can be decoded: replace it or drop the row."
                )
            row |= {"name": name, "prompt": _prompt(row.get("prompt"), where)}
            row["patient_id"] = _text(row.get("patient_id"))
            image, mask = self._resize(*decode_pair(row, where, self.image_processor))
            yield self._make(row, image, mask, zlib.crc32(contents["image"]))


def collate(items: list[dict]) -> dict:
    """Makes a batch: tensors are stacked; `prompt`, `name` and `patient_id` stay lists, one entry per item."""
    batch = {key: [item[key] for item in items] for key in items[0]}
    return {key: torch.stack(values) if torch.is_tensor(values[0]) else values for key, values in batch.items()}


# One function per layout. A new layout is a new function that gives a `datasets.Dataset`, and a line in _load_folder.


def _load_folder(folder: Path, split: str):
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return _load_saved_dataset(folder, split)
    if any(folder.glob("*/metadata.jsonl")):
        return _load_image_folder(folder, split)
    if _parquet_files(folder):
        return _load_parquet(folder, split)
    entries = sorted(path.name for path in folder.iterdir())
    if not entries:
        raise ValueError(f"The folder '{folder}' is empty: give one that holds a data set.")
    raise ValueError(
        f"The layout of '{folder}' is not known (it holds {_listed(entries)}): give a folder with "
        "'<split>-*.parquet' files, with '<split>/metadata.jsonl', or written by save_to_disk."
    )


def _load_parquet(folder: Path, split: str):
    from datasets import Dataset, load_dataset

    found, paths, num_rows = _find_parquet(folder, split)
    if num_rows == 0:
        return Dataset.from_dict({})  # load_dataset would fail with a riddle, load_rows says it plainly
    with _cache_in_plain_words(folder), _parquet_in_plain_words(folder):
        return load_dataset("parquet", data_files={found: paths}, split=found)


@contextmanager
def _parquet_in_plain_words(where: str | Path):
    """Of damaged files, and of several that do not fit together, their reader raises whatever comes."""
    try:
        yield
    except Exception as error:
        # The reader's own error says only that there was one.
        raise ValueError(
            f"'{where}' has a parquet file that cannot be read ({reason(error.__cause__ or error)}): download it "
            "again, or check the connection to where it lies."
        ) from error


@contextmanager
def _cache_in_plain_words(source: str | Path):
    """A cache that is full or must not be written is no fault of what is copied there."""
    from datasets import config

    try:
        yield
    except Exception as error:
        cause = error
        while cause is not None:
            # One check of `datasets` has no number, only words.
            if isinstance(cause, OSError) and (cause.errno in NO_ROOM or "Not enough disk space" in str(cause)):
                raise ValueError(
                    f"'{source}' cannot be copied to the cache in '{config.HF_DATASETS_CACHE}' ({reason(cause)}): "
                    "make room there, set HF_DATASETS_CACHE (for what is downloaded, HF_HOME) to a folder that has "
                    "room and may be written, or train with --streaming true."
                ) from error
            cause = cause.__cause__ or cause.__context__
        raise


def _parquet_files(folder: Path) -> list[Path]:
    return [path for path in files_below(folder) if path.suffix == ".parquet"]


def _find_parquet(folder: Path, split: str) -> tuple[str, list[str], int]:
    """The split as it is spelt here, its files, and how many rows they hold."""
    from pyarrow.parquet import read_metadata

    files: dict[str, list[str]] = {}
    for path in _parquet_files(folder):
        files.setdefault(re.split(r"[-_.]", path.name)[0], []).append(str(path))
    found = _find_split(split, files, folder)
    places = sorted({os.path.dirname(path) for path in files[found]})
    if len(places) > 1:  # as the configurations of a data set on the Hub lie
        raise ValueError(
            f"'{folder}' holds files of the split '{found}' in several folders: give one of "
            f"{_listed([repr(place) for place in places])}, or put into one folder what belongs together."
        )
    num_rows = 0
    for path in files[found]:
        try:
            num_rows += read_metadata(path).num_rows
        except (OSError, ValueError) as error:
            raise ValueError(f"'{path}' is no parquet file: download it again (with Git, `git lfs pull`).") from error
    return found, files[found], num_rows


def _load_saved_dataset(folder: Path, split: str):
    from datasets import DatasetDict, load_from_disk

    saved = load_from_disk(str(folder))
    if not isinstance(saved, DatasetDict):
        # Served under one name only, so that the same rows are never both trained on and validated on by mistake.
        saved = {str(saved.split or "train"): saved}
    return saved[_find_split(split, saved, folder)]


def _load_image_folder(folder: Path, split: str):
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature

    found = _find_split(split, sorted(path.parent.name for path in folder.glob("*/metadata.jsonl")), folder)
    metadata = folder / found / "metadata.jsonl"
    table: dict[str, list] = {column: [] for column in COLUMNS}
    alike: dict[str, Path] = {}  # what lies here, as people write it
    for number, line in enumerate(metadata.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        where = f"Line {number} of '{metadata}'"
        entry = parse_json(line, where, "write one object per line")
        if not isinstance(entry, dict):
            raise ValueError(
                f'{where} is not an object: write it as {{"image_file_name": ..., "mask_file_name": ...}}.'
            )
        image_name = entry.get("image_file_name") or entry.get("file_name")
        mask_name = entry.get("mask_file_name")
        if not image_name:
            raise ValueError(f"{where} names no picture: add 'image_file_name'.")
        if not mask_name:
            raise ValueError(f"{where} names no mask: add 'mask_file_name' (an all-zero mask says 'no finding').")
        for column, file_name in (("image", image_name), ("mask", mask_name)):
            path = metadata.parent / str(file_name)
            if not os.path.isfile(path):  # a table from Windows
                path = metadata.parent / str(file_name).replace("\\", "/")
            if not Path(os.path.normpath(path)).is_relative_to(os.path.normpath(folder)):
                raise ValueError(
                    f"{where} names the {column} '{str(file_name)[:200]}', which is not in '{folder}': copy it there."
                )
            if not os.path.isfile(path):  # a table in other letters than the files of a Mac
                alike = alike or {spelled_alike(str(one.relative_to(folder))): one for one in files_below(folder)}
                path = alike.get(spelled_alike(os.path.relpath(path, folder)), path)
            if not os.path.isfile(path):
                raise FileNotFoundError(
                    f"{where} names the {column} '{str(file_name)[:200]}', which is not there: add the file."
                )
            table[column].append(str(path))
        table["prompt"].append(_prompt(entry.get("prompt", entry.get("text")), where))
        table["name"].append(_text(entry.get("name")) or str(PurePath(image_name).with_suffix("")))
        table["patient_id"].append(_text(entry.get("patient_id")))
    features = {column: ImageFeature() if column in ("image", "mask") else Value("string") for column in COLUMNS}
    return Dataset.from_dict(table, features=Features(features))


def _load_hub(source: str, split: str, streaming: bool = False):
    from datasets import get_dataset_split_names, load_dataset

    hub_id, _, configuration = source.partition(":")
    try:
        splits = get_dataset_split_names(hub_id, configuration or None)
    except (OSError, ValueError, RuntimeError) as error:
        known = _configurations(hub_id)
        if known and configuration not in known and (configuration or len(known) > 1):
            examples = _listed([f"{hub_id}:{name}" for name in known])
            raise ValueError(
                f"'{source}' does not say which configuration is meant: give one of {examples}."
            ) from error
        raise FileNotFoundError(
            f"'{source}' is neither a folder here nor a data set that the Hub gives ({_first_line(error)}): "
            "check the spelling, the connection, and the login if it is private."
        ) from error
    found = _find_split(split, splits, source)
    try:
        return load_dataset(hub_id, configuration or None, split=found, streaming=streaming)
    except Exception as error:  # of connections and damaged files: whatever comes
        raise ValueError(
            f"'{source}' cannot be loaded ({reason(error.__cause__ or error)}): check the connection, or look at the "
            "data set's page on the Hub."
        ) from error


def _configurations(hub_id: str) -> list[str]:
    """The names of a data set's configurations; none where the Hub does not say."""
    from datasets import get_dataset_config_names

    try:
        return get_dataset_config_names(hub_id)
    except (OSError, ValueError, RuntimeError):
        return []


def _find_split(split: str, available, source) -> str:
    spellings = VALIDATION_SPELLINGS if split in VALIDATION_SPELLINGS else (split,)
    for spelling in spellings:
        if spelling in available:
            return spelling
    raise NoSuchSplit(f"'{source}' has no split '{split}': choose one of {_listed(sorted(available))}.")


def _with_our_names(rows, source: str):
    """Renames the columns that others call differently; both pictures must be there."""
    for column, aliases in ALIASES.items():
        alias = next((alias for alias in aliases if alias in rows.column_names), None)
        if column not in rows.column_names and alias is not None:
            rows = rows.rename_column(alias, column)
    for column in ("image", "mask"):
        if column not in rows.column_names:
            raise ValueError(
                f"'{source}' has no column '{column}' (it has {_listed(rows.column_names)}): "
                f"give the column of the {column}s this name."
            )
    return rows


def _with_our_columns(rows, split: str, source: str):
    """Renames, checks and completes the columns of a `datasets.Dataset`, without decoding or copying a picture."""
    from datasets import Image as ImageFeature
    from datasets import Value

    rows = _with_our_names(rows, source)
    for column in ("image", "mask"):
        try:
            rows = rows.cast_column(column, ImageFeature())  # bytes and paths become pictures too
        except (TypeError, ValueError, NotImplementedError) as error:  # the parents of pyarrow's errors
            raise ValueError(
                f"The {column} column of '{source}' holds {rows.features[column]}, not pictures: name the one that "
                f"does '{column}'."
            ) from error

    encoded = {}
    for column in ("image", "mask"):
        parts = rows.select_columns([column]).cast_column(column, ImageFeature(decode=False)).flatten()
        encoded[column] = parts.with_format("arrow")[:]
        has_bytes = encoded[column][f"{column}.bytes"].is_valid().to_numpy()
        has_path = encoded[column][f"{column}.path"].is_valid().to_numpy()
        paths = encoded[column][f"{column}.path"].to_pylist()
        for index in np.flatnonzero(~has_bytes & has_path):
            if "://" in paths[index]:  # which would be fetched without a word
                raise ValueError(
                    f"Row {index} of split '{split}' of '{source}' has its {column} at '{paths[index][:200]}': "
                    "download the pictures first."
                )
        empty = np.flatnonzero(~(has_bytes | has_path))
        if len(empty):
            raise ValueError(
                f"{len(empty)} of {len(rows)} rows of split '{split}' of '{source}' have no {column}, the first is "
                f"row {empty[0]}: add it or drop the row (an all-zero mask says 'no finding')."
            )
    for column in ("name", "prompt", "patient_id"):
        if column not in rows.column_names:
            rows = rows.add_column(column, [None] * len(rows), feature=Value("string"))
    for column in ("name", "patient_id"):
        if not re.match(r"(large_)?string|u?int|bool|float|null", getattr(rows.features[column], "dtype", "")):
            raise ValueError(
                f"The {column} column of '{source}' holds {rows.features[column]}, not text: give it as strings."
            )
    names = [_text(name) for name in rows.select_columns("name")["name"][:]]
    if None in names:
        paths = encoded["image"]["image.path"].to_pylist()
        known = _names_of({path for path in paths if path})
        spare = [known.get(path, f"{split}/{index}") for index, path in enumerate(paths)]
        names = [name or instead for name, instead in zip(names, spare, strict=True)]
        rows = rows.remove_columns("name").add_column("name", names)
    return rows.select_columns(list(COLUMNS))


def _names_of(paths: set[str]) -> dict[str, str]:
    """Path -> its stem, where several have the same ("a/0.png", "b/0.png") after the folders that tell them apart."""
    files = {path: PurePath(path) for path in paths}
    counts = Counter(file.stem for file in files.values())
    twins = [file.parent.parts for file in files.values() if counts[file.stem] > 1]
    common = len(os.path.commonprefix(twins))
    return {
        path: file.stem if counts[file.stem] == 1 else "/".join([*file.parent.parts[common:], file.stem])
        for path, file in files.items()
    }


def _decode(picture: dict, sentence: str) -> tuple[Image.Image, bytes]:
    """Decodes {"bytes", "path"} of a stream, and gives the file too; a ValueError with the sentence where that fails,
    a ConnectionError where the file cannot be fetched."""
    try:
        content = _content(picture)
        decoded = Image.open(io.BytesIO(content))
        decoded.load()
    except ConnectionError:
        raise
    except Exception as error:  # of damaged files: decoders raise whatever comes
        raise ValueError(sentence) from error
    return decoded, content


def _encoded(rows, *columns: str):
    """A data set whose pictures in these columns come as {"bytes", "path"}."""
    from datasets import Image as ImageFeature

    for column in columns:
        rows = rows.cast_column(column, ImageFeature(decode=False))
    return rows


def _content(picture: Image.Image | dict) -> bytes:
    """A picture's file, or the pixels of one that was drawn."""
    if isinstance(picture, Image.Image):
        return f"{picture.mode} {picture.size}".encode() + picture.tobytes()
    return _read_file(picture["path"]) if picture["bytes"] is None else picture["bytes"]


def _read_file(path: str) -> bytes:
    if path.rpartition("::")[2].startswith("hf://"):  # of a stream; what stands before tells a file in an archive
        from datasets.utils.file_utils import xopen

        try:
            with xopen(path, "rb") as file:
                return file.read()
        except Exception as error:  # of connections: their libraries raise whatever comes
            raise ConnectionError(f"'{path}' cannot be fetched ({reason(error)}): check the connection.") from error
    if not os.path.isfile(path):  # a device has no end
        raise ValueError(f"there is no file '{path}': restore it or drop its row.")
    return Path(path).read_bytes()


def _prompt(value, where: str) -> str | None:
    try:
        return normalize_prompt(value)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _text(value) -> str | None:
    """A cell as text, None where it is empty: None, NaN or blank."""
    return None if value is None or value != value or not str(value).strip() else str(value)


def _is_dataset(rows) -> bool:
    return hasattr(rows, "cast_column")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
