"""From the records of tools/study to numbers, and from those to Markdown and plots. Nothing here measures."""
import statistics

import bench_report
import study_plan
import study_svg
import study_text

TARGET_AT = 0.6           # the target loss is what the reference has reached after this share of its samples
FIRST_POINT = 2           # of a curve, that plots show: the mean of fewer losses than the others' says little
LIMITS = {"async": 5.0, "async_tasks": 5.0, "ssp": 5.0}  # % of loss that a strategy may lose; others 2
LIMIT = 2.0
GOALS = [("slow", 1.8, ("async", "async_tasks", "balance")),
         ("network", 5.0, ("local_sgd", "diloco", "top_k", "random_k", "sign", "power_sgd", "int8"))]
PAYS = 1.05               # times the reference's samples/s, from which a strategy counts as faster


class Results:
    """The newest record of each (model, setting, strategy, seed) that the plan still has."""

    def __init__(self, records):
        self.cells = {}
        for record in records:
            if record["setting"] in study_plan.SETTINGS and record["strategy"] in study_plan.STRATEGIES:
                cell = self.cells.setdefault((record["model"], record["setting"], record["strategy"]), {})
                cell[record["seed"]] = record

    def of(self, model, setting, strategy):
        """{seed: record}, those that diverged too."""
        return self.cells.get((model, setting, strategy), {})

    def good(self, model, setting, strategy):
        return [record for record in self.of(model, setting, strategy).values() if not record.get("diverged")]

    def bytes_per_sample(self, model, strategy):
        """What all hosts sent, headers and control included, in the network's setting; None: nobody counted."""
        for setting in ("network", "even", "slow"):
            known = [r["bytes"] / r["samples"] for r in self.good(model, setting, strategy) if r.get("bytes")]
            if known:
                return statistics.median(known)
        return None

    def target(self, model):
        """The loss that the reference's runs have reached (median) after TARGET_AT of their samples."""
        for setting in study_plan.SETTINGS:
            runs = self.good(model, setting, study_plan.REFERENCE)
            if runs:
                return statistics.median(loss_at(run["curve"], TARGET_AT * run["samples"]) for run in runs)
        return None


def loss_at(curve, samples):
    return next(loss for at, _, loss in curve if at >= samples)


def time_to(curve, target):
    """Seconds until the smoothed training loss is at or below the target for the first time; None: never."""
    before = None
    for _, seconds, loss in curve:
        if loss <= target:
            if before is None or before[1] == loss:
                return seconds
            share = (before[1] - target) / (before[1] - loss)
            return before[0] + share * (seconds - before[0])
        before = (seconds, loss)
    return None


def mean_and_spread(values):
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def row_of(results, model, setting, strategy):
    """The numbers of one line of a table; None where nothing was run."""
    cell = results.of(model, setting, strategy)
    if not cell:
        return None
    good = results.good(model, setting, strategy)
    reference = results.of(model, setting, study_plan.REFERENCE)
    row = {"strategy": strategy, "runs": len(cell), "diverged": len(cell) - len(good)}
    if not good:
        return row
    row["loss"] = mean_and_spread([run["final_loss"] for run in good])
    row["rate"] = statistics.fmean(run["samples_per_second"] for run in good)
    pairs = [(run, reference[run["seed"]]) for run in good
             if run["seed"] in reference and not reference[run["seed"]].get("diverged")]
    if pairs:
        row["change"] = mean_and_spread([100 * (run["final_loss"] / other["final_loss"] - 1) for run, other in pairs])
        row["ratio"] = statistics.fmean(run["samples_per_second"] / other["samples_per_second"] for run, other in pairs)
    target = results.target(model)
    times = [time_to(run["curve"], target) for run in good] if target is not None else []
    row["reached"] = sum(t is not None for t in times)
    row["time"] = statistics.median(t for t in times if t is not None) if row["reached"] else None
    sent = results.bytes_per_sample(model, strategy)
    row["bytes"] = sent * good[0]["samples"] if sent else None
    return row


def limit_of(strategy):
    return LIMITS.get(strategy, LIMIT)


