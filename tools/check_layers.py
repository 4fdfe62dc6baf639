#!/usr/bin/env python3
"""Holds every #include in include/ and src/ to the table in docs/architecture.md, and prints file:line and the rule.

usage: tools/check_layers.py              check the includes
       tools/check_layers.py --headers    compile each header alone (CXX, default g++)
       tools/check_layers.py --self-test  see that each kind of violation is found
"""
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# Libraries that one room hides from the others; headers under include/ name none of them.
OWNERS = {r"mpi\.h$": "comm", r"(oneapi/)?dnnl": "ops", r"cblas": "ops", r"CLI/|CLI11": "config"}


def read_table(root):
    """Rooms and what each may include, in the table's order, and the rooms whose .cpp files may include JSON."""
    text = (root / "docs/architecture.md").read_text()
    allowed = {}
    for room, cell in re.findall(r"^\| *(\w+) *\|[^|]*\|([^|]*)\| *$", text, re.M):
        if room != "room":
            named = list(allowed) if "all above" in cell else re.findall(r"\w+", cell)
            allowed[room] = {room, "core", *named}
    json = re.search(r"No header includes nlohmann/json; `\.cpp` files of ([\w, ]+) may", text)
    if not allowed or not json:
        sys.exit("check_layers: docs/architecture.md has no table of rooms, or no sentence on nlohmann/json")
    return allowed, set(re.findall(r"\w+", json[1].replace(" and ", " ")))


def rule_broken(path, root, target, quoted, allowed, json_rooms):
    """The rule that `#include` of `target` in `path` breaks, or None."""
    parts = path.relative_to(root).parts
    public = parts[0] == "include"
    room = parts[2] if public else parts[1] if len(parts) > 2 else "main"
    if room != "main" and room not in allowed:
        return f"'{room}' is no room of docs/architecture.md"
    may = allowed.get(room, set(allowed))  # main may include every room
    if target.startswith("trainer/"):
        other = target.split("/")[1]
        return None if other in may else f"{room} may include only {', '.join(sorted(may))}; not {other}"
    if quoted:
        found = (path.parent / target).resolve()
        inside = found.is_file() and (root / "src" / room).resolve() in found.parents
        return None if inside and not public else 'quoted includes are "trainer/<room>/..." or a private header of the same room'
    if target.startswith("nlohmann/"):
        ok = path.suffix == ".cpp" and room in json_rooms
        return None if ok else f"nlohmann/json only in .cpp files of {', '.join(sorted(json_rooms))}"
    for library, owner in OWNERS.items():
        if re.match(library, target) and (public or room != owner):
            return f"<{target}> only in src/{owner}"
    return None


def sources(root, suffixes=(".hpp", ".h", ".cpp")):
    return sorted(p for top in ("include", "src") for p in (root / top).rglob("*") if p.suffix in suffixes)


def violations(root):
    allowed, json_rooms = read_table(root)
    for path in sources(root):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            include = re.match(r'\s*#\s*include\s*([<"])([^>"]+)[>"]', line)
            rule = include and rule_broken(path, root, include[2], include[1] == '"', allowed, json_rooms)
            if rule:
                yield f"{path.relative_to(root)}:{number}: {line.strip()}: {rule}"


def headers_alone(root):
    flags = []
    for package in ("mpich", "fmt"):  # only flags that the compiler would not find by itself
        found = subprocess.run(["pkg-config", "--cflags", package], capture_output=True, text=True)
        flags += found.stdout.split()

    def compile_alone(path):
        command = [*os.environ.get("CXX", "g++").split(), "-std=c++20", "-fsyntax-only", "-Wall", "-Wextra", "-Werror"]
        command += ["-I", str(root / "include"), *flags, "-x", "c++", "-"]
        run = subprocess.run(command, input=f'#include "{path}"\n', capture_output=True, text=True, timeout=120)
        return f"{path.relative_to(root)}:1: does not compile alone\n{run.stderr}" if run.returncode else None

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return [e for e in pool.map(compile_alone, sources(root, (".hpp", ".h"))) if e]


def self_test():
    table = "| room | what | may |\n|---|---|---|\n| core | a | – |\n| config | b | – |\n| ops | c | config |\n"
    table += "| comm | d | – |\n| app | e | all above |\n\nNo header includes nlohmann/json; `.cpp` files of config and app may.\n"
    files = {  # file → (contents, number of violations)
        "include/trainer/core/a.hpp": ('#include "trainer/config/b.hpp"\n', 1),
        "include/trainer/config/b.hpp": ("#include <nlohmann/json.hpp>\n#include <CLI/CLI.hpp>\n", 2),
        "src/config/b.cpp": ('#include <CLI/CLI.hpp>\n#include <nlohmann/json.hpp>\n#include "b_private.hpp"\n', 0),
        "src/config/b_private.hpp": ("#include <nlohmann/json_fwd.hpp>\n", 1),
        "src/ops/c.cpp": ('#include "trainer/config/b.hpp"\n#include "trainer/comm/d.hpp"\n#include <mpi.h>\n', 2),
        "src/comm/d.cpp": ('#include <mpi.h>\n#include <oneapi/dnnl/dnnl.hpp>\n#include "../config/b_private.hpp"\n', 2),
        "src/app/e.cpp": ('#include "trainer/ops/c.hpp"\n#  include <cblas.h>\n#include <vector>\n', 1),
        "src/other/f.cpp": ("#include <vector>\n", 1),
        "src/main.cpp": ('#include "trainer/app/e.hpp"\n#include <mpi.h>\n', 1),
    }
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name, text in {"docs/architecture.md": table, **{name: text for name, (text, _) in files.items()}}.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        found = list(violations(root))
        for name, (_, expected) in files.items():
            count = sum(line.startswith(name + ":") for line in found)
            assert count == expected, f"{name}: {count} violations found, {expected} expected:\n" + "\n".join(found)
        for path in sources(root):
            path.unlink()
        (root / "include/trainer/core/a.hpp").write_text("#pragma once\nstd::string needs_an_include();\n")
        (root / "include/trainer/core/b.hpp").write_text("#pragma once\n#include <string>\nstd::string has_it();\n")
        errors = headers_alone(root)
        assert len(errors) == 1 and "core/a.hpp" in errors[0], errors
    print("check_layers: self test passed")


def main():
    root = Path(__file__).resolve().parent.parent
    if sys.argv[1:] == ["--self-test"]:
        return self_test()
    if sys.argv[1:] not in ([], ["--headers"]):
        sys.exit(__doc__)
    headers = sys.argv[1:] == ["--headers"]
    found = headers_alone(root) if headers else list(violations(root))
    if found:
        sys.exit("\n".join([*found, f"check_layers: {len(found)} violations"]))
    print(f"check_layers: {len(sources(root))} files, {'headers compile alone' if headers else 'includes as allowed'}")


if __name__ == "__main__":
    main()
