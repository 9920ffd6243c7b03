# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The plan of a configuration as text of 100 columns and as a chart."""

import textwrap
from pathlib import Path
from typing import Any, List, Optional, Sequence, Tuple

from yacs.config import CfgNode

from common.figures import new_figure, save_figure
from planning.geometry import configured_classes
from planning.memory import IPU_BYTES, ROOM, TILE_BYTES, TILES
from planning.placement import automatic_stages
from planning.plan import UTILISATION, IpuPlan, Plan, make_plan
from planning.split import IPU_COUNTS

from .geometry import image_size

WIDTH = 100
MIB = 1 << 20
KINDS = ("weights", "gradients", "optimizer", "stashed", "working")  # columns for the fields of Memory
COLOURS = ("#0072b2", "#56b4e9", "#009e73", "#e69f00", "#cc79a7")  # colour-blind safe (Okabe and Ito)
ALARM = "#c00000"


def text(config: CfgNode) -> str:
    """The report, without a trailing newline."""
    plan = make_plan(config)
    sections = [
        _header(config, plan),
        _work_table(plan),
        _memory_table(plan),
        _pipeline(plan),
        _splits(config, plan),
        _notes(plan),
        _warnings(config, plan),
    ]
    return "\n\n".join("\n".join(lines) for lines in sections if lines)


def show_plan(config: CfgNode, picture: Optional[str]) -> None:
    """Prints the report, and draws it if a file is given."""
    print(text(config))
    if picture is not None:
        draw(config, Path(picture))


def draw(config: CfgNode, path: Path) -> None:
    """Draws the work and the memory of each IPU as a PNG file at `path`.

    Raises:
        Refusal: if matplotlib is not installed, or the file cannot be written.
    """
    plan = make_plan(config)
    size = (max(10.0, 3.0 + 0.85 * len(plan.ipus)), 7.5)
    figure = new_figure("--plan-output", path, size, "use --plan alone")
    work, memory = figure.subplots(2, 1, sharex=True)
    work.set_title(
        f"{config.MODEL.NAME}, {config.MODEL.PRECISION}, micro-batch {plan.micro_batch}, stages: "
        f"{len(plan.stages)}, IPUs a replica: {len(plan.ipus)}\n"
        f"slowest over mean {plan.balance:.2f}, bubble {plan.bubble:.1%}, {plan.macs / 1e9:.2f} GMACs per image",
        fontsize=11,
    )
    _draw_work(work, plan)
    _draw_memory(memory, plan)
    save_figure(figure, "--plan-output", path)


def _header(config: CfgNode, plan: Plan) -> List[str]:
    height, width = image_size(config)
    ipu, ipus = config.IPU, len(plan.ipus) * plan.replicas
    assumed = "" if config.MODEL.NUM_CLASSES else " assumed"
    reserved = 1 << (ipus - 1).bit_length()
    rounded = f", of {reserved} reserved" if ipu.ROUND_UP_IPUS and reserved > ipus else ""
    return ["Plan without hardware: memory and throughput are estimates."] + _labelled(
        [
            ("model", config.MODEL.NAME),
            ("", f"{height} x {width} pixels, {configured_classes(config):,} classes{assumed}"),
            ("", f"{plan.parameters:,} parameters, {plan.macs / 1e9:.2f} GMACs in the forward pass of an image"),
            (
                "precision",
                f"{config.MODEL.PRECISION}; recomputation {_switch(ipu.RECOMPUTATION)}; replicated tensor "
                f"sharding {_switch(ipu.REPLICATED_TENSOR_SHARDING)}; optimizer state "
                f"{'off' if ipu.OPTIMIZER_STATE_OFF_CHIP else 'on'} chip",
            ),
            (
                "update",
                f"micro-batch {plan.micro_batch} x accumulation {plan.accumulation} x {plan.replicas} replicas = "
                f"{plan.samples:,} samples",
            ),
            ("IPUs", f"{len(plan.ipus)} per replica x {plan.replicas} replicas = {ipus}{rounded}"),
        ]
    )


def _work_table(plan: Plan) -> List[str]:
    """Blocks, parameters and MACs of each IPU; long lines are wrapped."""
    lines = [f"{'IPU':>3}  {'runs (blocks as layer.block)':<57}{'parameters':>13}{'GMACs':>12}{'share':>10}"]
    for ipu in plan.ipus:
        first, *more = textwrap.wrap(ipu.content, 55)
        lines.append(
            f"{ipu.ipu:>3}  {first:<57}{ipu.parameters:>13,}{ipu.macs / 1e9:>12.3f}{ipu.macs / plan.macs:>10.1%}"
        )
        lines += [f"     {line}" for line in more]
    return lines


