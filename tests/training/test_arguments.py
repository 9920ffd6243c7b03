# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The flags: each has an effect on the configuration, and nothing unknown is let through."""

import pytest

from common.errors import EXIT_USAGE, Refusal
from training import arguments
from training.arguments import KEY_FLAGS, build_config, parse_prediction, parse_training, parse_validation

VALUES = {
    "DATA.DATA_PATH": "somewhere",
    "OUTPUT": "out",
    "TAG": "a",
    "MODEL.PRETRAINED": "w.pth",
    "MODEL.RESUME": "r.pth",
    "MODEL.NUM_CLASSES": 12,
    "DATA.BATCH_SIZE": 2,
    "TRAIN.ACCUMULATION_STEPS": 9,
    "IPU.REPLICAS": 3,
    "DATA.NUM_WORKERS": 1,
    "MODEL.PRECISION": "16.32",
    "IPU.AVAILABLE_MEMORY_PROPORTION": 0.25,
    "TRAIN.EPOCHS": 77,
    "TRAIN.TRAINING_STEPS": 5,
    "DATA.CACHE_MODE": "full",
    "SEED": 4,
}


def lookup(config, key):
    for part in key.split("."):
        config = config[part]
    return config


@pytest.mark.parametrize("flag, name", [(flag, name) for flag in KEY_FLAGS for name in flag.names])
def test_flag_sets_its_key(flag, name):
    value = True if flag.kind is bool else VALUES[flag.key]
    argv = [name] if flag.kind is bool else [name, str(value)]
    argv += ["--zip"] if flag.key == "DATA.CACHE_MODE" else []  # without which it would have no effect
    assert lookup(build_config(parse_training(["--cfg", "SWIN_TINY"])), flag.key) != value
    assert lookup(build_config(parse_training(["--cfg", "SWIN_TINY", *argv])), flag.key) == value


@pytest.mark.parametrize(
    "mistyped, meant",
    [
        ("--batchsize", "--batch-size"),
        ("--ouput", "--output"),
        ("--epoch=3", "--epochs"),
        ("--pretraind", "--pretrained"),
    ],
)
def test_mistyped_flag_names_the_nearest(mistyped, meant):
    with pytest.raises(Refusal, match=f"did you mean {meant}") as caught:
        parse_training(["--cfg", "SWIN_TINY", mistyped])
    assert caught.value.code == EXIT_USAGE


@pytest.mark.parametrize(
    "argv", [["--cfg", "SWIN_TINY", "--epochs", "three"], ["--cfg", "SWIN_TINY", "--device", "tpu"], []]
)
def test_bad_command_line_is_refused(argv):
    with pytest.raises(Refusal):
        parse_training(argv)


@pytest.mark.parametrize(
    "commands", [["--plan", "--eval"], ["--throughput", "--compile-only"], ["--plan-output", "a.png", "--throughput"]]
)
def test_two_commands_at_once_are_refused(commands):
    with pytest.raises(Refusal, match="give only one of them"):
        parse_training(["--cfg", "SWIN_TINY", *commands])


@pytest.mark.parametrize(
    "parse, needed",
    [(parse_training, ["--cfg", "SWIN_TINY"]), (parse_validation, ["--cfg", "SWIN_TINY", "--checkpoint", "a.pth"])],
)
def test_flags_without_effect_are_refused(parse, needed):
    with pytest.raises(Refusal, match="--data-path and --synthetic"):
        parse([*needed, "--synthetic", "--data-path", "d"])
    with pytest.raises(Refusal, match="--cache-mode applies to zip files"):
        build_config(parse([*needed, "--cache-mode", "full"]))
    assert build_config(parse([*needed, "--cache-mode", "full", "--opts", "DATA.ZIP_MODE", "True"])).DATA.ZIP_MODE


def test_validation_needs_a_checkpoint_and_no_output():
    with pytest.raises(Refusal, match="--checkpoint"):
        parse_validation([])
    assert parse_validation(["--checkpoint", "a.pth"]).cfg is None


