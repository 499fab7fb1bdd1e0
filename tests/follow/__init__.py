"""Tests of following a log; `python -m follow` runs random histories against the model."""
