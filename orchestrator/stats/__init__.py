"""Intervals, tests, corrections and verdicts.

`import scipy` loads a part at its first use (`scipy.stats.t`). `from scipy import stats` would load it, for half a
second, in every command that only names stages.
"""
