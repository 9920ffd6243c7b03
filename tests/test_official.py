# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""What users of other trainers bring: configurations of the official program, and flags by other names."""

import shlex

import pytest
import yaml

import train_swin
from common.errors import EXIT_USAGE, Refusal
from config import defaults, get_config, keys_of, keys_without_meaning
from configs import official
from training.arguments import build_config, overrides, parse_training, parse_validation

# A whole configuration as the official program writes it beside its checkpoints, for Swin-T.
DUMP = """
AMP_ENABLE: true
AMP_OPT_LEVEL: ''
AUG: {AUTO_AUGMENT: rand-m9-mstd0.5-inc1, COLOR_JITTER: 0.4, CUTMIX: 1.0, CUTMIX_MINMAX: null, MIXUP: 0.8,
  MIXUP_MODE: batch, MIXUP_PROB: 1.0, MIXUP_SWITCH_PROB: 0.5, RECOUNT: 1, REMODE: pixel, REPROB: 0.25}
BASE: ['']
DATA: {BATCH_SIZE: 128, CACHE_MODE: part, DATASET: imagenet, DATA_PATH: imagenet, IMG_SIZE: 224,
  INTERPOLATION: bicubic, MASK_PATCH_SIZE: 32, MASK_RATIO: 0.6, NUM_WORKERS: 8, PIN_MEMORY: true, ZIP_MODE: false}
ENABLE_AMP: false
EVAL_MODE: false
FUSED_LAYERNORM: false
FUSED_WINDOW_PROCESS: false
LOCAL_RANK: 0
MODEL:
  DROP_PATH_RATE: 0.2
  DROP_RATE: 0.0
  LABEL_SMOOTHING: 0.1
  NAME: swin_tiny_patch4_window7_224
  NUM_CLASSES: 1000
  PRETRAINED: ''
  RESUME: ''
  SIMMIM: {NORM_TARGET: {ENABLE: false, PATCH_SIZE: 47}}
  SWIN: {APE: false, DEPTHS: [2, 2, 6, 2], EMBED_DIM: 96, IN_CHANS: 3, MLP_RATIO: 4.0, NUM_HEADS: [3, 6, 12, 24],
    PATCH_NORM: true, PATCH_SIZE: 4, QKV_BIAS: true, QK_SCALE: null, WINDOW_SIZE: 7}
  SWINV2: {APE: false, DEPTHS: [2, 2, 6, 2], EMBED_DIM: 96, IN_CHANS: 3, MLP_RATIO: 4.0, NUM_HEADS: [3, 6, 12, 24],
    PATCH_NORM: true, PATCH_SIZE: 4, PRETRAINED_WINDOW_SIZES: [0, 0, 0, 0], QKV_BIAS: true, WINDOW_SIZE: 7}
  SWIN_MLP: {APE: false, DEPTHS: [2, 2, 6, 2], WINDOW_SIZE: 7}
  SWIN_MOE: {AUX_LOSS_WEIGHT: 0.01, MOE_BLOCKS: [[-1], [-1], [-1], [-1]], TOP_VALUE: 1}
  TYPE: swin
OUTPUT: output/swin_tiny_patch4_window7_224/default
PRINT_FREQ: 10
SAVE_FREQ: 1
SEED: 0
TAG: default
TEST: {CROP: true, SEQUENTIAL: false, SHUFFLE: false}
THROUGHPUT_MODE: false
TRAIN:
  ACCUMULATION_STEPS: 16
  AUTO_RESUME: true
  BASE_LR: 0.001
  CLIP_GRAD: 5.0
  EPOCHS: 300
  LAYER_DECAY: 1.0
  LR_SCHEDULER: {DECAY_EPOCHS: 30, DECAY_RATE: 0.1, GAMMA: 0.1, MULTISTEPS: [], NAME: cosine, WARMUP_PREFIX: true}
  MIN_LR: 1.0e-05
  MOE: {SAVE_MASTER: false}
  OPTIMIZER: {BETAS: [0.9, 0.999], EPS: 1.0e-08, MOMENTUM: 0.9, NAME: adamw}
  START_EPOCH: 0
  USE_CHECKPOINT: false
  WARMUP_EPOCHS: 20
  WARMUP_LR: 1.0e-06
  WEIGHT_DECAY: 0.05
"""
# Where this program's defaults differ from the official ones, and why config.py says so.
OTHER_DEFAULTS = {"DATA.BATCH_SIZE", "TRAIN.ACCUMULATION_STEPS", "MODEL.NUM_CLASSES", "TAG"}


