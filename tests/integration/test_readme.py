"""Every command of the README runs, in order, on the example corpora."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1200)
def test_readme_commands_run(tmp_path: Path) -> None:
    found = commands()
    verbs = {shlex.split(command)[1] for command in found}
    assert {"scan", "split", "encode", "shards", "train", "extract", "impute", "generate", "report"} <= verbs
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for command in found:
        words = shlex.split(command)
        # The demo's test runs these on Ray, which takes long to start.
        words += ["--runner", "local"] if words[1] in ("scan", "encode") else []
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert page.count("<audio") >= 6
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert sorted(path.name for path in (tmp_path / "out" / "codec").iterdir()) >= ["README.md", "config.json"]