@pytest.mark.parametrize(
    "argv, said",
    [
        (["--checkpoint", "a.pth"], "IMAGE"),
        (["photo.jpg"], "--checkpoint"),
        (["--checkpoint", "a.pth", "photo.jpg", "--data-path", "d"], "--data-path"),
        (["--checkpoint", "a.pth", "photo.jpg", "--top", "0"], "--top 0"),
    ],
)
def test_prediction_needs_a_checkpoint_and_images_and_takes_no_data_set(argv, said):
    with pytest.raises(Refusal, match=said):
        parse_prediction(argv)


def test_synthetic_data_is_asked_for_by_flag():
    config = build_config(parse_training(["--cfg", "SWIN_TINY", "--synthetic"]))
    assert (config.DATA.DATASET, config.DATA.GENERATED) == ("generated", "host")
    config = build_config(parse_training(["--cfg", "SWIN_TINY", "--synthetic", "device"]))
    assert (config.DATA.DATASET, config.DATA.GENERATED) == ("generated", "device")


@pytest.mark.parametrize("name, classes", [("SWIN_TINY", 1000), ("SWIN_BASE_22K_PRETRAIN", 21841)])
def test_synthetic_data_has_the_classes_of_the_data_that_it_stands_for(name, classes):
    assert build_config(parse_training(["--cfg", name, "--synthetic"])).MODEL.NUM_CLASSES == classes
    given = ["--cfg", name, "--synthetic", "--opts", "MODEL.NUM_CLASSES", "7"]
    assert build_config(parse_training(given)).MODEL.NUM_CLASSES == 7


@pytest.mark.parametrize(
    "argv, dataset",
    [
        (["--compile-only"], "generated"),
        (["--throughput"], "generated"),
        (["--compile-only", "--data-path", "d"], "imagenet"),
        ([], "imagenet"),
    ],
)
def test_commands_that_need_no_data_generate_it(argv, dataset):
    assert build_config(parse_training(["--cfg", "SWIN_TINY", *argv])).DATA.DATASET == dataset


@pytest.mark.parametrize("parse", [parse_training, parse_validation])
def test_help_shows_what_a_flag_takes_instead_of_its_key(parse, capsys):
    with pytest.raises(SystemExit):
        parse(["--help"])
    usage = capsys.readouterr().out.split("\n\n")[0]
    assert "[--data-path FOLDER]" in usage and "[--batch-size N]" in usage
    assert not [flag.key for flag in KEY_FLAGS if f" {flag.key}]" in usage]


def test_keys_of_flags_are_tested():
    assert {flag.key for flag in KEY_FLAGS if flag.kind is not bool} == set(VALUES)
    assert arguments.DEVICES == ("auto", "ipu", "gpu", "cpu")


def test_output_folder_of_the_run_that_saved_a_checkpoint_stays_behind():
    saved = build_config(parse_training(["--cfg", "SWIN_TINY", "--output", "out", "--tag", "a"])).dump()
    config = build_config(parse_validation(["--checkpoint", "out/a/best.pth"]), saved)
    assert (config.OUTPUT, config.TAG, config.MODEL.NAME) == ("", "", "swin_tiny_patch4_window7_224")


def test_opts_win_over_what_is_reset_of_the_run_that_saved_a_checkpoint():
    saved = build_config(parse_training(["--cfg", "SWIN_TINY", "--compile"])).dump()
    argv = ["--checkpoint", "out/best.pth"]
    assert build_config(parse_validation(argv), saved).TRAIN.COMPILE is False
    opts = ["--opts", "TRAIN.COMPILE", "True", "MODEL.PRETRAINED_EMA", "True"]
    config = build_config(parse_validation([*argv, *opts]), saved)
    assert config.TRAIN.COMPILE is True and config.MODEL.PRETRAINED_EMA is True


def test_two_results_in_one_file_are_refused_however_they_name_it():
    with pytest.raises(Refusal, match="given for two results"):
        parse_validation(["--checkpoint", "w.pth", "--predictions", "a.csv", "--confusion-matrix", "./a.csv"])
