#!/usr/bin/env python3
"""The README shows configs/quickstart.json as it is, and names the packages that tools/setup installs."""
import re
import sys
from pathlib import Path

root = Path(__file__).resolve().parents[2]
readme = (root / "README.md").read_text()
shown = re.search(r"```json\n(.*?)```", readme, re.S)[1]
if shown != (root / "configs/quickstart.json").read_text():
    sys.exit("README.md shows another configs/quickstart.json than there is")

table = readme.partition("## Dependencies")[2]
named = {name for cell in re.findall(r"^\| ([a-z0-9+, -]+) \|", table, re.M) for name in cell.split(", ")} - {"package"}
listed = re.search(r"packages=\((.*?)\n\)", (root / "tools/setup").read_text(), re.S)[1]
installed = set(re.sub(r"#.*", "", listed).split())
if named != installed:
    sys.exit(f"README.md and tools/setup disagree on packages: {sorted(named ^ installed)}")
print(f"{len(installed)} packages and the quickstart's configuration agree")
