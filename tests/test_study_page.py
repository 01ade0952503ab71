"""The page of a study: valid HTML that loads and runs nothing, and shows what tables.json and the reports say."""

import base64
import builtins
import html
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from conftest import RUN, TEACHER, TINY
from PIL import Image
from test_old_reports import as_version_4

from kd.studies import page_figures, study_page
from kd.studies.page_words import how_to_read
from kd.studies.tables import write_tables
from kd.system.errors import Problem

PAGE = Path("runs/study.html")
VOID = {"meta", "img", "br", "hr", "link", "input"}
HOSTILE = '<script>alert("x")</script>&<img src=x onerror=y>'


class Page(HTMLParser):
    """The elements and texts of a page, with what is wrong with its tags."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.elements, self.faults, self.texts = [], [], [], []
        self.feed(text)
        self.close()
        self.faults += [f"{tag} is never closed" for tag in self.open]

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if len(dict(attributes)) != len(attributes):
            self.faults.append(f"{tag} has an attribute twice")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> closes another element")

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def all(self, *tags):
        return [attributes for tag, attributes in self.elements if tag in tags]

    @property
    def text(self):
        return " ".join(" ".join(data for tag, data in self.texts if tag != "style").split())


def faults_of(text):
    """Return what a page that is handed on must not have."""
    page = Page(text)
    found = list(page.faults)
    for tag, attributes in page.elements:
        if tag in ("script", "iframe", "object", "embed", "link", "base", "form", "svg"):
            found.append(f"<{tag}>")
        found += [f"{tag} {name}" for name in attributes if name.startswith("on") or name in ("srcset", "style", "background")]
        for name in ("src", "href", "data", "action", "poster"):
            value = attributes.get(name)
            if value is not None and not value.startswith("#") and not (tag == "img" and value.startswith("data:image/png;base64,")):
                found.append(f"{tag} {name}={value[:40]}")
    found += ["an image without text" for one in page.all("img") if not one.get("alt", "").strip()]
    found += ["an image without size" for one in page.all("img") if not one.get("width") or not one.get("height")]
    style = " ".join(data for tag, data in page.texts if tag == "style")
    found += [word for word in ("url(", "@import", "http:", "https:") if word in style]
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    found += [f"id {one} twice" for one in set(ids) if ids.count(one) > 1]
    found += [f"no place {one['href']}" for one in page.all("a") if one["href"][1:] not in ids]
    found += ["a heading of a table without scope" for one in page.all("th") if one.get("scope") not in ("col", "row")]
    tags = [tag for tag, _ in page.elements]
    if tags.count("caption") != tags.count("table") or tags.count("h1") != 1 or page.all("html")[0].get("lang") != "en":
        found.append("captions, h1 or lang")
    levels = [int(tag[1]) for tag in tags if re.fullmatch("h[1-6]", tag)]
    found += ["a heading skips a level" for one, other in zip(levels, levels[1:]) if other > one + 1]
    return found


@pytest.fixture
def study(make, templates):
    """Two seeds of a student, of the network alone, and a run that failed; the first student has figures."""
    for seed in (0, 1):
        make("normal", "resnet34", "resnet18", seed)
        make("alone", "", "resnet18", seed)
    folder = make("self", "resnet18", "resnet18", 0)
    for name in ("confusion", "reliability"):
        Image.fromarray(np.full((30, 40, 3), 200, np.uint8)).save(folder.parents[2] / "normal/resnet34-resnet18/seed0" / f"{name}.png")
    (folder / "report.json").unlink()
    (folder / "ended.json").write_text(json.dumps({"ended": "failed", "message": "Folder '/home/jane/secret/films' is gone.", "code": 2,
                                                   "step": 3, "time": None}))
    return Path("runs")


def written(**more):
    result = write_tables(Path("runs"), **more)
    return result, PAGE.read_text("utf-8")


def test_the_page_is_sound_and_shows_the_values_of_the_json(study):
    result, text = written()
    assert faults_of(text) == []
    page = Page(text)
    [protocol] = result["protocols"]
    cell = protocol["tables"][0]["cells"][-1]
    gap = next(cell["minus_alone"] for cell in protocol["tables"][0]["cells"] if cell["minus_alone"])
    plain = page.text.replace("\u00a0", " ")
    assert f"{gap['mean']:+.4f} [{gap['low']:+.4f}, {gap['high']:+.4f}]" in plain and gap["says"] in plain
    assert cell["student"] in plain and html.unescape(protocol["heading"]) in plain
    for words in ("How to read this page", "Cards of the networks", "Settings", "Commands", "Unfinished runs", "Missing runs:",
                  "not for diagnosis", "no evidence", "Table 9.3.1 Normal KD", "4 finished runs, 1 run without a report"):
        assert words in plain, words
    assert "python evaluate.py --tables runs" in plain and "no image and no name of a patient" in plain


def test_the_page_says_its_own_size(study, capsys):
    _, text = written()
    [size] = re.findall(r"Size: +(\S+) MB\.", text)
    assert float(size) == pytest.approx(PAGE.stat().st_size / 1e6, abs=0.006) and f"study.html ({size} MB)" in capsys.readouterr().out


def test_neither_paths_of_the_machine_nor_patients_are_on_the_page(study):
    result = write_tables(Path("runs").resolve())
    text = PAGE.read_text()
    assert faults_of(text) == [] and str(Path.cwd()) in json.dumps(result) and str(Path.cwd()) not in text
    assert "jane" not in text and ".../films" in text and "--config runs/set/normal/resnet34-resnet18/seed0/settings.json" in text


def test_alternative_texts_say_what_the_figures_show(study):
    _, text = written()
    page = Page(text)
    texts = [one["alt"] for one in page.all("img")]
    [matrix] = [one for one in texts if one.startswith("Confusion matrix, resnet18 <- resnet34, normal, seed 0")]
    report = json.loads(Path("runs/set/normal/resnet34-resnet18/seed0/report.json").read_text())
    first, row = report["data"]["classes"][0], report["confusion_matrix"][0]
    assert f"{first} {row[0]} of {sum(row)} right" in matrix and "most often confused: " in matrix
    [reliability] = [one for one in texts if one.startswith("Reliability")]
    assert f"ECE {report['evidence']['calibration']['before']['ece']:.4f} without scaling" in reliability
    [heat] = [one for one in texts if one.startswith("Heat map")][:1]
    assert "resnet18 <- resnet34: " in heat


def test_figures_of_two_classes_have_their_positive_class_and_area(script, labelled):
    from kd.reports import report as reports
    from kd.studies.model_card_tables import value_text
    words = [*TINY, "--dataset", "folder", "--data-dir", labelled, "--batch-size", "4"]
    assert script("train_teacher", ["--model", "kdtiny", *words])[0] == 0
    _, text = written()
    [file] = Path("runs").rglob("report.json")
    evidence = reports.read(file.parent)["evidence"]
    found = {one["alt"].split(" of ")[0]: one["alt"] for one in Page(text).all("img")}
    assert faults_of(text) == [] and {"ROC curve", "Precision and recall", "Decision curve: net benefit"} <= found.keys()
    assert f"of {evidence['positive']}, kdtiny, alone, seed 0, test split: area" in found["ROC curve"]
    assert value_text(evidence["metrics"]["auroc"]) in found["ROC curve"] and "No distilled students yet" in text


def test_names_from_outside_are_text_and_never_html(make):
    def hostile(report):
        report["data"]["name"] = HOSTILE
        report["data"]["classes"] = [HOSTILE + str(number) for number in range(len(report["data"]["classes"]))]
        report["settings"]["tag"] = "x"
    for seed in (0, 1):
        folder = make("normal", "resnet34", "local-dir:/home/jane/" + HOSTILE, seed, hostile, f"runs/set/normal-x/a{seed}/seed{seed}")
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(folder.parents[1] / "a0/seed0/confusion.png")
    _, text = written()
    page = Page(text)
    assert faults_of(text) == [] and "<script" not in text and "jane" not in text
    assert 'alert("x")' in page.text and any(HOSTILE in one["alt"] for one in page.all("img"))


def test_images_of_patients_are_shown_only_on_request_and_never_those_of_mura(study, monkeypatch):
    run = Path("runs/set/normal/resnet34-resnet18/seed0")
    (run / "look").mkdir()
    Image.fromarray(np.full((20, 3000), 77, np.uint8)).save(run / "look/look-errors.png")
    (run / "look/look-broken.png").write_bytes(b"no image")
    _, text = written()
    assert "Contact sheet" not in text and "Images of patients" not in text
    _, text = written(with_images=True)
    [sheet] = [one for one in Page(text).all("img") if one["alt"].startswith("Contact sheet")]
    assert faults_of(text) == [] and "patients, errors: resnet18 <- resnet34, normal, seed 0." in sheet["alt"] and sheet["width"] == "1600"
    assert "may contain images of patients" in text and "pass this page on only if" in text
    monkeypatch.setattr(page_figures, "is_mura", lambda run: True)
    _, text = written(with_images=True)
    assert "Contact sheet" not in text and "images of MURA may not be passed on" in text


def test_mura_is_recognised_whatever_has_read_it(make, monkeypatch):
    from kd.studies.runs import read_run

    def mura(report):
        report["data"]["reader"] = "mura"
    plain, known = make("normal", "a", "b", 0), make("normal", "a", "b", 1, mura)
    assert not page_figures.is_mura(read_run(plain)) and page_figures.is_mura(read_run(known))
    rows = (plain / "predictions.csv").read_text().splitlines()
    cells = [row.split(",") for row in rows]
    for number, row in enumerate(cells[1:]):
        row[1] = f"train/XR_HAND/patient{number:05d}/study1_positive/image1.png"
    (plain / "predictions.csv").write_text("\n".join(map(",".join, cells)) + "\n")
    assert page_figures.is_mura(read_run(plain))


def test_a_large_study_shows_some_figures_and_says_how_many_it_left_out(study, monkeypatch):
    monkeypatch.setattr(page_figures, "MOST", 2)
    _, text = written()
    assert len(Page(text).all("img")) == 2 and re.search(r"2 figures are shown; \d+ more figures? (is|are) in the folders", text)
    monkeypatch.setattr(page_figures, "MOST", 40)
    Path("runs/set/normal/resnet34-resnet18/seed0/confusion.png").write_bytes(b"\x89PNG damaged")
    _, text = written()
    assert "1 figure could not be read as PNG" in text


def test_what_is_folded_is_printed_and_metadata_of_figures_is_dropped(study):
    from PIL.PngImagePlugin import PngInfo
    info = PngInfo()
    info.add_text("Comment", "DOE^JANE")
    file = Path("runs/set/normal/resnet34-resnet18/seed0/confusion.png")
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(file, pnginfo=info, icc_profile=b"DOE^JANE, too")
    embedded = page_figures._embedded(file, "a", "b")
    with Image.open(io.BytesIO(base64.b64decode(embedded.source.partition(",")[2]))) as image:
        assert image.info == {} and image.size == (9, 9)
    _, text = written()
    assert "details::details-content { content-visibility: visible" in text and "<details" in text


def luminance(color):
    """Relative luminance of WCAG 2.2 of a colour #rrggbb."""
    channels = [int(color[place:place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_texts_have_the_contrast_of_wcag_aa_in_light_dark_and_print():
    assert contrast("#000000", "#ffffff") == pytest.approx(21) and contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)
    style = (Path(study_page.__file__).parent / study_page.TEMPLATE).read_text()
    schemes = [dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block)) for block in re.findall(r":root \{(.*?)\}", style, re.DOTALL)]
    assert len(schemes) == 3 and all(len(one) == 10 for one in schemes)
    for one in schemes:
        pairs = [(ink, paper) for ink in ("ink", "soft", "link", "good", "bad") for paper in ("paper", "head")] + [("warn", "warnpaper")]
        for ink, paper in pairs:
            assert contrast(one[ink], one[paper]) >= 4.5, (ink, paper, one)
    used = set(re.findall(r"#[0-9a-f]{3,8}\b", re.sub(r":root \{.*?\}", "", style, flags=re.DOTALL)))
    assert used <= {"#ffffff"}  # behind figures


