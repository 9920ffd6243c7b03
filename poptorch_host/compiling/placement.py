# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The IPU and stage of each operation of a program as log lines, with PopART's names for operations."""

import collections
from typing import Dict, Iterator, Tuple

from ..options import Options, PipelinedExecution, ShardedExecution
from .compiler import Compiled
from .tracing import first_stage, is_pipelined

# PopART's names where they differ from PyTorch's in more than case.
_NAMES = {
    "_softmax": "Softmax",
    "_log_softmax": "LogSoftmax",
    "addmm": "Gemm",
    "linear": "Gemm",
    **dict.fromkeys(("mm", "bmm", "mv", "dot", "matmul"), "MatMul"),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "convolution", "_convolution"), "Conv"),
    **dict.fromkeys(("max_pool1d", "max_pool2d", "max_pool3d", "max_pool2d_with_indices"), "MaxPool"),
    **dict.fromkeys(("avg_pool1d", "avg_pool2d", "avg_pool3d"), "AveragePool"),
    **dict.fromkeys(("batch_norm", "native_batch_norm"), "BatchNormalization"),
    **dict.fromkeys(("view", "reshape", "flatten", "_unsafe_view", "_reshape_alias"), "Reshape"),
    **dict.fromkeys(("t", "transpose", "permute"), "Transpose"),
    "cat": "Concat",
    "silu": "Swish",
}


def placement(compiled: Compiled, options: Options) -> Iterator[str]:
    """Yields a line on the pipeline, and one with the result name, IPU and stage of each operation in forward."""
    strategy = options._execution_strategy
    yield f"enablePipelining set to value {int(is_pipelined(strategy) and len(compiled.stages) > 1)}"
    mode = (
        "Sharded"
        if isinstance(strategy, ShardedExecution)
        else "Pipelined"
        if isinstance(strategy, PipelinedExecution)
        else "Phased"
    )
    seen: Dict[str, int] = collections.defaultdict(int)
    for index, stage in enumerate(compiled.stages, first_stage(strategy)):
        for operation in stage.run:
            scopes, name = popart_name(operation)
            result = f"{name}:0/{seen[scopes + name]}" if seen[scopes + name] else f"{name}:0"
            seen[scopes + name] += 1
            yield f"{operation} -> {scopes}{result} mode({mode}), ipu({stage.ipu}), stage({index})"


def popart_name(operation: str) -> Tuple[str, str]:
    """Returns the scopes and PopART's name of an operation: 'a/b/aten::log_softmax' -> ('a/b/', 'LogSoftmax')."""
    scopes, slash, kind = operation.rpartition("/")
    name = kind.split("::")[1].rstrip("_")
    return scopes + slash, _NAMES.get(name) or "".join(word.capitalize() for word in name.split("_"))
