"""CT with outlined emboli as it is published or kept: one file per layout, each listing `ListedScan`s.

Files are paired by name, never by order; what has no partner is named. `training/imported_cases.py` makes training
cases of them.
"""