def test_every_word_of_a_verdict_is_explained():
    words = " ".join(word for word, _ in how_to_read([{"margin": 0.02}]))
    for verdict in ("better", "worse", "no evidence", "as good within 0.02", "as good within 0.02 but worse", "not shown to be as good",
                    "no verdict", "at chance"):
        assert verdict in words


def test_reports_of_an_earlier_version_and_runs_of_several_studies_have_a_page(make):
    def other(report):
        report["data"]["split_hash"] = "another"
    for seed, change in ((0, as_version_4), (1, as_version_4), (2, other)):
        make("normal", "resnet34", "resnet18", seed, change)
    result, text = written()
    assert len(result["protocols"]) == 2 and faults_of(text) == []
    plain = Page(text).text
    assert "Study 1: synthetic, 32 px" in plain and "Study 2: synthetic, 32 px" in plain and "what became of them was not recorded" in plain
    assert len([one for one in Page(text).all("img") if one["alt"].startswith("Heat map")]) == 2


def test_without_jinja2_everything_else_is_written_and_a_warning_says_so(study, monkeypatch, capsys):
    real = builtins.__import__

    def without(name, *more):
        if name == "jinja2":
            raise ImportError(name)
        return real(name, *more)
    monkeypatch.setattr(builtins, "__import__", without)
    write_tables(Path("runs"))
    assert not PAGE.exists() and Path("runs/tables.md").is_file()
    assert "warning: study.html cannot be written: jinja2 is not installed. Run 'pip install" in capsys.readouterr().out
    with pytest.raises(Problem, match="jinja2 is not installed"):
        write_tables(Path("runs"), with_images=True)


