"""fvu and dead features at equal tokens, on the demo model: was speed bought with quality?

    python benchmarks/quality.py --peers-python PATH

Every contender trains on the same captured activations in the same order, with the same k and width
and its own AuxK, at each learning rate of one small grid, and is tested on the same held-out
activations.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from harness import Worker, machine, write

from trustbench.buffer import ActivationBuffer
from trustbench.capture import ActivationCapture, load_model, resolve_hook_points
from trustbench.data import Documents, TokenStream
from trustbench.demo import assets
from trustbench.sae.init import measure_input_scale

CONTENDERS = ["trustbench", "sparsify", "SAELens"]
RATES = [1e-3, 3e-3, 4e-3, 6e-3]


def capture(text: Path, layer: int, tokens: int, shuffled: bool) -> torch.Tensor:
    """Activations [tokens, d] of one layer; training ones through the shuffling buffer."""
    model, tokenizer = load_model(str(assets.MODEL))
    points = resolve_hook_points(model, [layer])
    run = ActivationCapture(model, points)
    name, rows = points[0].name, []
    for batch in TokenStream(Documents(str(text)), tokenizer, 256, 16, repeat=shuffled):
        rows.append(run.run(batch.input_ids)[name][batch.mask])
        if sum(map(len, rows)) >= tokens:
            break
    acts = torch.cat(rows)[:tokens]
    if not shuffled:
        return acts
    buffer = ActivationBuffer({name: acts.shape[1]}, len(acts))
    buffer.put({name: acts})
    return torch.cat([part[name] for part in buffer.batches(8192)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers-python", default=sys.executable, help="python that has the peers")
    parser.add_argument("--layer", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=350_000)
    parser.add_argument("--d-sae", type=int, default=4096)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--dead-after", type=int, default=20_000, help="tokens; for AuxK")
    parser.add_argument("--batch", type=int, default=2048)
    args = parser.parse_args()

    train = capture(assets.TRAIN_TEXT, args.layer, args.tokens, shuffled=True)
    test = capture(assets.HELDOUT_TEXT, args.layer, 20_000, shuffled=False)
    scale = measure_input_scale(train)  # the same for all: the grid of rates then fits all
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        files = {"train": f"{folder}/train.pt", "test": f"{folder}/test.pt"}
        torch.save(train * scale, files["train"])
        torch.save(test * scale, files["test"])
        shape = {"d": train.shape[1], "F": args.d_sae, "k": args.k, "bf16": False}
        shape["dead_after"] = args.dead_after
        for name in CONTENDERS:
            for lr in RATES:
                steps = len(train) // args.batch
                worker = Worker(name, args.peers_python, lr=lr, steps=steps, **shape)
                figure = {"contender": name, "lr": lr}
                if worker.absent:
                    figure["absent"] = worker.absent
                else:
                    figure |= {"version": worker.version}
                    figure |= worker.ask(do="train", batch=args.batch, **files)
                worker.close()
                print(figure, flush=True)
                figures.append(figure)

    here = machine()
    lines = [
        f"Layer {args.layer} of the demo model, d = {train.shape[1]}, d_sae = {args.d_sae},"
        f" k = {args.k}, {len(train):,} tokens, batches of {args.batch}, fp32, AuxK for features"
        f" inactive for {args.dead_after:,} tokens; tested on {len(test):,} held-out tokens.",
        f"{here['cpu']}, {here['threads']} threads, commit {here['commit']}, {here['date']}.",
        "",
        "| | version | lr | fvu | never active on the test |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for f in figures:
        if "fvu" not in f:
            lines.append(f"| {f['contender']} | absent: {f.get('absent')} | {f['lr']:g} | | |")
            continue
        lines.append(
            f"| {f['contender']} | {f['version']} | {f['lr']:g} | {f['fvu']:.4f} |"
            f" {f['never_active']:.2%} |"
        )
    write(
        "cpu_quality",
        {"machine": here, "arguments": vars(args), "figures": figures},
        "\n".join(lines) + "\n",
    )
    best = {
        name: min((f["fvu"] for f in figures if f["contender"] == name and "fvu" in f), default=9.9)
        for name in CONTENDERS
    }
    worse = [name for name in CONTENDERS if best["trustbench"] > 1.01 * best[name]]
    if worse:
        sys.exit(f"trustbench's best fvu is worse by more than 1 % than that of: {', '.join(worse)}")


if __name__ == "__main__":
    main()
