"""Tables of images as people have them: dialects, columns, paths, labels, patients, corrections.

Each kind of fault is read right, or named with its count and a cure.
"""

import io
import os
import random
import shutil
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from kd.config.settings import Reading
from kd.data.readers import folder, mura, synthetic
from kd.data.tables import paths as table_paths
from kd.data.tables.corrections import corrected
from kd.data.tables.image_table import read_table
from kd.data.tables.table import read, read_csv, read_xls
from kd.system.errors import Problem

FIXTURES = Path(__file__).parent / "fixtures"
BUFFER = io.BytesIO()
Image.new("L", (8, 8), 100).save(BUFFER, "PNG")
PNG = BUFFER.getvalue()


@pytest.fixture
def images(tmp_path):
    """Write small images: images("p/1.png", ...) -> their folder, the same each time."""
    def write(*paths):
        root = tmp_path / "archive"
        root.mkdir(exist_ok=True)
        for path in paths:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(PNG)
        return root
    return write


def listed(root, text, classes=None, ignored=(), name="images.csv", **how):
    """Read a table with this text in the folder of the images."""
    table = root / name
    table.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_table(root, table, Reading(**how), classes, ignored)


def refused(root, text, *args, **how):
    """Return the message with which a table is refused."""
    with pytest.raises(Problem) as caught:
        listed(root, text, *args, **how)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def numbered(labels, header="path,label", end=""):
    """Return a table of the images p/0.png, p/1.png, ... with one label each."""
    return "\n".join([header, *(f"p/{k}.png,{label}{end}" for k, label in enumerate(labels))]) + "\n"


@pytest.fixture
def labels(images):
    """Read a table of labels for p/0.png, ...: labels(["a", "b"]) -> ({path: label}, notes)."""
    def call(texts, **how):
        root = images(*(f"p/{k}.png" for k in range(len(texts))))
        found = listed(root, numbered(texts), **how)
        return {row["path"]: row["label"] for row in found.rows}, found.notes
    return call


@pytest.fixture
def bad_labels(images):
    def call(texts, **how):
        return refused(images(*(f"p/{k}.png" for k in range(len(texts)))), numbered(texts), **how)
    return call


# Dialects

ROWS = [(2, ["p/1.png", "ä"]), (3, ["p/2.png", "b"])]
SEMICOLONS = ("'t.csv' is separated by semicolons.",)


@pytest.mark.parametrize("content, rows, notes", [
    ("path,label\np/1.png,ä\np/2.png,b\n".encode(), ROWS, ()),
    ("path;label\np/1.png;ä\np/2.png;b\n".encode(), ROWS, SEMICOLONS),
    ("path\tlabel\r\np/1.png\tä\r\np/2.png\tb\r\n".encode(), ROWS, ("'t.csv' is separated by tabs.",)),
    ("path|label\np/1.png|ä\np/2.png|b".encode(), ROWS, ("'t.csv' is separated by vertical bars.",)),
    ("\ufeff path , label\r\np/1.png,ä\r\np/2.png,b\r\n".encode(), ROWS, ()),
    ("path;label\r\np/1.png;ä\r\np/2.png;b\r\n".encode("utf-16"), ROWS, SEMICOLONS),
    ("\ufeffpath,label\np/1.png,ä\np/2.png,b\n".encode("utf-16-be"), ROWS, ()),
    ("path,label\rp/1.png,ä\rp/2.png,b\r".encode(), ROWS, ()),
    ("sep=;\r\npath;label\r\np/1.png;ä\r\n".encode(), [(3, ["p/1.png", "ä"])], SEMICOLONS),
    ("\n\npath,label\n\np/1.png,ä\n , \n".encode(), [(5, ["p/1.png", "ä"])], ()),
    (b'path,label\n"p/1.png","a;b|c,d"\n', [(2, ["p/1.png", "a;b|c,d"])], ()),
    (b'path,label\n"p/1.png","two\nlines"\np/2.png,b\n', [(3, ["p/1.png", "two\nlines"]), (4, ["p/2.png", "b"])], ())])
def test_dialects(tmp_path, content, rows, notes):
    (tmp_path / "t.csv").write_bytes(content)
    assert read_csv(tmp_path / "t.csv") == (["path", "label"], rows, notes)


def test_quoted_commas_and_inches_in_a_header_are_not_delimiters(tmp_path):
    (tmp_path / "t.csv").write_text('"Width, mm, px",path;5" film,label;x\n')
    assert read_csv(tmp_path / "t.csv").columns == ["Width, mm, px", 'path;5" film', "label;x"]
    (tmp_path / "t.csv").write_text('path;"a,b,c,d ""x"", e"\n')
    assert read_csv(tmp_path / "t.csv").columns == ["path", 'a,b,c,d "x", e']


def test_text_that_is_not_utf_8_is_read_as_windows_1252_with_a_note(tmp_path):
    (tmp_path / "t.csv").write_bytes("path,label\np/1.png,Müller–Weiß\n".encode("cp1252"))
    found = read_csv(tmp_path / "t.csv")
    assert found.rows == [(2, ["p/1.png", "Müller–Weiß"])]
    assert len(found.notes) == 1 and "'t.csv' is not UTF-8 text, and was read as Windows-1252" in found.notes[0]


@pytest.mark.parametrize("content, words", [
    (b"path,label\na\0b,c\n", "row 2 contains a NUL byte"), (b'path,label\n"a,c\n', "cannot be read as CSV"),
    (b'path,label\n"a"b,c\n', "cannot be read as CSV"), (b"path,label\n" + b"x" * 300_000 + b",a\n", "field larger"),
    ("path,label\nä,ö\n".encode() + b"\xff,x\n", "can't decode byte 0xff"), (b"\xef\xbb\xbfpath,label\n\xe4,x\n", "can't decode byte 0xe4"),
    (b"path,label\n\x81,a\n", "can't decode byte 0x81"), (b"\xff\xfep\0a", "truncated data"),
    (b"PK\x03\x04rest", "an Excel workbook (.xlsx) or a zip archive. Save it as CSV"), (b"\x1f\x8b\x08", "Unpack it with gunzip"),
    (b"\xd0\xcf\x11\xe0\xa1", "a legacy Excel file. Save it as CSV")])
def test_a_file_that_is_not_text_or_damaged_is_refused(tmp_path, content, words):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(Problem) as caught:
        read_csv(tmp_path / "t.csv")
    assert words in str(caught.value) and "'" + str(tmp_path / "t.csv") in str(caught.value)


@pytest.mark.parametrize("content, columns, first", [
    ("path;label (a, b, c, d)\np/1.png;a\np/2.png;b\n", ["path", "label (a, b, c, d)"], ["p/1.png", "a"]),
    ("path;label (a, b, c, d)\np/1.png;a;\np/2.png;b;\n", ["path", "label (a, b, c, d)"], ["p/1.png", "a"]),
    ("path,label\np/1.png,a|b\np/2.png,c|d\n", ["path", "label"], ["p/1.png", "a|b"]),
    ("path\tnote, of, all, days\np/1.png\ta, b\n", ["path", "note, of, all, days"], ["p/1.png", "a, b"]),
    ("path\np/a;1.png\np/2.png\n", ["path"], ["p/a;1.png"])])
def test_the_delimiter_is_that_of_the_rows(tmp_path, content, columns, first):
    (tmp_path / "t.csv").write_text(content)
    found = read_csv(tmp_path / "t.csv")
    assert found.columns == columns and found.rows[0] == (2, first)


@pytest.mark.parametrize("content, columns, first, count", [
    ("path,label\np/1.png,a,\np/2.png,b,,\np/3.png,c\n", ["path", "label"], ["p/1.png", "a"], 2),
    ("path,label,,\np/1.png,a\np/2.png,b\n", ["path", "label", "", ""], ["p/1.png", "a", "", ""], 2),
    ("path;label;\np/1.png;a;\n", ["path", "label", ""], ["p/1.png", "a", ""], 0)])
