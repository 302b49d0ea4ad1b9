"""What the model is held against: counts, and networks trained end to end on the same tokens."""
