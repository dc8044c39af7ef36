"""Pixels become values: every encoding, rescale, padding, and what is refused."""

import dataclasses
import threading
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)
from volumes import FEET_FIRST, PRONE, Scan, dataset, facts, series_of, write

from workers.errors import PairingRefused, PixelError, Truncated
from workers.header.facts import FrameFacts
from workers.header.read import read_header
from workers.pairing.geometry import plan_volume
from workers.pairing.grid import canonical
from workers.pairing.pixels import Scale, open_file, scale_of, stored_pixels
from workers.pairing.volume import SeriesInput, VolumeReader, map_ahead, without_repeats

SCAN = Scan(size=(12, 10, 6))


def ramp(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    return np.rint(3 * x - 5 * y + 2 * z)


def reader(series: SeriesInput, **how) -> VolumeReader:
    volume = plan_volume(series.facts)
    return VolumeReader(series, volume, canonical(volume), **{"outside": -1024.0, **how})


def values(series: SeriesInput, **how) -> np.ndarray:
    return np.stack(list(reader(series, **how).slices(lambda plane: plane)))


def expected(series: SeriesInput) -> np.ndarray:
    """The ramp at the places where the canonical grid says that its voxels lie."""
    grid = canonical(plan_volume(series.facts)).grid
    c, h, w = np.indices(grid.shape)
    x, y, z, _ = np.moveaxis(np.stack([w, h, c, np.ones_like(c)], axis=-1) @ grid.affine.T, -1, 0)
    return 3 * x - 5 * y + 2 * z


@pytest.mark.parametrize("orientation", [Scan.orientation, PRONE, FEET_FIRST])
def test_supine_prone_and_feet_first_come_out_alike(tmp_path: Path, orientation) -> None:
    series = write(SCAN.with_(orientation=orientation), tmp_path, ramp)
    np.testing.assert_allclose(values(series), expected(series), atol=0.51)
    assert canonical(plan_volume(series.facts)).grid.direction == (
        (1.0, 0.0, 0.0),
        (0.0, 1.0, 0.0),
        (0.0, 0.0, 1.0),
    )


def test_a_sagittal_stack_is_turned_whole(tmp_path: Path) -> None:
    series = write(SCAN.with_(orientation=(0.0, 1.0, 0.0, 0.0, 0.0, -1.0)), tmp_path, ramp)
    np.testing.assert_allclose(values(series), expected(series), atol=0.51)


def test_each_slice_has_its_own_rescale(tmp_path: Path) -> None:
    for k in range(6):
        slope = 0.5 + 0.1 * k
        scan = SCAN.with_(slope=slope, intercept=float(-k))
        dataset(scan, k, ramp).save_as(tmp_path / f"{k}.dcm", enforce_file_format=True)
    series = series_of(tmp_path)
    assert np.abs(values(series) - expected(series)).max() <= 0.51 + 0.5


def test_a_factor_a_slice_multiplies_the_rescaled_values(tmp_path: Path) -> None:
    series = write(SCAN.with_(intercept=-7.0), tmp_path, ramp)
    factors = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    plain = values(series)
    np.testing.assert_allclose(
        values(series, factors=factors), plain * np.array(factors)[:, None, None]
    )


SYNTAXES = [
    ImplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
    RLELossless,
    JPEG2000Lossless,
    JPEGLSLossless,
]


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda uid: uid.name)
@pytest.mark.parametrize("signed", [True, False])
def test_every_lossless_syntax_gives_the_same_values(
    tmp_path: Path, syntax: pydicom.uid.UID, signed: bool
) -> None:
    intercept = 0.0 if signed else -1024.0
    scan = SCAN.with_(size=(40, 36, 4), signed=signed, intercept=intercept)
    plain = write(scan, tmp_path / "plain", ramp)
    (tmp_path / "other").mkdir()
    for k, path in enumerate(plain.files):
        ds = dataset(scan, k, ramp)
        if syntax.is_encapsulated:
            ds.compress(syntax, generate_instance_uid=False)
        if syntax == ExplicitVRBigEndian:
            ds.PixelData = ds.pixel_array.astype(">i2" if signed else ">u2").tobytes()
        ds.file_meta.TransferSyntaxUID = syntax
        ds.save_as(tmp_path / "other" / path.name, enforce_file_format=True)
    np.testing.assert_array_equal(values(series_of(tmp_path / "other")), values(plain))