def test_cards_take_the_licences_of_the_same_weights(prepared, script):
    from conftest import PAIR
    prepared([("distill", [*PAIR, "--mode", "normal"])])
    assert script("evaluate", ["--card", RUN, "--device", "cpu", "--data-license", "of <the> house"])[0] == 0
    _, text = written()
    assert faults_of(text) == [] and "Licences. Data: of &lt;the&gt; house" in text
    card = json.loads((RUN / "card.json").read_text())
    card["hashes"]["weights"] = "other"
    for damaged in (json.dumps(card), "{", "[]", '{"hashes": 3}'):
        (RUN / "card.json").write_text(damaged)
        _, text = written()
        assert "house" not in text and "Licences. Data: unknown" in text
    assert TEACHER.is_dir()


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
HARNESS = """<!DOCTYPE html><body style="margin:0"><iframe id="page" src="study.html" style="width:WIDTHpx;height:900px;border:0"></iframe>
<script>window.onload = () => {
  const inner = document.getElementById("page").contentDocument, found = [];
  inner.querySelectorAll("details").forEach(one => one.open = true);
  const width = inner.documentElement.clientWidth;
  if (inner.documentElement.scrollWidth > width) found.push("the page scrolls sideways: " + inner.documentElement.scrollWidth);
  for (const one of inner.body.querySelectorAll("*")) {
    if (one.closest(".box, pre") && !one.matches(".box, pre") || one.matches(".skip")) continue;
    const place = one.getBoundingClientRect();
    if (place.right > width + 1 || place.left < -1) found.push(one.tagName + " " + one.className + " " + place.right);
    const style = inner.defaultView.getComputedStyle(one);
    if (style.overflowX === "hidden" && one.scrollWidth > one.clientWidth) found.push("cut: " + one.tagName);
  }
  for (const one of inner.querySelectorAll("img")) if (!one.naturalWidth) found.push("image not shown");
  document.body.dataset.found = JSON.stringify({width: width, found: found});
};</script></body>"""


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_cut_in_a_browser(study, width):
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("needs Chromium or Chrome in PATH")
    write_tables(Path("runs"))
    Path("runs/harness.html").write_text(HARNESS.replace("WIDTH", str(width)))
    command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--allow-file-access-from-files", "--virtual-time-budget=8000",
               f"--window-size={max(width, 800)},900", f"--user-data-dir={Path('profile').resolve()}", "--dump-dom",
               Path("runs/harness.html").resolve().as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    [found] = re.findall(r'data-found="([^"]*)"', done.stdout) or [done.stderr]
    assert json.loads(html.unescape(found)) == {"width": width, "found": []}
