# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The configuration tree: defaults < named configuration or YAML file < --opts < flags; checked, then frozen.

Sections shared with the official Swin V1 repository keep its names and defaults, so its YAML files load unchanged.
Device settings are in the section IPU. Derived values (global batch size, scaled learning rate, number of classes) are
not written back: see common/launch.py.

Four defaults differ from the official ones: DATA.BATCH_SIZE and TRAIN.ACCUMULATION_STEPS, since the batch size is the
micro-batch size; MODEL.NUM_CLASSES, which comes from the data set; and TAG, which is empty. Two rules differ: images of
up to 32 pixels are cropped with padding only if AUG.SHIFT is set (officially 4), and DATA.INTERPOLATION nearest also
applies to evaluation, where the official program uses bilinear interpolation.
"""

import ast
import copy
import functools
import itertools
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple

import yaml
from yacs.config import CfgNode

from common.errors import Refusal
from common.files import read_regular
from configs import checks, official
from utils import nearest, one_line, reason

NAMED_CONFIGS = Path(__file__).resolve().parent / "configs" / "configs.yaml"
MAX_YAML_BYTES = 64 << 10  # PyYAML takes half a second for it; ours have 10 KiB
MAX_BASE_DEPTH = 8
MAX_BASE_FILES = 64  # in total
MAX_WHOLE = 2**63 - 1  # what fits into a tensor

# Keys that accept more types than that of their default.
ALTERNATIVE_TYPES: Dict[str, Tuple[type, ...]] = {
    "DATA.IMG_SIZE": (int, list),
    "MODEL.PRETRAINED_IMG_SIZE": (int, list),
    "MODEL.PRETRAINED_WINDOW_SIZE": (int, list),
    "MODEL.SWIN.WINDOW_SIZE": (int, list),
    "MODEL.SWINV2.WINDOW_SIZE": (int, list),
    "MODEL.SWIN.QK_SCALE": (float, type(None)),
    "AUG.CUTMIX_MINMAX": (list, type(None)),
    "TRAIN.FREEZE": (list, int),
    "TRAIN.CLASS_WEIGHTS": (str, list),
    "TRAIN.LOSS.TARGET_THRESHOLD": (float, type(None)),
    "TRAIN.LOSS.POSITIVE_WEIGHT": (float, type(None)),
    "IPU.LAYERS_PER_IPU": (list, str),
    "IPU.AVAILABLE_MEMORY_PROPORTION": (float, list),
}


def defaults() -> CfgNode:
    """A new tree with the default of every key: Swin-T on ImageNet-1k."""
    tree = CfgNode()
    for add_section in (_run, _data, _model, _training, _augmentation, _validation, _ipu):
        add_section(tree)
    return tree


def _run(tree: CfgNode) -> None:
    tree.OUTPUT = ""  # output folder of the run
    tree.TAG = ""  # subfolder of OUTPUT, to separate runs of the same configuration
    tree.SEED = 0
    tree.LOG_INTERVAL = 10  # weight updates between log lines; the last update of an epoch is always logged
    tree.REPORT = True  # write report.html at every epoch
    tree.TENSORBOARD = False  # also log to TensorBoard, in the folder tensorboard of OUTPUT
    tree.WANDB = False  # also log to Weights & Biases


def _data(tree: CfgNode) -> None:
    tree.DATA = CfgNode()
    tree.DATA.DATASET = "imagenet"  # imagenet: folders or zip; imagenet22K: map files; generated: random images
    tree.DATA.DATA_PATH = ""
    tree.DATA.IMG_SIZE = 224  # pixels; [height, width] for rectangles
    tree.DATA.BATCH_SIZE = 4  # micro-batch size
    tree.DATA.INTERPOLATION = "bicubic"  # bilinear, nearest, lanczos, hamming; random: bilinear or bicubic per crop
    tree.DATA.ZIP_MODE = False
    tree.DATA.CACHE_MODE = "part"  # caching in zip mode: no, full, part (the share of this process)
    tree.DATA.NUM_WORKERS = 8
    tree.DATA.LOADER = "auto"  # sync, async, rebatched; auto: async for an IPU, sync for the host
    tree.DATA.INPUT_DTYPE = "float"  # float: normalised on the host; uint8: normalised on the device
    tree.DATA.MEAN = [0.485, 0.456, 0.406]
    tree.DATA.STD = [0.229, 0.224, 0.225]
    tree.DATA.BAD_IMAGES = "skip"  # skip: replace and count them; fail: stop the run
    tree.DATA.ALLOW_EMPTY_CLASSES = False  # accept classes without images
    tree.DATA.BALANCED_SAMPLING = False  # draw every class equally often in an epoch, however many images it has
    tree.DATA.INDEX_CACHE = "auto"  # folder for file lists of large data sets; auto: the user's cache; empty: none
    tree.DATA.GENERATED = "host"  # where random images are generated: host, device


def _model(tree: CfgNode) -> None:
    tree.MODEL = CfgNode()
    tree.MODEL.TYPE = "swin"  # swin: the first generation; swinv2
    tree.MODEL.NAME = "swin_tiny_patch4_window7_224"
    tree.MODEL.NUM_CLASSES = 0  # 0: taken from the data set
    tree.MODEL.PRETRAINED = ""  # weights to start from
    tree.MODEL.PRETRAINED_EMA = False  # use the averaged weights (EMA) of the file; also in validation
    tree.MODEL.PRETRAINED_IMG_SIZE = 0  # image size of these weights, if the file does not say; 0: unknown
    tree.MODEL.PRETRAINED_WINDOW_SIZE = 0  # likewise their window size; 0: square, if the bias tables allow it
    tree.MODEL.RESUME = ""  # checkpoint to resume from
    tree.MODEL.DROP_RATE = 0.0
    tree.MODEL.ATTN_DROP_RATE = 0.0
    tree.MODEL.DROP_PATH_RATE = 0.1
    tree.MODEL.LABEL_SMOOTHING = 0.1
    tree.MODEL.PRECISION = "32.32"  # input.weights: 16.16, 16.32, 32.32; mix: autocast, host only
    tree.MODEL.TF32 = False  # allow TF32 in float32 products of a GPU: faster and less accurate
    tree.MODEL.SWIN = CfgNode()
    tree.MODEL.SWIN.PATCH_SIZE = 4
    tree.MODEL.SWIN.IN_CHANS = 3
    tree.MODEL.SWIN.EMBED_DIM = 96
    tree.MODEL.SWIN.DEPTHS = [2, 2, 6, 2]
    tree.MODEL.SWIN.NUM_HEADS = [3, 6, 12, 24]
    tree.MODEL.SWIN.WINDOW_SIZE = 7
    tree.MODEL.SWIN.MLP_RATIO = 4.0
    tree.MODEL.SWIN.QKV_BIAS = True
    tree.MODEL.SWIN.QK_SCALE = None
    tree.MODEL.SWIN.APE = False
    tree.MODEL.SWIN.PATCH_NORM = True
    tree.MODEL.SWINV2 = CfgNode()  # used if MODEL.TYPE is swinv2
    tree.MODEL.SWINV2.PATCH_SIZE = 4
    tree.MODEL.SWINV2.IN_CHANS = 3
    tree.MODEL.SWINV2.EMBED_DIM = 96
    tree.MODEL.SWINV2.DEPTHS = [2, 2, 6, 2]
    tree.MODEL.SWINV2.NUM_HEADS = [3, 6, 12, 24]
    tree.MODEL.SWINV2.WINDOW_SIZE = 7
    tree.MODEL.SWINV2.MLP_RATIO = 4.0
    tree.MODEL.SWINV2.QKV_BIAS = True
    tree.MODEL.SWINV2.APE = False
    tree.MODEL.SWINV2.PATCH_NORM = True
    tree.MODEL.SWINV2.PRETRAINED_WINDOW_SIZES = [0, 0, 0, 0]  # of each layer; 0: WINDOW_SIZE


def _training(tree: CfgNode) -> None:
    tree.TRAIN = CfgNode()
    tree.TRAIN.EPOCHS = 300
    tree.TRAIN.WARMUP_EPOCHS = 20
    tree.TRAIN.TRAINING_STEPS = 0  # maximum number of weight updates; 0: no limit
    tree.TRAIN.BASE_LR = 5e-4  # learning rates are for a global batch size of 512 and scale with it
    tree.TRAIN.WARMUP_LR = 5e-7
    tree.TRAIN.MIN_LR = 5e-6
    tree.TRAIN.WEIGHT_DECAY = 0.05
    tree.TRAIN.LAYER_DECAY = 1.0  # learning-rate factor from each layer to the one below; 1: the same for all
    tree.TRAIN.FREEZE = []  # frozen weights: patterns of names, such as "layers.0" or "*.bias"; n: layers below n
    tree.TRAIN.CLIP_GRAD = 5.0  # maximum global gradient norm; 0: no clipping
    tree.TRAIN.ACCUMULATION_STEPS = 64  # micro-batches per replica and weight update
    tree.TRAIN.AUTO_RESUME = True  # resume from the newest valid checkpoint in OUTPUT
    tree.TRAIN.USE_CHECKPOINT = False  # recompute blocks in the backward pass, to save memory; hosts only
    tree.TRAIN.COMPILE = False  # run the model under torch.compile, which takes a minute or more; hosts only
    tree.TRAIN.CHECKPOINT_STEPS = 0  # weight updates between checkpoints; 0: at the end of epochs only
    tree.TRAIN.SKIP_NONFINITE = 0  # consecutive non-finite updates to skip before the run stops; hosts only
    tree.TRAIN.KEEP = 0  # checkpoints to keep in addition to last, previous and best
    tree.TRAIN.MAX_FRUITLESS_RESTARTS = 10  # starts without a new checkpoint before giving up; 0: no limit
    tree.TRAIN.EARLY_STOPPING = 0  # stop after this many epochs without a better top-1 accuracy; 0: never
    tree.TRAIN.EMA_DECAY = 0.0  # decay of the averaged weights (EMA), such as 0.9999; 0: no averaging
    tree.TRAIN.EMA_WARMUP = False  # the decay grows from 0 with the updates, as 1 - update ** (-2 / 3)
    tree.TRAIN.LOSS_SCALING = 1.0
    tree.TRAIN.AUTO_LOSS_SCALING = False
    tree.TRAIN.CLASS_WEIGHTS = ""  # of the loss: a number per class, or balanced: inversely proportional to its images
    tree.TRAIN.LOSS = CfgNode()
    tree.TRAIN.LOSS.NAME = "cross_entropy"  # bce: binary cross-entropy of each class
    tree.TRAIN.LOSS.TARGET_THRESHOLD = None  # for bce: targets above it count as 1, others as 0
    tree.TRAIN.LOSS.SUM_CLASSES = False  # for bce: sum over classes instead of averaging
    tree.TRAIN.LOSS.POSITIVE_WEIGHT = None  # for bce: weight of the terms of positive classes
    tree.TRAIN.LR_SCHEDULER = CfgNode()
    tree.TRAIN.LR_SCHEDULER.NAME = "cosine"  # cosine, linear, step, multistep
    tree.TRAIN.LR_SCHEDULER.DECAY_EPOCHS = 30  # for step
    tree.TRAIN.LR_SCHEDULER.DECAY_RATE = 0.1  # for step
    tree.TRAIN.LR_SCHEDULER.MULTISTEPS = []  # for multistep: epochs at which the learning rate is multiplied by GAMMA
    tree.TRAIN.LR_SCHEDULER.GAMMA = 0.1  # for multistep
    tree.TRAIN.LR_SCHEDULER.WARMUP_PREFIX = True  # start the cosine after the warm-up instead of at update 0
    tree.TRAIN.OPTIMIZER = CfgNode()
    tree.TRAIN.OPTIMIZER.NAME = "adamw"  # adamw, adam, sgd, lamb, rmsprop
    tree.TRAIN.OPTIMIZER.EPS = 1e-8
    tree.TRAIN.OPTIMIZER.BETAS = [0.9, 0.999]
    tree.TRAIN.OPTIMIZER.MOMENTUM = 0.9  # for sgd and rmsprop
    tree.TRAIN.OPTIMIZER.ALPHA = 0.99  # for rmsprop: decay of the mean of squared gradients


def _augmentation(tree: CfgNode) -> None:
    tree.AUG = CfgNode()
    tree.AUG.COLOR_JITTER = 0.4
    tree.AUG.AUTO_AUGMENT = "rand-m9-mstd0.5-inc1"  # empty: none
    tree.AUG.REPROB = 0.25  # random erasing
    tree.AUG.REMODE = "pixel"
    tree.AUG.RECOUNT = 1
    tree.AUG.MIXUP = 0.8
    tree.AUG.CUTMIX = 1.0
    tree.AUG.CUTMIX_MINMAX = None
    tree.AUG.MIXUP_PROB = 1.0
    tree.AUG.MIXUP_SWITCH_PROB = 0.5
    tree.AUG.MIXUP_MODE = "batch"  # batch, pair, elem
    tree.AUG.SCALE = [0.08, 1.0]  # range of the area of the random crop
    tree.AUG.RATIO = [0.75, 4.0 / 3.0]
    tree.AUG.HFLIP = 0.5
    tree.AUG.REPEATS = 1  # repeated augmentation: consecutive, differently augmented copies of a sample
    tree.AUG.SHIFT = 0  # maximum random shift in pixels, instead of the random crop; 0: off


def _validation(tree: CfgNode) -> None:
    tree.TEST = CfgNode()
    tree.TEST.CROP = True  # resize to a larger size and crop the centre
    tree.TEST.FLIP = False  # average the logits of an image and its mirror image, at twice the cost
    tree.TEST.BATCH_SIZE = 0  # micro-batch size for validation; 0: DATA.BATCH_SIZE
    tree.TEST.INTERVAL = 1  # epochs between validations


def _ipu(tree: CfgNode) -> None:
    tree.IPU = CfgNode()
    tree.IPU.LAYERS_PER_IPU = "auto"  # Swin blocks of each pipeline stage; x.5: the next stage starts at an MLP
    tree.IPU.IPUS_PER_REPLICA = 0  # stages for LAYERS_PER_IPU auto; 0: the fewest that fit in memory
    tree.IPU.MAPPING = []  # IPU of each stage; one entry more than LAYERS_PER_IPU: the head is a separate stage
    tree.IPU.REPLICAS = 4  # data-parallel replicas over all processes
    tree.IPU.DEVICE_ITERATIONS = 1  # weight updates per call
    tree.IPU.INFERENCE_DEVICE_ITERATIONS = 0  # micro-batches per replica and validation call, at least one per stage
    tree.IPU.AVAILABLE_MEMORY_PROPORTION = 0.2  # share of tile memory for temporaries of products; a list: per IPU
    tree.IPU.REPLICATED_TENSOR_SHARDING = False  # shard optimizer state over replicas
    tree.IPU.SHARDING_MIN_ELEMENTS = 1024  # smaller tensors, such as biases, are not sharded
    tree.IPU.OPTIMIZER_STATE_OFF_CHIP = False  # keep optimizer state in host memory between updates
    tree.IPU.STOCHASTIC_ROUNDING = True  # of half-precision weights; float weights do not need it
    tree.IPU.PARTIALS = "float"  # accumulation in half-precision products; half: faster, Graphcore's choice for 16.16
    tree.IPU.RECOMPUTATION = True  # keep only block outputs for the backward pass, recompute the rest
    tree.IPU.EXECUTABLE_CACHE = "auto"  # folder of compiled programs; auto: OUTPUT/executables on IPUs; empty: none
    tree.IPU.ROUND_UP_IPUS = True  # reserve the next power of two of IPUs
    tree.IPU.ENGINE = CfgNode()  # options of Poplar's engine
    tree.IPU.ENGINE.AUTOLOADER = True  # IPUs load their programs themselves (opt.useAutoloader)
    tree.IPU.ENGINE.INDEPENDENT_REPLICAS = True  # transfers do not synchronise replicas
    tree.IPU.ENGINE.PROFILE_FOLDER = ""  # PopVision profiles, also of programs that run out of memory; empty: none
    tree.IPU.POPART = CfgNode()  # defaults are those of Graphcore's Swin and ViT applications
    tree.IPU.POPART.PREFETCH_DEPTH = 3  # batches that the device buffers ahead
    tree.IPU.POPART.MERGE_COLLECTIVES = True  # with replicated tensor sharding: fewer, larger collectives
    tree.IPU.POPART.OUTER_FRAGMENT = True  # overlap the weight updates of different IPUs; False: as PopTorch does
    tree.IPU.POPART.OUTER_FRAGMENT_FOR = "memory"  # optimize the overlap for memory or cycles
    tree.IPU.POPART.OUTER_FRAGMENT_EXCLUDED = []  # IPUs excluded from the overlap
    tree.IPU.POPART.COPY_JUST_IN_TIME = True  # copy the inputs of repeated subgraphs when they are needed
    tree.IPU.POPART.EARLY_GRADIENT_CONSUMERS = True  # schedule gradient consumers other than weight updates early
    tree.IPU.POPART.PATTERNS = ["TiedGather", "TiedGatherAccumulate", "UpdateInplacePrioritiesForIpu"]  # -NAME: off


def get_config(
    name_or_path: Optional[str] = None,
    opts: Sequence[str] = (),
    overrides: Sequence[Tuple[str, Any]] = (),
    saved: Optional[str] = None,
) -> CfgNode:
    """Builds the frozen configuration of a run.

    Args:
        name_or_path: a name in configs/configs.yaml, or the path of a .yaml or .yml file; None: the defaults.
        opts: alternating keys and values, as given to --opts.
        overrides: (key, value) pairs from flags, with the highest precedence.
        saved: text of `CfgNode.dump`, as stored in checkpoints; replaces the defaults.

    Raises:
        Refusal: for unknown names and keys, wrong types, values out of range, and contradictions.
    """
    tree = defaults()
    for key, value, source in _settings(tree, name_or_path, opts, overrides, saved):
        _assign(tree, key, value, source)
    tree.MODEL.PRECISION = checks.precision(tree.MODEL.PRECISION)
    checks.check(tree)
    tree.freeze()
    return tree


def origins(
    name_or_path: Optional[str] = None,
    opts: Sequence[str] = (),
    overrides: Sequence[Tuple[str, Any]] = (),
    saved: Optional[str] = None,
) -> Dict[str, str]:
    """What set each key of `get_config`: default, checkpoint, the name of a configuration or file, --opts, or flag."""
    tree = defaults()
    found = dict.fromkeys(keys_of(tree), "default")
    found.update({key: source for key, _, source in _settings(tree, name_or_path, opts, overrides, saved)})
    return found


def _settings(
    tree: CfgNode,
    name_or_path: Optional[str],
    opts: Sequence[str],
    overrides: Sequence[Tuple[str, Any]],
    saved: Optional[str],
) -> Iterator[Tuple[str, Any, str]]:
    """(key, value, source) of every setting on top of the defaults in `tree`, in ascending order of precedence."""
    if saved:
        yield from _entries(tree, parse(saved, "checkpoint"), "checkpoint")
    if name_or_path is not None:
        known = set(keys_of(tree))
        for source, values in _layers(name_or_path):
            official.check_supported(values, source)
            yield from _entries(tree, official.stripped(values, known), source)
    if len(opts) % 2:
        raise Refusal(f"--opts takes pairs of KEY VALUE: {opts[-1]!r} has no value")
    yield from ((key, text, "--opts") for key, text in zip(opts[0::2], opts[1::2]))
    yield from ((key, value, "flag") for key, value in overrides)


def keys_without_meaning(name_or_path: Optional[str]) -> List[str]:
    """The keys of a configuration that only concern the official program and have no meaning here."""
    known = set(keys_of(defaults()))
    layers = _layers(name_or_path) if name_or_path is not None else []
    return [key for _, values in layers for key in official.without_meaning(values, known)]


def named_configs() -> List[str]:
    """The names of the configurations in configs/configs.yaml."""
    return list(_named())


def keys_of(tree: CfgNode, prefix: str = "") -> Iterable[str]:
    """Yields the dotted names of all keys of the tree."""
    for key, value in tree.items():
        if isinstance(value, CfgNode):
            yield from keys_of(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _layers(name_or_path: str) -> List[Tuple[str, Dict[str, Any]]]:
    """(source, values) of a configuration and those it is based on, the deepest base first."""
    if Path(name_or_path).suffix in (".yaml", ".yml"):
        path = Path(name_or_path).resolve()
        layers = list(itertools.islice(_file_layers(path, path.parent, ()), MAX_BASE_FILES + 1))
        if len(layers) > MAX_BASE_FILES:
            raise Refusal(f"{path}: BASE leads to more than {MAX_BASE_FILES} files")
        return layers
    return _named_layers(name_or_path, ())


def _named_layers(name: str, seen: Tuple[str, ...]) -> List[Tuple[str, Dict[str, Any]]]:
    known = _named()
    if name not in known:
        raise Refusal(f"--cfg {name} is neither a .yaml file nor a name in {NAMED_CONFIGS.name}{nearest(name, known)}")
    if name in seen:
        raise Refusal(f"{NAMED_CONFIGS.name}: BASE of {name} is circular")
    values = copy.deepcopy(known[name])
    base = values.pop("BASE", None)
    below = _named_layers(base, seen + (name,)) if base else []
    return below + [(f"{NAMED_CONFIGS.name}: {name}", values)]


def _file_layers(path: Path, root: Path, seen: Tuple[Path, ...]) -> Iterator[Tuple[str, Dict[str, Any]]]:
    """Layers of a YAML file; BASE may name our configurations, and files in the folder of the first one or below it."""
    if path.suffix not in (".yaml", ".yml") or root not in path.parents:
        meant = nearest(path.name, _named())
        raise Refusal(f"BASE {path} must be a .yaml file inside {root}, or a name in {NAMED_CONFIGS.name}{meant}")
    if path in seen or len(seen) >= MAX_BASE_DEPTH:
        raise Refusal(f"{seen[0]}: BASE is circular or deeper than {MAX_BASE_DEPTH} files")
    values = dict(_read(path))
    bases = values.pop("BASE", None) or []
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise Refusal(f"{path}: BASE takes the name of a file, or a list of them, not {_brief(bases)}")
    for base in filter(None, bases):
        if base in _named():
            yield from _named_layers(base, ())
        else:
            yield from _file_layers((path.parent / base).resolve(), root, seen + (path,))
    yield str(path), values


@functools.lru_cache(maxsize=1)
def _named() -> Dict[str, Any]:
    return _read(NAMED_CONFIGS, _load_own)


def _load(text: str) -> Any:
    return yaml.load(text, Loader=_StrictLoader)  # a SafeLoader: plain data only


def _load_own(text: str) -> Any:
    """As `load`, ten times as fast with libyaml, which accepts aliases and deep nesting: for our own file only."""
    node = yaml.compose(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return None if node is None else _StrictLoader("").construct_document(node)


def _read(path: Path, load: Callable[[str], Any] = _load) -> Dict[str, Any]:
    try:
        text = read_regular(path, MAX_YAML_BYTES).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Refusal(f"configuration {path} cannot be read: {reason(error)}") from error
    return parse(text, str(path), load)


class _StrictLoader(yaml.SafeLoader):
    """Loads plain data only; rejects duplicate keys and aliases."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(None, None, f"key {_brief(key)} is not text", node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key!r}", node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)

    def compose_node(self, parent: Any, index: Any) -> Optional[yaml.Node]:
        if self.check_event(yaml.AliasEvent):
            raise yaml.constructor.ConstructorError(
                None, None, "aliases are not supported in configurations", self.peek_event().start_mark
            )
        return super().compose_node(parent, index)


