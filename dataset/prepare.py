# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Writes data sets in ImageNet layout: python -m dataset.prepare NAME --out DIR.

A data set is written beside DIR and renamed when complete, so DIR never holds an incomplete one. A complete data set is
kept; anything else at DIR is not overwritten. Interrupted packing of shards resumes where it stopped.
"""

import argparse
import contextlib
import errno
import fcntl
import gzip
import importlib
import json
import os
import re
import shutil
import struct
import tarfile
import urllib.error
import zipfile
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any, Callable, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence

import numpy as np
from PIL import Image

from common.command_line import CommandLine, run_command
from common.errors import EXIT_BUSY, EXIT_DATA, EXIT_RESOURCE, Refusal
from common.logs import console_log, logger
from common.progress_bar import tracked
from dataset.decode import MAX_FILE_BYTES, BadImage, shown
from dataset.image_folder import TRAINING_NAMES, VALIDATION_NAMES, ImageFolder, open_split
from dataset.pack import Packing, pack
from utils import one_line, reason

MARKER = ".prepared.json"
PLAIN = Packing()
HELD_OUT = 0.2  # validation share of each class
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
FASHION_CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot")
IMAGENETTE = ("https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-320.tgz", "3df6f0d01a2c9592104656642f5e78a3")
IMAGENETTE_MEMBER = re.compile(r"[^/]+/(train|val)/(n\d{8})/(\w[\w.-]*\.JPEG)")
ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)  # date of all members, so equal folders give equal archives


def prepare(
    name: str, out: Path, source: Optional[Path] = None, split: Optional["Split"] = None, packing: Packing = PLAIN
) -> None:
    """Writes data set `name` to the folder `out`, unless it is there already.

    Args:
        source: folder of the original files, instead of a download; for 'zip' and 'shards' the folder data set to pack.
        split: settings of 'folder'; None for others.
        packing: settings of 'shards'.

    Raises:
        Refusal: if `out` holds something else, another process writes it, or the original cannot be downloaded or read.
    """
    marker = {"data set": name, "source": str(source.resolve()) if source else ""}
    arguments: Dict[str, Any] = {}
    if split is not None:
        arguments["split"] = split
        marker.update({key: str(value) for key, value in split._asdict().items()})
    if packing != PLAIN:
        arguments["options"] = packing
        marker.update({key: str(value) for key, value in packing._asdict().items()})
    if _is_prepared(out, marker):
        logger.info("%s is prepared already in %s: remove it to prepare it again", name, shown(out))
        return
    _check_apart(name, out, source)
    try:
        with _partial_folder(out, marker) as partial:
            PREPARERS[name](partial, source, **arguments)
            os.replace(str(partial), str(out))
    except OSError as error:
        raise Refusal(f"{shown(out)} cannot be written: {error}", EXIT_RESOURCE) from error
    logger.info("prepared %s in %s", name, shown(out))


def _is_prepared(out: Path, marker: Dict[str, str]) -> bool:
    """Whether `out` is the data set described by `marker`; refuses anything else at `out`."""
    try:
        if not out.exists() or (out.is_dir() and not any(out.iterdir())):
            return False
    except OSError:
        pass  # cannot be listed: something else
    if _is_marked(out, marker):
        return True
    origin = f" prepared from {shown(marker['source'])}" if marker["source"] else ""
    options = ", ".join(f"{key} {value}" for key, value in marker.items() if key not in ("data set", "source"))
    raise Refusal(
        f"{shown(out)} exists and is not data set {marker['data set']}{origin}{options and f' with {options}'}: it is "
        "not overwritten; choose another --out or remove it"
    )


def _check_apart(name: str, out: Path, source: Optional[Path]) -> None:
    """Raises `Refusal` if `out` lies among the images that it is made of, and would be read as one of their classes."""
    if source is None:
        return
    for part in READ_PARTS.get(name, ()):
        if (source / part).resolve() in out.resolve().parents:
            where = f"--out is inside --source {shown(source / part)}"
            raise Refusal(f"{where}, where it would be read as a class: choose a folder outside")


def _is_marked(folder: Path, marker: Dict[str, str]) -> bool:
    try:
        return json.loads((folder / MARKER).read_text(encoding="utf-8")) == marker
    except (OSError, ValueError):
        return False


@contextlib.contextmanager
def _partial_folder(out: Path, marker: Dict[str, str]) -> Iterator[Path]:
    """A locked folder beside `out` with its marker, empty unless an interrupted preparation of the same is resumed."""
    goes_on = marker["data set"] in RESUMABLE
    partial = out.absolute().with_name(f"{out.absolute().name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(str(partial), os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not (goes_on and _is_marked(partial, marker)):
            for entry in partial.iterdir():
                shutil.rmtree(str(entry)) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
            (partial / MARKER).write_text(json.dumps(marker) + "\n", encoding="utf-8")
        yield partial
    except BlockingIOError as error:
        raise Refusal(f"another process is writing {shown(partial)}: wait for it", EXIT_BUSY) from error
    except BaseException:  # also for Ctrl-C: incomplete data is removed
        if goes_on:
            logger.warning("%s keeps the finished shards: run the same command to continue", shown(partial))
        else:
            shutil.rmtree(str(partial), ignore_errors=True)
        raise
    finally:
        os.close(descriptor)


def _digits(out: Path, source: Optional[Path]) -> None:
    """The UCI handwritten digits in scikit-learn: 1,797 scans of 8x8 pixels, a fifth of each class held out."""
    if source is not None:
        raise Refusal("digits come with scikit-learn: --source has no effect, leave it out")
    data = _required("sklearn.datasets", "scikit-learn").load_digits()
    images = np.rint(data.images * (255 / 16)).astype(np.uint8)
    held_out = np.zeros(len(images), dtype=bool)
    for label in range(10):
        members = np.flatnonzero(data.target == label)
        shuffled = np.random.RandomState(label).permutation(members)
        held_out[shuffled[: round(HELD_OUT * len(members))]] = True
    names = [str(label) for label in range(10)]
    _write_images(out / "train", images[~held_out], data.target[~held_out], names)
    _write_images(out / "validation", images[held_out], data.target[held_out], names)


def _fashion_mnist(out: Path, source: Optional[Path]) -> None:
    """Zalando's 70,000 article images of 28x28 pixels, from IDX files."""
    if source is None and DEBIAN_FASHION_MNIST.is_dir():
        source = DEBIAN_FASHION_MNIST
    if source is None:
        with _downloads(out) as folder:
            datasets = _required("torchvision.datasets", "torchvision")
            _fetch("fashion-mnist", datasets.FashionMNIST, str(folder), download=True)
            _convert_idx(out, folder / "FashionMNIST" / "raw")
    else:
        _convert_idx(out, source)