def cells_of(row):
    title = study_plan.STRATEGIES[row["strategy"]].title
    if "loss" not in row:
        return [title, "diverged"] + ["–"] * 5
    loss, spread = row["loss"]
    cells = [title, f"{loss:.4f} ± {spread:.4f}" + (f" ({row['diverged']} diverged)" if row["diverged"] else "")]
    if "change" in row:
        change, width = row["change"]
        over = change > limit_of(row["strategy"])
        text = f"{change:+.1f} ± {width:.1f}"
        cells += ["–" if row["strategy"] == study_plan.REFERENCE else f"**{text}**" if over else text]
    else:
        cells.append("–")
    cells += [f"{row['rate']:,.0f}", f"{row['ratio']:.2f}×" if "ratio" in row else "–"]
    some = f" ({row['reached']} of {row['runs']})" if row["reached"] < row["runs"] else ""
    cells.append("–" if row["time"] is None else f"{row['time']:.2f}{some}")
    cells.append("–" if row["bytes"] is None else f"{row['bytes'] / 1e6:,.1f}")
    return cells


def header(target):
    return ["", "final loss", "against synchronous, %", "samples/s", "against synchronous", f"to loss {target:.3g}, s",
            "MB sent"]


def table(results, model, setting):
    rows = [row_of(results, model, setting, strategy) for strategy in study_plan.STRATEGIES]
    return bench_report.markdown_table(header(results.target(model)), [cells_of(row) for row in rows if row])


def verdict(results, model, setting, strategies, least):
    """Of a goal: the fastest of `strategies` whose loss is within its limit, and those that are fast but lose more."""
    rows = [row for row in (row_of(results, model, setting, strategy) for strategy in strategies) if row and "ratio" in row]
    if not rows:
        return None
    name = lambda row: (f"{study_plan.STRATEGIES[row['strategy']].title} {row['ratio']:.2f}×, "
                        f"loss {row['change'][0]:+.1f}%")
    good = sorted((row for row in rows if row["change"][0] <= limit_of(row["strategy"])), key=lambda row: -row["ratio"])
    met = [row for row in good if row["ratio"] >= least]
    if met:
        return "met: " + "; ".join(map(name, met))
    best = f"; nearest: {name(good[0])}" if good else ""
    fast = [row for row in rows if row["ratio"] >= least]
    return "**missed**" + best + ("; fast enough, but loses more: " + "; ".join(map(name, fast)) if fast else "")


def goals(results, models):
    lines = []
    for setting, least, strategies in GOALS:
        for model in models:
            found = verdict(results, model, setting, strategies, least)
            if found:
                what = "asynchronous or balanced" if setting == "slow" else "compressed or local steps"
                lines.append([f"{study_plan.SETTINGS[setting].title}: {what} ≥ {least:g}× the synchronous samples/s",
                              study_plan.MODELS[model].title, found])
    return bench_report.markdown_table(["goal, with the final loss within 2% (asynchronous 5%)", "", ""], lines)


def not_paying(results, model, setting):
    """ "bsp 0.8×" and "top-k +4%": what was no faster than the reference, and what cost more loss than its limit."""
    slow, worse = [], []
    for key, strategy in study_plan.STRATEGIES.items():
        row = row_of(results, model, setting, key)
        if not row or key == study_plan.REFERENCE:
            continue
        if "ratio" not in row:
            worse.append(f"{strategy.title} (diverged)")
            continue
        if row["ratio"] < PAYS:
            slow.append(f"{strategy.title} {row['ratio']:.2f}×")
        if row["change"][0] > limit_of(key):
            worse.append(f"{strategy.title} {row['change'][0]:+.1f}%")
    parts = [f"No faster than synchronous: {', '.join(slow)}."] if slow else []
    return " ".join(parts + ([f"More loss than the goal allows: {', '.join(worse)}."] if worse else []))


def paired_start(results, model):
    """The largest relative difference of first losses between strategies of a seed in the even setting. Not of those whose
    first step is not one step of all replicas."""
    worst = 0.0
    for strategy in study_plan.STRATEGIES:
        if strategy in LIMITS or strategy == "backup":
            continue
        for seed, run in results.of(model, "even", strategy).items():
            other = results.of(model, "even", study_plan.REFERENCE).get(seed)
            if other and not run.get("diverged") and not other.get("diverged"):
                worst = max(worst, abs(run["first_loss"] / other["first_loss"] - 1))
    return worst


