"""The hyperparameter search: plan, study, run."""
