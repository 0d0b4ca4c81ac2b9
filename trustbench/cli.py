"""The command line: one verb a main job, no logic of its own."""

from __future__ import annotations

import difflib
import os
import re
import sys
from argparse import ArgumentError
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from trustbench import __version__
from trustbench.errors import TrustbenchError

_INTERRUPTED = 130  # what a shell expects of a program stopped by Ctrl-C


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. Errors a user can mend are one line, status 2."""
    parser = _parser()
    try:
        chosen = parser.parse_args(arguments)
    except ArgumentError as error:
        print(f"trustbench: {_explain(str(error))}", file=sys.stderr)
        return 2
    command = getattr(sys.modules[__name__], f"_{chosen.subcommand}")
    options = chosen[chosen.subcommand]
    debug = os.environ.get("TRUSTBENCH_DEBUG") == "1"
    try:
        return command(options)
    except TrustbenchError as error:
        if debug:
            raise
        print(f"trustbench {chosen.subcommand}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"trustbench {chosen.subcommand}: interrupted", file=sys.stderr)
        return _INTERRUPTED


def _explain(message: str) -> str:
    """The parser's message on one line, with the field that an unknown name may have meant."""
    from trustbench.activations import CaptureConfig
    from trustbench.training.config import SAEConfig, TrainConfig

    known = [f.name for kind in (TrainConfig, CaptureConfig) for f in fields(kind)]
    known += [f"sae.{f.name}" for f in fields(SAEConfig)]
    unknown = re.search(r"unrecognized arguments: --([\w.]+)|option '([\w.]+)'", message)
    text = " ".join(message.split())
    if unknown:
        near = difflib.get_close_matches(unknown[1] or unknown[2], known, n=1)
        text += f"; did you mean {near[0]!r}?" if near else ""
    return text


def _parser() -> ArgumentParser:
    from trustbench.activations import CaptureConfig
    from trustbench.training.config import TrainConfig

    parser = ArgumentParser(
        prog="trustbench",
        exit_on_error=False,
        description="Fast sparse autoencoders on every layer of a language model.",
        epilog="TRUSTBENCH_DEBUG=1 shows the whole traceback of an error.",
        version=f"trustbench {__version__}",
    )
    commands = parser.add_subcommands(required=True, dest="subcommand")

    train = ArgumentParser(
        exit_on_error=False,
        description="Train SAEs on all chosen layers of a model together. The same command"
        " continues a run that was stopped. Example: trustbench train --model EleutherAI/pythia-70m"
        " --data corpus.jsonl --out runs/pythia --tokens 10000000 --sae.d_sae 8192 --sae.k 32",
    )
    train.add_argument("--config", action="config", help="a YAML or JSON file of the fields below")
    train.add_class_arguments(TrainConfig, help="the run")
    commands.add_subcommand("train", train, help="train SAEs on every layer of a model")

    capture = ArgumentParser(
        exit_on_error=False,
        description="Write a model's activations on a text to disk, once, to train on many times:"
        " trustbench train --activations DIR. The same command continues a capture that was stopped.",
    )
    capture.add_argument("--config", action="config", help="a YAML or JSON file of the fields below")
    capture.add_argument(
        "--attention",
        action="store_true",
        help="instead of activations: what every head of every layer looks at, as heads.json and"
        " heads.html in `out`",
    )
    capture.add_class_arguments(CaptureConfig, help="the capture")
    commands.add_subcommand("capture", capture, help="write activations to disk")

    evaluate = ArgumentParser(
        exit_on_error=False,
        description="Evaluate the SAEs of a run on the held-out part of its text (or on other"
        " text): fvu, L0, dead and dense features, and the model's cross-entropy with each layer"
        " replaced. Writes eval.json into the run directory.",
    )
    evaluate.add_argument("run", help="the run directory (out of trustbench train)")
    evaluate.add_argument("--data", default="", help="other text to evaluate on, all of it")
    evaluate.add_argument("--snapshot", type=int, default=0, help="token count of a snapshot")
    evaluate.add_argument("--tokens", type=int, default=100_000, help="activations to evaluate")
    evaluate.add_argument(
        "--spliced_tokens", type=int, default=20_000, help="tokens of the cross-entropies"
    )
    evaluate.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    commands.add_subcommand("eval", evaluate, help="evaluate the SAEs of a run")

    demo = ArgumentParser(
        exit_on_error=False,
        description="Train SAEs on all six layers of the built-in model, on the built-in text,"
        " offline, evaluate them and write report.html. A few minutes on 2 cores.",
    )
    demo.add_argument("--out", default="demo-run", help="directory for the run and its report")
    demo.add_argument("--tokens", type=int, default=0, help="tokens to train on; 0: the default")
    commands.add_subcommand("demo", demo, help="the whole main job on built-in model and text")

    tune = ArgumentParser(
        exit_on_error=False,
        description="Time every shipped configuration of the GPU kernels on this card, and remember"
        " the fastest for later runs. Optional: the defaults are good.",
    )
    tune.add_argument("--d_in", type=int, default=1024, help="width of the activations")
    tune.add_argument("--d_sae", type=int, default=32768, help="features of an SAE")
    tune.add_argument("--k", type=int, default=64, help="active features a token")
    tune.add_argument("--batch_size", type=int, default=16384, help="tokens a training step")
    tune.add_argument("--device", default="cuda", help="cuda or cuda:N")
    commands.add_subcommand("tune", tune, help="fit the kernels to this GPU (a minute)")

    bench = ArgumentParser(
        exit_on_error=False,
        description="Measure this machine: every op and every main job against its floor and every"
        " peer present, and quality beside speed. Runs in a checkout, with the extra `bench`;"
        " benchmarks/README.md says how to install the peers.",
    )
    bench.add_argument("--quick", action="store_true", help="3 minutes on 2 cores (the default)")
    bench.add_argument("--full", action="store_true", help="17 minutes: the README's shapes")
    bench.add_argument("--gpu", action="store_true", help="every kernel and the run, on a GPU")
    bench.add_argument("--only", default="", help="subjects, by commas: step,quality,ops,...")
    bench.add_argument("--out", default="bench-run", help="directory of bench.json, .md and .html")
    bench.add_argument(
        "--peers-python", default="", help="python of the peers' environment (.peers/bin/python)"
    )
    bench.add_argument(
        "--compare", default="", help="an earlier bench.json: which ratios moved by over 25 %"
    )
    bench.add_argument(
        "--readme", action="store_true", help="record it, and write the README's figures from it"
    )
    commands.add_subcommand("bench", bench, help="speed and quality, against peers and floors")

    commands.add_subcommand(
        "info",
        ArgumentParser(description="Versions, devices, native modules, what runs each op."),
        help="what this installation has",
    )
    return parser


