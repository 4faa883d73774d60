"""Complete jobs built on `bilevel`; run one with `python -m applications.NAME --help`."""