@pytest.mark.parametrize("kind", ["compressed_rle", "compressed_j2k", "compressed_jpegls"])
def test_real_compressed_slices_equal_their_jpeg_twins(test_data: Path, kind: str) -> None:
    odd = test_data / "odd" / "dicom2nifti"
    twins = series_of(odd / "compressed_jpeg" / "001")
    series = series_of(odd / kind / "001")
    for path, known, twin in zip(series.files, series.facts, twins.files, strict=True):
        pixels = stored_pixels(open_file(path, known).dataset, None)
        np.testing.assert_array_equal(pixels, pydicom.dcmread(twin).pixel_array)


@pytest.mark.parametrize(
    ("stored_bits", "signed"), [(12, True), (12, False), (16, True), (16, False)]
)
def test_native_pixels_equal_those_that_pydicom_decodes(stored_bits: int, signed: bool) -> None:
    ds = dataset(SCAN.with_(signed=signed), 0, lambda x, y, z: 0 * x)
    ds.BitsStored, ds.HighBit = stored_bits, stored_bits - 1
    low, high = (
        (-(2 ** (stored_bits - 1)), 2 ** (stored_bits - 1)) if signed else (0, 2**stored_bits)
    )
    pixels = np.random.default_rng(7).integers(low, high, (10, 12))
    ds.PixelData = pixels.astype("<i2" if signed else "<u2").tobytes()
    np.testing.assert_array_equal(stored_pixels(ds, None), pixels)
    np.testing.assert_array_equal(stored_pixels(ds, None), ds.pixel_array)


def test_rubbish_above_the_stored_bits_is_left_out() -> None:
    ds = dataset(SCAN, 0, lambda x, y, z: 0 * x)
    ds.BitsStored, ds.HighBit = 12, 11
    ds.PixelData = np.full((10, 12), 0xF7FF, "<u2").tobytes()  # an old overlay in the high bits
    assert (stored_pixels(ds, None) == 0x7FF).all()


