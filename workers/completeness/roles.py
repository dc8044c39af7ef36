"""Which role a series has: attributes and geometry of all its instances, descriptions last."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from workers.completeness.ct_role import ct_role
from workers.completeness.descriptions import described_role
from workers.completeness.pet_role import pet_role
from workers.completeness.role_names import Role, RoleVerdict
from workers.header.facts import InstanceFacts

__all__ = ["Role", "RoleVerdict", "judge_role"]

_STORAGE = "1.2.840.10008.5.1.4.1.1."
_PET_CLASSES = ("128", "128.1", "130")
_CT_CLASSES = ("2", "2.1", "2.2")
_CLASSES = {
    "4": Role.MR, "4.1": Role.MR, "4.2": Role.MR, "4.3": Role.MR, "4.4": Role.MR,
    "481.2": Role.RTDOSE, "481.3": Role.RTSTRUCT, "481.5": Role.RTPLAN, "481.8": Role.RTPLAN,
    "66.1": Role.REG, "66.3": Role.REG,
    "66.4": Role.SEG, "66.5": Role.SEG, "66.7": Role.SEG,
    "7": Role.SC, "7.1": Role.SC, "7.2": Role.SC, "7.3": Role.SC, "7.4": Role.SC,
    "104.1": Role.PDF,
}  # fmt: skip


def judge_role(instances: Sequence[InstanceFacts]) -> RoleVerdict:
    """Judge the role of one series from its instances, in any order.

    Where several SOP classes share a series, the most frequent one decides and the rest is named.
    """
    if not instances:
        raise ValueError("judge_role needs at least one instance")
    classes = Counter(one.sop_class_uid for one in instances)
    sop_class = max(sorted(classes), key=lambda uid: classes[uid])
    same = [one for one in instances if one.sop_class_uid == sop_class]
    verdict = _by_class(sop_class, same)
    reasons = list(verdict.reasons)
    if len(classes) > 1:
        others = len(instances) - len(same)
        reasons.append(f"{others} of {len(instances)} instances are of another SOP class")
    said = described_role(same[0].series_description, same[0].modality)
    if said is not None and said is not verdict.role and _comparable(said, verdict.role):
        reasons.append(f"the description sounds like {said}; the attributes decide")
    return RoleVerdict(verdict.role, tuple(reasons))


def _by_class(sop_class: str, instances: Sequence[InstanceFacts]) -> RoleVerdict:
    short = sop_class.removeprefix(_STORAGE) if sop_class.startswith(_STORAGE) else ""
    if short in _PET_CLASSES:
        return pet_role(instances)
    if short in _CT_CLASSES:
        return ct_role(instances)
    role = _CLASSES.get(short) or (Role.SR if short.startswith("88.") else Role.OTHER)
    if role is Role.SC and instances[0].modality == "PT":
        return RoleVerdict(Role.PET_OTHER, ("PT as Secondary Capture: a picture, not a volume",))
    what = f"SOP class {sop_class}"
    if role is Role.OTHER and instances[0].modality:
        what += f", Modality {instances[0].modality}"
    return RoleVerdict(role, (what,))


def _comparable(a: Role, b: Role) -> bool:
    return (a.is_pet and b.is_pet) or (a.is_ct and b.is_ct)
