"""The forecast file: CF NetCDF, written beside the computation, under its name only when it is complete."""

from wm2cli.writing.forecast_file import Crop, FileSize, ForecastWriter, check_space, crop, estimate_bytes

__all__ = ["Crop", "FileSize", "ForecastWriter", "check_space", "crop", "estimate_bytes"]
