"""Patients as a model.pt holds them: hashed, for comparison with patients whose names are known.

The leakage check only asks whether patients of a data set are among those that a network has seen.
It can therefore compare hashes, and a model.pt that is passed on names nobody. But a hash is not
encryption: whoever guesses a name can test the guess, and all numbers of seven digits can be
guessed. "What leaves the house" in kd/README.md says what this protects.
"""

import functools
import hashlib
from collections.abc import Iterable

import numpy as np
import torch

from kd.data.index import has_site, name_of

HASH_BYTES = 16
ROW_BYTES = 2 * HASH_BYTES
# About 0.04 ms for each name, so that a check of 10,000 patients against several teachers takes
# seconds. Guessing is forty times as slow as with one round, which protects names with dates of
# birth a little, and numbers not at all.
ROUNDS = 100
_NO_SITE = bytes(HASH_BYTES)


def salt_of(*hashes: str) -> str:
    """Return the salt of a model.pt, made of the hashes of its weights, split and images.

    A salt is no secret, and is stored beside the hashes. It need not be random either: it must only
    differ between files, so that a patient has another hash in each. The patients of two files then
    cannot be matched without their names, and a table of the hashes of all possible names serves
    for one file only. A random salt would make the files of two identical runs differ.
    """
    return hashlib.sha256("\n".join(("patients", *hashes)).encode()).hexdigest()[: 2 * HASH_BYTES]


@functools.lru_cache(maxsize=2**18)
def _hash(name: str, salt: str) -> bytes:
    content = name.encode("utf-8", "surrogateescape")
    return hashlib.pbkdf2_hmac("sha256", content, salt.encode(), ROUNDS, HASH_BYTES)


def hashed(patients: Iterable[str], salt: str) -> torch.Tensor:
    """Return the distinct patients as uint8 [n, 32]: hash of the patient, hash of the name alone.

    The second half is 0 for a patient without a site. The rows are sorted, so that their order says
    nothing about the names.
    """
    rows = set()
    for patient in patients:
        name = _hash(name_of(patient), salt) if has_site(patient) else _NO_SITE
        rows.add(_hash(patient, salt) + name)
    content = bytearray(b"".join(sorted(rows)))
    if not content:
        return torch.zeros(0, ROW_BYTES, dtype=torch.uint8)
    return torch.frombuffer(content, dtype=torch.uint8).reshape(-1, ROW_BYTES)


def are_among_hashed(
    patients: Iterable[str | None], others: torch.Tensor, salt: str, guess: bool = False
) -> np.ndarray:
    """Return what `index.are_among` returns for the patients whose hashes `others` are: bool [n].

    others  as `hashed` returns them, with this salt
    """
    full, names, without_site = set(), set(), set()
    for row in others.numpy():
        patient, name = row[:HASH_BYTES].tobytes(), row[HASH_BYTES:].tobytes()
        full.add(patient)
        names.add(patient if name == _NO_SITE else name)
        if name == _NO_SITE:
            without_site.add(patient)
    found = []
    for patient in patients:
        if patient is None or not full:  # nothing to compare with: spare the hashes
            found.append(False)
            continue
        own = _hash(patient, salt)
        maybe = own in full or own in names
        found.append(maybe or (guess and _hash(name_of(patient), salt) in without_site))
    return np.array(found, bool)
