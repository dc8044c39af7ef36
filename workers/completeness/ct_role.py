"""Which role a CT series has: geometry first, since ImageType says AXIAL of a sagittal MPR too."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from workers.completeness.pet_role import REFORMATTED, image_words
from workers.completeness.role_names import Role, RoleVerdict
from workers.completeness.stacks import LOCALIZER_IMAGES, Slice, Stack, stacks_of
from workers.header.facts import InstanceFacts

FEW_SLICES = 4
_MIP = re.compile(r"\bMIP\b|\bMINIP\b|\bPROJECTION\b")
_MONITORING = re.compile(r"\bMON\b|\bCINE\b|PERFUSION|\b4D\b")


def ct_role(instances: Sequence[InstanceFacts]) -> RoleVerdict:
    """Judge a series of CT SOP classes by its largest stack; smaller stacks are set aside."""
    first = instances[0]
    if first.samples_per_pixel not in (None, 1):
        reason = f"{first.samples_per_pixel} samples per pixel: a picture, no CT numbers"
        return RoleVerdict(Role.OTHER, (reason,))
    stacks = stacks_of(instances)
    if not stacks:
        if "LOCALIZER" in image_words(instances):
            return RoleVerdict(Role.CT_SCOUT, ("ImageType LOCALIZER, no position in space",))
        return RoleVerdict(Role.OTHER, ("CT without image position and orientation",))
    main = stacks[0]
    members = [instances[index] for index in dict.fromkeys(one.instance for one in main.slices)]
    verdict = (
        _scout(members, main) or _dynamic(members, main) or _reformatted(members, main)
        or _volume(members, main)
    )  # fmt: skip
    set_aside = len(instances) - len(members)
    if not set_aside:
        return verdict
    images = "1 image" if set_aside == 1 else f"{set_aside} images"
    reason = f"left out for another orientation: {images}"
    return RoleVerdict(verdict.role, (*verdict.reasons, reason))


def _scout(members: Sequence[InstanceFacts], main: Stack) -> RoleVerdict | None:
    """Recognise localizers; ImageType alone is not reliable."""
    localizer = all("LOCALIZER" in one.image_type for one in members)
    if localizer and not (main.is_axial and len(main.positions) > LOCALIZER_IMAGES):
        return RoleVerdict(Role.CT_SCOUT, ("ImageType LOCALIZER",))
    words = image_words(members)
    plain = not (REFORMATTED.search(words) or _MIP.search(words) or words.startswith("DERIVED"))
    if not main.is_axial and len(main.slices) <= LOCALIZER_IMAGES and plain:
        reason = f"{len(main.slices)} image(s) along the body, not reformatted"
        return RoleVerdict(Role.CT_SCOUT, (reason,))
    return None


def _dynamic(members: Sequence[InstanceFacts], main: Stack) -> RoleVerdict | None:
    """Recognise several images at one position: bolus monitoring, cine, 4D."""
    first = members[0]
    words = image_words(members)
    scanning = "\\".join(first.scan_options).upper()
    named = _MONITORING.search(words) or _MONITORING.search(scanning)
    repeated = [group for group in main.groups if len(group) > 1]
    if named and (repeated or len(main.positions) <= FEW_SLICES):
        reason = f"{named[0]} in ImageType or ScanOptions: several images of one place"
        return RoleVerdict(Role.CT_DYNAMIC, (reason,))
    if not repeated or 2 * len(repeated) < len(main.groups):
        return None
    numbers = _acquisition_numbers(members, main)
    within = max(max(Counter(numbers[one] for one in group).values()) for group in repeated)
    if within > 1:
        reason = f"{within} images at one position within one acquisition: cine or 4D"
    else:
        most = max(len(group) for group in repeated)
        reason = f"{most} acquisitions of the same positions in one series: not one volume"
    return RoleVerdict(Role.CT_DYNAMIC, (reason,))


def _acquisition_numbers(members: Sequence[InstanceFacts], main: Stack) -> dict[Slice, int | None]:
    """Map slices to AcquisitionNumber (of frames: FrameAcquisitionNumber)."""
    by_index = dict(zip(dict.fromkeys(one.instance for one in main.slices), members, strict=True))
    numbers: dict[Slice, int | None] = {}
    for one in main.slices:
        facts = by_index[one.instance]
        number = facts.acquisition_number
        if one.frame is not None:
            number = facts.frames[one.frame].frame_acquisition_number or number
        numbers[one] = number
    return numbers


def _reformatted(members: Sequence[InstanceFacts], main: Stack) -> RoleVerdict | None:
    words = image_words(members)
    word = REFORMATTED.search(words) or _MIP.search(words)
    if word:
        return RoleVerdict(Role.CT_REFORMATTED, (f"ImageType says {word[0]}",))
    if not main.is_axial:
        return RoleVerdict(Role.CT_REFORMATTED, ("the images are not axial",))
    return None


def _volume(members: Sequence[InstanceFacts], main: Stack) -> RoleVerdict:
    count = len(main.positions)
    repeated = sum(len(group) > 1 for group in main.groups)
    reasons = ["axial", f"one image at each of {count} positions"]
    if repeated:
        reasons[1] = f"{repeated} of {count} positions have several images"
    if count <= FEW_SLICES:
        reasons.append("only a few slices: hardly a volume")
    if all("LOCALIZER" in one.image_type for one in members):
        reasons.append("ImageType says LOCALIZER of an axial stack: geometry decides")
    return RoleVerdict(Role.CT, tuple(reasons))
