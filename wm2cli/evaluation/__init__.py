"""Scores of forecasts against a truth and against baselines, physical checks, and what is made of them to look at."""
