# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The configuration tree: order of precedence, what is refused, and what every named configuration holds."""

import ast
from pathlib import Path

import pytest

import config as configuration
from common.errors import EXIT_USAGE, Refusal
from config import get_config, keys_of, named_configs, origins
from planning.geometry import configured_layers

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("configs", "dataset", "models", "planning", "reports", "training")
RECIPES_1K = [
    name for name in named_configs() if "22K_PRETRAIN" not in name and name.split("_")[1] not in ("DEMO", "PHOTOS")
]


def refusal(*args, **kwargs) -> str:
    with pytest.raises(Refusal) as caught:
        get_config(*args, **kwargs)
    assert caught.value.code == EXIT_USAGE
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_precedence_is_named_configuration_then_opts_then_flags():
    assert get_config().MODEL.DROP_PATH_RATE == 0.1
    assert get_config("SWIN_BASE").MODEL.DROP_PATH_RATE == 0.5
    assert get_config("SWIN_BASE", ["MODEL.DROP_PATH_RATE", "0.4"]).MODEL.DROP_PATH_RATE == 0.4
    flags = [("MODEL.DROP_PATH_RATE", 0.3)]
    assert get_config("SWIN_BASE", ["MODEL.DROP_PATH_RATE", "0.4"], flags).MODEL.DROP_PATH_RATE == 0.3


def test_configuration_is_frozen():
    with pytest.raises(AttributeError):
        get_config("SWIN_TINY").SEED = 1


@pytest.mark.parametrize("name", named_configs())
def test_named_configuration_survives_dump_and_reload(name):
    config = get_config(name)
    assert get_config(saved=config.dump()) == config


@pytest.mark.parametrize("name", RECIPES_1K)
def test_recipe_for_1k_has_global_batch_1024(name):
    config = get_config(name)
    assert config.DATA.BATCH_SIZE * config.TRAIN.ACCUMULATION_STEPS * config.IPU.REPLICAS == 1024


@pytest.mark.parametrize(
    "name, drop_path",
    [
        ("SWIN_TINY", 0.2),
        ("SWIN_SMALL", 0.3),
        ("SWIN_BASE", 0.5),
        ("SWIN_BASE_384", 0.5),
        ("SWIN_LARGE_224_22K_FINETUNE_1K_FP16_POD16", 0.2),
        ("SWIN_LARGE_384_22K_FINETUNE_1K", 0.2),
        ("SWIN_TINY_22K_PRETRAIN", 0.1),
        ("SWIN_SMALL_22K_PRETRAIN", 0.2),
        ("SWIN_BASE_22K_PRETRAIN", 0.2),
        ("SWIN_LARGE_22K_PRETRAIN", 0.2),
    ],
)
def test_drop_path_is_the_papers(name, drop_path):
    assert get_config(name).MODEL.DROP_PATH_RATE == drop_path


@pytest.mark.parametrize(
    "name, width, depths, heads, window, size",
    [
        ("SWIN_TINY", 96, [2, 2, 6, 2], [3, 6, 12, 24], 7, 224),
        ("SWIN_SMALL", 96, [2, 2, 18, 2], [3, 6, 12, 24], 7, 224),
        ("SWIN_BASE", 128, [2, 2, 18, 2], [4, 8, 16, 32], 7, 224),
        ("SWIN_BASE_384", 128, [2, 2, 18, 2], [4, 8, 16, 32], 12, 384),
        ("SWIN_LARGE_384_22K_FINETUNE_1K", 192, [2, 2, 18, 2], [6, 12, 24, 48], 12, 384),
    ],
)
def test_architecture_is_the_papers(name, width, depths, heads, window, size):
    config = get_config(name)
    swin = config.MODEL.SWIN
    assert (swin.EMBED_DIM, swin.DEPTHS, swin.NUM_HEADS, swin.WINDOW_SIZE, config.DATA.IMG_SIZE) == (
        width,
        depths,
        heads,
        window,
        size,
    )


@pytest.mark.parametrize("name", [name for name in named_configs() if "FINETUNE" in name or name.endswith("384")])
def test_fine_tuning_recipe_is_the_official_one(name):
    train = get_config(name).TRAIN
    assert (train.EPOCHS, train.WARMUP_EPOCHS, train.WEIGHT_DECAY) == (30, 5, 1e-8)
    assert (train.BASE_LR, train.WARMUP_LR, train.MIN_LR) == (2e-5, 2e-8, 2e-7)
    assert get_config(name).TEST.CROP == ("384" not in name)


