"""The index that growth is measured on is one that the program takes for its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from filing_world import World, settings_for, small_instances

from workers.header.facts import InstanceFacts
from workers.index.tables import instance

PROJECT = Path(__file__).resolve().parent.parent


def test_instances_are_filed_beside_those_that_were_made_up(tmp_path: Path) -> None:
    root = tmp_path / "root"
    made = PROJECT / "benchmarks/synthetic_index.py"
    subprocess.run([sys.executable, made, root, "--instances", "1"], check=True, cwd=PROJECT)
    world = World(settings_for(root))
    try:
        rows = world.rows(instance)
        assert len(rows) == 1000
        facts = [InstanceFacts.from_json(row.facts) for row in rows]
        assert [one.sop_instance_uid for one in facts] == [row.instance_uid for row in rows]
        assert len({one.image_position_patient for one in facts}) == 1000
        world.put({"1": small_instances(tmp_path / "new", 1)[0]})
        assert world.file().outcomes == {"filed": 1}
        assert world.counts().filed == 1001
    finally:
        world.close()
