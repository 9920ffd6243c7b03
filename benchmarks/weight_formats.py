# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Compares our logits with those of other libraries on weights that models.convert wrote.

    python -m benchmarks.weight_formats --official ../Swin-Transformer

Random weights of each configuration are converted into every format. The table shows the largest difference between
our logits and those of the library that owns the format, and between ours before and after a round trip (0: bitwise
equal). Then every library classifies the same generated photograph with its own preprocessing. Requires
requirements-test.txt; --official takes a checkout of Microsoft's repository.
"""

import argparse
import importlib.util
import io
import tempfile
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor
from yacs.config import CfgNode

import predict
from config import get_config
from dataset.transforms import build_transform
from models import convert, exporting
from models.build import MODELS
from planning.geometry import architecture, configured_classes, image_size

Logits = Callable[[Tensor], Tensor]
Prepare = Callable[[Image.Image], Tensor]  # a photograph -> (1, 3, H, W)
TARGETS = ("microsoft", "timm", "huggingface", "safetensors", "onnx")
OFFICIAL = {"swin": ("swin_transformer", "SwinTransformer"), "swinv2": ("swin_transformer_v2", "SwinTransformerV2")}


def random_weights(config: CfgNode, path: Path) -> None:
    """Writes a checkpoint of random weights, scaled to logits of about 1, with its configuration."""
    torch.manual_seed(0)
    model = MODELS[config.MODEL.TYPE](config, configured_classes(config))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn_like(parameter) * (0.1 if parameter.ndim == 1 or "head" in name else 0.02))
    torch.save({"model": model.state_dict(), "config": config.dump(), "classes": []}, path)


def photograph() -> Image.Image:
    """Returns a generated picture of 500 x 375 pixels with smooth colours, edges and noise."""
    rows, columns = np.mgrid[0:375, 0:500].astype(np.float32)
    noise = np.random.default_rng(0).normal(0, 6, (375, 500, 3))
    waves = np.stack([np.sin(rows / 41) + np.cos(columns / 29), np.sin(columns / 53), np.cos(rows / 17)], 2)
    disc = ((rows - 180) ** 2 + (columns - 270) ** 2 < 110**2)[..., None] * np.float32(70)
    return Image.fromarray((110 + 45 * waves + disc + noise).clip(0, 255).astype(np.uint8))


def of_microsoft(config: CfgNode, path: Path, repository: Path) -> Tuple[Logits, Prepare]:
    """The official model; all weights but the computed tables must match."""
    module, name = OFFICIAL[config.MODEL.TYPE]
    spec = importlib.util.spec_from_file_location(f"official_{module}", repository / "models" / f"{module}.py")
    assert spec is not None and spec.loader is not None
    official = importlib.util.module_from_spec(spec)
    with redirect_stdout(io.StringIO()):  # it prints which optional kernels are missing
        spec.loader.exec_module(official)
    swin = architecture(config)
    arguments = {key.lower(): value for key, value in swin.items()}
    model = getattr(official, name)(
        img_size=config.DATA.IMG_SIZE, num_classes=configured_classes(config), **arguments
    ).eval()
    report = model.load_state_dict(torch.load(path, weights_only=True)["model"], strict=False)
    computed = ("relative_position_index", "attn_mask", "relative_coords_table")
    assert not report.unexpected_keys and all(key.endswith(computed) for key in report.missing_keys)
    transform = build_transform(config, training=False)  # the official transform is timm's, like ours
    return model, lambda picture: transform(picture)[None]


def of_timm(config: CfgNode, path: Path) -> Tuple[Logits, Prepare]:
    """timm's model and transform, read from the folder."""
    model = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    return model, lambda picture: transform(picture)[None]


def of_hugging_face(config: CfgNode, path: Path) -> Tuple[Logits, Prepare]:
    """transformers' model and image processor, read from the folder."""
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    model = AutoModelForImageClassification.from_pretrained(path).eval()
    processor = AutoImageProcessor.from_pretrained(path)
    return (
        lambda images: model(images).logits,
        lambda picture: torch.as_tensor(processor(picture, return_tensors="pt")["pixel_values"]),
    )


