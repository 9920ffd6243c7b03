# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Models with random weights."""

import importlib
import json
import sys
from pathlib import Path

from .files import WORDS, placed


def model(folder: str, name: str, *settings: str) -> None:
    """Saves a transformers model with random weights, its configuration and a small WordPiece vocabulary."""
    import transformers

    values = {key: json.loads(value) for key, value in (setting.split("=", 1) for setting in settings)}
    made = getattr(transformers, name)
    made(made.config_class(**values)).save_pretrained(folder)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *"abcdefghijklmnopqrstuvwxyz0123456789.,?'"]
    vocabulary += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz0123456789"]
    (Path(folder) / "vocab.txt").write_text("\n".join(vocabulary) + "\n")


def state(file: str, module: str, name: str, *settings: str) -> None:
    """Saves the random weights of the model that a function or class NAME of a module makes."""
    import torch

    sys.path.insert(0, "")  # the module may be one of the program
    values = {key: json.loads(value) for key, value in (setting.split("=", 1) for setting in settings)}
    torch.save(getattr(importlib.import_module(module), name)(**values).state_dict(), placed(file))


def vqgan(folder: str, codes: str) -> None:
    """Saves a small VQGAN of taming-transformers for images of 256 x 256 pixels: config.yml and model.ckpt."""
    import torch
    import yaml
    from taming.models.vqgan import VQModel

    sizes = dict(double_z=False, z_channels=8, resolution=256, in_channels=3, out_ch=3, ch=32, ch_mult=[1, 1, 1, 1, 1])
    sizes.update(num_res_blocks=1, attn_resolutions=[16], dropout=0.0)
    loss = {"target": "taming.modules.losses.vqperceptual.DummyLoss"}
    params = dict(embed_dim=8, n_embed=int(codes), ddconfig=sizes, lossconfig=loss)
    description = {"model": {"target": "taming.models.vqgan.VQModel", "params": params}}
    placed(f"{folder}/config.yml").write_text(yaml.safe_dump(description))
    torch.save({"state_dict": VQModel(**params).state_dict()}, f"{folder}/model.ckpt")
