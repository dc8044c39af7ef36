"""Report what series descriptions alone would have said, and where attributes must decide.

    python benchmarks/roles_report.py DATA > docs/roles-report.md

DATA holds idc_series_descriptions.csv (modality, manufacturer, description, number of series) and
pet-slices/. Only counts leave it.
"""

import csv
import sys
from collections import Counter
from pathlib import Path

from workers.completeness.descriptions import described_role
from workers.completeness.roles import judge_role
from workers.header.read import read_header

SILENT = "nothing"
NAMES = {"SI": "Siemens", "GE": "GE", "PH": "Philips"}

CONCLUSION = """
## Where attributes must decide

- A third or more of the PET series give no hint in words whether they are attenuation corrected:
  CorrectedImage (Enhanced: AttenuationCorrected) does.
- Where words and attributes differ, the attributes are right: a description is typed into a
  protocol, the correction is written by the reconstruction. Secondary captures and fused pictures
  carry the names of the series that they were made from.
- A CT is called after its kernel or its body part. That it is a volume is seen from its geometry;
  words name scouts well, reformats and monitoring only sometimes.

So the description decides no role (`workers/completeness/roles.py`); where it sounds like another
one, the verdict says so among its reasons."""


def main(data: Path) -> None:
    by_modality: dict[str, Counter[str]] = {"PT": Counter(), "CT": Counter()}
    by_maker: dict[str, Counter[str]] = {}
    with (data / "idc_series_descriptions.csv").open() as file:
        for row in csv.DictReader(file):
            counts = by_modality.get(row["modality"])
            if counts is None:
                continue
            said = str(described_role(row["series_description"], row["modality"]) or SILENT)
            counts[said] += int(row["series"])
            if row["modality"] == "PT":
                maker = NAMES.get(row["manufacturer"][:2].upper(), "others")
                by_maker.setdefault(maker, Counter())[said] += int(row["series"])
    print("# What a series description says of a role\n")
    print("Made by `benchmarks/roles_report.py` from the descriptions of public PET collections.\n")
    print("## By description alone\n")
    print("| modality | series | description sounds like | of these | share |")
    print("|---|---:|---|---:|---:|")
    for modality, counts in by_modality.items():
        total = sum(counts.values())
        for said, count in counts.most_common():
            print(f"| {modality} | {total} | {said} | {count} | {count / total:.0%} |")
    print("\n## PET whose description says nothing, by manufacturer\n")
    print("| manufacturer | series | says nothing |\n|---|---:|---:|")
    for maker, counts in sorted(by_maker.items(), key=lambda item: -sum(item[1].values())):
        total = sum(counts.values())
        print(f"| {maker} | {total} | {counts[SILENT] / total:.0%} |")
    print_headers(data)


def print_headers(data: Path) -> None:
    """Compare with the attributes where headers are at hand."""
    outcome: Counter[str] = Counter()
    differing: Counter[tuple[str, str]] = Counter()
    for path in sorted((data / "pet-slices").glob("*/*.dcm")):
        facts = read_header(path).facts
        role = judge_role([facts]).role
        said = described_role(facts.series_description, "PT")
        if said is None:
            outcome["the description says nothing"] += 1
        elif said is role:
            outcome["both say the same"] += 1
        else:
            outcome["they differ"] += 1
            differing[str(said), str(role)] += 1
    total = sum(outcome.values())
    print(f"\n## Descriptions against attributes, {total} real PET headers\n")
    print("| outcome | series | share |\n|---|---:|---:|")
    for name, count in outcome.most_common():
        print(f"| {name} | {count} | {count / total:.0%} |")
    print("\n| description sounds like | attributes and geometry say | series |\n|---|---|---:|")
    for (said, role), count in sorted(differing.items()):
        print(f"| {said} | {role} | {count} |")
    print(CONCLUSION)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