@pytest.mark.parametrize("name", [name for name in named_configs() if name.endswith("22K_PRETRAIN")])
def test_pretraining_recipe_is_the_official_one(name):
    config = get_config(name)
    train = config.TRAIN
    decay = 0.1 if config.MODEL.TYPE == "swinv2" else 0.05
    assert (train.EPOCHS, train.WARMUP_EPOCHS, train.WEIGHT_DECAY) == (90, 5, decay)
    assert (train.BASE_LR, train.WARMUP_LR, train.MIN_LR) == (1.25e-4, 1.25e-7, 1.25e-6)
    assert config.DATA.BATCH_SIZE * train.ACCUMULATION_STEPS * config.IPU.REPLICAS == 4096


def test_official_configuration_of_swin_v2_loads_unchanged(tmp_path):
    path = tmp_path / "swinv2_base_patch4_window12to24_192to384_22kto1k_ft.yaml"
    path.write_text(
        "DATA:\n  IMG_SIZE: 384\nMODEL:\n  TYPE: swinv2\n  NAME: fine\n  DROP_PATH_RATE: 0.2\n  SWINV2:\n"
        "    EMBED_DIM: 128\n    DEPTHS: [ 2, 2, 18, 2 ]\n    NUM_HEADS: [ 4, 8, 16, 32 ]\n    WINDOW_SIZE: 24\n"
        "    PRETRAINED_WINDOW_SIZES: [ 12, 12, 12, 6 ]\nTRAIN:\n  WEIGHT_DECAY: 1e-8\nTEST:\n  CROP: False\n"
    )
    layers = configured_layers(get_config(str(path)))
    assert [(layer.window[0], layer.pretrained_window[0]) for layer in layers] == [
        (24, 12),
        (24, 12),
        (24, 12),
        (12, 6),
    ]


@pytest.mark.parametrize(
    "opts, said",
    [
        (
            ["MODEL.SWINV2.NUM_HEADS", "[5, 6, 12, 24]"],
            "MODEL.SWINV2 at DATA.IMG_SIZE 256: layer 0: the width 96 is not divisible by 5 heads",
        ),
        (["MODEL.SWINV2.PRETRAINED_WINDOW_SIZES", "[8, 8]"], "differ in length"),
        (["MODEL.SWINV2.PRETRAINED_WINDOW_SIZES", "[8, 8, 8, -1]"], "MODEL.SWINV2.PRETRAINED_WINDOW_SIZES -1"),
        (["MODEL.SWINV2.DEPTHS", "[]"], "MODEL.SWINV2.DEPTHS is empty"),
    ],
)
def test_contradictions_of_swin_v2_name_their_section(opts, said):
    assert said in refusal("SWINV2_TINY_WINDOW8_256", opts)


def test_named_configurations_are_what_the_strict_loader_reads():
    text = configuration.NAMED_CONFIGS.read_text(encoding="utf-8")
    named = configuration._named()
    assert named == configuration.parse(text, "named") and list(named) == named_configs()
    for name in named:
        get_config(name).dump()
    assert configuration._named() == configuration.parse(text, "named")  # nobody changed what is kept
    with pytest.raises(Refusal, match="duplicate key 'A'"):
        configuration.parse("A: 1\nA: 2", "named", configuration._load_own)


def test_inherited_configuration_keeps_every_field_it_does_not_name():
    parent, child = get_config("SWIN_TINY"), get_config("SWIN_TINY_FP16")
    different = {key for key in keys_of(parent) if config_value(parent, key) != config_value(child, key)}
    assert different == {"MODEL.PRECISION", "TRAIN.LOSS_SCALING"}


def config_value(config, key):
    for part in key.split("."):
        config = config[part]
    return config


