"""The figures of a GPU run as JSON and as a Markdown table."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.gpu.clock import milliseconds
from benchmarks.machine import RESULTS


def write(result: dict[str, Any], name: str, *, keep: bool) -> None:
    """Print the tables; `keep`: and write benchmarks/results/<name>.json and .md."""
    text = "\n".join(_lines(result)) + "\n"
    if keep:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
        (RESULTS / f"{name}.md").write_text(text)
    else:
        json.dumps(result)  # a rehearsal proves that it could be written
    print(text)


def _lines(result: dict[str, Any]) -> list[str]:
    m, shape, top = result["machine"], result["shape"], result["ceilings"]
    size = ", ".join(f"{name} = {value}" for name, value in shape.items())
    lines = [
        f"# {m['device']}",
        "",
        f"{m['date']}, commit {m['commit']}, torch {m['torch']}, Triton {m['triton']}, Python"
        f" {m['python']}. {size}, bf16.",
        f"Ceilings measured: copy {top['bytes_per_second'] / 1e12:.2f} TB/s, matmul"
        f" {top['flops']['bf16'] / 1e12:.0f} TFLOP/s in bf16.",
        "",
        "## Checks",
        "",
        "| check | outcome |",
        "| --- | --- |",
        *(f"| {name} | {outcome} |" for name, outcome in result["checks"].items()),
        "",
        "## Kernels",
        "",
        "| kernel | ms | floor, ms | share of the floor | others, ms |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    for t in result["kernels"]:
        others = ", ".join(f"{n} {milliseconds(s)}" for n, s in t["others"].items())
        lines.append(
            f"| {t['name']} | {milliseconds(t['ours'])} | {milliseconds(t['floor'])} |"
            f" {t['floor'] / t['ours']:.0%} | {others} |"
        )
    if result["buffer"]:
        lines += _buffer(result["buffer"], result["end_to_end"], shape["N"])
    if result["attention"]:
        lines += ["", "## Attention capture", "", "| | ms |", "| --- | ---: |"]
        lines += [
            f"| {name} | {milliseconds(t)} |" if "bytes" not in name else f"| {name} | {t:,} |"
            for name, t in result["attention"].items()
        ]
    lines += [
        "",
        "## Tuned",
        "",
        "| what | every shipped configuration, ms |",
        "| --- | --- |",
        *(
            f"| {t['name']} | {', '.join(milliseconds(s) for s in t['seconds'])} |"
            for t in result["tuned"]
        ),
        "",
        "## End to end: all layers of a Pythia-410M-shaped model",
        "",
        "| regime | L0 | tokens/s | without the model | share of the floor | peak GB | predicted GB"
        " | host waits |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for o in result["end_to_end"]:
        lines.append(
            f"| {o['name']} | {o['l0']:.0f} | {o['tokens_per_second']:,.0f} |"
            f" {o['tokens_per_second_without_model']:,.0f} |"
            f" {o['tokens_per_second'] / o['floor_tokens_per_second']:.0%} |"
            f" {o['peak_bytes'] / 1e9:.1f} | {o['predicted_bytes'] / 1e9:.1f} | {o['host_waits']} |"
        )
    lines += ["", "## One layer's step as others do it", "", "| peer | ms |", "| --- | ---: |"]
    for name, taken in result["peers"].items():
        lines.append(f"| {name} | {milliseconds(taken)} |")
    if result["quality"]:
        worst = result["quality"]["worst ratio"]
        lines += ["", f"fvu against the CPU's fp32 path at equal steps, worst layer: x {worst:.4f}."]
    for name, what in result["failed"].items():
        lines += ["", f"Failed: {name}: {what}"]
    if result["left out"]:
        lines += ["", f"Left out for lack of time: {', '.join(result['left out'])}."]
    return lines


def _buffer(found: dict[str, Any], jobs: list[dict[str, Any]], tokens: int) -> list[str]:
    step = tokens / jobs[0]["tokens_per_second"] if jobs else None
    job = jobs[0]["name"] if jobs else "training"
    spilled, pinned = (
        found[f"{what}, bytes a second each way"] / 1e9 for what in ("spilled", "pinned copy")
    )
    lines = [
        "",
        "## The streaming buffer: one put and one take of a step's tokens, all layers",
        "",
        f"| storage | ms | share of the floor | share of a {job} step | host waits |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name in ("bf16", "MXFP8", "bf16, host tier"):
        share = f"{found[name] / step:.1%}" if step else "-"
        lines.append(
            f"| {name} | {milliseconds(found[name])} | {found['floor'] / found[name]:.0%} | {share} |"
            f" {found.get(f'host waits, {name}', '-')} |"
        )
    return [
        *lines,
        "",
        f"With the host tier {spilled:.1f} GB/s go down while as much comes back; page-locked copies"
        f" both ways at once reach {pinned:.1f} GB/s each way.",
    ]
