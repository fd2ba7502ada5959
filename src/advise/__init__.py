"""Which method and batch size to use, predicted from a short calibration."""