def of_onnx(config: CfgNode, path: Path) -> Tuple[Logits, Prepare]:
    """An onnxruntime session, with our transform."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path))
    transform = build_transform(config, training=False)
    return (
        lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0]),
        lambda picture: transform(picture)[None],
    )


def of_ours(config: CfgNode, path: Path) -> Tuple[Logits, Prepare]:
    """Our model with weights of any supported format."""
    with redirect_stdout(io.StringIO()):
        model = exporting.read(path, str(path.parent / "model.yaml")).model
    transform = build_transform(config, training=False)
    return model, lambda picture: transform(picture)[None]


def top(logits: Tensor, count: int = 3) -> str:
    """Formats the most likely classes with their probabilities."""
    shares, labels = logits.softmax(1)[0].topk(count)
    return ", ".join(f"{label} {share:.3%}" for label, share in zip(labels.tolist(), shares.tolist()))


def difference(model: Logits, other: Logits, images: Tensor) -> str:
    """Formats the largest absolute difference of the logits of two models."""
    largest = float((model(images) - other(images)).abs().max())
    return f"{largest:.0e}" if largest else "0"


def compare(config: CfgNode, folder: Path, official: Optional[Path]) -> Tuple[Dict[str, str], List[str]]:
    """Returns the table cells by format, and the predictions of the photograph."""
    source = folder / "best.pth"
    random_weights(config, source)
    (folder / "model.yaml").write_text(config.dump())
    images = torch.randn(2, 3, *image_size(config), generator=torch.Generator().manual_seed(1))
    ours, prepare = of_ours(config, source)
    picture = photograph()
    cells, lines = {}, [f"{'our model':<12} {top(ours(prepare(picture)))}"]
    programs: Dict[str, Any] = {"timm": of_timm, "huggingface": of_hugging_face, "onnx": of_onnx}
    if official is not None:
        programs["microsoft"] = lambda config, path: of_microsoft(config, path, official)
    for target in TARGETS:
        path = folder / target
        with redirect_stdout(io.StringIO()):
            convert.main([str(source), str(path), "--to", target])
        there = "-"
        if target in programs:
            model, own_prepare = programs[target](config, path)
            there = difference(model, ours, images)
            lines.append(f"{target:<12} {top(model(own_prepare(picture)))}")
        back = difference(of_ours(config, path)[0], ours, images)
        cells[target] = f"{there} / {back}"
    return cells, lines + predicted(picture, folder)


def predicted(picture: Image.Image, folder: Path) -> List[str]:
    """Returns the predictions of predict.py with the Hugging Face folder."""
    picture.save(folder / "photograph.png")
    said = folder / "predictions.txt"
    flags = ["--cfg", str(folder / "model.yaml"), "--device", "cpu", "--num-workers", "0", "--top", "3"]
    flags += ["--checkpoint", str(folder / "huggingface"), "--output", str(said)]
    predict.main([*flags, str(folder / "photograph.png")])
    return [f"{'predict.py':<12} {line.partition(': ')[2]}" for line in said.read_text().splitlines()]


def parse(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg", nargs="+", default=["SWIN_TINY", "SWINV2_TINY_WINDOW8_256"], help="configurations")
    parser.add_argument("--official", type=Path, metavar="FOLDER", help="a checkout of Microsoft's Swin-Transformer")
    return parser.parse_args(argv)


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Prints the table and the predictions of the photograph."""
    args = parse(argv)
    warnings.simplefilter("ignore")  # of other programs
    torch.set_grad_enabled(False)
    print("| largest difference of logits, from ours / to ours | " + " | ".join(TARGETS) + " |")
    print("|---" * (len(TARGETS) + 1) + "|", flush=True)
    said: List[str] = []
    for name in args.cfg:
        config = get_config(name, ["MODEL.PRECISION", "32.32"])
        with tempfile.TemporaryDirectory() as folder:
            cells, lines = compare(config, Path(folder), args.official)
        print(f"| {name} | " + " | ".join(cells[target] for target in TARGETS) + " |", flush=True)
        said += ["", f"{name}, one photograph:", *lines]
    print("\n".join(said))


if __name__ == "__main__":
    main()