def test_empty_fields_at_the_end_do_not_matter(tmp_path, content, columns, first, count):
    (tmp_path / "t.csv").write_text(content)
    found = read_csv(tmp_path / "t.csv")
    assert found.columns == columns and found.rows[0] == (2, first)
    assert [note for note in found.notes if "equally many" in note] == [
        f"{count} rows of 't.csv' and the header do not end with equally many empty fields, which does not matter."] * (count > 0)


def test_a_quote_in_a_wrong_place_is_named_with_its_row(tmp_path):
    for text in ('path,label\np/1.png,a\n"Film 12" Zoll",b\np/3.png,c\n', 'path,label\np/1.png,a\n"Film 12,b\np/3.png,c\n'):
        (tmp_path / "t.csv").write_text(text)
        with pytest.raises(Problem) as caught:
            read_csv(tmp_path / "t.csv")
        assert 'the field that begins with a quote (") in row 3 ' in str(caught.value) and 'twice ("")' in str(caught.value)
    (tmp_path / "t.csv").write_text('path,label\np/1.png,a\n"Film 12"" Zoll",b\n')  # the cure
    assert read_csv(tmp_path / "t.csv").rows[1] == (3, ['Film 12" Zoll', "b"])


@pytest.mark.parametrize("title", ["Export aus dem RIS;;", "Export aus dem RIS", "Export, Radiologie"])
def test_a_title_above_the_header_is_refused(images, title):
    root, text = images("p/1.png", "p/2.png"), "path;label;age\np/1.png;a;5\np/2.png;b;6\n"
    message = refused(root, f"{title}\n{text}", columns=["path=path"])
    assert "has no header in its first row" in message and "row 2 has 3 texts. Remove the lines above" in message
    assert "remove the lines above the header" in refused(root, f"Export;1. Mai;\n{text}")
    assert len(listed(root, text).rows) == 2


def test_a_folder_a_pipe_and_nothing_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, words in ((".", "it is not a file"), ("pipe", "it is not a file"), ("absent", "No such file")):
        for reader in (read_csv, read):
            with pytest.raises(Problem, match=words):
                reader(tmp_path / name)


def test_legacy_excel_is_recognised_by_its_content(tmp_path):
    shutil.copy(FIXTURES / "Annotation_Base11.xls", tmp_path / "t.csv")
    found = read(tmp_path / "t.csv")
    assert found.columns[0] == "Image name" and [fields[2] for _, fields in found.rows] == list("01230") and found.rows[0][0] == 2
    (tmp_path / "t.xls").write_text("path\tlabel\np\ta\n")  # what many programs write under this name
    assert read(tmp_path / "t.xls")[:2] == (["path", "label"], [(2, ["p", "a"])])
    (tmp_path / "t.xls").write_bytes("path;label\np;a\n".encode("utf-16"))
    assert read(tmp_path / "t.xls")[:2] == (["path", "label"], [(2, ["p", "a"])])
    (tmp_path / "t.xls").write_bytes(b"\x09\x08\x08\0\0\x05")
    with pytest.raises(Problem, match="legacy Excel"):
        read(tmp_path / "t.xls")


def test_cells_of_legacy_excel(tmp_path, monkeypatch):
    xlrd = pytest.importorskip("xlrd")
    texts, numbers, truths, errors = xlrd.XL_CELL_TEXT, xlrd.XL_CELL_NUMBER, xlrd.XL_CELL_BOOLEAN, xlrd.XL_CELL_ERROR
    cells = [[(texts, " path "), (texts, "label")], [(numbers, 7.0), (truths, 1)], [(numbers, 2.5), (truths, 0)],
             [(numbers, 1234567890123456.0), (errors, 42)], [(numbers, 1234567890123457.0), (errors, 7)], [(numbers, 2.0**53), (numbers, -0.1)]]
    rows = [[xlrd.sheet.Cell(*cell) for cell in row] for row in cells]

    class Book:
        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

        def sheet_by_index(self, place):
            return self

        def get_rows(self):
            return rows

    monkeypatch.setattr(xlrd, "open_workbook", lambda *args, **how: Book())
    found = read_xls(tmp_path / "t.xls")
    assert found.columns == ["path", "label"] and [fields for _, fields in found.rows] == [
        ["7", "TRUE"], ["2.5", "FALSE"], ["1234567890123456", "#N/A"], ["1234567890123457", "#N/A"], ["9.00719925474099e+15", "-0.1"]]
    assert len(found.notes) == 1 and "3 numbers of 't.xls' with more than 15 digits may have lost the last" in found.notes[0]


# Columns

def test_standard_names_in_any_case_and_further_columns_are_kept(images):
    root = images("p/1.png", "p/2.png")
    found = listed(root, ",Path,LABEL,Patient,Study,Split,Site,age,age,sex\n0,p/1.png,a,P1,S1,train,H1,55,56,F\n1,p/2.png,b,P2,S2,,,,,\n")
    assert found.rows == [
        {"path": "p/1.png", "label": "a", "patient": "P1", "study": "S1", "split": "train", "site": "H1",
         "extra": {"column 1": "0", "age": "55", "age (column 9)": "56", "sex": "F"}},
        {"path": "p/2.png", "label": "b", "patient": "P2", "study": "S2", "split": None, "site": "",
         "extra": {"column 1": "1", "age": "", "age (column 9)": "", "sex": ""}}]
    assert found.notes == ["4 further columns of images.csv are kept, but not used in training:"
                           " 'column 1', 'age', 'age (column 9)', 'sex'."]


def test_columns_of_any_name(images):
    root = images("p/1.png", "p/2.png")
    text = "File;Finding;ID;Exam;Fold;Where;label\np/1.png;a;P1;S1;val;H1;x\np/2.png;b;P2;S2;test;H2;y\n"
    columns = ["path=File", "label=Finding", "patient=ID", "study=Exam", "split=Fold", "site=Where"]
    found = listed(root, text, columns=columns)
    assert [tuple(row.values())[:6] for row in found.rows] == [
        ("p/1.png", "a", "P1", "S1", "valid", "H1"), ("p/2.png", "b", "P2", "S2", "test", "H2")]
    assert [row["extra"] for row in found.rows] == [{"label": "x"}, {"label": "y"}]


HEADER = "Path,Finding,Patient ID,Patient Age\n"


@pytest.mark.parametrize("columns, words", [
    (["label=Findings"], ["--columns label=Findings is not valid", "no column 'Findings'", "'Path', 'Finding', 'Patient ID', "
                          "'Patient Age'", "The nearest is 'Finding'."]),
    (["label=finding"], ["no column 'finding'", "The nearest is 'Finding'."]), (["label=qqq"], ["no column 'qqq'"]),
    (["lable=Finding"], ["--columns 'lable=Finding' is not valid", "path, label, patient, study, split, site", "nearest key is label"]),
    (["Finding"], ["--columns 'Finding' is not valid: it must be KEY=NAME"]), (["=Finding"], ["must be KEY=NAME"]),
    (["label=Finding", "label=Path"], ["--columns names label twice"]),
    (["label=Finding"], ["nearly called like columns that it lacks: 'Patient ID' (patient)",
                         "Use --columns 'patient=Patient ID' if they are these, or --columns patient= if they are not"]),
    (["patient="], ["has no column 'label'", "'Path', 'Finding', 'Patient ID'", "--columns label=NAME"]),
    (["label=Finding", "patient=", "path="], ["column path is missing", "--columns path=NAME"]),
    (["label=Finding+Absent", "patient="], ["--columns label=Absent is not valid"])])
def test_wrong_columns_are_named_with_those_that_exist(images, columns, words):
    message = refused(images("p/1.png"), HEADER + "p/1.png,a,P1,50\n", columns=columns)
    assert all(word in message for word in words), message


@pytest.mark.parametrize("header, cure", [
    ("path,label,pateint", "--columns patient=pateint "), ("path,label,patient_id", "--columns patient=patient_id "),
    ("paths,label", "--columns path=paths "), ("path,lable", "--columns label=lable "), ("path,label,Splits,StudyID",
                                                                                         "--columns split=Splits study=StudyID ")])
