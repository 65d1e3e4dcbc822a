"""Speed, always as ratios taken in one run."""
