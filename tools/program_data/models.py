# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Models with random weights."""

import ast
import importlib
import json
import re
import sys
from pathlib import Path
from typing import List, Tuple

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


def words(folder: str, file: str) -> None:
    """Adds the words of a file, such as the program, to a vocabulary that `model` wrote."""
    vocabulary = Path(folder) / "vocab.txt"
    known = vocabulary.read_text().splitlines()
    found = re.findall("[a-z]+", Path(file).read_text().lower())
    vocabulary.write_text("\n".join(dict.fromkeys([*known, *found])) + "\n")


def reader(folder: str, program: str, *settings: str) -> None:
    """Saves a small BERT that was trained on the questions and texts of a program until it gives the answers that the
    program asserts.

    Raises:
        ValueError: the answers were not learnt.
    """
    import torch
    import transformers

    torch.manual_seed(0)
    model(folder, "BertForQuestionAnswering", *settings)
    made = transformers.BertForQuestionAnswering.from_pretrained(folder)
    tokenizer = transformers.BertTokenizer.from_pretrained(folder)
    questions, texts, answers = exercise(program)
    encoded = tokenizer(questions, texts, padding=True, return_tensors="pt")
    spans = torch.tensor([place(ids, tokenizer.encode(a)[1:-1]) for ids, a in zip(encoded.input_ids.tolist(), answers)])
    optimizer = torch.optim.Adam(made.parameters(), lr=1e-3)
    for _ in range(300):
        made(**encoded, start_positions=spans[:, 0], end_positions=spans[:, 1]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    found = made.eval()(**encoded)
    if not torch.equal(torch.stack([found.start_logits.argmax(1), found.end_logits.argmax(1)], 1), spans):
        raise ValueError(f"{folder} has not learnt the answers of {program}")
    made.save_pretrained(folder)


def exercise(program: str) -> Tuple[List[str], List[str], List[str]]:
    """Returns the lists `questions` and `contexts` of a program, and the strings of its assertions."""
    body = ast.parse(Path(program).read_text()).body
    lists = {getattr(node.targets[0], "id", ""): node.value for node in body if isinstance(node, ast.Assign)}
    answers = [ast.literal_eval(node.test.comparators[0]) for node in body if isinstance(node, ast.Assert)]
    return ast.literal_eval(lists["questions"]), ast.literal_eval(lists["contexts"]), answers


def place(tokens: List[int], part: List[int]) -> Tuple[int, int]:
    """Returns the indices of the first and last token of the last occurrence of a part."""
    starts = [start for start in range(len(tokens)) if tokens[start : start + len(part)] == part]
    return starts[-1], starts[-1] + len(part) - 1


def letters(folder: str, *special: str) -> None:
    """Writes the files of a byte-level tokenizer, for a vocabulary of special tokens and the 256 bytes."""
    from transformers.models.gpt2.tokenization_gpt2 import bytes_to_unicode

    tokens = [*special, *bytes_to_unicode().values()]
    placed(f"{folder}/vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    placed(f"{folder}/merges.txt").write_text("#version: 0.2\n")


def state(file: str, module: str, name: str, *settings: str) -> None:
    """Saves the random weights of the model that a function or class NAME of a module makes.

    FILE:KEY saves a dictionary that has them under a key.
    """
    import torch

    sys.path.insert(0, "")  # the module may be one of the program
    values = {key: json.loads(value) for key, value in (setting.split("=", 1) for setting in settings)}
    weights = getattr(importlib.import_module(module), name)(**values).state_dict()
    path, _, key = file.partition(":")
    torch.save({key: weights} if key else weights, placed(path))


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