def _convert_idx(out: Path, source: Path) -> None:
    names = [f"{label}-{name}" for label, name in enumerate(FASHION_CLASSES)]
    for split, prefix in (("train", "train"), ("validation", "t10k")):
        images = read_idx(source / f"{prefix}-images-idx3-ubyte")
        labels = read_idx(source / f"{prefix}-labels-idx1-ubyte")
        if images.ndim != 3 or labels.shape != images.shape[:1] or labels.max(initial=0) >= len(names):
            raise Refusal(
                f"{shown(source)} does not hold Fashion-MNIST: {prefix} images {images.shape} and labels "
                f"{labels.shape}, the largest {labels.max(initial=0)}",
                EXIT_DATA,
            )
        _write_images(out / split, images, labels, names)


def read_idx(path: Path) -> np.ndarray:
    """The array of unsigned bytes in an IDX file (LeCun's MNIST format) at `path` or, gzipped, at `path`.gz.

    Raises:
        Refusal: naming the file, if it is missing or damaged.
    """
    packed = path.with_name(f"{path.name}.gz")
    found = path if path.exists() else packed
    try:
        with open(str(found), "rb") if found == path else gzip.open(str(found), "rb") as stream:
            kind, dimensions = struct.unpack(">HBB", stream.read(4))[1:]
            if kind != 8:
                raise ValueError(f"its type is 0x{kind:02x}, not unsigned bytes")
            shape = struct.unpack(f">{dimensions}I", stream.read(4 * dimensions))
            size = int(np.prod(shape, dtype=np.int64))
            data = stream.read(size + 1)  # stops at the announced size, so bombs are not unpacked
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise Refusal(f"{shown(found)} cannot be read as IDX: {reason(error)}", EXIT_DATA) from error
    if len(data) != size:
        raise Refusal(f"{shown(found)} is damaged: {len(data)} bytes of data, expected {size} for {shape}", EXIT_DATA)
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)


def _cifar10(out: Path, source: Optional[Path]) -> None:
    """60,000 photographs of 32x32 pixels, read by torchvision, which checks the MD5 sums of the files first."""
    datasets = _required("torchvision.datasets", "torchvision")
    with _downloads(out) as folder:
        for split in ("train", "validation"):
            data = _fetch(
                "cifar10", datasets.CIFAR10, str(source or folder), train=split == "train", download=source is None
            )
            _write_images(out / split, data.data, data.targets, data.classes)


