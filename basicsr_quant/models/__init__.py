"""One small class per method: what is built, calibrated, trained and saved."""
