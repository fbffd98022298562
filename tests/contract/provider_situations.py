"""What goes wrong with providers, and what the cloud lane does about it: a table that is run.

Each row is played against the simulator over HTTP in virtual time; `docs/providers.md` shows the
same rows.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple

from tests.contract import provider_plays as plays


class Situation(NamedTuple):
    """One row."""

    situation: str
    reaction: str
    play: Callable[[], Awaitable[None]]


SITUATIONS = (
    Situation(
        "25 times HTTP 500 in a row, with a backup",
        "The backup answers every job at once. After 5 failures no job is sent there; a call of "
        "our own, of some twenty tokens, finds out every 250 ms, and the first good one puts the "
        "endpoint back.",
        plays.errors_in_a_row,
    ),
    Situation(
        "Failures that take their time, with a backup",
        "The same, every ten times as long as a failure takes (5 s at most), and only while jobs "
        "come: 30 s after the last one nobody asks.",
        plays.slow_errors_in_a_row,
    ),
    Situation(
        "A call that finds out hangs, with a backup",
        "No job waits for it: the backup answers. After `idle_timeout_s` (30 s) it is given up, "
        "and 5 s later made again.",
        plays.a_probe_that_hangs,
    ),
    Situation(
        "HTTP 500 without a backup",
        "3 calls with jittered pauses (up to 1 s, 2 s). Once the breaker is open, `provider_open` "
        "within no time, with the span after which to come again.",
        plays.errors_without_a_backup,
    ),
    Situation(
        "Nobody listens at an endpoint's address, with a backup",
        "The backup answers every job at once; after 5 such calls the endpoint is left alone.",
        plays.nobody_there,
    ),
    Situation(
        "429 with Retry-After: 7",
        "No call of this account for 7 s, then the same job again. The breaker does not mind.",
        plays.too_many_with_a_date,
    ),
    Situation(
        "429 with Retry-After: 7, with a backup",
        "The backup answers, for all jobs, until the 7 s are over.",
        plays.too_many_with_a_backup,
    ),
    Situation(
        "429 without Retry-After, twice",
        "Pauses with full jitter, longer with each 429 in a row (up to 1 s, 2 s ... 30 s).",
        plays.too_many_without_a_date,
    ),
    Situation(
        "429 while there are many calls",
        "Half as many calls at once; answers let the number grow again, one by one.",
        plays.fewer_at_once,
    ),
    Situation(
        "More jobs than `requests_per_s`",
        "A burst of 10 at once, then one every 100 ms, in order.",
        plays.more_than_the_rate,
    ),
    Situation(
        "The same question from 20 devices at once",
        "One call; all get its answer, the first one pays.",
        plays.the_same_question,
    ),
    Situation(
        "A stream is cut after 41 s, the next call says the same",
        "The backup is called at once; the device sees the answer go on where it stopped.",
        plays.cut_and_gone_on,
    ),
    Situation(
        "A stream is cut after 41 s, the next call says something else",
        "The device sees no more pieces, and never a second beginning; the result is whole.",
        plays.cut_and_superseded,
    ),
    Situation(
        "Keep-alives for 5 minutes, no content",
        "Given up after `first_content_timeout_s` (60 s), then called again.",
        plays.nothing_but_keep_alives,
    ),
    Situation(
        "Keep-alives for 5 minutes, with a backup",
        "Given up after half of the time that is left; the backup has the other half.",
        plays.keep_alives_with_a_backup,
    ),
    Situation(
        "Keep-alives for 50 s, then the answer",
        "It is waited for: within `first_content_timeout_s`, and within half of the time that is "
        "left where a backup could go on.",
        plays.slow_but_alive,
    ),
    Situation(
        "No content for 2 s, `hedge_after_ms` = 2000 (off by default)",
        "The backup is asked, too; whoever speaks first answers, the other call is given up.",
        plays.hedged,
    ),
    Situation(
        "Both of these calls fail",
        "A pause with jitter, then the first endpoint again.",
        plays.hedged_and_both_fail,
    ),
    Situation(
        "Silence in mid-answer",
        "Given up after `idle_timeout_s` (30 s); the backup goes on.",
        plays.silence_in_mid_answer,
    ),
    Situation(
        "402, later topped up, with a backup",
        "The backup answers. The balance is asked for every 5 minutes, no call is made before it "
        "is there; then the endpoint is used again.",
        plays.an_empty_account,
    ),
    Situation(
        "402 without a backup",
        "`provider_no_balance` at once: the kept answer or a board answers, `degraded`. It "
        "recovers by itself.",
        plays.an_empty_account_alone,
    ),
    Situation(
        "Blank answer in JSON mode",
        "Called again without JSON mode, the form asked for in words and checked; the blanks are "
        "on the bill of the job.",
        plays.blank_json,
    ),
    Situation(
        "Blank answer in JSON mode, with a backup",
        "The backup is asked in JSON mode: the blanks speak against the first one's alone.",
        plays.blank_json_with_a_backup,
    ),
    Situation("Blank answer", "Called again; nobody saw the blanks.", plays.blank_text),
    Situation(
        "`reasoning_content` beside the answer",
        "Never shown, never part of the answer; counted and paid.",
        plays.thoughts,
    ),
    Situation("Any job, default settings", "Thinking is switched off.", plays.short_answers),
    Situation(
        "Another checkpoint behind the same name",
        "The answer says which; `provider.model_changed` is logged once; it costs what the name "
        "costs.",
        plays.another_checkpoint,
    ),
    Situation(
        "A model named as the path of its file (llama-server)",
        "Answers say the file's name, not its folders.",
        plays.a_model_file,
    ),
    Situation(
        "A model's name that is longer than a result may have",
        "It is cut.",
        plays.a_long_name,
    ),
    Situation(
        "401 or 403",
        "The breaker opens at once; the backup answers.",
        plays.a_refused_key,
    ),
    Situation(
        "400 or 422",
        "The job fails with the provider's words: it would fail everywhere. No retry.",
        plays.a_bad_request,
    ),
    Situation("`content_filter`", "No retry, no backup.", plays.a_filtered_answer),
    Situation("`insufficient_system_resource`", "Called again.", plays.out_of_resources),
    Situation(
        "Cut after the last word, before the usage",
        "The answer counts; its cost is unknown.",
        plays.a_cut_before_the_bill,
    ),
    Situation(
        "No content before the job's deadline",
        "`provider_timeout` at the deadline, no retry.",
        plays.the_deadline,
    ),
)
