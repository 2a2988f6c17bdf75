"""`titans-jax export`: a checkpoint as safetensors or StableHLO."""

import argparse

from titans_jax import export, files, metrics, results, training
from titans_jax.cli.options import checkpoint_options, load, names, output, positive
from titans_jax.training import model_io
from titans_jax.waiting import waiting


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options: the checkpoint and the format."""
    checkpoint_options(parser)
    forms = "safetensors (default): parameters, config, model card; stablehlo: functions that need jax alone"
    parser.add_argument("--to", choices=("safetensors", "stablehlo"), default="safetensors", help=forms)
    kept = "dtype of the parameters in the file (default float32)"
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32", help=kept)
    known = f"platforms of stablehlo, some of {', '.join(export.PLATFORMS)} (default: all)"
    parser.add_argument("--platforms", type=names, default=list(export.PLATFORMS), metavar="A,B", help=known)
    parser.add_argument("--segment", type=positive, default=64, help="tokens of a call of prefill (default 64)")


def run(options: argparse.Namespace) -> None:
    """Write a checkpoint as safetensors with a model card, or as StableHLO that runs without this library."""
    folder = output(options, f"export_{options.to}")
    experiment, model, step = load(options.checkpoint, options)
    facts = model_io.facts(options.checkpoint, step)
    parameters = metrics.count(model_io.named_parameters(model))
    result = {"to": options.to, "parameters": parameters, "step": step, "checkpoint": str(options.checkpoint)}
    model_io.save_model(folder, experiment, model, step, facts, options.dtype)
    if options.to == "stablehlo":
        with training.memory_advice(), waiting("lowering"):
            sizes = export.write(folder, model, segment=options.segment, platforms=options.platforms)
        result |= {f"{name}_bytes": size for name, size in sizes.items()} | {"platforms": ",".join(options.platforms)}
    text = export.model_card(experiment, step, parameters=parameters, **facts)
    files.write(folder / "README.md", text)
    results.write_result(folder, result)
    written = ", ".join(sorted(path.name for path in folder.iterdir()))
    print(f"{options.to} of step {step}, {parameters:,} parameters\nwritten: {folder}/: {written}")