def test_a_misspelt_column_is_refused_with_the_cure(images, header, cure):
    root = images("p/1.png")
    text = f"{header}\np/1.png" + ",train" * header.count(",") + "\n"
    assert f"Use {cure}" in refused(root, text)
    keys = [f"{word.partition('=')[0]}=" for word in cure.split()[1:]]
    if "path=" not in keys and "label=" not in keys:
        assert listed(root, text, columns=keys).rows[0]["patient"] == ""
    assert listed(root, text, columns=cure.split()[1:]).rows[0]["path"] == "p/1.png"


@pytest.mark.parametrize("name", ["PID", "pat_id", "Patient Number", "Patient ID", "MRN", "PatientNr.", "subject-id"])
def test_the_column_of_patients_is_proposed_before_what_only_describes_them(images, name):
    root = images("p/1.png")
    text = f"path,label,PatientSex,Patients,{name}\np/1.png,a,F,3,17\n"
    message = refused(root, text)
    assert f"it lacks: '{name}' (patient), 'Patients' (patient). " in message and f"patient={name}" in message.partition("Use --columns")[2]
    assert listed(root, text, columns=[f"patient={name}"]).rows[0]["patient"] == "17"
    found = listed(root, "path,label,PatientSex,PatientAge,Image ID\np/1.png,a,F,55,x\n")
    assert found.rows[0]["patient"] == "" and len(found.rows[0]["extra"]) == 3


def test_similar_names_that_mean_something_else_are_kept(images):
    found = listed(images("p/1.png"), "path,label,Patient Age,PatientSex,size,side,date,Study Date,patient\np/1.png,a,5,F,1,L,d,e,P1\n")
    assert len(found.rows[0]["extra"]) == 6


@pytest.mark.parametrize("text, words", [
    ("path,label,path\np/1.png,a,b\n", "'path' appears twice"), ("path,label,Label\np/1.png,a,b\n", "'label' appears twice ('label', 'Label')"),
    ("image,label\np/1.png,a\n", "header 'image,label': the column path is missing"), ("", "header ''"),
    ("path,label\n", "no rows below its header"), ("path,label\np/1.png\n", "row 2 'p/1.png' (number of fields differs from the header: 1, not 2)"),
    ("path,label\np/1.png,a,b\n", "row 2 'p/1.png' (number of fields differs from the header: 3, not 2)"),
    ("path,label,split,\np/1.png,a\n", "row 2 'p/1.png' (number of fields differs from the header: 2, not 4)")])
def test_bad_headers_and_rows(images, text, words):
    assert words in refused(images("p/1.png"), text)


def test_a_duplicate_name_may_be_chosen_by_nobody(images):
    root = images("p/1.png")
    assert "2 columns of" in refused(root, "path,label,x,x\np/1.png,a,b,c\n", columns=["patient=x"])
    assert listed(root, "path,Label,label\np/1.png,a,b\n", columns=["label=label"]).rows[0]["label"] == "b"


# Paths

def paths_of(found):
    return [row["path"] for row in found.rows]


@pytest.mark.parametrize("written, note", [
    ("p/1.png", None), ("./p//1.png", None), ("q/../p/1.png", None), ("{root}/p/1.png", None), ("link/1.png", None),
    ("p\\1.png", "2 paths of images.csv are written with \\, which was read as /."),
    ("{root}\\p\\1.png", "2 paths of images.csv are written with \\, which was read as /."),
    ("CheXpert-v1.0-small/p/1.png", "'CheXpert-v1.0-small/'"),
    ("/home/me/archive/p/1.png", "'/home/me/archive/'"),
    ("C:\\Users\\me\\p\\1.png", "'C:/Users/me/'"),
    ("../archive/p/1.png", None), ("1.png", "2 images of images.csv are found by their file names alone."),
    ("1", "2 images of images.csv are found by their file names without extension."),
    ("1.0", "2 images of images.csv are found by their file names with another extension."),
    ("1.dcm", "2 images of images.csv are found by their file names with another extension."),
    ("p/1.tif", "2 images of images.csv are found by their file names with another extension."),
    ("old/place/1.png", "2 images of images.csv are found by their file names alone.")])
def test_a_path_in_any_form_leads_to_the_image(images, written, note):
    root = images("p/1.png", "p/2.png")
    if written.startswith("link"):
        (root / "link").symlink_to(root / "p")
    lines = [written.format(root=root).replace("1.", f"{k}.") if "1." in written else str(k) for k in (1, 2)]
    if written == "1.0":
        lines = ["1.0", "2.0"]
    if "CheXpert" in written:
        lines = ["CheXpert-v1.0-small/p/1.png", "CheXpert-v1.0-small/p/2.png"]
    found = listed(root, f"path,label\n{lines[0]},a\n{lines[1]},b\n")
    place = "link" if written.startswith("link") else "p"
    assert [(row["path"], row["label"]) for row in found.rows] == [(f"{place}/1.png", "a"), (f"{place}/2.png", "b")]
    assert len(found.notes) == (note is not None) and (note is None or note in found.notes[0]), found.notes
    assert "/'" not in (note or "") or "2 paths of images.csv begin with folders that do not exist in" in found.notes[0]


def test_images_outside_the_folder_are_used_and_counted(images, tmp_path):
    root = images("p/1.png")
    (tmp_path / "elsewhere").mkdir()
    for name in ("2.png", "3.png"):
        (tmp_path / "elsewhere" / name).write_bytes(PNG)
    (root / "out").symlink_to(tmp_path / "elsewhere")
    other = tmp_path / "elsewhere"
    found = listed(root, f"path,label\np/1.png,a\n{other}/2.png,b\n../elsewhere/3.png,b\nout/2.png,a\n")
    assert paths_of(found) == ["p/1.png", f"{other}/2.png", "../elsewhere/3.png", "out/2.png"]
    assert found.notes == [f"2 images of images.csv are outside {root}."]
    assert all((root / path).is_file() for path in paths_of(found))


def test_the_own_name_of_the_folder_may_come_before_the_paths(images):
    root = images("train/patient1/study1/view1.jpg", "train/patient2/study1/view1.jpg")
    text = "path,label\nset-v1/train/patient1/study1/view1.jpg,a\nset-v1/train/patient2/study1/view1.jpg,b\n"
    assert paths_of(listed(root, text)) == ["train/patient1/study1/view1.jpg", "train/patient2/study1/view1.jpg"]
    root = root / "train"
    found = listed(root, text)
    assert paths_of(found) == ["patient1/study1/view1.jpg", "patient2/study1/view1.jpg"] and "'set-v1/train/'" in found.notes[0]


def test_folders_are_left_out_for_all_paths_or_none(images):
    root = images(*(f"p/{k}.png" for k in range(5)), "p/deep/5.png")
    text = "path,label\n" + "".join(f"old/p/{k}.png,a\n" for k in range(7))
    message = refused(root, text)
    assert "row 7 'old/p/5.png' (no such file, not even without 'old/'), row 8 'old/p/6.png'" in message and "row 6" not in message
    # The folder exists, so its absent image is not taken from another folder.
    root = images("old/p/0.png")
    assert "row 3 'old/p/1.png' (no such file)" in refused(root, "path,label\nold/p/0.png,a\nold/p/1.png,b\n")


@pytest.mark.parametrize("rows, fault", [
    (("h1/1.png", "h2/1.png"), "row 3 'h2/1.png' (the same file as 'h1/1.png': h1/1.png)"),
    (("h1/1.png", "1.png"), "row 3 '1.png' (the same file as 'h1/1.png': h1/1.png)"), (("1", "1.png"), "the same file as '1': h1/1.png")])
def test_two_rows_never_get_the_same_file_by_different_names(images, rows, fault):
    root = images("h1/1.png")
    assert fault in refused(root, "path,label\n" + "".join(f"{row},a\n" for row in rows))


