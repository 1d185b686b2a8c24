"""scripts/benchmark.py runs, and writes what it prints; its figures are for a quiet machine to make."""

import json
import subprocess
import sys

import pytest


def run(root, folder, *arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, str(root / "scripts/benchmark.py"), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=200)


def test_the_simulator_is_measured(root, tmp_path):
    result = run(root, tmp_path, "simulator", "--tiny", "--volume", "--json", "b.json")
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "b.json").read_text())
    assert report["machine"]["cpu"] and report["machine"]["numba"]
    tables = report["tables"]
    assert len(tables) == 5
    for rows in tables.values():
        for row in rows:
            assert min(row["values"]) <= row["median"] <= max(row["values"])
            assert row["item"] in result.stdout
    naive = {row["item"]: row["median"] for row in tables["Against naive projection of every energy, one core"]}
    assert naive["ratio"] > 1
    assert naive["−ln S of our physics on ASTRA's projector, less the naive one, rms"] < 1e-5
    # ASTRA's positions are float32; far below what another spectrum or geometry would give
    assert naive["−ln S on the compiled projector, less the naive one, rms"] < 1e-4
    stages = {row["item"]: row["median"] for row in tables["Where the time goes, one core"]}
    assert stages["stage: projection"] > 0
    parts = sum(value for name, value in stages.items() if name != "stage: sum")
    assert parts == pytest.approx(stages["stage: sum"], rel=0.5)  # medians of two


def test_the_generators_are_measured(root, tmp_path):
    result = run(root, tmp_path, "generators", "--tiny", "--json", "g.json")
    assert result.returncode == 0, result.stderr
    rows = {row["item"]: row for row in json.loads((tmp_path / "g.json").read_text())["tables"]["256²"]}
    assert "| NmcCathode | 1 |" in result.stdout
    assert rows["NmcCathode: wall"]["median"] > 0 and rows["NmcCathode: CPU"]["median"] > 0
    assert 0.05 < rows["NmcCathode: peak"]["median"] < 2  # the libraries alone take some 0.3 GB


def test_the_properties_are_measured(root, tmp_path):
    result = run(root, tmp_path, "quantify", "--tiny", "--json", "q.json")
    assert result.returncode == 0, result.stderr
    sections, against = json.loads((tmp_path / "q.json").read_text())["tables"].values()
    seconds = {row["item"]: row["median"] for row in sections}
    parts = sum(seconds[name] for name in ("interfaces", "chords", "thickness", "objects", "correlation"))
    assert 0 < parts < seconds["all"]
    assert [row["item"] for row in against if row["item"].endswith("ratio")] == [
        "surface: ratio", "local thickness: ratio", "objects: ratio",
    ]  # fmt: skip
