"""What happens to a run that is killed, damaged, cut off from its disk or its memory, or not alone.

`python -m tests.reliability` counts it at full size (docs/reliability.md), `test_reliability.py` tries some.
"""
