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
