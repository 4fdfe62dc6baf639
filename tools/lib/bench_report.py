"""From what was measured to numbers, and from those (a JSON object) to Markdown. Nothing here measures."""
import os
import platform
import re
import statistics
from pathlib import Path

FLAGS = ("avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16")


def distinct_cores(wanted):
    """CPU numbers that this process may use, one a physical core as far as there are enough."""
    usable, cores, siblings = sorted(os.sched_getaffinity(0)), [], set()
    for cpu in usable:
        if cpu not in siblings:
            cores.append(cpu)
            try:
                text = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text()
            except OSError:
                text = str(cpu)
            for first, last in re.findall(r"(\d+)(?:-(\d+))?", text):
                siblings.update(range(int(first), int(last or first) + 1))
    return (cores + [cpu for cpu in usable if cpu not in cores])[:wanted]


def machine(cores):
    """The machine as a reader needs it; no names of hosts."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    def field(name, otherwise=""):
        found = re.search(rf"^{name}\s*:\s*(.*)$", cpuinfo, re.M)
        return found[1] if found else otherwise
    caches = {}
    for index in sorted(Path(f"/sys/devices/system/cpu/cpu{cores[0]}/cache").glob("index*")):
        if (index / "type").read_text().strip() != "Instruction":
            caches[f"L{(index / 'level').read_text().strip()}"] = (index / "size").read_text().strip()
    system = re.search(r'^PRETTY_NAME="?([^"\n]*)', Path("/etc/os-release").read_text(), re.M)
    memory = re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())
    return {"cpu": field("model name", platform.machine()), "cpu_family": field("cpu family"), "cores_used": len(cores),
            "flags": [flag for flag in FLAGS if flag in field("flags").split()], "caches": caches,
            "memory_bytes": int(memory[1]) * 1024, "system": system[1] if system else "Linux",
            "kernel": platform.release().split("-")[0], "python": platform.python_version()}


def side(jobs, work, flops, cores, peak):
    """One program's cell: all its variants, and the fastest of them as rates (`work` a step)."""
    cell = {"variants": {name: job.as_json() for name, job in jobs.items()}}
    good = {name: job for name, job in jobs.items() if job.best() is not None}
    if good:
        name = min(good, key=lambda n: good[n].best())
        best, median = good[name].best(), statistics.median(good[name].seconds)
        cell.update(best=name, seconds=best, median_seconds=median, rate=work / best, median_rate=work / median)
        if peak:
            cell["share_of_peak"] = flops / best / (peak * cores)
    return cell


def table_row(row, own, peak):
    """`row`: key, name, unit, work, flops, cores, ranks, goals {value's name: least}, ours, theirs {variant: job};
    `own`: {key: seconds of the trainer's step}, to compare rows with each other."""
    result = {key: row[key] for key in ("key", "name", "unit", "cores", "goals")}
    result["trainer"] = ours = side(row["ours"], row["work"], row["flops"], row["cores"], peak)
    result["pytorch"] = theirs = side(row["theirs"], row["work"], row["flops"], row["cores"], peak)
    if "seconds" not in ours:
        return result
    values = {"share_of_peak": ours.get("share_of_peak")}
    if "seconds" in theirs:
        values["ratio"] = theirs["seconds"] / ours["seconds"]
    if own.get("two") and row["ranks"]:
        values["of_two"] = own["two"] / ours["seconds"]
        bubble = ours["variants"][ours["best"]].get("predicted_bubble", 0)
        if bubble:
            values["of_simulated"] = values["of_two"] / (1 - bubble)
    float32 = own.get(row["key"].replace("bfloat16", "one"))
    if float32 and "bfloat16" in row["key"]:
        values["of_float32"] = float32 / ours["seconds"]
    result.update(values)
    result["goals"] = {goal: {"least": least, "met": values[goal] >= least if values.get(goal) else None}
                       for goal, least in row["goals"].items()}
    return result


def precision_of(row):
    return "bfloat16" if row["key"].startswith("bfloat16") else "float32"


def peaks_a_core(rows):
    """{precision: FLOP/s of a core}, the best that any run of the trainer in it measured."""
    peaks = {}
    for row in rows:
        for job in row["ours"].values():
            if "seconds_at_peak" in job.facts:
                rate = row["flops"] / job.facts["seconds_at_peak"] / row["cores"]
                peaks[precision_of(row)] = max(rate, peaks.get(precision_of(row), 0))
    return peaks


# Of a goal's value: the unit, and of what it is a share or multiple.
GOALS = {"ratio": ("x", "PyTorch"), "share_of_peak": ("%", "of peak"), "of_two": ("%", "of two own"),
         "of_simulated": ("%", "of simulated"), "of_float32": ("x", "float32")}
VERDICTS = {True: "met", False: "**missed**", None: "not compared"}


