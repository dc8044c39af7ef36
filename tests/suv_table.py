"""Published SUV cases: header facts, the factor or refusal they give, and where they come from.

The facts are the sources', the form is ours. `DRO` is the header that all IBSI reference objects
share, `UNIT` the one of calculate-suv's unit tests; a case names what differs.
"""

from dataclasses import dataclass
from typing import Any

from facts_builder import ENHANCED_PET, PET, one, philips

from workers.header.facts import FrameFacts, InstanceFacts, PrivateFact

CALCULATE_SUV = "cornerstonejs/calculate-suv, test/calculateSUV_SampleData (dc72aa1, MIT)"
CALCULATE_SUV_UNIT = "cornerstonejs/calculate-suv, test/calculateSUVScalingFactors (dc72aa1, MIT)"
IBSI = "oncoray/suv_computation, DRO and DRO_list.csv (bf11a08, CC BY 4.0)"
IBSI_LIST = "as described in oncoray/suv_computation DRO_list.csv v3 and the MITK manifest"
ZRAD = "medical-physics-usz/z-rad, tests of enhanced PET (MIT)"
IMAGETOOLS = "bhklab/med-imagetools, dicomshow snapshots of NSCLC-Radiogenomics (6def068)"
SLICER = "discourse.slicer.org topic 22935"

DRO: dict[str, Any] = {
    "manufacturer": "Synthetic", "units": "BQML", "decay_correction": "START",
    "patient_weight": 70.0, "patient_size": 1.75, "patient_sex": "O",
    "series_date": "20250101", "series_time": "110000.000000",
    "acquisition_date": "20250101", "acquisition_time": "110000.000000",
    "frame_reference_time": 150_000.0, "actual_frame_duration": 300_000.0, "decay_factor": 1.0,
    "radionuclide_total_dose": 368_080_000.0, "radionuclide_half_life": 6586.2,
    "radiopharmaceutical_start_time": "100000.000000",
    "radiopharmaceutical_start_date_time": "20250101100000.000000",
    "corrected_image": ("NORM", "DTIM", "ATTN", "SCAT", "DECY", "RAN"),
}  # fmt: skip
"""One hour from injection to scan, 368.08 MBq, 70 kg: 720 Bq/ml is SUV 0.20, 14400 is 4.00."""
DRO_FACTOR = 0.0002777781249606825
UNIT: dict[str, Any] = {
    "corrected_image": ("ATTN", "DECY"), "radionuclide_half_life": 10.0,
    "radiopharmaceutical_start_date_time": "20201023095417", "radionuclide_total_dose": 100.0,
    "decay_correction": "ADMIN", "patient_weight": 100.0, "units": "BQML",
    "series_date": "20201023", "series_time": "095417",
    "acquisition_date": "20201023", "acquisition_time": "095417",
}  # fmt: skip
"""The synthetic header of calculate-suv's unit tests."""
DAY = {"series_date": "20201217", "acquisition_date": "20201217"}
SIEMENS_CORRECTED = ("NORM", "DTIM", "ATTN", "SCAT", "DECY", "RAN")
PHILIPS_CORRECTED = ("DECY", "RADL", "ATTN", "SCAT", "DTIM", "RAN", "NORM")


@dataclass(frozen=True)
class SuvCase:
    """One case: `factor` within `relative`, or a refusal whose reasons contain `refusal`."""

    name: str
    source: str
    slices: tuple[InstanceFacts, ...]
    factor: float | None = None
    refusal: str = ""
    relative: float = 1e-9
    dose_is_bq: bool = False
    reference_time: str | None = None
    label: str = "suvbw"


def pet(*variants: dict[str, Any]) -> tuple[InstanceFacts, ...]:
    return tuple(
        one(PET, number, modality="PT", **fields) for number, fields in enumerate(variants)
    )


def dro(*changes: dict[str, Any]) -> tuple[InstanceFacts, ...]:
    return pet(*({**DRO, **change} for change in changes))


def unit(**changes: Any) -> tuple[InstanceFacts, ...]:
    return pet({**UNIT, **changes})