@pytest.mark.parametrize("files, text, words", [
    (("x/1.png", "y/1.png"), "1.png", "2 files have this name: x/1.png, y/1.png"),
    (("x/1.png", "y/1.jpg"), "1", "2 files have this name: x/1.png, y/1.jpg"),
    (("x/1.png", "y/1.jpg"), "1.dcm", "2 files have this name"),
    # Names occur twice elsewhere, so a name does not tell that an image of another folder is meant.
    (("p1/v1.png", "p2/v1.png", "p2/v9.png"), "p3/v9.png", "no such file"), (("x/1.png",), "x", "no such file"),
    # The folder exists, so its image is lost, not moved.
    (("a/1.png", "b/2.png"), "a/2.png", "no such file"),
    (("x/1.png",), "2.png", "no such file"), (("x/1.png",), "", "no path"), (("x/1.png",), "x/" + "y" * 5000, "not a file: File name too long"),
    (("x/1.png",), "loop/1.png", "not a file: Too many levels"), (("x/1.png",), "pipe.png", "not a file: a pipe"),
    (("x/1.png",), "/dev/zero", "not a file: a pipe, a socket or a device"), (("x/1.png",), "../../etc/passwd", "no such file")])
def test_rows_without_one_file_are_refused(images, files, text, words):
    root = images(*files)
    if text.startswith("loop"):
        (root / "loop").symlink_to("loop")
    if text.startswith("pipe"):
        os.mkfifo(root / "pipe.png")
    message = refused(root, f"path,label\n{text},a\n")
    assert "Rows of" in message and f"row 2 '{text[:60]}" in message and words in message


def test_missing_files_are_counted_and_the_first_ten_are_named(images):
    message = refused(images("p/1.png"), "path,label\n" + "".join(f"gone{k}.png,a\n" for k in range(25)))
    assert "row 2 'gone0.png' (no such file), " in message and "row 11 " in message and "row 12 " not in message and "(25 in all)" in message


def test_a_table_of_existing_paths_costs_one_look_per_row_and_no_search(images, monkeypatch):
    root = images(*(f"p/{k}.png" for k in range(200)))
    looks = []
    monkeypatch.setattr(table_paths, "find_images", lambda root: pytest.fail("the folder was searched"))
    stat = os.stat
    monkeypatch.setattr(table_paths.os, "stat", lambda *args, **kind: looks.append(args) or stat(*args, **kind))
    found = table_paths.locate(root, root / "t.csv", [f"p/{k}.png" for k in range(200)] * 2)
    monkeypatch.undo()
    assert len(found.paths) == 200 and len([args for args in looks if str(args[0]).endswith(".png")]) == 200


def dicom(path, **elements):
    """Write a DICOM file of 8 x 8 pixels."""
    pydicom = pytest.importorskip("pydicom")
    from pydicom.dataset import Dataset, FileMetaDataset
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = elements.get("SOPClassUID", "1.2.840.10008.5.1.4.1.1.7")
    meta.MediaStorageSOPInstanceUID = elements["SOPInstanceUID"]
    data = Dataset()
    data.file_meta = meta
    for key, value in (elements | {"Rows": 8, "Columns": 8, "SamplesPerPixel": 1, "BitsAllocated": 8, "BitsStored": 8, "HighBit": 7,
                                   "PixelRepresentation": 0, "PhotometricInterpretation": "MONOCHROME2", "PixelData": bytes(64),
                                   "SOPClassUID": meta.MediaStorageSOPClassUID}).items():
        setattr(data, key, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)


@pytest.fixture
def studies(tmp_path):
    """Four DICOM files: two of one study, one of another, and one without an AccessionNumber."""
    root = tmp_path / "pacs"
    for name, uid, accession, patient in (("1/IM1", "1.2.3.1", "A17", "P1"), ("1/IM2", "1.2.3.2", "A17", "P1"), ("2/IM1", "1.2.3.3", "18", "P2"),
                                          ("2/IM2.dcm", "1.2.3.4", "", "P2")):
        dicom(root / name, SOPInstanceUID=uid, AccessionNumber=accession, PatientID=patient, StudyInstanceUID="9." + uid)
    return root


def test_dicom_files_are_found_by_their_identifiers(studies):
    found = listed(studies, "path,label,patient\nA17,a,x\n1.2.3.4,b,y\n2/IM1,b,y\n")
    assert [(row["path"], row["label"], row["patient"]) for row in found.rows] == [
        ("1/IM1", "a", "x"), ("1/IM2", "a", "x"), ("2/IM2.dcm", "b", "y"), ("2/IM1", "b", "y")]
    assert found.notes == ["1 image of images.csv is found by its SOPInstanceUID.",
                           "1 row of images.csv is found by the AccessionNumber of a study: 2 images."]
    assert paths_of(listed(studies, "path,label\n18.0,a\nA17,b\n")) == ["2/IM1", "1/IM1", "1/IM2"]


def test_ambiguous_identifiers_are_refused(studies):
    dicom(studies / "3/IM1", SOPInstanceUID="1.2.3.5", AccessionNumber="A17", PatientID="P9", StudyInstanceUID="9")
    dicom(studies / "3/IM2", SOPInstanceUID="1.2.3.4", AccessionNumber="", PatientID="P9", StudyInstanceUID="9")
    message = refused(studies, "path,label\nA17,a\n1.2.3.4,b\n1.2.3.9,b\n")
    assert "row 2 'A17' (images of several patients have this AccessionNumber: 1/IM1, 1/IM2, 3/IM1)" in message
    assert "row 3 '1.2.3.4' (several files have this SOPInstanceUID: 2/IM2.dcm, 3/IM2)" in message and "row 4 '1.2.3.9' (no such file, nor a SOPInstanceUID or AccessionNumber)" in message


@pytest.mark.parametrize("name", ["p/17.dcm", "p/17", "17"])
def test_a_name_that_is_also_an_identifier_of_other_files_is_refused(tmp_path, name):
    root = tmp_path / "pacs"
    for path, accession in ((name, "40"), ("p/40.dcm", "17"), ("p/5.dcm", "5")):
        dicom(root / path, SOPInstanceUID=f"1.2.{accession}", AccessionNumber=accession, PatientID="P", StudyInstanceUID=accession)
    message = refused(root, "path,label\n17,a\n5,b\n")
    assert f"row 2 '17' (the name of {name}, but also an identifier in the header of other files, so write paths: p/40.dcm)" in message
    if name == "17":  # all texts are paths as they are written
        assert paths_of(listed(root, "path,label\n17,a\n")) == ["17"]
    else:
        assert "row 2 '17' (the name of" in refused(root, "path,label\n17,a\n")
    assert "row 3" not in message  # the name and the identifier of the same file
    assert paths_of(listed(root, f"path,label\n./{name},a\np/40.dcm,b\n")) == [name, "p/40.dcm"]


def test_only_the_extension_of_an_image_may_be_another_one(images):
    root = images("p/scan0.png")
    assert "row 2 'scan0.v1a' (no such file)" in refused(root, "path,label\nscan0.v1a,a\n")
    assert paths_of(listed(root, "path,label\nscan0.DCM,a\n")) == ["p/scan0.png"]


@pytest.mark.parametrize("on_disk, in_table", [("NFD", "NFC"), ("NFC", "NFD")])
@pytest.mark.parametrize("text", ["Müller/Bild ä.png", "Müller\\Bild ä.png", "Bild ä.png", "Bild ä"])
def test_unicode_forms_of_paths_do_not_matter(images, on_disk, in_table, text):
    path = unicodedata.normalize(on_disk, "Müller/Bild ä.png")
    root = images(path, "Bild b.png", "Bild.png")
    found = listed(root, f"path,label\n{unicodedata.normalize(in_table, text)},a\n")
    assert paths_of(found) == [path]
    assert len(found.notes) == 1 and ("name" if text.startswith("Bild") else "1 path of images.csv is written in another Unicode form") in found.notes[0]