def noise(results, models):
    """ "−1.2 to +3.4% (MLP on MNIST)": what rounding alone does to pairs, in any setting."""
    parts = []
    for model in models:
        changes = [100 * (run["final_loss"] / other["final_loss"] - 1) for setting in study_plan.SETTINGS
                   for seed, run in results.of(model, setting, "bfloat16").items() if not run.get("diverged")
                   for other in [results.of(model, setting, study_plan.REFERENCE).get(seed)] if other and not other.get("diverged")]
        if changes:
            parts.append(f"{min(changes):+.1f} to {max(changes):+.1f}% ({study_plan.MODELS[model].title})")
    return " and ".join(parts) or "nothing that was measured here"


def series_of(results, model, setting, strategy):
    runs = results.good(model, setting, strategy)
    if not runs:
        return None
    length = min(len(run["curve"]) for run in runs)
    at = lambda index, column: [run["curve"][index][column] for run in runs]
    places = range(min(FIRST_POINT, length - 1), length)
    sent = results.bytes_per_sample(model, strategy)
    return {"name": study_plan.STRATEGIES[strategy].title, "reference": strategy == study_plan.REFERENCE,
            "seconds": [statistics.median(at(i, 1)) for i in places],
            "bytes": [sent * statistics.median(at(i, 0)) / 1e6 for i in places] if sent else None,
            "loss": [statistics.median(at(i, 2)) for i in places], "low": [min(at(i, 2)) for i in places],
            "high": [max(at(i, 2)) for i in places]}


def plot(results, model, setting):
    """The SVG of one model in one setting; None where nothing was run."""
    reference = series_of(results, model, setting, study_plan.REFERENCE)
    panels = []
    for group in study_plan.GROUPS:
        members = [key for key, one in study_plan.STRATEGIES.items() if one.group == group and key != study_plan.REFERENCE]
        found = [series for series in (series_of(results, model, setting, key) for key in members) if series]
        if found or reference and not panels:
            panels.append({"title": group, "series": ([reference] if reference else []) + found})
    if not panels:
        return None
    about = study_plan.SETTINGS[setting].title
    title = f"{study_plan.MODELS[model].title}, {about[0].lower()}{about[1:]}: training loss"
    return study_svg.draw(title, panels, [("seconds", "seconds"), ("bytes", "MB sent by all ranks")])


def tuning_table(tuning, models):
    rows = []
    for key, strategy in study_plan.STRATEGIES.items():
        for model in models:
            tried = [one for one in tuning if (one["strategy"], one["model"]) == (key, model)]
            if tried:
                chosen = min(tried, key=lambda one: one["loss"])
                rows.append([strategy.title, study_plan.MODELS[model].title,
                             "; ".join(f"{study_plan.show(one['candidate'])}: {loss_text(one['loss'])}" for one in tried),
                             study_plan.show(chosen["candidate"])])
    return bench_report.markdown_table(["", "", f"tried with seed {study_plan.TUNING_SEED}, and its final loss", "taken"], rows)


def loss_text(loss):
    return "diverged" if loss == float("inf") else f"{loss:.4f}"


def page(records, tuning, plot_name, notes=""):
    """(Markdown, {file name: SVG}). plot_name(model, setting) is a plot's file name, relative to the page; notes: a sentence
    on how the records were made."""
    results = Results(records)
    models = [key for key in study_plan.MODELS if any(cell[0] == key for cell in results.cells)]
    lines = [study_text.BEFORE.format(notes=notes.strip(), **study_text.facts(records)), "", "## The goals", "", goals(results, models), ""]
    plots = {}
    for setting, about in study_plan.SETTINGS.items():
        if not any(cell[1] == setting for cell in results.cells):
            continue
        lines += [f"## {about.title}", "", study_text.SETTINGS[setting].format(**study_text.numbers()), ""]
        for model in models:
            svg = plot(results, model, setting)
            if svg is None:
                continue
            name = plot_name(model, setting)
            plots[name] = svg
            lines += [f"### {study_plan.MODELS[model].title}", "", table(results, model, setting), "",
                      not_paying(results, model, setting), "", f"![Training loss against time and bytes]({name})", ""]
    starts = " and ".join(f"{paired_start(results, m):.2g} ({study_plan.MODELS[m].title})" for m in models)
    lines += [study_text.AFTER.format(starts=starts, noise=noise(results, models), **study_text.numbers()), "",
              tuning_table(tuning, models), ""]
    return "\n".join(lines), plots