def _quiet_transformers() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()


def _train(options: Namespace) -> int:
    from trustbench.training import TrainConfig, train

    _quiet_transformers()
    fields = options.as_dict()
    fields.pop("config", None)
    result = train(TrainConfig.from_dict(fields))
    if not result.finished:
        print(
            f"stopped at {result.tokens} tokens, checkpoint written:"
            " the same command continues the run",
            file=sys.stderr,
        )
        return _INTERRUPTED
    print(f"{len(result.saes)} SAEs, {result.tokens} tokens each: {result.out / 'final'}")
    return 0


def _capture(options: Namespace) -> int:
    from trustbench.activations import CaptureConfig, capture_activations

    _quiet_transformers()
    fields = options.as_dict()
    fields.pop("config", None)
    if fields.pop("attention"):
        from trustbench.attention.heads import profile_heads

        found = profile_heads(CaptureConfig(**fields))
        print(f"{len(found['text'])} layers, {found['tokens']} tokens: {options.out}/heads.html")
        return 0
    cache = capture_activations(CaptureConfig(**fields))
    size = sum(shard.bytes for shard in cache.shards)
    print(f"{cache.tokens} tokens, {len(cache.shards)} shards, {size / 1e9:.2f} GB: {cache.path}")
    return 0


def _tune(options: Namespace) -> int:
    from trustbench import devices
    from trustbench.errors import bad
    from trustbench.ops import dispatch
    from trustbench.training.tune import tune

    device = devices.resolve(options.device)
    if device.type != "cuda":
        raise bad("device", options.device, "a CUDA device: there is nothing to tune on a CPU")
    from triton.testing import do_bench

    sizes = (options.d_in, options.d_sae, options.k, options.batch_size)
    for found in tune(*sizes, device, lambda run: do_bench(run, return_mode="median") / 1e3):
        times = ", ".join(f"{1e3 * seconds:.3f}" for seconds in found.seconds)
        print(f"{found.name}: {times} ms; fastest: {found.fastest}")
    print(f"written to {dispatch.triton('_tuned').cache_file()}")
    return 0


def _eval(options: Namespace) -> int:
    from trustbench import files
    from trustbench.evals.run import evaluate_run

    _quiet_transformers()
    report = evaluate_run(
        Path(options.run),
        data=options.data,
        snapshot=options.snapshot,
        tokens=options.tokens,
        spliced_tokens=options.spliced_tokens,
        device=options.device,
    )
    target = Path(options.run) / "eval.json"
    files.atomic_write_json(target, report.to_dict())
    print(report.table())
    print(f"{report.tokens} tokens; written to {target}")
    return 0


def _demo(options: Namespace) -> int:
    from trustbench.studies.demo.run import run_demo

    _quiet_transformers()
    run_demo(Path(options.out), tokens=options.tokens)
    return 0


def _bench(options: Namespace) -> int:
    from trustbench.bench import run_benchmarks
    from trustbench.errors import bad

    if options.quick and (options.full or options.gpu):
        raise bad("quick", True, "one of --quick, --full and --gpu")
    return run_benchmarks(
        full=options.full,
        gpu=options.gpu,
        only=options.only,
        out=Path(options.out),
        peers_python=options.peers_python,
        compare=Path(options.compare) if options.compare else None,
        readme=options.readme,
    )


def _info(_: Namespace) -> int:
    from trustbench import info

    print(info.text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
