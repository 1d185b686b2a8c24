"""scripts/validate_physics.py in its quick form: every check passes, and the table says what it should."""

import json
import subprocess
import sys


def test_every_check_passes(root, tmp_path):
    result = subprocess.run(
        [sys.executable, str(root / "scripts/validate_physics.py"), "--quick", "--json", "t.json", "--out", "pictures"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads((tmp_path / "t.json").read_text())
    assert report["failed"] == [] and len(report["checks"]) > 25
    for row in report["checks"]:
        assert row["passed"] and row["error"] <= row["tolerance"]
        assert row["oracle"] and row["why"] and row["quantity"] in result.stdout
    picture = (tmp_path / "pictures" / "energy_sampling.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
