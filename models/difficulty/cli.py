"""`python -m models difficulty`: fit a difficulty model on labelled answers."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec
import numpy as np

from fleet_protocol.manifest import AucInterval, DifficultyManifest
from models.artefacts.pack import pack
from models.difficulty.build import Embedded, FitSettings, fit_difficulty
from models.difficulty.data import Labelled, read_labelled
from models.embedding.runner import EncoderRunner, plain_tokenizer
from models.embedding.verify import read_embedding_manifest
from models.progress import Progress
from models.terminal import factory_cache, json_option, print_json, show_progress

_BATCH = 16


@click.command(short_help="Fit how likely a prompt is to be answered wrongly.")
@click.option(
    "--data",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    required=True,
    help='JSON lines of {"prompt": "...", "right": true}, or CSV with a header.',
)
@click.option("--prompt-column", default="prompt", show_default=True)
@click.option("--right-column", default="right", show_default=True)
@click.option("--name", default="difficulty", show_default=True, help="Of the artefact.")
@click.option("--model", help="Name of the model whose answers were labelled.")
@click.option(
    "--embedding",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Embedding artefact whose vectors are features, too.",
)
@click.option("--folds", type=click.IntRange(3, 20), default=5, show_default=True)
@click.option("--seed", type=int, default=7, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the artefact.")
@json_option
def difficulty(
    *,
    data: Path,
    prompt_column: str,
    right_column: str,
    embedding: Path | None,
    out: Path | None,
    as_json: bool,
    **settings: object,
) -> None:
    """Fit how likely the model is to answer a prompt wrongly, before it is asked.

    Its worth is measured on prompts left out of the fit, beside the length alone and chance.
    """
    chosen = msgspec.convert(settings, FitSettings)
    labelled = read_labelled(data, prompt_column=prompt_column, right_column=right_column)
    with show_progress(as_json=as_json) as progress:
        embedded = _embed(labelled, embedding, progress) if embedding else None
        manifest = fit_difficulty(labelled, chosen, progress, embedded=embedded).manifest
    target = out or factory_cache().artefacts / manifest.name / manifest.version
    is_new = pack(manifest, {}, target)
    if as_json:
        print_json({"path": str(target), "is_new": is_new, **_facts(manifest)})
    else:
        _print_report(manifest, target)


def _embed(labelled: tuple[Labelled, ...], folder: Path, progress: Progress) -> Embedded:
    manifest = read_embedding_manifest(folder)
    progress.step("embed", f"{len(labelled)} prompts")
    tokenizer = plain_tokenizer(
        (folder / manifest.tokenizer).read_text("utf-8"), max_tokens=manifest.max_tokens
    )
    runner = EncoderRunner(folder / manifest.graph, tokenizer)
    prompts = [row.prompt for row in labelled]
    parts = []
    for at in range(0, len(prompts), _BATCH):
        parts.append(runner.embed(prompts[at : at + _BATCH], batch=_BATCH))
        progress.advance(min(at + _BATCH, len(prompts)), len(prompts))
    vectors = np.concatenate(parts).astype(np.float64)
    return Embedded(name=manifest.name, version=manifest.version, vectors=vectors)


def _facts(manifest: DifficultyManifest) -> dict[str, object]:
    return {
        "name": manifest.name,
        "version": manifest.version,
        "quality": msgspec.to_builtins(manifest.quality),
        "weights": dict(zip(manifest.features, manifest.weights, strict=True)),
    }


def _print_report(manifest: DifficultyManifest, target: Path) -> None:
    quality = manifest.quality
    click.echo(f"{manifest.name} {manifest.version}")
    click.echo(f"  {target}")
    click.echo(
        f"  {quality.rows} prompts, {quality.wrong_share:.1%} answered wrongly; "
        f"each predicted by the other {quality.folds - 1} of {quality.folds} folds:"
    )
    click.echo(f"  AUC          {_interval(quality.auc)}")
    click.echo(f"  length only  {_interval(quality.auc_length)}")
    click.echo(f"  random       {_interval(quality.auc_random)}")
    click.echo(f"  gain         {_interval(quality.gain)} over the length")
    click.echo(f"  calibration  off by {quality.calibration_error:.3f}; Brier {quality.brier:.3f}")
    if quality.gain.low <= 0:
        click.echo("  note: on this data it is not surely better than the length alone", err=True)


def _interval(auc: AucInterval) -> str:
    return f"{auc.value:.3f} [{auc.low:.3f}, {auc.high:.3f}]"
