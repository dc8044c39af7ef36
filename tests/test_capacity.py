"""The model of capacity: plain proportions, and the page has what it prints."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

import pytest
from conftest import PROJECT


@pytest.fixture(scope="module")
def capacity() -> ModuleType:
    found = importlib.util.spec_from_file_location("capacity", PROJECT / "benchmarks/capacity.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules["capacity"] = module  # dataclasses look their module up
    found.loader.exec_module(module)
    yield module
    del sys.modules["capacity"]


def test_ten_times_the_load_needs_ten_times_as_much_of_all_but_the_queue(
    capacity: ModuleType,
) -> None:
    one, ten = capacity.need(capacity.Load(10)), capacity.need(capacity.Load(100))
    for name in ("instances", "network_mbit", "file_cores", "syncs", "postgresql_gb_a_year"):
        assert getattr(ten, name) == pytest.approx(10 * getattr(one, name)), name
    assert ten.queue_mb == one.queue_mb


def test_a_week_that_comes_evenly_is_its_bytes_over_its_seconds(capacity: ModuleType) -> None:
    costs = capacity.Costs(study_instances=100, instance_bytes=1e6, file_ms=10)
    found = capacity.need(capacity.Load(capacity.WEEK_SECONDS / 1e6, peak=1, busy=1), costs)
    assert found.instances == pytest.approx(1)
    assert found.network_mbit == pytest.approx(8)
    assert found.file_cores == pytest.approx(0.01)
    assert found.studies_an_hour == pytest.approx(36)


def test_the_exponent_tells_what_grows_with_the_size_from_what_does_not(
    capacity: ModuleType,
) -> None:
    sizes = (1e5, 1e6, 1e7)
    assert capacity.exponent([(n, 3 * n) for n in sizes]) == pytest.approx(1)
    assert capacity.exponent([(n, 7.0) for n in sizes]) == pytest.approx(0)
    assert capacity.exponent([(n, n**0.5) for n in sizes]) == pytest.approx(0.5)


def test_the_page_has_the_table_that_the_model_prints(capacity: ModuleType) -> None:
    assert capacity.table() in (PROJECT / "docs/scaling.md").read_text()