def _memory_table(plan: Plan) -> List[str]:
    tiles = f"{TILES:,} tiles x {TILE_BYTES // 1024} KiB"
    lines = [
        f"Memory in MiB, estimated, of the {IPU_BYTES // MIB} MiB of a Mk2 IPU ({tiles}):",
        f"IPU {'in flight':>10}" + "".join(f"{kind:>11}" for kind in KINDS) + f"{'total':>9}{'used':>8}  verdict",
    ]
    for ipu in plan.ipus:
        sizes = "".join(f"{size / MIB:>11.1f}" for size in ipu.memory)
        total = ipu.memory.total
        lines.append(
            f"{ipu.ipu:>3} {ipu.in_flight:>10}{sizes}{total / MIB:>9.1f}{total / IPU_BYTES:>8.0%}  {ipu.verdict}"
        )
    return lines


def _pipeline(plan: Plan) -> List[str]:
    forward, extra = len(plan.stages), len(plan.stages) - 1
    mean = plan.macs / len(plan.ipus)
    return _labelled(
        [
            ("balance", f"{plan.balance:.2f} = slowest {plan.slowest / 1e9:.3f} / mean {mean / 1e9:.3f} GMACs"),
            (
                "bubble",
                f"{plan.bubble:.1%} = (F-1) / accumulation = {extra} / {plan.accumulation}, for F = {forward} "
                "forward stages",
            ),
            (
                "throughput",
                f"at most {plan.throughput:,.0f} samples/s at {plan.peak / 1e12:g} TMAC/s an IPU, the peak for "
                "this precision",
            ),
            ("", f"about {plan.throughput * UTILISATION:,.0f} samples/s at {UTILISATION:.0%} of it, an assumption"),
        ]
    )


def _splits(config: CfgNode, plan: Plan) -> List[str]:
    """The configured split, compared with those of IPU.LAYERS_PER_IPU auto."""
    used = len(set(plan.mapping))  # MAPPING may skip IPUs
    rows = [
        ("as configured", plan),
        ("auto, as many IPUs", _automatic(config, used)),
        ("auto, fewest IPUs", _automatic(config, 0)),
    ]
    lines = [
        f"{'split':<19}{'IPUs':>5}{'slowest':>16}{'balance':>9}{'fullest':>12}{'samples/s':>12}{'an IPU':>9}  verdict"
    ]
    for name, other in rows:
        fullest, ipus = other.fullest, len(other.ipus)
        lines.append(
            f"{name:<19}{ipus:>5}{other.slowest / 1e9:>10.3f} GMACs{other.balance:>9.2f}"
            f"{fullest.memory.total / MIB:>8.0f} MiB{other.throughput:>12,.0f}"
            f"{other.throughput / ipus / other.replicas:>9,.0f}  {fullest.verdict}"
        )
        lines += textwrap.wrap(_keys(other), WIDTH, initial_indent="    ", subsequent_indent="    ")
    return lines


def _automatic(config: CfgNode, ipus: int) -> Plan:
    return make_plan(config, automatic_stages(config, ipus))


def _keys(plan: Plan) -> str:
    """The keys of the section IPU for these stages."""
    layers = f"LAYERS_PER_IPU: [{', '.join(f'{count:g}' for count in plan.layers)}]"
    plain = plan.mapping == list(range(len(plan.layers)))
    return layers if plain else f"{layers}, MAPPING: {plan.mapping}"


def _notes(plan: Plan) -> List[str]:
    return textwrap.wrap(
        "in flight: micro-batches whose activations PopART stashes, 2 (F-1-s) + 1 in stage s of F. stashed: with "
        "recomputation the input of the stage and the outputs of its blocks; without it, and in the last of several "
        "stages, all that the backward pass reads. working: the block in its backward pass. fits: at most "
        f"{_range(sorted({ipu.usable for ipu in plan.ipus}))} MiB, which leaves IPU.AVAILABLE_MEMORY_PROPORTION for "
        f"temporaries and {ROOM:.0%} for code and exchange; tight: leaves less. See planning/memory.py and "
        "planning/plan.py for the arithmetic.",
        WIDTH,
    )


def _warnings(config: CfgNode, plan: Plan) -> List[str]:
    bad = [ipu for ipu in plan.ipus if ipu.verdict != "fits"]
    lines = [f"warning: IPU {ipu.ipu} of a replica {_complaint(ipu)}" for ipu in bad]
    if bad and any(ipu.verdict != "fits" for ipu in _automatic(config, 0).ipus):
        lines += textwrap.wrap(
            f"warning: no split into {', '.join(map(str, IPU_COUNTS))} IPUs fits within TRAIN.ACCUMULATION_STEPS "
            f"{plan.accumulation} (at least 2F-1 for F stages): {_advice(config)}",
            WIDTH,
        )
    if config.MODEL.PRECISION == "mix":
        lines.append("warning: MODEL.PRECISION mix runs on hosts only; IPUs support 16.16, 16.32 and 32.32")
    return lines


