"""The alert rules and the dashboard: valid, and only of metrics that there are."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from conftest import PROJECT, missing

from daemon.observing.families import Scrape, families
from daemon.observing.gauges import IndexGauges, SpoolGauges
from workers.measuring import Totals
from workers.watermark import Reserve

DOCS = PROJECT / "docs"
ALERTS = DOCS / "monitoring" / "alerts.yml"
DASHBOARD: dict[str, Any] = json.loads((DOCS / "monitoring" / "dashboard.json").read_text())
METRIC = re.compile(r"petct_ingest_(\w+)")


def exported() -> set[str]:
    """The names that can be asked for, without our prefix."""
    scrape = Scrape("1", Totals(), {}, IndexGauges(), SpoolGauges(0, 0, 0), {}, {}, Reserve(1, 1),
                    frozenset(), {})  # fmt: skip
    names = set()
    for family in families(scrape):
        name = family.name.removeprefix("petct_ingest_")
        suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
        names |= {name + suffix for suffix in suffixes.get(family.type, ("",))}
    return names


def promtool(*words: object) -> str:
    if shutil.which("promtool") is None:
        missing("promtool of Debian's package prometheus")
    done = subprocess.run(
        ["promtool", *map(str, words)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def expressions() -> list[str]:
    return [one["expr"] for panel in DASHBOARD["panels"] for one in panel.get("targets", [])]


def test_the_alert_rules_are_valid() -> None:
    assert "SUCCESS" in promtool("check", "rules", ALERTS)


def test_the_alerts_fire_when_they_should_and_not_before(tmp_path: Path) -> None:
    text = (PROJECT / "tests" / "alerts_test.yml").read_text().replace("ALERTS", str(ALERTS))
    (tmp_path / "test.yml").write_text(text)
    assert "SUCCESS" in promtool("test", "rules", tmp_path / "test.yml")


def test_alerts_and_dashboard_ask_for_metrics_that_there_are() -> None:
    assert set(METRIC.findall(ALERTS.read_text())) <= exported()
    asked = {name for one in expressions() for name in METRIC.findall(one)}
    assert asked <= exported()
    assert len(asked) > 20


def test_every_metric_is_on_the_page_and_the_page_names_no_other() -> None:
    page = (DOCS / "monitoring.md").read_text().partition("## Metrics")[2].partition("\n## ")[0]
    told = {name for row in re.findall(r"^\| (`.*?) \|", page, re.M)
            for name in re.findall(r"`(\w+)", row)}  # fmt: skip
    there = {re.sub(r"_(bucket|sum|count)$", "", name) for name in exported()}
    assert told == there


def test_the_dashboard_is_one_that_grafana_imports() -> None:
    numbers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(numbers)) == len(numbers)
    taken = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"])
                 for y in range(place["y"], place["y"] + place["h"])}  # fmt: skip
        assert not cells & taken, panel["title"]
        taken |= cells
        assert panel["type"] == "row" or panel["targets"]


def test_each_expression_of_the_dashboard_is_promql(tmp_path: Path) -> None:
    rules = []
    for number, expression in enumerate(expressions()):
        plain = expression.replace("$__rate_interval", "5m")
        rules.append({"record": f"dashboard:{number}", "expr": plain})
    rule = {"groups": [{"name": "dashboard", "rules": rules}]}
    (tmp_path / "rule.yml").write_text(json.dumps(rule))  # JSON is YAML
    assert f"{len(rules)} rules found" in promtool("check", "rules", tmp_path / "rule.yml")


def test_the_example_for_prometheus_is_one_that_it_takes(tmp_path: Path) -> None:
    page = (DOCS / "monitoring.md").read_text()
    (example,) = re.findall(r"^```yaml\n(.*?)^```", page, re.M | re.S)
    (tmp_path / "prometheus.yml").write_text(example)
    promtool("check", "config", "--syntax-only", tmp_path / "prometheus.yml")