def number(value, unit=""):
    if value is None:
        return "–"
    if unit == "%":
        return f"{value:.0%}"
    if unit == "x":
        return f"{value:.2f}×"
    if unit == "MB":
        return f"{value / 1e6:,.0f}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def markdown_table(header, rows):
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def variants_text(cell):
    """ "eager 1,034, compiled 1,010", the failed ones with their reason."""
    parts = []
    for name, variant in cell["variants"].items():
        if "error" in variant:
            parts.append(f"{name}: failed ({variant['error'][-120:]})".replace("|", "/"))
        elif "seconds" in cell:
            parts.append(f"{name} {number(cell['rate'] * cell['seconds'] / variant['best_seconds'])}")
    return ", ".join(parts) or "–"


def speed_rows(rows):
    lines = []
    for row in rows:
        if "missing" in row:
            lines.append([row["name"], row["missing"]] + ["–"] * 7)
            continue
        ours, theirs = row["trainer"], row["pytorch"]
        own = number(ours.get("rate")) if len(ours["variants"]) == 1 and "rate" in ours else variants_text(ours)
        goals = [f"{number(entry['least'], GOALS[goal][0])} {GOALS[goal][1]}: {VERDICTS[entry['met']]}"
                 for goal, entry in row["goals"].items()]
        of_two = number(row.get("of_two"), "%")
        if "of_simulated" in row:
            of_two += f" ({number(row['of_simulated'], '%')} of simulated)"
        if "of_float32" in row:
            of_two = f"{number(row['of_float32'], 'x')} float32"
        lines.append([f"{row['name']} ({row['unit']})", own, number(ours.get("median_rate")), number(ours.get("share_of_peak"), "%"),
                      variants_text(theirs), number(theirs.get("share_of_peak"), "%"), number(row.get("ratio"), "x"), of_two,
                      "; ".join(goals) or "–"])
    return lines


def memory_text(memory):
    rows = [["trainer, process", number(memory["trainer"]["process"], "MB"), number(memory["over_live_set"], "x") + " of the live set, "
             + ("goal ≤ 1.15: " + ("met" if memory["over_live_set"] <= 1.15 else "**missed**"))],
            ["trainer, live set", number(memory["trainer"]["live_set"], "MB"), "weights, gradients, optimizer, activations, packed weights"],
            ["trainer, above MPI's start", number(memory["trainer"]["measured"], "MB"), f"predicted {number(memory['trainer']['predicted'], 'MB')}"]]
    for name, peak in memory.get("pytorch", {}).items():
        share = memory["trainer"]["process"] / peak
        rows.append([f"PyTorch, {name}", number(peak, "MB"), f"the trainer takes {share:.0%} of it, goal < 50%: "
                     + ("met" if share < 0.5 else "**missed**")])
    return markdown_table(["peak memory of one process", "MB", ""], rows)


def startup_text(startup):
    rows = [[name, number(entry["best_seconds"] * 1e3), number(entry["median_seconds"] * 1e3), entry.get("goal", "")]
            if "error" not in entry else [name, "failed", entry["error"][-120:], ""] for name, entry in startup.items()]
    return markdown_table(["from the command", "fastest, ms", "median, ms", ""], rows)


def kernels_text(kernels):
    rows = [[f"{k['layout']} {k['m']}×{k['n']}×{k['k']}", number(k.get("native")), number(k.get("native_share"), "%"),
             number(k.get("onednn")), number(k.get("pytorch"))] for k in kernels]
    return markdown_table(["GFLOP/s, one thread", "packed kernel", "of peak", "oneDNN", "PyTorch"], rows)


def markdown(result):
    about, settings = result["machine"], result["settings"]
    caches = ", ".join(f"{level} {size}" for level, size in about["caches"].items())
    peaks = ", ".join(f"{rate / 1e9:.0f} GFLOP/s a core in {precision}"
                      for precision, rate in result.get("peak_flops_a_core", {}).items())
    lines = [f"Machine: {about['cores_used']} cores of {about['cpu']} (family {about['cpu_family']}; {' '.join(about['flags'])}; {caches}), "
             f"{about['memory_bytes'] / 2**30:.0f} GiB, {about['system']}, Linux {about['kernel']}"
             + (f"; {peaks}." if peaks else "."),
             f"{about.get('trainer', 'trainer')}" + (f"; PyTorch {about['pytorch']}." if "pytorch" in about else "; PyTorch not run."),
             f"{settings['date']}, {settings['rounds']} round{'s' if settings['rounds'] > 1 else ''} in turns, fastest step of each "
             f"(median beside it), {settings['seconds']:.0f} s in all"
             + ("; --quick, so not for quoting." if settings["quick"] else "."), ""]
    if result["rows"]:
        lines += [markdown_table(["", "trainer", "median", "of peak", "PyTorch", "of peak", "trainer / PyTorch",
                                  "of two own processes", "goals"], speed_rows(result["rows"])), ""]
    for key, text in (("memory", memory_text), ("startup", startup_text), ("kernels", kernels_text)):
        if result.get(key):
            lines += [text(result[key]), ""]
    return "\n".join(lines)