def test_another_unicode_form_is_no_folder_to_leave_out(images):
    path = unicodedata.normalize("NFD", "Müller/1.png")
    assert paths_of(listed(images(path, "1.png"), "path,label\nMüller/1.png,a\n")) == [path]


def test_files_that_differ_only_in_the_unicode_form_are_told_apart_only_by_it(images):
    names = [unicodedata.normalize(form, "ắ.png") for form in ("NFC", "NFD")]
    root = images(*names)
    assert paths_of(listed(root, f"path,label\n{names[0]},a\n{names[1]},b\n")) == names
    assert "several files differ only in the Unicode form: " in refused(root, "path,label\n\u0103\u0301.png,a\n")


# Labels

def test_whole_numbers_with_a_decimal_point_are_the_same_class(labels):
    found, notes = labels(["0", "0.0", "1.00", "1", "-2", "-2.0"])
    assert list(found.values()) == ["0", "0", "1", "1", "-2", "-2"]
    assert notes == ["3 labels are written with .0 in images.csv, and elsewhere without it: these are one class."]
    assert labels(["0.0", "1.0", "1.5"]) == ({"p/0.png": "0", "p/1.png": "1", "p/2.png": "1.5"}, [])


def test_words_for_missing_values_are_no_class(labels):
    found, notes = labels(["a", "nan", "NaN", "", "N/A", "<NA>", "null", "#N/A", "NaT", "none", "NONE".lower(), "b"])
    assert list(found.values()) == ["a"] + [""] * 8 + ["none", "none", "b"]
    assert notes == ["7 labels are 'nan', 'NaN', 'N/A', '<NA>', 'null', '#N/A', 'NaT' in images.csv, which counts as no label."]


def test_uncertain_labels_are_refused_dropped_or_read_as_told(labels, bad_labels):
    texts = ["1.0", "-1.0", "0.0", "", "-1", "1"]
    message = bad_labels(texts)
    assert "2 rows have the uncertain label -1" in message and "row 3 'p/1.png', row 6 'p/4.png'" in message
    assert "--uncertain drop" in message and "--uncertain 0" in message
    found, notes = labels(texts, uncertain="drop")
    assert found == {"p/0.png": "1", "p/2.png": "0", "p/3.png": "", "p/5.png": "1"}
    assert notes[-1] == "--uncertain drop left out 2 rows of images.csv with the label -1."
    for value in "01":
        found, notes = labels(texts, uncertain=value)
        assert list(found.values()) == ["1", value, "0", "", value, "1"]
        assert notes[-1] == f"--uncertain {value}: the label -1 of 2 rows of images.csv was read so."
    assert labels(["0", "1"], uncertain="drop")[1] == ["--uncertain drop left out 0 rows of images.csv with the label -1."]


def test_uncertain_among_other_numbers_can_only_be_dropped(labels, bad_labels):
    texts = ["-1", "2", "5", "2"]
    assert "1 row has the uncertain label -1" in bad_labels(texts)
    assert list(labels(texts, uncertain="drop")[0].values()) == ["2", "5", "2"]
    assert "--uncertain 0 is not valid" in bad_labels(texts, uncertain="0") and "also '2', '5'" in bad_labels(texts, uncertain="1")


@pytest.mark.parametrize("texts, words", [
    (["a", "A", "a", "b"], "'A' (1 row) = 'a' (2 rows)"), (["No DR", "no dr", "b"], "'No DR' (1 row) = 'no dr' (1 row)"),
    (["No  DR", "No DR", "NoDR"], "'No  DR' (1 row) = 'No DR' (1 row) = 'NoDR' (1 row)"), (["1", "01", "2"], "'01' (1 row) = '1' (1 row)"),
    (["\u00e9", "e\u0301", "b"], "Unicode form")])
def test_classes_that_differ_only_in_spelling_are_refused(bad_labels, texts, words):
    message = bad_labels(texts)
    assert words in message and "Write each class in one way" in message and "--errata" in message


@pytest.mark.parametrize("texts, count, words", [
    (["Edema|Mass", "Edema", "Mass|Hernia", "Hernia"], 2, "row 2 'p/0.png' (Edema and Mass), row 4 'p/2.png' (Mass and Hernia)"),
    (["Edema;Rare", "Edema", "b"], 1, "row 2 'p/0.png' (Edema and Rare)"), (['"Edema, b"', "Edema", "b"], 1, "(Edema and b)"),
    (["\"['normal', 'mass']\"", "a", "b"], 1, "(normal and mass)"),
    (["Effusion/Mass", "Effusion", "Mass"], 1, "row 2 'p/0.png' (Effusion and Mass)"), (["a + b + c", "a", "b", "c"], 1, "(a and b and c)"),
    (['"1,0"', "1", "0", "2"], 1, "row 2 'p/0.png' (1 and 0)")])
def test_several_labels_in_a_cell_are_refused_with_their_count(bad_labels, texts, count, words):
    message = bad_labels(texts)
    assert f"{count} row{' has' if count == 1 else 's have'} several labels in" in message and words in message
    assert "--errata FILE with the label drop" in message and "--columns label=NAME" in message


def test_a_comma_alone_does_not_make_several_labels(labels):
    texts = ['"Fracture, displaced"', "Fracture", "x;y", "z"]
    assert list(labels(texts)[0].values()) == ["Fracture, displaced", "Fracture", "x;y", "z"]


def test_marks_in_the_name_of_a_class_are_no_list(labels):
    texts = ["HER2+", "HER2", "Effusion/Mass", "Effusion", "CIN1/2", "CIN1"]
    assert list(labels(texts)[0].values()) == texts


def test_decimal_commas_of_labels(images):
    root = images(*(f"p/{k}.png" for k in range(4)))
    text = "path;label\np/0.png;0,0\np/1.png;1,0\np/2.png;\np/3.png;2,00\n"
    assert [row["label"] for row in listed(root, text).rows] == ["0", "1", "", "2"]
    assert "row 3 'p/1.png'" in refused(root, text.replace("1,0", "-1,0")) and "uncertain label -1" in refused(root, text.replace("1,0", "-1,0"))
    text = "path;A;B\np/0.png;0,0;1,0\np/1.png;1,0;0,0\np/2.png;1;0\np/3.png;;1\n"
    assert [row["label"] for row in listed(root, text, columns=["label=A+B"]).rows] == ["B", "A", "A", "B"]


@pytest.mark.parametrize("texts, words", [
    (["TRUE", "FALSE", "1", "0"], "'1' (1 row) = 'TRUE' (1 row), '0' (1 row) = 'FALSE' (1 row)"), (["yes", "no", "no", "0"], "'0' (1 row) = 'no' (2 rows)"),
    (["Ja", "nein", "1.0"], "'1' (1 row) = 'Ja' (1 row)"), (["positive", "1", "0"], "'1' (1 row) = 'positive' (1 row)")])
def test_several_words_for_yes_and_no_are_refused(bad_labels, texts, words):
    message = bad_labels(texts)
    assert f"are different words for yes and no: {words}. Write each class in one way" in message


@pytest.mark.parametrize("texts", [["TRUE", "FALSE"], ["yes", "no", "unclear", "1"], ["0", "1", "2"], ["no", "1"]])
def test_one_word_for_yes_and_one_for_no_are_classes(labels, texts):
    assert list(labels(texts)[0].values()) == texts


ONE_HOT = "path,MEL,NV,B+C\n"


def test_a_column_for_each_class(images):
    root = images(*(f"p/{k}.png" for k in range(5)))
    text = ONE_HOT + "p/0.png,1.0,0.0,0.0\np/1.png,0,1,\np/2.png,False,,True\np/3.png,,,nan\n"
    found = listed(root, text, columns=["label=MEL+NV+B+C"])
    assert [row["label"] for row in found.rows] == ["MEL", "NV", "B+C", ""] and found.rows[0]["extra"] == {}
    # The name of one column may contain +.
    assert [row["label"] for row in listed(root, text, columns=["label=B+C"]).rows] == ["0", "", "True", ""]


