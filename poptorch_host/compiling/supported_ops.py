# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The PyTorch operations that devices support: the list in data/supported_ops.txt, and rules for their arguments."""

import functools
from pathlib import Path
from typing import Any, Callable, Dict, FrozenSet, Optional, Tuple

import torch
from torch._subclasses.fake_tensor import DynamicOutputShapeException

from ..errors import Error

LIST = Path(__file__).resolve().parents[1] / "data" / "supported_ops.txt"

# Listed, but supported only for some arguments: the operations that these functions call are checked instead.
_DEPENDS_ON_FORM = {"where", "index", "__getitem__", "pad"}

_RECURRENCES = ("lstm", "gru", "rnn_tanh", "rnn_relu")

# Not listed, but decomposed by PyTorch into listed operations on a device without a kernel for them.
_EXPANDED = frozenset(
    f"aten::{name}"
    for name in """
    addr block_diag deg2rad dist pixel_unshuffle rad2deg rot90 select_scatter slice_scatter unsafe_split
    unsafe_split_with_sizes vdot
    """.split()
)

# Kernels on hosts, or newer than PyTorch 2.0.1, for operations that are decomposed on a device.
_HOST_KERNELS = frozenset(
    f"aten::{name}"
    for name in """
    _adaptive_avg_pool2d _adaptive_avg_pool3d _batch_norm_no_update _batch_norm_with_update _cudnn_rnn
    _fused_dropout _fused_sdp_choice _native_batch_norm_legit _native_batch_norm_legit_no_training _safe_softmax
    _scaled_dot_product_cudnn_attention _scaled_dot_product_efficient_attention _scaled_dot_product_flash_attention
    _scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_fused_attention_overrideable
    _thnn_fused_gru_cell _thnn_fused_lstm_cell cudnn_batch_norm cudnn_convolution cudnn_convolution_transpose ldexp
    miopen_batch_norm mkldnn_linear mkldnn_rnn_layer
    """.split()
)


@functools.lru_cache(maxsize=None)
def supported() -> FrozenSet[str]:
    """Returns the names of the supported operations, such as 'aten::add'."""
    lines = LIST.read_text(encoding="utf-8").splitlines()
    return frozenset(line.split("#")[0].strip() for line in lines if line.strip() and not line.startswith("#"))


def takes_function(name: str) -> bool:
    """Returns whether a PyTorch function is supported as a whole, whatever operations it calls on a host."""
    return name not in _DEPENDS_ON_FORM and takes_operation(f"aten::{name}")


def takes_operation(name: str) -> bool:
    """Returns whether an operation, or the out-of-place form of an in-place operation, is supported."""
    plain = name[:-1] if name.endswith("_") and name not in supported() else name
    return plain in supported() or plain in _EXPANDED or plain in _HOST_KERNELS or not name.startswith("aten::")


class MaskedShapeError(Error, DynamicOutputShapeException):
    """An operation reads by a boolean mask: PopTorch's inference of shapes has no shape for that, and raises this."""

    def __init__(self, func: Any) -> None:
        self.func = func
        self.message = f"{func} by a boolean mask has a shape that depends on data: use torch.where"
        self.args = (f"'poptorch_py_error': {self.message}",)


def selects_by_mask(name: str, args: Tuple[Any, ...]) -> bool:
    """Returns whether an operation indexes with a boolean mask, so that the shape of its result depends on data."""
    return name == "aten::index" and any(
        isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1]
    )


def one_hot_without_classes(name: str, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> bool:
    """Returns whether a call of one_hot infers the number of classes from data."""
    return name == "one_hot" and (args[1] if len(args) > 1 else kwargs.get("num_classes", -1)) == -1


def unsupported_recurrence(name: str, args: Tuple[Any, ...]) -> Optional[str]:
    """Returns the unsupported argument of a call of a recurrent network, in words; None if it is supported."""
    settings = [arg for arg in args if isinstance(arg, (bool, int, float))] if name in _RECURRENCES else []
    if len(settings) < 5:
        return None
    biased, layers, dropout, _, bidirectional = settings[:5]
    rules = [
        (layers == 1, f"{layers} layers: stack networks of one layer"),
        (dropout == 0 or name.startswith("rnn"), "dropout: apply it outside"),
        (not bidirectional or name.startswith("rnn"), "two directions: use two networks"),
        (biased or name == "gru", "no bias: leave bias=True"),
    ]
    return next((words for holds, words in rules if not holds), None)


def unsupported_embedding(name: str, kwargs: Dict[str, Any]) -> Optional[str]:
    """Returns the unsupported argument of a call of embedding or embedding_bag; None if it is supported."""
    options = ("max_norm", "scale_grad_by_freq", "sparse") if name in ("embedding", "embedding_bag") else ()
    return next((option for option in options if kwargs.get(option)), None)


def unsupported_form(name: str, args: Tuple[Any, ...]) -> Optional[str]:
    """Returns the unsupported argument of an operation, in words; None if it is supported."""
    rule = _FORMS.get(name)
    return None if rule is None else rule(args)


def _uneven_pooling(args: Tuple[Any, ...]) -> Optional[str]:
    data, size = args[0], tuple(args[1])
    given = tuple(data.shape[-len(size) :])
    if any(before % after for before, after in zip(given, size)):
        return f"an output of {list(size)} that does not divide the input's {list(given)}"
    return None


def _uneven_interpolation(args: Tuple[Any, ...]) -> Optional[str]:
    (height, width), (new_height, new_width) = args[0].shape[-2:], args[1]
    if new_height * width != new_width * height:
        return f"two scales, from {[height, width]} to {[new_height, new_width]}"
    by_factor = len(args) > 3 and args[3] is not None  # rather than by the size
    return "a factor that is no integer" if by_factor and new_height % height else None


def _aligned_corners(args: Tuple[Any, ...]) -> Optional[str]:
    return "align_corners=True" if args[2] else None


def _unbounded_count(args: Tuple[Any, ...]) -> Optional[str]:
    return None if len(args) > 2 and args[2] else "no minlength: shapes cannot depend on data"


_FORMS: Dict[str, Callable[[Tuple[Any, ...]], Optional[str]]] = {
    "aten::_adaptive_avg_pool2d": _uneven_pooling,
    "aten::_adaptive_avg_pool3d": _uneven_pooling,
    "aten::bincount": _unbounded_count,
    "aten::upsample_bilinear2d": _uneven_interpolation,
    "aten::upsample_bicubic2d": _aligned_corners,
}