def parse(text: str, source: str, load: Callable[[str], Any] = _load) -> Dict[str, Any]:
    """The sections and keys of a configuration's text, as plain data, read by `load`.

    Raises:
        utils.Refusal: naming `source`, if it is not a configuration.
    """
    if len(text) > MAX_YAML_BYTES:
        raise Refusal(f"{source} is not a configuration: it has more than {MAX_YAML_BYTES} characters")
    try:
        values = load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # ValueError: invalid dates and numbers
        raise Refusal(f"{source} is not a configuration: {_brief(one_line(error), 300)}") from error
    if not isinstance(values, dict):
        raise Refusal(f"{source} is not a configuration: it is a {type(values).__name__}, not sections of keys")
    return values


def _brief(value: Any, length: int = 80) -> str:
    """An untrusted value, shortened for messages."""
    text = value if isinstance(value, str) and length > 80 else repr(value)
    return text if len(text) <= length else f"{text[:length]}..."


def _entries(tree: CfgNode, values: Dict[str, Any], source: str, prefix: str = "") -> Iterator[Tuple[str, Any, str]]:
    """(key, value, source) of nested values; descends into the sections of the tree."""
    for key, value in values.items():
        full = f"{prefix}{key}"
        if isinstance(value, dict) and isinstance(_find(tree, full), CfgNode):
            yield from _entries(tree, value, source, f"{full}.")
        else:
            yield full, value, source