def _imagenette(out: Path, source: Optional[Path]) -> None:
    """Ten classes of ImageNet, 13,394 JPEGs with a shorter side of 320 pixels (fast.ai)."""
    url, checksum = IMAGENETTE
    archive = url.rsplit("/", 1)[1]
    utilities = _required("torchvision.datasets.utils", "torchvision")
    with _downloads(out) as folder:
        path = (source or folder) / archive
        if source is None:
            _fetch("imagenette", utilities.download_url, url, str(folder), archive, checksum)
        elif not utilities.check_integrity(str(path), checksum):
            raise Refusal(f"{shown(path)} is missing, or damaged: its MD5 sum should be {checksum}", EXIT_DATA)
        unpack_imagenette(path, out)


def unpack_imagenette(archive: Path, out: Path) -> None:
    """Writes the archive's images to out/train and out/validation.

    Paths are built from checked parts of a member's name, so all are inside `out`.

    Raises:
        Refusal: if the archive is damaged or has no images.
    """
    splits = {"train": "train", "val": "validation"}
    count = 0
    try:
        with tarfile.open(str(archive)) as members:
            for member in members:
                parts = IMAGENETTE_MEMBER.fullmatch(member.name)
                if not parts or not member.isreg() or member.size > MAX_FILE_BYTES:
                    continue
                folder = out / splits[parts.group(1)] / parts.group(2)
                folder.mkdir(parents=True, exist_ok=True)
                contents = members.extractfile(member)
                assert contents is not None  # of a regular file
                (folder / parts.group(3)).write_bytes(contents.read())
                count += 1
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise Refusal(f"{shown(archive)} is damaged: {one_line(error)}", EXIT_DATA) from error
    if count == 0:
        raise Refusal(f"{shown(archive)} has no images of Imagenette", EXIT_DATA)


def _zip(out: Path, source: Optional[Path]) -> None:
    """The official zip format of a folder data set: per split an archive and a map with lines `path<TAB>label`."""
    if source is None:
        raise Refusal("zip packs a folder data set: pass it as --source DIR")
    for split in ("train", "validation"):
        folder = open_split(source, training=split == "train")
        lines = []
        with zipfile.ZipFile(str(out / f"{split}.zip"), "w", zipfile.ZIP_STORED) as archive:
            for index, label in enumerate(tracked(folder.labels.tolist(), f"packing {split}", " images")):
                path = folder.relative(index)
                if not path.isprintable():
                    raise Refusal(f"{shown(folder.name(index))}: a map cannot hold this name; rename it", EXIT_DATA)
                try:
                    archive.writestr(zipfile.ZipInfo(path, ZIP_EPOCH), folder.read(index))
                except BadImage as error:
                    raise Refusal(f"{shown(folder.name(index))} {error}", EXIT_DATA) from error
                lines.append(f"{path}\t{label}\n")
        (out / f"{split}_map.txt").write_text("".join(lines), encoding="utf-8")


class Split(NamedTuple):
    """How to split a folder of classes.

    Attributes:
        validation_share: share of each class held out for validation, between 0 and 1; at least one image is held out
            and one is left for training.
        seed: selects the images; the choice in a class depends only on the seed, the class's name and its images.
        link_mode: a key of PLACERS.
    """

    validation_share: float = HELD_OUT
    seed: int = 0
    link_mode: str = "copy"


def _place(mode: str, source: str, target: str) -> None:
    """Puts the file `source` at `target`; raises `Refusal` where the file system has no such link."""
    try:
        PLACERS[mode](source, target)
    except OSError as error:
        if mode == "copy" or error.errno not in NO_LINKS:
            raise
        others = " or ".join(sorted({"copy", "symlink"} - {mode}))
        why = "it is on another file system" if error.errno == errno.EXDEV else reason(error)
        raise Refusal(
            f"--link-mode {mode}: {shown(source)} cannot be linked to: {why}; use --link-mode {others}"
        ) from error


def _symlink(source: str, target: str) -> None:
    os.symlink(os.path.abspath(source), target)


PLACERS: Dict[str, Callable[[str, str], Any]] = {"copy": shutil.copyfile, "hardlink": os.link, "symlink": _symlink}
NO_LINKS = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP)  # what a file system says that cannot link


