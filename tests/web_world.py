"""A small installation as a page shows it: a pair, a held study, markup in names, quarantine."""

from pathlib import Path

from filing_world import FOLDER, SENDER, World, encoded, make_world

from workers.completeness.judging import judge_studies
from workers.index.tables import pair
from workers.pairing.making import make_pair
from workers.phantom.study import PhantomSpec, make_study

MARKUP = '<script>alert("x")</script> & <b>bold</b>'
PATIENTS = ("SMITH^12345", "HELD-PATIENT-77", "MARKUP-PATIENT-3")
ACCESSIONS = ("ACC-0001-A", "ACC-0002-B", "ACC-0003-C")


def fill(folder: Path) -> World:
    """Make an installation with three studies and a file in quarantine; its pair is made."""
    world = make_world(folder)
    studies = [
        make_study(
            PhantomSpec(size="tiny", patient_number=n, patient_id=who, accession_number=accession)
        )
        for n, (who, accession) in enumerate(zip(PATIENTS, ACCESSIONS, strict=True), 1)
    ]
    parts = (("SCOUT", "CT IMAGES", "PET AC"), ("CT IMAGES", "PET AC"), ("SCOUT",))
    for number, (study, names) in enumerate(zip(studies, parts, strict=True), 1):
        files = {} if number > 1 else {"notes.dcm": b"no DICOM at all " * 20}
        for name in names:
            part = study.named(name)
            for slice_number in range(part.count):
                dataset = part.dataset(slice_number)
                if number == 2 and name == "CT IMAGES":
                    dataset.PatientID = "ANOTHER-PATIENT"  # held at once: two PatientIDs
                if number == 3:
                    dataset.StudyDescription = dataset.SeriesDescription = MARKUP
                files[f"{name}/{slice_number}"] = encoded(dataset)
        world.put(files, FOLDER if number < 3 else SENDER)
        report = world.file()
        judge_studies(world.index, world.settings, report.touched_studies, report.touched_series)
    for row in world.rows(pair):
        if row.state == "pending":
            assert make_pair(world.index, world.settings, row.id, row.generation) == "ready"
    return world
