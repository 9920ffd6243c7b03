# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""AsynchronousDataAccessor: what it hands out, when it reads, how it fails and how it ends."""

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from poptorch_host.loading import fetcher, parcel

from tests.backend import NAME, host_only, poptorch, raises
from tests.poptorch_host.deadline import deadline  # noqa: F401
from tests.poptorch_host.loading.sample_sets import (
    Counted,
    Deadly,
    Failing,
    Gated,
    GraphParser,
    Numbers,
    Once,
    Overlapping,
    ProcessIds,
    RandomNumbers,
    Stream,
    Stuck,
    Unregistered,
    graph_of,
    numbers,
)

FORK, FORK_SERVER = poptorch.SharingStrategy.Fork, poptorch.SharingStrategy.ForkServer
FORK_SERVER_SHARES = host_only("PopTorch moves the tensors of the data set to shared memory")
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def access():
    """Makes accessors, in forked processes unless told otherwise, and ends them after the test."""
    made = []

    def make(dataset, **kwargs):
        made.append(poptorch.AsynchronousDataAccessor(dataset, **{"sharing_strategy": FORK, **kwargs}))
        return made[-1]

    yield make
    for accessor in made:
        accessor.terminate()


def process_of(accessor):
    return accessor._process._process


def loader_of(dataset, **kwargs):
    return poptorch.DataLoader(poptorch.Options(), dataset, **kwargs)


def eventually(claim):
    """Whether `claim()` becomes true within 20 s."""
    end = time.monotonic() + 20
    while not claim() and time.monotonic() < end:
        time.sleep(0.01)
    return claim()


def values(accessor):
    return [tensor.item() for tensor in accessor]


# Elements.


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(3),
        torch.tensor([True, False]),
        torch.arange(6, dtype=torch.int8).view(2, 3).t(),
        torch.empty(0, 4),
        torch.tensor([1.5, float("inf")]).half(),
        torch.tensor([2.5]).bfloat16(),
        torch.ones(1).expand(3, 2),
    ],
    ids=str,
)
def test_tensor_arrives_as_it_was(access, tensor):
    (arrived,) = access([tensor])
    assert arrived.dtype is tensor.dtype and arrived.shape == tensor.shape and not arrived.requires_grad
    assert torch.equal(arrived, tensor)


@pytest.mark.parametrize(
    "element, container",
    [((torch.ones(1), torch.zeros(2)), list), ([torch.ones(1)], list), ({"x": torch.ones(1), 3: torch.zeros(2)}, dict)],
)
def test_containers_arrive_as_lists_and_dictionaries(access, element, container):
    (arrived,) = access([element])
    assert type(arrived) is container
    assert str(arrived) == str(container(element))


@pytest.mark.parametrize("strategy", [FORK, FORK_SERVER])
def test_types_with_a_parser_arrive_rebuilt(access, strategy):
    accessor = access(loader_of(Numbers(4), batch_size=2, collate_fn=graph_of), sharing_strategy=strategy)
    graphs = [(graph.name, numbers(graph.nodes), numbers(graph.edges)) for graph in accessor]
    assert graphs == [("graph", [0, 1], [0, 10]), ("graph", [2, 3], [20, 30])]


def test_parser_that_the_process_does_not_register_itself_is_not_known_there(access):
    poptorch.registerCustomArgParser(Unregistered, GraphParser())
    try:
        with raises(poptorch.Error, match="failed to start"):
            access([Unregistered(torch.ones(1), torch.ones(1))], sharing_strategy=FORK_SERVER)
    finally:
        poptorch.registerCustomArgParser(Unregistered, None)


