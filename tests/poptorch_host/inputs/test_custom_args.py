# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Parsers for arguments of other types."""

import sys
import types

import pytest
import torch
from poptorch_host.inputs import custom_args

from tests.backend import host_only, poptorch, raises


class Pair:
    def __init__(self, left, right):
        self.left, self.right = left, right


class PairParser(poptorch.ICustomArgParser):
    def yieldTensors(self, struct):
        yield struct.left
        yield struct.right

    def reconstruct(self, original_structure, tensor_iterator):
        return type(original_structure)(next(tensor_iterator), next(tensor_iterator))


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr(custom_args, "_parsers", {})


@host_only("its register of parsers")
def test_parser_serves_a_type_and_its_subclasses_until_forgotten(registered):
    parser = PairParser()
    poptorch.registerCustomArgParser(Pair, parser)

    class Ordered(Pair):
        pass

    assert custom_args.parser_of(Pair(1, 2)) is custom_args.parser_of(Ordered(1, 2)) is parser
    rebuilt = parser.reconstruct(Ordered(1, 2), iter([3, 4]))
    assert isinstance(rebuilt, Ordered) and list(parser.yieldTensors(rebuilt)) == [3, 4]
    poptorch.registerCustomArgParser(Pair, None)
    assert custom_args.parser_of(Pair(1, 2)) is None and custom_args.parser_of(3) is None


def test_parser_of_another_kind_is_refused(registered):
    with raises(poptorch.Error, match="ICustomArgParser"):
        poptorch.registerCustomArgParser(Pair, object())
    with raises(TypeError):
        poptorch.ICustomArgParser()


@host_only("its register of parsers")
def test_graph_parsers_need_pytorch_geometric(registered, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_geometric", None)
    monkeypatch.setitem(sys.modules, "torch_geometric.data", None)
    with raises(poptorch.Error, match="pip install torch_geometric"):
        poptorch.registerGeometricCustomArgParsers()


class Graph:
    """What the parser needs of a graph of PyTorch Geometric: its stores."""

    def __init__(self, **values):
        self.values = values

    def __copy__(self):
        return type(self)(**self.values)

    @property
    def stores(self):
        return [self.values]


@host_only("its register of parsers")
def test_graph_parser_replaces_the_tensors_of_all_stores(registered, monkeypatch):
    data = types.ModuleType("torch_geometric.data")
    data.Data, data.HeteroData = Graph, type("HeteroData", (), {})
    monkeypatch.setitem(sys.modules, "torch_geometric", types.ModuleType("torch_geometric"))
    monkeypatch.setitem(sys.modules, "torch_geometric.data", data)
    poptorch.registerGeometricCustomArgParsers()
    graph = Graph(x=torch.ones(2), count=3, y=torch.zeros(1))
    parser = custom_args.parser_of(graph)
    rebuilt = parser.reconstruct(graph, (tensor + 1 for tensor in parser.yieldTensors(graph)))
    assert rebuilt.values["x"].tolist() == [2, 2] and rebuilt.values["y"].tolist() == [1]
    assert rebuilt.values["count"] == 3
    assert graph.values["x"].tolist() == [1, 1]
