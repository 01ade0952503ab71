"""DICOM files as a hospital may send them, written with pydicom. Import it only where pydicom is installed."""

import io
import os

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, generate_uid

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"


def dataset(values: np.ndarray, syntax: str = ExplicitVRLittleEndian, **tags) -> FileDataset:
    """Return a data set with the pixels [H, W] (grey) or [H, W, 3] (RGB), of any integer or floating-point type.

    BitsStored is the number of bits of the type. `tags` are keywords and values of further elements, or of the same ones;
    None removes an element.
    """
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = SECONDARY_CAPTURE
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["test", str(tags.get("InstanceNumber"))])
    data = FileDataset(None, {}, bytes(128), meta, UID(syntax).is_implicit_VR, UID(syntax).is_little_endian)
    data.SOPClassUID, data.SOPInstanceUID = SECONDARY_CAPTURE, meta.MediaStorageSOPInstanceUID
    data.StudyInstanceUID, data.PatientID, data.PatientName, data.Modality = "1.2.3", "MRN1", "Doe^Jane", "DX"
    data.Rows, data.Columns = values.shape[:2]
    data.SamplesPerPixel = 1 if values.ndim == 2 else 3
    data.PhotometricInterpretation = "MONOCHROME2" if values.ndim == 2 else "RGB"
    if values.ndim == 3:
        data.PlanarConfiguration = 0
    bits = 8 * values.dtype.itemsize
    data.BitsAllocated = bits
    if values.dtype.kind == "f":
        setattr(data, "FloatPixelData" if bits == 32 else "DoubleFloatPixelData", values.tobytes())
    else:
        data.BitsStored, data.HighBit, data.PixelRepresentation = bits, bits - 1, int(values.dtype.kind == "i")
        order = ">" if syntax == ExplicitVRBigEndian else "<"
        content = values.astype(values.dtype.newbyteorder(order)).tobytes()
        data.PixelData = content + b"\0" * (len(content) % 2)
        data["PixelData"].VR = "OB" if bits == 8 else "OW"
    if "BitsStored" in tags and "HighBit" not in tags:
        tags["HighBit"] = tags["BitsStored"] - 1
    for keyword, value in tags.items():
        if value is None:
            delattr(data, keyword)
        else:
            setattr(data, keyword, value)
    return data


def content_of(data: FileDataset, compression: str | None = None) -> bytes:
    """Return the bytes of a file, compressed by pydicom with this transfer syntax (RLE or JPEG 2000) if it is given."""
    if compression is not None:
        data.compress(compression, generate_instance_uid=False)
    file = io.BytesIO()
    data.save_as(file, enforce_file_format=True)
    return file.getvalue()


def dicom(values: np.ndarray, syntax: str = ExplicitVRLittleEndian, compression: str | None = None, **tags) -> bytes:
    """Return the bytes of a DICOM file; see `dataset` and `content_of`."""
    return content_of(dataset(values, syntax, **tags), compression)


def write_dicom(path, values: np.ndarray, syntax: str = ExplicitVRLittleEndian, compression: str | None = None, **tags) -> None:
    """Write a DICOM file and create its folder; see `dicom`."""
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with open(path, "wb") as file:
        file.write(dicom(values, syntax, compression, **tags))


def look_up(first: int, entries, bits: int) -> Sequence:
    """Return the value of VOILUTSequence or ModalityLUTSequence: one table."""
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(entries) & 0xFFFF, first, bits])
    item.add_new("LUTData", "OW", np.asarray(entries, "<u2").tobytes())
    return Sequence([item])


def palette(colours: np.ndarray, bits: int, first: int = 0) -> dict:
    """Return the tags of a palette, colours [N, 3 or 4], with 8 or 16 bits per entry."""
    tags = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name, entries in zip(("Red", "Green", "Blue", "Alpha"), colours.T):
        content = entries.astype("<u2" if bits == 16 else np.uint8).tobytes()
        tags[f"{name}PaletteColorLookupTableData"] = content + b"\0" * (len(content) % 2)
        if name != "Alpha":
            tags[f"{name}PaletteColorLookupTableDescriptor"] = [len(entries) & 0xFFFF, first, bits]
    return tags
