# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Text data sets and metrics that `datasets` and `evaluate` find before they download."""

import json
import random
from pathlib import Path
from textwrap import dedent, indent

from .files import WORDS, placed

# the features of a metric, and the body of its function of predictions and references
_METRICS = {
    "accuracy": (
        '{"predictions": Value("int32"), "references": Value("int32")}',
        'return {"accuracy": sum(map(int.__eq__, map(int, predictions), map(int, references))) / len(references)}',
    ),
    "roc_auc": (
        '{"prediction_scores": Sequence(Value("float")), "references": Sequence(Value("int32"))}',
        """\
        from sklearn.metrics import roc_auc_score
        return {"roc_auc": roc_auc_score(references, prediction_scores, multi_class=multi_class)}""",
    ),
    "rouge": (
        '{"predictions": Value("string"), "references": Value("string")}',
        'return {"exact": sum(map(str.__eq__, predictions, references)) / len(predictions)}',
    ),
    "sacrebleu": (
        '{"predictions": Value("string"), "references": Sequence(Value("string"))}',
        'return {"score": 100 * sum(map(list.__contains__, references, predictions)) / len(predictions)}',
    ),
    "seqeval": (
        '{"predictions": Sequence(Value("string")), "references": Sequence(Value("string"))}',
        """\
        pairs = [pair for lists in zip(predictions, references) for pair in zip(*lists)]
        return {"overall_accuracy": sum(found == known for found, known in pairs) / len(pairs)}""",
    ),
    "wer": (
        '{"predictions": Value("string"), "references": Value("string")}',
        "return sum(map(str.__ne__, predictions, references)) / len(predictions)",
    ),
    "squad": (
        """{
            "predictions": {"id": Value("string"), "prediction_text": Value("string")},
            "references": {
                "id": Value("string"),
                "answers": Sequence({"text": Value("string"), "answer_start": Value("int32")}),
            },
        }""",
        """\
        known = {reference["id"]: reference["answers"]["text"] for reference in references}
        found = [answer["prediction_text"] in known[answer["id"]] for answer in predictions]
        return {"exact_match": 100 * sum(found) / len(found)}""",
    ),
}
_METRICS["xnli"] = _METRICS["accuracy"]
_METRIC = '''\
"""Generated in place of a download."""

import {library}
from datasets import Features, Sequence, Value


class Generated({library}.Metric):
    def _info(self):
        return {library}.MetricInfo(description="", citation="", inputs_description="", features=Features({features}))

    def _compute(self, predictions=None, references=None, prediction_scores=None, multi_class="raise"):
{body}
'''


def metric(library: str, name: str) -> None:
    """Writes the script of a metric where `datasets` or `evaluate` would keep its download.

    They are simpler than those of the names: squad, rouge, sacrebleu and wer compare whole texts, seqeval tags.
    """
    features, body = _METRICS[name]
    text = _METRIC.format(library=library, features=features, body=indent(dedent(body), " " * 8))
    known_as = name if library == "datasets" else f"evaluate-metric--{name}"
    cache = f"{Path.home()}/.cache/huggingface/modules/{library}_modules/metrics"
    placed(f"{cache}/{known_as}/{'0' * 64}/{name}.py").write_text(text)


def squad(folder: str, train: str, validation: str) -> None:
    """Writes questions on random texts, with answers that are words of the text, as JSON lines."""
    rng = random.Random(0)
    for split, count in (("train", int(train)), ("validation", int(validation))):
        with placed(f"{folder}/{split}.json").open("w") as file:
            for index in range(count):
                words = rng.choices(WORDS, k=40)
                place = rng.randrange(len(words))
                answers = {"text": [words[place]], "answer_start": [len(" ".join([*words[:place], ""]))]}
                example = {"id": f"{split}{index}", "title": "words", "context": " ".join(words), "answers": answers}
                file.write(json.dumps({**example, "question": " ".join(rng.choices(WORDS, k=6)) + "?"}) + "\n")


def records(file: str, count: str, *fields: str) -> None:
    """Writes JSON lines. Fields: NAME=words (a text), NAME=tokens (a list), NAME=tags (of ten tokens), NAME=label
    (0 or 1) and NAME=pair (an English and a German text)."""
    rng = random.Random(0)
    kinds = {
        "words": lambda: " ".join(rng.choices(WORDS, k=10)),
        "tokens": lambda: rng.choices(WORDS, k=10),
        "tags": lambda: rng.choices(["O", "B-PLACE"], k=10),
        "label": lambda: rng.randrange(2),
        "pair": lambda: {"en": " ".join(rng.choices(WORDS, k=10)), "de": " ".join(rng.choices(WORDS, k=10))},
    }
    named = [field.split("=") for field in fields]
    with placed(file).open("w") as output:
        for _ in range(int(count)):
            output.write(json.dumps({name: kinds[kind]() for name, kind in named}) + "\n")
