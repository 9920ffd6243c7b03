# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Search operations: farthest-point sampling, nearest points, and CTC beam search."""

import math
from collections import defaultdict
from typing import Dict, List, Optional, Tuple, Union

import torch

from ..context import own_op
from ..errors import createPoptorchError

Groups = Optional[Union[List[int], torch.Tensor]]


def fps(src: torch.Tensor, ptr: List[int], ratio: float = 0.5, random_start: bool = False) -> torch.Tensor:
    """Farthest-point sampling (Qi et al., PointNet++, 2017, section 3.2) in groups of points.

    Args:
        src: points (n, d).
        ptr: the bounds of the groups: group i is `src[ptr[i]:ptr[i + 1]]`.
        ratio: the proportion of points to sample from each group, rounded up.
        random_start: whether to begin with a random point of a group rather than its first.

    Returns:
        The indices of the sampled points, int64, group by group.
    """
    if src.dim() != 2 or len(ptr) < 2:
        raise createPoptorchError(f"fps needs points (n, d) and at least two bounds, not {tuple(src.shape)} and {ptr}")
    with own_op("fps"):
        parts = []
        for begin, end in zip(ptr[:-1], ptr[1:]):
            chosen = _farthest(src[begin:end], math.ceil((end - begin) * ratio), random_start)
            parts.append(chosen + begin)
        return torch.cat(parts)


def _farthest(points: torch.Tensor, count: int, random_start: bool) -> torch.Tensor:
    first = (
        torch.randint(len(points), (1,), device=points.device)
        if random_start
        else torch.zeros(1, dtype=torch.long, device=points.device)
    )
    chosen = [first][:count]
    distance = torch.full((len(points),), math.inf, dtype=points.dtype, device=points.device)
    for _ in range(1, count):
        step = (points - points.index_select(0, chosen[-1])).square().sum(1)
        distance = torch.minimum(distance, step)
        chosen.append(distance.argmax().reshape(1))
    return torch.cat(chosen) if chosen else first[:0]


def nearest(x: torch.Tensor, y: torch.Tensor, batch_x: Groups = None, batch_y: Groups = None) -> torch.Tensor:
    """Finds the nearest point of `y` in the same group for each point of `x`.

    Args:
        x: points (n, d), or (n,) for one dimension.
        y: points (m, d), or (m,).
        batch_x: the group of each point of `x`, ascending; None for a single group.
        batch_y: the group of each point of `y`.

    Returns:
        Indices into `y`, int64, shape (n,).

    Raises:
        Error: for points of different dimensions, or a wrong number of groups.
    """
    x, y = (points.unsqueeze(1) if points.dim() == 1 else points for points in (x, y))
    if x.shape[1] != y.shape[1]:
        raise createPoptorchError(f"nearest compares points of {x.shape[1]} and of {y.shape[1]} dimensions")
    with own_op("nearest"):
        distance = torch.cdist(x, y)
        if batch_x is not None or batch_y is not None:
            other_group = _groups(batch_x, x).unsqueeze(1) != _groups(batch_y, y).unsqueeze(0)
            distance = distance.masked_fill(other_group, math.inf)
        return distance.argmin(1)


def _groups(batch: Groups, points: torch.Tensor) -> torch.Tensor:
    if batch is None:
        return torch.zeros(len(points), dtype=torch.long, device=points.device)
    groups = torch.as_tensor(batch, device=points.device)
    if groups.shape != (len(points),):
        raise createPoptorchError(f"nearest needs a group for each of {len(points)} points, not {tuple(groups.shape)}")
    return groups


def ctc_beam_search_decoder(
    probs: torch.Tensor, lengths: torch.Tensor, blank: int = 0, beam_width: int = 100, top_paths: int = 1
) -> List[torch.Tensor]:
    """Decodes the output of a connectionist temporal classification (CTC) model by prefix beam search.

    Graves (2012), Supervised Sequence Labelling, section 7.5.3; Hannun et al. (2014), algorithm 1, without its language
    model.

    Args:
        probs: log probabilities of the classes (time, batch, classes).
        lengths: the numbers of time steps (batch,).
        blank: the class of the blank label.
        beam_width: the number of prefixes to keep at each step.
        top_paths: the number of sequences to return for each sample.

    Returns:
        Log probabilities (batch, top_paths), lengths (batch, top_paths), and labels (batch, top_paths, time), padded
        with blanks.

    Raises:
        Error: for other shapes, or if `top_paths` exceeds `beam_width`.
    """
    if probs.dim() != 3 or lengths.shape != probs.shape[1:2]:
        raise createPoptorchError(
            f"ctc_beam_search_decoder needs (time, batch, classes) and (batch,), not "
            f"{tuple(probs.shape)} and {tuple(lengths.shape)}"
        )
    if not 0 <= blank < probs.shape[2] or not 0 < top_paths <= beam_width:
        raise createPoptorchError(
            f"ctc_beam_search_decoder cannot find {top_paths} paths in a beam of {beam_width}, "
            f"with blank {blank} of {probs.shape[2]} classes"
        )
    time, batch = probs.shape[:2]
    with own_op("ctc_beam_search_decoder"):
        scores = torch.full((batch, top_paths), -math.inf)
        sizes = torch.zeros((batch, top_paths), dtype=torch.int32)
        labels = torch.full((batch, top_paths, time), blank, dtype=torch.int32)
        for sample, length in enumerate(lengths.tolist()):
            paths = _prefix_beam_search(probs[:length, sample].tolist(), blank, beam_width)
            for rank, (prefix, score) in enumerate(paths[:top_paths]):
                scores[sample, rank], sizes[sample, rank] = score, len(prefix)
                labels[sample, rank, : len(prefix)] = torch.tensor(prefix, dtype=torch.int32)
        return [scores.to(probs), sizes.to(probs.device), labels.to(probs.device)]


def _prefix_beam_search(steps: List[List[float]], blank: int, width: int) -> List[Tuple[Tuple[int, ...], float]]:
    """Returns prefixes with their log probabilities in descending order of probability."""
    impossible = -math.inf
    # For each prefix, the log probabilities of the paths that end in a blank and of those that end in its last label.
    beam: Dict[Tuple[int, ...], Tuple[float, float]] = {(): (0.0, impossible)}
    for step in steps:
        grown: Dict[Tuple[int, ...], List[float]] = defaultdict(lambda: [impossible, impossible])
        for prefix, (in_blank, in_label) in beam.items():
            either = _log_add(in_blank, in_label)
            for label, score in enumerate(step):
                if label == blank:
                    grown[prefix][0] = _log_add(grown[prefix][0], either + score)
                elif prefix and prefix[-1] == label:
                    grown[prefix][1] = _log_add(grown[prefix][1], in_label + score)
                    longer = prefix + (label,)
                    grown[longer][1] = _log_add(grown[longer][1], in_blank + score)
                else:
                    longer = prefix + (label,)
                    grown[longer][1] = _log_add(grown[longer][1], either + score)
        best = sorted(grown, key=lambda prefix: -_log_add(*grown[prefix]))[:width]
        beam = {prefix: (grown[prefix][0], grown[prefix][1]) for prefix in best}
    return [(prefix, _log_add(*scores)) for prefix, scores in beam.items()]


def _log_add(left: float, right: float) -> float:
    """Returns log(exp(left) + exp(right))."""
    high, low = max(left, right), min(left, right)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))