def _find(tree: CfgNode, key: str) -> Any:
    node: Any = tree
    for part in key.split("."):
        if not isinstance(node, CfgNode) or part not in node:
            return None
        node = node[part]
    return node


def _assign(tree: CfgNode, key: str, value: Any, source: str) -> None:
    known = list(keys_of(tree))
    if isinstance(_find(tree, key), CfgNode):
        raise Refusal(f"{source}: {key} is a section of keys, and cannot be {_brief(value)}")
    if key not in known:
        raise Refusal(f"{source}: unknown key {_brief(key, 81)}{nearest(key[:80], known)}")
    *sections, leaf = key.split(".")
    node = tree
    for section in sections:
        node = node[section]
    node[leaf] = _coerce(value, node[leaf], key, source)


def _coerce(value: Any, default: Any, key: str, source: str) -> Any:
    """Converts `value` to the type of `key`: integers to floats, tuples to lists, text such as '1e-3' to numbers."""
    types = ALTERNATIVE_TYPES.get(key, (type(default),))
    if isinstance(value, str) and types != (str,):
        decoded = _decode(value)
        value = value if str in types and not isinstance(decoded, (list, tuple)) else decoded
    if isinstance(value, float) and types == (str,):  # PRECISION: 16.16 without quotes
        value = str(value)
    if isinstance(value, tuple):
        value = list(value)
    parts = value if isinstance(value, list) else [value]
    if any(isinstance(part, int) and abs(part) > MAX_WHOLE for part in parts):
        raise Refusal(f"{source}: {key} takes integers up to {MAX_WHOLE}")
    if isinstance(value, int) and not isinstance(value, bool) and float in types and int not in types:
        value = float(value)
    if type(value) not in types:
        expected = " or ".join("nothing" if kind is type(None) else kind.__name__ for kind in types)
        raise Refusal(f"{source}: {key} takes {expected}, not {_brief(value)}")
    return value


def _decode(text: str) -> Any:
    """Parses a text as a number, list, boolean or null, or else returns the text itself."""
    plain = {"true": True, "false": False, "null": None}
    if text.lower() in plain:
        return plain[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # the last two for thousands of brackets
        return text
