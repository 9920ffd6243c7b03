# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Graphs in the raw formats of PyTorch Geometric's data sets, which download only files that are missing."""

import pickle
from pathlib import Path
from typing import Any, Dict, List

import numpy as np

from .files import placed


def neighbors(rng: np.random.Generator, nodes: int, degree: int = 4) -> np.ndarray:
    """Returns the directed edges of an undirected random graph without isolated nodes, shape (2, edges)."""
    source = np.repeat(np.arange(nodes), degree // 2)
    # a step of at least one keeps self loops out
    target = (source + rng.integers(1, nodes, len(source))) % nodes
    return np.unique(np.stack([np.r_[source, target], np.r_[target, source]]), axis=1)


def cliques(nodes: int, size: int) -> np.ndarray:
    """Returns the edges of groups of nodes that are all linked to each other, shape (2, edges)."""
    source, target = np.divmod(np.arange(nodes * size), size)
    target += source - source % size
    return np.stack([source, target])[:, (source != target) & (target < nodes)]


def planetoid(folder: str, name: str, nodes: str, features: str, classes: str, clique: str = "0") -> None:
    """Writes a citation graph (Cora, PubMed): folder/name/raw/ind.name.*; the last 100 nodes are the test set.

    With cliques, all samples of neighbors have the same size.
    """
    count, train, known = int(nodes), 20 * int(classes), int(nodes) - 100
    if known < train + 500:
        raise ValueError(f"{nodes} nodes are too few for {train} training, 500 validation and 100 test nodes")
    from scipy.sparse import csr_matrix

    rng = np.random.default_rng(0)
    words = (rng.random((count, int(features))) < 0.1).astype(np.float32)
    labels = np.eye(int(classes), dtype=np.int32)[rng.integers(0, int(classes), count)]
    graph: Dict[int, List[int]] = {node: [] for node in range(count)}
    edges = cliques(count, int(clique)) if int(clique) else neighbors(rng, count)
    for source, target in edges.T.tolist():
        graph[source].append(target)
    parts = {"x": csr_matrix(words[:train]), "allx": csr_matrix(words[:known]), "tx": csr_matrix(words[known:])}
    parts.update(y=labels[:train], ally=labels[:known], ty=labels[known:], graph=graph)
    prefix = f"{folder}/{name}/raw/ind.{name.lower()}"
    for part, value in parts.items():
        placed(f"{prefix}.{part}").write_bytes(pickle.dumps(value, protocol=2))
    lines(f"{prefix}.test.index", range(known, count))


def tudataset(folder: str, name: str, graphs: str, labels: str, largest: str = "28") -> None:
    """Writes molecules of two classes (MUTAG, NCI1) as text: folder/name/raw/name_*.txt; nodes count from one."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(10, int(largest) + 1, int(graphs))
    starts = np.cumsum(sizes) - sizes
    edges = np.concatenate([neighbors(rng, size, 2) + start for size, start in zip(sizes, starts)], axis=1)
    prefix = f"{folder}/{name}/raw/{name}"
    lines(f"{prefix}_A.txt", (f"{source}, {target}" for source, target in (edges.T + 1).tolist()))
    lines(f"{prefix}_graph_indicator.txt", np.repeat(np.arange(len(sizes)), sizes) + 1)
    lines(f"{prefix}_graph_labels.txt", np.arange(len(sizes)) % 2)
    # every label occurs, whatever was drawn
    kinds = np.r_[np.arange(int(labels)), rng.integers(0, int(labels), sizes.sum() - int(labels))]
    lines(f"{prefix}_node_labels.txt", kinds)


def qm9(folder: str, molecules: str, largest: str = "6") -> None:
    """Writes molecules with positions and 19 targets, in the form that QM9 has for machines without RDKit."""
    import torch

    rng = np.random.default_rng(0)
    sizes = rng.integers(3, int(largest) + 1, int(molecules)).tolist()
    # all tensors are views of a few: a file with a storage for each would take minutes
    generator = torch.Generator().manual_seed(0)
    kinds = torch.tensor([1, 6, 7, 8, 9])[torch.randint(5, (sum(sizes),), generator=generator)]
    features = torch.rand(sum(sizes), 11, generator=generator)
    positions = 3 * torch.rand(sum(sizes), 3, generator=generator)
    targets = torch.rand(len(sizes), 19, generator=generator)
    rings = {size: torch.from_numpy(neighbors(rng, size, 2)) for size in set(sizes)}
    bonds = {size: torch.eye(4)[torch.zeros(ring.shape[1], dtype=torch.long)] for size, ring in rings.items()}
    listed, start = [], 0
    for index, size in enumerate(sizes):
        atoms = slice(start, start + size)
        molecule: Dict[str, Any] = dict(x=features[atoms], z=kinds[atoms], pos=positions[atoms])
        molecule.update(edge_index=rings[size], edge_attr=bonds[size], y=targets[index : index + 1])
        listed.append({**molecule, "name": f"gdb_{index + 1}", "idx": index})
        start += size
    torch.save(listed, placed(f"{folder}/raw/qm9_v3.pt"))


def reddit(folder: str, nodes: str, features: str, classes: str) -> None:
    """Writes the graph of posts: reddit_data.npz and reddit_graph.npz."""
    from scipy.sparse import coo_matrix, save_npz

    rng = np.random.default_rng(0)
    count = int(nodes)
    words = rng.standard_normal((count, int(features)), dtype=np.float32)
    arrays = dict(feature=words, label=rng.integers(0, int(classes), count), node_types=rng.integers(1, 4, count))
    np.savez(placed(f"{folder}/raw/reddit_data.npz"), **arrays)
    source, target = neighbors(rng, count)
    save_npz(f"{folder}/raw/reddit_graph.npz", coo_matrix((np.ones(len(source)), (source, target)), (count, count)))


def partition(folder: str, parts: str, data_set: str, *arguments: str) -> None:
    """Writes an even partition of a data set in the place where ClusterData keeps that of METIS.

    Arguments: those of the data set, and self-loops if the program adds them.
    """
    import torch
    import torch_geometric
    from torch_geometric.loader import ClusterData

    class EvenClusters(ClusterData):
        def _metis(self, edge_index: torch.Tensor, num_nodes: int) -> torch.Tensor:
            return torch.arange(num_nodes) * self.num_parts // num_nodes

    names = [name for name in arguments if name != "self-loops"]
    graph = getattr(torch_geometric.datasets, data_set)(*names)[0]
    if "self-loops" in arguments:
        graph = torch_geometric.transforms.AddSelfLoops()(graph)
    EvenClusters(graph, int(parts), save_dir=folder)


def imdb(folder: str, movies: str, directors: str, actors: str) -> None:
    """Writes a graph of three types of node, in which movies have edges to directors and actors, and back."""
    from scipy.sparse import csr_matrix, save_npz

    rng = np.random.default_rng(0)
    raw = placed(f"{folder}/raw/adjM.npz").parent
    counts = [int(movies), int(directors), int(actors)]
    for index, count in enumerate(counts):
        save_npz(raw / f"features_{index}.npz", csr_matrix((rng.random((count, 32)) < 0.1).astype(np.float32)))
    movie = np.arange(counts[0])
    director = counts[0] + rng.integers(0, counts[1], counts[0])
    actor = counts[0] + counts[1] + rng.integers(0, counts[2], counts[0])
    source, target = np.r_[movie, movie], np.r_[director, actor]
    rows, columns = np.r_[source, target], np.r_[target, source]
    save_npz(raw / "adjM.npz", csr_matrix((np.ones(len(rows)), (rows, columns)), (sum(counts), sum(counts))))
    np.save(raw / "labels.npy", np.arange(counts[0]) % 3)
    train, validation, test = np.array_split(rng.permutation(counts[0]), 3)
    np.savez(raw / "train_val_test_idx.npz", train_idx=train, val_idx=validation, test_idx=test)


def jodie(folder: str, name: str, events: str, users: str = "60", items: str = "30") -> None:
    """Writes a stream of interactions with 172 features: folder/name/raw/name.csv, one line of names first."""
    rng = np.random.default_rng(0)
    count = int(events)
    user = np.r_[int(users) - 1, rng.integers(0, int(users), count - 1)]
    columns = [user, rng.integers(0, int(items), count), 10 * np.arange(count), rng.integers(0, 2, count)]
    values = np.concatenate([np.stack(columns, 1).astype(float), rng.random((count, 172)).round(3)], axis=1)
    header = "user_id,item_id,timestamp,state_label,comma_separated_list_of_features"
    np.savetxt(placed(f"{folder}/{name}/raw/{name}.csv"), values, fmt="%g", delimiter=",", header=header, comments="")


def triplets(folder: str, entities: str, relations: str, count: str, *files: str) -> None:
    """Writes a knowledge graph: relations.dict, and in each of the files lines of head, relation and tail."""
    rng = np.random.default_rng(0)
    lines(f"{folder}/relations.dict", (f"{index}\t/relation/{index}" for index in range(int(relations))))
    for file in files:
        heads, tails = rng.integers(0, int(entities), (2, int(count))).tolist()
        kinds = rng.integers(0, int(relations), int(count)).tolist()
        # the first lines name every entity, so that no file has one that the others lack
        known = [f"/m/{entity}\t/relation/0\t/m/{(entity + 1) % int(entities)}" for entity in range(int(entities))]
        drawn = [f"/m/{head}\t/relation/{kind}\t/m/{tail}" for head, kind, tail in zip(heads, kinds, tails)]
        lines(f"{folder}/{file}", known + drawn)


def lines(file: str, values: Any) -> Path:
    """Writes one value a line."""
    path = placed(file)
    path.write_text("".join(f"{value}\n" for value in values))
    return path
