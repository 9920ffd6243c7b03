# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Configuration -> the model compiled by PopTorch, with its stages, precision and loss."""

import contextlib
from typing import Any, ContextManager, Dict, Optional, Tuple, Type, Union, overload

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

import accelerator
from common.errors import Refusal
from common.logs import logger
from planning.geometry import architecture, configured_classes, configured_layers
from planning.placement import pipeline_stages

from . import kernels
from .compiling import CompiledNetwork, check_compiler, is_watched
from .fused_attention import FusedLayer, fused_is_faster
from .host_blocks import HostLayer
from .losses import ClassificationLoss
from .pipeline import annotate
from .swin_transformer import BlockStyle, LayerNorm, SwinTransformer
from .swin_transformer_v2 import SwinTransformerV2


class SwinClassifier(SwinTransformer):
    """The configured Swin Transformer, with input normalisation, precision and loss.

    Parameter names are those of SwinTransformer. MODEL.PRECISION 16.16 has weights and activations in float16; 16.32
    keeps weights in float32 and casts them where they are used; mix uses torch.autocast.
    """

    compiled: Optional[CompiledNetwork] = None  # what runs the network; None: the modules
    fused_attention: Optional[bool] = None  # of `choose_attention`
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, config: CfgNode, num_classes: int):
        swin, precision = architecture(config), config.MODEL.PRECISION
        super().__init__(
            img_size=config.DATA.IMG_SIZE,
            patch_size=swin.PATCH_SIZE,
            in_chans=swin.IN_CHANS,
            num_classes=num_classes,
            embed_dim=swin.EMBED_DIM,
            depths=swin.DEPTHS,
            num_heads=swin.NUM_HEADS,
            window_size=swin.WINDOW_SIZE,
            mlp_ratio=swin.MLP_RATIO,
            qkv_bias=swin.QKV_BIAS,
            drop_rate=config.MODEL.DROP_RATE,
            attn_drop_rate=config.MODEL.ATTN_DROP_RATE,
            drop_path_rate=config.MODEL.DROP_PATH_RATE,
            norm_layer=LayerNorm if precision == "16.32" else nn.LayerNorm,
            ape=swin.APE,
            patch_norm=swin.PATCH_NORM,
            use_checkpoint=config.TRAIN.USE_CHECKPOINT and not accelerator.is_ipu(),
            **self.own_arguments(swin),
        )
        if precision == "16.16":
            self.half()
        self._activations = torch.float16 if precision.startswith("16.") else torch.float32
        self._autocasts = precision == "mix"
        self._flips = config.TEST.FLIP
        self.loss = ClassificationLoss(config, num_classes)
        for name, values in (("pixel_mean", config.DATA.MEAN), ("pixel_std", config.DATA.STD)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)  # float32, even in 16.16

    @staticmethod
    def own_arguments(swin: CfgNode) -> Dict[str, Any]:
        """The arguments that only this generation of Swin takes, from its section of the configuration."""
        return {"qk_scale": swin.QK_SCALE}

    @overload
    def forward(self, images: Tensor) -> Tensor: ...

    @overload
    def forward(self, images: Tensor, targets: Tensor) -> Tuple[Tensor, Tensor]: ...

    def forward(self, images: Tensor, targets: Optional[Tensor] = None) -> Union[Tensor, Tuple[Tensor, Tensor]]:
        """Classifies a micro-batch.

        Args:
            images: (B, C, H, W), normalised, or uint8.
            targets: class indices (B,), or probabilities (B, num_classes) from mixup.

        Returns:
            Logits (B, num_classes) in float32; with targets also the mean loss, marked for PopTorch to differentiate.
            Without targets and with TEST.FLIP, the mean of the logits of the images and of their mirror images.
        """
        images = self.normalised(images)
        if targets is None and self._flips:
            images = torch.cat([images, images.flip(-1)])  # the stages of a pipeline run once
        with self.autocast():
            logits = self._network(images).float()
        if targets is None:
            return logits.view(2, -1, logits.shape[1]).mean(0) if self._flips else logits
        return logits, accelerator.poptorch().identity_loss(self.loss(logits, targets), "mean")

    def _network(self, images: Tensor) -> Tensor:
        """The logits of normalised images."""
        if self.compiled is None or is_watched():
            return super().forward(images)
        return self.compiled(self, images)

    def normalised(self, images: Tensor) -> Tensor:
        """The images in the precision of the activations; uint8 images are normalised first."""
        if images.dtype == torch.uint8:
            images = (images.float() / 255 - self.pixel_mean) / self.pixel_std
        return images.to(self._activations)

    def autocast(self) -> ContextManager[Any]:
        """The context of the forward pass on the selected device; while poptorch_host traces, tensors are on "ipu"."""
        if not self._autocasts:
            return contextlib.nullcontext()
        device = accelerator.device_type()
        return torch.autocast(device, accelerator.autocast_dtype(device))


