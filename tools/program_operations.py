# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Host implementations of the custom operations of the programs in programs.yml (POPTORCH_HOST_OPERATIONS)."""

import torch
from poptorch_host import custom_ops


@custom_ops.implement("RemapCE", domain="ai.graphcore")
def remap(inputs, attributes):
    """Identity: the device operation changes the layout on tiles only."""
    return [inputs[0]]


@custom_ops.implement("ExpMovAvg", domain="com.acme")
def moving_average(inputs, attributes):
    """Updates the second input in place: kept * average + (1 - kept) * source."""
    source, average, kept = inputs
    with torch.no_grad():
        average.lerp_(source.to(average.dtype), 1 - kept.flatten()[0].item())
    return [average]


@custom_ops.implement("LeakyRelu", domain="custom.ops")
def leaky_relu(inputs, attributes):
    return [torch.nn.functional.leaky_relu(inputs[0], attributes["alpha"])]


@custom_ops.implement("Ctc", domain="ai.graphcore")
def ctc(inputs, attributes):
    """CTC loss; the second output, the gradient that a device computes, is not used on a host."""
    log_probs, targets, input_lengths, target_lengths = inputs
    loss = torch.nn.functional.ctc_loss(
        log_probs.float(),
        targets.long(),
        input_lengths.long(),
        target_lengths.long(),
        attributes["blank"],
        attributes["reduction"].lower(),
        zero_infinity=True,
    )
    return [loss.to(log_probs.dtype), torch.zeros_like(log_probs)]


@custom_ops.implement("CopyTensor", domain="ai.graphcore")
def copy_tensor(inputs, attributes):
    return [inputs[0].clone()]


@custom_ops.implement("Nms", domain="ai.graphcore")
def suppress(inputs, attributes):
    """Suppresses boxes of the same class that overlap.

    Inputs: scores (batch, boxes, classes) and corners (batch, boxes, 4). Outputs: indices, scores, corners and classes
    of the kept boxes, best first, filled up with -1, 0, 0 and the largest int32; and the number of kept boxes.
    """
    from torchvision.ops import batched_nms

    scores, boxes = inputs
    batch, count, classes = scores.shape
    size = attributes["numDetections"]
    indices = torch.full((batch, size), -1, dtype=torch.long)
    kinds = torch.full((batch, size), torch.iinfo(torch.int32).max, dtype=torch.int32)
    kept_scores, corners = scores.new_zeros(batch, size), boxes.new_zeros(batch, size, 4)
    number = torch.zeros(batch, dtype=torch.int32)
    for sample in range(batch):
        flat = scores[sample].flatten().float()
        [chosen] = torch.nonzero(flat > attributes["scoreThreshold"], as_tuple=True)
        owners, labels = torch.div(chosen, classes, rounding_mode="floor"), chosen % classes
        kept = batched_nms(boxes[sample, owners].float(), flat[chosen], labels, attributes["threshold"])[:size]
        end = number[sample] = len(kept)
        indices[sample, :end], kinds[sample, :end] = owners[kept], labels[kept].int()
        kept_scores[sample, :end], corners[sample, :end] = (
            scores[sample].flatten()[chosen[kept]],
            boxes[sample, owners[kept]],
        )
    return [indices, kept_scores, corners, kinds, number]
