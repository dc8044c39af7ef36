"""Do what autoPET's conversion does of one study, with the libraries that it uses.

    PEER/bin/pip install dicom2nifti nibabel nilearn
    PEER/bin/python benchmarks/pair_peer.py STUDY OUT

Written from what that script does (lab-midas/TCIA_processing, tcia_dicom_to_nifti.py): dicom2nifti
makes a compressed, reoriented NIfTI file of each series; the PET is read again, multiplied by one
SUV factor of its first slice and written as a third file; CT and PET are read again, nilearn
resamples the CT onto the PET (its default, cubic splines) and a fourth file is written. No mask is
converted here. Prints seconds and peak GiB as JSON.
"""

from __future__ import annotations

import json
import resource
import shutil
import sys
import tempfile
import time
import warnings
from pathlib import Path

import dicom2nifti
import nibabel
import nilearn.image
import numpy as np
import pydicom


def converted(folder: Path, target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as place:
        dicom2nifti.convert_directory(str(folder), place, compression=True, reorient=True)
        shutil.copy(next(Path(place).glob("*.nii.gz")), target)


def suv_factor(path: Path) -> float:
    header = pydicom.dcmread(path, stop_before_pixels=True)
    given = header.RadiopharmaceuticalInformationSequence[0]
    passed = _seconds(header.AcquisitionTime) - _seconds(given.RadiopharmaceuticalStartTime)
    dose = float(given.RadionuclideTotalDose) * 0.5 ** (passed / float(given.RadionuclideHalfLife))
    return 1000 * float(header.PatientWeight) / dose


def _seconds(time_of_day: str) -> float:
    return int(time_of_day[:2]) * 3600 + int(time_of_day[2:4]) * 60 + float(time_of_day[4:] or "0")


def main() -> None:
    study, out = Path(sys.argv[1]), Path(sys.argv[2])
    warnings.simplefilter("ignore")
    began = time.perf_counter()
    converted(study / "CT IMAGES", out / "CT.nii.gz")
    converted(study / "PET AC", out / "PET.nii.gz")
    pet = nibabel.load(out / "PET.nii.gz")
    factor = suv_factor(next((study / "PET AC").iterdir()))
    suv = (pet.get_fdata() * factor).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(suv, pet.affine), out / "SUV.nii.gz")
    moved = nilearn.image.resample_to_img(
        nibabel.load(out / "CT.nii.gz"), nibabel.load(out / "PET.nii.gz"), fill_value=-1024
    )
    nibabel.save(moved, out / "CTres.nii.gz")
    seconds = time.perf_counter() - began
    json.dump((seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20), sys.stdout)


if __name__ == "__main__":
    main()
