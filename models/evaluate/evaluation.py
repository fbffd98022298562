"""One evaluation: the suite through an artefact, through its fp32 twin, and what differs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
from tokenizers import Tokenizer

from models.cache import hash_key
from models.evaluate.checks import is_right
from models.evaluate.contestant import Answers, Contestant, ask, ask_held, contestant_of
from models.evaluate.gates import judge
from models.evaluate.quality import (
    PASSAGE_TOKENS,
    TextQuality,
    compare_on_text,
    passage_text,
    passage_tokens,
)
from models.evaluate.report import Evaluation, Example, SizeShare
from models.graphs.variants import graph_bytes
from models.progress import Progress
from models.proof.measure import measure
from models.proof.runner import GraphRunner
from models.suite import SuiteItem, load_suite


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to ask, and whom else.

    Attributes:
        items: None: the project's own suite.
        limit: Ask only the first so many of each family and language; None: all.
        fp32_graph: The graph of the unquantised weights (`save_fp32_graph`); without it nothing
            is said of what quantisation costs.
        base: Folder of another artefact, to print beside; it must have a manifest of its own.
        is_constrained: Ask items with a schema once more, held to it.
        is_measured: Measure memory and speed.
    """

    items: tuple[SuiteItem, ...] | None = None
    limit: int | None = None
    fp32_graph: Path | None = None
    base: Path | None = None
    is_constrained: bool = True
    is_measured: bool = True

    def asked(self) -> tuple[SuiteItem, ...]:
        """Return the items to ask, in order."""
        items = load_suite() if self.items is None else self.items
        if self.limit is None:
            return items
        seen: dict[tuple[str, str], int] = {}
        kept: list[SuiteItem] = []
        for item in items:
            place = (item.language, item.family)
            seen[place] = seen.get(place, 0) + 1
            if seen[place] <= self.limit:
                kept.append(item)
        return tuple(kept)


class WrongAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """An item whose answer did not pass, for a person to read."""

    id: str
    family: str
    language: str
    prompt: str
    want: object
    answer: str


class Findings(msgspec.Struct, frozen=True, kw_only=True):
    """An evaluation with the wrong answers that it keeps no room for."""

    evaluation: Evaluation
    wrong: tuple[WrongAnswer, ...]


def evaluate_artefact(folder: Path, *, progress: Progress, plan: Plan | None = None) -> Evaluation:
    """Evaluate a packed artefact's default graph.

    Raises:
        VerificationError: The artefact is damaged.
        EvaluationGateError: Never: look at `gates`, and `models.evaluate.gates.enforce` them.
    """
    return examine(folder, progress=progress, plan=plan).evaluation


def examine(folder: Path, *, progress: Progress, plan: Plan | None = None) -> Findings:
    """Do as `evaluate_artefact`, and list the wrong answers as well."""
    plan = plan or Plan()
    items = plan.asked()
    subject = contestant_of(folder)
    answers = ask(subject, items, progress)
    constrained = ask_held(subject, items, progress) if plan.is_constrained else None
    fp32 = None
    text = None
    if plan.fp32_graph is not None:
        twin = msgspec.structs.replace(subject, name="fp32 weights", graph=plan.fp32_graph)
        fp32 = ask(twin, items, progress).result
        text = _compare(subject, twin, progress)
    base = ask(contestant_of(plan.base), items, progress) if plan.base is not None else None
    manifest = subject.manifest
    size = size_share(subject.graph, plan.fp32_graph)
    measured = None
    if plan.is_measured:
        progress.step("measure")
        context = manifest.context_tokens
        measured = measure(subject.graph, subject.architecture, context_tokens=context)
    evaluation = Evaluation(
        model=manifest.name,
        version=manifest.version,
        quantization=manifest.quantization,
        artefact_sha256=hash_key(*(file.sha256 for file in manifest.files)),
        suite_sha256=hash_key(msgspec.json.encode(items)),
        is_whole_suite=plan.items is None and plan.limit is None,
        answers=answers.result,
        constrained=constrained,
        fp32=fp32,
        base=base.result if base else None,
        text=text,
        size=size,
        measured=measured,
        gates=judge(answers=answers.result, fp32=fp32, text=text, size=size),
        examples=_examples(items, base, answers) if base else (),
    )
    return Findings(evaluation=evaluation, wrong=_wrong(items, answers))


def size_share(graph: Path, fp32_graph: Path | None) -> SizeShare | None:
    """Compare two graphs with their weights; None without the second."""
    if fp32_graph is None:
        return None
    ours = graph_bytes(graph.parent, graph.name)
    exact = graph_bytes(fp32_graph.parent, fp32_graph.name)
    return SizeShare(graph_bytes=ours, fp32_bytes=exact, share=round(ours / exact, 4))


def _compare(subject: Contestant, twin: Contestant, progress: Progress) -> TextQuality:
    progress.step("compare", "with fp32 on running text")
    graph, exact = (
        GraphRunner(contestant.graph, contestant.architecture, max_len=PASSAGE_TOKENS)
        for contestant in (subject, twin)
    )
    tokenizer = Tokenizer.from_file(str(subject.tokenizer))
    pieces = passage_tokens(tokenizer, passage_text())
    return compare_on_text(graph, exact, pieces, progress=progress)


def _wrong(items: Sequence[SuiteItem], answers: Answers) -> tuple[WrongAnswer, ...]:
    return tuple(
        WrongAnswer(
            id=item.id,
            family=item.family,
            language=item.language,
            prompt=item.prompt,
            want=msgspec.to_builtins(item.check.want),
            answer=text,
        )
        for item, text in zip(items, answers.texts, strict=True)
        if not is_right(item.check, text)
    )


def _examples(items: Sequence[SuiteItem], base: Answers, answers: Answers) -> tuple[Example, ...]:
    """One a family and language: the first that was wrong and is right, else the first."""
    chosen: dict[tuple[str, str], tuple[bool, Example]] = {}
    for item, before, after in zip(items, base.texts, answers.texts, strict=True):
        improved = is_right(item.check, after) and not is_right(item.check, before)
        example = Example(
            family=item.family,
            language=item.language,
            prompt=item.prompt,
            before=before,
            after=after,
        )
        kept = chosen.setdefault((item.language, item.family), (improved, example))
        if improved and not kept[0]:
            chosen[item.language, item.family] = (True, example)
    return tuple(example for _, (_, example) in sorted(chosen.items()))
