# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Makes small random data sets and models in the places where the programs of programs.yml expect real ones.

    python tools/program_data MAKER ARGUMENTS

runs one of MAKERS, whose arguments are strings. Paths are relative to the current folder, that of the program.
"""

from .files import copy, library, text, write
from .graphs import imdb, jodie, partition, planetoid, qm9, reddit, triplets, tudataset
from .hub import dataset
from .language import metric, records, squad
from .models import letters, model, reader, state, vqgan, words
from .pictures import cifar10, coco, images, mnist, video, xrays

_FILES = (copy, library, text, write)
_GRAPHS = (imdb, jodie, partition, planetoid, qm9, reddit, triplets, tudataset)
_LANGUAGE = (dataset, metric, records, squad)
_MODELS = (letters, model, reader, state, vqgan, words)
_PICTURES = (cifar10, coco, images, mnist, video, xrays)
MAKERS = {maker.__name__: maker for maker in (*_FILES, *_GRAPHS, *_LANGUAGE, *_MODELS, *_PICTURES)}
