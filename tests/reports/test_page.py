# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""report.html: what a browser shows of it, and that no name in it is more than text."""

import html
import importlib.metadata
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from reports import page
from reports.manifest import Checkpoint, Manifest, Setting, command_line, fingerprint
from reports.results import MATRIX_CLASSES, SHOWN_CLASSES, Mistake, build_results, data_uri

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HOSTILE = "<script>alert(1)</script>&\"'"
ROWS = [
    {"epoch": 0, "update": 5, "lr": 0.1, "loss": 2.0, "throughput": 10.0, "top1": None},
    {"epoch": 1, "update": 10, "lr": 0.05, "loss": float("nan"), "throughput": 11.0, "top1": 50.0, "grad_norm": 3.0},
]


def manifest(value="3"):
    return Manifest(
        [("command", f"python {value}")],
        [("torch", "2.0.1")],
        [("path", value)],
        [Setting("SEED", "0", "default"), Setting("TAG", value, "--tag")],
        [Checkpoint("last.pth", 1.5, "ab" * 32)],
    )


def results(classes=3, names=("one", HOSTILE), mistakes=()):
    confusions = np.array([[0, 0, 6], [0, 1, 4], [1, 1, 9], [2, 0, 2]])
    counts = np.zeros((classes, 3), dtype=np.int64)
    counts[:3] = [[10, 6, 8], [9, 9, 9], [2, 0, 1]]
    return build_results(2, names, confusions, counts, mistakes)


def rendered(*args, rows=ROWS, value="3"):
    head = page.Head("swin", "epoch 2 of 3", [("best top-1", "50.00 %")])
    return page.render(head, rows, results(*args) if args else None, manifest(value))


def without_plotly(text):
    return text.replace(page.plotly_script(), "")


