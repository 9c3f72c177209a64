"""Writes bench/README.md's tables and bench/plots/*.png from bench/results/*.json.

`make bench` calls it; it can be run by itself at any time: it measures nothing.
"""

from __future__ import annotations

import importlib.util
import json
import re
from typing import Any

import harness
from run import ORDER

README = harness.HERE / "README.md"
PLOTS = harness.HERE / "plots"
MARK = "<!-- Below: written by report.py from results/*.json. -->"

Result = dict[str, Any]


def load_results() -> list[Result]:
    """The recorded results, in the order in which they run."""
    paths = [harness.HERE / "results" / f"{name}.json" for name in ORDER]
    return [json.loads(path.read_text()) for path in paths if path.exists()]


def cell(figures: dict[str, Any] | None) -> str:
    """Median and spread."""
    if not figures or figures["median"] is None:
        return "-"
    median, low, high = (harness.figure(figures[key]) for key in ("median", "low", "high"))
    return median if low == median == high else f"{median} <sub>{low} .. {high}</sub>"


def group_table(group: dict[str, Any]) -> list[str]:
    """One Markdown table."""
    metrics, cases = group["metrics"], group["cases"]
    rows = [[cell(figures.get(metric)) for metric in metrics] for figures in cases.values()]
    names, headings = list(cases), list(metrics.values())
    if group["transposed"]:
        rows = [list(column) for column in zip(*rows, strict=True)]
        names, headings = headings, names
    lines = [f"**{group['title']}**", "", "| | " + " | ".join(headings) + " |"]
    lines.append("|---" * (len(headings) + 1) + "|")
    for name, row in zip(names, rows, strict=True):
        shown = f"**{name}**" if name.startswith("portalpatch") else name
        lines.append(f"| {shown} | " + " | ".join(row) + " |")
    lines.append("")
    lines += [f"{name}: failed: {why}  " for name, why in group["failed"].items()]
    if group["disturbed"]:
        lines.append(f"{group['disturbed']} samples were taken while other programs used the CPUs.")
    return [*lines, ""]


def target_table(results: list[Result]) -> list[str]:
    """Every target with its figure."""
    lines = ["## Targets", "", "| benchmark | target | figure | limit | |", "|---|---|---|---|---|"]
    for result in results:
        for target in result["targets"]:
            value = "-" if target["figure"] is None else f"{target['figure']:.3g}"
            limit = f"{target['kind']} {target['limit']:g}"
            lines.append(
                f"| {result['name']} | {target['what']} | {value} | {limit} | {target['verdict']} |"
            )
    return [*lines, ""]


def sections(results: list[Result]) -> list[str]:
    lines = target_table(results)
    plots = sorted(path.name for path in PLOTS.glob("*.png"))
    for name in plots:
        lines += [f"![{name.removesuffix('.png').replace('-', ' ')}](plots/{name})", ""]
    unrecorded = [name for name in ORDER if name not in {result["name"] for result in results}]
    if unrecorded:
        lines += [f"Not recorded yet: {', '.join(unrecorded)}.", ""]
    for result in results:
        machine = result["machine"]
        found = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
        lines += [f"## {result['name']}: {result['title']}", ""]
        lines += [
            f"{result['date']}, commit {result['commit']}, {result['rounds']} rounds. "
            f"{machine['processor']}; {machine['kernel']}, {machine['libc']}; "
            f"CPython {machine['python']}; {found}.",
            "",
        ]
        for group in result["groups"]:
            lines += group_table(group)
        lines += [f"{note}  " for note in result["notes"]]
        if result["missing"]:
            missing = "; ".join(f"{peer} ({why})" for peer, why in result["missing"].items())
            lines.append(f"Missing: {missing}.")
        lines.append("")
    return lines


# --- plots ---------------------------------------------------------------------------------------


def number_in(title: str) -> int | None:
    """The leading count of a group's title: "1,000 connections, 64 bytes" is 1000."""
    found = re.match(r"([\d,]+) ", title)
    return int(found[1].replace(",", "")) if found else None


