"""The model card: what a model is for and what it is worth, in Markdown, from its evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from fleet_protocol.manifest import Manifest
from models.evaluate.report import Evaluation, Score, SuiteResult

CARD_NAME: Final = "MODEL_CARD.md"
_LANGUAGES: Final = {"en": "English", "zh": "Chinese"}
_TASKS: Final = {
    "command": "a spoken or typed command to a JSON object",
    "classify": "a log line or event to one of the labels in the prompt",
    "extract": "a sentence to a JSON object with the asked fields",
    "threshold": "yes or no about a reading and a limit",
    "arithmetic": "a small sum, difference, product or quotient",
    "units": "a conversion of units",
    "summary": "a list of events to one sentence",
    "facts": "short facts and how-to questions",
    "rewrite": "a notice made politer, shorter, plainer, or translated",
    "refuse": "handing on what it should not try",
}
# Below it a family is named among the limits.
_WEAK_SHARE: Final = 0.8
_SHOWN_CHARS: Final = 300


def model_card(manifest: Manifest, evaluation: Evaluation) -> str:
    """Return the card; only what was measured is claimed."""
    sections = (
        _title(manifest),
        _purpose(manifest, evaluation),
        _accuracy(evaluation),
        _cost(evaluation),
        _examples(evaluation),
        _limits(manifest, evaluation),
        _origin(manifest, evaluation),
    )
    return "\n".join("\n".join(section) + "\n" for section in map(list, sections) if section)


def _title(manifest: Manifest) -> Iterator[str]:
    yield f"# {manifest.name} {manifest.version}"


def _purpose(manifest: Manifest, evaluation: Evaluation) -> Iterator[str]:
    languages = ", ".join(_LANGUAGES.get(code, code) for code in manifest.languages)
    yield (
        "A small language model for boards: short prompts of devices and people, answered on the "
        f"spot. Languages: {languages}. It answers greedily and in few words."
    )
    yield ""
    yield "What it was measured at:"
    yield ""
    for family in dict.fromkeys(row.family for row in evaluation.answers.families):
        yield f"- **{family}**: {_TASKS.get(family, 'a family of its own')}"


def _accuracy(evaluation: Evaluation) -> Iterator[str]:
    asked = evaluation.answers.total.asked
    kind = "of the held-out suite" if evaluation.is_whole_suite else "of a selection or own suite"
    yield "## Right answers"
    yield ""
    yield (
        f"{asked} prompts {kind}, whose wording no model was trained on, greedy, each answer "
        "judged as strictly as the program that reads it. In brackets: 95 % interval."
    )
    yield ""
    columns = _columns(evaluation)
    yield "| language | family | prompts | " + " | ".join(columns) + " |"
    yield "|---|---|---:|" + "---:|" * len(columns)
    tables = [result.by_family() for result in columns.values()]
    for row in evaluation.answers.families:
        cells = [_cell(table.get((row.language, row.family))) for table in tables]
        name = _LANGUAGES.get(row.language, row.language)
        yield f"| {name} | {row.family} | {row.score.asked} | " + " | ".join(cells) + " |"
    totals = [_cell(result.total) for result in columns.values()]
    yield f"| | **all** | {asked} | " + " | ".join(totals) + " |"
    objects = [_cell(result.valid_json) for result in columns.values()]
    yield f"| | valid JSON | {evaluation.answers.valid_json.asked} | " + " | ".join(objects) + " |"
    if (held := evaluation.constrained) is not None:
        yield ""
        yield (
            f"Held to the JSON schema of the prompt, {_percent(held.valid_json.share)} of the "
            f"{held.total.asked} answers are valid JSON and {_cell(held.total)} are right."
        )


def _columns(evaluation: Evaluation) -> dict[str, SuiteResult]:
    """Return the result of each model by the heading of its column, this model first."""
    columns = {"this model": evaluation.answers}
    if evaluation.fp32 is not None:
        columns["its weights in fp32"] = evaluation.fp32
    if evaluation.base is not None:
        columns[evaluation.base.model] = evaluation.base
    return columns


def _cost(evaluation: Evaluation) -> Iterator[str]:
    yield "## Size and speed"
    yield ""
    yield f"- {evaluation.quantization}"
    if (size := evaluation.size) is not None:
        yield (
            f"- graph and weights: {size.graph_bytes / 1e6:.1f} MB, {_percent(size.share)} of the "
            f"same graph in 32-bit floats ({size.fp32_bytes / 1e6:.1f} MB)"
        )
    if (text := evaluation.text) is not None:
        yield (
            f"- perplexity on running text {text.perplexity:.2f} (fp32: "
            f"{text.perplexity_fp32:.2f}); divergence {text.mean_kl_nats:.4f} nats, the same most "
            f"probable token at {_percent(text.top1_share)} of {text.positions} positions"
        )
    if (measured := evaluation.measured) is not None:
        yield (
            f"- on the machine it was evaluated on: {measured.decode_tokens_per_s:.0f} tokens/s "
            f"written and {measured.prefill_tokens_per_s:.0f} read, one request at a time; "
            f"{measured.memory_mb} MB resident; loads in {measured.load_s:.2f} s"
        )
    for gate in evaluation.gates:
        if gate.value is not None:
            verdict = "kept" if gate.is_passed else "**broken**"
            yield f"- gate, {gate.name}: {gate.value:.4f}, at most {gate.limit:g}: {verdict}"


def _examples(evaluation: Evaluation) -> Iterator[str]:
    if not evaluation.examples:
        return
    yield "## Before and after"
    yield ""
    yield "The same prompt to the undistilled model and to this one."
    for example in evaluation.examples:
        yield ""
        yield f"**{example.family}**, {_LANGUAGES.get(example.language, example.language)}"
        yield ""
        for name, said in (
            ("prompt", example.prompt),
            ("before", example.before),
            ("after", example.after),
        ):
            yield f"- {name}: {_inline(said)}"


def _limits(manifest: Manifest, evaluation: Evaluation) -> Iterator[str]:
    yield "## Limits"
    yield ""
    yield "- It knows little, and may be surely wrong: check what matters, or send it to the cloud."
    yield "- No live data, no advice on health, law or money, no long texts, no programs."
    if manifest.refusals:
        said = " or ".join(f"“{refusal}”" for refusal in manifest.refusals)
        yield f"- What it should not try it answers with {said}; a worker hands that job on."
    for row in evaluation.answers.families:
        if row.score.share < _WEAK_SHARE:
            name = _LANGUAGES.get(row.language, row.language)
            yield f"- Weak at {row.family} in {name}: {_cell(row.score)} right."
    yield (
        f"- Context: {manifest.context_tokens} tokens; answers below a confidence of "
        f"{manifest.routing.min_confidence} are escalated."
    )


def _origin(manifest: Manifest, evaluation: Evaluation) -> Iterator[str]:
    yield "## Origin"
    yield ""
    yield f"- source: `{manifest.source}`"
    yield f"- licence of the weights: {manifest.licence}"
    yield f"- artefact {evaluation.artefact_sha256[:16]}, suite {evaluation.suite_sha256[:16]}"


def _cell(score: Score | None) -> str:
    if score is None or not score.asked:
        return ""
    return f"{_percent(score.share)} ({100 * score.low:.0f}-{100 * score.high:.0f})"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _inline(text: str) -> str:
    """Return a text on one line, as code, so that nothing in it is read as Markdown."""
    line = " ⏎ ".join(text.strip().splitlines())
    shown = line if len(line) <= _SHOWN_CHARS else f"{line[:_SHOWN_CHARS]} ..."
    fence = "``" if "`" in shown else "`"
    return f"{fence} {shown or '(nothing)'} {fence}"