@pytest.mark.parametrize(
    "element, message",
    [
        (["text"], "contains str"),
        (3, "contains int"),
        ((torch.ones(1), (torch.ones(1),)), "contains tuple"),
        pytest.param([], "no tensor", marks=host_only("PopTorch hands out elements without tensors")),
        (torch.ones(2).to_sparse(), "sparse"),
        (torch.ones(2, requires_grad=True), "require grad"),
    ],
    ids=str,
)
def test_element_of_another_kind_is_refused(access, element, message):
    # PopTorch may notice that its process has died while it fetches a tensor from it.
    with raises((poptorch.Error, OSError), match=f"worker thread failed to start: .*{message}"):
        access([element])


@pytest.mark.parametrize("second", [torch.ones(3), [torch.ones(2)] * 2, {"x": torch.ones(2)}], ids=str)
def test_element_unlike_the_first_is_refused(access, second):
    elements = iter(access([torch.ones(2), second]))
    assert next(elements).tolist() == [1, 1]
    with raises(AssertionError, match="An error occurred in the data fetcher: all elements must"):
        next(elements)


@pytest.mark.parametrize("rebatched_size", [None, 2])
def test_later_elements_are_converted_to_the_dtypes_of_the_first(access, rebatched_size):
    elements = [torch.ones(1, 2), torch.full((1, 2), 2), torch.full((1, 2), 2.5).double(), torch.ones(1, 2).bool()]
    arrived = [tensor.clone() for tensor in access(elements, rebatched_size=rebatched_size)]
    assert {tensor.dtype for tensor in arrived} == {torch.float32}
    assert torch.cat(arrived)[:, 0].tolist() == [1.0, 2.0, 2.5, 1.0]


def test_dictionaries_are_read_by_their_keys_in_any_order(access):
    elements = access([{"x": torch.ones(1), "y": torch.zeros(1)}, {"y": torch.zeros(1), "x": torch.ones(1)}])
    assert [(element["x"].item(), element["y"].item()) for element in elements] == [(1, 0), (1, 0)]


def test_handed_out_tensor_lies_in_a_buffer_that_later_ones_reuse(access):
    elements = iter(access([torch.tensor(0), torch.tensor(1)], buffer_size=1))
    first = next(elements)
    kept = first.clone()
    second = next(elements)
    assert second.data_ptr() == first.data_ptr()
    assert (kept.item(), first.item(), second.item()) == (0, 1, 1)


@host_only("PopTorch hands out the tensor that it writes to, not a view of it")
def test_what_is_done_to_a_handed_out_tensor_does_not_stay(access):
    accessor = access([torch.ones(3)], buffer_size=1)
    for _ in range(2):
        for tensor in accessor:
            assert tensor.shape == (3,) and not tensor.requires_grad and tensor.tolist() == [1, 1, 1]
            tensor.zero_().unsqueeze_(0).requires_grad_()


@host_only("its process")
def test_id_of_the_process_is_in_the_debug_log(access, caplog):
    caplog.set_level("DEBUG", "poptorch::python")
    accessor = access([torch.ones(1)])
    assert f"AsynchronousDataAccessor worker process: {process_of(accessor).pid}" in caplog.text


def test_tensors_outlive_the_accessor(access):
    accessor = access([torch.ones(3)])
    tensor = next(iter(accessor))
    accessor.terminate()
    del accessor
    assert tensor.tolist() == [1, 1, 1]


# Epochs.


def test_plain_iterables_and_data_sets_without_iterator_are_read_to_their_end(access):
    assert len(access(Numbers(5))) == 5
    assert [numbers(tensor[None]) for tensor in access(Numbers(5))] == [[0], [1], [2], [3], [4]]
    assert values(access([torch.tensor(7), torch.tensor(8)])) == [7, 8]


@host_only("PopTorch reads such a data set without end")
def test_data_set_with_elements_beyond_its_length_is_refused_there(access):
    class Endless(Numbers):
        def __getitem__(self, index):
            return torch.tensor(index)

    elements = iter(access(Endless(2)))
    assert [next(elements).item() for _ in range(2)] == [0, 1]
    with raises(AssertionError, match="Endless has an element 2, although its length is 2"):
        next(elements)


