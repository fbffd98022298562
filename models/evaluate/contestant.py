"""What answers the suite: a graph with the tokenizer and chat template of its artefact."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
from tokenizers import Tokenizer

from fleet_protocol.calculation import SPARE_TOKENS
from fleet_protocol.manifest import Architecture, Manifest
from models.checkpoints.chat import render_prompt
from models.evaluate.checks import is_right, parse_object
from models.evaluate.constrained import SchemaGuides
from models.evaluate.report import SuiteResult, family_scores, score
from models.evaluate.run import ROWS, Answered, Answerer, Question
from models.progress import Progress
from models.proof.calculations import AnswerReader
from models.proof.runner import GraphRunner
from models.proof.verify import read_manifest
from models.suite import (
    AnyCheck,
    Check,
    ChoiceCheck,
    ContainsCheck,
    FirstWordCheck,
    JsonCheck,
    NumberCheck,
    RefusalCheck,
    SuiteItem,
)

# Room for any right answer and to see a wrong one go astray; more only costs time.
_ANSWER_TOKENS: Final[dict[type[Check], int]] = {
    JsonCheck: 96,
    ChoiceCheck: 16,
    FirstWordCheck: 8,
    NumberCheck: 24,
    AnyCheck: 48,
    ContainsCheck: 80,
    RefusalCheck: 24,
}


class Contestant(msgspec.Struct, frozen=True, kw_only=True):
    """A graph, and how it is spoken to.

    Attributes:
        manifest: Of the artefact whose tokenizer and template it shares.
    """

    name: str
    graph: Path
    tokenizer: Path
    manifest: Manifest

    @property
    def architecture(self) -> Architecture:
        """What its engine must allocate for."""
        return self.manifest.architecture


class Answers(msgspec.Struct, frozen=True, kw_only=True):
    """All answers of one contestant, in the items' order, and what they are worth.

    Attributes:
        texts: As a board shows them: what was said, without calculations.
    """

    texts: tuple[str, ...]
    said: tuple[Answered, ...]
    result: SuiteResult


def contestant_of(folder: Path) -> Contestant:
    """Return an artefact's default graph; raises VerificationError."""
    manifest = read_manifest(folder)
    return Contestant(
        name=f"{manifest.name} {manifest.version}",
        graph=folder / manifest.graph,
        tokenizer=folder / manifest.tokenizer,
        manifest=manifest,
    )


def ask(contestant: Contestant, items: Sequence[SuiteItem], progress: Progress) -> Answers:
    """Put all items, freely."""
    return _put(contestant, items, progress, guides=None)


def ask_held(
    contestant: Contestant, items: Sequence[SuiteItem], progress: Progress
) -> SuiteResult | None:
    """Put the items that have a schema, held to it; None where there are none."""
    held = [item for item in items if item.schema is not None]
    if not held:
        return None
    guides = SchemaGuides(
        contestant.tokenizer,
        vocab=contestant.architecture.vocab,
        stops=contestant.manifest.stop_tokens,
    )
    name = f"{contestant.name}, held to its schema"
    contestant = msgspec.structs.replace(contestant, name=name)
    return _put(contestant, held, progress, guides=guides).result


def _put(
    contestant: Contestant,
    items: Sequence[SuiteItem],
    progress: Progress,
    *,
    guides: SchemaGuides | None,
) -> Answers:
    progress.step("answer", f"{len(items)} prompts, {contestant.name}")
    tokenizer = Tokenizer.from_file(str(contestant.tokenizer))
    # What is held to a schema is JSON as it stands, on a board as here.
    is_free = guides is None
    reader = AnswerReader(tokenizer, calculates=contestant.manifest.calculates and is_free)
    questions = [_question(item, contestant.manifest, tokenizer, guides) for item in items]
    if is_free:
        questions = [_with_results(asked, reader, contestant.manifest) for asked in questions]
    longest = max(
        (len(asked.tokens) + asked.max_tokens + asked.spare_tokens for asked in questions),
        default=1,
    )
    runner = GraphRunner(
        contestant.graph,
        contestant.architecture,
        rows=ROWS,
        max_len=min(longest, contestant.manifest.context_tokens),
    )
    answerer = Answerer(runner, stops=contestant.manifest.stop_tokens)
    began = time.perf_counter()
    said = tuple(answerer.answer_all(questions, advance=progress.advance))
    elapsed_s = time.perf_counter() - began
    texts = tuple(reader.read(answer.tokens).text for answer in said)
    written = sum(len(answer.tokens) + 1 for answer in said)
    return Answers(
        texts=texts, said=said, result=_result(contestant.name, items, texts, written, elapsed_s)
    )


def _question(
    item: SuiteItem, manifest: Manifest, tokenizer: Tokenizer, guides: SchemaGuides | None
) -> Question:
    prompt = render_prompt(manifest.chat_template, item.messages)
    guide = None
    if guides is not None and item.schema is not None:
        guide = guides.guide(item.schema)
    return Question(
        tokens=tuple(tokenizer.encode(prompt, add_special_tokens=False).ids),
        max_tokens=_ANSWER_TOKENS[type(item.check)],
        guide=guide,
    )


def _with_results(asked: Question, reader: AnswerReader, manifest: Manifest) -> Question:
    """Let the results of calculations be put into the answer, as a worker does."""
    guide = reader.guide()
    if guide is None:
        return asked
    room = manifest.context_tokens - len(asked.tokens) - asked.max_tokens
    spare = max(0, min(SPARE_TOKENS, room))
    return msgspec.structs.replace(asked, guide=guide, spare_tokens=spare)


def _result(
    name: str, items: Sequence[SuiteItem], texts: Sequence[str], written: int, elapsed_s: float
) -> SuiteResult:
    verdicts = [is_right(item.check, text) for item, text in zip(items, texts, strict=True)]
    pairs = zip(items, verdicts, strict=True)
    objects = [
        parse_object(text) is not None
        for item, text in zip(items, texts, strict=True)
        if isinstance(item.check, JsonCheck)
    ]
    return SuiteResult(
        model=name,
        total=score(sum(verdicts), len(verdicts)),
        families=family_scores((item.language, item.family, right) for item, right in pairs),
        valid_json=score(sum(objects), len(objects)),
        elapsed_s=round(elapsed_s, 1),
        tokens_per_s=round(written / elapsed_s, 1) if elapsed_s else 0.0,
    )
