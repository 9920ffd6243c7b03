# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Predictions as text, CSV or JSON lines, and features as an array."""

import contextlib
import csv
import io
import json
import sys
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence

import numpy as np
from yacs.config import CfgNode

from common.errors import EXIT_DATA, EXIT_RESOURCE, Refusal
from common.files import new_path
from common.launch import Launch
from common.progress_bar import above_bars
from common.results import new_text, standard_output, write_table
from dataset.decode import shown
from training import processes
from training.overlays import Overlays
from training.prediction import Prediction, class_count, describe, find_images, name_classes, predict
from training.tables import prediction_header
from utils import reason

Line = Callable[[Prediction], str]


class Destination(NamedTuple):
    """Where and in which format to write predictions.

    Attributes:
        kind: 'text', 'csv' or 'jsonl'.
        output: a new file; None: standard output.
        features: a new .npy file for features; None: none.
        attention: a new folder for overlays; None: none.
    """

    kind: str
    output: Optional[Path] = None
    features: Optional[Path] = None
    attention: Optional[Path] = None


def write_predictions(
    config: CfgNode,
    path: Path,
    state: Optional[Dict[str, Any]],
    names: Sequence[str],
    top: int,
    launch: Launch,
    destination: Destination,
) -> None:
    """Predicts the classes of images and writes them in the order of the images; the leader writes for all processes.

    Args:
        path: file of the weights.
        state: its contents from `checkpoint.load_own`; None for foreign weights.
        names: images, folders and patterns for `find_images`.
        top: number of classes per image.

    Raises:
        Refusal: with EXIT_DATA, after writing everything else, if some files cannot be read as images; see also
            `find_images`, `predict` and `opened`.
    """
    files = processes.share(find_images(names) if launch.is_leader else None, launch)
    classes = state["classes"] if state else []
    count = class_count(config, classes)
    line = line_format(destination.kind, classes, count)
    overlays = None if destination.attention is None else Overlays.made(destination.attention, config, launch)
    predictions = predict(config, path, state, files, top, launch, destination.features is not None, overlays)
    readable, featured = 0, []
    with opened(destination.output) if launch.is_leader else contextlib.nullcontext(_nowhere) as write:
        if destination.kind == "csv":
            write([_csv(["path", *prediction_header(min(top, count))])])
        for batch in predictions:
            write([line(prediction) for prediction in batch])
            readable += len(batch)
            featured += batch if destination.features and launch.is_leader else []
    if featured and destination.features:
        write_features(destination.features, featured)
    if readable < len(files):
        bad = len(files) - readable
        raise Refusal(f"{bad} of {len(files)} files cannot be read as images; they are listed above", EXIT_DATA)


def _nowhere(lines: List[str]) -> None:
    """Discards the lines, which the leader writes."""


def line_format(kind: str, names: Sequence[str], classes: int) -> Line:
    """The function that formats a prediction as a line: 'text' for people, 'csv' or 'jsonl' for programs.

    Args:
        names: class names of the weights.
        classes: number of classes.
    """
    if kind == "text":
        words = [shown(name) for name in describe(names, classes)]
        return lambda prediction: (
            f"{shown(prediction.path)}: "
            + "; ".join(f"{words[label]} {probability:.1%}" for label, probability in prediction.classes)
        )
    every = name_classes(names, classes)
    if kind == "csv":
        return lambda prediction: _csv(
            [prediction.path, *(cell for label, share in prediction.classes for cell in (every[label], f"{share:.6g}"))]
        )
    return lambda prediction: json.dumps(
        {
            "path": prediction.path,
            "predictions": [{"class": every[label], "probability": share} for label, share in prediction.classes],
        }
    )


def _csv(cells: Sequence[Any]) -> str:
    text = io.StringIO()
    csv.writer(text).writerow(cells)
    return text.getvalue()[: -len("\r\n")]


@contextlib.contextmanager
def opened(output: Optional[Path]) -> Iterator[Callable[[List[str]], None]]:
    """A function that writes lines to standard output, or to a new file that appears at `output` after the context.

    Raises:
        Refusal: if the file exists already, or the lines cannot be written.
    """
    if output is None:
        yield _print
        return
    with new_text(output) as stream:
        yield lambda lines: stream.writelines(f"{line}\n" for line in lines)


def _print(lines: List[str]) -> None:
    with standard_output(), above_bars():
        sys.stdout.buffer.write("".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape"))


def write_features(path: Path, predictions: Sequence[Prediction]) -> None:
    """Writes the features (N, num_features) as float32 to a .npy file, and the paths of its rows to a .csv beside it.

    Raises:
        Refusal: if one of the files exists already or cannot be written.
    """
    try:
        with new_path(path) as temporary, open(temporary, "xb") as stream:
            np.save(stream, np.stack([row.features for row in predictions if row.features is not None]))
    except OSError as error:
        raise Refusal(f"{path} cannot be written: {reason(error)}", EXIT_RESOURCE) from error
    write_table(path.with_suffix(".csv"), ["path"], ([prediction.path] for prediction in predictions))