@pytest.mark.parametrize("load_indefinitely", [True, False])
def test_every_iteration_is_a_whole_epoch(access, load_indefinitely):
    accessor = access(Numbers(7, shape=()), load_indefinitely=load_indefinitely)
    for _ in range(3):
        assert values(accessor) == [0, 1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("load_indefinitely", [True, False])
@pytest.mark.parametrize("buffer_size", [1, 2, 9])
def test_iteration_that_was_left_is_followed_by_a_whole_one(access, load_indefinitely, buffer_size):
    accessor = access(Numbers(7, shape=()), load_indefinitely=load_indefinitely, buffer_size=buffer_size)
    for taken in (1, 6, 7):
        elements = iter(accessor)
        assert [next(elements).item() for _ in range(taken)] == list(range(taken))
        assert values(accessor) == [0, 1, 2, 3, 4, 5, 6]


@host_only("PopTorch waits without end for what follows an end")
def test_iterator_that_has_ended_stays_at_its_end(access):
    accessor = access([torch.tensor(1)])
    assert next(accessor).item() == 1  # the first one needs no iter()
    for _ in range(2):
        with raises(StopIteration):
            next(accessor)
    assert values(iter(iter(accessor))) == [1]


@host_only("PopTorch tries again in advance")
def test_later_epoch_without_elements_ends_at_once_and_is_not_tried_again_unasked(access):
    dataset = Once()
    accessor = access(dataset)
    assert [values(accessor), values(accessor)] == [[1], []]
    time.sleep(0.1)  # time in which it would try
    assert dataset.count == 2
    assert values(accessor) == []


@host_only("PopTorch does not begin again while it waits for a sample")
def test_iteration_that_was_left_is_read_on_by_one_sample_at_most(access):
    dataset = Gated(9)
    for _ in range(2):
        dataset.gate.release()
    elements = iter(access(dataset, buffer_size=9))
    assert [next(elements).item(), next(elements).item()] == [0, 1]
    iter(elements)
    for _ in range(100):  # enough for the process to end unhindered
        dataset.gate.release()
    assert values(elements) == list(range(9))
    assert dataset.order.tolist()[2:5] in ([0, 1, 2], [2, 0, 1])


def test_one_element_is_read_before_the_first_iteration(access):
    dataset = Counted(100)
    accessor = access(dataset)
    time.sleep(0.1)  # time in which it would read on
    assert dataset.count == 1
    next(iter(accessor))
    assert eventually(lambda: dataset.count >= 3)


def test_early_preload_fills_the_buffers_before_the_first_iteration(access):
    dataset = Counted(100)
    access(dataset, early_preload=True, buffer_size=5)
    assert eventually(lambda: dataset.count >= 5)


@pytest.mark.parametrize(
    "load_indefinitely, read",
    [pytest.param(True, 5, marks=host_only("PopTorch reads one sample more than it has buffers for")), (False, 3)],
)
def test_next_epoch_is_read_before_it_is_asked_for_when_loading_indefinitely(access, load_indefinitely, read):
    dataset = Counted(3)
    accessor = access(dataset, load_indefinitely=load_indefinitely, buffer_size=2)
    assert len(list(accessor)) == 3
    assert eventually(lambda: dataset.count >= read)
    time.sleep(0.1)
    assert dataset.count == read


@pytest.mark.parametrize(
    "rebatched_size, sizes",
    [
        pytest.param(2, [2, 2, 2], marks=host_only("PopTorch loses what is left over of the first element")),
        (4, [4]),
        (7, [7]),
    ],
)
def test_rows_are_gathered_into_whole_elements(access, rebatched_size, sizes):
    elements = [torch.tensor([0, 1, 2]), torch.tensor([3]), torch.tensor([4, 5, 6])]
    accessor = access(elements, rebatched_size=rebatched_size)
    for _ in range(2):
        gathered = [tensor.tolist() for tensor in accessor]
        assert [len(rows) for rows in gathered] == sizes
        assert sum(gathered, []) == list(range(sum(sizes)))


@host_only("PopTorch counts the rows of loaders only")
def test_length_is_the_data_sets_and_counts_rebatched_elements(access):
    single_rows = Numbers(10, shape=(1,))
    assert len(access(single_rows)) == 10
    assert len(access(single_rows, rebatched_size=4)) == 2
    with raises(TypeError, match="no length"):
        len(access(iter([torch.tensor(1)])))


@pytest.mark.parametrize("drop_last, iterable", [(False, False), (True, False), (False, True)])
def test_length_counts_the_rows_of_a_loaders_batches(access, drop_last, iterable):
    dataset = Stream(10) if iterable else Numbers(10, shape=(1,))
    accessor = access(torch.utils.data.DataLoader(dataset, batch_size=4, drop_last=drop_last), rebatched_size=5)
    assert len(accessor) == len(list(accessor)) == (1 if drop_last else 2)


# The way of the data set.


@pytest.mark.parametrize(
    "strategy",
    [
        poptorch.SharingStrategy.SharedMemory,
        pytest.param(
            poptorch.SharingStrategy.FileSystem, marks=host_only("PopTorch copies what is in shared memory, too")
        ),
        FORK,
        pytest.param(FORK_SERVER, marks=FORK_SERVER_SHARES),
    ],
)
def test_data_set_arrives_by_every_strategy(access, strategy):
    dataset = Counted(4)
    dataset.weights = torch.arange(4.0)
    assert len(list(access(dataset, sharing_strategy=strategy, load_indefinitely=False))) == 4
    assert dataset.count == 4  # tensors in shared memory stay shared
    assert dataset.weights.is_shared() == (strategy == poptorch.SharingStrategy.SharedMemory)


@pytest.mark.parametrize(
    "value, shared", [(0, True), ("SharedMemory", True), pytest.param(3, False, marks=FORK_SERVER_SHARES)]
)
def test_a_strategy_is_also_its_number_and_another_value_is_shared_memory(access, value, shared):
    dataset = Counted(2)
    dataset.weights = torch.arange(2.0)
    assert len(list(access(dataset, sharing_strategy=value, load_indefinitely=False))) == 2
    assert dataset.weights.is_shared() == shared


@host_only("its way to pickle")
def test_a_tensor_beyond_two_gib_travels_without_a_copy():
    class Sink:
        written = 0

        def write(self, part):
            self.written += memoryview(part).nbytes

    sink, size = Sink(), 2**31 + 16
    parcel._ValuePickler(sink).dump(torch.empty(size, dtype=torch.uint8))
    assert size < sink.written < size + 10_000


@host_only("PopTorch passes a file descriptor for every tensor")
def test_fork_server_takes_more_tensors_than_a_process_may_open_files(access):
    whole = torch.arange(3000.0)
    elements = [(whole[i], torch.tensor(i)) for i in range(3000)]
    accessor = access(elements, sharing_strategy=FORK_SERVER)
    assert all(one == two == place for place, (one, two) in enumerate(accessor))


def test_tensors_in_the_same_memory_stay_together(access):
    assert [part.tolist() for part in access(Overlapping(), sharing_strategy=FORK_SERVER)] == [[1, 1]]


def listed_stages():
    options = poptorch.Options()
    return options.setExecutionStrategy(poptorch.PipelinedExecution("a")) or options


def left_with_workers():
    loader = loader_of(Numbers(2), num_workers=1)
    list(loader)
    return loader


@pytest.mark.parametrize("strategy", [FORK_SERVER, poptorch.SharingStrategy.FileSystem, FORK])
@pytest.mark.parametrize(
    "make, kind",
    [
        (lambda: loader_of(Numbers(2), collate_fn=lambda samples: samples[0]), (AttributeError, pickle.PicklingError)),
        (lambda: poptorch.DataLoader(listed_stages(), Numbers(2)), AttributeError),
        (lambda: [torch.ones(1), threading.Lock()][:1] + [(threading.Lock(),)], TypeError),
        (left_with_workers, NotImplementedError),
    ],
    ids=["local function", "options with listed stages", "lock", "workers"],
)
def test_what_cannot_be_pickled_is_refused_by_that_error_unless_forked(access, make, kind, strategy):
    dataset = make()
    if strategy == FORK:
        assert isinstance(next(iter(access(dataset, sharing_strategy=FORK))), torch.Tensor)
        return
    with raises(kind):
        access(dataset, sharing_strategy=strategy)


def test_advice_follows_what_cannot_be_pickled(access):
    with raises(AttributeError, match="failed to start: .* cannot be pickled .* SharingStrategy.Fork"):
        access(poptorch.DataLoader(listed_stages(), Numbers(2)), sharing_strategy=FORK_SERVER)


def test_module_that_knows_the_package_by_another_name_can_be_imported_in_the_process(access, tmp_path, monkeypatch):
    (tmp_path / "renamed_program.py").write_text(
        "import poptorch\nimport torch\n"
        "class Set:\n"
        "    def __iter__(self):\n"
        "        yield torch.tensor(int(poptorch.SharingStrategy.Fork))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "poptorch", poptorch)
    import renamed_program

    assert values(access(renamed_program.Set(), sharing_strategy=FORK_SERVER)) == [2]


@host_only("PopTorch does not seed its process")
def test_random_numbers_follow_from_the_seed_and_differ_between_accessors(access):
    def draw(strategy):
        return [tensor.tolist() for tensor in access(RandomNumbers(), sharing_strategy=strategy)]

    torch.manual_seed(1)
    first, second = draw(FORK), draw(FORK)
    torch.manual_seed(1)
    assert draw(FORK_SERVER) == first != second


@host_only("PopTorch's waits there without end")
def test_accessor_works_in_a_process_that_was_forked_off_one_with_a_fork_server(access):
    access([torch.tensor(1)], sharing_strategy=FORK_SERVER)
    context = multiprocessing.get_context("fork")
    received, sent = context.Pipe(False)
    process = context.Process(target=lambda: sent.send(values(poptorch.AsynchronousDataAccessor(Numbers(3, shape=())))))
    process.start()
    assert received.recv() == [0, 1, 2]
    process.join()
    assert process.exitcode == 0


# Arguments.


@pytest.mark.parametrize(
    "arguments, message",
    [
        pytest.param({"buffer_size": 0}, "buffer_size", marks=host_only("PopTorch fails later, and in another way")),
        ({"rebatched_size": 1}, "must exceed 1"),
        pytest.param(
            {"miss_sleep_time_in_ms": -1}, "miss_sleep_time_in_ms", marks=host_only("PopTorch does not check it")
        ),
    ],
)
def test_arguments_out_of_range_are_refused(access, arguments, message):
    with raises(AssertionError, match=message):
        access([torch.ones(2)], **arguments)


@host_only("PopTorch fails at the last batch")
def test_loader_whose_last_batch_may_be_smaller_is_refused(access):
    with raises(AssertionError, match="drop_last=True"):
        access(loader_of(Numbers(3), batch_size=2, drop_last=False))
    with raises(AssertionError, match="drop_last=True"):
        access(loader_of(Numbers(3), batch_sampler=torch.utils.data.BatchSampler(range(3), 2, False), drop_last=False))
    assert len(list(access(loader_of(Numbers(3), batch_size=1, drop_last=False)))) == 3


# Failures.


@pytest.mark.parametrize("error, workers", [(RuntimeError, 0), (RuntimeError, 1), (KeyboardInterrupt, 0)])
def test_failing_first_sample_is_an_error_with_its_traceback(access, error, workers):
    with pytest.raises(poptorch.Error) as raised:
        access(loader_of(Failing(3, at=0, error=error), num_workers=workers))
    if NAME == "sdk":  # where the process prints it
        return
    first, *others = raised.value.message.splitlines()
    assert first.startswith(f"AsynchronousDataAccessor worker thread failed to start: {error.__name__}: ")
    assert "sample 0 is broken" in first
    assert any("in __getitem__" in line for line in others)


@host_only("PopTorch's iter() fails on the pipe to its dead process")
def test_later_failure_comes_after_the_elements_before_it_and_again(access):
    accessor = access(Failing(5, at=2))
    elements = iter(accessor)
    assert [numbers(next(elements)[None]) for _ in range(2)] == [[0], [1]]
    for again in (next, iter, next):
        with raises(AssertionError, match="An error occurred in the data fetcher: RuntimeError: sample 2 is"):
            again(accessor)


@pytest.mark.parametrize("dataset", [[], Numbers(0), iter([])], ids=["list", "indexed", "iterator"])
def test_empty_data_set_is_an_error(access, dataset):
    with raises(poptorch.Error, match="worker thread failed to start: the dataset is empty"):
        access(dataset)


@pytest.mark.parametrize("strategy", [FORK, FORK_SERVER])
def test_process_killed_by_a_signal_is_noticed_and_named(access, strategy):
    with raises(AssertionError, match=r"data fetcher: it was killed by signal 9 \(SIGKILL\)"):
        list(access(Deadly(30), sharing_strategy=strategy))


def test_death_of_a_loaders_worker_is_noticed_and_named(access):
    accessor = access(loader_of(Deadly(30), num_workers=2), sharing_strategy=FORK_SERVER)
    with raises(AssertionError, match=r"DataLoader worker \(pid.* (is killed by signal|exited unexpectedly)"):
        list(accessor)


def test_process_that_exits_is_noticed_with_its_code(access):
    with raises(poptorch.Error, match="failed to start: it ended with exit code 3"):
        access(type("Exiting", (), {"__iter__": lambda self: os._exit(3)})())


def test_ring_that_does_not_fit_into_memory_is_refused_in_one_line(access):
    with raises(poptorch.Error, match="no shared memory for 3 buffers of .* MiB: .*buffer_size") as raised:
        access([torch.ones(1).expand(10**15)])
    assert len(raised.value.message.splitlines()) == 1


def test_terminated_accessor_refuses_to_go_on(access):
    accessor = access([torch.ones(1)])
    next(iter(accessor))
    accessor.terminate()
    for use in (iter, next):
        with raises(AssertionError, match="terminated"):
            use(accessor)


# Life and death of the process.


@host_only("its process")
def test_loaders_workers_are_children_of_the_process_and_end_with_it(access):
    accessor = access(loader_of(ProcessIds(), num_workers=1), sharing_strategy=FORK_SERVER)
    (worker, parent), *_ = [batch[0].tolist() for batch in accessor]
    assert parent == process_of(accessor).pid
    accessor.terminate()
    assert eventually(lambda: not is_running(worker))


@host_only("its process")
def test_signals_to_the_whole_group_do_not_stop_the_process(access):
    accessor = access(Numbers(50, shape=()))
    for signal_number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        os.kill(process_of(accessor).pid, signal_number)
    assert values(accessor) == list(range(50))


@host_only("its process")
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads Linux's count of waits")
def test_process_sleeps_while_the_buffers_are_full(access):
    def waits():
        status = Path(f"/proc/{process_of(accessor).pid}/status").read_text()
        return int(status.partition("voluntary_ctxt_switches:")[2].split()[0])

    dataset = Counted(100)
    accessor = access(dataset, early_preload=True, buffer_size=2)
    assert eventually(lambda: dataset.count == 2)
    time.sleep(0.1)
    before = waits()
    time.sleep(0.3)
    assert waits() <= before + 3  # looking every 0.1 ms would be thousands


@host_only("its process")
def test_connection_that_breaks_before_its_worker_is_dead_is_reported_as_the_death(monkeypatch):
    # PyTorch sets its handler once in a process, and another test may have removed it.
    monkeypatch.setattr(torch.utils.data._utils.signal_handling, "_SIGCHLD_handler_set", False)
    before = signal.getsignal(signal.SIGCHLD)
    iterator = iter(torch.utils.data.DataLoader(ProcessIds(), num_workers=1))
    next(iterator)
    threading.Timer(0.5, iterator._workers[0].kill).start()
    try:
        cause = fetcher._cause_of(ConnectionResetError("Connection reset by peer"))
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert "killed by signal" in str(cause)


@host_only("its process")
def test_terminated_process_ends_by_itself_also_with_all_its_messages_unread(access):
    dataset = Counted(2000)
    first = access(dataset, early_preload=True, buffer_size=2000)
    access([torch.ones(1)])  # is forked off with the connection of the first
    assert eventually(lambda: dataset.count >= 200)
    process = process_of(first)
    first.terminate()
    assert process.exitcode == 0


@host_only("its process")
def test_terminated_process_that_is_stuck_ends_with_its_workers(access, monkeypatch):
    monkeypatch.setattr("poptorch_host.loading.fetcher._SECONDS_TO_END", 0.2)
    accessor = access(loader_of(Stuck(), num_workers=1))
    worker, parent = next(accessor)[0].tolist()
    for _ in range(2):
        next(accessor)
    accessor.terminate()
    assert not is_running(parent)
    assert eventually(lambda: not is_running(worker))


@host_only("its process")
def test_stopped_process_is_killed_at_the_end(access, monkeypatch):
    monkeypatch.setattr("poptorch_host.loading.fetcher_process._SECONDS_TO_STOP", 0.2)
    accessor = access([torch.ones(1)])
    process = process_of(accessor)
    os.kill(process.pid, signal.SIGSTOP)
    accessor.terminate()
    assert process.exitcode == -signal.SIGKILL


def is_running(pid):
    """Whether there is such a process, other than as a zombie. Looks into Linux's /proc."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def run_program(*arguments):
    """Starts the program in a session of its own. It heeds SIGINT, also where these tests, in a shell's background,
    were told to ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.poptorch_host.loading.accessor_program", *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
    finally:
        signal.signal(signal.SIGINT, before)


@host_only("its process")
@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="looks processes up in Linux's /proc")
@pytest.mark.parametrize("strategy", ["Fork", "ForkServer"])
def test_processes_end_with_a_program_that_is_killed(strategy):
    with run_program(strategy, "stuck") as program:
        processes = program.stdout.readline().split()
        assert len(processes) == 2
        program.kill()
        assert eventually(lambda: not any(map(is_running, processes)))


@host_only("its process")
def test_interrupted_program_ends_with_its_own_traceback_alone():
    with run_program("ForkServer", "wait") as program:
        processes = program.stdout.readline().split()
        os.killpg(program.pid, signal.SIGINT)
        errors = program.communicate(timeout=30)[1]
    assert program.returncode == -signal.SIGINT
    assert errors.count("Traceback") == 1 and errors.endswith("KeyboardInterrupt\n")
    assert not any(map(is_running, processes))


@host_only("its process")
def test_program_that_ends_during_an_iteration_does_not_hang():
    with run_program("Fork", "raise") as program:
        errors = program.communicate(timeout=30)[1]
    assert program.returncode == 1
    assert errors.endswith("ValueError: enough\n")


def test_program_without_main_guard_is_told_about_it(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import poptorch_host, torch\naccessor = poptorch_host.AsynchronousDataAccessor([torch.ones(1)])\n"
    )
    done = subprocess.run(
        [sys.executable, str(program)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 1
    assert "__main__" in done.stderr.strip().rpartition("\n")[2]
