# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
import pytest
import torch
from poptorch_host import custom_ops

from tests.backend import NAME, host_only, needs_core, poptorch, raises

from ..models import accumulating, trained


class Layers(torch.nn.Module):
    """A linear layer on each of the given devices."""

    def __init__(self, *ipus):
        super().__init__()
        layers = [torch.nn.Linear(3, 3) for _ in ipus]
        self.layers = torch.nn.Sequential(
            *(layer if ipu is None else poptorch.BeginBlock(layer, ipu_id=ipu) for layer, ipu in zip(layers, ipus))
        )

    def forward(self, x, train=True):
        out = self.layers(x)
        return (out, poptorch.identity_loss(out**2, "mean")) if train else out


def stages_of(executor):
    """How many stages a program has; None where the back end does not tell."""
    return len(executor.compiled.stages) if NAME == "host" else None


def compile_training(model, options):
    options.autoRoundNumIPUs()
    executor = trained(model, options)
    executor.compile(torch.ones(options.Training.gradient_accumulation, 3))
    return executor


@pytest.mark.parametrize(
    "ipus, stages", [([0], 1), ([None, None], 1), ([0, 1], 2), ([1], 2), ([0, 0, 1, 1, 2], 3), ([None, 1, 2, 3], 4)]
)
def test_training_needs_an_accumulation_of_2f_minus_1(ipus, stages):
    executor = compile_training(Layers(*ipus), accumulating(2 * stages - 1))
    assert executor.isCompiled() and stages_of(executor) in (None, stages)
    if stages > 1:
        words = rf"gradientAccumulation.*pipeline stages \({2 * stages - 1}\).* {stages} stages.* {stages - 1} for"
        with raises(poptorch.Error, match=words):
            compile_training(Layers(*ipus), accumulating(2 * stages - 2))


