# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Trains or fine-tunes a Swin Transformer.

    python train_swin.py --cfg SWIN_TINY --data-path ./data/imagenet1k --output ./output/swin_tiny_224/

Run the same command again to resume a stopped run.
"""

import sys
from typing import Optional, Sequence

from common.command_line import run_command
from common.logs import console_log
from common.signals import StopRequest
from planning.report import show_plan
from training import arguments
from training.settings import check_settings


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Entry of train_swin.py."""
    args = arguments.parse_training(argv)
    config = arguments.build_config(args)
    if args.plan or args.plan_output is not None:
        check_settings(config)
        show_plan(config, args.plan_output)
        return
    arguments.check_complete(args, config)

    # torch, torchvision and timm take seconds to import; --help and invalid command lines do not wait for them.
    import accelerator
    from training import evaluation, host_pipeline, processes
    from training.compile_only import compile_only
    from training.compiling import errors_refused
    from training.dry_run import dry_run
    from training.loop import train

    accelerator.select(args.device)
    stages = host_pipeline.stages(config)
    with StopRequest().installed() as stop, processes.joined(config, stages) as launch:
        with console_log(launch.is_leader), errors_refused("the device failed"):
            arguments.log_configuration(args, config)
            accelerator.choose_threads()
            if args.throughput:
                evaluation.measure_throughput(config, launch)
            elif args.eval:
                evaluation.evaluate_only(config, launch)
            elif args.compile_only:
                compile_only(config, launch)
            elif args.dry_run or args.schedule_output is not None:
                dry_run(config, launch, stop, arguments.origins(args), args.schedule_output)
            else:
                train(config, launch, stop, arguments.origins(args))


if __name__ == "__main__":
    sys.exit(run_command(main))
