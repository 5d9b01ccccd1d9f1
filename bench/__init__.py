"""The budgets, measured: ``make bench``. Speed is held against reference work that was measured in the same run."""