def test_a_failed_check_leaves_weights_alone_and_the_model_uncompiled():
    model = Layers(0, 1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    executor = trained(model, accumulating(2))
    with raises(poptorch.Error):
        executor(torch.ones(2, 3))
    assert not executor.isCompiled()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_inference_needs_as_many_device_iterations_as_stages():
    model = Layers(0, 1, 2)
    with raises(poptorch.Error, match="deviceIterations must be greater"):
        poptorch.inferenceModel(model, poptorch.Options().autoRoundNumIPUs().deviceIterations(2))(
            torch.ones(2, 3), False
        )
    poptorch.inferenceModel(model, poptorch.Options().autoRoundNumIPUs().deviceIterations(3))(torch.ones(3, 3), False)


def test_sharded_and_phased_execution_have_no_such_rule():
    options = poptorch.Options().setExecutionStrategy(poptorch.ShardedExecution())
    trained(Layers(0, 1), options)(torch.ones(1, 3))
    options = poptorch.Options().setExecutionStrategy(poptorch.ParallelPhasedExecution("0", "1"))
    trained(Layers(0, 1), options)(torch.ones(1, 3))


@host_only("the record of a compilation")
def test_devices_are_counted_up_to_the_highest_id_and_limited():
    assert compile_training(Layers(1), accumulating(3)).compiled.ipus == 2
    assert compile_training(Layers(0, 1), accumulating(3)).compiled.ipus == 2
    with raises(poptorch.Error, match="Too many IPUs requested"):
        options = accumulating(3).replicationFactor(33)
        trained(Layers(0, 1), options).compile(torch.ones(99, 3))


@needs_core("it checks the order of stages")
def test_stages_of_a_pipeline_follow_each_other():
    options = accumulating(9).setExecutionStrategy(poptorch.PipelinedExecution("second", "first"))

    class Backwards(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)

        def forward(self, x):
            with poptorch.Block("first"):
                x = self.first(x)
            with poptorch.Block("second"):
                return poptorch.identity_loss(self.second(x), "mean")

    with raises(poptorch.Error, match="cannot depend on a later one"):
        trained(Backwards(), options)(torch.ones(9, 3))


@needs_core("it checks the order of stages")
@pytest.mark.parametrize("late_reads_later_stage", [False, True])
def test_a_block_may_run_again_for_what_no_later_stage_has_made(late_reads_later_stage):
    class Decoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = poptorch.BeginBlock(torch.nn.Linear(3, 3), "embedding", ipu_id=0)
            self.encoder = poptorch.BeginBlock(torch.nn.Linear(3, 3), "encoder", ipu_id=1)
            self.decoder = poptorch.BeginBlock(torch.nn.Bilinear(3, 3, 1), "decoder", ipu_id=1)

        def forward(self, source, target):
            encoded = self.encoder(self.embedding(source)) @ self.embedding.weight.t()  # a view in a later stage
            return self.decoder(self.embedding(encoded if late_reads_later_stage else target), encoded)

    options = poptorch.Options().deviceIterations(4)
    options.setExecutionStrategy(poptorch.PipelinedExecution(poptorch.AutoStage.AutoIncrement))
    executor = poptorch.inferenceModel(Decoder(), options)
    batch = torch.randn(4, 3), torch.randn(4, 3)
    if late_reads_later_stage:
        with raises(poptorch.Error, match="stage 1 reads a result of stage 2.*cannot depend on a later one"):
            executor(*batch)
    else:
        torch.testing.assert_close(executor(*batch), executor.model(*batch))


@host_only("functions that stand for custom operations")
def test_a_weight_that_a_custom_operation_writes_in_place_is_no_result_of_its_stage():
    @custom_ops.implement("Halve", "test.stage")
    def halve(inputs, attributes):
        return [inputs[0].mul_(0.5)]

    class Model(Layers):
        def forward(self, x):
            with torch.no_grad(), poptorch.Block("late", ipu_id=1):
                poptorch.custom_op([self.layers[0].weight], "Halve", "test.stage", 1, [self.layers[0].weight])
            return self.layers(x)

    model = Model(0, 1)
    expected = torch.nn.functional.linear(torch.ones(1, 3), model.layers[0].weight / 2, model.layers[0].bias)
    executor = poptorch.inferenceModel(model, poptorch.Options().deviceIterations(4))
    torch.testing.assert_close(executor(torch.ones(4, 3))[:1], model.layers[1](expected))


@host_only("the record of a compilation")
def test_explicit_stages_merge_blocks_and_name_unknown_ones():
    class Blocks(torch.nn.Module):
        def forward(self, x):
            for name in "abc":
                with poptorch.Block(name):
                    x = x + 1
                    y = poptorch.identity_loss(x, "mean")
            return y

    strategy = poptorch.PipelinedExecution(poptorch.Stage("a", "b").ipu(0), poptorch.Stage("c").ipu(1))
    executor = poptorch.inferenceModel(Blocks(), poptorch.Options().deviceIterations(2).setExecutionStrategy(strategy))
    executor(torch.ones(2))
    assert [(stage.ipu, stage.blocks) for stage in executor.compiled.stages] == [(0, ("a", "b")), (1, ("c",))]
    options = poptorch.Options().setExecutionStrategy(poptorch.PipelinedExecution("a", "b"))
    with raises(AssertionError, match="Unknown Block"):
        poptorch.inferenceModel(Blocks(), options)(torch.ones(2))


@host_only("the record of a compilation")
def test_automatic_stages_count_up_or_follow_the_devices():
    class Blocks(torch.nn.Module):
        def forward(self, x):
            poptorch.Block.useAutoId()
            for _ in range(3):
                with poptorch.Block():
                    x = x + 1
            return x

    options = poptorch.Options().deviceIterations(4)
    options.setExecutionStrategy(poptorch.PipelinedExecution(poptorch.AutoStage.AutoIncrement))
    executor = poptorch.inferenceModel(Blocks(), options)
    with raises(AssertionError, match="ipu_id"):
        poptorch.inferenceModel(Blocks())(torch.ones(4))
    executor(torch.ones(4))
    assert [stage.ipu for stage in executor.compiled.stages] == [0, 1, 2, 3]


def test_an_operation_after_a_block_has_ended_is_refused():
    class Leaves(torch.nn.Module):
        def forward(self, x):
            x = x * 2
            with poptorch.Block("a", ipu_id=0):
                x = x + 1
            return x * 3

    assert Leaves()(torch.ones(1)).item() == 9
    with raises(poptorch.Error, match="No active Block"):
        poptorch.inferenceModel(Leaves())(torch.ones(1))


@needs_core("it draws and adds in its own order")
def test_stages_change_no_result():
    torch.manual_seed(0)
    staged, plain = Layers(0, 1), Layers(None, None)
    plain.load_state_dict(staged.state_dict())
    x = torch.randn(3, 3)
    for one, other in zip(trained(staged, accumulating(3))(x), trained(plain, accumulating(3))(x)):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(staged.layers[0].weight.detach(), plain.layers[0].weight.detach())


def sharded(tiles=32):
    options = poptorch.Options().setExecutionStrategy(poptorch.ShardedExecution())
    if tiles:
        options.TensorLocations.numIOTiles(tiles)
    return options


def overlap(side):
    mode = poptorch.OverlapMode.OverlapDeviceIterationLoop

    class Model(torch.nn.Module):
        def forward(self, x):
            if side == "input":
                return poptorch.set_overlap_for_input(x, mode) + 1
            if side == "inner":
                return poptorch.set_overlap_for_input(x + 1, mode)
            if side == "input used twice":
                return poptorch.set_overlap_for_input(x, mode) + x
            if side == "input returned":
                return poptorch.set_overlap_for_input(x, mode), x
            return poptorch.set_overlap_for_output(x + 1, mode)

    return Model()


@needs_core("it checks what is overlapped")
@pytest.mark.parametrize(
    "side, options, message",
    [
        ("input", poptorch.Options, "ShardedExecution"),
        ("input", lambda: sharded(0), "I/O tiles"),
        ("inner", sharded, "inputs of the model only"),
        ("input used twice", sharded, "only use of the input"),
        ("input returned", sharded, "only use of the input"),
        ("output", lambda: sharded().outputMode(poptorch.OutputMode.Final), "All or Sum"),
    ],
)
def test_overlapped_transfers_have_rules(side, options, message):
    with raises(poptorch.Error, match=message):
        poptorch.inferenceModel(overlap(side), options())(torch.ones(2))


def test_overlapped_transfers_change_no_result():
    for side in ("input", "output"):
        assert poptorch.inferenceModel(overlap(side), sharded())(torch.ones(2)).tolist() == [2, 2]