def _folder(out: Path, source: Optional[Path], split: Split = Split()) -> None:  # noqa: B008 (immutable)
    """Splits a folder with one folder per class, each class in the same proportion."""
    if source is None:
        raise Refusal("folder splits a folder of classes: pass it as --source DIR")
    folder = ImageFolder(source)
    for label, name in enumerate(tracked(folder.classes, "splitting", " classes")):
        members = np.flatnonzero(folder.labels == label).tolist()
        if len(members) < 2:
            raise Refusal(f"{shown(source)}: {shown(name)} has one image: two are needed, one to validate", EXIT_DATA)
        random = np.random.RandomState(zlib.crc32(f"{split.seed}/".encode() + os.fsencode(name)))
        count = min(max(round(split.validation_share * len(members)), 1), len(members) - 1)
        held_out = set(random.permutation(members).tolist()[:count])
        for index in members:
            target = out / ("validation" if index in held_out else "train") / folder.relative(index)
            target.parent.mkdir(parents=True, exist_ok=True)
            _place(split.link_mode, folder.name(index), str(target))
    logger.info(
        "%d classes with %d images; python -m dataset.check finds damaged ones", len(folder.classes), len(folder)
    )


PREPARERS: Dict[str, Callable[..., None]] = {
    "digits": _digits,
    "fashion-mnist": _fashion_mnist,
    "cifar10": _cifar10,
    "imagenette": _imagenette,
    "folder": _folder,
    "zip": _zip,
    "shards": pack,
}
RESUMABLE = ("shards",)
SPLITS = (*TRAINING_NAMES, *VALIDATION_NAMES)
READ_PARTS: Dict[str, Sequence[str]] = {"folder": ("",), "zip": SPLITS, "shards": SPLITS}  # of --source


def _write_images(folder: Path, images: np.ndarray, labels: Iterable[int], names: Sequence[str]) -> None:
    """Writes `images` (N, H, W) or (N, H, W, 3) bytes as PNG files, one folder per class."""
    for name in names:
        (folder / name).mkdir(parents=True)
    for number, (image, label) in enumerate(tracked(list(zip(images, labels)), f"writing {folder.name}", " images")):
        Image.fromarray(image).save(str(folder / names[label] / f"{number:05d}.png"))


@contextlib.contextmanager
def _downloads(out: Path) -> Iterator[Path]:
    """A temporary folder for downloads inside `out`."""
    folder = out / ".downloads"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(str(folder))


def _fetch(name: str, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    """Calls a download function of torchvision; raises its failures as `Refusal`."""
    try:
        return function(*arguments, **keywords)
    except (urllib.error.URLError, RuntimeError, ConnectionError, TimeoutError) as error:
        raise Refusal(
            f"{name} cannot be downloaded: {one_line(error)}; without a network, pass the folder of "
            "its original files as --source",
            EXIT_DATA,
        ) from error


def _required(module: str, package: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise Refusal(f"this data set needs {package}: pip install {package}", EXIT_DATA) from error


def _arguments(argv: Optional[List[str]] = None) -> argparse.Namespace:
    parser = CommandLine(
        prog="python -m dataset.prepare",
        allow_abbrev=False,
        description="Writes a real data set in ImageNet layout, splits one, or packs one as zip or shards.",
    )
    parser.add_argument("name", choices=sorted(PREPARERS))
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder to create")
    parser.add_argument(
        "--source",
        type=Path,
        metavar="DIR",
        help="folder of the original files, instead of a download; for folder, shards, zip: folder to split or pack",
    )
    default, own = Split(), parser.add_argument_group("folder", "splits a folder with one folder per class")
    own.add_argument(
        "--validation-share",
        type=float,
        metavar="SHARE",
        help=f"share of each class held out for validation (default: {default.validation_share})",
    )
    own.add_argument("--seed", type=int, metavar="N", help=f"selects the images held out (default: {default.seed})")
    own.add_argument(
        "--link-mode", choices=sorted(PLACERS), help=f"how to place the files (default: {default.link_mode})"
    )
    parser.add_argument_group("shards", "packs a folder data set").add_argument(
        "--restart-markers",
        action="store_true",
        help="add restart markers to JPEGs (lossless, by jpegtran), which makes crops decode faster",
    )
    args = parser.parse(argv)
    if args.restart_markers and args.name != "shards":
        raise Refusal(f"--restart-markers has no effect for {args.name}: leave it out")
    given = {key: getattr(args, key) for key in Split._fields if getattr(args, key) is not None}
    if given and args.name != "folder":
        flag = f"--{next(iter(given)).replace('_', '-')}"
        raise Refusal(f"{flag} has no effect for {args.name}, which has its own split: leave it out")
    args.split = default._replace(**given) if args.name == "folder" else None
    if not 0 < given.get("validation_share", HELD_OUT) < 1:
        raise Refusal(f"--validation-share {args.validation_share}: must lie between 0 and 1")
    return args


def main(argv: Optional[List[str]] = None) -> None:
    """Runs the command line `argv`; None: that of the process."""
    args = _arguments(argv)
    with console_log(is_leader=True):
        prepare(args.name, args.out, args.source, args.split, Packing(args.restart_markers))


if __name__ == "__main__":
    raise SystemExit(run_command(main))