def test_every_key_is_read_somewhere():
    """Walks the tree: a key counts as read when some module takes it by attribute from a section of its name."""
    read = set()
    for path in [*ROOT.glob("*.py"), *(path for room in ROOMS for path in ROOT.glob(f"{room}/*.py"))]:
        if path.name in ("config.py", "checks.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):
                read.add(node.attr)
    unread = [key for key in keys_of(configuration.defaults()) if key.split(".")[-1] not in read]
    assert unread == []


def test_mistyped_key_names_the_nearest():
    assert "did you mean TRAIN.EPOCHS?" in refusal("SWIN_TINY", ["TRAIN.EPOCS", "3"])


def test_beginning_of_a_key_names_one_that_goes_on():
    assert "did you mean TRAIN.EMA_DECAY?" in refusal("SWIN_TINY", ["TRAIN.EMA", "0.9"])


def test_mistyped_name_names_the_nearest():
    assert "did you mean SWIN_TINY?" in refusal("SWIN_TINNY")
    assert "did you mean SWIN_TINY?" in refusal("swin_tiny")


def test_empty_name_is_not_the_defaults():
    assert "neither a .yaml file nor a name" in refusal("")


@pytest.mark.parametrize(
    "opts, said",
    [
        (["TRAIN.EPOCHS"], "no value"),
        (["TRAIN.EPOCHS", "3.5"], "int"),
        (["TRAIN.EPOCHS", "-5"], "out of range"),
        (["DATA.BATCH_SIZE", "0"], "out of range"),
        (["TRAIN.BASE_LR", "1e400"], "out of range"),
        (["TRAIN.WARMUP_EPOCHS", "300"], "WARMUP_EPOCHS"),
        (["AUG.SCALE", "[0.9, 0.1]"], "minimum must come first"),
        (["DATA.IMG_SIZE", "223"], "223"),
        (["DATA.IMG_SIZE", "[224, 224, 3]"], "DATA.IMG_SIZE"),
        (["MODEL.SWIN.WINDOW_SIZE", "9"], "window"),
        (["MODEL.SWIN.NUM_HEADS", "[3, 6, 12, 25]"], "25"),
        (["MODEL.SWIN.DEPTHS", "[2, 2, 6]"], "differ in length"),
        (["MODEL.PRECISION", "16.33"], "16.33"),
        (["IPU.LAYERS_PER_IPU", "[2, 3, 5, 3]"], "13"),
        (["IPU.MAPPING", "[0, 1]"], "MAPPING"),
        (["TRAIN.ACCUMULATION_STEPS", "6"], "at least 7"),
        (["TRAIN.OPTIMIZER.NAME", "adagrad"], "adamw"),
        (["TRAIN.OPTIMIZER.BETAS", "[0.9]"], "1 values"),
        (["DATA.MEAN", "[a, b, c]"], "DATA.MEAN"),
        (["DATA.IMG_SIZE", "[224.0, 224]"], "DATA.IMG_SIZE holds 224.0: expected integers"),
        (["MODEL.SWIN.DEPTHS", "[2, 2, 6, 2.5]"], "MODEL.SWIN.DEPTHS holds 2.5: expected integers"),
        (["MODEL.SWIN.DEPTHS", "[]"], "MODEL.SWIN.DEPTHS is empty"),
        (["TRAIN.FREEZE", "5"], "TRAIN.FREEZE 5 is out of range: the model has 4 layers"),
        (["TRAIN.FREEZE", "[1]"], "expected patterns of parameter names"),
        (["TRAIN.LAYER_DECAY", "1.1"], "out of range"),
        (["AUG.SCALE", "[1.0, 0.08]"], "AUG.SCALE [1.0, 0.08]: the minimum"),
        (["AUG.CUTMIX_MINMAX", "[0.8, 0.2]"], "the minimum"),
        (["MODEL", "swin"], "MODEL is a section of keys"),
        (["IPU.AVAILABLE_MEMORY_PROPORTION", "[0.2, 0.2]"], "2 values: give one, or one for each of the 4"),
        (["IPU.AVAILABLE_MEMORY_PROPORTION", "[0.2, 0.2, 0.2, 1.5]"], "1.5 is out of range"),
        (["IPU.PARTIALS", "half"], "which MODEL.PRECISION 32.32 does not have"),
        (["IPU.SHARDING_MIN_ELEMENTS", "0"], "out of range"),
        (["IPU.POPART.OUTER_FRAGMENT_FOR", "speed"], "memory, cycles"),
        (["IPU.POPART.OUTER_FRAGMENT_EXCLUDED", "[0.5]"], "expected integers"),
        (["IPU.POPART.PATTERNS", "['-Tied Gather']"], "'-Tied Gather'"),
        (["IPU.LAYERS_PER_IPU", "['auto']"], "IPU.LAYERS_PER_IPU holds 'auto': expected numbers"),
        (["DATA.IMG_SIZE", "['224', '224']"], "DATA.IMG_SIZE holds '224': expected numbers"),
        (["DATA.MEAN", "[None, 0.5, 0.5]"], "DATA.MEAN holds None: expected numbers"),
        (["TRAIN.CLASS_WEIGHTS", "['balanced']"], "TRAIN.CLASS_WEIGHTS holds 'balanced': expected numbers"),
    ],
)
def test_contradiction_or_value_out_of_range_is_refused(opts, said):
    assert said in refusal("SWIN_TINY", opts)


@pytest.mark.parametrize("name, known", [("half", "16.16"), ("float", "32.32"), ("16.32", "16.32"), ("mix", "mix")])
def test_precision_aliases(name, known):
    assert get_config("SWIN_TINY", ["MODEL.PRECISION", name]).MODEL.PRECISION == known


def test_numbers_of_yaml_that_look_like_text_are_numbers(tmp_path):
    text = "TRAIN: {WEIGHT_DECAY: 1e-8, BASE_LR: 2e-05}\nAUG: {MIXUP: 1}\nMODEL: {PRECISION: 16.16}"
    path = write(tmp_path, "a.yaml", text)
    config = get_config(path)
    assert (config.TRAIN.WEIGHT_DECAY, config.TRAIN.BASE_LR, config.AUG.MIXUP) == (1e-8, 2e-5, 1.0)
    assert config.MODEL.PRECISION == "16.16"


def test_file_in_the_form_of_the_official_repository_loads(tmp_path):
    path = write(
        tmp_path,
        "swin_large_patch4_window12_384_22kto1k_finetune.yaml",
        """
DATA:
  IMG_SIZE: 384
  DATASET: imagenet22K
MODEL:
  TYPE: swin
  NAME: swin_large_patch4_window12_384_22kto1k_finetune
  SWIN:
    EMBED_DIM: 192
    DEPTHS: [ 2, 2, 18, 2 ]
    NUM_HEADS: [ 6, 12, 24, 48 ]
    WINDOW_SIZE: 12
TRAIN:
  EPOCHS: 30
  WARMUP_EPOCHS: 5
  WEIGHT_DECAY: 1e-8
  BASE_LR: 2e-05
  WARMUP_LR: 2e-08
  MIN_LR: 2e-07
TEST:
  CROP: False
""",
    )
    config = get_config(path)
    assert config.MODEL.SWIN.WINDOW_SIZE == 12 and config.TRAIN.MIN_LR == 2e-7 and config.TEST.CROP is False


def test_base_file_is_merged_first_and_deeply(tmp_path):
    write(tmp_path, "base.yaml", "TRAIN: {EPOCHS: 90, BASE_LR: 0.1}")
    config = get_config(write(tmp_path, "child.yaml", "BASE: ['base.yaml']\nTRAIN: {EPOCHS: 100}"))
    assert (config.TRAIN.EPOCHS, config.TRAIN.BASE_LR) == (100, 0.1)


def test_base_of_a_file_may_be_a_named_configuration(tmp_path):
    path = write(tmp_path, "mine.yaml", "BASE: SWIN_PHOTOS\nTRAIN: {EPOCHS: 7}")
    assert get_config(path) == get_config("SWIN_PHOTOS", ["TRAIN.EPOCHS", "7"])
    assert origins(path)["IPU.LAYERS_PER_IPU"] == "configs.yaml: SWIN_TINY"


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "not a configuration"),
        ("- 1", "not a configuration"),
        ("TRAIN: 3", "TRAIN"),
        ("TRAIN: {EPOCHS: 3", "not a configuration"),
        ("TRAIN: {EPOCHS: 30, EPOCHS: 40}", "duplicate"),
        ("a: &x [1]\nb: *x", "aliases"),
        ("TRAIN: !!python/object/apply:os.system ['true']", "not a configuration"),
        ("TRAIN: {EPOCHS: !!python/name:os.system }", "not a configuration"),
        ("BASE: ['a.yaml']", "circular"),
        ("BASE: ['../b.yaml']", "inside"),
        ("BASE: ['evil.py']", ".yaml file"),
        ("BASE: SWIN_PHOTO", "or a name in configs.yaml (did you mean SWIN_PHOTOS"),
        ("[" * 3000, "not a configuration"),
    ],
)
def test_bad_yaml_is_refused_as_data(tmp_path, text, said):
    assert said in refusal(write(tmp_path, "a.yaml", text))


def test_missing_file_is_refused(tmp_path):
    assert "cannot be read" in refusal(str(tmp_path / "none.yaml"))
