"""Which role a PET series has (PS3.3 C.8.9, C.8.22): a volume, or what only looks like it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from workers.completeness.role_names import Role, RoleVerdict
from workers.completeness.stacks import Stack, stacks_of
from workers.header.facts import InstanceFacts

ROTATING_ORIENTATIONS = 3
"""So many different orientations in one series are views of a rotating projection."""
_PET_COLLIMATORS = ("", "NONE", "RING")
_SPECT = re.compile(r"LU-?177|177-?LU|LUTETIUM|TC-?99|99M?-?TC|TECHNETIUM|IN-?111|111-?IN|INDIUM")
_MIP = re.compile(r"\bMIP\b|\bPROJECTION\b|REPROJECTION")
_FUSED = re.compile(r"FUSION|FUSED|STATISTIC|SCREEN")
REFORMATTED = re.compile(r"\bMPR\b|REFORMAT|\bCPR\b|\bCURVED\b|\bVRT\b|RENDER")


def pet_role(instances: Sequence[InstanceFacts]) -> RoleVerdict:
    """Judge a series of PET SOP classes."""
    stacks = stacks_of(instances)
    return (
        _no_pet(instances, stacks)
        or _projection(instances, stacks)
        or _several_times(instances, stacks)
        or _not_axial(instances, stacks)
        or _attenuation(instances)
    )


def image_words(instances: Iterable[InstanceFacts]) -> str:
    """Join the distinct ImageType and FrameType values of a series, upper case."""
    words: dict[str, None] = {}
    for one in instances:
        words.update(dict.fromkeys(one.image_type))
        for frame in one.frames:
            words.update(dict.fromkeys(frame.frame_type))
    return "\\".join(words).upper().replace("_", " ")


def _no_pet(instances: Sequence[InstanceFacts], stacks: tuple[Stack, ...]) -> RoleVerdict | None:
    """Recognise what says PT and is not a PET volume."""
    first = instances[0]
    if first.samples_per_pixel not in (None, 1):
        reason = f"{first.samples_per_pixel} samples per pixel: fused or a picture"
        return RoleVerdict(Role.PET_OTHER, (reason,))
    fused = _FUSED.search(image_words(instances))
    if fused:
        return RoleVerdict(Role.PET_OTHER, (f"ImageType says {fused[0]}",))
    collimator = (first.collimator_type or "").upper()
    if collimator not in _PET_COLLIMATORS:
        reason = f"CollimatorType {collimator}: SPECT that says PT (PET has NONE or RING)"
        return RoleVerdict(Role.PET_OTHER, (reason,))
    for text in (first.radionuclide_code, first.radiopharmaceutical):
        plain = re.sub(r"[\^\s\[\]]", "", (text or "").upper())
        if _SPECT.search(plain):
            return RoleVerdict(Role.PET_OTHER, (f"radionuclide {text}: SPECT that says PT",))
    if not stacks:
        return RoleVerdict(Role.PET_OTHER, ("no image position or orientation",))
    return None


def _projection(
    instances: Sequence[InstanceFacts], stacks: tuple[Stack, ...]
) -> RoleVerdict | None:
    if any("REPROJECTION" in one.series_type[1:2] for one in instances):
        return RoleVerdict(Role.PET_MIP, ("SeriesType REPROJECTION",))
    word = _MIP.search(image_words(instances))
    if word:
        return RoleVerdict(Role.PET_MIP, (f"ImageType says {word[0]}",))
    single = all(len(stack.slices) <= 2 for stack in stacks)
    if len(stacks) >= ROTATING_ORIENTATIONS and single:
        reason = f"the orientation rotates: {len(stacks)} orientations"
        return RoleVerdict(Role.PET_MIP, (reason,))
    return None


def _several_times(
    instances: Sequence[InstanceFacts], stacks: tuple[Stack, ...]
) -> RoleVerdict | None:
    """Recognise several time points: not paired as one volume."""
    first = instances[0]
    kind = first.series_type[0].upper() if first.series_type else ""
    if kind == "DYNAMIC" and first.number_of_time_slices != 1:
        times = first.number_of_time_slices
        count = f"{times} time points" if times else "several time points"
        return RoleVerdict(Role.PET_DYNAMIC, (f"SeriesType DYNAMIC, {count}: not one volume",))
    bins = (first.number_of_rr_intervals or 1) * (first.number_of_time_slots or 1)
    one_bin = bins == 1 and (first.number_of_rr_intervals or first.number_of_time_slots)
    if kind == "GATED" and not one_bin:
        count = f"{bins} gates" if bins > 1 else "several gates"
        return RoleVerdict(Role.PET_GATED, (f"SeriesType GATED, {count}: not one volume",))
    stack = stacks[0]
    repeated = [group for group in stack.groups if len(group) > 1]
    if 2 * len(repeated) < len(stack.groups) or not repeated:
        return None
    members = [instances[one.instance] for one in repeated[0]]
    frames = [
        instances[one.instance].frames[one.frame] for one in repeated[0] if one.frame is not None
    ]
    most = max(len(group) for group in repeated)
    if len({one.trigger_time for one in members}) > 1:
        reason = f"{most} gates at one position (TriggerTime): not one volume"
        return RoleVerdict(Role.PET_GATED, (reason,))
    moments = {
        (one.acquisition_time, one.frame_reference_time, one.temporal_position_identifier)
        for one in members
    }
    moments_of_frames = {
        (one.frame_acquisition_date_time, one.frame_reference_date_time,
         one.temporal_position_index) for one in frames
    }  # fmt: skip
    if len(moments) > 1 or len(moments_of_frames) > 1:
        reason = f"{most} time points at one position: not one volume"
        return RoleVerdict(Role.PET_DYNAMIC, (reason,))
    return None


def _not_axial(instances: Sequence[InstanceFacts], stacks: tuple[Stack, ...]) -> RoleVerdict | None:
    word = REFORMATTED.search(image_words(instances))
    if word:
        return RoleVerdict(Role.PET_REFORMATTED, (f"ImageType says {word[0]}",))
    if not stacks[0].is_axial:
        return RoleVerdict(Role.PET_REFORMATTED, ("the images are not axial",))
    return None


def _attenuation(instances: Sequence[InstanceFacts]) -> RoleVerdict:
    """Tell AC from NAC by ATTN (Enhanced: AttenuationCorrected) alone."""
    first = instances[0]
    corrected = [
        one.attenuation_corrected.upper() == "YES"
        if one.attenuation_corrected
        else "ATTN" in one.corrected_image
        for one in instances
    ]
    source = "AttenuationCorrected" if first.attenuation_corrected else "CorrectedImage"
    said = "YES" if first.attenuation_corrected else "has ATTN"
    axial = "axial"
    if all(corrected):
        reasons = [f"{source} {said}", axial]
        if first.series_type[1:2]:
            reasons.append(f"SeriesType {first.series_type[1]}")
        return RoleVerdict(Role.PET_AC, tuple(reasons))
    lacking = f"{source} is not YES" if first.attenuation_corrected else f"{source} lacks ATTN"
    reasons = [lacking, axial]
    if any(corrected):
        reasons[0] += f" on {corrected.count(False)} of {len(corrected)} instances"
    if first.attenuation_correction_method:
        reasons.append(f"AttenuationCorrectionMethod {first.attenuation_correction_method}")
    return RoleVerdict(Role.PET_NAC, tuple(reasons))
