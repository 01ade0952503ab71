"""Crash-safe files, and one message with exit code 4 for every kind of damage."""

import json
import os
import pickle

import pytest
import torch

from kd.system import checkpoint
from kd.system.errors import BAD_CHECKPOINT, Problem
from kd.system.files import read_json, replacing, write_json, write_text


def content():
    torch.manual_seed(0)
    return {"a": torch.randn(50, 40), "nested": {"b": torch.arange(5)}, "text": "x"}


def test_what_was_saved_comes_back(tmp_path):
    checkpoint.save(tmp_path / "file.pt", content())
    back = checkpoint.load(tmp_path / "file.pt")
    assert torch.equal(back["a"], content()["a"]) and back["text"] == "x" and os.listdir(tmp_path) == ["file.pt"]


@pytest.mark.case(9)
@pytest.mark.parametrize("share", [0, 0.01, 0.25, 0.5, 0.75, 0.99])
def test_a_file_cut_short_is_refused(tmp_path, share):
    checkpoint.save(tmp_path / "file.pt", content())
    whole = (tmp_path / "file.pt").read_bytes()
    (tmp_path / "file.pt").write_bytes(whole[:int(share * len(whole))])
    with pytest.raises(Problem) as caught:
        checkpoint.load(tmp_path / "file.pt")
    assert caught.value.code == BAD_CHECKPOINT and "file.pt" in str(caught.value)


@pytest.mark.case(9)
def test_a_flipped_bit_never_gives_other_tensors(tmp_path):
    checkpoint.save(tmp_path / "file.pt", content())
    whole = (tmp_path / "file.pt").read_bytes()
    random = torch.Generator().manual_seed(0)
    refused = 0
    for place in torch.randint(len(whole), (20,), generator=random).tolist():
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        (tmp_path / "file.pt").write_bytes(damaged)
        try:
            assert torch.equal(checkpoint.load(tmp_path / "file.pt")["a"], content()["a"])
        except Problem as problem:
            assert problem.code == BAD_CHECKPOINT
            refused += 1
    assert refused > 0


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.case(10)
@pytest.mark.parametrize("legacy", [True, False, None])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path, legacy):
    bomb = {"a": Bomb(tmp_path / "exploded")}
    if legacy is None:
        (tmp_path / "file.pt").write_bytes(pickle.dumps(bomb))
    else:
        torch.save(bomb, tmp_path / "file.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(Problem) as caught:
        checkpoint.load(tmp_path / "file.pt")
    assert caught.value.code == BAD_CHECKPOINT and not (tmp_path / "exploded").exists()


@pytest.mark.case(9)
@pytest.mark.parametrize("make", [lambda p: p.mkdir(), lambda p: p.write_text("text"), lambda p: None,
                                  lambda p: torch.save([1, 2], p), lambda p: torch.save({"format": 99}, p)])
def test_what_is_no_checkpoint_is_refused(tmp_path, make):
    make(tmp_path / "file.pt")
    with pytest.raises(Problem) as caught:
        checkpoint.load(tmp_path / "file.pt")
    assert caught.value.code == BAD_CHECKPOINT


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_else(tmp_path):
    write_text(tmp_path / "file.json", "old")
    with pytest.raises(RuntimeError):
        with replacing(tmp_path / "file.json") as temporary:
            temporary.write_text("half of")
            raise RuntimeError
    assert (tmp_path / "file.json").read_text() == "old" and os.listdir(tmp_path) == ["file.json"]


@pytest.mark.case(25)
def test_json_is_strict(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "file.json", {"a": float("nan")})
    write_json(tmp_path / "file.json", {"a": None})
    assert json.loads((tmp_path / "file.json").read_text()) == {"a": None}
    (tmp_path / "file.json").write_text('{"a": ')
    with pytest.raises(Problem, match="damaged"):
        read_json(tmp_path / "file.json")
