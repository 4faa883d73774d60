"""Which part of a source set to pretrain on, for a target: units, their scores, and the judge."""