def enhanced(frame: FrameFacts | None = None, **fields: Any) -> tuple[InstanceFacts, ...]:
    known = {
        "real_world_value_units": "Bq/ml", "patient_weight": 50.0,
        "radionuclide_total_dose": 100_000.0, "radionuclide_half_life": 7200.0,
        "radiopharmaceutical_start_date_time": "20200101100000",
        "frames": (frame,) if frame else (),
    }  # fmt: skip
    return (one(ENHANCED_PET, modality="PT", **{**known, **fields}),)


def refused(name: str, refusal: str, **change: Any) -> SuvCase:
    return SuvCase(f"error-{name}", IBSI_LIST, dro(change), refusal=refusal)


CASES = (
    # AcquisitionTime is the series', FrameReferenceTime is not: back-computing it is 12.5 % off
    SuvCase(
        "philips-bqml", CALCULATE_SUV,
        pet({**DAY, **philips("0.003515736 ", "4.709921"),
             "series_time": "110155", "acquisition_time": "110156", "patient_weight": 64.0,
             "frame_reference_time": 1_328_700.0, "actual_frame_duration": 120_700.0,
             "decay_correction": "START", "units": "BQML", "radionuclide_total_dose": 126e6,
             "radionuclide_half_life": 6586.199707, "radiopharmaceutical_start_time": "100058",
             "radiopharmaceutical_start_date_time": "20201217100058",
             "corrected_image": (*PHILIPS_CORRECTED, "CLN")}),
        0.0007463747013889488, relative=1e-6, reference_time="2020-12-17T11:01:55",
    ),
    SuvCase(
        "philips-cnts", CALCULATE_SUV,
        pet({**DAY, **philips("0.000728"),
             "series_time": "134551", "acquisition_time": "141336", "patient_weight": 47.0,
             "frame_reference_time": 1_755_000.0, "actual_frame_duration": 180_000.0,
             "decay_correction": "START", "units": "CNTS", "radionuclide_total_dose": 208_230_000.0,
             "radionuclide_half_life": 6588.0, "radiopharmaceutical_start_time": "123000",
             "corrected_image": PHILIPS_CORRECTED}),
        0.000728,
    ),
    # continuous bed motion: frame durations differ slice by slice, one AcquisitionTime
    SuvCase(
        "siemens-continuous-bed-motion", CALCULATE_SUV,
        pet(*({**DAY, "manufacturer": "SIEMENS", "series_time": "104829.000000",
               "acquisition_time": "104830.351370", "patient_weight": 67.0,
               "frame_reference_time": reference, "actual_frame_duration": duration,
               "decay_correction": "START", "units": "BQML", "radionuclide_total_dose": 374e6,
               "radionuclide_half_life": 6586.2, "radiopharmaceutical_start_time": "083045.000000",
               "radiopharmaceutical_start_date_time": "20201217083045.000000",
               "corrected_image": SIEMENS_CORRECTED}
              for reference, duration in
              ((38_513.36, 74_324.0), (39_189.36, 75_676.0), (39_864.86, 77_027.0)))),
        0.00042748316187197236, reference_time="2020-12-17T10:48:29",
    ),
    SuvCase(
        "siemens-acquired-microseconds-before-the-series", CALCULATE_SUV,
        pet({**DAY, "manufacturer": "SIEMENS", "series_time": "123515.000000",
             "acquisition_time": "123514.999995", "patient_weight": 65.0,
             "frame_reference_time": 59_936.854672596, "actual_frame_duration": 120_000.0,
             "decay_correction": "START", "units": "BQML", "radionuclide_total_dose": 225e6,
             "radionuclide_half_life": 6586.2, "radiopharmaceutical_start_time": "114100.000000",
             "corrected_image": SIEMENS_CORRECTED}),
        0.0004069156854009332, relative=1e-8, reference_time="2020-12-17T12:35:15",
    ),
    SuvCase("gml", CALCULATE_SUV_UNIT, unit(units="GML"), 1.0),
    SuvCase("cnts-suv-factor", CALCULATE_SUV_UNIT, unit(units="CNTS", **philips("0.000551")),
            0.000551),
    SuvCase("cnts-activity-factor", CALCULATE_SUV_UNIT,
            unit(units="CNTS", **philips("0", "1.602563")), 1602.563, dose_is_bq=True),
    SuvCase("bqml-750", CALCULATE_SUV_UNIT, unit(patient_weight=75.0), 750.0, dose_is_bq=True),
    SuvCase("error-neither-attn-nor-decy", CALCULATE_SUV_UNIT, unit(corrected_image=("Blah",)),
            refusal="lacks ATTN"),
    SuvCase("error-bad-units", CALCULATE_SUV_UNIT, unit(units="Blah"), refusal="Units BLAH"),
    # the source says ADMIN, where no time is needed; START is what it tests
    SuvCase("error-administered-after-the-scan", CALCULATE_SUV_UNIT,
            unit(decay_correction="START", radiopharmaceutical_start_date_time="20201023115417"),
            refusal="administration 22.0 h before"),
    SuvCase("dro-0-0", IBSI, dro({}, {}), DRO_FACTOR, reference_time="2025-01-01T11:00:00"),
    SuvCase("dro-2-0-gml", IBSI, dro({"units": "GML", "suv_type": "BW"}), 1.0),
    SuvCase("dro-2-1-lbm-james", IBSI,
            dro({"units": "GML", "suv_type": "LBMJAMES128", "patient_sex": "M"}),
            1.2384996461429583),
    SuvCase("dro-2-3-bsa", IBSI, dro({"units": "CM2ML", "suv_type": "BSA"}), 3.787585663752127),
    SuvCase("dro-2-4-cnts", IBSI, dro({"units": "CNTS", **philips("0.0005")}), 0.0005),
    SuvCase("dro-3-0-dose-in-mbq", IBSI, dro({"radionuclide_total_dose": 368.08}), DRO_FACTOR,
            label="suvbw_adapted"),
    # SeriesTime is half an hour late; the earliest AcquisitionTime would be 1.6 % off
    SuvCase("dro-3-2-post-processed", IBSI,
            dro(*({"series_time": "113000.000000", "actual_frame_duration": 603_000.0,
                   "acquisition_time": acquired, "frame_reference_time": reference}
                  for acquired, reference in (("110230.000000", 450_000.0),
                                              ("110500.000000", 600_000.0)))),
            DRO_FACTOR, relative=1e-4),
    SuvCase("dro-3-3-ge-private-time", IBSI,
            dro({"manufacturer": "GE MEDICAL SYSTEMS", "acquisition_time": "113000.000000",
                 "private": (PrivateFact("GEMS_PETD_01", "0009,xx0d", "20250101110000.000000"),)}),
            DRO_FACTOR, reference_time="2025-01-01T11:00:00"),
    SuvCase("dro-4-0-only-start-date-time", IBSI, dro({"radiopharmaceutical_start_time": None}),
            DRO_FACTOR),
    SuvCase("dro-4-2-midnight-by-time", IBSI,
            dro({"series_date": "20250102", "series_time": "003000.000000",
                 "acquisition_date": "20250102", "acquisition_time": "003000.000000",
                 "radiopharmaceutical_start_time": "233000.000000",
                 "radiopharmaceutical_start_date_time": None}), DRO_FACTOR),
    SuvCase("dro-4-3-midnight-by-date-time", IBSI_LIST,
            dro({"series_date": "20250102", "series_time": "003000",
                 "acquisition_date": "20250102", "acquisition_time": "003000",
                 "radiopharmaceutical_start_time": "233000",
                 "radiopharmaceutical_start_date_time": "20250101233000"}), DRO_FACTOR),
    # three days of Zr-89: a time of day modulo 24 h gives another factor
    SuvCase("dro-4-5-zr89-after-three-days", IBSI_LIST,
            dro({"series_date": "20250104", "series_time": "100000",
                 "acquisition_date": "20250104", "acquisition_time": "100000",
                 "radionuclide_half_life": 282_276.0, "radiopharmaceutical_start_time": None}),
            0.0003593988477958574),
    refused("weight-absent", "PatientWeight is absent", patient_weight=None),
    refused("weight-zero", "PatientWeight is 0", patient_weight=0.0),
    refused("ibw-without-sex", "needs PatientSex", units="GML", suv_type="IBW", patient_sex=None),
    refused("ibw-without-size", "needs PatientSize", units="GML", suv_type="IBW",
            patient_size=None),
    refused("ibw-with-size-zero", "PatientSize, which is 0", units="GML", suv_type="IBW",
            patient_size=0.0),
    refused("propcnts", "Units PROPCNTS", units="PROPCNTS"),
    refused("dose-absent", "RadionuclideTotalDose is absent", radionuclide_total_dose=None),
    refused("dose-negative", "RadionuclideTotalDose is -", radionuclide_total_dose=-368.08e6),
    refused("no-administration-time", "no administration time",
            radiopharmaceutical_start_time=None, radiopharmaceutical_start_date_time=None),
    refused("zr89-with-shifted-dates", "administration date cannot be recovered",
            series_date="19600101", acquisition_date="19600101", radionuclide_half_life=282_276.0),
    refused("half-life-absent", "RadionuclideHalfLife is absent", radionuclide_half_life=None),
    # NumberOfTimeSlices is the number of beds; AcquisitionTime is the series'
    SuvCase(
        "error-real-ge-nac", IMAGETOOLS,
        pet({"manufacturer": "GE MEDICAL SYSTEMS", "units": "PROPCNTS", "decay_correction": "START",
             "corrected_image": ("DECY",), "patient_weight": 66.0, "series_date": "19901017",
             "series_time": "115823.00", "acquisition_date": "19901017",
             "acquisition_time": "115823.00", "frame_reference_time": 366_000.0,
             "actual_frame_duration": 180_000.0, "decay_factor": 1.04913,
             "radionuclide_total_dose": 421_800_032.0, "radionuclide_half_life": 6588.0,
             "radiopharmaceutical_start_time": "110500.00", "number_of_slices": 205,
             "number_of_time_slices": 6}),
        refusal="lacks ATTN",
    ),
    # a frame 20 to 40 min after the reference; AcquisitionTime would be 13.5 % off
    SuvCase(
        "error-real-fet-without-weight", SLICER,
        pet({"manufacturer": "SIEMENS", "units": "BQML", "decay_correction": "START",
             "corrected_image": SIEMENS_CORRECTED, "series_date": "20120327",
             "series_time": "131012.000000", "acquisition_date": "20120327",
             "acquisition_time": "133012.000000", "frame_reference_time": 1_793_686.2979257,
             "actual_frame_duration": 1_200_000.0, "decay_factor": 1.20777,
             "radionuclide_total_dose": 206e6, "radionuclide_half_life": 6586.2,
             "radiopharmaceutical_start_time": "131001.000000",
             "radiopharmaceutical_start_date_time": "20210512131001.000000",
             "number_of_slices": 74, "number_of_time_slices": 1}),
        refusal="PatientWeight is absent", reference_time="2012-03-27T13:10:12",
    ),
    # the source takes the dose as Bq and gives no AttenuationCorrected
    SuvCase("enhanced-decay-corrected", ZRAD,
            enhanced(decay_corrected="YES", decay_correction_date_time="20200101120000"), 1.0,
            dose_is_bq=True, label="suvbw_adapted"),
    SuvCase("enhanced-not-decay-corrected", ZRAD,
            enhanced(FrameFacts(frame_reference_date_time="20200101110000"), decay_corrected="NO"),
            0.7071067811865475, dose_is_bq=True, label="suvbw_adapted"),
    SuvCase("error-enhanced-implausible-administration", ZRAD,
            enhanced(decay_corrected="YES", decay_correction_date_time="20200101100000",
                     radionuclide_half_life=3600.0,
                     radiopharmaceutical_start_date_time="19900101120000"),
            refusal="administration 22.0 h before", dose_is_bq=True),
)  # fmt: skip
