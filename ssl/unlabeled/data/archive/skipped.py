"""Files that lie among images and are not read: how many of which kind, and what would make images of them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress

from unlabeled.data.archive.index import HIDDEN, NO_ENDING

BESIDE = "beside the folders"
SHOWN, LOOKED_AT = 8, 1000

# three lines of Python that make images of a format
DICOM = """
import numpy, pydicom
pixels = pydicom.dcmread("FILE.dcm").pixel_array
numpy.save("FILE.npy", pixels.astype("float32"))  # one file for each frame: [H, W] or [H, W, bands]"""
NIFTI = """
import nibabel, numpy
volume = nibabel.load("FILE.nii.gz").get_fdata(dtype="float32")  # [X, Y, slices]
for i in range(volume.shape[2]): numpy.save(f"FILE-{i:04}.npy", volume[:, :, i].T)"""
HDF5 = """
import h5py, numpy
pictures = h5py.File("FILE.h5")["NAME"]  # [N, H, W] or [N, H, W, bands]
for i in range(len(pictures)): numpy.save(f"FILE-{i:06}.npy", pictures[i])"""
HEIF = """
import PIL.Image, pillow_heif
pillow_heif.register_heif_opener()
PIL.Image.open("FILE.heic").save("FILE.png")"""
JPEG_2000 = """
import PIL.Image
picture = PIL.Image.open("FILE.jp2")
picture.save("FILE.tif")"""
FOREIGN = (  # endings, name, package, lines
    ((".dcm", ".dicom", ".ima"), "DICOM", "pydicom", DICOM),
    ((".nii", ".nii.gz", ".hdr", ".img"), "NIfTI", "nibabel", NIFTI),
    ((".h5", ".hdf5", ".hdf", ".he5"), "HDF5", "h5py", HDF5),
    ((".heic", ".heif", ".hif", ".avif"), "HEIF", "pillow-heif", HEIF),
    ((".jp2", ".j2k", ".jpx", ".j2c"), "JPEG 2000", "pillow", JPEG_2000),
)


def in_words(skipped: Counter[str]) -> str:
    """Such as `10 files are not read: 7 .jp2, 3 without an ending`."""
    total, most = skipped.total(), sorted(skipped.items(), key=lambda item: (-item[1], item[0]))[:SHOWN]
    shown = [f"{count:,} {kind}" for kind, count in most]
    if rest := total - sum(count for _, count in most):
        shown.append(f"{rest:,} of {len(skipped) - SHOWN} other kinds")
    return f"{total:,} {'file is' if total == 1 else 'files are'} not read: {', '.join(shown)}"


def conversion(skipped: Counter[str], roots: Sequence[bytes]) -> str:
    """How to make images of the commonest format of files that are not read, in folders without any image; '' where it
    is none of those known. Files without an ending are looked into."""
    counts = Counter({ending: n for ending, n in skipped.items() if ending not in (HIDDEN, NO_ENDING)})
    if skipped[NO_ENDING] and any(map(_begins_as_dicom, roots)):
        counts[".dcm"] += skipped[NO_ENDING]
    for endings, name, package, lines in sorted(FOREIGN, key=lambda known: -sum(counts[e] for e in known[0])):
        if any(counts[ending] for ending in endings):
            code = lines.replace("\n", "\n    ")
            return f". {name} is not read. These lines make files that are (pip install {package}):{code}"
    return ""


def _begins_as_dicom(root: bytes) -> bool:
    looked = 0
    for folder, _, names in os.walk(root):
        for name in names:
            looked += 1
            if b"." not in name or name.rpartition(b".")[2].isdigit():
                with suppress(OSError), open(os.path.join(folder, name), "rb") as file:
                    return file.read(132)[128:] == b"DICM"
            if looked > LOOKED_AT:
                return False
    return False