@pytest.mark.parametrize("row, how, words", [
    ("1,1,0", {}, "1 row has several labels in"), ("1,1,0", {}, "row 2 'p/0.png' (MEL and NV)"),
    ("0,0,", {}, "1 row has no 1 in the columns MEL, NV, B+C of"), ("0,0,0", {}, "--errata FILE with the label drop"),
    ("0,2,1", {}, "row 2 'p/0.png' ('2' in column 'NV')"), ("-1,0,1.0", {}, "1 row has the uncertain label -1"),
    ("-1.0,0,1", {"uncertain": "1"}, "(MEL and B+C)"), ("-1,0,0", {"uncertain": "0"}, "no 1 in the columns")])
def test_columns_of_classes_with_none_or_several(images, row, how, words):
    root = images("p/0.png", "p/1.png")
    assert words in refused(root, f"{ONE_HOT}p/0.png,{row}\np/1.png,0,0,1\n", columns=["label=MEL+NV+B+C"], **how)


def test_uncertain_columns_of_classes(images):
    root = images("p/0.png", "p/1.png")
    text = f"{ONE_HOT}p/0.png,-1,0,1\np/1.png,0,1.0,0\n"
    for uncertain, found in (("drop", ["NV"]), ("0", ["B+C", "NV"])):
        assert [row["label"] for row in listed(root, text, columns=["label=MEL+NV+B+C"], uncertain=uncertain).rows] == found


def test_classes_of_a_network(images):
    root = images("p/0.png", "p/1.png")
    message = refused(root, numbered(["hand", "foot"]), ("elbow", "hand"))
    assert "row 3 'p/1.png' (unknown label 'foot', the network's classes are elbow, hand)" in message
    for classes in (("0.0", "1.0"), ("a|b", "c"), ("-1", "1")):  # of a network that was trained earlier
        assert [row["label"] for row in listed(root, numbered(classes), classes).rows] == list(classes)
    assert [row["label"] for row in listed(root, "path\np/0.png\np/1.png\n", ("a", "b")).rows] == ["", ""]


# Patients, studies, splits

def test_patients_that_are_unknown(images):
    words = ["nan", "None", "unknown", "Anonymous", "ANONYMIZED", "anonymised", "anon", "-", "?", "NaT", "n/a", "", "P1"]
    root = images(*(f"p/{k}.png" for k in range(len(words))))
    found = listed(root, numbered(["a"] * len(words), "path,label,patient,study,site", "").replace(",a\n", ",a,{},nan,nan\n").format(*words))
    assert [row["patient"] for row in found.rows] == [""] * 12 + ["P1"] and {row["study"] + row["site"] for row in found.rows} == {""}
    assert found.notes == ["11 patients are 'nan', 'None', 'unknown', 'Anonymous', 'ANONYMIZED', 'anonymised', 'anon', '-', '?', 'NaT',"
                           " ... (11 in all) in images.csv, which counts as unknown."]


def test_patients_that_a_spreadsheet_changed(images):
    patients = ["123.0", "123", "7.0", "p1", " P1 ", "0123", "1e9"]
    root = images(*(f"p/{k}.png" for k in range(7)))
    found = listed(root, "path,label,patient\n" + "".join(f"p/{k}.png,a,{patient}\n" for k, patient in enumerate(patients)))
    assert [row["patient"] for row in found.rows] == ["123", "123", "7", "p1", "P1", "0123", "1e9"]
    assert found.notes == [
        "1 patient is written with .0 in images.csv, and elsewhere without it: these are one patient.",
        "2 patients of images.csv may be written in several ways, and count as different patients: 0123 = 123, P1 = p1."
        " Write them in one way if they are the same."]


@pytest.mark.parametrize("patient", ["1.23457E+15", "1.23450e+17", "1,2E+08", "1E+09", "12.3E+15", "-1.2E+20"])
def test_patients_without_their_last_digits_are_refused(images, patient):
    root = images("p/1.png", "p/2.png")
    message = refused(root, f"path;label;patient\np/1.png;a;{patient}\np/2.png;b;17\n")
    assert f"1 row has a patient without the last digits in '{root / 'images.csv'}'" in message
    assert f"row 2 'p/1.png' (patient {patient})" in message and "with this column formatted as text" in message


def test_decimal_commas_of_patients(images):
    root = images(*(f"p/{k}.png" for k in range(4)))
    found = listed(root, "path;label;patient\n" + "".join(f"p/{k}.png;a;{name}\n" for k, name in enumerate(["123,0", "123", "1,000", "7,00"])))
    assert [row["patient"] for row in found.rows] == ["123", "123", "1,000", "7"]  # 1,000 may be a thousand


def test_a_site_in_only_some_rows_of_a_patient_is_that_of_all(images):
    root = images(*(f"p/{k}.png" for k in range(3)))
    (root / "images.csv").write_text("path,label,patient,site\np/0.png,a,P1,UKE\np/1.png,b,P1,\np/2.png,b,P2,\n")
    index = folder.read(str(root))
    assert [sample.patient for sample in index.samples] == ["UKE::P1", "UKE::P1", "P2"]


def test_splits_in_public_spellings_and_a_patient_in_two(images):
    words = ["Training", "val", "TEST", "validation", "", "nan", "testing"]
    root = images(*(f"p/{k}.png" for k in range(7)))
    text = "path,label,patient,split\n" + "".join(f"p/{k}.png,a,P1,{word}\n" for k, word in enumerate(words))
    assert [row["split"] for row in listed(root, text).rows] == ["train", "valid", "test", "valid", None, None, "test"]
    assert "row 2 'p/0.png' (unknown split 'holdout', it must be train, valid or test)" in refused(root, text.replace("Training", "holdout"))


def test_equal_rows_are_merged_and_contrary_ones_are_refused(images):
    root = images("p/0.png", "p/1.png")
    found = listed(root, "path,label,patient,rad\np/0.png,a,P1,R1\n./p/0.png,a,P1,R2\np/1.png,b,P2,R1\np/1.png,b,P2.0,R1\n".replace("P2.0", "P2"))
    assert [(row["path"], row["extra"]) for row in found.rows] == [("p/0.png", {"rad": "R1"}), ("p/1.png", {"rad": "R1"})]
    assert found.notes[-1] == ("2 rows were left out of images.csv: an earlier row lists the same image; 1 row differs in further"
                               " columns.")
    message = refused(root, numbered(["a", "b"]) + "p/0.png,b\np/0.png,\n")
    assert "1 image has several labels in" in message and "'p/0.png' (a in row 2, b in row 4, no label in row 5)" in message
    for key, values in (("patient", ("P1", "P2")), ("split", ("train", "test")), ("study", ("S1", "")), ("site", ("H1", "H2"))):
        text = f"path,label,{key}\np/0.png,a,{values[0]}\np/0.png,a,{values[1]}\n"
        assert f"row 3 'p/0.png' (listed in row 2 with another {key})" in refused(root, text)


def test_ignored_labels_are_not_even_checked(images):
    root = images("p/0.png", "p/1.png")
    text = "path,label,split,lable,patient\np/0.png,a|b,holdout,x,P1\np/0.png,-1,?,y,P1\np/1.png,A,,a,P2\n"
    found = listed(root, text, None, ("label", "split"), columns=["label=absent"], uncertain="0", errata="absent.csv")
    assert [tuple(row.values()) for row in found.rows] == [
        ("p/0.png", "", "P1", "", None, "", {}), ("p/1.png", "", "P2", "", None, "", {})]
    assert found.notes == ["1 row was left out of images.csv: an earlier row lists the same image."]


# Corrections

def written(text, name="fixes.csv"):
    Path(name).write_text(text)
    return name