class SwinV2Classifier(SwinClassifier, SwinTransformerV2):
    """The same for Swin V2."""

    @staticmethod
    def own_arguments(swin: CfgNode) -> Dict[str, Any]:
        """As of the base class."""
        return {"pretrained_window_sizes": swin.PRETRAINED_WINDOW_SIZES}


class HostSwinClassifier(SwinClassifier):
    """The same for Swin V1 on a CPU, where it runs faster; see host_blocks.py."""

    layer_type = HostLayer


class FusedSwinClassifier(SwinClassifier):
    """The same for Swin V1 on a GPU whose fused attention is faster; see fused_attention.py."""

    layer_type = FusedLayer


MODELS = {"swin": SwinClassifier, "swinv2": SwinV2Classifier}  # by MODEL.TYPE


def choose_attention(config: CfgNode, saved: Optional[bool] = None) -> Optional[bool]:
    """Whether a GPU uses PyTorch's fused attention; None if there is no choice.

    The two implementations round differently, and a measurement of nearly equal times may go either way. So a run
    measures only once: when it is resumed, all its processes use the choice that was `saved`.
    """
    if accelerator.selected().device != "gpu" or config.TRAIN.COMPILE or not _has_variants(config):
        return None
    if saved is None:
        return fused_is_faster(*_attention_of(config))
    logger.info("attention: %s, as chosen when the run started", "fused" if saved else "plain")
    return saved


def _has_variants(config: CfgNode) -> bool:
    """Whether blocks for CPUs, or fused attention, can take the place of ordinary operations."""
    swin = config.MODEL
    return swin.TYPE == "swin" and swin.PRECISION in ("32.32", "mix") and not (swin.DROP_RATE or swin.ATTN_DROP_RATE)


def fastest(config: CfgNode, fused: Optional[bool] = None) -> Type[SwinClassifier]:
    """The fastest class for the configured model on this device; all give the same results up to rounding.

    Args:
        fused: of `choose_attention`.
    """
    swin, on_cpu = config.MODEL, accelerator.selected().device == "cpu"
    if config.TRAIN.COMPILE:
        logger.info("blocks: ordinary operations of PyTorch, under torch.compile")
        if on_cpu and _has_variants(config):
            logger.warning("TRAIN.COMPILE replaces the blocks for CPUs, which are faster: leave --compile out")
        return MODELS[swin.TYPE]
    if on_cpu and _has_variants(config):
        between = "operations of PyTorch" if kernels.library() is None else "compiled kernels"
        logger.info(
            "blocks: for CPUs, a few samples at a time, without those dropped by stochastic depth; %s between products",
            between,
        )
        return HostSwinClassifier
    logger.info("blocks: ordinary operations of PyTorch")
    return FusedSwinClassifier if fused else MODELS[swin.TYPE]


def _attention_of(config: CfgNode) -> Tuple[Any, ...]:
    """The arguments of `fused_is_faster` for a model on a GPU."""
    swin = architecture(config)
    style = BlockStyle(swin.MLP_RATIO, swin.QKV_BIAS, swin.QK_SCALE, 0.0, 0.0, nn.LayerNorm)
    dtype = accelerator.autocast_dtype("cuda") if config.MODEL.PRECISION == "mix" else torch.float32
    return configured_layers(config), style, config.DATA.BATCH_SIZE, dtype, "cuda"


def build_pipeline(
    config: CfgNode, num_classes: Optional[int] = None, training: bool = True, fused: Optional[bool] = None
) -> SwinClassifier:
    """Builds the configured model and marks the stages of its pipeline.

    Args:
        config: a checked configuration.
        num_classes: number of classes; None: from the configuration or its data set.
        training: whether to mark the outputs that IPU.RECOMPUTATION keeps for the backward pass.
        fused: result of `choose_attention`; None: calls it here.

    Raises:
        Refusal: for a precision not supported by the accelerator, and for TRAIN.COMPILE if torch.compile does not work.
        ValueError: for sizes or stages that do not match.
    """
    if config.MODEL.PRECISION == "mix" and accelerator.is_ipu():
        raise Refusal("MODEL.PRECISION mix is torch.autocast, which IPUs do not support: use 16.16, 16.32 or 32.32")
    if config.MODEL.TF32:
        accelerator.use_tf32()
    on_gpu = accelerator.selected().device == "gpu" and config.MODEL.PRECISION == "mix"
    accelerator.scale_gradients(on_gpu and accelerator.autocast_dtype("cuda") == torch.float16)
    if config.TRAIN.COMPILE:
        check_compiler()
    classes = configured_classes(config) if num_classes is None else num_classes
    if config.TRAIN.USE_CHECKPOINT and accelerator.is_ipu():
        logger.warning("TRAIN.USE_CHECKPOINT has no effect on IPUs, where IPU.RECOMPUTATION decides")
    fused = choose_attention(config) if fused is None else fused
    model = fastest(config, fused)(config, classes)
    model.fused_attention = fused
    if config.TRAIN.COMPILE:
        model.compiled = CompiledNetwork()
        accelerator.keep_micro_batches_apart(model)
    annotate(model, pipeline_stages(config), recompute=training and config.IPU.RECOMPUTATION)
    return model