LOOK = """<body>
<iframe id="desktop" src="report.html" style="width: 1280px; height: 900px"></iframe>
<iframe id="phone" src="report.html" style="width: 390px; height: 800px"></iframe>
<script>
setTimeout(() => {
  const told = {};
  for (const frame of document.querySelectorAll("iframe")) {
    const page = frame.contentDocument;
    const paper = getComputedStyle(page.body).backgroundColor, root = page.documentElement;
    const beyond = root.scrollWidth - root.clientWidth;  // pixels to scroll sideways
    for (const script of page.querySelectorAll("script")) script.remove();
    told[frame.id] = { beyond, paper, text: root.outerHTML };
  }
  document.body.textContent = JSON.stringify(told);
}, 4000);
</script></body>"""


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What a browser in dark mode makes of a page, the classes sorted by a click, on two widths."""
    if BROWSER is None:
        pytest.skip("no chromium or chrome is installed, which shows the page")
    folder = tmp_path_factory.mktemp("browser")
    mistakes = [Mistake(data_uri(Image.new("RGB", (8, 8), "red")), "a.png", "one", HOSTILE, 0.9)]
    sort = "<script>document.querySelectorAll('#classes button')[2].click()</script></body>"
    (folder / "report.html").write_text(rendered(20, ["one", HOSTILE], mistakes).replace("</body>", sort))
    (folder / "look.html").write_text(LOOK)
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    command += [
        "--allow-file-access-from-files",
        "--blink-settings=preferredColorScheme=0",
        "--virtual-time-budget=6000",
    ]
    command += ["--dump-dom", f"file://{folder / 'look.html'}"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    return json.loads(html.unescape(re.search("<body>(.*)</body>", shown, re.DOTALL)[1]))


def test_browser_draws_the_curves_and_sorts_the_classes(seen):
    shown = seen["desktop"]["text"]
    assert [title for title in ("Loss", "Accuracy", "Learning rate") if f">{title}</text>" not in shown] == []
    assert shown.count('class="main-svg"') >= 5
    classes = shown[shown.index('id="classes"') : shown.index('id="mistakes"')]
    assert re.findall(r"<tr><td>(.*?)</td>", classes)[0] == "2" and 'aria-sort="ascending"' in classes
    assert "<script>alert" not in shown and "&lt;script&gt;alert(1)" in classes


def test_page_fits_a_phone_and_a_desktop_and_is_dark_where_that_is_wanted(seen):
    assert {name: look["beyond"] for name, look in seen.items()} == {"desktop": 0, "phone": 0}
    assert {look["paper"] for look in seen.values()} == {"rgb(18, 22, 28)"}


def test_names_and_values_are_only_text():
    text = without_plotly(rendered(3, [HOSTILE] * 2, [Mistake("", HOSTILE, HOSTILE, HOSTILE, 0.5)], value=HOSTILE))
    assert "<script>alert" not in text and text.count("alert(1)") > 10
    data = json.loads(re.search(r'id="data">(.*?)</script>', text).group(1))
    assert data["manifest"]["configuration"]["TAG"] == {"value": HOSTILE, "origin": "--tag"}


def test_names_of_bytes_that_are_no_text_can_be_written():
    text = rendered(3, ["caf\udce9"], [Mistake("", "caf\udce9.png", "a", "b", 0.5)], value="/data/caf\udce9")
    assert text.encode("utf-8").count(b"caf\\udce9") >= 4


def test_page_asks_for_nothing_from_a_network():
    text = without_plotly(rendered(3, ["one"], []))
    assert not re.search(r"(src|href)=.?(https?:)?//", text) and "default-src 'none'" in text


def test_charts_leave_out_what_was_not_measured_and_numbers_that_are_not_finite():
    data = json.loads(re.search(r'id="data">(.*?)</script>', rendered()).group(1))
    lines = {chart["title"]: chart["lines"] for chart in data["charts"]}
    assert lines["Loss"] == [{"name": "training", "y": [2.0, None]}]
    assert lines["Accuracy"] == [{"name": "top-1", "y": [None, 50.0]}] and "Waiting for data" not in lines


def test_page_without_plotly_has_its_tables(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    text = rendered(3, ["one"], [])
    assert "pip install plotly" in text and "<td" in text and len(text) < 100_000


def test_matrix_has_every_cell_and_is_a_list_of_the_worst_with_many_classes():
    few = results()
    assert [[cell.images for cell in row] for row in few.matrix] == [[6, 4, 0], [0, 9, 0], [2, 0, 0]]
    many = results(MATRIX_CLASSES + 1)
    assert many.matrix == []
    assert [(cell.true, cell.images, cell.share) for cell in many.confusions] == [("one", 4, 0.4), ("2", 2, 1.0)]


def test_classes_have_their_accuracies_and_the_worst_are_kept_of_very_many():
    assert results(7).classes[0] == ("one", 10, 60.0, 80.0)
    assert results(3).classes[0].top5 is None
    counts = np.tile([[10, 10, 10]], (SHOWN_CLASSES + 5, 1))
    counts[-1] = [10, 1, 2]
    found = build_results(1, [], np.zeros((0, 3), dtype=np.int64), counts, [])
    assert len(found.classes) == SHOWN_CLASSES and found.left_out == 5
    assert found.classes[0].name == str(SHOWN_CLASSES + 4)


def test_large_pictures_are_made_small_and_tiny_ones_keep_their_pixels():
    assert len(data_uri(np.zeros((2000, 1000, 3), dtype=np.uint8))) < 5000
    assert data_uri(Image.new("L", (8, 8))).startswith("data:image/png;base64,")


def test_fingerprint_changes_with_files_labels_and_classes_and_not_with_the_folder():
    labels = np.array([0, 1])
    same = fingerprint(["a", "b"], labels, lambda index: f"/x/{index}.png")
    assert same == fingerprint(["a", "b"], labels, lambda index: f"/y/z/{index}.png")
    assert same != fingerprint(["a", "c"], labels, lambda index: f"/x/{index}.png")
    assert same != fingerprint(["a", "b"], labels[::-1], lambda index: f"/x/{index}.png")
    assert same != fingerprint(["a", "b"], labels, lambda index: f"/x/{index}.jpg")


def test_command_is_quoted_as_a_shell_takes_it(monkeypatch):
    monkeypatch.setattr("sys.argv", ["train_swin.py", "--tag", "a b"])
    assert command_line().endswith("train_swin.py --tag 'a b'")