def _advice(config: CfgNode) -> str:
    """The remaining settings that reduce memory."""
    measures = (
        ("lower DATA.BATCH_SIZE and raise the accumulation", config.DATA.BATCH_SIZE > 1),
        ("use --precision 16.16", config.MODEL.PRECISION != "16.16"),
        ("use --rts", config.IPU.REPLICAS > 1 and not config.IPU.REPLICATED_TENSOR_SHARDING),
        ("turn IPU.OPTIMIZER_STATE_OFF_CHIP on", not config.IPU.OPTIMIZER_STATE_OFF_CHIP),
        ("turn IPU.RECOMPUTATION on", not config.IPU.RECOMPUTATION),
    )
    return ", or ".join(words for words, helps in measures if helps) or "use a smaller model"


def _complaint(ipu: IpuPlan) -> str:
    size = f"{ipu.memory.total / MIB:,.0f} of {IPU_BYTES // MIB} MiB"
    if ipu.verdict == "tight":
        return f"is tight: {size}"
    return f"does not fit: {size} (hosts have no such limit)"


def _labelled(rows: Sequence[Tuple[str, str]]) -> List[str]:
    return [f"{name:<12}{value}" for name, value in rows]


def _range(sizes: Sequence[int]) -> str:
    """The smallest and the largest of some sizes, in MiB."""
    return " to ".join(f"{size / MIB:.0f}" for size in dict.fromkeys((sizes[0], sizes[-1])))


def _switch(on: bool) -> str:
    return "on" if on else "off"


def _draw_work(axes: Any, plan: Plan) -> None:
    """Draws bars for the share of each IPU in the forward MACs."""
    shares = [100 * ipu.macs / plan.macs for ipu in plan.ipus]
    mean = 100 / len(shares)
    axes.bar(range(len(shares)), shares, color=COLOURS[0], zorder=2)
    axes.axhline(mean, color="#555555", linestyle="--", linewidth=1, zorder=3, label=f"mean {mean:.1f}")
    for place, share in enumerate(shares):
        _label(axes, place, share, f"{share:.1f}", inside=share > 0.2 * max(shares))  # off the line of the mean
    axes.set_ylim(0, 1.15 * max(shares))
    axes.set_ylabel("share of forward MACs (%)")
    _legend(axes)


def _draw_memory(axes: Any, plan: Plan) -> None:
    """Draws stacked bars for the memory of each IPU, with the limits."""
    places = range(len(plan.ipus))
    usable = min(ipu.usable for ipu in plan.ipus)
    for limit, style, meaning in ((IPU_BYTES, "-", "all of a Mk2 IPU"), (usable, "--", "fits below")):
        axes.axhline(
            limit / MIB, color=ALARM, linestyle=style, linewidth=1, zorder=3, label=f"{limit / MIB:.0f}: {meaning}"
        )
    for index in reversed(range(len(KINDS))):  # from the top, to give the legend the order of the bars
        sizes = [ipu.memory[index] / MIB for ipu in plan.ipus]
        below = [sum(ipu.memory[:index]) / MIB for ipu in plan.ipus]
        axes.bar(places, sizes, bottom=below, color=COLOURS[index], zorder=2, label=KINDS[index])
    totals = [ipu.memory.total / MIB for ipu in plan.ipus]
    for place, ipu in zip(places, plan.ipus):
        _label(axes, place, totals[place], f"{totals[place]:,.0f}", ALARM if ipu.verdict != "fits" else "black")
    axes.set_ylim(0, 1.1 * max(IPU_BYTES / MIB, *totals))
    width = max(12, 60 // len(plan.ipus))  # characters below a bar
    axes.set_xticks(
        list(places),
        ["\n".join([f"IPU {ipu.ipu}", *textwrap.wrap(ipu.content, width)]) for ipu in plan.ipus],
        fontsize=8,
    )
    spare = max(0.6, 2 - len(plan.ipus) / 2)  # keeps one or two bars from filling the picture
    axes.set_xlim(-spare, len(plan.ipus) - 1 + spare)
    axes.set_ylabel("memory (MiB), estimated")
    _legend(axes)


def _label(axes: Any, place: int, height: float, words: str, colour: str = "black", inside: bool = False) -> None:
    """Writes a label above a bar, on a background that covers grid lines, or inside the bar at its foot."""
    axes.annotate(
        words,
        (place, 0 if inside else height),
        (0, 3),
        textcoords="offset points",
        ha="center",
        fontsize=9,
        color=colour,
        zorder=4,
        bbox=dict(facecolor="white", edgecolor="none", pad=0.5),
    )


def _legend(axes: Any) -> None:
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=9, frameon=False)