def test_corrections_mend_what_a_table_would_be_refused_for(images):
    root = images(*(f"p/{k}.png" for k in range(8)))
    text = numbered(["Edema", "Mass|Hernia", "Edema|Mass", "-1", "mass", "Mass", "a", "b"]) + "p/7.png,a\n"
    fixes = written("image,label\n1.png,Hernia\np/2.png,drop\n3,Edema\n4.png,Mass\n7.png,drop\n")
    found = listed(root, text, errata=fixes)
    assert [row["label"] for row in found.rows] == ["Edema", "Hernia", "", "Edema", "Mass", "Mass", "a", ""]
    index = folder.read(str(root), how=Reading(errata=fixes))
    assert index.classes == ("Edema", "Hernia", "Mass", "a")
    assert [(sample.path, index.classes[sample.label]) for sample in index.samples] == [
        ("p/0.png", "Edema"), ("p/1.png", "Hernia"), ("p/3.png", "Edema"), ("p/4.png", "Mass"), ("p/5.png", "Mass"), ("p/6.png", "a")]
    assert "--errata 'fixes.csv' set 3 labels and dropped 2 images." in index.notes
    # Rows that are not corrected are still counted.
    assert "1 row has several labels" in refused(root, text, errata=written("image,label\n2.png,drop\n3,Edema\n4,Mass\n"))
    assert "'Mass' (1 row) = 'mass' (1 row)" in refused(root, text, errata=written("image,label\n1,drop\n2.png,drop\n3,Edema\n7,a\n"))


def test_corrections_mend_columns_of_classes(images):
    root = images(*(f"p/{k}.png" for k in range(4)))
    text = "path,MEL,NV\np/0.png,1,0\np/1.png,0,0\np/2.png,1,1\np/3.png,0,0\n"
    found = listed(root, text, columns=["label=MEL+NV"], errata=written("image,label\n1,NV\n2,MEL\n3,drop\n"))
    assert [row["label"] for row in found.rows] == ["MEL", "NV", "MEL", ""]


def test_a_misspelt_label_of_a_correction_never_becomes_a_class(images):
    root = images("p/0.png", "p/1.png", "p/2.png")
    (root / "images.csv").write_text(numbered(["a", "b", "a|b"]))
    fixes = written("image,label\n2.png,bb\n")
    with pytest.raises(Problem, match="1 row that cannot be used: fixes.csv row 2 '2.png' .label 'bb' is neither drop nor one of a, b"):
        folder.read(str(root), how=Reading(errata=fixes))


@pytest.mark.parametrize("header", ["image,label", "Path;Label", "image,grade"])
def test_corrections_of_class_folders(picture_tree, header):
    root = picture_tree("set", {"0": 2, "1": 2, "2": 1})
    Image.new("L", (8, 8)).save(root / "0" / "odd.tif")
    mark = ";" if ";" in header else ","
    rows = [("0/image1.png", "1.0"), ("odd", "2"), (f"{root}/1/image1.png", "drop"), ("set\\1\\image0.png", "1")]
    index = folder.read(str(root))
    new = corrected(index, written("\n".join([header, *map(mark.join, rows)])))
    assert [(sample.path, sample.label) for sample in new.samples] == [
        ("0/image0.png", 0), ("0/image1.png", 1), ("0/odd.tif", 2), ("1/image0.png", 1), ("2/image0.png", 2)]
    assert new.notes == (*index.notes, "--errata 'fixes.csv' set 3 labels and dropped 1 image.") and new.classes == ("0", "1", "2")


@pytest.mark.parametrize("text", ["image,label,comment\n0/image1.png,drop,blurred\n", "No,Label,Image,\n1,drop,0/image1.png\n"])
def test_further_columns_of_corrections_are_ignored(picture_tree, text):
    root = picture_tree("set", {"0": 2, "1": 2})
    new = corrected(folder.read(str(root)), written(text))
    assert [sample.path for sample in new.samples] == ["0/image0.png", "1/image0.png", "1/image1.png"]
    with pytest.raises(Problem, match="header 'image,path,label': it must be"):  # which of the two names the image?
        corrected(folder.read(str(root)), written("image,path,label\na,b,drop\n"))


def test_corrections_find_images_in_any_unicode_form(images):
    index = folder.read(str(images(unicodedata.normalize("NFD", "ä/ü.png"), "b/1.png", "b/2.png")))
    for name in ("ä/ü.png", "ü", "a\u0308/ü.png"):  # the last one is in a mixed form
        assert [sample.path for sample in corrected(index, written(f"image,label\n{name},drop\n")).samples] == ["b/1.png", "b/2.png"]


def test_corrections_keep_further_columns_in_step_and_label_the_unlabelled(images):
    root = images(*(f"p/{k}.png" for k in range(4)))
    (root / "images.csv").write_text("path,label,age\n" + "".join(f"p/{k}.png,{label},{50 + k}\n" for k, label in enumerate(["a", "b", "", "a"])))
    index = corrected(folder.read(str(root)), written("image,label\n0.png,drop\n2.png,b\n"))
    assert index.extra == {"age": ("51", "52", "53")} and [sample.label for sample in index.samples] == [1, 1, 0]


def test_corrections_of_mura_are_by_path(tmp_path):
    root = tmp_path / "MURA-v1.1"
    for part in ("train/XR_HAND/patient1/study1_positive", "valid/XR_HAND/patient2/study1_negative", "train/XR_WRIST/patient1/study1_negative"):
        (root / part).mkdir(parents=True)
        (root / part / "image1.png").write_bytes(PNG)
    index = mura.read(str(root), "abnormal")
    new = corrected(index, written("path,label\nMURA-v1.1/train/XR_HAND/patient1/study1_positive/image1.png,negative\n"))
    assert [new.classes[sample.label] for sample in new.samples] == ["negative"] * 3
    assert new.notes[-1] == "After the corrections, no image is left of positive."
    with pytest.raises(Problem, match="3 images have this name: train/XR_HAND/patient1/study1_positive/image1.png, "):
        corrected(index, written("path,label\nimage1.png,negative\n"))


@pytest.mark.parametrize("text, words", [
    (None, "--errata 'fixes.csv' cannot be read: no such file. Use a CSV file with the header image,label"),
    ("image,level\n1.png,a\n", "header 'image,level': it must be image,grade or image,label or path,label"),
    ("image,label\n", "no rows below its header"), ("image,label\n1.png\n", "row 2 '1.png' (number of fields differs"),
    ("image,label\na/image0.png,b\nzz.png,a\n", "has 1 row that cannot be used: fixes.csv row 3 'zz.png' (the data set has no such image)"),
    ("image,label\nother/image0.png,a\n", "row 2 'other/image0.png' (the data set has no such image)"),
    ("image,label\nimage0,a\n", "row 2 'image0' (2 images have this name: a/image0.png, b/image0.png)"),
    ("image,label\na/image0.png,b\nonly.png,b\na\\image0.png,drop\n", "row 4 'a\\image0.png' (already named in fixes.csv row 2 'a/image0.png')"),
    ("image,label\nonly.png,c\n", "row 2 'only.png' (label 'c' is neither drop nor one of a, b)"),
    ("image,label\nonly.png,\n", "label '' is neither"), ("image,label\n" + "".join(f"x{k},a\n" for k in range(12)), "has 12 rows that cannot be used"),
    ("image,label\na/image0.png,drop\na/only.png,drop\nb/image0.png,drop\n", "drops all images")])
def test_bad_corrections_are_one_line_with_row_and_cure(images, text, words):
    root = images("a/image0.png", "b/image0.png", "a/only.png")
    if text is not None:
        written(text)
    with pytest.raises(Problem) as caught:
        corrected(folder.read(str(root)), "fixes.csv")
    assert words in str(caught.value) and "\n" not in str(caught.value), caught.value


def test_drawings_have_no_corrections():
    with pytest.raises(Problem, match="--errata 'fixes.csv' is not valid for the data set 'synthetic.*its images are drawn"):
        corrected(synthetic.read(28, 0), written("image,label\n1,hand\n"))


# Public tables, with their real headers

CHEXPERT = ("Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,Edema,"
            "Consolidation,Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices\n")