def test_padding_becomes_air(tmp_path: Path) -> None:
    def round_field(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        return np.where((x + 3.5) ** 2 + (y + 6) ** 2 < 80, 40, -2000)

    scan = SCAN.with_(changes=(("PixelPaddingValue", -2000),))
    read = reader(write(scan, tmp_path, round_field), floor=-1024.0)
    found = np.stack(list(read.slices(lambda plane: plane)))
    assert set(np.unique(found)) == {-1024.0, 40.0}
    assert read.padded_slices == 6


def test_a_padding_range_is_padding_throughout(tmp_path: Path) -> None:
    changes = (("PixelPaddingValue", -2000), ("PixelPaddingRangeLimit", -1500))
    found = values(write(SCAN.with_(changes=changes), tmp_path, lambda x, y, z: x * 0 - 1700))
    assert (found == -1024).all()


def test_water_is_not_taken_for_padding(tmp_path: Path) -> None:
    # PixelPaddingValue 0 where 0 HU is an ordinary value and the corners hold air
    def body(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        return np.where((x + 3.5) ** 2 + (y + 6) ** 2 < 80, 0, -1000)

    found = values(write(SCAN.with_(changes=(("PixelPaddingValue", 0),)), tmp_path, body))
    assert set(np.unique(found)) == {-1000.0, 0.0}


def test_values_below_the_floor_are_raised_to_it(tmp_path: Path) -> None:
    series = write(SCAN, tmp_path, lambda x, y, z: 0 * x - 3000)
    assert (values(series, floor=-1024.0) == -1024).all()


@pytest.mark.parametrize("keyword", ["RescaleSlope", "RescaleIntercept"])
def test_a_missing_rescale_is_never_guessed(tmp_path: Path, keyword: str) -> None:
    ds = dataset(SCAN, 0, ramp)
    del ds[keyword]
    ds.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    with pytest.raises(PairingRefused, match=f"a slice without {keyword}"):
        scale_of(series_of(tmp_path).facts[0], None)


def test_a_slope_that_is_no_number_is_refused(tmp_path: Path) -> None:
    data = dataset(SCAN.with_(slope=2.125), 0, ramp)
    data.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    raw = (tmp_path / "a.dcm").read_bytes()
    assert raw.count(b"2.125 ") == 1
    (tmp_path / "a.dcm").write_bytes(raw.replace(b"2.125 ", b"NaN   "))
    with pytest.raises(PairingRefused, match="RescaleSlope of a slice is not a number"):
        scale_of(read_header(tmp_path / "a.dcm").facts, None)


def test_cut_pixel_data_names_the_slice(tmp_path: Path) -> None:
    series = write(SCAN, tmp_path, ramp)
    ds = pydicom.dcmread(series.files[3])
    ds.PixelData = ds.PixelData[:100]
    ds.save_as(series.files[3])
    with pytest.raises(
        Truncated, match=r"slice 4 of 6 \(112\.0 mm\): pixel data is cut: 100 bytes"
    ):
        values(series)


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    series = write(SCAN, tmp_path, ramp)
    raw = series.files[2].read_bytes()
    series.files[2].write_bytes(raw[:-60])
    with pytest.raises((Truncated, PixelError), match="slice 3 of 6"):
        values(series)


def test_absent_pixels_and_colour_are_refused(tmp_path: Path) -> None:
    ds = dataset(SCAN, 0, ramp)
    del ds.PixelData
    with pytest.raises(PixelError, match="no pixel data"):
        stored_pixels(ds, None)
    ds = dataset(SCAN, 0, ramp)
    ds.SamplesPerPixel = 3
    with pytest.raises(PixelError, match="3 samples a pixel: colour"):
        stored_pixels(ds, None)


def test_an_unknown_compression_is_refused_by_name(tmp_path: Path) -> None:
    series = write(SCAN, tmp_path, ramp)
    for path in series.files:
        ds = pydicom.dcmread(path)
        ds.PixelData = pydicom.encaps.encapsulate([b"\0" * 64])
        ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.100"  # MPEG2
        ds["PixelData"].VR = "OB"
        ds.save_as(path)
    with pytest.raises(PixelError, match=r"pixels in MPEG2 .* cannot be decoded"):
        values(series)


def test_a_file_that_changed_since_it_was_filed_is_told(tmp_path: Path) -> None:
    series = write(SCAN, tmp_path, ramp)
    recorded = SeriesInput(series.series_uid, series.files, series.facts, ("0" * 64,) * 6)
    read = reader(recorded)
    list(read.slices(lambda plane: plane))
    assert read.warnings == ("6 files differ from what was recorded when they were filed",)


def test_another_instance_under_the_name_of_this_one_is_refused(tmp_path: Path) -> None:
    series = write(SCAN, tmp_path, ramp)
    series.files[0].write_bytes(series.files[1].read_bytes())
    with pytest.raises(PixelError, match=r"the file holds 1\.2\.3\.1\.2, not 1\.2\.3\.1\.1"):
        values(series)


def test_pixel_by_pixel_repeats_are_left_out_and_conflicts_stay(tmp_path: Path) -> None:
    series = write(SCAN, tmp_path, ramp)
    twin = pydicom.dcmread(series.files[2])
    twin.SOPInstanceUID = "1.2.3.77"
    twin.file_meta.MediaStorageSOPInstanceUID = "1.2.3.77"
    twin.save_as(tmp_path / "twin.dcm")
    kept, repeats = without_repeats(series_of(tmp_path))
    assert (len(kept.files), repeats) == (6, 1)
    assert plan_volume(kept.facts).size == (12, 10, 6)
    twin.PixelData = bytes(len(twin.PixelData))
    twin.save_as(tmp_path / "twin.dcm")
    kept, repeats = without_repeats(series_of(tmp_path))
    assert repeats == 0
    with pytest.raises(PairingRefused, match="two different slices at one position"):
        plan_volume(kept.facts)


@pytest.mark.parametrize("syntax", [None, RLELossless])
def test_the_frames_of_an_enhanced_image_are_read_each_with_its_rescale(
    tmp_path: Path, syntax: pydicom.uid.UID | None
) -> None:
    write(SCAN, tmp_path / "plain", ramp)
    ds = dataset(SCAN, 0, ramp)
    for keyword in ("ImagePositionPatient", "RescaleSlope", "RescaleIntercept", "PixelSpacing"):
        del ds[keyword]
    ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"
    ds.NumberOfFrames = 6
    measures = Dataset()
    measures.PixelSpacing = list(SCAN.spacing)
    shared = Dataset()
    shared.PixelMeasuresSequence = [measures]
    ds.SharedFunctionalGroupsSequence = [shared]
    order = [4, 0, 2, 5, 1, 3]
    ds.PerFrameFunctionalGroupsSequence = [enhanced_frame(k) for k in order]
    ds.PixelData = b"".join(
        np.rint(ramp(*SCAN.points(k)) / (1 + k)).astype("<i2").tobytes() for k in order
    )
    if syntax is not None:
        ds.compress(syntax, generate_instance_uid=False)
    (tmp_path / "enhanced").mkdir()
    ds.save_as(tmp_path / "enhanced" / "a.dcm", enforce_file_format=True)
    series = series_of(tmp_path / "enhanced")
    read = reader(series)
    found = np.stack(list(read.slices(lambda plane: plane)))
    assert np.abs(found - expected(series)).max() <= 3.51  # half a stored step of the sixth slice
    assert list(read.inputs) == ["1.2.3.1.1"]


def enhanced_frame(k: int) -> Dataset:
    position, values_of, frame = Dataset(), Dataset(), Dataset()
    position.ImagePositionPatient = [float(v) for v in SCAN.place(k)]
    values_of.RescaleSlope, values_of.RescaleIntercept = 1 + k, 0
    frame.PlanePositionSequence = [position]
    frame.PixelValueTransformationSequence = [values_of]
    return frame


def test_a_real_world_mapping_is_used_unless_the_suv_factor_holds_it() -> None:
    mapped = FrameFacts(
        rescale_slope=2.0,
        rescale_intercept=0.0,
        real_world_value_units="Bq/ml",
        real_world_value_slope=3.0,
        real_world_value_intercept=1.0,
    )
    one = dataclasses.replace(facts(SCAN)[0], frames=(mapped,), rescale_slope=None)
    assert scale_of(one, 0) == Scale(3.0, 1.0, None)
    assert scale_of(one, 0, real_world=False) == Scale(2.0, 0.0, None)
    alone = dataclasses.replace(mapped, rescale_slope=None, rescale_intercept=None)
    one = dataclasses.replace(one, frames=(alone,), rescale_intercept=None)
    assert scale_of(one, 0) == Scale(3.0, 1.0, None)
    assert scale_of(one, 0, real_world=False) == Scale(1.0, 0.0, None)


@pytest.mark.parametrize("threads", [1, 3])
def test_items_come_in_order_and_only_a_few_ahead(threads: int) -> None:
    started: list[int] = []

    def work(item: int) -> int:
        started.append(item)
        return item * item

    coming = map_ahead(work, range(1000), threads)
    assert [next(coming) for _ in range(5)] == [0, 1, 4, 9, 16]
    assert len(started) < 5 + 3 * threads + 2
    coming.close()  # type: ignore[attr-defined]
    assert not [one for one in threading.enumerate() if one.name.startswith("slices")]
