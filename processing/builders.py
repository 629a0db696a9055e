# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""Which picture belongs to which mask, sentence, patient and split: in the paper's data sets, and in anyone's folder.

`NAMED_SETS` says what is known of each named set; `pair_files` reads the layouts seen in the wild:

    Train_Folder/img, Train_Folder/labelcol, Train_text.xlsx        LViT's, with its texts (Image, Description)
    Train Set/Images, Train Set/Ground-truths/mask_*.png            QaTa-COV19 v2
    images, masks, train.txt, val.txt                               Kvasir-SEG
    TrainDataset/image, TestDataset/Kvasir/images, .../masks        Kvasir-SEG 900/100, among other sets
    Training/*.tif beside *.xml                                     MoNuSeg (outlines of nuclei)
    scan.png beside scan_mask.png (and scan_mask_1.png, ...)        a flat folder; BUSI, with its union of masks
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from .prompts import normalize_prompt
from .sources import TABLES, Source, spelled_alike


WITHOUT_PICTURE = "name in a table or list without a picture"
WITHOUT_SENTENCE = "picture without a sentence"
SPLITS = ("train", "validation", "test")
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".dcm", ".nii", ".nii.gz")
OUTLINES = ".xml"  # Aperio annotations, as MoNuSeg ships them

SPLIT_WORDS = {
    "train": ("train", "training", "tr"),
    "validation": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "ts"),
}
# Of a folder's name in lower case without anything but letters: "Ground-truths" is "groundtruths".
MASK_FOLDER = re.compile(r"mask|label|annot|groundtruth|^gt$|^seg(mentations?|mentationclass)?$")
IMAGE_FOLDER = re.compile(r"image|^imgs?$|img$|frame|scan|^input")
# A number behind counts the masks of one picture: "scan_mask.png", "scan_mask_1.png".
MASK_AFFIX = re.compile(r"^mask[_-]|[_-](masks?(?P<number>[_-]?\d+)?|seg|segmentation|gt|labels?)$", re.IGNORECASE)

# What the columns of a table are called. Compared in lower case; the first that is there is taken.
TABLE_COLUMNS = {
    "name": ("image", "file_name", "filename", "image_file_name", "img", "name", "image_name"),
    "prompt": ("description", "text", "prompt", "caption", "sentence"),
    "patient_id": ("patient_id", "patientid", "patient", "subject"),
    "study_id": ("study_id", "studyid", "study", "session"),
    "split": ("split", "set"),
}


@dataclass(frozen=True)
class NamedSet:
    """What is known of a data set before anyone has downloaded it."""

    title: str
    splits: dict[str, dict[str, int]]  # name of the published split -> rows of each part; the first is the default
    obtain: str
    licence: str
    citation: str
    patient: str | None = None  # first group of this pattern in the name; None where names tell nothing
    study: str | None = None
    reported: str = "test"  # what its owners call the part that everyone reports on
    names: str | None = None  # pattern of its names, where it is passed on mixed with other sets
    note: str = ""


NAMED_SETS = {
    "qata-cov19": NamedSet(
        title="QaTa-COV19 v2, chest X-rays with COVID-19 infection",
        splits={"lvit": {"train": 5716, "validation": 1429, "test": 2113}},
        obtain="pictures: https://www.kaggle.com/datasets/aysendegerli/qatacov19-dataset (QaTa-COV19-v2); sentences "
        "and the 5716/1429 split of its Train Set: the xlsx files linked from https://github.com/HUANGLIZI/LViT",
        licence="research use; parts come from BIMCV-COVID19+, do not publish the pictures again",
        citation="Degerli et al., OSegNet: Operational Segmentation Network for COVID-19 Detection using Chest X-ray "
        "Images, ICIP 2022; sentences: Li et al., LViT, IEEE TMI 2023",
        patient=r"(?i)^(sub-[^_]+)_",
        study=r"(?i)^(sub-[^_]+_ses-[^_]+)",
        note="Left and right in the sentences are sides of the picture, not of the patient. Pictures named covid_* "
        "carry no patient.",
    ),
    "mosmeddata-plus": NamedSet(
        title="MosMedData+, CT slices with COVID-19 lesions",
        splits={"lvit": {"train": 2183, "validation": 273, "test": 273}},
        obtain="pictures: https://www.kaggle.com/datasets/maedemaftouni/covid19-ct-scan-lesion-segmentation-dataset; "
        "sentences and split: the xlsx files linked from https://github.com/HUANGLIZI/LViT",
        licence="research use; its sources (MosMedData, coronacases, Radiopaedia, MedSeg) keep their own terms",
        citation="Morozov et al., MosMedData, medRxiv 2020; Maftouni et al., 2021; sentences: Li et al., LViT, IEEE "
        "TMI 2023",
        # Morozov_study_0255_10, Jun_coronacases_case1_119, Jun_radiopaedia_10_85902_3_case12_107; bjorke_10 is unknown
        patient=r"(?i)^(morozov_study_\d+|jun_.*case\d+)_\d+$",
        study=r"(?i)^(morozov_study_\d+|jun_.*case\d+)_\d+$",
        note="The published split is by slice: slices of one study lie in several parts. --split-by study mends it.",
    ),
    "kvasir-seg": NamedSet(
        title="Kvasir-SEG, endoscopy frames with polyps",
        splits={
            "880-120": {"train": 800, "validation": 80, "test": 120},
            "900-100": {"train": 810, "validation": 90, "test": 100},
            "800-100-100": {"train": 800, "validation": 100, "test": 100},
        },
        obtain="https://datasets.simula.no/kvasir-seg (kvasir-seg.zip; train.txt and val.txt are the 880/120 split)",
        licence="research and education only; other use needs a written permission of its authors",
        citation="Jha et al., Kvasir-SEG: A Segmented Polyp Dataset, MMM 2020",
        reported="validation",
        names=r"^c[jk][a-z0-9]{23}$",
        note="Its val.txt is the part that everyone reports on, so it becomes test; validation is drawn from train.",
    ),
    "monuseg": NamedSet(
        title="MoNuSeg, H&E tissue with nuclei",
        splits={"lvit": {"train": 24, "validation": 6, "test": 14}},
        obtain="https://monuseg.grand-challenge.org/Data/ (tif pictures beside xml outlines); the 24/6/14 split, "
        "masks and sentences in LViT's layout: https://github.com/HUANGLIZI/LViT",
        licence="CC BY-NC-SA 4.0",
        citation="Kumar et al., A Dataset and a Technique for Generalized Nuclear Segmentation for Computational "
        "Pathology, IEEE TMI 2017; Kumar et al., A Multi-Organ Nucleus Segmentation Challenge, IEEE TMI 2020",
        patient=r"(?i)^(tcga-[^-]+-[^-]+)",
        study=r"(?i)^(tcga-[^-]+-[^-]+)",
    ),
}


@dataclass
class Case:
    """One picture and all that the files say of it. `image` and `masks` are paths in the source."""

    name: str
    image: str
    masks: list[str]  # several are parts of one target
    split: str | None = None
    prompt: str | None = None
    patient_id: str | None = None
    study_id: str | None = None
    look_id: str | None = None  # of the cases that look alike, or are of one patient or study


@dataclass
class Problems:
    """What is wrong with the files, by kind; everything is looked at before anything is refused."""

    found: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, name: str) -> None:
        self.found.setdefault(kind, []).append(name)

    def sentence(self) -> str:
        parts = []
        for kind, names in self.found.items():
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            parts.append(f"{len(names)} {kind} ({'; '.join(names[:3])}{more})")
        return ", ".join(parts)

    def lines(self) -> Iterable[str]:
        return (f"{kind}: {name}" for kind, names in self.found.items() for name in names)


def pair_files(source: Source, problems: Problems, notes: list[str], named: NamedSet | None = None) -> list[Case]:
    """Pairs pictures, masks, sentences and splits by name.

    A mask is told by its own name (`mask_*`, `*_mask`, `*_gt`, ...) or by its folder's; everything else is a picture.
    Numbered ones (`*_mask_1`, `*_mask_2`) are parts of one target; any other second mask is a problem.
    Extensions do not count, and where file names repeat (`patient1/images/001.png`, `patient2/images/001.png`) the
    other folders count too, at last the split (`train/images/001.png`, `test/images/001.png`). A split is told by the
    table that holds the sentence, by a list (`train.txt`), or by the nearest folder whose name says train, val or
    test.

    Args:
        source: the files.
        problems: what cannot be paired is added here; the caller decides.
        notes: what was left out on purpose is added here.
        named: where names tell the patient, and what belongs to the set.

    Returns:
        One case per pair, by name.

    Raises:
        ValueError: there are no pictures or no masks at all, or a table lacks its columns.
    """
    found = [path for path in source.paths if path.lower().endswith(PICTURES)]
    pictures = [path for path in found if named is None or re.search(named.names or "", _stem(path))]
    if len(pictures) < len(found):
        notes.append(f"{len(found) - len(pictures)} files with names of another set were left out")
    masks = [path for path in pictures if _is_mask(path)]
    images = sorted(set(pictures) - set(masks))
    masks += [path for path in source.paths if path.lower().endswith(OUTLINES)]
    where = f"'{source.folder}'"
    if not images:
        raise ValueError(
            f"{where} holds no pictures ({', '.join(PICTURES)}): check the folder, and name DICOM files *.dcm."
        )
    if not masks:
        any_gif = any(path.lower().endswith(".gif") for path in source.paths)
        raise ValueError(
            f"{where} holds pictures but no masks: put them into a folder 'masks', or name them like 'scan_mask.png'"
            + (" (GIF is not read: save those files as PNG)." if any_gif else ".")
        )
    # A file of a named set lies in one split only, so the same name in two of them is a leak or a mix-up.
    keys = (_stem,) if named else (_stem, _long_key, _numbered_key, _split_key)
    key = next((key for key in keys if _all_unique(map(key, images))), keys[:2][-1])
    if key is _split_key:
        notes.append("names repeat between the splits, so that each begins with its split")
    image_of = _index(images, key, "double picture", problems)
    drawn = {key(path) for path in masks if not path.lower().endswith(OUTLINES)}
    boxes = [
        path
        for path in masks
        if path.lower().endswith(OUTLINES) and key(path) in drawn and b"<Region" not in source.read(path)
    ]
    if boxes:
        masks = sorted(set(masks) - set(boxes))
        notes.append(f"{len(boxes)} {OUTLINES} files without outlines, beside masks, were left out")
    masks_of: dict[str, list[str]] = {}
    for (name, _), mask in _index(masks, lambda path: (key(path), _number(path)), "double mask", problems).items():
        masks_of.setdefault(name, []).append(mask)
    for name in sorted(image_of.keys() - masks_of.keys()):
        problems.add("picture without a mask", name)
    for name in sorted(masks_of.keys() - image_of.keys()):
        problems.add("mask without a picture", name)

    several = [len(masks) for masks in masks_of.values() if len(masks) > 1]
    if several:
        notes.append(f"pictures with several masks: {len(several)} ({sum(several)} masks); the target is their union")

    said = _read_tables(source, key, problems)
    listed = _read_lists(source, key, set(image_of), problems)
    for name in sorted((said.keys() | listed.keys()) - image_of.keys()):
        problems.add(WITHOUT_PICTURE, name)
    has_sentences = any(row.get("prompt") for row in said.values())
    cases = []
    for name in sorted(image_of.keys() & masks_of.keys()):
        row, image = said.get(name, {}), image_of[name]
        case = Case(name, image, masks_of[name], prompt=row.get("prompt"))
        folder_split = _split_of(image)
        case.split = row.get("split") or listed.get(name) or folder_split
        # A validation part is often drawn from the folder that was published as training.
        if folder_split and case.split != folder_split and (case.split, folder_split) != ("validation", "train"):
            problems.add("picture in another split than its table or list says", name)
        if has_sentences and case.prompt is None:
            problems.add(WITHOUT_SENTENCE, name)
        case.patient_id = row.get("patient_id") or _first_group(named and named.patient, name)
        case.study_id = row.get("study_id") or _first_group(named and named.study, name)
        cases.append(case)
    return cases


def _is_mask(path: str) -> bool:
    if MASK_AFFIX.search(_bare_name(path)):
        return True
    for folder in reversed(PurePosixPath(path).parts[:-1]):
        word = re.sub(r"[^a-z]", "", folder.lower())
        mask, image = MASK_FOLDER.search(word), IMAGE_FOLDER.search(word)
        if bool(mask) != bool(image):  # "images_and_masks" tells nothing
            return bool(mask)
    return False


def _bare_name(path: str) -> str:
    """The file's name without the extension of a picture: names may hold dots, and tables leave extensions out."""
    name = PurePosixPath(spelled_alike(path)).name
    extension = next((e for e in sorted((*PICTURES, OUTLINES), key=len) if name.lower().endswith(e)), "")
    return name[: len(name) - len(extension)]


def _stem(path: str) -> str:
    return MASK_AFFIX.sub("", _bare_name(path)).strip()


def _number(path: str) -> str | None:
    match = MASK_AFFIX.search(_bare_name(path))
    return match and match["number"]


def _long_key(path: str, keep_numbers: bool = False) -> str:
    """The stem after all folders that say neither "pictures", "masks" nor a split."""
    folders = []
    for folder in PurePosixPath(spelled_alike(path)).parts[:-1]:
        if _split_of(f"{folder}/") is not None:
            continue
        if re.search(f"{MASK_FOLDER.pattern}|{IMAGE_FOLDER.pattern}", re.sub(r"[^a-z]", "", folder.lower())):
            folder = re.sub(r"[^0-9]", "", folder) if keep_numbers else ""
        folders.append(folder)
    return "/".join([*filter(None, folders), _stem(path)])


def _numbered_key(path: str) -> str:
    """As [`_long_key`], with the numbers of all folders: "scan01/images/001.png", "scan02/images/001.png"."""
    return _long_key(path, keep_numbers=True)


def _split_key(path: str) -> str:
    """As [`_numbered_key`], after the split, for numbers that begin anew in each."""
    return "/".join(filter(None, [_split_of(spelled_alike(path)), _numbered_key(path)]))


def _split_of(path: str) -> str | None:
    """The split that the nearest folder names: "Train_Folder", "Test Set", "MoNuSegTestData", "imagesTr"."""
    for folder in reversed(path.split("/")[:-1]):
        if split := _split_word(folder):
            return split
    return None


def _split_word(text: str) -> str | None:
    words = {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", text)}
    return next((split for split, spellings in SPLIT_WORDS.items() if words & set(spellings)), None)


def _all_unique(names: Iterable[str]) -> bool:
    return max(Counter(names).values()) == 1


def _index(paths: list[str], key, kind: str, problems: Problems) -> dict:
    by_key: dict = {}
    for path in paths:
        if key(path) in by_key:
            problems.add(kind, f"{by_key[key(path)]} and {path}")
        by_key.setdefault(key(path), path)
    return by_key


def _read_tables(source: Source, key, problems: Problems) -> dict[str, dict]:
    """Name -> {prompt, patient_id, study_id, split} of all tables; a table's own name may say the split."""
    said: dict[str, dict] = {}
    for path in source.paths:
        if not path.lower().endswith(TABLES):
            continue
        rows = source.read_table(path)
        present = {str(column).strip().lower(): column for row in rows for column in row}
        columns = {
            role: next((present[name] for name in names if name in present), None)
            for role, names in TABLE_COLUMNS.items()
        }
        if "mask_file_name" in present:
            raise ValueError(
                f"'{path}' pairs pictures and masks itself: train_hf.py takes its folder as --dataset as it is, and "
                "`tamiseg data leaks` looks at its splits."
            )
        if columns["name"] is None or not any(columns[role] for role in columns if role != "name"):
            missing = "of file names (Image)" if columns["name"] is None else "of sentences (Description or text)"
            raise ValueError(
                f"'{path}' has no column {missing}, it has {', '.join(present.values()) or 'none'}: rename the one "
                "that is meant, or move the table away."
            )
        own_split = _split_word(PurePosixPath(path).stem) or _split_of(path)
        for row in rows:
            entry = {role: normalize_prompt(_text(row.get(column))) for role, column in columns.items() if column}
            if entry["name"] is None:
                continue
            entry["split"] = _split_word(entry.get("split") or "") or own_split
            name = key(_in_split(entry.pop("name"), entry["split"]))
            if said.get(name, entry) != entry:
                problems.add("name twice in the tables, with different words", name)
            said.setdefault(name, entry)
    return said


def _read_lists(source: Source, key, known: set[str], problems: Problems) -> dict[str, str]:
    """Name -> split, of text files such as train.txt that hold a name a line, or several words that are names (of a
    picture and its mask). As with folders, a validation part may be drawn from the training part.

    Raises:
        ValueError: a list cannot be read.
    """
    listed: dict[str, str] = {}
    for path in source.paths:
        stem, extension = PurePosixPath(path).stem.lower(), PurePosixPath(path).suffix.lower()
        split = next((split for split, spellings in SPLIT_WORDS.items() if stem in spellings), None)
        if extension == ".txt" and split:
            try:
                lines = source.read(path).decode("utf-8-sig").splitlines()
            except UnicodeDecodeError as error:
                raise ValueError(f"'{path}' is no list in UTF-8 ({error}): save it again as one.") from error
            names = []
            for line in filter(None, map(str.strip, lines)):
                words = [key(_in_split(word, split)) for word in line.split()]
                whole = key(_in_split(line, split))
                names += words if whole not in known and known & set(words) else [whole]
            for name in names:
                splits = {split, listed.get(name, split)}
                if splits == {"train", "validation"}:
                    listed[name] = "validation"
                elif len(splits) > 1:
                    problems.add("name in the lists of two splits", name)
                else:
                    listed[name] = split
    return listed


def _in_split(name: str, split: str | None) -> str:
    """A name of a table or list as a path below its split's folder, unless it says a split itself."""
    return f"{split}/{name}" if split and not _split_of(spelled_alike(name)) else name


def _text(value) -> str | None:
    return None if value is None else str(value)


def _first_group(pattern: str | None, name: str) -> str | None:
    match = re.search(pattern, name) if pattern else None
    return match and match[1]
