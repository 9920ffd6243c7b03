# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Lists the image files and class folders of a data set, and counts the files that are not read."""

import os
from pathlib import Path
from typing import Counter, Dict, Iterator, List, NamedTuple, Optional, Sequence

from common.errors import EXIT_DATA, Refusal
from common.logs import logger
from common.progress_bar import tracked
from dataset.decode import EXTENSIONS, shown
from dataset.path_table import PathTable

SHOWN_ENDINGS = 6


class FolderStatus(NamedTuple):
    """The status of a folder, which changes when a file is added, removed or renamed."""

    inode: int
    modified: int  # nanoseconds, as ctime is
    changed: int
    size: int

    @classmethod
    def of(cls, status: os.stat_result) -> "FolderStatus":
        """The status that os.stat gave."""
        return cls(status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size)


class Listing(NamedTuple):
    """The image files below a folder, class after class."""

    counts: Dict[str, int]  # files per class, sorted by class name
    paths: PathTable  # relative to the folder, sorted within a class
    left_out: Counter[str]  # other files, by the ending of their names
    folders: Dict[str, FolderStatus]  # status of every folder before it was read, by relative path


def list_classes(folder: Path) -> Listing:
    """Lists the classes of a folder and their image files.

    Raises:
        Refusal: if a folder cannot be listed or there are no classes.
    """
    folders = {"": FolderStatus.of(os.stat(folder))} if folder.is_dir() else {}
    counts: Dict[str, int] = {}
    names = class_names(folder)
    left_out = Counter(_outside_classes(folder))
    paths: List[str] = []
    for name in tracked(names, f"indexing {shown(folder)}", " classes"):
        found = sorted(image_files(folder, name, left_out, folders))
        counts[name] = len(found)
        paths += found
    return Listing(counts, PathTable.of(paths), left_out, folders)


def class_names(folder: Path) -> List[str]:
    """Sorted names of the class folders in `folder`.

    Raises:
        Refusal: if it cannot be listed or has none.
    """
    try:
        with os.scandir(str(folder)) as entries:
            names = sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())
    except OSError as error:
        raise _unlistable(str(folder), error) from error
    if not names:
        raise Refusal(f"{shown(folder)} has no class folders: put the images of each class in a folder", EXIT_DATA)
    return names


def _outside_classes(folder: Path) -> Iterator[str]:
    """A description of each image file that lies beside the class folders."""
    with os.scandir(str(folder)) as entries:
        for entry in entries:
            ending = os.path.splitext(entry.name)[1].lower()
            if ending in EXTENSIONS and not entry.name.startswith(".") and not _is_folder(entry):
                yield f"{ending} outside the class folders"


def image_files(
    folder: Path,
    name: str = "",
    left_out: Optional[Counter[str]] = None,
    folders: Optional[Dict[str, FolderStatus]] = None,
) -> Iterator[str]:
    """Paths, relative to `folder`, of the image files of class `name`, or of all classes, without hidden files.

    Links to folders are followed; each folder is read once, since links can form cycles.

    Args:
        left_out: filled with counts of the other files, by the ending of their names.
        folders: filled with the status of each folder that is read, by path.

    Raises:
        Refusal: if a folder cannot be listed.
    """
    prefix, seen, waiting = os.path.join(str(folder), ""), set(), [name]
    while waiting:
        place = waiting.pop()
        try:
            status = os.stat(prefix + place)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            if folders is not None:
                folders[place] = FolderStatus.of(status)
            with os.scandir(prefix + place) as entries:
                visible = [entry for entry in entries if not entry.name.startswith(".")]
        except OSError as error:
            raise _unlistable(prefix + place, error) from error
        below = []
        for entry in visible:
            path = os.path.join(place, entry.name)
            if _is_folder(entry):
                below.append(path)
            elif path.lower().endswith(EXTENSIONS):
                yield path
            elif left_out is not None:
                left_out[os.path.splitext(path)[1].lower() or "no ending"] += 1
        waiting += sorted(below, reverse=True)


def note_left_out(folder: Path, left_out: Counter[str]) -> None:
    """Logs how many files are not read, by the ending of their names."""
    if left_out:
        endings = ", ".join(f"{count} of {shown(ending)}" for ending, count in left_out.most_common(SHOWN_ENDINGS))
        more = f" and {len(left_out) - SHOWN_ENDINGS} more" if len(left_out) > SHOWN_ENDINGS else ""
        logger.warning("%s: %d files are not read: %s%s", shown(folder), sum(left_out.values()), endings, more)


def some(names: Sequence[str], limit: int = 5) -> str:
    """The first names of a list, and the number of others."""
    text = ", ".join(shown(name) for name in names[:limit])
    return text if len(names) <= limit else f"{text} and {len(names) - limit} more"


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a broken or circular link: treated as an unreadable file
        return False


def _unlistable(path: str, error: OSError) -> Refusal:
    return Refusal(f"{shown(path)} cannot be listed: {error.strerror}", EXIT_DATA)
