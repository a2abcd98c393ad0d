"""The report: complete in itself, true to the figures, and indifferent to what classes and files
are called.
"""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from models.package.manifest import Parity, PreprocessSpec
from tests.training.photos import photo
from training.data.source import Example
from training.evaluate.latency import Latency, MeasuredLatency
from training.evaluate.predictions import Predictions, evaluation
from training.evaluate.report.figures import MAX_MISTAKES, Subject
from training.evaluate.report.report import MAX_CONFUSION_CLASSES, WORST_CLASSES, write_report

SPEC = PreprocessSpec(resize_size=32, crop=(32, 32))
PARITY = Parity(
    images=9,
    max_probability_difference=3e-7,
    top1_agreement=1.0,
    tolerance=1e-4,
    batch_sizes=(1, 2, 7),
    exporter="torch.onnx dynamo",
)
NASTY = ("<b>bold</b>", "$title & ${parity}", '"><script>alert(1)</script>')


class Page(HTMLParser):
    """What a browser would make of the page: its tags with attributes, and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def answers_to(labels, said, confidence, *, name="photo {}.png"):
    """One image for each of *labels*, answered with *said* at *confidence*; the other classes share
    the rest.
    """
    classes = max(*labels, *said) + 1
    probabilities_NK = np.empty((len(labels), classes), np.float32)
    for row, (best, share) in enumerate(zip(said, confidence, strict=True)):
        probabilities_NK[row] = (1.0 - share) / (classes - 1)
        probabilities_NK[row, best] = share
    examples = [
        Example(name=name.format(index), label=label, encoded=photo("red", index))
        for index, label in enumerate(labels)
    ]
    flat = [0.5] * len(labels)
    return Predictions(
        examples,
        np.array(labels),
        np.log(probabilities_NK),
        probabilities_NK,
        np.ones((len(labels), 2), np.float32),
        flat,
        flat,
        0.02 * len(labels),
    )


LATENCY = Latency(
    "<CPU> & co",
    "x86-64-avx2",
    2,
    (
        MeasuredLatency("preprocess", 1, 200, 1.5, 2.25),
        MeasuredLatency("model", 2, 150, 3.0, 4.125),
    ),
)


def written(folder, answers, labels, *, title="run", temperature=1.0, threshold=0.0, history=None):
    figures = evaluation(answers, source="folder:photos", split="test", provider="cpu")
    subject = Subject(
        title=title,
        labels=labels,
        spec=SPEC,
        parity=PARITY,
        temperature=temperature,
        abstain_threshold=threshold,
        history=history,
    )
    write_report(folder, subject, found=answers, evaluation=figures, latency=LATENCY)
    return Page((folder / "report.html").read_text(encoding="utf-8")), json.loads(
        (folder / "report.json").read_text()
    )


SOME = ([0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 2, 2], [0.9, 0.8, 0.95, 0.7, 0.6, 0.99])


def test_the_json_has_the_figures(tmp_path):
    answers = answers_to(*SOME)
    _, report = written(tmp_path, answers, ("ant", "bee", "cat"))

    assert report["evaluation"] == evaluation(
        answers, source="folder:photos", split="test", provider="cpu"
    ).model_dump(mode="json")
    assert report["evaluation"]["metrics"]["top1"]["value"] == pytest.approx(4 / 6)
    assert report["parity"] == PARITY.model_dump(mode="json")
    assert report["labels"] == ["ant", "bee", "cat"]
    assert report["confusion"] == [[2, 1, 0], [0, 1, 1], [0, 0, 1]]
    assert report["classes"][0] == {
        "label": "ant",
        "support": 3,
        "precision": 1.0,
        "recall": pytest.approx(2 / 3),
        "f1": pytest.approx(0.8),
    }
    assert report["model_ms_per_image"] == pytest.approx(20.0)
    assert [
        (mistake["image"], mistake["truth"], mistake["answer"]) for mistake in report["mistakes"]
    ] == [
        ("photo 2.png", "ant", "bee"),  # the more confident one first
        ("photo 4.png", "bee", "cat"),
    ]
    assert report["mistakes"][0]["probability"] == pytest.approx(0.95, abs=1e-6)


def test_the_page_shows_the_same_figures(tmp_path):
    page, _ = written(tmp_path, answers_to(*SOME), ("ant", "bee", "cat"))
    for words in (
        "66.7%",
        "right at the first guess",
        "expected calibration error",
        "6 test images of folder:photos (cpu, 20.0 ms of model time",
    ):
        assert words in page.text
    assert "3.0e-07 (allowed 1e-04) over 9 images, at batch sizes 1, 2, 7" in page.text
    assert [cell.get("class") for tag, cell in page.tags if tag == "td" and "class" in cell].count(
        "hit"
    ) == 3


def test_the_page_is_complete_in_itself(tmp_path):
    page, _ = written(tmp_path, answers_to(*SOME), NASTY)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert re.findall(r"https?://|['\"(]//|@import|url\(", html) == []
    loads = [
        value
        for _, attributes in page.tags
        for key, value in attributes.items()
        if key in ("src", "href", "srcset", "data", "action")
    ]
    inside = [value for value in loads if value.startswith("#")]
    assert len(loads) - len(inside) == 3  # the icon and two mistakes
    assert all(value.startswith("data:") for value in loads if value not in inside)
    places = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert len(inside) == 6
    assert {value[1:] for value in inside} == places
    assert not {"script", "iframe", "object", "embed", "form"} & {tag for tag, _ in page.tags}


def test_names_are_text_and_never_markup(tmp_path):
    name = '<i onmouseover="x">{}</i>.png'
    page, report = written(tmp_path, answers_to(*SOME, name=name), NASTY, title="<u>run</u>")
    assert not {"script", "i", "u"} & {tag for tag, _ in page.tags}
    for words in (*NASTY, "<u>run</u>: evaluation", name.format(2)):
        assert words in page.text
    assert [attributes["alt"] for tag, attributes in page.tags if tag == "img"] == [
        name.format(2),
        name.format(4),
    ]
    assert report["labels"] == list(NASTY)


def test_a_faultless_model_has_no_mistakes_to_show(tmp_path):
    page, report = written(tmp_path, answers_to([0, 1], [0, 1], [0.9, 0.9]), ("ant", "bee"))
    assert report["mistakes"] == []
    assert "None: every image was classified right." in page.text


def test_many_classes_are_shown_as_pairs_and_many_mistakes_are_cut(tmp_path):
    classes = MAX_CONFUSION_CLASSES + 1
    labels = tuple(f"class {index}" for index in range(classes))
    truth = list(range(classes))
    page, report = written(tmp_path, answers_to(truth, [1, *truth[:-1]], [0.9] * classes), labels)
    assert not any(attributes.get("class") == "confusion" for _, attributes in page.tags)
    assert f"The other {classes - WORST_CLASSES} classes" in page.text
    assert len(report["mistakes"]) == MAX_MISTAKES == sum(tag == "figure" for tag, _ in page.tags)
    assert len(report["confusion"]) == classes


def test_the_worst_class_and_the_worst_confusion_come_first(tmp_path):
    page, report = written(
        tmp_path,
        answers_to([0, 0, 0, 0, 1, 1, 2, 2], [0, 0, 0, 0, 2, 2, 2, 1], [0.9] * 8),
        ("ant", "bee", "cat"),
    )
    assert [row["label"] for row in report["classes"]] == ["ant", "bee", "cat"]
    table = page.text.partition("Classes, worst first")[2]
    assert table.index("bee") < table.index("cat") < table.index("ant")
    assert report["confused"] == [
        {"truth": "bee", "answer": "cat", "images": 2},
        {"truth": "cat", "answer": "bee", "images": 1},
    ]


def test_calibration_is_shown_before_and_after_the_temperature(tmp_path):
    answers = answers_to(*SOME)
    page, report = written(tmp_path, answers, ("ant", "bee", "cat"), temperature=2.0)
    before, after = report["calibration"]["before"], report["calibration"]["after"]
    assert (before["temperature"], after["temperature"]) == (1.0, 2.0)
    # The logits are the logarithms of the probabilities, so that here both have the same error.
    assert before["ece"] == pytest.approx(after["ece"], abs=1e-6)
    assert sum(part["count"] for part in after["bins"]) == 6
    assert after["ece"] == pytest.approx(report["evaluation"]["metrics"]["ece"]["value"], abs=1e-12)
    assert "A temperature of 2.000, fitted on validation images" in page.text
    plain, _ = written(tmp_path, answers, ("ant", "bee", "cat"))
    assert "The temperature is 1" in plain.text
    kinds = [
        {attributes.get("class") for tag, attributes in shown.tags if tag == "polyline"}
        for shown in (page, plain)
    ]
    assert kinds == [{"ideal", "raw", "curve"}, {"ideal", "curve"}]


def test_the_abstain_threshold_has_its_dot_on_the_curve(tmp_path):
    page, report = written(tmp_path, answers_to(*SOME), ("ant", "bee", "cat"), threshold=0.75)
    curve = report["abstention"]["curve"]
    assert [point["answered"] for point in curve] == pytest.approx(
        [step / 6 for step in range(1, 7)]
    )
    assert [point["accuracy"] for point in curve] == pytest.approx(
        [1.0, 1 / 2, 2 / 3, 3 / 4, 4 / 5, 4 / 6]
    )
    assert "abstains below a confidence of 0.750" in page.text
    assert [attributes["class"] for tag, attributes in page.tags if tag == "circle"] == ["now"]


def test_latency_names_the_machine_that_it_holds_for(tmp_path):
    page, report = written(tmp_path, answers_to(*SOME), ("ant", "bee", "cat"))
    assert report["latency"]["timings"][1] == {
        "what": "model",
        "threads": 2,
        "runs": 150,
        "p50_ms": 3.0,
        "p99_ms": 4.125,
    }
    assert "on <CPU> & co (x86-64-avx2, 2 threads to use)" in page.text
    assert "model, 2 threads" in page.text


def test_every_key_of_the_json_is_documented_and_no_other(tmp_path):
    _, report = written(tmp_path, answers_to(*SOME), ("ant", "bee", "cat"))
    document = (Path(__file__).resolve().parents[4] / "docs/evaluation.md").read_text(
        encoding="utf-8"
    )
    documented = re.findall(r"^\| `([a-z_0-9]+)` \|", document, re.MULTILINE)
    assert documented == list(report)
    assert report["schema"] == 1