def written(folder, text, name="official.yaml"):
    (folder / name).write_text(text)
    return str(folder / name)


def refusal(call, *args):
    with pytest.raises(Refusal) as caught:
        call(*args)
    assert caught.value.code == EXIT_USAGE and "\n" not in str(caught.value)
    return str(caught.value)


def test_whole_configuration_of_the_official_program_is_taken(tmp_path):
    config = get_config(written(tmp_path, DUMP))
    assert (config.TRAIN.BASE_LR, config.DATA.BATCH_SIZE, config.MODEL.NUM_CLASSES) == (1e-3, 128, 1000)


def test_fine_tuning_of_simmim_is_taken(tmp_path):
    text = (
        "MODEL: {TYPE: swin, NAME: simmim_finetune, DROP_PATH_RATE: 0.1}\nTRAIN: {BASE_LR: 1.25e-3, LAYER_DECAY: 0.8}"
    )
    config = get_config(written(tmp_path, f"{text}\nSAVE_FREQ: 5\nTAG: simmim_finetune__swin_base\n"))
    assert (config.TRAIN.LAYER_DECAY, config.TRAIN.BASE_LR) == (0.8, 1.25e-3)


def test_keys_without_meaning_are_listed_in_one_line(tmp_path):
    path = written(tmp_path, DUMP)
    named = keys_without_meaning(path)
    assert {"AMP_ENABLE", "SAVE_FREQ", "MODEL.SWIN_MOE.TOP_VALUE", "TRAIN.MOE.SAVE_MASTER"} <= set(named)
    assert not set(named) & set(keys_of(defaults()))
    assert keys_without_meaning("SWIN_TINY") == [] == keys_without_meaning(None)


def test_log_of_a_command_has_that_line(tmp_path, capsys):
    path = written(tmp_path, "PRINT_FREQ: 10\nSAVE_FREQ: 2\n")
    small = ["IPU.LAYERS_PER_IPU", "[12]", "MODEL.SWIN.EMBED_DIM", "24"]
    train_swin.main(["--cfg", path, "--compile-only", "--device", "cpu", "--opts", *small])
    lines = [line for line in capsys.readouterr().out.splitlines() if "without meaning here" in line]
    assert len(lines) == 1 and lines[0].endswith("PRINT_FREQ, SAVE_FREQ")


@pytest.mark.parametrize(
    "changes, said",
    [
        ("MODEL: {TYPE: swin_mlp}", ["swin_mlp (Swin-MLP)"]),
        ("MODEL: {TYPE: swin_moe}\nTRAIN: {START_EPOCH: 2}", ["Swin-MoE", "TRAIN.START_EPOCH 2"]),
        ("MODEL: {NAME: simmim_pretrain__swin_base__img192_window6__800ep}", ["SimMIM"]),
        ("TRAIN: {START_EPOCH: 3}", ["TRAIN.START_EPOCH 3"]),
    ],
)
def test_keys_that_would_change_the_result_are_refused_together(changes, said, tmp_path):
    message = refusal(get_config, written(tmp_path, changes))
    assert all(words in message for words in [*said, "MODEL.TYPE is swin"]) and "did you mean" not in message


def test_unknown_keys_stay_refused(tmp_path):
    assert "unknown key SAVE_FREQUENCY" in refusal(get_config, written(tmp_path, "SAVE_FREQUENCY: 2"))
    assert "did you mean" not in refusal(get_config, written(tmp_path, "MODEL: {SWIN_X: {APE: false}}"))


def test_defaults_are_the_official_ones_but_for_those_that_are_named():
    theirs = dict(official.flat(yaml.safe_load(DUMP)))
    # the dump is of Swin-T, with rates scaled to its global batch
    theirs.update({"MODEL.DROP_PATH_RATE": 0.1, "OUTPUT": "", "DATA.DATA_PATH": ""})
    theirs.update({"TRAIN.BASE_LR": 5e-4, "TRAIN.WARMUP_LR": 5e-7, "TRAIN.MIN_LR": 5e-6})
    ours = dict(official.flat(defaults()))
    differing = {key for key, value in theirs.items() if key in ours and ours[key] != value}
    assert differing == OTHER_DEFAULTS


