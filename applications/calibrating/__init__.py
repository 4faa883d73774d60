"""Recalibration: exact risks of a known mixture, and calibrators of a trained classifier."""
