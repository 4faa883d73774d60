"""Applications of bi-level optimization, each a page: `bilevel list` names them."""

PAGES = (
    "forget_set",
    "unlearning_table",
    "forget_set_transfer",
    "audit",
    "coreset",
    "coreset_stream",
    "condensation",
    "calibration",
    "bayes_error",
    "trigger_key",
    "lifelong",
    "lifelong_checks",
    "pruning",
    "attribution",
    "language_unlearning",
)
"""Modules of this package that are pages; `bilevel forget-set` runs `forget_set`."""