def test_chexpert(tmp_path):
    root = tmp_path / "CheXpert-v1.0-small"
    views = ["patient00001/study1/view1_frontal.jpg", "patient00001/study2/view1_frontal.jpg", "patient00002/study1/view1_frontal.jpg",
             "patient00003/study1/view1_frontal.jpg", "patient00004/study1/view2_lateral.jpg"]
    lines = []
    for view, label in zip(views, ("1.0", "0.0", "-1.0", "", "1.0"), strict=True):
        (root / "train" / view).parent.mkdir(parents=True)
        (root / "train" / view).write_bytes(PNG)
        lines.append(f"CheXpert-v1.0-small/train/{view},Female,68,Frontal,AP,1.0,,,,,,,{label},,,,,,1.0\n")
    (root / "train.csv").write_text(CHEXPERT + "".join(lines))
    how = {"table": str(root / "train.csv"), "columns": ["label=Pneumonia"], "patient_pattern": "patient[0-9]+"}
    with pytest.raises(Problem, match="1 row has the uncertain label -1"):
        folder.read(str(root), how=Reading(**how))
    for uncertain, classes in (("drop", ["1", "0", "", "1"]), ("1", ["1", "0", "1", "", "1"])):
        index = folder.read(str(root), how=Reading(**how, uncertain=uncertain))
        assert [index.classes[sample.label] if sample.label >= 0 else "" for sample in index.samples] == classes
    assert [sample.patient for sample in index.samples] == ["patient00001", "patient00001", "patient00002", "patient00003", "patient00004"]
    assert index.samples[0].path == f"train/{views[0]}" and index.classes == ("0", "1")
    assert index.extra["Frontal/Lateral"] == ("Frontal",) * 5 and len(index.extra) == 17


NIH = ("Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,OriginalImage[Width,Height],"
       "OriginalImagePixelSpacing[x,y],\n")


def test_nih_chestxray14(tmp_path):
    root = tmp_path / "NIH"
    findings = ["Cardiomegaly", "Cardiomegaly|Emphysema", "Cardiomegaly|Effusion", "No Finding", "Hernia"]
    lines = []
    for k, finding in enumerate(findings):
        name = f"{k // 2:08d}_{k % 2:03d}.png"
        place = root / f"images_{k // 3 + 1:03d}/images"
        place.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(PNG)
        lines.append(f"{name},{finding},{k:03d},{k // 2},058Y,M,PA,2682,2749,0.143,0.143,\n")
    table = root / "Data_Entry_2017.csv"
    table.write_text(NIH + "".join(lines))
    how = {"table": str(table), "columns": ["path=Image Index", "label=Finding Labels", "patient=Patient ID"]}
    with pytest.raises(Problem, match="2 rows have several labels in .*row 3 '00000000_001.png' .Cardiomegaly and Emphysema.*--errata"):
        folder.read(str(root), how=Reading(**how))
    drop = written("image,label\n" + "".join(f"{line.split(',')[0]},drop\n" for line in lines if "|" in line), "drop.csv")
    index = folder.read(str(root), how=Reading(**how, errata=drop))
    assert not any("no label" in note for note in index.notes)
    assert [(sample.path, index.classes[sample.label], sample.patient) for sample in index.samples] == [
        ("images_001/images/00000000_000.png", "Cardiomegaly", "0"), ("images_002/images/00000001_001.png", "No Finding", "1"),
        ("images_002/images/00000002_000.png", "Hernia", "2")]


VINDR = ("image_id,Aortic enlargement,Atelectasis,Calcification,Cardiomegaly,Clavicle fracture,Consolidation,Edema,Emphysema,Enlarged PA,ILD,"
         "Infiltration,Lung Opacity,Lung cavity,Lung cyst,Mediastinal shift,Nodule/Mass,Pleural effusion,Pleural thickening,Pneumothorax,"
         "Pulmonary fibrosis,Rib fracture,Other lesion,COPD,Lung tumor,Pneumonia,Tuberculosis,Other diseases,No finding\n")


def test_vindr(tmp_path):
    root = tmp_path / "vindr"
    names = ["002a34c58c5b758217ed1f584ccbcfe9", "004f33259ee4aef671c2b95d54e4be68", "008bdde2af2462e86fd373a445d0f4cd"]
    for k, name in enumerate(names):
        dicom(root / "test" / f"{name}.dicom", SOPInstanceUID=f"1.2.{k}", PatientID="", StudyInstanceUID="", AccessionNumber="")
    columns = VINDR.count(",") - 1
    (root / "image_labels_test.csv").write_text(VINDR + "".join(f"{name},{',0' * columns}".replace(",,", ",") + f",{k % 2}\n"
                                                                for k, name in enumerate(names)))
    index = folder.read(str(root / "test"), how=Reading(table=str(root / "image_labels_test.csv"), columns=["path=image_id", "label=No finding"]))
    assert [(sample.path, sample.label) for sample in index.samples] == [(f"{name}.dicom", k % 2) for k, name in enumerate(names)]
    assert index.classes == ("0", "1") and "3 images of image_labels_test.csv are found by their file names without extension." in index.notes


def test_isic_2019(tmp_path):
    root = tmp_path / "ISIC_2019_Training_Input"
    root.mkdir()
    lines = []
    for k, (name, place) in enumerate((("ISIC_0000000", 1), ("ISIC_0000001", 0), ("ISIC_0000002_downsampled", 7))):
        (root / f"{name}.jpg").write_bytes(PNG)
        lines.append(name + "".join(f",{float(place == column)}" for column in range(9)) + "\n")
    table = tmp_path / "ISIC_2019_Training_GroundTruth.csv"
    table.write_text("image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK\n" + "".join(lines))
    how = Reading(table=str(table), columns=["path=image", "label=MEL+NV+BCC+AK+BKL+DF+VASC+SCC"])
    index = folder.read(str(root), how=how)
    assert [(sample.path, index.classes[sample.label]) for sample in index.samples] == [
        ("ISIC_0000000.jpg", "NV"), ("ISIC_0000001.jpg", "MEL"), ("ISIC_0000002_downsampled.jpg", "SCC")]
    assert set(index.extra) == {"UNK"}


# Damaged tables

@pytest.mark.case(17)
@pytest.mark.parametrize("count", [pytest.param(100), pytest.param(2000, marks=pytest.mark.slow)])
def test_a_changed_table_is_refused_or_read_as_it_says(images, injected, count):
    """Change words of a table; what is accepted must be what an independent reading of the change gives."""
    root = images(*(f"{name}/{k}.png" for name in "ab" for k in range(4)))
    words = ["nan", "0.0", "-1", "a|b", "A", "", "a", "b", "p/1.png", "a/0.png", "a\\0.png", "0.png", "train", "val", "x", "?", "1e9", "\0", '"', "..", "/"]
    chance, bad = random.Random(3), 0
    for number in range(count):
        table = [["path", "label", "patient", "split"], *([f"{name}/{k}.png", name, f"P{k}", "train"] for name in "ab" for k in range(4))]
        mark = chance.choice(",;\t|")
        changes = {(chance.randrange(1, 9), chance.randrange(4)): chance.choice(words) for _ in range(chance.choice([0, 1, 1, 2]))}
        for (row, column), word in changes.items():
            table[row][column] = word
        try:
            found = listed(root, "\n".join(mark.join(row) for row in table))
        except Problem as problem:
            assert changes and str(problem) and "\n" not in str(problem)
            bad += 1
            continue
        missing = ("", "nan", "?", "-1", "..", "/")
        expected = {}
        for path, label, patient, split in table[1:]:
            path = path.replace("\\", "/")
            path = path if "/" in path else f"a/{path}"
            expected[path] = ("" if label in ("", "nan") else label.replace("0.0", "0"), "" if patient in missing else patient.replace("0.0", "0"),
                              {"": None, "nan": None, "val": "valid"}.get(split, split))
        assert {row["path"]: (row["label"], row["patient"], row["split"]) for row in found.rows} == expected, changes
    assert count / 10 < bad < count
    injected(count)
