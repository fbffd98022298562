"""The held-out suite: prompts as people type them, with what a right answer is.

Written by hand, one JSON line an item, one file a family below `en/` and `zh/`. No wording, device
or reading of it may enter what a model is trained on: it measures what a model has never seen.
"""

from models.suite.items import (
    AnyCheck,
    Check,
    ChoiceCheck,
    ContainsCheck,
    FirstWordCheck,
    JsonCheck,
    NumberCheck,
    RefusalCheck,
    Script,
    SuiteError,
    SuiteItem,
    load_reasoning,
    load_suite,
    read_items,
)

__all__ = [
    "AnyCheck",
    "Check",
    "ChoiceCheck",
    "ContainsCheck",
    "FirstWordCheck",
    "JsonCheck",
    "NumberCheck",
    "RefusalCheck",
    "Script",
    "SuiteError",
    "SuiteItem",
    "load_reasoning",
    "load_suite",
    "read_items",
]
