# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The copies of weights on the device, and the wrapping of a model that is in training.

Imports `precision` and the modules below it, not `updating`. A torch.nn.Module enters; tensors on the device leave, and
are installed in the module while a call runs.
"""