# Command lines as the README pages and scripts of other trainers have them.
COMMAND_LINES = {
    "train.py --lr 1e-3": "TRAIN.BASE_LR",
    "train.py --lr=1e-3": "TRAIN.BASE_LR",
    "train.py --weight-decay .05": "TRAIN.WEIGHT_DECAY",
    "train.py --wd 0.05": "TRAIN.WEIGHT_DECAY",
    "train.py --drop-path 0.2": "MODEL.DROP_PATH_RATE",
    "train.py --img-size 224": "DATA.IMG_SIZE",
    "train.py --input-size 3 224 224": "DATA.IMG_SIZE",
    "train.py --warmup-epochs 5": "TRAIN.WARMUP_EPOCHS",
    "train.py --workers 8": "--num-workers",
    "train.py -j 8": "--num-workers",
    "train.py -b 64": "--batch-size",
    "train.py --model swin_tiny_patch4_window7_224": "--cfg",
    "train.py --model-ema": "TRAIN.EMA_DECAY",
    "train.py --model-ema-decay 0.9998": "TRAIN.EMA_DECAY",
    "train.py --opt adamw": "TRAIN.OPTIMIZER.NAME",
    "train.py --sched cosine": "TRAIN.LR_SCHEDULER.NAME",
    "train.py --reprob 0.25": "AUG.REPROB",
    "train.py --aa rand-m9-mstd0.5-inc1": "AUG.AUTO_AUGMENT",
    "train.py --mixup 0.8": "AUG.MIXUP",
    "train.py --smoothing 0.1": "MODEL.LABEL_SMOOTHING",
    "train.py --channels-last": "no meaning",
    "train.py --grad-checkpointing": "--use-checkpoint",
    "train.py --torchcompile": "--compile",
    "run_image_classification.py --torch_compile": "--compile",
    "main.py --amp-opt-level O0": "--precision",
    "main.py --disable_amp": "--precision 32.32",
    "main.py --fused_window_process": "CUDA kernel",
    "main.py --optim adamw": "TRAIN.OPTIMIZER.NAME",
    "main.py --batch_size 64": "--batch-size",
    "run_image_classification.py --learning_rate 2e-5": "TRAIN.BASE_LR",
    "run_image_classification.py --num_train_epochs 5": "--epochs",
    "run_image_classification.py --per_device_train_batch_size 8": "--batch-size",
    "run_image_classification.py --output_dir out": "--output",
    "run_image_classification.py --fp16": "--precision 16.16",
    "run_image_classification.py --do_train": "what the program does",
    "train.py --weights swin.pth": "--pretrained-model",
    "val.py --half": "--precision 16.16",
    "val.py --imgsz 224": "DATA.IMG_SIZE",
    "train.py --replication-factor 4": "--replicas",
    "train.py --gradient-accumulation 8": "--ga",
    "train.py --device-iterations 4": "IPU.DEVICE_ITERATIONS",
}


@pytest.mark.parametrize("line", list(COMMAND_LINES))
def test_flag_of_another_trainer_gets_what_has_its_meaning(line):
    message = refusal(parse_training, ["--cfg", "SWIN_TINY", *shlex.split(line)[1:]])
    assert COMMAND_LINES[line] in message and "did you mean" not in message


def test_every_flag_and_key_of_the_table_exists(capsys):
    with pytest.raises(SystemExit):
        parse_training(["--help"])
    usage = capsys.readouterr().out
    for target in official.FLAGS.values():
        name = target.split()[0]
        assert f"{name} " in usage if name.startswith("--") else name in set(keys_of(defaults())), name


@pytest.mark.parametrize("flag", ["--local-rank", "--local_rank"])
def test_rank_that_the_launcher_passes_is_accepted(flag):
    args = parse_training(["--cfg", "SWIN_TINY", f"{flag}=1"])
    assert overrides(args) == [] and build_config(args) == get_config("SWIN_TINY")


def test_number_of_classes_has_a_flag_everywhere():
    for parse, more in ((parse_training, []), (parse_validation, ["--checkpoint", "a"])):
        assert build_config(parse(["--cfg", "SWIN_TINY", *more, "--num-classes", "7"])).MODEL.NUM_CLASSES == 7


@pytest.mark.parametrize("text", ["{[]: 1}", "[" * 2000, "1" * 6000, "{1, [2]}"])
def test_value_that_no_parser_takes_is_one_line(text):
    assert "DATA.IMG_SIZE" in refusal(get_config, "SWIN_TINY", ["DATA.IMG_SIZE", text])
