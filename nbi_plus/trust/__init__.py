"""When to doubt: calibration of many posteriors against known truths."""