def series(result: Result, metric: str, wanted: str) -> dict[str, list[tuple[int, float]]]:
    """For each case its figure over the count that the groups' titles begin with."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for group in result["groups"]:
        count = number_in(group["title"])
        if count is None or wanted not in group["title"]:
            continue
        for case, figures in group["cases"].items():
            median = figures.get(metric, {}).get("median")
            if median:
                lines.setdefault(case, []).append((count, median))
    return lines


def draw_lines(result: Result, metric: str, wanted: str, labels: tuple[str, str, str], name: str):
    """A log-log plot of a figure over a count."""
    from matplotlib import pyplot

    title, x, y = labels
    figure, axes = pyplot.subplots(figsize=(8, 5))
    axes.set_prop_cycle(color=pyplot.get_cmap("tab20").colors)
    for case, points in series(result, metric, wanted).items():
        ours = case.startswith("portalpatch")
        style = {"linewidth": 2.5, "zorder": 3} if ours else {"linewidth": 1, "alpha": 0.8}
        axes.plot(*zip(*sorted(points), strict=True), marker="o", markersize=3, label=case, **style)
    axes.set(xscale="log", yscale="log", xlabel=x, ylabel=y, title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(PLOTS / name, dpi=110, bbox_inches="tight", metadata={"Software": None})
    pyplot.close(figure)


def draw_ratios(results: dict[str, Result]) -> None:
    """CPU of each peer over portalpatch's, for the main benchmarks."""
    from matplotlib import pyplot

    panels = [
        ("echo", "100 connections, 64 bytes", "cpu"),
        ("db", "psycopg2, PostgreSQL", "cpu"),
        ("crawl", "requests, plain", "cpu"),
        ("http", "http.server, psycopg2", "cpu"),
    ]
    found = []
    for name, title, metric in panels:
        groups = results[name]["groups"] if name in results else []
        for group in groups:
            ours = group["cases"].get("portalpatch", {}).get(metric, {}).get("median")
            if group["title"] == title and ours:
                ratios = {
                    case: figures[metric]["median"] / ours
                    for case, figures in group["cases"].items()
                    if figures.get(metric, {}).get("median")
                }
                found.append((f"{name}: {title}", ratios))
    if not found:
        return
    heights = [len(ratios) for _, ratios in found]
    figure, panels_axes = pyplot.subplots(
        len(found),
        1,
        figsize=(8, 0.25 * sum(heights) + len(found)),
        gridspec_kw={"height_ratios": heights},
        squeeze=False,
    )
    for axes, (title, ratios) in zip(panels_axes[:, 0], found, strict=True):
        names = list(ratios)[::-1]
        colours = ["tab:blue" if n.startswith("portalpatch") else "silver" for n in names]
        bars = axes.barh(names, [min(ratios[name], 5) for name in names], color=colours)
        axes.bar_label(bars, [f" {ratios[name]:.2f}" for name in names], fontsize=7)
        axes.axvline(1, color="tab:blue", linewidth=0.8)
        axes.tick_params(labelsize=7)
        axes.set_title(f"{title}: CPU over portalpatch's", fontsize=9)
    figure.tight_layout()
    figure.savefig(PLOTS / "ratios.png", dpi=110, metadata={"Software": None})
    pyplot.close(figure)


def draw(results: list[Result]) -> None:
    """All plots; those whose results are not there are left as they are."""
    import matplotlib

    matplotlib.use("Agg")
    PLOTS.mkdir(exist_ok=True)
    by_name = {result["name"]: result for result in results}
    if "echo" in by_name:
        labels = ("echo, 64 bytes: latency", "connections", "p99, us")
        draw_lines(by_name["echo"], "p99", "64 bytes", labels, "echo-latency.png")
        labels = ("echo, 64 bytes: server CPU", "connections", "CPU us for each request")
        draw_lines(by_name["echo"], "cpu", "64 bytes", labels, "echo-cpu.png")
    if "scale" in by_name:
        labels = ("cost of an event beside idle waiters", "idle waiters", "CPU us for each event")
        draw_lines(by_name["scale"], "event", "idle waiters", labels, "scale.png")
    draw_ratios(by_name)


def main() -> None:
    results = load_results()
    if importlib.util.find_spec("matplotlib"):
        draw(results)
    else:
        print("no plots: matplotlib is not installed")
    introduction = README.read_text().partition(MARK)[0]
    README.write_text("\n".join([introduction + MARK, "", *sections(results)]).rstrip() + "\n")
    met = [target["verdict"] for result in results for target in result["targets"]]
    print(f"bench/README.md: {met.count('met')} of {len(met)} targets met")


if __name__ == "__main__":
    main()
